"""Typed rows enter, placed rows leave: each with its arrival, its fate, its event time in µs and its coordinate.

Progress is arrival; event time is only a column. A row's fate is a function of that row alone, so nothing that comes
later can change it, and no event can move the frontier.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl

from detectors.events import STREAMS

S_PER_US, MS_PER_US = 1e-6, 1e-3  # to multiply by: polars divides one row and many rows by a constant differently
SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US

SLICE_US = 2 * SECOND_US
WINDOW_US = 10 * SECOND_US
LATENESS_US = 30 * SECOND_US
AHEAD_US = 60 * SECOND_US  # a stamp further ahead of its arrival can't be true
OLD_US = 30 * DAY_US  # nor can one that is older than this
GAP_US = DAY_US  # without arrivals: a stretch cut off by a gap like this is suspect
SUSPECT_SHARE = 0.01  # and implausible while all such stretches together hold less than this

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FATES = ("used", "late", "implausible")
STRAY = "stray"  # live only: a row that landed in a slice of which it was said that it is complete
PARTITION_BITS, OFFSET_BITS, SUB_BITS = 10, 40, 11  # and 2 for the stream: 63 in all
NEVER = 2**62
ORDERED_US = 2**OFFSET_BITS  # below it, as a time: the number of a record of which only the order is known


def us_of(at: datetime) -> int:
    """Its µs since the epoch."""
    return (at - EPOCH) // timedelta(microseconds=1)


def time_of(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)


def windows(us: int) -> int:
    """How many windows a span of µs covers."""
    return -(-us // WINDOW_US)


def window_of(us: pl.Expr) -> pl.Expr:
    return us // WINDOW_US * WINDOW_US


def final_before(frontier_us: int, lateness_us: int) -> int:
    """The windows that start before this are final: no used row can still arrive for them."""
    return (frontier_us - lateness_us) // WINDOW_US * WINDOW_US


def coordinate(stream: str) -> pl.Expr:
    """(stream, partition, offset, sub) of a row in one integer that sorts as they do."""
    partition, offset, sub = pl.col("partition"), pl.col("offset"), pl.col("sub")
    number = list(STREAMS).index(stream) * (1 << PARTITION_BITS) + partition
    return number * (1 << (OFFSET_BITS + SUB_BITS)) + offset * (1 << SUB_BITS) + sub


def parse_coordinate(coord: int) -> tuple[str, int, int, int]:
    """(stream, partition, offset, sub) back from the integer."""
    number = coord >> (OFFSET_BITS + SUB_BITS)
    stream = list(STREAMS)[number >> PARTITION_BITS]
    return stream, number % 2**PARTITION_BITS, (coord >> SUB_BITS) % 2**OFFSET_BITS, coord % 2**SUB_BITS


def event_time(stream: str) -> pl.Expr:
    """When the line could first be written, in µs: a call's end, a write's end, a heartbeat's receipt."""
    match stream:
        case "requests":
            lasted = (pl.col("duration_ms") * 1000).round().cast(pl.Int64).fill_null(0)
            return pl.col("timestamp").cast(pl.Int64) + lasted
        case "write_log":
            return pl.coalesce("finished", "timestamp").cast(pl.Int64)
        case "heartbeats":
            return pl.col("server_time").cast(pl.Int64)
        case _:
            return pl.col("timestamp").cast(pl.Int64)


def running_arrival(arrival: pl.Series, clock_us: int = -NEVER) -> pl.Series:
    """The largest append time so far in its partition; clock_us is where the partition stood before this chunk."""
    seen = arrival.cast(pl.Int64).fill_null(strategy="forward")
    if not seen.count():
        return seen.fill_null(clock_us)
    start = clock_us if clock_us > -NEVER else seen.drop_nulls().first()
    return seen.fill_null(start).cum_max().clip(lower_bound=clock_us)


def suspect(event_time_us: pl.Series) -> pl.Series:
    """Without arrivals: True for rows in stretches that gaps > 24 h cut off and that together hold < 1 % of all."""
    order = event_time_us.arg_sort()
    stretch_sorted = (event_time_us.gather(order).diff() > GAP_US).fill_null(False).cast(pl.UInt32).cum_sum()
    sizes = stretch_sorted.value_counts(name="rows").rename({stretch_sorted.name: "stretch"})
    by_size = sizes.group_by("rows").agg(pl.len().alias("many"), pl.col("stretch")).sort("rows")
    together = (by_size["rows"] * by_size["many"]).cum_sum()
    few = by_size.filter(together < SUSPECT_SHARE * event_time_us.len())["stretch"]
    cut_off = few.explode() if few.len() else pl.Series([], dtype=pl.UInt32)
    back = pl.Series(order).arg_sort()
    return stretch_sorted.is_in(cut_off.implode()).gather(back)


def stand_in_arrival(event_time_us: pl.Series) -> pl.Series:
    """Without arrivals event time stands in; a suspect row takes the nearest plausible record before, else after."""
    bad = suspect(event_time_us)
    plausible = pl.select(pl.when(~bad).then(event_time_us)).to_series()
    return plausible.fill_null(strategy="forward").fill_null(strategy="backward")


def place(frame: pl.DataFrame, stream: str, lateness_us: int = LATENESS_US) -> pl.DataFrame:
    """Adds fate, t, coord to rows with arrival: in event time the arrival stands in for a stamp that can't be true.

    t: event time in µs, the arrival for implausible rows. arrived: arrival in µs. told: False where event time stood in
    for an arrival nobody recorded, null where there is no time at all and the record's number stands in for one; such
    a row is used or implausible, never late.
    """
    return frame.lazy().pipe(place_lazy, stream, lateness_us).collect()


def place_lazy(frame: pl.LazyFrame, stream: str, lateness_us: int = LATENESS_US) -> pl.LazyFrame:
    arrived = pl.col("arrival").cast(pl.Int64)
    delay = arrived - pl.col("t")
    impossible = (delay < -AHEAD_US) | (delay > OLD_US)
    without = ~pl.col("told")
    return (
        frame.with_columns(t=event_time(stream), arrived=arrived)
        .with_columns(
            fate=pl.when(impossible | (without & (delay != 0)))
            .then(pl.lit("implausible"))
            .when(delay <= lateness_us)
            .then(pl.lit("used"))
            .otherwise(pl.lit("late"))
        )
        .with_columns(
            t=pl.when(pl.col("fate") == "implausible").then("arrived").otherwise("t"),
            coord=coordinate(stream),
        )
    )
