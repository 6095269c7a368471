"""How near assessments came: above 1 exactly where the engine opens an episode, whatever the numbers."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.detector import Detector, Settings, Threshold, View, catalog
from detectors.engine import near_misses
from detectors.finding import joined, nearness, one_a_subject
from detectors.tables.calls import CALLS

NUMBERS = st.floats(0, 1e6) | st.sampled_from([0.0, 1.0, 100.0, math.nextafter(100.0, 200.0), math.inf])
ROW = st.fixed_dictionaries(
    {
        "subject": st.sampled_from(["a", "b"]),
        "kind": st.sampled_from(["", "odd"]),
        "value": NUMBERS,
        "share": NUMBERS | st.none(),
        "times": NUMBERS | st.none(),
        "certain": st.booleans(),
        "unknown": st.booleans(),
    }
)
THRESHOLD = st.builds(
    Threshold,
    st.sampled_from(["one", "two", "three"]),
    st.sampled_from(["warn", "page", "both", "open"]),
    st.sampled_from([0.0, 0.1, 100.0, 1e6]) | st.floats(0, 1e6),
    st.just("x"),
    st.just(0.0),
    st.just(1e9),
    of=st.sampled_from(["value", "share", "times"]),
    kind=st.sampled_from(["", "odd"]),
)


def detector(thresholds: tuple[Threshold, ...], irreversible: bool = False) -> Detector:
    def assess(view: View) -> pl.DataFrame:
        return view.rows

    return Detector(
        name="some",
        reads=CALLS,
        assess=assess,
        subject_kind="service",
        thresholds=thresholds,
        unit="x",
        irreversible=irreversible,
    )


def rows_of(rows: list[dict[str, Any]]) -> pl.DataFrame:
    shape = {"subject": pl.String, "kind": pl.String, **dict.fromkeys(("value", "share", "times"), pl.Float64)}
    frame = pl.DataFrame(rows, schema={**shape, "certain": pl.Boolean, "unknown": pl.Boolean})
    return frame.with_row_index("window").with_columns(pl.col("window").cast(pl.Int64) * 10_000_000)


@given(st.lists(ROW, min_size=1, max_size=8), st.lists(THRESHOLD, min_size=1, max_size=5), st.booleans())
def test_near_is_above_one_exactly_where_an_episode_may_open(
    rows: list[dict[str, Any]], thresholds: list[Threshold], irreversible: bool
) -> None:
    near = nearness(detector(tuple(thresholds), irreversible), rows_of(rows), Settings())
    for row in near.iter_rows(named=True):
        opens = row["level"] if row["opens"] else 0
        pages = row["page"] is not None and row["page"]["near"] > 1 and (row["certain"] or irreversible)
        assert (row["warn"] is not None and row["warn"]["near"] > 1) == (opens > 0)
        assert pages == (opens == 2)
        if row["unknown"]:
            assert row["warn"] is None and row["page"] is None and opens == 0


@given(st.lists(ROW, min_size=1, max_size=12), st.lists(THRESHOLD, min_size=1, max_size=4), st.integers(1, 11))
def test_the_nearest_of_two_halves_joined_is_the_nearest_of_the_whole(
    rows: list[dict[str, Any]], thresholds: list[Threshold], cut: int
) -> None:
    near = nearness(detector(tuple(thresholds)), rows_of(rows), Settings())
    whole = one_a_subject(near)
    assert joined([one_a_subject(near[:cut]), one_a_subject(near[cut:])]).equals(whole)
    assert whole["judged"].sum() == len(rows) and whole["unknown"].sum() == sum(r["unknown"] for r in rows)


def test_the_threshold_furthest_from_being_reached_is_the_one_that_is_named() -> None:
    some = detector(
        (
            Threshold("per_min", "warn", 100, "x", 0, 1e9),
            Threshold("floor", "both", 0.05, "x", 0, 1, of="share"),
            Threshold("past", "open", 2, "x", 0, 1e9, of="times"),
        )
    )
    row = {"subject": "a", "kind": "", "certain": True, "unknown": False}
    for value, share, times, by, ratio in (
        (50.0, 0.2, 9.0, "per_min", 0.5),
        (200.0, 0.01, 9.0, "floor", 0.2),
        (200.0, 0.2, 1.5, "past", 0.75),
    ):
        near = nearness(some, rows_of([{**row, "value": value, "share": share, "times": times}]), Settings())
        said = near["warn"][0]
        assert (said["by"], said["near"]) == (by, pytest.approx(ratio))
        assert said["amount"] / said["wanted"] == pytest.approx(ratio)


def test_a_services_own_threshold_is_the_one_that_counts() -> None:
    some = detector((Threshold("per_min", "warn", 100, "x", 0, 1e9),))
    row = {"kind": "", "value": 50.0, "share": None, "times": None, "certain": True, "unknown": False}
    own = Settings({"some.per_min": 200}, {"b": {"some.per_min": 60}})
    near = nearness(some, rows_of([{**row, "subject": s} for s in ("a", "b")]), own)
    assert [(s["near"], s["wanted"]) for s in near["warn"]] == [(0.25, 200.0), (50 / 60, 60.0)]


def test_one_too_many_of_what_is_never_right_is_near_without_bound_and_none_is_far() -> None:
    some = detector((Threshold("any", "warn", 0, "x", 0, 1e9),))
    row = {"subject": "a", "kind": "", "share": None, "times": None, "certain": True, "unknown": False}
    near = nearness(some, rows_of([{**row, "value": v} for v in (0.0, 1.0, math.nan)]), Settings())
    assert [s["near"] for s in near["warn"]] == [0.0, math.inf, math.inf]


def test_where_nothing_was_measured_nothing_is_said() -> None:
    for entry in catalog().values():
        assert near_misses(entry.detector, {}, 0, 10_000_000, 0, Settings()) is None


def test_every_shipped_detector_says_when_it_is_unknown_and_what_it_lacks() -> None:
    for name, entry in catalog().items():
        assert all(field and so for field, so in entry.detector.lacks), name
        assert "unknown" not in entry.doc.lower() or entry.detector.unknown_when != "it had nothing to go by", name
