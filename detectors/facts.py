"""Rows of the table clocks enter; the facts about one fleet leave, window by window, and the bounds that follow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from polars import col

from detectors.clocks import OPEN, Bounds, bounds
from detectors.table import Ints
from detectors.tables.clocks import KEPT
from detectors.windows import MINUTE_US, NEVER, WINDOW_US


class Facts(NamedTuple):
    """Rows of one fleet in the order of their windows; src and dst are positions among the fleet's sorted names."""

    window: Ints
    src: Ints
    dst: Ints
    facts_us: Ints
    lag_us: Ints  # by how much the row that arrived last is older than its arrival, at most
    proof: Ints

    def at(self, rows: Any) -> Facts:
        return Facts(*(column[rows] for column in self))

    def nodes(self, size: int) -> Ints:
        heard = np.zeros(size, bool)
        heard[self.src] = heard[self.dst] = True
        return np.flatnonzero(heard)

    def evidence(self, size: int) -> Ints:
        """For each node a row of the pair with its smallest fact: who is wrong is most so there, ahead or behind."""
        node = np.concatenate([self.src, self.dst])
        fact, proof = np.tile(self.facts_us[:, 0], 2), np.tile(self.proof, 2)
        smallest, found = np.full(size, OPEN), np.full(size, NEVER)
        np.minimum.at(smallest, node, fact)
        at = np.flatnonzero(fact == smallest[node])
        np.minimum.at(found, node[at], proof[at])
        return found


def names_of(pairs: pl.DataFrame) -> pl.Series:
    return pl.concat([pairs["src"], pairs["dst"]]).unique().sort()


def facts_of(rows: pl.DataFrame, names: pl.Series) -> Facts:
    number = col("src", "dst").cast(pl.Enum(names)).to_physical().cast(pl.Int64)
    rows = rows.with_columns(number).sort("window", "src", "dst")
    facts_us = rows.select(
        col("facts").list.get(i, null_on_oob=True).fill_null(OPEN).alias(str(i)) for i in range(KEPT)
    ).to_numpy()
    window, src, dst, lag, proof = (rows[n].to_numpy() for n in ("window", "src", "dst", "lag", "proof"))
    return Facts(window, src, dst, facts_us, lag, proof)


def recent(facts: Facts, size: int, first: int, to: int) -> Iterator[tuple[int, Facts]]:
    """Of each window the latest row of each ordered pair in the minute that ends with it, sorted by (dst, src)."""
    pair = np.unique(facts.dst * size + facts.src, return_inverse=True)[1]
    latest = np.full(pair.max() + 1, -1)
    begin = int(np.searchsorted(facts.window, first - MINUTE_US + WINDOW_US))
    for w in range(first, to, WINDOW_US):
        end = int(np.searchsorted(facts.window, w + WINDOW_US))
        latest[pair[begin:end]] = np.arange(begin, end)  # the last one stays
        begin = end
        rows = latest[latest >= 0]
        yield w, facts.at(rows[facts.window[rows] > w - MINUTE_US])


class Moment(NamedTuple):
    """What is known of a fleet's clocks all through one window."""

    window: int
    known: Bounds
    place: Ints  # of each of the fleet's nodes: its position in `known`, -1 for one that was not heard
    group: Ints  # of each of the fleet's nodes: see linked_both_ways
    evidence: Ints  # of each of the fleet's nodes: see Facts.evidence

    def least(self, src: Ints, dst: Ints) -> Ints:
        """offset_dst - offset_src is at most this at any time of the window, pair by pair of the fleet's nodes."""
        a, b = self.place[src], self.place[dst]
        return np.where((a < 0) | (b < 0), OPEN, self.known.between(np.maximum(a, 0), np.maximum(b, 0)))

    def moved(self) -> Ints:
        return np.flatnonzero(np.isin(self.place, np.flatnonzero(self.known.moved)))

    def steady(self) -> Ints:
        """Those that were heard and did not move."""
        return np.setdiff1d(np.flatnonzero(self.place >= 0), self.moved())


def linked_both_ways(src: Ints, dst: Ints, size: int) -> Ints:
    """Of each node the number of its group: from each of a group facts lead to every other."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    links = csr_array((np.ones(len(src)), (src, dst)), shape=(size, size))
    return np.asarray(connected_components(links, connection="strong")[1], dtype=np.int64)


def throughout(some: Facts, names: pl.Series, w: int, max_drift_ppm: int) -> Moment:
    """Bounds for any time of the window w: each fact is as old there as it can be, from when it was measured."""
    nodes = some.nodes(len(names))
    place = np.full(len(names), -1)
    place[nodes] = np.arange(len(nodes))
    age_us = w + WINDOW_US - some.window + np.maximum(some.lag_us, 0)
    heard = names[nodes].to_list()
    known = bounds(heard, place[some.src], place[some.dst], some.facts_us, age_us, max_drift_ppm=max_drift_ppm)
    group = linked_both_ways(some.src, some.dst, len(names))
    return Moment(w, known, place, group, some.evidence(len(names)))
