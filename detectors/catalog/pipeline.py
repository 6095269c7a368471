"""About ourselves: a source partition gives us rows in a way that we can't judge well.

Kinds:
- append_back: rows whose append time lay more than 2 s behind the largest so far in their partition, in the last six
  windows of 10 s. A broker's clock was set back, or a recording is not in the order of arrival. The largest append time
  stands in for theirs. Warn at any.
- late_share: of at least 100 rows of the last ten minutes, more than 10 % came too late to alert on. Below 100 rows it
  is unknown. Rows whose stamp can't be true are not among them: their delay is not known. Warn.
- parked: records of a slice that could not be measured three times over, as where a table of one's own raises on one of
  them. They were set aside; which, say first_offset and last_offset, why, says the table rejects. Live only. Page.
- stray: rows that came for a time that was closed already, since their partition had been read to its end and the
  brokers' clock was past it: they are in no table. Live only; a replay of the same log has them. Warn at any.
- copies: parts of 2 s that two processes said differently, of the last six windows. The first copy counts. Workers with
  other maps, other private fields or other versions side by side; else a fault of ours. Live only. Warn at any.
- deleted: records that the log had no more when we came to read them, as after a long standstill. Live only. Page.
Formula: value is the number of such rows, records or copies; late_share divides it by all but the implausible.
Facts: step_back_s and behind_s (the largest of the window), late_share, first_offset and last_offset (of what is lost).
False alarms: a shipper that delivers its backlog after an outage is late for a while.
Misses: what was never recorded; recordings without arrivals know neither order nor delay.
Source: T. Akidau et al., "The dataflow model", VLDB 2015 (lateness); the design of Kafka's LogAppendTime, KIP-32.
"""

from __future__ import annotations

import polars as pl
from polars import col

from detectors.detector import Detector, Threshold, View, complete, trailing
from detectors.table import SPACE
from detectors.tables.accounts import ACCOUNTS, DELETED, DIFFERING, PARKED
from detectors.windows import MINUTE_US, S_PER_US, STRAY

MIN_VOLUME = 100
WHO = [*SPACE, "subject"]
LOST, SHARE = ("first_offset", "last_offset"), "late_share"
PARTITION = pl.concat_str("stream", pl.lit("/"), "partition")


def assess(view: View) -> pl.DataFrame:
    found = [
        _behind(view, "append_back", "stepped", "step_back_us", "step_back_s", "stepped_proof"),
        _behind(view, STRAY, STRAY, "stray_back_us", "behind_s", "stray_proof"),
        _late_share(view),
        _copies(view),
        *(_lost(view, kind) for kind in (PARKED, DELETED)),
    ]
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


def _behind(view: View, kind: str, of: str, back_us: str, fact: str, proof: str) -> pl.DataFrame:
    """Rows of the last minute whose append time came behind, and by how much."""
    rows = view.rows.filter(col(of) > 0).with_columns(subject=PARTITION, proof=proof)
    most = rows.group_by(*WHO, "window").agg((col(back_us).max() * S_PER_US).alias(fact)).sort("window")
    return (
        trailing(view, rows, col("subject"), (of,), of, MINUTE_US)
        .sort("window")
        .join_asof(most, on="window", by=WHO, check_sortedness=False)
        .with_columns(kind=pl.lit(kind), value=col(of).cast(pl.Float64))
        .drop(of, f"before_{of}")
    )


def _copies(view: View) -> pl.DataFrame:
    rows = view.rows.filter(col(DIFFERING) > 0)
    return (
        trailing(view, rows, PARTITION, (DIFFERING,), DIFFERING, MINUTE_US)
        .with_columns(kind=pl.lit("copies"), value=col(DIFFERING).cast(pl.Float64))
        .drop(DIFFERING, f"before_{DIFFERING}")
    )


def _late_share(view: View) -> pl.DataFrame:
    rows = view.rows.with_columns(dated=col("rows") - col("implausible"), proof="late_proof")
    least = view.settings.get("pipeline", "min_volume", MIN_VOLUME)
    return (
        trailing(view, rows, PARTITION, ("late", "dated"), "late", 10 * MINUTE_US)
        .with_columns(
            kind=pl.lit(SHARE),
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
        Threshold("stepped_rows", "warn", 0, "rows", 0, 1e9, kind="append_back", facts=("step_back_s",)),
        Threshold("stray_rows", "warn", 0, "rows", 0, 1e9, kind=STRAY, facts=("behind_s",)),
        Threshold("differing_copies", "warn", 0, "copies", 0, 1e9, kind="copies"),
        Threshold("parked_records", "page", 0, "records", 0, 1e9, kind=PARKED, facts=LOST),
        Threshold("deleted_records", "page", 0, "records", 0, 1e12, kind=DELETED, facts=LOST),
        Threshold(SHARE, "warn", 0.10, "of the rows", 0, 1, of=SHARE, kind=SHARE, facts=(SHARE,)),
    ),
    unit="rows",
    numbers=("min_volume",),
    past_us=10 * MINUTE_US,
    over_loss="told",
    needs=("arrival",),
)
