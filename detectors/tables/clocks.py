"""Heartbeats and paired request lines enter, the smallest facts about each ordered pair of clocks leave, per window.

A fact is receive stamp - send stamp in µs: what the receiver's clock is ahead of the sender's, plus a delay ≥ 0. The
four smallest are kept, so that one wrong stamp can be told from a clock that moved (see detectors.clocks). A stamp more
than 26 h from its row's arrival gives no fact; any nearer one does, whatever its row's fate: that is the fault to find.

The two lines of one attempt are those that share a span, else a request_id and a retry_count, and that agree on who was
called and, where both tell, by whom: one request_id goes through all the calls that a request makes.

A fact says "at most", so what may have been cut off a stamp counts for the delay: a stamp in whole milliseconds or
seconds is known no better than that. `lag` is how long before its arrival the oldest of them was measured, as far as
the stamps can tell: where clocks drift, a fact is worth less the older it is.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from polars import col

from detectors.table import SPACE, High, Low, Lowest, Meet, Rows, Sum, Table, coded, meeting
from detectors.windows import HOUR_US, MINUTE_US, SECOND_US

KEPT = 4
NEAR_US = 26 * HOUR_US  # a day and the largest difference of zones: a clock in another zone still gives facts
PAIR_BACK_US = MINUTE_US
MS_US = 1_000


def _us(stamp: str) -> pl.Expr:
    return col(stamp).cast(pl.Int64)


def _near(us: pl.Expr) -> pl.Expr:
    return (us - col("arrived")).abs() <= NEAR_US


def _cut(us: pl.Expr) -> pl.Expr:
    """How much may have been cut off a stamp."""
    return pl.when(us % SECOND_US == 0).then(SECOND_US - 1).when(us % MS_US == 0).then(MS_US - 1).otherwise(0)


def _lag(*stamps: pl.Expr) -> pl.Expr:
    """How old a message is when its row arrives, by the clock that says more."""
    return col("arrived") - pl.min_horizontal(*stamps)


def _message(received: str, sent: str, src: str, dst: str) -> Rows:
    to, since = _us(received), _us(sent)
    return Rows(
        stream="heartbeats",
        where=_near(to) & _near(since),
        project={"src": col(src), "dst": col(dst), "fact": to + _cut(to) - since, "lag": _lag(to, since)},
    )


CLIENT = col("side") == "client"
SPAN = pl.when(CLIENT).then("span_id").otherwise("parent_span_id")
TRY = pl.when(SPAN.is_null()).then(col("retry_count").fill_null(0)).cast(pl.String)  # spelt only where it is needed
ATTEMPT = pl.concat_str("request_id", pl.lit("#"), TRY)
IN_TRACE = pl.concat_str(col("trace_id").fill_null(""), pl.lit(":"), SPAN)
START = _us("timestamp")
TOOK = (col("duration_ms") * MS_US).round().cast(pl.Int64)
ROUNDED = pl.when(TOOK % MS_US == 0).then(MS_US - 1).otherwise(0)  # up or down
END = pl.when(_near(START + TOOK)).then(START + TOOK)


def match_pairs(rows: pl.DataFrame) -> pl.DataFrame:
    """Facts of the two lines of one attempt: a line that has exactly one before it, of the other side and node, and of
    no other caller.

    There: server start - client start. Back, only where the client did not give up: client end - server end.
    """
    rows = coded(rows, (*SPACE, "node_id"))
    met, is_client = meeting(rows, PAIR_BACK_US), rows["client"].to_numpy()
    later = np.flatnonzero((met.at - met.first == 1) & rows["now"].to_numpy())
    later = later[is_client[later] != is_client[later - 1]]
    node = rows["node_id"].to_physical()
    later = later[(node[later] != node[later - 1]).to_numpy()]
    later = later[~(rows["caller"][later] != rows["caller"][later - 1]).fill_null(False).to_numpy()]
    client = rows.select("node_id", "ok", "start", "end_by")[np.where(is_client[later], later, later - 1)]
    server = rows.select("node_id", "start_by", "end")[np.where(is_client[later], later - 1, later)]
    both = rows.select("window", *SPACE, "weight", "coord", "arrived")[later]
    there = {"src": client["node_id"], "dst": server["node_id"], "fact": server["start_by"] - client["start"]}
    back = {"src": server["node_id"], "dst": client["node_id"], "fact": client["end_by"] - server["end"]}
    answered = both.with_columns(**back, lag=_lag(client["end_by"], server["end"]))
    answered = answered.filter(client["ok"], col("fact").is_not_null())
    called = both.with_columns(**there, lag=_lag(client["start"], server["start_by"]))
    facts: pl.DataFrame = pl.concat([called, answered])
    return facts


CLOCKS = Table(
    name="clocks",
    clock="arrival",
    key=("src", "dst"),
    sources=(
        _message("server_time", "client_time", "node_id", "observer"),
        _message("reply_received", "reply_sent", "observer", "node_id"),
        Meet(
            stream="requests",
            where=col("side").is_not_null() & (SPAN.is_not_null() | col("request_id").is_not_null()) & _near(START),
            project={
                "pair": pl.coalesce(IN_TRACE, ATTEMPT),
                "client": CLIENT,
                "ok": (col("status") == "ok").fill_null(False),
                "start": START,
                "start_by": START + _cut(START),
                "end": END - ROUNDED,
                "end_by": END + _cut(START) + ROUNDED,
            },
            on=("pair", "service_name"),
            carry=("client", "node_id", "caller", "ok", "start", "start_by", "end", "end_by", "arrived"),
            back_us=PAIR_BACK_US,
            match=match_pairs,
        ),
    ),
    columns={
        "facts": Lowest(KEPT, col("fact")),
        "lag": High(col("lag")),
        "seen": Sum(weighted=False),
        "proof": Low(col("coord")),
    },
)
