"""A signal of our own enters the topic `signals`, and comes out of the log of findings: the whole chain works.

It goes the way of every event: it is fetched, decoded, put into its slice, measured, merged, and said with its window.
But its table is known to the live stages alone, so it is in no other table, never lands, and counts nowhere as an
event: what is replayed leaves it out as well.
"""

from __future__ import annotations

from datetime import datetime

import msgspec
import polars as pl
from polars import col

from detectors.table import High, Rows, Table

STREAM = "signals"
TENANT = "asynchealth"
FATE = "canary"
OURS = col("tenant") == TENANT

CANARY = Table(
    name="canary",
    clock="arrival",  # whatever the sender's clock says
    key=("name",),
    sources=(Rows(stream=STREAM, where=OURS),),
    columns={"number": High(col("value").cast(pl.Int64))},
)


def signal(name: str, number: int, at: datetime) -> bytes:
    """The record. name: of who sends it; number: it counts on."""
    event = {"timestamp": at, "tenant": TENANT, "subject": "asynchealth", "kind": "gauge"}
    return msgspec.json.encode(event | {"name": name, "value": number})


def ours(stream: str) -> pl.Expr:
    """Whether a row is a canary."""
    return OURS if stream == STREAM else pl.lit(False)


def theirs(stream: str, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows without canaries."""
    return rows.filter(~OURS) if stream == STREAM else rows
