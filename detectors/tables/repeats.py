"""Request lines that count no retries enter, calls that repeat a failed one leave, each with the call it repeats.

A repeat is a call with the caller, service_name, side and payload_hash of one that was rejected or timed out no more
than 60 s before. Nobody said that it is a retry, so what rests on it is possible, never certain. One row per repeat:
coord is its own, earlier that of the last call before it that failed.
"""

import numpy as np
import polars as pl
from polars import col

from detectors.table import Meet, Table, meeting
from detectors.windows import MINUTE_US

WITHIN_US = MINUTE_US
FAILED = col("status").is_in(["rejected", "timeout"])


def match_repeats(rows: pl.DataFrame) -> pl.DataFrame:
    t, coord = rows["t"].to_numpy(), rows["coord"].to_numpy()
    failed = meeting(rows, WITHIN_US).last(rows["failed"].to_numpy())
    at = np.flatnonzero(rows["now"].to_numpy() & (failed >= 0) & (t - t[failed] <= WITHIN_US))
    return rows[at].select(*REPEATS.full_key, "weight", "coord", earlier=pl.Series(coord[failed[at]]))


REPEATS = Table(
    name="repeats",
    key=("caller", "service_name", "side"),
    sources=(
        Meet(
            stream="requests",
            where=col("retry_count").is_null() & col("payload_hash").is_not_null(),
            project={"failed": FAILED.fill_null(False)},
            on=("caller", "service_name", "side", "payload_hash"),
            carry=("failed",),
            back_us=WITHIN_US,
            match=match_repeats,
        ),
    ),
)
