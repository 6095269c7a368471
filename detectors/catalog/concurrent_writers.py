"""Writes of an entity that a write of another node did not know of, and vice versa: one of the two is lost.

Formula: for each entity, writes of the trailing hour that are concurrent with a write of another node (by vector
clocks, by base_version, or by overlapping intervals; see the table writes); each such write counts once. Warn above 1,
page above 10 per hour. Overlapping intervals rest on two clocks: they are possible, not certain, and only warn.
False alarms: stores that merge concurrent writes by design (counters, sets).
Misses: writes without vector clock, versions or interval; conflicts more than five minutes apart.
Source: the operators' playbook, 4.4 (query 3 counts writers, which is not conflict: two that take turns are fine).
"""

import polars as pl
from polars import col

from detectors.detector import Detector, Threshold, View, trailing
from detectors.tables.writes import ON, WRITES
from detectors.windows import HOUR_US


def assess(view: View) -> pl.DataFrame:
    rows = view.rows.with_columns(
        sure=pl.when(col("how") != "interval").then("newly").otherwise(0),
        proof=pl.concat_list(pl.min_horizontal("witness", "coord"), pl.max_horizontal("witness", "coord")),
    )
    entity = pl.concat_str(*ON, separator="/")
    seen = trailing(view, rows.drop("proof"), entity, ("newly", "sure"), "newly", HOUR_US)
    here = rows.group_by("environment", "tenant", entity.alias("subject"), "window").agg(
        nodes=pl.concat([col("other"), col("node_id")]).unique().sort().head(4),
        how=col("how").min(),
        proof=col("proof").sort().explode().unique(maintain_order=True).head(4),
    )
    return seen.join(here, on=["environment", "tenant", "subject", "window"], how="left").select(
        pl.exclude("newly", "sure", "before_newly", "before_sure"),
        value=col("newly").cast(pl.Float64),
        certain=col("sure") > 0,
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
    needs=("entity_id",),
)
