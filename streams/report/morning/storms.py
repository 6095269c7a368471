"""Retry storms: a source enters, the section leaves."""

from __future__ import annotations

from collections.abc import Sequence

from streams.landing.state import has
from streams.report.evidence import in_episode, in_space, lake, of_edge
from streams.report.found import Found
from streams.report.morning.section import Section, Source, first_of, level, of_service, unknown
from streams.report.reach import filled
from streams.report.sentences import count


def storms(s: Source) -> Section:
    found = s.of("retry_storm")
    head = ("retry_storms", "🔄", "RETRY STORMS")
    if why := s.blind("retry_storm"):
        return unknown(head, why)
    if not found:
        if why := s.not_kept() or ("" if _told(s) else s.nothing("retry_count or payload_hash")):
            return unknown(head, why)
        return Section(*head, "ok", "None detected ✅", numbers={"storms": 0})
    edges = {f.subject for f in found}
    timeouts = [f for f in s.of("timeout_ratio") if f.subject in edges]
    shown, more = first_of(found)
    totals_of = {f.finding_id: _totals(s, f) for f in found}
    storms = [{"edge": f.subject, "peak_per_min": f.peak, "at": f.peak_at, **totals_of[f.finding_id]} for f in found]
    lines = []
    for f in shown:
        totals = totals_of[f.finding_id]
        peak = f"{f.peak:,.0f}/min at {s.span.clock(f.peak_at)}, {f.facts['share']:.0%} of attempts"
        lines.append((f"- {f.name}:", f"{peak}, {_load(f)}"))
        late = f"{totals['timeouts']:,} of {totals['attempts']:,} attempts timed out"
        percent = f"({totals['timeouts'] / totals['attempts']:.0%})" if totals["attempts"] else ""
        lines.append((f"- {s.span.between(f)}:", f"{count(totals['retries'], 'retry', 'retries')}; {late} {percent}"))
    every = [*found, *timeouts]
    numbers = {"storms": storms}
    return Section(*head, level(found), str(len(found)), lines, every, numbers, _action(found), more=more)


def _action(found: Sequence[Found]) -> str:
    """A multiplier changes nothing where waits do not grow at all."""
    flat = any(f.facts.get("backoff") in ("immediate", "fixed") for f in found)
    return "Exponential backoff with jitter" if flat else "Backoff multiplier 2→3"


def _told(s: Source) -> bool:
    """Whether calls in this time say if they are retries. Rows are looked at only where a service is asked for."""
    if not filled(s.con, "requests", "retry_count", "payload_hash"):
        return False
    if not s.wanted.service:
        return has(s.con, "calls") and bool(s.ask(f"SELECT 1 FROM calls WHERE {s.time()} LIMIT 1"))
    told = "(retry_count IS NOT NULL OR payload_hash IS NOT NULL)"
    said = f"{told} AND {of_service(s, 'service_name', 'caller')} AND {s.time('arrival')}"
    return bool(s.ask(f"SELECT 1 FROM {lake(s.con, 'requests', s.arrived)} WHERE {said} LIMIT 1"))


def _load(f: Found) -> str:
    """By how much retries multiply what is wanted; without any first attempt there is nothing to multiply."""
    load = f.facts["load"]
    return "no first attempts" if load is None else f"load x{load:.2f}"


def _totals(s: Source, f: Found) -> dict[str, int]:
    """Retries, timeouts and attempts of an edge over its whole episode."""
    edge = f"{in_space(f)} AND {of_edge(f)}"
    client = "side IS DISTINCT FROM 'server'"
    clients = s.ask(f"SELECT 1 FROM calls WHERE {edge} AND {client} AND {in_episode(f)} LIMIT 1")
    side = client if clients else "side = 'server'"
    sums = ", ".join(f"coalesce(sum({n}), 0)::BIGINT" for n in ("retries", "timeouts", "attempts"))
    row = s.one(f"SELECT {sums} FROM calls WHERE {edge} AND {side} AND {in_episode(f)}")
    totals = dict(zip(("retries", "timeouts", "attempts"), row, strict=True))
    if f.facts.get("guessed"):
        told = f"SELECT coalesce(sum(weight), 0)::BIGINT FROM repeats WHERE {edge} AND {side} AND {in_episode(f)}"
        totals["retries"] += s.one(told)[0]
    return totals
