"""A node's clock is ahead of or behind the others by more than any delay explains.

Formula: every message bounds the difference of two clocks; the bounds of all pairs are shortest paths over the smallest
facts (table clocks) of the window, and of the last minute where a pair has none now, widened by drift. value is the
least distance of the node's interval from the majority's clock, in ms. Where only one observer links the nodes
(heartbeats to one collector), the reference is that observer, and it is named. Warn above 100 ms, page above 500 ms.
A node ahead is certain. With one-way heartbeats a node behind is told from a slow way only by the setting
clock_skew.max_one_way_delay_ms (1,000): a node is called behind by what exceeds it; facts say so (assumes_delay).
False alarms: an observer whose own clock is wrong makes all nodes look wrong: many subjects at once, one reference.
Misses: skew smaller than the round trip; a node behind by less than max_one_way_delay_ms that sends only.
Source: B. Patt-Shamir and S. Rajsbaum, "A theory of clock synchronization", STOC 1994; the operators' playbook, 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
from polars import col

from detectors.clocks import OPEN, Interval, bounds, intervals
from detectors.detector import Detector, Settings, Threshold, View
from detectors.tables.clocks import CLOCKS, KEPT
from detectors.windows import MINUTE_US, WINDOW_US

SHAPE = {
    "window": pl.Int64,
    "environment": pl.String,
    "tenant": pl.String,
    "subject": pl.String,
    "value": pl.Float64,
    "unknown": pl.Boolean,
    "proof": pl.List(pl.Int64),
    "lower_ms": pl.Float64,
    "upper_ms": pl.Float64,
    "reference": pl.String,
    "assumes_delay": pl.Boolean,
}


def assess(view: View) -> pl.DataFrame:
    found: list[dict[str, Any]] = []
    for (environment, tenant), rows in view.rows.partition_by("environment", "tenant", as_dict=True).items():
        space = {"environment": environment, "tenant": tenant}
        found += [space | row for row in _fleet(rows.sort("window", "src", "dst"), view)]
    return pl.DataFrame(found, schema=SHAPE, orient="row").sort("window", "environment", "tenant", "subject")


def _fleet(rows: pl.DataFrame, view: View) -> Iterator[dict[str, Any]]:
    """Assessments of one fleet, window by window; a node without facts for a minute becomes unknown."""
    window = rows["window"].to_numpy()
    known: set[str] = set()
    first = max(view.lo, int(window[0]))
    for w in range(first, min(view.to, int(window[-1]) + MINUTE_US + WINDOW_US), WINDOW_US):
        a, b = np.searchsorted(window, [w - MINUTE_US + WINDOW_US, w + WINDOW_US])
        if w == first:
            before = rows[: int(b)].filter(col("window") >= w - MINUTE_US, col("window") < w)
            known = {*before["src"], *before["dst"]}
        recent = rows[int(a) : int(b)]
        seen = {*recent["src"], *recent["dst"]}
        for node in sorted(known - seen):
            yield {"window": w, "subject": node, "value": 0.0, "unknown": True}
        known = seen
        if len(recent):
            yield from _window(recent, w, view.settings)


def _window(recent: pl.DataFrame, w: int, settings: Settings) -> Iterator[dict[str, Any]]:
    latest = recent.unique(["src", "dst"], keep="last", maintain_order=True)
    nodes = sorted({*latest["src"], *latest["dst"]})
    number = pl.DataFrame({"node": nodes, "n": pl.Series(range(len(nodes)), dtype=pl.Int64)})
    src, dst = (
        latest.join(number, left_on=c, right_on="node", how="left", maintain_order="left")["n"] for c in ("src", "dst")
    )
    padded = latest.select(
        col("facts").list.get(i, null_on_oob=True).fill_null(OPEN).alias(str(i)) for i in range(KEPT)
    ).to_numpy()
    age = w - latest["window"].to_numpy()
    drift = int(settings.get("clock_skew", "max_drift_ppm", 200))
    delay = int(settings.get("clock_skew", "max_one_way_delay_ms", 1000) * 1000)
    known = bounds(nodes, src.to_numpy(), dst.to_numpy(), padded, age, max_drift_ppm=drift)
    proof = _proof(latest)
    for interval in intervals(known, max_one_way_delay_us=delay):
        yield {
            "window": w,
            "subject": interval.node,
            "value": interval.least_us / 1000,
            "unknown": interval.moved or interval.lower_us is interval.upper_us is None,
            "proof": [proof[interval.node]],
            "lower_ms": _ms(interval.lower_us),
            "upper_ms": _ms(interval.upper_us),
            "reference": interval.reference,
            "assumes_delay": _rests_on_delay(interval),
        }


def _proof(latest: pl.DataFrame) -> dict[str, int]:
    """For each node the first row of its recent facts."""
    ends = pl.concat([latest.select(pl.col(c).alias("node"), "proof") for c in ("src", "dst")])
    return dict(ends.group_by("node").agg(col("proof").min()).iter_rows())


def _ms(us: int | None) -> float | None:
    return None if us is None else us / 1000


def _rests_on_delay(interval: Interval) -> bool:
    return interval.assumes_delay and not interval.ahead


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
