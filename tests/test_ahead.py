"""A node whose clock is two hours ahead: named, and for everybody else as good as not there."""

from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest

from detectors.events import INSTANT, conform
from streams.chaos.fleet import make_hour
from tests.cases import Case
from tests.harness import Result, one_pass, placed

SICK = "user-2"
OWN_STAMPS = {
    "requests": ("timestamp",),
    "heartbeats": ("client_time",),
    "write_log": ("timestamp", "started", "finished"),
}


def two_hours_ahead(stream: str, part: pl.DataFrame) -> pl.DataFrame:
    stamps = [c for c in OWN_STAMPS.get(stream, ()) if c in part.columns]
    mine = pl.col("node_id") == SICK if "node_id" in part.columns else pl.lit(False)
    return part.with_columns(
        pl.when(mine).then(pl.col(c) + timedelta(hours=2)).otherwise(c).cast(INSTANT).alias(c) for c in stamps
    )


def whole(stream: str, part: pl.DataFrame) -> pl.DataFrame:
    numbered = part.with_columns(offset=pl.int_range(pl.len()), sub=pl.lit(0))
    events, rejects = conform(stream, numbered)
    assert rejects.is_empty()
    return events.drop("offset", "sub")


def others(result: Result) -> set[tuple[str, str, str, str, int]]:
    mine = result.findings.filter(~pl.col("subject").str.contains(SICK, literal=True))
    rows = mine.with_columns(pl.col("onset").cast(pl.Int64)).select("detector", "subject", "kind", "level", "onset")
    return set(rows.iter_rows())


@pytest.fixture(scope="module")
def before_and_after() -> tuple[Case, Case]:
    tape = make_hour()
    healthy = {s: [whole(s, p) for p in parts] for s, parts in tape.frames.items()}
    sick = {s: [two_hours_ahead(s, p) for p in parts] for s, parts in healthy.items()}
    changed = sum(not a.equals(b) for s in healthy for a, b in zip(healthy[s], sick[s], strict=True))
    assert changed >= 3
    return Case(healthy), Case(sick)


def test_with_arrivals_it_is_named_and_all_others_keep_detector_level_and_onset(
    before_and_after: tuple[Case, Case],
) -> None:
    healthy, sick = (one_pass(c) for c in before_and_after)
    assert len(others(healthy)) >= 5
    assert others(sick) == others(healthy)
    mine = sick.findings.filter(pl.col("subject") == SICK)
    assert {"clock_skew", "impossible_timestamp"} <= set(mine["detector"])


def test_with_arrivals_clock_values_of_others_stay_inside_their_former_intervals(
    before_and_after: tuple[Case, Case],
) -> None:
    healthy, sick = (one_pass(c).findings.filter(pl.col("detector") == "clock_skew") for c in before_and_after)
    assert len(healthy) >= 2
    after = {r["subject"]: r for r in sick.iter_rows(named=True)}
    for row in healthy.iter_rows(named=True):
        assert after[row["subject"]]["peak"] <= row["peak"]


def test_without_arrivals_it_is_named(before_and_after: tuple[Case, Case]) -> None:
    _, sick = before_and_after
    result = one_pass(sick, placed(sick, arrivals=False))
    assert SICK in set(result.findings["subject"])
