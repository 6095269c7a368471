"""The lines of a node are not in the order that its own count says.

Formula: lines whose vector clock counts fewer events of the line's own node than the line before it, in the same
partition and about the same entity (where lines name one: many stores keep a clock for each), over all that were
compared, in the trailing hour. A node counts its own events, so this is certain: its count went back, or its log is not
in the order in which it was written. Warn above 1 %, page above 5 %, of 20 lines or more.
Facts: lines (compared in the hour), back (of them out of order), fell (by how much at most, in the window).
False alarms: a shipper that spreads one node's log over several connections and mixes them; two processes under one
node_id; a process that begins to count again after a restart (one line: below the shares, where many are compared).
Misses: logs without vector clocks, or with clocks that do not name their own node_id; lines more than ten minutes
apart. Lines of several nodes are not compared here: for writes of one entity use concurrent_writers.
Source: C. Fidge, "Timestamps in message-passing systems that preserve the partial ordering", 1988.
"""

from __future__ import annotations

import polars as pl
from polars import col

from detectors.detector import Detector, Threshold, View, trailing
from detectors.table import SPACE
from detectors.tables.orders import ORDERS
from detectors.windows import HOUR_US

NAME = "ordering"
WHO = [*SPACE, "subject"]
LEAST_LINES = 20


def assess(view: View) -> pl.DataFrame:
    rows = view.rows.rename({"node_id": "subject"})
    seen = trailing(view, rows, col("subject"), ("back", "lines"), "back", HOUR_US)
    here = rows.select("window", *WHO, "fell", pair=pl.concat_list("earlier", "proof").list.drop_nulls())
    least = view.settings.number(NAME, "min_lines", LEAST_LINES, "node")
    share = (col("back") / col("lines")).fill_nan(0.0)
    return seen.join(here, on=["window", *WHO], how="left").select(
        *("window", *WHO, "first", "total", "fresh"),
        value=share,
        unknown=col("lines") < least,
        proof=pl.when(col("pair").list.len() > 0).then("pair").otherwise("proof"),
        lines="lines",
        back="back",
        fell="fell",
    )


ordering = Detector(
    name=NAME,
    reads=ORDERS,
    assess=assess,
    subject_kind="node",
    unknown_when="fewer than ordering.min_lines lines with vector clocks compared in an hour",
    thresholds=(
        Threshold("warn_ratio", "warn", 0.01, "ratio", 0, 1),
        Threshold("page_ratio", "page", 0.05, "ratio", 0, 1),
    ),
    unit="ratio",
    past_us=HOUR_US,
    numbers=("min_lines",),
    needs=("vector_clock",),
)
