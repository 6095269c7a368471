"""Which of two rows came first is certain only where vector clocks, causes or bars that do not touch prove it."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from detectors.order import Order
from streams.report.corrected import Bar
from streams.report.order import effects, told
from tests.cases import T0, Case
from tests.cases.concurrent_writers import fires_same_base_version, fires_vector_clocks
from tests.streams.cli.test_look import Screen
from tests.streams.report.states import of_case


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (
            fires_vector_clocks(),
            ["Neither a (a) nor b (b) knew of the other: certain, by vector clocks"],
        ),
        (
            fires_same_base_version(),
            [f"Which of {a} (order-1) and {b} (order-2) came first is unknown: nothing tells" for a, b in ("ab", "cd")],
        ),
    ],
)
def test_of_two_writers_explain_says_who_came_first_as_far_as_it_is_known(
    case: Case, said: list[str], tmp_path: Path
) -> None:
    screen = Screen(of_case(tmp_path, case))
    lines = screen("explain", screen.ids("concurrent_writers")[0]).splitlines()
    assert [line for line in lines if line in said] == said


def call(begins_ms: float, took_ms: int, error_ms: float, **more: Any) -> dict[str, Any]:
    """A line of a call whose begin lies in a bar, half of which is error_ms."""

    def at(ms: float) -> datetime:
        return T0 + timedelta(milliseconds=ms)

    bar = Bar(at(begins_ms - error_ms), at(begins_ms + error_ms), "majority") if error_ms else Bar()
    usual = {"stream": "requests", "fate": "used", "side": "server", "status": "ok", "duration_ms": took_ms}
    return usual | {"request_id": "r", "retry_count": 0, "bar": bar} | more


def retried(begins_ms: float, took_ms: int, error_ms: float, **more: Any) -> dict[str, Any]:
    return call(begins_ms, took_ms, error_ms, retry_count=1, **more)


def test_effects_are_ordered_by_the_ends_of_their_calls_and_by_bars_that_do_not_touch() -> None:
    slow, quick = call(0, 1_000, 20), retried(500, 100, 20)
    assert effects(quick, slow) == Order("before", "certain", "corrected times")
    assert effects(slow, quick).relation == "after"
    assert effects(retried(930, 100, 20), slow) == Order("after", "possible", "bars overlap")
    assert effects(retried(500, 100, 0), slow).relation == "unknown"


def test_durations_are_rounded_and_clocks_drift_so_what_lies_a_millisecond_apart_is_not_certain() -> None:
    assert effects(call(0, 100, 5), retried(11, 100, 5)).certainty == "possible"
    assert effects(call(0, 100, 5), retried(14, 100, 5)).certainty == "certain"
    assert effects(call(0, 600_000, 5), retried(14, 600_000, 5)).certainty == "possible"


def test_what_callers_say_of_the_attempts_orders_effects_that_no_clock_orders() -> None:
    first, second = call(0, 10, 0), retried(0, 10, 0)
    answered = call(0, 20, 2, side="client")
    called = retried(100, 20, 2, side="client")
    assert effects(first, second).relation == "unknown"
    assert effects(first, second, [answered, called]) == Order("before", "certain", "by what lies between")
    gave_up = answered | {"status": "timeout"}
    assert effects(first, second, [gave_up, called]).relation == "unknown", "the first may run on"


def test_lines_of_one_attempt_twice_prove_nothing_of_each_other() -> None:
    answered = call(0, 20, 2, side="client")
    assert effects(call(0, 10, 0), call(500, 10, 0), [answered]).relation == "unknown"
    nameless = {"request_id": None}
    said = [answered | nameless, retried(100, 20, 2, side="client") | nameless]
    assert effects(call(0, 10, 0) | nameless, retried(0, 10, 0) | nameless, said).relation == "unknown"


def test_a_stamp_that_cannot_be_true_orders_nothing() -> None:
    assert effects(call(0, 10, 1, fate="implausible"), retried(500, 10, 1)).relation == "unknown"


def test_what_came_after_is_told_in_the_order_in_which_it_came() -> None:
    assert told("a", "b", Order("after", "certain", "vector clocks")) == "b came before a: certain, by vector clocks"
    between = Order("before", "certain", "by what lies between")
    assert told("a", "b", between) == "a came before b: certain, by what lies between"
    assert told("a", "b", Order("before", "possible", "bars overlap")) == "a came before b: possible, bars overlap"
