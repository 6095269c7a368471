"""A node stamps rows with times that can't be true.

Formula: rows in the last six windows of 10 s, by arrival, of all streams, whose stamp is wrong. Kinds, one for a row:
- ahead: the line was written more than 60 s after it arrived, says its stamp;
- old: it arrived more than 30 days after it was written, says its stamp;
- epoch: one of these, and the date is garbage: before 2001-09-09 (0, seconds taken for ms) or from 2100 on;
- back: of two lines that arrived one after the other, the second has the larger number (seq) and the smaller stamp, by
  more than 1 ms. That is not yet a stepped clock: clock_skew tells what the other nodes saw.
Warn at any. Page when, of at least 1,000 rows of the node in the trailing hour, more than 1 % are of that kind.
Facts: rows (of the node in the hour), share, off_by_s (how far off the worst of the window is).
Certain, under the assumption that arrivals are true; where nobody recorded arrivals: that a recording is of one time,
so that its small parts which lie a day or more from all others are misdated.
False alarms: imports of old data through the live way (old); two processes that share node_id and name no seq_scope, or
a line that was shipped after those of the process that took over and began to count from 0 (back).
Misses: stamps that are wrong by less than a minute: clock_skew. Clocks of two nodes are not compared here.
Source: the operators' playbook, 4.3.
"""

from __future__ import annotations

import polars as pl
from polars import col

from detectors.detector import Detector, Threshold, View, trailing
from detectors.table import SPACE
from detectors.tables.stamps import STAMPS
from detectors.windows import HOUR_US, MINUTE_US, S_PER_US

WHO = [*SPACE, "subject"]
KINDS = ("ahead", "old", "epoch", "back")


def assess(view: View) -> pl.DataFrame:
    return pl.concat(_of_kind(view, kind) for kind in KINDS)


def _of_kind(view: View, kind: str) -> pl.DataFrame:
    every = view.rows.rename({"node_id": "subject"})
    wrong = every.filter(kind=kind)
    rows = every.join(wrong, on=WHO, how="semi").with_columns(
        wrong=pl.when(kind=kind).then("rows").otherwise(0),
        rows=pl.when(col("kind") != "back").then("rows").otherwise(0),
        proof=pl.when(kind=kind).then("proof"),
    )
    seen = trailing(view, rows, col("subject"), ("wrong", "rows"), "wrong", MINUTE_US, HOUR_US)
    in_hour = col("wrong") + col("before_wrong")
    worst = wrong.group_by(*WHO, "window").agg(off_by_s=col("off_us").max() * S_PER_US).sort("window")
    pairs = wrong.select(*WHO, "earlier", witness="proof")
    return (
        seen.filter(in_hour > 0)
        .sort("window")
        .join_asof(worst, on="window", by=WHO, check_sortedness=False)
        .with_columns(witness=col("proof").list.first())
        .join(pairs, on=[*WHO, "witness"], how="left")
        .select(
            "window",
            *WHO,
            "first",
            "total",
            "fresh",
            kind=pl.lit(kind),
            value=col("wrong").cast(pl.Float64),
            proof=pl.concat_list("proof", "earlier").list.drop_nulls(),
            rows=col("rows") + col("before_rows"),
            share=in_hour / (col("rows") + col("before_rows")),
            off_by_s="off_by_s",
        )
    )


impossible_timestamp = Detector(
    name="impossible_timestamp",
    reads=STAMPS,
    assess=assess,
    subject_kind="node",
    thresholds=(
        Threshold("warn_rows", "warn", 0, "rows/min", 0, 1e9),
        Threshold("page_rows", "page", 0, "rows/min", 0, 1e9),
        Threshold("page_share", "page", 0.01, "of the node's rows in the hour", 0, 1, of="share"),
        Threshold("page_min_rows", "page", 999, "rows of the node in the hour", 0, 1e12, of="rows"),
    ),
    unit="rows/min",
    past_us=HOUR_US,
    lacks=(
        ("arrival", "only stamps a day or more from all others are seen"),
        ("seq", "stamps that go back are not seen"),
    ),
)
