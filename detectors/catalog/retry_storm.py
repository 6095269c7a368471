"""Retries per minute of an edge, when they are also many for what the edge does.

Formula: retries over the last six windows of 10 s, of client lines (server lines where an edge has no client's). Counts
only while retries / attempts is above 5 % and above twice the edge's own share over the hour before.
Facts: share, load (attempts / first attempts: what retries multiply the load by), goodput (share of attempts that
succeeded). Warn above 100, page above 500 retries per minute; where the data has no past to compare with, the storm is
possible and only warns.
False alarms: a batch client that is restarted and repeats its work.
Misses: retries that nobody counts (retry_count); use timeout_ratio to see what they would answer to.
Source: the operators' playbook, 4.1; N. Bronson et al., "Metastable failures in distributed systems", HotOS 2021.
"""

import polars as pl
from polars import col

from detectors.detector import Detector, Threshold, View, edge, one_side, trailing
from detectors.tables.calls import CALLS
from detectors.windows import HOUR_US, MINUTE_US

EDGE = ("caller", "service_name")


def assess(view: View) -> pl.DataFrame:
    rows = one_side(view.rows, EDGE).with_columns(proof=col("retries_proof"))
    seen = trailing(view, rows, edge(), ("retries", "attempts", "ok"), "retries", MINUTE_US, HOUR_US)
    return seen.select(
        pl.exclude("retries", "ok", "before_retries", "before_attempts", "before_ok"),
        value=col("retries").cast(pl.Float64),
        share=(col("retries") / col("attempts")).fill_nan(0.0),
        times_past=col("retries") * col("before_attempts") / (col("before_retries") * col("attempts")),
        load=col("attempts") / (col("attempts") - col("retries")),
        goodput=(col("ok") / col("attempts")).fill_nan(0.0),
        certain=col("before_attempts") >= col("attempts"),
    ).with_columns(col("times_past").fill_nan(float("inf")))


retry_storm = Detector(
    name="retry_storm",
    reads=CALLS,
    assess=assess,
    subject_kind="edge",
    thresholds=(
        Threshold("warn_per_min", "warn", 100, "retries/min", 0, 1e9),
        Threshold("page_per_min", "page", 500, "retries/min", 0, 1e9),
        Threshold("floor_ratio", "both", 0.05, "ratio", 0, 1, of="share"),
        Threshold("times_past", "both", 2.0, "times its own past", 0, 1e6, of="times_past"),
    ),
    unit="retries/min",
    past_us=HOUR_US + 10 * MINUTE_US,
    reach_us=11 * MINUTE_US,
    needs=("retry_count",),
)
