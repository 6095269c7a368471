"""A node's clock is ahead of or behind the others by more than any delay explains.

Formula: every message bounds the difference of two clocks; the bounds of all pairs are shortest paths over the smallest
facts (table clocks) of the window, and of the last minute where a pair has none now, widened by drift. value is the
least distance of the node's interval from the majority's clock, in ms: an interval that merely reaches outside the
bound is no finding. Where only one observer links the nodes (heartbeats to one collector), the reference is that
observer, and it is named. Warn above 100 ms, page above 500 ms. A node whose clock moved is unknown in that window.
A node ahead is certain. With one-way heartbeats a node behind is told from a slow way only by the setting
clock_skew.max_one_way_delay_ms (1,000): a node is called behind by what exceeds it, which is possible, not certain, and
warns; facts say so (assumes_delay). Facts: lower_ms .. upper_ms, the interval, positive is ahead; reference.
False alarms: an observer whose own clock is wrong makes all nodes look wrong: many subjects at once, one reference;
lines of two calls of one service under one request_id, without spans and without `caller`, of which each side logs one.
Misses: skew smaller than the round trip, or than what the stamps leave out (a second, where they have none);
a node behind by less than max_one_way_delay_ms that sends only.
Source: B. Patt-Shamir and S. Rajsbaum, "A theory of clock synchronization", STOC 1994; the operators' playbook, 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from polars import col

from detectors.clocks import MAX_DRIFT_PPM, MAX_ONE_WAY_DELAY_US, OPEN, bounds, intervals
from detectors.detector import Detector, Settings, Threshold, View
from detectors.table import SPACE, Ints
from detectors.tables.clocks import CLOCKS, KEPT
from detectors.windows import MINUTE_US, WINDOW_US

MS_US = 1_000
SHAPE: dict[str, Any] = {
    "window": pl.Int64,
    "subject": pl.String,
    "value": pl.Float64,
    "unknown": pl.Boolean,
    "certain": pl.Boolean,
    "proof": pl.Int64,
    "lower_ms": pl.Float64,
    "upper_ms": pl.Float64,
    "reference": pl.String,
    "assumes_delay": pl.Boolean,
}


class Facts(NamedTuple):
    """Rows of one fleet, sorted by (window, src, dst); src and dst are positions among the fleet's sorted names."""

    window: Ints
    src: Ints
    dst: Ints
    facts_us: Ints
    proof: Ints

    def at(self, rows: Any) -> Facts:
        return Facts(*(column[rows] for column in self))

    def until(self, w: int) -> Facts:
        """The latest row of each ordered pair in the minute that ends with window w."""
        a, b = np.searchsorted(self.window, [w - MINUTE_US + WINDOW_US, w + WINDOW_US])
        pair = (self.src[a:b] * (1 << 32) + self.dst[a:b])[::-1]
        return self.at(b - 1 - np.unique(pair, return_index=True)[1])

    def nodes(self) -> Ints:
        return np.unique(np.concatenate([self.src, self.dst]))

    def evidence(self, nodes: Ints) -> Ints:
        """For each node a row of the pair with its smallest fact: who is wrong is most so there, ahead or behind."""
        node = np.concatenate([self.src, self.dst])
        fact, proof = np.tile(self.facts_us[:, 0], 2), np.tile(self.proof, 2)
        order = np.lexsort((proof, fact, node))
        return proof[order][np.searchsorted(node[order], nodes)]


def assess(view: View) -> pl.DataFrame:
    fleets = []
    for space, rows in view.rows.partition_by(SPACE, as_dict=True).items():
        found = list(_fleet(rows, view))
        columns = {n: [row.get(n) for row in found] for n in SHAPE}
        space_columns = {n: pl.lit(name) for n, name in zip(SPACE, space, strict=True)}
        fleets.append(pl.DataFrame(columns, schema=SHAPE).with_columns(**space_columns))
    if not fleets:
        fleets = [pl.DataFrame(schema=SHAPE | dict.fromkeys(SPACE, pl.String))]
    return pl.concat(fleets).with_columns(pl.concat_list("proof").list.drop_nulls())


def _fleet(rows: pl.DataFrame, view: View) -> Iterator[dict[str, Any]]:
    """Assessments of one fleet, window by window; a node of whom nothing was heard for a minute becomes unknown."""
    names = pl.concat([rows["src"], rows["dst"]]).unique().sort()
    rows = rows.sort("window", "src", "dst")
    facts = Facts(
        rows["window"].to_numpy(),
        names.search_sorted(rows["src"]).cast(pl.Int64).to_numpy(),
        names.search_sorted(rows["dst"]).cast(pl.Int64).to_numpy(),
        rows.select(
            col("facts").list.get(i, null_on_oob=True).fill_null(OPEN).alias(str(i)) for i in range(KEPT)
        ).to_numpy(),
        rows["proof"].to_numpy(),
    )
    first = max(view.lo, int(facts.window[0]))
    known = facts.until(first - WINDOW_US).nodes()
    for w in range(first, min(view.to, int(facts.window[-1]) + MINUTE_US + WINDOW_US), WINDOW_US):
        recent = facts.until(w)
        nodes = recent.nodes()
        for node in np.setdiff1d(known, nodes):
            yield {"window": w, "subject": names[int(node)], "value": 0.0, "unknown": True, "certain": False}
        if len(nodes):
            yield from _window(recent, nodes, names, w, view.settings)
        known = nodes


def _window(recent: Facts, nodes: Ints, names: pl.Series, w: int, settings: Settings) -> Iterator[dict[str, Any]]:
    known = bounds(
        names[nodes].to_list(),
        np.searchsorted(nodes, recent.src),
        np.searchsorted(nodes, recent.dst),
        recent.facts_us,
        w - recent.window,
        max_drift_ppm=int(settings.get("clock_skew", "max_drift_ppm", MAX_DRIFT_PPM)),
    )
    delay_ms = settings.get("clock_skew", "max_one_way_delay_ms", MAX_ONE_WAY_DELAY_US / MS_US)
    of_node = intervals(known, max_one_way_delay_us=int(delay_ms * MS_US))
    for interval, proof in zip(of_node, recent.evidence(nodes).tolist(), strict=True):
        rests_on_delay = interval.assumes_delay and not interval.ahead
        yield {
            "window": w,
            "subject": interval.node,
            "value": interval.least_us / MS_US,
            "unknown": interval.moved or (interval.lower_us is None and interval.upper_us is None),
            "certain": not rests_on_delay,
            "proof": proof,
            "lower_ms": _ms(interval.lower_us),
            "upper_ms": _ms(interval.upper_us),
            "reference": interval.reference,
            "assumes_delay": rests_on_delay,
        }


def _ms(us: int | None) -> float | None:
    return None if us is None else us / MS_US


clock_skew = Detector(
    name="clock_skew",
    reads=CLOCKS,
    assess=assess,
    subject_kind="node",
    thresholds=(
        Threshold("warn_ms", "warn", 100, "ms", 0, 1e9),
        Threshold("page_ms", "page", 500, "ms", 0, 1e9),
    ),
    unit="ms",
    past_us=MINUTE_US + WINDOW_US,
)
