"""Random findings and how they changed, for laws of causes and incidents."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from detectors.causes import RULES, Finding
from detectors.incidents import Change
from detectors.windows import WINDOW_US

ENDS = sorted({end for rule in RULES for end in (rule.cause, rule.effect)})
KINDS = {"node": ["payment-3", "search-2"], "edge": ["web->payment", "app->payment"], "service": ["payment", "search"]}
SUBJECT_KIND = {"clock": "node", "heartbeat": "node", "impossible": "node", "ordering": "node", "retry": "edge"}
SUBJECT_KIND |= {"ack": "edge", "split": "entity", "concurrent": "entity"}
FACTS = {"lower_ms": -90_000.0, "upper_ms": 90_000.0, "off_by_s": 80.0, "longest": "web->payment"}


@st.composite
def finding(draw: st.DrawFn) -> Finding:
    detector, _, kind = draw(st.sampled_from([*ENDS, "somebodys_own"])).partition(".")
    subject_kind = "edge" if detector == "timeout_ratio" else SUBJECT_KIND.get(detector.partition("_")[0], "service")
    kind = kind or ("ahead" if detector == "impossible_timestamp" else "")
    subject = draw(st.sampled_from(KINDS.get(subject_kind, ["order/cart"])))
    onset = draw(st.integers(0, 60)) * WINDOW_US
    tenant = draw(st.sampled_from(["", "", "b"]))
    name = f"{detector}|{kind}|{subject}|{tenant}|{onset}"
    return Finding(name, detector, kind, subject_kind, subject, "", tenant, "warn", onset, onset, None, FACTS)


@st.composite
def changes(draw: st.DrawFn) -> list[Change]:
    """Each finding opens, some rise, most end."""
    found = {f.finding_id: f for f in draw(st.lists(finding(), min_size=1, max_size=25))}
    some = [c for f in found.values() for c in draw(_of(f))]
    return sorted(some, key=lambda c: (c.number, c.at, c.finding.finding_id))


@st.composite
def _of(draw: st.DrawFn, f: Finding) -> list[Change]:
    at = f.onset + draw(st.integers(0, 12)) * WINDOW_US
    warns = replace(f, last=at + WINDOW_US)
    said = [Change(at // WINDOW_US, at, warns)]
    if draw(st.booleans()):
        at += draw(st.integers(1, 10)) * WINDOW_US
        said.append(Change(at // WINDOW_US, at, replace(warns, level="page", last=at + WINDOW_US)))
    if draw(st.integers(0, 3)):
        at += draw(st.sampled_from([13, 20, 400])) * WINDOW_US
        said.append(Change(at // WINDOW_US - 1, at, replace(said[-1].finding, resolved=at)))
    return said
