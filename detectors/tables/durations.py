"""Request lines with a timeout enter, a histogram of how much of it was used leaves, per service, side and window.

The bucket is the share of the timeout in whole percent, rounded up: p99 > 80 % means the same for buckets and for rows.
A timed-out attempt used all of it, whatever duration its line gives; what is beyond twice the timeout is one bucket.
"""

import polars as pl
from polars import col

from detectors.table import High, Low, Rows, Sum, Table

MAX_PCT = 200
TIMED_OUT = (col("status") == "timeout").fill_null(False)
ALLOWED_US = (col("timeout_ms") * 1000).round().cast(pl.Int64)
TOOK_US = (col("duration_ms") * 1000).round().cast(pl.Int64)
USED_PCT = ((TOOK_US * 100 + ALLOWED_US - 1) // ALLOWED_US).clip(0, MAX_PCT)

DURATIONS = Table(
    name="durations",
    key=("service_name", "side", "used_pct"),
    sources=(
        Rows(
            stream="requests",
            where=(ALLOWED_US > 0)
            & col("health_check").ne_missing(True)
            & (TIMED_OUT | col("duration_ms").is_not_null()),
            project={"used_pct": pl.when(TIMED_OUT).then(pl.max_horizontal(USED_PCT, 100)).otherwise(USED_PCT)},
        ),
    ),
    columns={
        "rows": Sum(weighted=False),
        "calls": Sum(),
        "timeout_us": High(ALLOWED_US),
        "proof": Low(col("coord")),
    },
)
