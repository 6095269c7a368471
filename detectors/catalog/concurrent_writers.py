"""Writes of an entity that a write of another node did not know of, and vice versa: one of the two is lost.

Formula: for each entity, writes of the trailing hour that are concurrent with a write of another node (by vector
clocks, by base_version, or by overlapping intervals; see the table writes); each such write counts once. Warn above 1,
page above 10 per hour. Certain where a vector clock or a base_version proves a pair; overlapping intervals rest on two
clocks: they are possible, and only warn. One write that a leader and its replicas log, under one request_id or
idempotency_key and with the same version and op, is no conflict. Facts: nodes (up to four of those that wrote), how
(the best proof of the hour), same_base (of the pairs proved by base_version the share that started from one version:
lost updates).
False alarms: stores that merge concurrent writes by design (counters, sets); versions that every node counts alone;
replicas that log the writes of their leader without the request_id.
Misses: one request carried out by two nodes alike (use duplicate_key); writes without vector clock, versions or
interval; vector clocks that do not name their own node_id; conflicts more than five minutes or 1,024 writes of the
entity apart. Sampled rows: a lower bound.
Source: the operators' playbook, 4.4 (query 3 counts writers, which is not conflict: two that take turns are fine).
"""

import polars as pl
from polars import col

from detectors.detector import Detector, Threshold, View, trailing
from detectors.subjects import entity
from detectors.table import SPACE
from detectors.tables.writes import WRITES
from detectors.windows import HOUR_US

SUMS = ("newly", "partners", "by_clock", "by_version", "same_base")
NAMED = 4


def assess(view: View) -> pl.DataFrame:
    seen = trailing(view, view.rows, entity(), SUMS, "newly", HOUR_US)
    own = [*SPACE, "subject", "window"]
    here = view.rows.group_by(*SPACE, entity().alias("subject"), "window").agg(
        nodes=pl.concat([col("witness_node"), col("node_id")]).unique().sort().head(NAMED),
        proof=pl.concat_list("witness", "coord").sort_by("coord").head(NAMED).explode().unique(maintain_order=True),
    )
    return seen.join(here, on=own, how="left").select(
        *(*own, "first", "total", "fresh", "proof", "nodes"),
        value=col("newly").cast(pl.Float64),
        certain=col("by_clock") + col("by_version") > 0,
        how=pl.when(col("by_clock") > 0)
        .then(pl.lit("vector_clock"))
        .when(col("by_version") > 0)
        .then(pl.lit("base_version"))
        .when(col("partners") > 0)
        .then(pl.lit("interval")),
        same_base=pl.when(col("by_version") > 0).then(col("same_base") / col("by_version")),
    )


concurrent_writers = Detector(
    name="concurrent_writers",
    reads=WRITES,
    assess=assess,
    subject_kind="entity",
    thresholds=(
        Threshold("warn_per_hour", "warn", 1, "writes/h", 0, 1e9),
        Threshold("page_per_hour", "page", 10, "writes/h", 0, 1e9),
    ),
    unit="writes/h",
    past_us=HOUR_US,
    over_loss="fires",
    needs=("entity_id",),
    lacks=(("vector_clock or base_version", "only overlapping intervals tell: possible, so it never pages"),),
)
