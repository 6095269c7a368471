"""What explains what: rules and findings without a circle, reasons, and what numbers rule out."""

from __future__ import annotations

from dataclasses import replace
from graphlib import TopologicalSorter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.causes import RULES, SLACK_US, Cause, Finding, between, causes, depths, direct
from detectors.detector import Settings
from detectors.windows import DAY_US, HOUR_US, MINUTE_US, SECOND_US, WINDOW_US
from tests.detectors.changes import ENDS, finding

NONE = Settings()


def told(detector: str, subject_kind: str, subject: str, onset_s: int = 0, **more: object) -> Finding:
    onset = onset_s * SECOND_US
    kind = str(more.pop("kind", ""))
    resolved = more.pop("resolved", None)
    last = resolved if isinstance(resolved, int) else onset + WINDOW_US
    made = Finding(detector, detector, kind, subject_kind, subject, "", "", "page", onset, last, None, dict(more))
    return replace(made, resolved=last) if resolved is not None else made


SLOW = told("timeout_budget", "service", "payment", 10)
TIMEOUTS = told("timeout_ratio", "edge", "gateway->payment", 10)
STORM = told("retry_storm", "edge", "gateway->payment", 0)
DOUBLE = told("duplicate_key", "service", "payment", 60, kind="applied_twice")
SKEW = told("clock_skew", "node", "payment-3", 0, lower_ms=847.0, upper_ms=1847.0)


def edges(*found: Finding, given: Settings = NONE) -> set[tuple[str, str, bool]]:
    return {(e.cause, e.effect, e.ruled_out) for e in direct({*between(found, found, given)})}


# ---- laws ------------------------------------------------------------------------------------------------------------


def test_no_path_of_rules_leads_back() -> None:
    """A rule for a detector is one for each of its kinds."""
    kinds = {end: {e for e in ENDS if e == end or e.startswith(f"{end}.")} for end in ENDS}
    graph: dict[str, set[str]] = {}
    for rule in RULES:
        for effect in kinds[rule.effect]:
            graph.setdefault(effect, set()).update(kinds[rule.cause])
    assert len([*TopologicalSorter(graph).static_order()]) == len(ENDS) > 10


@settings(max_examples=60)
@given(st.lists(finding(), max_size=25))
def test_no_chain_of_findings_leads_back_and_what_is_left_out_is_explained_all_the_same(found: list[Finding]) -> None:
    every = {(e.effect, e.cause): e for e in between(found, found, NONE) if not e.ruled_out}
    explained = {f.finding_id: {c for e, c in every if e == f.finding_id} for f in found}
    assert {*TopologicalSorter(explained).static_order()} == set(explained)
    chain = [e for e in direct(every.values()) if not e.ruled_out]
    assert {e.effect for e in chain} == {e.effect for e in every.values()}
    assert depths(explained, chain) == depths(explained, every.values())


@settings(max_examples=60)
@given(st.lists(finding(), max_size=25), st.integers(0, 25))
def test_looking_only_at_what_is_related_finds_all_edges(found: list[Finding], some: int) -> None:
    pairs = [(a, b) for a in found[:some] for b in found if a.finding_id != b.finding_id]
    every = {causes(*ends, NONE) for a, b in pairs for ends in ((a, b), (b, a))}
    assert {*between(found[:some], found, NONE)} == every - {None}


# ---- chains ----------------------------------------------------------------------------------------------------------


def test_a_slow_service_its_timeouts_the_storm_and_the_double_effects_are_one_chain() -> None:
    assert edges(DOUBLE, STORM, SLOW, TIMEOUTS) == {
        ("timeout_budget", "timeout_ratio", False),
        ("timeout_ratio", "retry_storm", False),
        ("retry_storm", "duplicate_key", False),
    }


def test_without_a_storm_the_timeouts_explain_the_double_effects() -> None:
    assert edges(DOUBLE, SLOW, TIMEOUTS) == {
        ("timeout_budget", "timeout_ratio", False),
        ("timeout_ratio", "duplicate_key", False),
    }


def test_a_cache_that_is_asked_again_by_what_timed_out_is_no_root_cause() -> None:
    missed = told("idempotency_cache", "service", "payment", 10)
    assert edges(DOUBLE, missed, SLOW, TIMEOUTS) == {
        ("timeout_budget", "timeout_ratio", False),
        ("timeout_ratio", "idempotency_cache", False),
        ("idempotency_cache", "duplicate_key", False),
    }
    before = replace(missed, onset=TIMEOUTS.onset - SLACK_US - WINDOW_US)
    assert causes(TIMEOUTS, before, NONE) is None


@pytest.mark.parametrize(
    "other",
    [
        told("retry_storm", "edge", "gateway->search", 20),
        replace(STORM, tenant="b"),
        replace(STORM, onset=TIMEOUTS.onset - SLACK_US - WINDOW_US),
        replace(STORM, onset=HOUR_US),
        told("somebodys_own", "edge", "gateway->payment", 20),
    ],
    ids=["another edge", "another tenant", "before its cause", "long after", "no rule"],
)
def test_what_is_not_related_or_not_at_the_time_is_not_explained(other: Finding) -> None:
    ended = replace(TIMEOUTS, last=5 * MINUTE_US, resolved=7 * MINUTE_US)
    assert causes(ended, STORM, NONE) == Cause("retry_storm", "timeout_ratio", "callers try again what timed out")
    assert causes(ended, other, NONE) is None


def test_a_lost_node_explains_timeouts_of_the_service_it_is_named_after() -> None:
    gone = told("heartbeat_loss", "node", "payment-3")
    assert causes(gone, TIMEOUTS, NONE)
    assert causes(replace(gone, subject="search-3"), TIMEOUTS, NONE) is None
    assert causes(replace(gone, subject="payment"), TIMEOUTS, NONE) is None


# ---- ruled out by numbers --------------------------------------------------------------------------------------------


def test_a_clock_is_not_the_cause_of_double_effects_while_keys_outlive_its_skew() -> None:
    edge = causes(SKEW, DOUBLE, NONE)
    assert edge and edge.ruled_out
    assert edge.reason == "the keys' TTL of 24 h is longer than the skew, 1,847 ms at most"
    assert causes(SKEW, DOUBLE, Settings(ttl_us={"payment": SECOND_US})) == Cause(
        "duplicate_key", "clock_skew", "a clock that is off forgets keys early"
    )
    assert causes(SKEW, DOUBLE, Settings(ttl_us={"search": SECOND_US, "payment": DAY_US})) == replace(
        edge, ruled_out=True
    )
    unbound = replace(SKEW, facts={"lower_ms": 847.0, "upper_ms": None})
    assert causes(unbound, DOUBLE, NONE) is None


def test_a_clock_is_not_the_cause_of_stamps_that_are_further_off_than_it() -> None:
    stamps = told("impossible_timestamp", "node", "payment-3", 30, kind="ahead", off_by_s=2_303_683_199.0)
    edge = causes(SKEW, stamps, NONE)
    assert edge and edge.ruled_out
    assert edge.reason == "its clock is at most 1,847 ms ahead, the stamps are off by 73 years"
    far = replace(SKEW, facts={"lower_ms": 119_000.0, "upper_ms": 121_000.0})
    edge = causes(far, replace(stamps, facts={"off_by_s": 120.0}), NONE)
    assert edge and not edge.ruled_out
    behind = causes(far, replace(stamps, kind="old"), NONE)
    assert behind and behind.ruled_out and behind.reason.startswith("its clock is not behind")
    assert causes(far, replace(stamps, kind="epoch"), NONE) is None
