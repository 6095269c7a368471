"""Heartbeats enter, who was heard by whom and when leaves, by arrival: no clock of a node has a say in its silence."""

import polars as pl
from polars import col

from detectors.table import High, Rows, Sum, Table

BEATS = Table(
    name="beats",
    clock="arrival",
    key=("node_id", "observer"),
    sources=(Rows(stream="heartbeats"),),
    columns={
        "beats": Sum(weighted=False),
        "told": Sum(col("told"), weighted=False),
        "sampled": Sum(col("weight") > 1, weighted=False),
        "last_us": High(col("arrived")),
        "goodbye_us": High(pl.when(col("role") == "leaving").then("arrived")),
        "proof": High(col("coord")),
    },
)
