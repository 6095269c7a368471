"""All rows enter, how many stamps of each node can't be true leaves, by arrival: per stream, node and kind of mistake.

kind: '' for a stamp in order, else what is wrong with it, one thing a row: `epoch` (a garbage date, before 2001-09-09
or from 2100 on), `ahead` of its arrival by more than 60 s, `old` (arrived more than 30 days later; where nobody
recorded arrivals: cut off from the recording by more than a day), and `back`: the number went up and the stamp down.
A row that goes back is counted as one in order, too, so that all rows of a node are those of kinds other than `back`.

Stamps are charged to the clock that made them: in heartbeats client_time to the sender, server_time to the observer.
"""

from __future__ import annotations

from functools import partial

import polars as pl
from polars import col

from detectors.table import SPACE, High, Low, Meet, Rows, Sum, Table
from detectors.windows import AHEAD_US, GAP_US, MINUTE_US, OLD_US, event_time

Y2001_US, Y2100_US = 1_000_000_000_000_000, 4_102_444_800_000_000  # the first epoch second of ten digits; 2100-01-01
BACK_US = MINUTE_US
RACE_US = 1_000  # two threads of one process may take a stamp and a number in different order
SCOPE = (*SPACE, "node_id", "scope")


def _off_us(stamp: pl.Expr) -> pl.Expr:
    """How far a stamp that can't be true lies from its arrival; null for one in order."""
    off = stamp - col("arrived")
    too_old = pl.when("told").then(OLD_US).otherwise(GAP_US)
    return pl.when((off > AHEAD_US) | (-off > too_old)).then(off.abs())


def _kind(stamp: pl.Expr) -> pl.Expr:
    return (
        pl.when(_off_us(stamp).is_null())
        .then(pl.lit(""))
        .when(~stamp.is_between(Y2001_US, Y2100_US, closed="left"))
        .then(pl.lit("epoch"))
        .when(stamp > col("arrived"))
        .then(pl.lit("ahead"))
        .otherwise(pl.lit("old"))
    )


def _checked(stream: str, node: str, stamp: pl.Expr) -> Rows:
    return Rows(
        stream=stream,
        project={
            "stream": pl.lit(stream),
            "node_id": col(node),
            "scope": pl.lit(None, dtype=pl.String),
            "kind": _kind(stamp),
            "off_us": _off_us(stamp),
            "earlier": pl.lit(None, dtype=pl.Int64),
        },
    )


def match_back(stream: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Of two lines of one scope that arrived one after the other: the second, where its number is larger and its stamps
    are smaller.

    Begin and end must both be, since some systems number a call when it begins and some when it ends. A counter that
    starts again goes down, and says nothing. `earlier` stands only beside the first pair of a window and scope, so that
    the smallest `proof` and the smallest `earlier` are one pair.
    """
    before = [col(n).shift().alias(f"{n}_before") for n in ("window", "seq", "start_us", "stamp_us", "coord")]
    return (
        rows.with_columns(line=pl.struct(SCOPE).rle_id())  # rows come scope by scope, and integers are quick to sort
        .sort("line", "arrived", "coord")
        .with_columns(*before, same=col("line") == col("line").shift())
        .filter(
            "now",
            "same",
            col("window") - col("window_before") <= BACK_US,
            col("seq") > col("seq_before"),
            col("stamp_us") < col("stamp_us_before") - RACE_US,
            col("start_us") < col("start_us_before") - RACE_US,
        )
        .select(
            *SCOPE,
            "window",
            "weight",
            "coord",
            stream=pl.lit(stream),
            kind=pl.lit("back"),
            off_us=col("stamp_us_before") - col("stamp_us"),
            earlier=pl.when(col("coord") == col("coord").min().over(*SCOPE, "window")).then("coord_before"),
        )
    )


def _numbered(stream: str, start: str, stamp: pl.Expr) -> Meet:
    return Meet(
        stream=stream,
        where=col("seq").is_not_null() & _off_us(stamp).is_null(),
        project={
            "scope": col("seq_scope").fill_null(""),
            "start_us": col(start).cast(pl.Int64),
            "stamp_us": stamp,
        },
        on=("node_id", "scope"),
        carry=("seq", "start_us", "stamp_us", "arrived"),
        back_us=BACK_US,
        match=partial(match_back, stream),
    )


SENT = col("client_time").cast(pl.Int64)

STAMPS = Table(
    name="stamps",
    clock="arrival",
    key=("stream", "node_id", "scope", "kind"),
    sources=(
        _checked("requests", "node_id", event_time("requests")),
        _checked("write_log", "node_id", event_time("write_log")),
        _checked("heartbeats", "node_id", SENT),
        _checked("heartbeats", "observer", event_time("heartbeats")),
        _numbered("requests", "timestamp", event_time("requests")),
        _numbered("write_log", "timestamp", event_time("write_log")),
        _numbered("heartbeats", "client_time", SENT),
    ),
    columns={
        "rows": Sum(weighted=False),
        "off_us": High(col("off_us")),
        "proof": Low(pl.when(col("off_us").is_not_null()).then("coord")),
        "earlier": Low(col("earlier")),
    },
)
