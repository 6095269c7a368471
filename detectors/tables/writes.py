"""Writes of one entity enter; one row for each write that another node's write did not know of, and vice versa, leaves.

A pair (a earlier, b later, of different nodes) is concurrent when neither knew of the other:

1. vector clocks: b knew a iff b's clock counts a's node at least as far as a's own entry, and vice versa. Certain.
2. else versions: b knew a iff b.base_version ≥ a.version, and vice versa. Certain.
3. else intervals: started .. finished overlap, by two clocks that may differ. Possible.
4. else unknown, and not counted: the order of two clocks proves nothing.

Source: L. Lamport, "Time, clocks, and the ordering of events", CACM 1978; C. Fidge, "Timestamps in message-passing
systems that preserve the partial ordering", 1988.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from polars import col

from detectors.table import SPACE, Ints, Meet, Table, meeting
from detectors.windows import MINUTE_US

REACH_US = 5 * MINUTE_US  # writes further apart are not compared
MOST = 1024  # nor is a write with more than so many before it: an entity that hot shows its conflicts sooner

Bools = npt.NDArray[np.bool_]
ON = ("entity_type", "entity_id")
HOW = ("vector_clock", "base_version", "interval")


class Clocks(NamedTuple):
    """Vector clocks, flat: place = row × nodes + node, sorted, and the count at each; own: each row's own entry."""

    place: Ints
    count: Ints
    nodes: int
    own: Ints
    has: Bools

    def counts(self, row: Ints, node: Ints) -> Ints:
        """What each row knew of each node; 0 where its clock does not name it."""
        if not len(self.place):
            return np.zeros(len(row), dtype=np.int64)
        wanted = row * self.nodes + node
        at = np.minimum(np.searchsorted(self.place, wanted), len(self.place) - 1)
        return np.where(self.place[at] == wanted, self.count[at], 0)


def _clocks(rows: pl.DataFrame, node: Ints, names: pl.Series) -> Clocks:
    flat = (
        rows.select(row=pl.int_range(pl.len(), dtype=pl.Int64), clock="vector_clock")
        .drop_nulls()
        .explode("clock")
        .unnest("clock")
        .drop_nulls()
        .join(pl.DataFrame({"key": names, "node": pl.Series(range(len(names)), dtype=pl.Int64)}), on="key")
        .select(place=col("row") * len(names) + col("node"), count="value")
        .sort("place")
    )
    place, count = flat["place"].to_numpy(), flat["count"].to_numpy()
    has = rows["vector_clock"].is_not_null().to_numpy()
    clocks = Clocks(place, count, len(names), np.zeros(len(rows), dtype=np.int64), has)
    return clocks._replace(own=clocks.counts(np.arange(len(rows), dtype=np.int64), node))


class Pairs(NamedTuple):
    """Concurrent pairs: positions of the earlier and the later row, and how it is known (an index into HOW)."""

    earlier: Ints
    later: Ints
    how: Ints


def concurrent(rows: pl.DataFrame, reach_us: int = REACH_US) -> Pairs:
    """All concurrent pairs of rows sorted by (entity, t, coord), no more than reach_us apart, distance by distance."""
    names = rows["node_id"].unique().sort()
    node = rows.select(col("node_id").rank("dense").cast(pl.Int64) - 1).to_series().to_numpy()
    clocks = _clocks(rows, node, names)
    met = meeting(rows, ON, reach_us)
    known = {n: rows[n].fill_null(-1).cast(pl.Int64).to_numpy() for n in ("version", "base_version")}
    versioned = (known["version"] >= 0) & (known["base_version"] >= 0)
    begun, ended = (rows[n].cast(pl.Int64).fill_null(0).to_numpy() for n in ("started", "finished"))
    spanned = (rows["started"].is_not_null() & rows["finished"].is_not_null()).to_numpy()
    found: list[Pairs] = []
    later = met.at
    for distance in range(1, MOST + 1):
        later = later[later - distance >= met.first[later]]
        if not len(later):
            break
        a, b = later - distance, later
        by_clock = clocks.has[a] & clocks.has[b]
        by_version = ~by_clock & versioned[a] & versioned[b]
        by_span = ~by_clock & ~by_version & spanned[a] & spanned[b]
        apart = (clocks.counts(b, node[a]) < clocks.own[a]) & (clocks.counts(a, node[b]) < clocks.own[b])
        blind = (known["base_version"][b] < known["version"][a]) & (known["base_version"][a] < known["version"][b])
        overlap = (begun[b] < ended[a]) & (begun[a] < ended[b])
        hit = ((by_clock & apart) | (by_version & blind) | (by_span & overlap)) & (node[a] != node[b])
        found.append(Pairs(a[hit], b[hit], np.where(by_clock, 0, np.where(by_version, 1, 2))[hit]))
    if not found:
        none = np.zeros(0, dtype=np.int64)
        return Pairs(none, none, none)
    return Pairs(*(np.concatenate(column) for column in zip(*found, strict=True)))


def match_writes(rows: pl.DataFrame, reach_us: int = REACH_US) -> pl.DataFrame:
    """One row for each later member; `newly` counts it and those of its partners that had no company before."""
    pairs = concurrent(rows, reach_us)
    later = np.unique(pairs.later)
    since = np.full(len(rows), len(rows), dtype=np.int64)  # at which later member each row first had company
    np.minimum.at(since, pairs.earlier, pairs.later)
    np.minimum.at(since, pairs.later, pairs.later)
    alone_before = np.bincount(since[since < len(rows)], minlength=len(rows))
    coord, names = rows["coord"].to_numpy(), rows["node_id"]
    by_pair = pl.DataFrame(
        {
            "at": pl.Series(pairs.later),
            "witness": pl.Series(coord[pairs.earlier]),
            "other": names.gather(pairs.earlier),
            "how": pl.Series(pairs.how),
        }
    )
    lowest = (
        by_pair.sort("at", "witness")
        .group_by("at", maintain_order=True)
        .agg(
            partners=pl.len().cast(pl.Int64),
            how=col("how").min(),
            witness=col("witness").first(),
            other=col("other").first(),
        )
    )
    found = rows[later].with_columns(lowest.drop("at"), newly=pl.Series(alone_before[later]))
    return found.filter("now").select(
        "window",
        *SPACE,
        *ON,
        "coord",
        "t",
        "node_id",
        "other",
        "witness",
        "partners",
        newly=col("newly") * col("weight"),
        how=col("how").replace_strict(dict(enumerate(HOW)), return_dtype=pl.String),
    )


WRITES = Table(
    name="writes",
    key=ON,
    sources=(
        Meet(
            stream="write_log",
            where=col("entity_type").is_not_null() & col("entity_id").is_not_null(),
            on=ON,
            carry=("node_id", "version", "base_version", "vector_clock", "started", "finished"),
            back_us=2 * REACH_US,  # a partner's own earlier partners tell whether it had company before
            match=match_writes,
        ),
    ),
)
