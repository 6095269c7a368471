"""Incidents are a fold over windows: the same however changes are batched and wherever a successor goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import polars as pl
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from detectors.causes import Finding
from detectors.detector import Settings
from detectors.finding import SHADOW
from detectors.incidents import AGAIN_US, MOST, Change, Memory, decoded, encoded, fold
from detectors.windows import HOUR_US, MINUTE_US, WINDOW_US
from tests.detectors.changes import changes
from tests.detectors.test_causes import DOUBLE, SKEW, SLOW, STORM, TIMEOUTS, told

NONE = Settings()
CUTS = st.sets(st.integers(0, 600), max_size=6)


def rows(numbered: Sequence[tuple[int, pl.DataFrame]]) -> list[tuple[int, list[dict[str, object]]]]:
    return [(number, frame.to_dicts()) for number, frame in numbered]


def opens(*findings: Finding) -> list[Change]:
    return [Change(f.onset // WINDOW_US, f.onset, f) for f in findings]


def ends(f: Finding, at: int) -> Change:
    return Change(at // WINDOW_US - 1, at, replace(f, resolved=at))


def said(some: Sequence[Change]) -> list[pl.DataFrame]:
    return [frame for _, frame in fold((), some, NONE)[1]]


def last(some: Sequence[Change]) -> dict[str, dict[str, object]]:
    """Each incident as it was last."""
    return {str(row["incident_id"]): row for frame in said(some) for row in frame.to_dicts()}


# ---- laws ------------------------------------------------------------------------------------------------------------


def test_the_laws_are_tried_on_chains_that_join_merge_and_open_again() -> None:
    soon = settings(phases=[Phase.generate], max_examples=500, database=None, derandomize=True)
    for state in ("merged", "reopened"):
        find(changes(), lambda c, state=state: any(state in f["state"] for f in said(c)), settings=soon)  # type: ignore[misc]
    find(changes(), lambda c: any(len(i) > 1 for f in said(c) for i in f["chain"]), settings=soon)


@settings(max_examples=60)
@given(changes(), CUTS, st.randoms(use_true_random=False))
def test_batches_restarts_and_the_order_within_a_window_change_nothing(
    some: list[Change], cuts: set[int], dice: object
) -> None:
    memory, whole = fold((), some, NONE)
    state, pieces = Memory(), []
    for lo, hi in zip([0, *sorted(cuts)], [*sorted(cuts), 10**6], strict=True):
        mine = [c for c in some if lo <= c.number < hi]
        dice.shuffle(mine)  # type: ignore[attr-defined]
        state, more = fold(decoded(encoded(state)), mine, NONE)
        pieces += more
    assert rows(pieces) == rows(whole)
    assert state == memory


@settings(max_examples=30)
@given(changes(), st.integers(0, 200))
def test_what_comes_later_changes_nothing_that_was_said(some: list[Change], until: int) -> None:
    _, whole = fold((), some, NONE)
    _, before = fold((), [c for c in some if c.number < until], NONE)
    assert rows(before) == [(n, r) for n, r in rows(whole) if n < until]


@settings(max_examples=60)
@given(changes())
def test_each_finding_is_in_one_incident_and_what_explains_it_is_in_the_same(some: list[Change]) -> None:
    incidents = last(some)
    alive = [i for i in incidents.values() if i["state"] != "merged"]
    home = [f["finding_id"] for i in alive for f in i["findings"]]  # type: ignore[attr-defined]
    assert sorted(home) == sorted({c.finding.finding_id for c in some})
    for i in alive:
        mine = [f["finding_id"] for f in i["findings"]]  # type: ignore[attr-defined]
        for edge in i["chain"]:  # type: ignore[attr-defined]
            assert edge["effect"] in mine
            assert edge["ruled_out"] or mine.index(edge["cause"]) < mine.index(edge["effect"])
    for i in incidents.values():
        assert (i["merged_into"] in incidents) == (i["state"] == "merged")


# ---- joining ---------------------------------------------------------------------------------------------------------


def test_a_chain_is_one_incident_and_the_clock_that_numbers_rule_out_another() -> None:
    found = last(opens(SLOW, TIMEOUTS, STORM, DOUBLE, SKEW))
    sizes = {len(i["findings"]): i for i in found.values()}  # type: ignore[arg-type]
    assert len(found) == 2 and sizes.keys() == {4, 1}
    assert [f["role"] for f in sizes[4]["findings"]] == ["root cause", "link", "link", "effect"]  # type: ignore[attr-defined]
    assert [e["cause"] for e in sizes[4]["chain"] if e["ruled_out"]] == ["clock_skew"]  # type: ignore[attr-defined]


def test_an_id_stays_when_the_cause_is_found_later() -> None:
    alone = last(opens(STORM))
    assert last(opens(STORM, TIMEOUTS)).keys() == alone.keys()


def test_where_two_are_one_the_older_stays_and_the_younger_says_so() -> None:
    slow = told("timeout_budget", "service", "payment", 0)
    storm = told("retry_storm", "edge", "gateway->payment", 20)
    timeouts = [Change(4, 40_000_000, told("timeout_ratio", "edge", "gateway->payment", 10))]
    first, second = (next(iter(last(opens(f)))) for f in (slow, storm))
    assert {i: r["state"] for i, r in last(opens(slow, storm)).items()} == {first: "open", second: "open"}
    found = last(opens(slow, storm) + timeouts)
    assert {i: (r["state"], r["merged_into"]) for i, r in found.items()} == {
        first: ("open", ""),
        second: ("merged", first),
    }
    assert [f["finding_id"] for f in found[first]["findings"]] == ["timeout_budget", "timeout_ratio", "retry_storm"]  # type: ignore[attr-defined]


def test_what_comes_again_soon_opens_its_incident_again_and_later_begins_another() -> None:
    over = ends(STORM, 5 * MINUTE_US)
    for gap, incidents, state in ((AGAIN_US - MINUTE_US, 1, "reopened"), (AGAIN_US + HOUR_US, 2, "open")):
        again = replace(STORM, finding_id="again", onset=over.at + gap, last=over.at + gap)
        found = last([*opens(STORM), over, *opens(again)])
        assert len(found) == incidents
        assert [*found.values()][-1]["state"] == state
        ended = last([*opens(STORM), over, *opens(again), ends(again, again.onset + 5 * MINUTE_US)])
        assert {r["state"] for r in ended.values()} == {"resolved"}


def test_an_incident_that_lasts_for_weeks_lists_what_is_open_and_what_ended_last() -> None:
    skew = told("clock_skew", "node", "payment-3", lower_ms=9e4, upper_ms=9e4)
    some = opens(skew)
    for n in range(1, 3 * MOST):
        at = n * HOUR_US
        again = told("impossible_timestamp", "node", "payment-3", kind="ahead", off_by_s=80.0)
        again = replace(again, finding_id=f"{n:04}", onset=at, last=at + WINDOW_US)
        some += [*opens(again), ends(again, at + 5 * MINUTE_US)]
    memory, rows_ = fold((), some, NONE)
    assert len(rows_) > 4 * MOST and len(memory) == 1
    (row,) = rows_[-1][1].to_dicts()
    assert [f["finding_id"] for f in row["findings"]] == [
        "clock_skew",
        *(f"{n:04}" for n in range(2 * MOST + 1, 3 * MOST)),
    ]
    assert len(row["chain"]) == MOST - 1
    assert row["onset"].timestamp() == 0 and row["level"] == "page"
    listed = {f["finding_id"] for _, frame in rows_ for r in frame.to_dicts() for f in r["findings"]}
    assert len(listed) == 3 * MOST


def test_what_a_shadow_finds_is_in_no_incident() -> None:
    shade = replace(TIMEOUTS, level=SHADOW)
    assert last(opens(SLOW, TIMEOUTS)).keys() == last(opens(SLOW)).keys()
    assert last(opens(SLOW, shade)) == last(opens(SLOW)) != last(opens(SLOW, TIMEOUTS))
    assert not said(opens(shade))
