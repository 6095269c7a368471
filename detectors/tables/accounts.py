"""All rows of all streams enter, what became of them leaves, by arrival: per stream and partition.

What the live stages could not measure is told by rows that stand for it: a record that was set aside (PARKED), and the
first and the last of those that the log had no more (DELETED), with as much weight as there are records. A row that
came for a time that was closed already (STRAY) is in no other table. Of copies that say something else than the first
(DIFFERING) no row tells, but those who read them.
"""

import polars as pl
from polars import col

from detectors.events import STREAMS
from detectors.table import High, Low, Rows, Sum, Table
from detectors.windows import SECOND_US, STRAY

STEP_US = 2 * SECOND_US  # an append time may step back this far without a word
PARKED, DELETED, DIFFERING = "parked", "deleted", "differing"
LOST, IS_STRAY = col("fate").is_in([PARKED, DELETED]), col("fate") == STRAY
MEASURED = ~col("fate").is_in([PARKED, DELETED, DIFFERING, STRAY])
LATE, IMPLAUSIBLE = col("fate") == "late", col("fate") == "implausible"
STEPPED = (col("stepped_us") > STEP_US) & ~IS_STRAY  # that one came behind what was closed, not behind another row


ACCOUNTS = Table(
    name="accounts",
    clock="arrival",
    strays=True,
    key=("stream", "partition"),
    sources=tuple(Rows(stream=s, project={"stream": pl.lit(s)}) for s in STREAMS),
    columns={
        "rows": Sum(MEASURED, weighted=False),
        "late": Sum(LATE, weighted=False),
        "implausible": Sum(IMPLAUSIBLE, weighted=False),
        "stepped": Sum(STEPPED, weighted=False),
        "step_back_us": High(pl.when(~IS_STRAY).then("stepped_us")),
        "parked": Sum(col("fate") == PARKED),
        "deleted": Sum(col("fate") == DELETED),
        "differing": Sum(col("fate") == DIFFERING),
        "stray": Sum(IS_STRAY, weighted=False),
        "stray_back_us": High(pl.when(IS_STRAY).then("stepped_us")),
        "lost_first": Low(pl.when(LOST).then("offset")),
        "lost_last": High(pl.when(LOST).then("offset")),
        "late_proof": Low(pl.when(LATE).then("coord")),
        "stepped_proof": Low(pl.when(STEPPED).then("coord")),
        "stray_proof": Low(pl.when(IS_STRAY).then("coord")),
    },
)
