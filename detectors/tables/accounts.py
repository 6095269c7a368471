"""All rows of all streams enter, what became of them leaves, by arrival: per stream and partition.

What the live stages could not measure is told by rows that stand for it: a record that was set aside (PARKED), and the
first and the last of those that the log had no more (DELETED), with as much weight as there are records.
"""

import polars as pl
from polars import col

from detectors.events import STREAMS
from detectors.table import High, Low, Rows, Sum, Table
from detectors.windows import SECOND_US

STEP_US = 2 * SECOND_US  # an append time may step back this far without a word
PARKED, DELETED = "parked", "deleted"
LOST = col("fate").is_in([PARKED, DELETED])
LATE, IMPLAUSIBLE, STEPPED = col("fate") == "late", col("fate") == "implausible", col("stepped_us") > STEP_US


ACCOUNTS = Table(
    name="accounts",
    clock="arrival",
    key=("stream", "partition"),
    sources=tuple(Rows(stream=s, project={"stream": pl.lit(s)}) for s in STREAMS),
    columns={
        "rows": Sum(~LOST, weighted=False),
        "late": Sum(LATE, weighted=False),
        "implausible": Sum(IMPLAUSIBLE, weighted=False),
        "stepped": Sum(STEPPED, weighted=False),
        "step_back_us": High(col("stepped_us")),
        "parked": Sum(col("fate") == PARKED),
        "deleted": Sum(col("fate") == DELETED),
        "lost_first": Low(pl.when(LOST).then("offset")),
        "lost_last": High(pl.when(LOST).then("offset")),
        "late_proof": Low(pl.when(LATE).then("coord")),
        "stepped_proof": Low(pl.when(STEPPED).then("coord")),
    },
)
