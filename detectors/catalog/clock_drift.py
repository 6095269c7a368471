"""A node's clock runs at another speed than the others', or was set.

Formula: at every full minute each pair of clocks has bounds (the shortest paths of clock_skew, each fact as old as it
can be in that window). What bounds ten minutes apart leave for the change of their offset, least and most, gives the
slope against each other node; the node's is the median of these, and value the least distance of that from 0, in
ms/min. Warn above 1 ms/min, for a step above 1 ms. Kinds:
- drift: the slope over ten minutes, in which the clock was not set;
- step: from one minute to the next (or to the next that has bounds, within ten) it changed by more than max_drift
  explains; value is the least such change in ms; onset is the first window of 10 s that contradicts.
Facts: least, most (ms/min for a drift, ms for a step; positive: it gains on the others), nodes (how many are compared).
Certain, under the assumption that no clock but one that was set runs faster or slower than another by
clock_skew.max_drift_ppm (200). Between two nodes alone, whose clock it is can't be told: possible.
Needs bounds on both sides: calls logged by both sides, or heartbeats with replies. Heartbeats that are not answered
bound a clock on one side only, and a slope from these would be one of delays: unknown.
False alarms: an exporter that rounds stamps in another way than before.
Misses: drift below the width of the bounds over ten minutes (with delays of 1 ms, about 1.5 ms/min); clocks that run
wrong by more than about 400 ppm contradict themselves within a minute: clock_skew calls them unknown, and so does this.
Source: the operators' playbook, 4.6; bounds as in B. Patt-Shamir and S. Rajsbaum, STOC 1994.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from detectors.clocks import MAX_DRIFT_PPM, OPEN
from detectors.detector import Detector, Threshold, View
from detectors.facts import Facts, Moment, facts_of, names_of, recent, throughout
from detectors.table import SPACE, Ints
from detectors.tables.clocks import CLOCKS
from detectors.windows import MINUTE_US, NEVER, WINDOW_US

OVER_US = 10 * MINUTE_US
MS_US = 1_000
SHAPE: dict[str, Any] = {
    "window": pl.Int64,
    "kind": pl.String,
    "subject": pl.String,
    "value": pl.Float64,
    "unknown": pl.Boolean,
    "certain": pl.Boolean,
    "first": pl.Int64,
    "proof": pl.List(pl.Int64),
    "least": pl.Float64,
    "most": pl.Float64,
    "nodes": pl.Int64,
}


class Said(NamedTuple):
    """One assessment; the fields are the columns of SHAPE."""

    window: int
    kind: str
    subject: str
    value: float = 0.0
    unknown: bool = True
    certain: bool = False
    first: int | None = None
    proof: tuple[int, ...] = ()
    least: float | None = None
    most: float | None = None
    nodes: int | None = None


class Change(NamedTuple):
    """How much a clock gained on the median of others between two moments, in µs."""

    least: int
    most: int
    nodes: int

    @property
    def size(self) -> int:
        return max(self.least, -self.most, 0)


def changes(before: Moment, now: Moment, nodes: Ints) -> dict[int, Change]:
    """Of each of the nodes that were linked both ways at both moments.

    offset_n - offset_j is at least -least(n, j) now and was at most least(j, n) before: so much it gained, at least.
    """
    found: dict[int, Change] = {}
    both = before.group * (len(before.group) + 1) + now.group
    groups, sizes = np.unique(both, return_counts=True)
    for group in np.intersect1d(both[nodes], groups[sizes > 1]):  # most nodes of a fleet may be alone
        some, members = nodes[both[nodes] == group], np.flatnonzero(both == group)
        one, other = np.repeat(some, len(members)), np.tile(members, len(some))
        least = -now.least(one, other) - before.least(other, one)
        most = now.least(other, one) + before.least(one, other)
        known = (least > -OPEN // 2) & (most < OPEN // 2) & (one != other)
        count = known.reshape(len(some), -1).sum(axis=1)
        known |= (one == other) & np.repeat(count > 1, len(members))  # of two alone neither is the median
        own = np.where(one == other, 0, 1)
        low, high = (_medians(np.where(known, side * own, NEVER), count) for side in (least, most))
        told = zip(some.tolist(), low.tolist(), high.tolist(), count.tolist(), strict=True)
        found |= {node: Change(lo, hi, n + 1) for node, lo, hi, n in told if n}
    return found


def _medians(gained: Ints, count: Ints) -> Ints:
    """Of each row of pairs, so many known ones in each; NEVER is what is not known. The upper of two in the middle."""
    middle = np.where(count > 1, (count + 1) // 2, 0)
    medians: Ints = np.sort(gained.reshape(len(count), -1), axis=1)[np.arange(len(count)), middle]
    return medians


def assess(view: View) -> pl.DataFrame:
    fleets = []
    minute = -(-view.lo // MINUTE_US) * MINUTE_US < view.to  # live, of six windows one has something to say
    for space, rows in view.rows.partition_by(SPACE, as_dict=True).items() if minute else ():
        said = [pl.DataFrame(schema=SHAPE), *Fleet(rows, view).said()]
        fleets.append(pl.concat(said).with_columns(pl.lit(name).alias(n) for n, name in zip(SPACE, space, strict=True)))
    if not fleets:
        fleets = [pl.DataFrame(schema=SHAPE | dict.fromkeys(SPACE, pl.String))]
    return pl.concat(fleets).with_columns(pl.col("first").fill_null(pl.col("window")))


class Fleet:
    """One fleet, from one full minute to the next; what it remembers is a function of the last twenty of them."""

    def __init__(self, rows: pl.DataFrame, view: View) -> None:
        self.names = names_of(rows)
        self.facts = facts_of(rows, self.names)
        self.drift_ppm = int(view.settings.get("clock_skew", "max_drift_ppm", MAX_DRIFT_PPM))
        self.first = max(view.lo - 2 * OVER_US, int(self.facts.window[0])) // MINUTE_US * MINUTE_US
        self.lo = view.lo
        self.since = view.lo - OVER_US  # a clock that was set before spoils no slope that is asked for
        self.to = min(view.to, int(self.facts.window[-1]) + 2 * OVER_US)
        self.some: dict[int, Facts] = {}  # of each window of the last ten minutes
        self.marks: list[Moment] = []  # of each full minute of them, latest first
        self.stepped: dict[int, int] = {}  # of each node the minute when it was last seen to have been set

    def said(self) -> Iterator[pl.DataFrame]:
        for w, some in recent(self.facts, len(self.names), self.first - MINUTE_US, self.to):
            self.some[w] = some
            if w % MINUTE_US == 0:
                self.some = {v: s for v, s in self.some.items() if v >= w - OVER_US}
                self.marks = [m for m in self.marks if m.window >= w - OVER_US]
                now = self.moment(w)
                told = [*self._steps(now), *self._slopes(now)] if w > self.since else []
                if w >= self.lo:
                    yield pl.concat([pl.DataFrame(told, schema=SHAPE, orient="row"), *self._untold(now, told)])
                self.marks.insert(0, now)

    def moment(self, w: int) -> Moment:
        return throughout(self.some[w], self.names, w, self.drift_ppm)

    def _untold(self, now: Moment, told: Sequence[Said]) -> Iterator[pl.DataFrame]:
        """Of all others that were heard within ten minutes: unknown. In a large fleet these are nearly all."""
        heard = np.unique(np.concatenate([np.flatnonzero(m.place >= 0) for m in (now, *self.marks)]))
        subjects = pl.DataFrame({"subject": self.names[heard]})
        for kind in ("step", "drift"):
            nothing = Said(now.window, kind, "")._asdict()
            rest = subjects.filter(~pl.col("subject").is_in([s.subject for s in told if s.kind == kind]))
            yield rest.select(
                pl.col(n) if n == "subject" else pl.lit(nothing[n], dtype=t).alias(n) for n, t in SHAPE.items()
            )

    def _steps(self, now: Moment) -> Iterator[Said]:
        """Each node against the last minute in which it was bounded."""
        open_ = now.steady()
        for before in self.marks:
            changed = changes(before, now, np.intersect1d(open_, before.steady()))
            open_ = np.setdiff1d(open_, list(changed))
            for node, change in changed.items():
                told = self._said("step", node, before, now, change, MS_US)
                if change.size > self._explained(before, now):
                    self.stepped[node] = now.window
                    yield told._replace(first=self._onset(node, before, now))
                else:
                    yield told._replace(value=0.0)

    def _explained(self, before: Moment, now: Moment) -> int:
        """What drift may have changed."""
        return (now.window - before.window) * self.drift_ppm // 1_000_000

    def _onset(self, node: int, before: Moment, now: Moment) -> int:
        """The first window that contradicts what was known before."""
        for w in range(before.window + WINDOW_US, now.window, WINDOW_US):
            then = self.moment(w)
            change = changes(before, then, np.array([node])).get(node)
            if node in then.moved() or (change and change.size > self._explained(before, then)):
                return w
        return now.window

    def _slopes(self, now: Moment) -> Iterator[Said]:
        """Over ten minutes in which it was not set."""
        before = self.marks[-1] if self.marks else now
        if now.window - before.window < OVER_US:
            return
        for node, change in changes(before, now, np.intersect1d(now.steady(), before.steady())).items():
            if self.stepped.get(node, -NEVER) <= before.window:
                told = self._said("drift", node, before, now, change, OVER_US // MINUTE_US * MS_US)
                yield told._replace(first=before.window)

    def _said(self, kind: str, node: int, before: Moment, now: Moment, change: Change, unit_us: int) -> Said:
        return Said(
            window=now.window,
            kind=kind,
            subject=str(self.names[node]),
            value=change.size / unit_us,
            unknown=False,
            certain=change.nodes > 2,
            proof=tuple(sorted({int(m.evidence[node]) for m in (before, now)})),
            least=change.least / unit_us,
            most=change.most / unit_us,
            nodes=change.nodes,
        )


clock_drift = Detector(
    name="clock_drift",
    reads=CLOCKS,
    assess=assess,
    subject_kind="node",
    thresholds=(
        Threshold("warn_ms_per_min", "warn", 1, "ms/min", 0, 1e9, kind="drift"),
        Threshold("warn_step_ms", "warn", 1, "ms", 0, 1e9, kind="step"),
    ),
    unit="ms/min",
    past_us=2 * OVER_US + 2 * MINUTE_US,
    needs=("side or reply_received",),
    nothing_without=("heartbeats or calls logged by both sides",),
    unknown_when="its clock is not bounded on both sides, or was set within ten minutes",
)
