"""Writes with vector clocks enter, how often a node's own entry went back leaves, by arrival: per window and node.

A node counts its own events, so its own entry never falls from one of its lines to the next; where lines name an
entity, from one line about that entity to the next, since many stores keep a clock for each. Lines are compared as they
lie in one partition of the log: between partitions nobody knows the order they were written in.

Source: C. Fidge, "Timestamps in message-passing systems that preserve the partial ordering", 1988.
"""

from __future__ import annotations

import polars as pl
from polars import col

from detectors.table import SPACE, High, Low, Meet, Sum, Table
from detectors.windows import MINUTE_US

BACK_US = 10 * MINUTE_US  # lines further apart are not compared
COMPARED = ("log", "entity_type", "entity_id")


def match_own(rows: pl.DataFrame) -> pl.DataFrame:
    """One row for each line that has one of its node before it, with whether its own entry is lower.

    `earlier` stands only beside the first pair of a window, so that the smallest `proof` and the smallest `earlier` are
    one pair: hence all lines of a node come together, whatever they are compared by.
    """
    before = [col(n).shift().alias(f"{n}_before") for n in ("window", "own", "coord")]
    pairs = (
        rows.with_columns(line=pl.struct("group", *COMPARED).rank("dense"))
        .sort("line", "arrived", "coord")
        .with_columns(*before, same=col("line") == col("line").shift())
        .filter("now", "same", col("window") - col("window_before") <= BACK_US)
        .with_columns(back=col("own") < col("own_before"))
    )
    witness = pl.when("back").then("coord").min().over(*SPACE, "node_id", "window")
    return pairs.select(
        *(*SPACE, "node_id", "window", "weight", "back"),
        proof=pl.when("back").then("coord"),
        earlier=pl.when(col("back") & (col("coord") == witness)).then("coord_before"),
        fell=pl.when("back").then(col("own_before") - col("own")),
    )


def _own_entry() -> pl.Expr:
    """What a vector clock counts of the node whose line it is; null where it does not name it."""
    named = pl.struct("node_id", "vector_clock")
    return named.map_batches(_own, return_dtype=pl.Int64)


def _own(named: pl.Series) -> pl.Series:
    rows = named.struct.unnest().with_row_index("row")
    entries = rows.drop_nulls().explode("vector_clock").unnest("vector_clock").filter(col("key") == col("node_id"))
    own = entries.select("row", "value").unique("row", keep="first", maintain_order=True)
    return rows.select("row").join(own, on="row", how="left", maintain_order="left")["value"]


OWN = _own_entry()

ORDERS = Table(
    name="orders",
    clock="arrival",
    by_order=True,
    key=("node_id",),
    sources=(
        Meet(
            stream="write_log",
            where=OWN.is_not_null(),
            project={"own": OWN, "log": col("partition")},
            on=("node_id",),
            carry=(*COMPARED, "own", "arrived"),
            back_us=BACK_US,
            match=match_own,
        ),
    ),
    columns={
        "lines": Sum(weighted=False),
        "back": Sum(col("back"), weighted=False),
        "fell": High(col("fell")),
        "proof": Low(col("proof")),
        "earlier": Low(col("earlier")),
    },
)
