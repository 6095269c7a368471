"""About ourselves: a source partition gives us rows in a way that we can't judge well.

Kinds:
- append_back: rows whose append time lay more than 2 s behind the largest so far in their partition, in the last six
  windows of 10 s. A broker's clock was set back, or a recording is not in the order of arrival. The largest append time
  stands in for theirs. Warn at any.
- late_share: of at least 100 rows of the last ten minutes, more than 10 % came too late to alert on. Below 100 rows it
  is unknown. Rows whose stamp can't be true are not among them: their delay is not known. Warn.
- parked: records of a slice that could not be measured three times over, as where a table of one's own raises on one of
  them. They were set aside; which, say first_offset and last_offset, why, says the table rejects. Live only. Page.
- deleted: records that the log had no more when we came to read them, as after a long standstill. Live only. Page.
Formula: value is the number of such rows; late_share divides it by all rows but the implausible ones.
Facts: step_back_s (the largest of the window), late_share, first_offset and last_offset (of what is lost).
False alarms: a shipper that delivers its backlog after an outage is late for a while.
Misses: what was never recorded; recordings without arrivals know neither order nor delay.
Source: T. Akidau et al., "The dataflow model", VLDB 2015 (lateness); the design of Kafka's LogAppendTime, KIP-32.
"""

from __future__ import annotations

import polars as pl
from polars import col

from detectors.detector import Detector, Threshold, View, complete, trailing
from detectors.table import SPACE
from detectors.tables.accounts import ACCOUNTS, DELETED, PARKED
from detectors.windows import MINUTE_US, S_PER_US

MIN_VOLUME = 100
WHO = [*SPACE, "subject"]
PARTITION = pl.concat_str("stream", pl.lit("/"), "partition")


def assess(view: View) -> pl.DataFrame:
    found = [_append_back(view), _late_share(view), *(_lost(view, kind) for kind in (PARKED, DELETED))]
    return pl.concat([complete(f) for f in found], how="diagonal")


def _lost(view: View, kind: str) -> pl.DataFrame:
    rows = view.rows.filter(col(kind) > 0).with_columns(subject=PARTITION)
    stretch = (
        rows.group_by(*WHO, "window")
        .agg(first_offset=col("lost_first").min(), last_offset=col("lost_last").max())
        .sort("window")
    )
    return (
        trailing(view, rows, col("subject"), (kind,), kind, MINUTE_US)
        .sort("window")
        .join_asof(stretch, on="window", by=WHO, check_sortedness=False)
        .with_columns(kind=pl.lit(kind), value=col(kind).cast(pl.Float64))
        .drop(kind, f"before_{kind}")
    )


def _append_back(view: View) -> pl.DataFrame:
    rows = view.rows.with_columns(subject=PARTITION, proof="stepped_proof")
    steps = (
        rows.filter(col("stepped") > 0)
        .group_by(*WHO, "window")
        .agg(step_back_s=col("step_back_us").max() * S_PER_US)
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
    unknown_when="fewer than pipeline.min_volume rows in ten minutes",
    thresholds=(
        Threshold("stepped_rows", "warn", 0, "rows", 0, 1e9, kind="append_back"),
        Threshold("parked_records", "page", 0, "records", 0, 1e9, kind=PARKED),
        Threshold("deleted_records", "page", 0, "records", 0, 1e12, kind=DELETED),
        Threshold("late_share", "warn", 0.10, "of the rows", 0, 1, of="late_share", kind="late_share"),
    ),
    unit="rows",
    numbers=("min_volume",),
    past_us=10 * MINUTE_US,
    over_loss="told",
    needs=("arrival",),
)
