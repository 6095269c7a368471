"""Skewed clocks and impossible stamps: a source enters, the section leaves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from detectors.clocks import MAJORITY
from streams.report.evidence import (
    served_by,
    text,
)
from streams.report.found import Found, Span
from streams.report.morning.section import BADGE, Section, Source, first_of, level, unknown
from streams.report.reach import clocks_seen, no_observer
from streams.report.sentences import ahead, count, drift, impossible

COLLECTOR = "collector"  # whom heartbeats name as their observer where they name nobody
SLEWS_MS = 1000  # what is less a time daemon mends by itself, and no clock jumps
STEP = "sudo chronyc makestep   (old: ntpdate -b pool.ntp.org)"


def clocks(s: Source) -> Section:
    found, beside = s.of("clock_skew"), [*s.of("clock_drift"), *s.of("impossible_timestamp")]
    shown, more = first_of([*found, *beside])
    lines = [_beside(f) for f in shown if f.detector != "clock_skew"]
    head = ("clock_skew", "⏰", "CLOCK SKEW")
    why = s.blind("clock_skew")
    why = why or ("" if found else s.not_kept("node"))
    seen = clocks_seen(s.con, _whose(s), s.time(), s.wanted.until)
    why = why or ("" if found or seen.nodes else s.nothing("message that tells of a clock"))
    if why:
        return replace(unknown(head, why, lines, beside), more=more)
    numbers: dict[str, Any] = {"nodes": seen.nodes, "affected": len({f.subject for f in found})}
    unsaid = [(f"{side}:", why) for side, why in seen.unsaid]
    if not found:
        sides = " or ".join({"Behind": "ahead", "Ahead": "behind"}[side] for side, _ in seen.unsaid) or "off"
        scope = f" {s.wanted.subject}" if s.wanted.subject else ""
        value = f"none of {count(seen.nodes, 'node')}{scope} {sides} by more than {seen.warn_ms:,.0f}ms"
        if unsaid:
            numbers |= {"why": "; ".join(f"{side} {words}" for side, words in unsaid)}
            return Section(*head, "unknown", value, [*unsaid, *lines], beside, numbers, more=more)
        return Section(*head, "ok", f"{value} (OK)", lines, beside, numbers, more=more)
    worst = max(found, key=lambda f: f.peak)
    skewed = (f for f in shown if f.detector == "clock_skew")
    clock = against(sorted({str(f.facts["reference"]) for f in found}))
    lines = [
        ("Affected nodes:", f"{numbers['affected']} of {seen.nodes}   (against {clock})"),
        *((f"- {f.name}:", f"{off_by(f)}, since {s.span.since(f)}{_ended(s.span, f)}") for f in skewed),
        *unsaid,
        *lines,
    ]
    action = STEP if worst.peak >= SLEWS_MS else f"below a second let chrony slew; else {STEP}"
    numbers |= {"max_skew_ms": worst.peak}
    every = [*found, *beside]
    return Section(*head, level(found), off_by(worst), lines, every, numbers, action, more, runbook="clock_skew")


def _beside(f: Found) -> tuple[str, str]:
    badge = BADGE[f.level]
    if f.detector == "clock_drift":
        return ("Set:" if f.kind == "step" else "Drifts:"), f"{f.name} {drift(f)} ({badge})"
    return "Impossible stamps:", f"{impossible(f)}, of {f.name} ({badge})"


def _whose(s: Source) -> str:
    """The filter as SQL over `node`. An observer that sends nothing is no node, unless it is asked for."""
    if s.wanted.node:
        return f"node = {text(s.wanted.node)}"
    served = f" AND {served_by(s.con, s.wanted.service, 'node')}" if s.wanted.service else ""
    return no_observer(s.con, s.time()) + served


def against(references: Sequence[str]) -> str:
    """Whom clocks were compared with: the majority, the collector's clock, mail-1's clock."""
    named = {MAJORITY: "the majority", COLLECTOR: f"the {COLLECTOR}'s clock"}
    return " and ".join(named.get(r, f"{r}'s clock") for r in references)


def off_by(f: Found) -> str:
    """+847ms or more; a minus for a clock that is behind."""
    return f"{'+' if ahead(f) else '-'}{math.floor(f.peak):,}ms or more"


def _ended(span: Span, f: Found) -> str:
    return "" if span.is_open(f) else f" until {span.until(f)}"
