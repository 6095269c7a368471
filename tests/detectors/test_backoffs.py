"""Backoffs: how long a retry was waited for, from the end of the attempt before it to its start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.engine import MatchState, match, reduce
from detectors.tables.backoffs import BACKOFFS, COARSE_US, MOST_RETRIES, WITHIN_US, middle, stepped
from detectors.windows import SECOND_US, WINDOW_US
from tests.cases import Case, at, partitions
from tests.harness import Memory, placed

CALL = {"caller": "a", "service_name": "b", "side": "client", "node_id": "n", "request_id": "r"}
FAILED, AGAIN = {"status": "error", "retry_count": 0}, {"status": "ok", "retry_count": 1}


def waits(*attempts: dict[str, Any]) -> list[tuple[int, int, int]]:
    """(retry_count, waited_us, retries) of attempts that begin at `t` µs and take `took` ms, a tenth of a second."""
    rows = []
    for a in attempts:
        took = a.get("took", 100)
        seen = {"timestamp": at(a["t"] / 1e6), "arrival": at(a["t"] / 1e6 + (took or 0) / 1e3 + 1), "duration_ms": took}
        rows.append({**CALL, **a, **seen, "t": None, "took": None})
    (part,) = placed(Case({"requests": partitions("requests", rows, 1)}))["requests"]
    end = int(part["t"].max()) + WINDOW_US if len(part) else 0  # type: ignore[arg-type]
    tables, _ = match([BACKOFFS], MatchState(), [reduce([BACKOFFS], "requests", part)], end, Memory())
    found = tables.get(BACKOFFS.name)
    return [] if found is None else sorted(found.select("retry_count", "waited_us", "retries").rows())


def test_a_retry_waited_from_the_end_of_the_attempt_before_it() -> None:
    assert waits({"t": 0, **FAILED}, {"t": 228_000, **AGAIN}) == [(1, 128_000 // 4096 * 4096, 1)]


def test_a_retry_that_began_before_that_end_waited_for_nothing() -> None:
    assert waits({"t": 0, **FAILED}, {"t": 50_000, **AGAIN}) == [(1, 0, 1)]


@pytest.mark.parametrize(
    "other",
    [
        *({"caller": "c"}, {"service_name": "c"}, {"side": "server"}, {"node_id": "m"}, {"request_id": "s"}),
        *({"request_id": None}, {"retry_count": 2}, {"retry_count": None}),
    ],
)
def test_it_belongs_to_no_other_attempt(other: dict[str, Any]) -> None:
    assert waits({"t": 0, **FAILED}, {"t": 200_000, **AGAIN, **other}) == []
    assert len(waits({"t": 0, **FAILED}, {"t": 200_000, **AGAIN})) == 1


def test_an_attempt_without_duration_has_no_end_and_one_that_is_fine_none_after_it() -> None:
    assert waits({"t": 0, **FAILED, "took": None}, {"t": 200_000, **AGAIN}) == []
    assert waits({"t": 0, **FAILED, "status": "ok"}, {"t": 200_000, **AGAIN}) == []


def test_calls_of_one_request_wait_each_for_themselves_and_side_by_side_for_nobody_knows_whom() -> None:
    """A waits for 50 ms, B for 400: one after the other; side by side, with A's retry before B's failure; and after."""

    def call(t: int, wait: int) -> list[dict[str, Any]]:
        return [{"t": t, **FAILED}, {"t": t + 100_000 + wait, **AGAIN}]

    told = sorted((1, int(stepped(np.array([us]))[0]), 1) for us in (50_000, 400_000))
    assert waits(*call(0, 50_000), *call(700_000, 400_000)) == told
    assert waits(*call(0, 50_000), *call(230_000, 400_000)) == told
    assert waits(*call(0, 50_000), *call(0, 400_000)) == []


@pytest.mark.parametrize(("t", "told"), [(3_000_000, 0), (3_001_000, 1), (17_000_000, 1)])
def test_stamps_in_whole_seconds_tell_no_short_wait(t: int, told: int) -> None:
    assert len(waits({"t": 0, **FAILED}, {"t": t, **AGAIN})) == told


def test_late_retries_are_counted_as_one() -> None:
    attempts: list[dict[str, Any]] = [{"t": 200_000 * i, "status": "error", "retry_count": i} for i in range(20)]
    assert [n for n, *_ in waits(*attempts)] == list(range(1, MOST_RETRIES + 1))
    assert waits(*attempts)[-1][2] == 20 - MOST_RETRIES


@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.integers(0, 3), st.sampled_from("rs"), st.sampled_from((0, 100, 3000, None))),
        max_size=30,
    )
)
def test_waits_are_those_that_a_loop_finds(calls: list[tuple[int, int, str, int | None]]) -> None:
    attempts: list[dict[str, Any]] = [
        {"t": t * SECOND_US // 2, "retry_count": n, "request_id": r, "took": took, "status": "error"}
        for t, n, r, took in calls
    ]
    lines = sorted((a["t"] + (a["took"] or 0) * 1000, i, a) for i, a in enumerate(attempts))
    expected: dict[tuple[int, int, int], int] = {}
    for place, (end, _, a) in enumerate(lines):
        turns = [
            (e, b)
            for e, _, b in lines[:place]
            if b["request_id"] == a["request_id"]
            and 0 <= a["retry_count"] - b["retry_count"] <= 1
            and end // WINDOW_US - e // WINDOW_US <= WITHIN_US // WINDOW_US
        ]
        first = [b["retry_count"] < a["retry_count"] for _, b in turns[-2:]]
        if a["retry_count"] and first in ([True], [False, True]) and turns[-1][1]["took"] is not None:
            ended, before = turns[-1]
            us = max(a["t"] - ended, 0)
            if a["t"] % SECOND_US == before["t"] % SECOND_US == 0 and us < COARSE_US:
                continue
            waited = int(stepped(np.array([us]))[0])
            key = (end // WINDOW_US, a["retry_count"], waited)
            expected[key] = expected.get(key, 0) + 1
    assert waits(*attempts) == sorted((n, us, found) for (_, n, us), found in expected.items())


@given(st.integers(0, 2**50))
def test_a_step_is_less_than_a_sixteenth_and_its_middle_lies_in_it(us: int) -> None:
    step = int(stepped(np.array([us]))[0])
    assert step <= us <= step * 17 / 16
    assert step <= middle(step) <= step * 17 / 16
    assert int(stepped(np.array([middle(step)]))[0]) == step
