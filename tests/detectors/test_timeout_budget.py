"""p99 over trailing spans is what sorting the calls says, and the percentage is exact at its thresholds."""

from __future__ import annotations

from itertools import pairwise
from math import ceil
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.catalog.timeout_budget import MIN_VOLUME, assess, p99, timeout_budget
from detectors.detector import Settings, View, complete
from detectors.engine import MatchState, match, reduce
from detectors.tables.durations import DURATIONS, MAX_PCT
from detectors.windows import HOUR_US, MINUTE_US, SECOND_US, WINDOW_US
from tests.cases import Case, at, partitions
from tests.harness import Memory, placed

Row = dict[str, Any]
T0_US = int(at(0).timestamp()) * SECOND_US


def call(t: float, duration_ms: float | None, **more: Any) -> Row:
    row = {"timestamp": at(t), "arrival": at(t + 0.1), "service_name": "s", "node_id": "n", "side": "client"}
    return row | {"duration_ms": duration_ms, "timeout_ms": 1000.0, "status": "ok"} | more


def table(rows: list[Row]) -> pl.DataFrame:
    parts = placed(Case({"requests": partitions("requests", rows, min(2, len(rows)))}))["requests"]
    news = [reduce([DURATIONS], "requests", p) for p in parts if len(p)]
    last = max(int(p["t"].max()) for p in parts if len(p))  # type: ignore[arg-type]
    return match([DURATIONS], MatchState(), news, last + WINDOW_US, Memory())[0].get("durations", pl.DataFrame())


@pytest.mark.parametrize(
    ("row", "pct"),
    [
        ({"duration_ms": 0.0}, 0),
        ({"duration_ms": 0.001}, 1),
        ({"duration_ms": 800.0}, 80),
        ({"duration_ms": 800.001}, 81),
        ({"duration_ms": 1e12}, MAX_PCT),
        ({"duration_ms": 50.0, "status": "timeout"}, 100),
        ({"duration_ms": 1234.0, "status": "timeout"}, 124),
        ({"duration_ms": None, "status": "timeout"}, 100),
        ({"duration_ms": None, "status": None}, None),
        ({"duration_ms": 50.0, "status": None}, 5),
        ({"duration_ms": 50.0, "health_check": True}, None),
        ({"duration_ms": 50.0, "timeout_ms": None}, None),
        ({"duration_ms": 50.0, "timeout_ms": 0.0}, None),
        ({"duration_ms": 50.0, "timeout_ms": 0.0001}, None),
        ({"duration_ms": 50.0, "timeout_ms": 0.001}, MAX_PCT),
    ],
)
def test_a_call_uses_a_whole_percentage_of_its_timeout(row: Row, pct: int | None) -> None:
    found = table([call(0, **({"duration_ms": None} | row)), call(0, 500.0)])
    assert sorted(found["used_pct"]) == sorted([50] + ([] if pct is None else [pct]))


def test_a_sampled_call_counts_by_its_weight_and_is_one_line() -> None:
    assert table([call(0, 500.0, weight=7), call(0, 500.0)]).select("rows", "calls").rows() == [(2, 8)]


Cell = tuple[str, int, int, int]  # subject, window number, bucket, calls


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.integers(0, MAX_PCT), st.integers(1, 300))),
    st.integers(0, 8),
    st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_p99_is_the_smallest_bucket_that_covers_99_percent(cells: list[Cell], until: int, over: int) -> None:
    shape = {"subject": pl.String, "window": pl.Int64, "used_pct": pl.Int64, "calls": pl.Int64}
    space = {"environment": pl.lit(""), "tenant": pl.lit("")}
    rows = pl.DataFrame(cells, schema=shape, orient="row").with_columns(pl.col("window") * WINDOW_US, **space)
    points = pl.DataFrame(
        [(s, w * WINDOW_US) for s in "abc" for w in range(40)], schema=["subject", "window"], orient="row"
    )
    got = p99(rows, points.with_columns(**space), until * WINDOW_US, over * WINDOW_US)
    for (subject, window), bucket in zip(points.iter_rows(), got, strict=True):
        last = window // WINDOW_US - until
        calls = sorted(b for s, w, b, n in cells if s == subject and last - over < w <= last for _ in range(n))
        assert bucket == (calls[ceil(0.99 * len(calls)) - 1] if calls else None)


@st.composite
def traffic(draw: st.DrawFn) -> list[Row]:
    rows = []
    for _ in range(draw(st.integers(1, 12))):
        begin, service = draw(st.integers(0, 4500)), draw(st.sampled_from("sr"))
        side, slow = draw(st.sampled_from(["client", "server", None])), draw(st.sampled_from([10.0, 600.0, 950.0]))
        rows += [call(begin + i, slow, service_name=service, side=side) for i in range(draw(st.integers(1, 130)))]
    return rows


@given(traffic(), st.lists(st.integers(1, 480), max_size=5))
@settings(max_examples=25, deadline=None)
def test_assessments_do_not_depend_on_batches(rows: list[Row], cuts: list[int]) -> None:
    durations = table(rows)
    end = T0_US + 480 * WINDOW_US

    def judged(lo: int, to: int) -> pl.DataFrame:
        seen = durations.filter(pl.col("window") >= lo - timeout_budget.past_us, pl.col("window") < to)
        return assess(View(seen, {}, lo, to, to, Settings()))

    order = ["window", "subject"]
    whole = judged(T0_US, end).sort(order)
    assert len(whole)
    bounds = sorted({T0_US, end, *(T0_US + c * WINDOW_US for c in cuts)})
    parts = pl.concat(judged(a, b) for a, b in pairwise(bounds)).sort(order)
    assert parts.select(whole.columns).equals(whole)


def test_before_is_the_hour_before_the_minute() -> None:
    rows = [call(i, 100.0) for i in range(3000)] + [call(3000 + i / 2, 900.0) for i in range(240)]
    found = assess(View(table(rows), {}, T0_US, T0_US + HOUR_US, T0_US + HOUR_US, Settings())).sort("window")
    hot = found.filter(pl.col("value") > 50)
    assert hot["value"].unique().to_list() == [90.0]
    assert hot["before_pct"].head(6).to_list() == [10] * 6
    assert hot["headroom_ms"].to_list() == [100.0] * len(hot)
    assert found.filter(pl.col("value") <= 50)["before_pct"].null_count() == len(found) - len(hot)


@pytest.mark.parametrize(("lines", "unknown"), [(MIN_VOLUME - 1, True), (MIN_VOLUME, False)])
def test_a_minute_with_few_lines_is_unknown_not_fine(lines: int, unknown: bool) -> None:
    rows = [call(i / 2, 990.0, weight=5) for i in range(lines)]
    found = complete(assess(View(table(rows), {}, T0_US, T0_US + MINUTE_US, T0_US + MINUTE_US, Settings())))
    last = found.sort("window").row(-1, named=True)
    assert (last["value"], last["unknown"], last["total"]) == (99.0, unknown, lines)
