"""Stamps and the facts about a fleet's clocks enter; when it truly was leaves, with error bars.

The reference is one clock for all: the median of the clocks that are linked both ways, the *majority's*. A node that is
not among them is told against the one that most of its neighbours report to. In every window a node's offset from its
reference lies in an interval, so what it stamped t happened between t - upper and t - lower; None is an open side.

Which window an event lies in is itself uncertain: its bar is the hull over all windows that it may lie in, by its own
stamp and that window's interval, and by its arrival. Where a window says nothing, what is known before and after it is
widened by max_drift, and both hold. Nothing is assumed about delays.

Certain for clocks that drift apart by no more than max_drift. Windows are counted by arrival: the brokers' clock is
taken to be within MARGIN_US of the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from polars import col

from detectors.clocks import MAJORITY, MAX_DRIFT_PPM, OPEN
from detectors.facts import Facts, Moment, linked_both_ways, recent, throughout
from detectors.table import Ints
from detectors.tables.clocks import NEAR_US
from detectors.windows import WINDOW_US

MARGIN_US = WINDOW_US
LEAST_MAJORITY = 3
SHAPE = {"node": pl.String, "window": pl.Int64, "lower_us": pl.Int64, "upper_us": pl.Int64, "reference": pl.String}


class Reference(NamedTuple):
    """Whose clocks are compared with: positions among the fleet's names."""

    majority: Ints  # the largest group of nodes that are linked both ways; none if it is smaller than three
    observer: Ints  # of each node: the one that most others of its component report to

    @classmethod
    def nobody(cls) -> Reference:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64))

    def name(self, node: int, names: pl.Series) -> str:
        return MAJORITY if node in self.majority else str(names[int(self.observer[node])])


def reference(pairs: pl.DataFrame, names: pl.Series) -> Reference:
    """From the distinct pairs (src, dst) that have facts at all."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    size = len(names)
    src, dst = (pairs[n].cast(pl.Enum(names)).to_physical().to_numpy() for n in ("src", "dst"))
    links = csr_array((np.ones(len(src)), (src, dst)), shape=(size, size))
    group = linked_both_ways(src, dst, size)
    members = np.flatnonzero(group == group[np.argmax(np.bincount(group)[group])])
    component = connected_components(links, directed=False)[1]
    by_incoming = np.lexsort((-np.bincount(dst, minlength=size), component))  # stable: equals stay sorted by name
    first = by_incoming[np.unique(component[by_incoming], return_index=True)[1]]
    majority = members if len(members) >= LEAST_MAJORITY else members[:0]
    return Reference(majority.astype(np.int64), first[component].astype(np.int64))


def against(moment: Moment, node: int, of: Reference) -> tuple[int | None, int | None]:
    """(lower, upper) of a node's offset from its reference, all through a window.

    Against the median of m clocks: if all of them were as far behind the node as they can be, the median is the k-th of
    those distances, and that can be, since shortest distances contradict no fact. So these are the tightest bounds.
    """
    others = of.majority if node in of.majority else of.observer[[node]]
    one = np.full(len(others), node)
    lowest_first, highest_first = np.sort(moment.least(one, others)), np.sort(moment.least(others, one))
    middle = (len(others) - 1) // 2
    to, back = int(lowest_first[middle]), int(highest_first[len(others) - 1 - middle])
    return (None if to >= OPEN else -to), (None if back >= OPEN else back)


def intervals_at(
    facts: Facts,
    names: pl.Series,
    of: Reference,
    nodes: Sequence[str],
    windows: Sequence[int],
    max_drift_ppm: int = MAX_DRIFT_PPM,
) -> pl.DataFrame:
    """SHAPE: one row for each of the nodes in each of the windows where something is known of it."""
    return pl.DataFrame(_told(facts, names, of, nodes, windows, max_drift_ppm), schema=SHAPE, orient="row")


def _told(
    facts: Facts, names: pl.Series, of: Reference, nodes: Sequence[str], windows: Sequence[int], max_drift_ppm: int
) -> Iterator[tuple[str, int, int | None, int | None, str]]:
    asked = np.flatnonzero(names.is_in(list(nodes)).to_numpy())
    wanted = set(windows)
    if not len(asked) or not wanted or not len(facts.window):
        return
    for w, some in recent(facts, len(names), min(wanted), max(wanted) + WINDOW_US):
        if w not in wanted or not len(some.window):
            continue
        moment = throughout(some, names, w, max_drift_ppm)
        for node in np.setdiff1d(asked, moment.moved()).tolist():
            lower, upper = against(moment, node, of)
            if (lower, upper) != (None, None):
                yield str(names[node]), w, lower, upper, of.name(node, names)


# ---- from intervals to bars ------------------------------------------------------------------------------------------


class Course(NamedTuple):
    """A node's intervals over consecutive windows; ±OPEN is an open side."""

    first: int  # window
    lower: Ints
    upper: Ints

    @property
    def starts(self) -> Ints:
        return self.first + WINDOW_US * np.arange(len(self.lower))


def course(known: pl.DataFrame, lo: int, hi: int, max_drift_ppm: int = MAX_DRIFT_PPM) -> Course:
    """One node's intervals in the windows lo ≤ w < hi. What is not known there follows from the nearest known ones."""
    windows = np.arange(lo, hi, WINDOW_US)
    lower = _all_through(known, "lower_us", windows, max_drift_ppm)
    upper = _all_through(known.with_columns(-col("upper_us")), "upper_us", windows, max_drift_ppm)
    return Course(lo, lower, -upper)


