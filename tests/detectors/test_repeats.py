"""Repeats: calls equal to one that failed shortly before, where nobody counts retries."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.engine import MatchState, match, reduce
from detectors.tables.repeats import REPEATS, WITHIN_US
from detectors.windows import SECOND_US, WINDOW_US, parse_coordinate
from tests.cases import Case, at, partitions
from tests.harness import Memory, placed

CALL = {"caller": "a", "service_name": "b", "side": "client", "payload_hash": "h", "status": "ok", "node_id": "n"}


def repeats(*calls: dict[str, Any]) -> list[tuple[int, int]]:
    """(position of the repeat, position of the failed call) of calls at times in µs."""
    rows = [{**CALL, **c, "timestamp": at(c["t"] / 1e6), "arrival": at(c["t"] / 1e6 + 1)} for c in calls]
    (part,) = placed(Case({"requests": partitions("requests", [{**r, "t": None} for r in rows], 1)}))["requests"]
    end = int(part["t"].max()) + WINDOW_US if len(part) else 0  # type: ignore[arg-type]
    tables, _ = match([REPEATS], MatchState(), [reduce([REPEATS], "requests", part)], end, Memory())
    pairs = tables[REPEATS.name].select("coord", "earlier").rows() if REPEATS.name in tables else []
    first = int(part["offset"].min() or 0) if len(part) else 0  # type: ignore[arg-type]
    return sorted((parse_coordinate(a)[2] - first, parse_coordinate(b)[2] - first) for a, b in pairs)


@pytest.mark.parametrize("status", ["rejected", "timeout"])
def test_an_equal_call_within_a_minute_after_a_failed_one_repeats_it(status: str) -> None:
    assert repeats({"t": 0, "status": status}, {"t": WITHIN_US}) == [(1, 0)]
    assert repeats({"t": 0, "status": status}, {"t": WITHIN_US + 1}) == []


@pytest.mark.parametrize(
    "other",
    [
        *({"caller": "c"}, {"service_name": "c"}, {"side": "server"}),
        *({"payload_hash": "i"}, {"payload_hash": None}, {"retry_count": 0}),
    ],
)
def test_another_call_repeats_nothing(other: dict[str, Any]) -> None:
    assert repeats({"t": 0, "status": "rejected"}, {"t": 1, **other}) == []
    assert repeats({"t": 0, "status": "rejected"}, {"t": 1}) == [(1, 0)]


@pytest.mark.parametrize("status", ["ok", "error", "cancelled", None])
def test_a_call_after_one_that_did_not_fail_so_repeats_nothing(status: str | None) -> None:
    assert repeats({"t": 0, "status": status}, {"t": 1}) == []


def test_each_repeat_has_the_last_failed_call_as_its_witness() -> None:
    calls: list[dict[str, Any]] = [{"t": 0, "status": "rejected"}, {"t": 1, "status": "rejected"}, {"t": 2}, {"t": 3}]
    assert repeats(*calls) == [(1, 0), (2, 1), (3, 1)]


@given(st.lists(st.tuples(st.integers(0, 150), st.booleans(), st.sampled_from("hi")), max_size=30))
def test_repeats_are_those_that_a_loop_finds(calls: list[tuple[int, bool, str]]) -> None:
    rows: list[dict[str, Any]] = [
        {"t": s * SECOND_US, "status": "rejected" if bad else "ok", "payload_hash": h} for s, bad, h in sorted(calls)
    ]
    wanted = [
        i
        for i, row in enumerate(rows)
        if any(
            e["status"] == "rejected" and e["payload_hash"] == row["payload_hash"] and row["t"] - e["t"] <= WITHIN_US
            for e in rows[:i]
        )
    ]
    assert [at for at, _ in repeats(*rows)] == wanted
