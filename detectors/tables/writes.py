"""Writes of one entity enter; one row for each write that another node's write did not know of, and vice versa, leaves.

A pair (a earlier, b later, of different nodes) is concurrent when neither knew of the other:

1. vector clocks: b knew a iff b's clock counts a's node at least as far as a's own entry, and vice versa. Certain.
2. else versions: b knew a iff b.base_version ≥ a.version, and vice versa. Certain.
3. else intervals: started .. finished overlap, by two clocks that may differ. Possible.
4. else unknown, and not counted: the order of two clocks proves nothing.

Two lines of one request (request_id or idempotency_key) with the same version and op are one write, seen twice.
A vector clock without an entry of its own node says nothing, and a write is compared with no more than MOST before it.

Source: L. Lamport, "Time, clocks, and the ordering of events", CACM 1978; C. Fidge, "Timestamps in message-passing
systems that preserve the partial ordering", 1988.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from polars import col

from detectors.table import SPACE, Ints, Meet, Table, coded, meeting
from detectors.windows import MINUTE_US, NEVER

REACH_US = 5 * MINUTE_US  # writes further apart are not compared
MOST = 1024  # nor is a write with more than so many before it: an entity that hot shows its conflicts sooner

Bools = npt.NDArray[np.bool_]
ON = ("entity_type", "entity_id")
OF_REQUEST = ("request_id", "idempotency_key", "op")
LEAST = -(2**63)  # below all that is told
VECTOR, VERSION, INTERVAL = 4, 2, 1  # what a write tells; a pair is judged by the best that both tell


class Clocks(NamedTuple):
    """Vector clocks, flat: place = row × nodes + node, sorted, and what is counted at each."""

    place: Ints
    counted: Ints
    nodes: int

    def counts(self, row: Ints, node: Ints) -> Ints:
        """What each row knew of each node; 0 where its clock does not name it."""
        if not len(self.place):
            return np.zeros(len(row), dtype=np.int64)
        wanted = row * self.nodes + node
        at = np.minimum(np.searchsorted(self.place, wanted), len(self.place) - 1)
        return np.where(self.place[at] == wanted, self.counted[at], 0)


def _clocks(rows: pl.DataFrame) -> Clocks:
    """Entries of nodes that wrote nothing here are of no use."""
    nodes = rows.select(key=col("node_id").unique().sort()).with_columns(node=pl.int_range(pl.len(), dtype=pl.Int64))
    flat = (
        rows.select(row=pl.int_range(pl.len(), dtype=pl.Int64), clock="vector_clock")
        .drop_nulls()
        .explode("clock")
        .unnest("clock")
        .join(nodes, on="key")
        .select(place=col("row") * len(nodes) + col("node"), count="value")
        .sort("place")
    )
    return Clocks(flat["place"].to_numpy(), flat["count"].to_numpy(), len(nodes))


class Writes:
    """What rows, entity by entity, tell about what each of them knew."""

    def __init__(self, rows: pl.DataFrame) -> None:
        self.node: Ints = coded(rows, ["node_id"])["node_id"].to_physical().cast(pl.Int64).to_numpy()
        self.clocks = _clocks(rows)
        self.own = self.clocks.counts(np.arange(len(rows), dtype=np.int64), self.node)
        told = {n: rows[n].cast(pl.Int64) for n in ("version", "base_version", "started", "finished")}
        self.version, self.base, self.begun, self.ended = (s.fill_null(0).to_numpy() for s in told.values())
        has = {n: s.is_not_null().to_numpy() for n, s in told.items()}
        named = coded(rows, OF_REQUEST).select(col(n).to_physical().cast(pl.Int64).fill_null(-1) for n in OF_REQUEST)
        self.request, self.key, self.op = (named[n].to_numpy() for n in OF_REQUEST)
        self.written = np.where(has["version"], self.version, LEAST)
        self.tells = (
            VECTOR * (self.own > 0)
            + VERSION * (has["version"] & has["base_version"])
            + INTERVAL * (has["started"] & has["finished"])
        )

    def how(self, a: Ints, b: Ints) -> Ints:
        """Of each pair of rows, by what it is known to be concurrent; 0 where it is not, or not known to be."""
        both = self.tells[a] & self.tells[b]
        how = np.where(both >= VECTOR, VECTOR, np.where(both >= VERSION, VERSION, both))
        blind = (self.base[b] < self.version[a]) & (self.base[a] < self.version[b])
        overlap = (self.begun[b] < self.ended[a]) & (self.begun[a] < self.ended[b])
        how[((how == VERSION) & ~blind) | ((how == INTERVAL) & ~overlap)] = 0
        how[self.twice_told(a, b)] = 0
        for one, other in ((a, b), (b, a)):
            at = np.flatnonzero(how == VECTOR)
            knew = self.clocks.counts(other[at], self.node[one[at]]) >= self.own[one[at]]
            how[at[knew]] = 0
        return how

    def twice_told(self, a: Ints, b: Ints) -> Bools:
        """Of each pair of rows, whether they are one write that two nodes logged: a leader, say, and its replica."""
        one_request = (self.request[a] >= 0) & (self.request[a] == self.request[b])
        one_key = (self.key[a] >= 0) & (self.key[a] == self.key[b])
        alike = (self.written[a] == self.written[b]) & (self.op[a] == self.op[b])
        twice: Bools = alike & (one_request | one_key)
        return twice


def _suspects(rows: pl.DataFrame, writes: Writes) -> Bools:
    """Rows that an earlier write of their entity can be concurrent with; the others need not be compared."""
    told, ended = ((writes.tells & what) > 0 for what in (VERSION, INTERVAL))
    earlier = pl.DataFrame(
        {
            "group": rows["group"],
            "version": np.where(told, writes.version, LEAST),
            "ended": np.where(ended, writes.ended, LEAST),
        }
    ).select(col("version", "ended").cum_max().shift(fill_value=LEAST).over("group"))
    newer = earlier["version"].to_numpy() > writes.base
    later = earlier["ended"].to_numpy() > writes.begun
    found: Bools = (writes.tells >= VECTOR) | (told & newer) | (ended & later)
    return found


class Pairs(NamedTuple):
    """Concurrent pairs: positions of the earlier and the later row, and by what it is known."""

    earlier: Ints
    later: Ints
    how: Ints


def concurrent(rows: pl.DataFrame, writes: Writes, reach_us: int = REACH_US) -> Iterator[Pairs]:
    """The concurrent pairs no more than reach_us apart: neighbours first, then by growing distance.

    All pairs of a hot entity would not fit into memory; those of one distance do. In each, a row is later but once.
    Later ones are those in the windows asked for, and those of reach_us before: they tell who had company already.
    """
    met, window = meeting(rows, reach_us), rows["window"].to_numpy()
    asked = window >= window[rows["now"].to_numpy()].min(initial=NEVER) - reach_us
    later = np.flatnonzero(asked & _suspects(rows, writes))
    for distance in range(1, MOST + 1):
        later = later[later - distance >= met.first[later]]
        if not len(later):
            return
        b = later[writes.node[later] != writes.node[later - distance]]
        how = writes.how(b - distance, b)
        yield Pairs(b[how > 0] - distance, b[how > 0], how[how > 0])


def match_writes(rows: pl.DataFrame, reach_us: int = REACH_US) -> pl.DataFrame:
    """One row for each later member; `newly` counts it and those of its partners that had no company before."""
    writes, size, coord = Writes(rows), len(rows), rows["coord"].to_numpy()
    partners, by_clock, by_version, same_base = (np.zeros(size, dtype=np.int64) for _ in range(4))
    witness, company = np.full(size, -1), np.full(size, -1)  # company: the first later partner
    for a, b, how in concurrent(rows, writes, reach_us):
        partners[b] += 1
        by_clock[b] += how == VECTOR
        by_version[b] += how == VERSION
        same_base[b] += (how == VERSION) & (writes.base[a] == writes.base[b])
        lower = (witness[b] < 0) | (coord[a] < coord[witness[b]])
        witness[b[lower]] = a[lower]
        company[a] = np.where(company[a] < 0, b, company[a])
    company = np.where(partners > 0, np.arange(size), company)
    weight, newly = rows["weight"].to_numpy(), np.zeros(size, dtype=np.int64)
    np.add.at(newly, company[company >= 0], weight[company >= 0])
    counted = {"partners": partners, "newly": newly, "by_clock": by_clock, "by_version": by_version}
    said = np.flatnonzero(rows["now"].to_numpy() & (partners > 0))
    other = rows.select(witness="coord", witness_node="node_id")[witness[said]]
    told = {n: pl.Series(v[said]) for n, v in (counted | {"same_base": same_base}).items()}
    return rows.select("window", *SPACE, *ON, "coord", "t", "node_id")[said].with_columns(*other, **told)


WRITES = Table(
    name="writes",
    key=ON,
    sources=(
        Meet(
            stream="write_log",
            where=col("entity_type").is_not_null() & col("entity_id").is_not_null(),
            on=ON,
            carry=("node_id", "version", "base_version", "vector_clock", "started", "finished", *OF_REQUEST),
            back_us=2 * REACH_US,  # a partner's own earlier partners tell whether it had company before
            match=match_writes,
        ),
    ),
)
