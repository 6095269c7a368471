"""Heartbeats and paired request lines enter, the smallest facts about each ordered pair of clocks leave, per window.

A fact is receive stamp - send stamp in µs: what the receiver's clock is ahead of the sender's, plus a delay ≥ 0. The
four smallest are kept, so that one wrong stamp can be told from a clock that moved (see detectors.clocks). A stamp more
than 26 h from its row's arrival gives no fact; any nearer one does, whatever its row's fate: that is the fault to find.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from polars import col

from detectors.table import Low, Lowest, Meet, Rows, Sum, Table, meeting
from detectors.windows import HOUR_US, MINUTE_US

KEPT = 4
NEAR_US = 26 * HOUR_US  # a day and the largest difference of zones: a clock in another zone still gives facts
PAIR_BACK_US = MINUTE_US


def _near(*stamps: str) -> pl.Expr:
    return pl.all_horizontal((col(s).cast(pl.Int64) - col("arrived")).abs() <= NEAR_US for s in stamps)


def _fact(received: str, sent: str) -> pl.Expr:
    return col(received).cast(pl.Int64) - col(sent).cast(pl.Int64)


CLIENT = col("side") == "client"
ATTEMPT = pl.concat_str("request_id", pl.lit("#"), col("retry_count").fill_null(0).cast(pl.String))
SPAN = pl.when(CLIENT).then("span_id").otherwise("parent_span_id")
IN_TRACE = pl.concat_str(col("trace_id").fill_null(""), pl.lit(":"), SPAN)


def match_pairs(rows: pl.DataFrame) -> pl.DataFrame:
    """Facts of the two lines of one attempt: a line that has exactly one before it, of the other side and node.

    There: server start - client start. Back, only where the client did not give up: client end - server end.
    """
    ordered = rows.sort("environment", "tenant", "pair", "window", "t", "coord")
    met = meeting(ordered, ("pair",), PAIR_BACK_US)
    later = np.flatnonzero(met.at - met.first == 1)
    names = ["node_id", "client", "start", "took_us", "answered", "coord"]
    both = pl.concat(
        [
            ordered[later].select("window", "environment", "tenant", "weight", "now", pl.col(names).name.suffix("_b")),
            ordered[later - 1].select(pl.col(names).name.suffix("_a")),
        ],
        how="horizontal",
    ).filter("now", col("client_a") != col("client_b"), col("node_id_a") != col("node_id_b"))
    side = {
        f"{who}_{n}": pl.when("client_a").then(f"{n}_{first}").otherwise(f"{n}_{second}")
        for who, first, second in (("client", "a", "b"), ("server", "b", "a"))
        for n in ("node_id", "start", "took_us", "answered")
    }
    calls = both.with_columns(**side).with_columns(coord=pl.min_horizontal("coord_a", "coord_b"))
    common = ["window", "environment", "tenant", "weight", "coord"]
    there = calls.select(
        *common, src="client_node_id", dst="server_node_id", fact=col("server_start") - col("client_start")
    )
    back = calls.filter("client_answered").select(
        *common,
        src="server_node_id",
        dst="client_node_id",
        fact=col("client_start") + col("client_took_us") - col("server_start") - col("server_took_us"),
    )
    return pl.concat([there, back])


CLOCKS = Table(
    name="clocks",
    clock="arrival",
    key=("src", "dst"),
    sources=(
        Rows(
            stream="heartbeats",
            where=_near("client_time", "server_time"),
            project={"src": col("node_id"), "dst": col("observer"), "fact": _fact("server_time", "client_time")},
        ),
        Rows(
            stream="heartbeats",
            where=_near("reply_sent", "reply_received"),
            project={"src": col("observer"), "dst": col("node_id"), "fact": _fact("reply_received", "reply_sent")},
        ),
        Meet(
            stream="requests",
            where=col("side").is_not_null()
            & (SPAN.is_not_null() | col("request_id").is_not_null())
            & _near("timestamp"),
            project={
                "pair": pl.coalesce(IN_TRACE, ATTEMPT),
                "client": CLIENT,
                "start": col("timestamp").cast(pl.Int64),
                "took_us": (col("duration_ms") * 1000).round().cast(pl.Int64),
                "answered": (col("status") == "ok").fill_null(False) & col("duration_ms").is_not_null(),
            },
            on=("pair",),
            carry=("client", "node_id", "start", "took_us", "answered"),
            back_us=PAIR_BACK_US,
            match=match_pairs,
        ),
    ),
    columns={"facts": Lowest(KEPT, col("fact")), "seen": Sum(weighted=False), "proof": Low(col("coord"))},
)