def _all_through(known: pl.DataFrame, side: str, windows: Ints, max_drift_ppm: int) -> Ints:
    """A lower bound in each window: its own, else the weaker of those that follow from before and from after."""
    some = known.filter(col(side).is_not_null()).sort("window")
    at, bound = some["window"].to_numpy(), some[side].to_numpy()
    if not len(at):
        return np.full(len(windows), -OPEN)
    before = np.searchsorted(at, windows, side="right") - 1
    after = np.searchsorted(at, windows, side="left")
    weaker = np.full(len(windows), OPEN)
    for i in (before, after):
        there = (i >= 0) & (i < len(at))
        apart = np.abs(windows[there] - at[i[there]])
        follows = bound[i[there]] + apart * -max_drift_ppm // 1_000_000  # rounded down
        weaker[there] = np.minimum(weaker[there], follows)
    return weaker


def corrected(events: pl.DataFrame, known: pl.DataFrame, max_drift_ppm: int = MAX_DRIFT_PPM) -> pl.DataFrame:
    """Adds earliest_us, latest_us and reference to events (node, at_us, arrived_us); all null where nothing is known,
    or where no window agrees with the stamp: it can't be true."""
    events = events.with_row_index("row")
    by_node = events.partition_by("node", as_dict=True)
    parts = [_of_node(own, known.filter(node=node), max_drift_ppm) for (node,), own in by_node.items()]
    if not parts:
        empty = dict.fromkeys(("earliest_us", "latest_us"), pl.Int64) | {"reference": pl.String}
        return events.drop("row").with_columns(pl.lit(None, dtype=t).alias(n) for n, t in empty.items())
    return pl.concat(parts).sort("row").drop("row")


def _of_node(own: pl.DataFrame, known: pl.DataFrame, max_drift_ppm: int) -> pl.DataFrame:
    at, arrived = own["at_us"].to_numpy(), own["arrived_us"].to_numpy()
    near = own["at_us"].filter((own["at_us"] - own["arrived_us"]).abs() <= NEAR_US)
    told = pl.concat([known["window"], own["arrived_us"], near])
    lo = int(told.min()) // WINDOW_US * WINDOW_US - 2 * MARGIN_US  # type: ignore[arg-type]
    hi = int(told.max()) // WINDOW_US * WINDOW_US + 2 * MARGIN_US + WINDOW_US  # type: ignore[arg-type]
    earliest, latest = bars(course(known, lo, hi, max_drift_ppm), at, arrived)
    reference = pl.lit(known["reference"][0] if len(known) else None, dtype=pl.String)
    known_of = col("earliest_us").is_not_null() | col("latest_us").is_not_null()
    return own.with_columns(earliest_us=_or_null(earliest), latest_us=_or_null(latest)).with_columns(
        reference=pl.when(known_of).then(reference)
    )


def _or_null(us: Ints) -> pl.Series:
    return pl.Series(us).set(pl.Series(np.abs(us) >= OPEN // 2), None)


def bars(of: Course, at: Ints, arrived: Ints) -> tuple[Ints, Ints]:
    """(earliest, latest) of each stamp: the hull over the windows it may lie in; both open where no window agrees.

    A window agrees if, less the offset that it allows, the stamp lies in it, give or take the margin. Only the last
    three that agree can set the latest moment, only the first three the earliest: others lie wholly on this side.
    """
    starts, ends = of.starts - MARGIN_US, of.starts + WINDOW_US + MARGIN_US
    within = np.clip((arrived + MARGIN_US - of.first) // WINDOW_US, 0, len(starts) - 1)
    least = np.minimum.accumulate((starts + of.lower)[::-1])[::-1]
    last = np.minimum(np.searchsorted(least, at, side="right") - 1, within)
    while (astray := (last >= 0) & (starts[last] + of.lower[last] > at)).any():
        last[astray] -= 1
    most = np.maximum.accumulate(ends + of.upper)
    first = np.searchsorted(most, at, side="right")
    earliest, latest = np.full(len(at), OPEN), np.full(len(at), -OPEN)
    for k in range(3):
        i = np.maximum(last - k, 0)
        agrees = (last - k >= 0) & (starts[i] + of.lower[i] <= at)
        latest = np.where(agrees, np.maximum(latest, _within(at, of.lower[i], ends[i])), latest)
        i = np.minimum(first + k, len(starts) - 1)
        agrees = (first + k <= within) & (ends[i] + of.upper[i] > at)
        earliest = np.where(agrees, np.minimum(earliest, -_within(-at, -of.upper[i], -starts[i])), earliest)
    astray = earliest > latest
    return np.where(astray, -OPEN, earliest), np.where(astray, OPEN, latest)


def _within(at: Ints, offset: Ints, bound: Ints) -> Ints:
    """at - offset, but no later than the bound; an open offset stays open."""
    return np.where(np.abs(offset) >= OPEN, OPEN, np.minimum(at - offset, bound))


# ---- what one call proves --------------------------------------------------------------------------------------------

Bar = tuple[int | None, int | None]


def not_before(cause: Bar, effect: Bar) -> tuple[Bar, Bar]:
    """Bars of one reference, where an effect can't come before its cause: both are as narrow as that allows."""
    (first, until), (since, last) = cause, effect
    lows, highs = [t for t in (first, since) if t is not None], [t for t in (until, last) if t is not None]
    return (first, min(highs, default=None)), (max(lows, default=None), last)
