"""All rows of all streams enter, what became of them leaves, by arrival: per stream and partition."""

import polars as pl
from polars import col

from detectors.events import STREAMS
from detectors.table import High, Low, Rows, Sum, Table
from detectors.windows import SECOND_US

STEP_US = 2 * SECOND_US  # an append time may step back this far without a word
LATE, IMPLAUSIBLE, STEPPED = col("fate") == "late", col("fate") == "implausible", col("stepped_us") > STEP_US


ACCOUNTS = Table(
    name="accounts",
    clock="arrival",
    key=("stream", "partition"),
    sources=tuple(Rows(stream=s, project={"stream": pl.lit(s)}) for s in STREAMS),
    columns={
        "rows": Sum(weighted=False),
        "late": Sum(LATE, weighted=False),
        "implausible": Sum(IMPLAUSIBLE, weighted=False),
        "stepped": Sum(STEPPED, weighted=False),
        "step_back_us": High(col("stepped_us")),
        "late_proof": Low(pl.when(LATE).then("coord")),
        "stepped_proof": Low(pl.when(STEPPED).then("coord")),
    },
)
