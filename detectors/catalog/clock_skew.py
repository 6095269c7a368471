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
from typing import Any

import numpy as np
import polars as pl

from detectors.clocks import MAJORITY, MAX_DRIFT_PPM, MAX_ONE_WAY_DELAY_US, OPEN, bounds, intervals
from detectors.detector import Detector, Settings, Threshold, View
from detectors.facts import Facts, facts_of, names_of, recent
from detectors.table import SPACE, Ints
from detectors.tables.clocks import CLOCKS
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


def assess(view: View) -> pl.DataFrame:
    fleets = [pl.DataFrame(schema=SHAPE | dict.fromkeys(SPACE, pl.String))]
    for space, rows in view.rows.partition_by(SPACE, as_dict=True).items():
        names = (pl.lit(name).alias(n) for n, name in zip(SPACE, space, strict=True))
        fleets.append(pl.concat([pl.DataFrame(schema=SHAPE), *_fleet(rows, view)], how="diagonal").with_columns(names))
    return pl.concat(fleets).with_columns(pl.concat_list("proof").list.drop_nulls())


def _fleet(rows: pl.DataFrame, view: View) -> Iterator[pl.DataFrame]:
    """Assessments of one fleet, window by window; a node of whom nothing was heard for a minute becomes unknown."""
    names = names_of(rows)
    facts = facts_of(rows, names)
    first = max(view.lo, int(facts.window[0]))
    to = min(view.to, int(facts.window[-1]) + MINUTE_US + WINDOW_US)
    known = np.zeros(0, np.int64)
    for w, some in recent(facts, len(names), first - WINDOW_US, to):
        nodes = some.nodes(len(names))
        if w >= first:
            silent = pl.DataFrame({"subject": names[np.setdiff1d(known, nodes)]})
            yield silent.with_columns(window=pl.lit(w, pl.Int64), value=0.0, unknown=True, certain=False)
            yield _window(some, nodes, names, w, view.settings)
        known = nodes


def _window(some: Facts, nodes: Ints, names: pl.Series, w: int, settings: Settings) -> pl.DataFrame:
    heard, number = names[nodes], np.zeros(len(names), np.int64)
    number[nodes] = np.arange(len(nodes))
    known = bounds(
        heard.to_list(),
        number[some.src],
        number[some.dst],
        some.facts_us,
        w - some.window,
        max_drift_ppm=int(settings.get("clock_skew", "max_drift_ppm", MAX_DRIFT_PPM)),
    )
    delay_ms = settings.get("clock_skew", "max_one_way_delay_ms", MAX_ONE_WAY_DELAY_US / MS_US)
    of_node = intervals(known, max_one_way_delay_us=int(delay_ms * MS_US))
    unbounded = (of_node.lower_us == OPEN) & (of_node.upper_us == OPEN)
    rests_on_delay = of_node.assumes_delay & ~of_node.ahead
    return pl.DataFrame(
        {
            "subject": heard,
            "value": of_node.least_us / MS_US,
            "unknown": known.moved | unbounded,
            "certain": ~rests_on_delay,
            "proof": some.evidence(len(names))[nodes],
            "lower_ms": _ms(of_node.lower_us),
            "upper_ms": _ms(of_node.upper_us),
            "reference": heard[known.observer].set(pl.Series(of_node.by_majority), MAJORITY),
            "assumes_delay": rests_on_delay,
        }
    ).with_columns(window=pl.lit(w, pl.Int64))


def _ms(us: Ints) -> pl.Series:
    return pl.Series(us / MS_US).set(pl.Series(us == OPEN), None)


clock_skew = Detector(
    name="clock_skew",
    reads=CLOCKS,
    assess=assess,
    subject_kind="node",
    unknown_when="its clock moved, or nothing was heard of it for a minute",
    thresholds=(
        Threshold("warn_ms", "warn", 100, "ms", 0, 1e9),
        Threshold("page_ms", "page", 500, "ms", 0, 1e9),
    ),
    unit="ms",
    numbers=("max_one_way_delay_ms", "max_drift_ppm"),
    past_us=MINUTE_US + WINDOW_US,
    nothing_without=("heartbeats or calls logged by both sides",),
)
