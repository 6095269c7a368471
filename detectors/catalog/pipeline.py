"""About ourselves: a source partition gives us rows in a way that we can't judge well.

Kinds:
- append_back: rows whose append time lay more than 2 s behind the largest so far in their partition, in the last six
  windows of 10 s. A broker's clock was set back, or a recording is not in the order of arrival. The largest append time
  stands in for theirs. Warn at any.
- late_share: of at least 100 rows of the last ten minutes, more than 10 % came too late to alert on. Below 100 rows it
  is unknown. Rows whose stamp can't be true are not among them: their delay is not known. Warn.
Formula: value is the number of such rows; late_share divides it by all rows but the implausible ones.
Facts: step_back_s (the largest of the window), late_share.
False alarms: a shipper that delivers its backlog after an outage is late for a while.
Misses: what was never recorded; recordings without arrivals know neither order nor delay.
Source: T. Akidau et al., "The dataflow model", VLDB 2015 (lateness); the design of Kafka's LogAppendTime, KIP-32.
"""

from __future__ import annotations

import polars as pl
from polars import col

from detectors.detector import Detector, Threshold, View, complete, trailing
from detectors.table import SPACE
from detectors.tables.accounts import ACCOUNTS
from detectors.windows import MINUTE_US

MIN_VOLUME = 100
WHO = [*SPACE, "subject"]
PARTITION = pl.concat_str("stream", pl.lit("/"), "partition")


def assess(view: View) -> pl.DataFrame:
    return pl.concat([complete(_append_back(view)), complete(_late_share(view))], how="diagonal")


def _append_back(view: View) -> pl.DataFrame:
    rows = view.rows.with_columns(subject=PARTITION, proof="stepped_proof")
    steps = (
        rows.filter(col("stepped") > 0)
        .group_by(*WHO, "window")
        .agg(step_back_s=col("step_back_us").max() / 1_000_000)
        .sort("window")
    )
    return (
        trailing(view, rows.filter(col("stepped") > 0), col("subject"), ("stepped",), "stepped", MINUTE_US)
        .sort("window")
        .join_asof(steps, on="window", by=WHO, check_sortedness=False)
        .with_columns(kind=pl.lit("append_back"), value=col("stepped").cast(pl.Float64))
        .drop("stepped", "before_stepped")
    )


def _late_share(view: View) -> pl.DataFrame:
    rows = view.rows.with_columns(dated=col("rows") - col("implausible"), proof="late_proof")
    least = view.settings.get("pipeline", "min_volume", MIN_VOLUME)
    return (
        trailing(view, rows, PARTITION, ("late", "dated"), "late", 10 * MINUTE_US)
        .with_columns(
            kind=pl.lit("late_share"),
            value=col("late").cast(pl.Float64),
            late_share=(col("late") / col("dated")).fill_nan(0.0),
            unknown=col("dated") < least,
        )
        .drop("late", "dated", "before_late", "before_dated")
    )


pipeline = Detector(
    name="pipeline",
    reads=ACCOUNTS,
    assess=assess,
    subject_kind="partition",
    thresholds=(
        Threshold("stepped_rows", "warn", 0, "rows", 0, 1e9, kind="append_back"),
        Threshold("late_share", "warn", 0.10, "of the rows", 0, 1, of="late_share", kind="late_share"),
    ),
    unit="rows",
    past_us=10 * MINUTE_US,
)
