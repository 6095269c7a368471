"""Landed stamps enter; when it truly was leaves, with error bars, from the landed table `clocks`.

The reference is that of the hours that the stamps lie in, so that one event has one bar on every screen of that hour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import polars as pl
from polars import col

from detectors.clocks import MAX_DRIFT_PPM
from detectors.corrected import MARGIN_US, Reference, corrected, intervals_at, reference
from detectors.corrected import SHAPE as INTERVALS
from detectors.facts import facts_of, names_of
from detectors.table import SPACE
from detectors.tables.clocks import NEAR_US
from detectors.windows import HOUR_US, MINUTE_US, WINDOW_US
from streams.landing.state import has

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CLOCKS = 'epoch_us(window_start) AS "window", src, dst, facts, lag, proof'
SHAPE = dict.fromkeys((*SPACE, "node"), pl.String) | dict.fromkeys(("at_us", "arrived_us"), pl.Int64)
NOTHING = {"earliest_us": pl.Int64, "latest_us": pl.Int64, "reference": pl.String}


@dataclass(frozen=True)
class Bar:
    """When it truly was, on the reference's clock; None is an open side, no reference means that nothing is known."""

    earliest: datetime | None = None
    latest: datetime | None = None
    reference: str | None = None


def bar_of(row: Mapping[str, Any]) -> Bar:
    return Bar(_instant(row["earliest_us"]), _instant(row["latest_us"]), row["reference"])


def bars(con: duckdb.DuckDBPyConnection, rows: Sequence[Mapping[str, Any]], stamp: str = "timestamp") -> list[Bar]:
    """Of each landed row, when its node stamped it."""
    stamps = [(*(r[n] for n in SPACE), r["node_id"], _us(r[stamp]), _us(r["arrival"])) for r in rows]
    return [bar_of(r) for r in with_bars(con, pl.DataFrame(stamps, schema=SHAPE, orient="row")).iter_rows(named=True)]


def with_bars(con: duckdb.DuckDBPyConnection, stamps: pl.DataFrame) -> pl.DataFrame:
    """SHAPE enters, in any order, with whatever columns more; earliest_us, latest_us and reference are added."""
    numbered = stamps.with_row_index("number")
    parts = [_of_fleet(con, own, space) for space, own in numbered.partition_by(SPACE, as_dict=True).items()]
    if not parts:
        return stamps.with_columns(pl.lit(None, dtype=t).alias(n) for n, t in NOTHING.items())
    return pl.concat(parts).sort("number").drop("number")


def _of_fleet(con: duckdb.DuckDBPyConnection, stamps: pl.DataFrame, space: tuple[Any, ...]) -> pl.DataFrame:
    windows = _windows(stamps)
    drift, known = _max_drift_ppm(con), pl.DataFrame(schema=INTERVALS)
    names, of = reference_of(con, space, windows[0], windows[-1])
    if len(names):
        rows = _read(con, CLOCKS, space, windows[0] - MINUTE_US, windows[-1] + WINDOW_US)
        known = intervals_at(facts_of(rows, names), names, of, stamps["node"].unique().to_list(), windows, drift)
    return corrected(stamps, known, drift)


def _windows(stamps: pl.DataFrame) -> list[int]:
    """The windows that the events may lie in: those around their arrivals, and around stamps that are near them."""
    near = (col("at_us") - col("arrived_us")).abs() <= NEAR_US
    about = stamps.select(pl.concat([col("arrived_us"), col("at_us").filter(near)]).alias("us")).to_series()
    first = about.unique() // WINDOW_US * WINDOW_US
    reach = range(-MARGIN_US - WINDOW_US, MARGIN_US + 2 * WINDOW_US, WINDOW_US)
    return sorted({int(w) + d for w in first.unique() for d in reach})


def reference_of(
    con: duckdb.DuckDBPyConnection, space: tuple[Any, ...], first: int, last: int
) -> tuple[pl.Series, Reference]:
    """(names, reference) of the fleet's clocks in the hours from one window to another."""
    since, until = first // HOUR_US * HOUR_US, last // HOUR_US * HOUR_US + HOUR_US
    pairs = _read(con, "DISTINCT src, dst", space, since, until)
    names = names_of(pairs)
    return names, reference(pairs, names)


def _read(con: duckdb.DuckDBPyConnection, columns: str, space: tuple[Any, ...], since: int, until: int) -> pl.DataFrame:
    if not has(con, "clocks"):
        return pl.DataFrame(schema={"src": pl.String, "dst": pl.String})
    where = (
        "environment = ? AND tenant = ? AND window_start >= make_timestamptz(?) AND window_start < make_timestamptz(?)"
    )
    found = con.execute(f"SELECT {columns} FROM clocks WHERE {where}", [*space, since, until])
    names = [d[0] for d in found.description or ()]
    return pl.DataFrame(found.fetchall(), schema=names, orient="row")


def _max_drift_ppm(con: duckdb.DuckDBPyConnection) -> int:
    """What the state was judged with: the largest of what was set."""
    said = con.execute("SELECT value FROM settings WHERE name = 'clock_skew.max_drift_ppm'").fetchall()
    return max((int(float(value)) for (value,) in said), default=MAX_DRIFT_PPM)


def _us(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


def _instant(us: int | None) -> datetime | None:
    return None if us is None else EPOCH + timedelta(microseconds=us)
