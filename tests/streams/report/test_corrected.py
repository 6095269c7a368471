"""Stamps of the demo enter; the bars that screens show must hold the true times, also around the step of a clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from polars import col

from detectors.windows import MINUTE_US
from streams.chaos.fleet import make_hour
from streams.landing.state import open_readable
from streams.report.corrected import Bar, shown
from tests.corrected import events_of, judge


def test_true_times_lie_inside_the_bars_before_and_after_a_step(demo_state: Path) -> None:
    tape = make_hour(1)
    about = tape.plan.start_us + 14 * MINUTE_US
    some = events_of(tape).filter(col("arrived_us").is_between(about, about + 3 * MINUTE_US))
    con = open_readable(demo_state)
    found = judge(tape, con, some)
    con.close()
    assert found.steady["inside"].all() and found.stepped["inside"].all()
    assert set(found.steady["reference"]) == {"majority", "collector"}
    off_us = (found.stepped["at_us"] - found.stepped["true_us"]).abs()
    assert off_us.min() < 10_000 and off_us.max() > 800_000  # type: ignore[operator]
    closed = found.steady.filter(reference="majority")
    assert closed.select(pl.all_horizontal(col("earliest_us", "latest_us").is_not_null()).all()).item()


NOON = datetime(2026, 1, 26, 12, tzinfo=UTC)


def ms(n: float) -> timedelta:
    return timedelta(milliseconds=n)


@pytest.mark.parametrize(
    ("bar", "cell"),
    [
        (Bar(), "unknown"),
        (Bar(NOON - ms(4), NOON + ms(5), "majority"), "same"),
        (Bar(NOON - ms(400), NOON + ms(500), "majority"), "12:00:00.050 ± 451 ms"),
        (Bar(NOON - ms(849), NOON - ms(845), "majority"), "11:59:59.153 ± 3 ms"),
        (Bar(None, NOON - ms(847), "collector"), "≤ 11:59:59.153"),
        (Bar(None, NOON + ms(1), "collector"), "same or earlier"),
        (Bar(NOON + ms(847), None, "collector"), "≥ 12:00:00.847"),
        (Bar(NOON - ms(1), None, "collector"), "same or later"),
    ],
)
def test_a_bar_is_shown_in_a_few_characters(bar: Bar, cell: str) -> None:
    assert shown({"stream": "requests", "timestamp": NOON, "bar": bar}) == cell
