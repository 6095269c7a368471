"""Retries per minute of an edge, when they are also many for what the edge does.

Formula: retries over the last six windows of 10 s, of client lines (server lines where an edge has no client's). Counts
only while retries / attempts is above 5 %, and begins only where that share is above twice the edge's own past: the
calmest ten minutes, of at least 100 attempts, of the hour before. What has begun lasts until its retries are few again,
however long that takes: a storm does not become its own past. Warn above 100, page above 500 retries per minute; where
the data has no past to compare with, the storm is possible and only warns.
Kind `metastable`: a storm that keeps itself going. First attempts had been over 1.5 times those of the calm ten minutes
in some minute of the hour before, are at most 1.1 times those again, and at most half as many attempts succeed as then.
Where a source counts no retries, a call equal to one that failed within a minute before is taken for one (table
repeats); what rests on such is possible, never certain.
Facts: share, times_past (share by its past's, where there is one), load (attempts / first attempts: what retries
multiply the load by), layers (the product of the loads of the edges above one another, from this one up, as long as
each is 1.1 or more: what reaches the callee of one call at the top; through names them), goodput (share of attempts
that succeeded), wanted_per_min (first attempts), calm_per_min, surge_per_min (those of the calm ten minutes, and of the
minute with most), guessed (how many are such equal calls).
False alarms: a batch client that is restarted and repeats its work; an edge that always retries more than 100 times a
minute, when the recording begins: one possible finding, which stays open and never pages (raise its warn_per_min).
Misses: retries that nobody counts where calls have no payload_hash either: use timeout_ratio to see what they would
answer to; a storm that grows so slowly that no minute has twice the share of the hour before; metastable, where the
load had been high for an hour, or where it was a slow callee that began it.
Source: the operators' playbook, 4.1; N. Bronson et al., "Metastable failures in distributed systems", HotOS 2021; for
layers: B. Beyer et al., "Site Reliability Engineering", O'Reilly 2016, chapter 22.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import polars as pl
from polars import col

from detectors.detector import Detector, Threshold, View, one_side, trailing
from detectors.past import WHO, Past, past
from detectors.subjects import edge
from detectors.table import SPACE
from detectors.tables.calls import CALLS
from detectors.tables.repeats import REPEATS
from detectors.windows import HOUR_US, MINUTE_US, windows

NAME = "retry_storm"
SUMS, ENDS = ("retries", "attempts", "ok", "guessed"), ("caller", "service_name")
BLOCK_US = 10 * MINUTE_US
LEAST_ATTEMPTS = 100
LAYERS = 5  # edges above one another that are looked at
MULTIPLIES = 1.1  # a load that is one more layer of retries
SURGE, NORMAL = 1.5, 1.1  # times what is wanted in the calm
WARN = Threshold("warn_per_min", "warn", 100, "retries/min", 0, 1e9)

FIRSTS = col("attempts") - col("retries")
LOAD = col("attempts") / (col("attempts") - col("retries"))
STUCK = (
    (col("surge") >= SURGE * col("calm_wanted"))
    & FIRSTS.le(NORMAL * col("calm_wanted"))
    & (2 * col("ok") <= col("attempts") * col("calm_goodput"))
)


def assess(view: View) -> pl.DataFrame:
    rows = with_repeats(view.rows, view.also.get(REPEATS.name)).with_columns(subject=edge())
    return one_side(rows, partial(_of_side, view))


def with_repeats(calls: pl.DataFrame, repeats: pl.DataFrame | None) -> pl.DataFrame:
    """Calls with `proof`, and their retries with those that are only told from equal calls: `guessed` of them."""
    if repeats is None:
        return calls.with_columns(proof=col("retries_proof"), guessed=pl.lit(0, dtype=pl.Int64))
    told = repeats.group_by(REPEATS.full_key).agg(guessed=col("weight").sum(), again=col("coord").min())
    both = calls.join(told, on=REPEATS.full_key, how="left", nulls_equal=True).with_columns(col("guessed").fill_null(0))
    return both.with_columns(col("retries") + col("guessed"), proof=pl.min_horizontal("retries_proof", "again"))


def _of_side(view: View, rows: pl.DataFrame) -> pl.DataFrame:
    seen = trailing(view, rows, col("subject"), SUMS, "retries", MINUTE_US, MINUTE_US + HOUR_US)
    warn = view.settings.threshold(NAME, WARN, "edge")
    many = seen.filter(col("retries") > warn).select("window", *WHO)
    share = col("retries") / col("attempts")
    storms = seen.join(compared(past(rows, SUMS, ENDS), many), on=["window", *WHO], how="left").select(
        pl.exclude("ok", "^calm_.*$", "surge", "^before_(ok|guessed)$"),
        wanted_per_min=FIRSTS,
        calm_per_min="calm_wanted",
        surge_per_min="surge",
        value=col("retries").cast(pl.Float64),
        share=share.fill_nan(0.0),
        times_past=(share / col("calm_share")).fill_null(float("inf")),
        load=LOAD,
        goodput=(col("ok") / col("attempts")).fill_nan(0.0),
        certain=(col("before_attempts") >= col("attempts")) & col("calm_share").is_not_null() & (col("guessed") == 0),
        stuck=STUCK.fill_null(False),
    )
    stuck = storms.filter(col("retries") + col("before_retries") > warn).with_columns(
        kind=pl.lit("metastable"), value=pl.when("stuck").then("value").otherwise(0.0)
    )
    both = pl.concat([storms.with_columns(kind=pl.lit("")), stuck.select(*storms.columns, "kind")])
    return both.drop("retries", "before_retries", "before_attempts", "stuck")


def compared(before: Past, points: pl.DataFrame) -> pl.DataFrame:
    """Points (window, WHO) with what their edge did in the hour before their minute, and the layers that multiply it.

    calm_share, calm_wanted (first attempts a minute), calm_goodput: of the block with the lowest share of retries, null
    where no block has LEAST_ATTEMPTS. surge: first attempts of the minute with most of them.
    """
    at = points.join(before.subjects, on=WHO, how="left", maintain_order="left")
    calm, calm_share = dict.fromkeys(before.totals, np.ones(len(at), np.int64)), np.full(len(at), np.inf)
    for until_us in range(MINUTE_US, MINUTE_US + HOUR_US, BLOCK_US):
        block = before.over(at, until_us + BLOCK_US, until_us)
        many = block["attempts"] >= LEAST_ATTEMPTS
        share = np.where(many, block["retries"] / np.maximum(block["attempts"], 1), np.inf)
        calm = {n: np.where(share < calm_share, block[n], calm[n]) for n in calm}
        calm_share = np.minimum(calm_share, share)
    minutes = (before.over(at, us + MINUTE_US, us) for us in range(MINUTE_US, MINUTE_US + HOUR_US, MINUTE_US))
    surge = np.max([m["attempts"] - m["retries"] for m in minutes], axis=0) if len(at) else np.zeros(0, np.int64)
    known = pl.Series(np.isfinite(calm_share))
    found = {
        "calm_share": calm_share,
        "calm_wanted": (calm["attempts"] - calm["retries"]) * windows(MINUTE_US) / calm["windows"],
        "calm_goodput": calm["ok"] / calm["attempts"],
    }
    told = points.with_columns(pl.when(known).then(pl.Series(v)).alias(n) for n, v in found.items())
    return told.with_columns(pl.Series("surge", surge), *layers(before, at))


def layers(before: Past, at: pl.DataFrame) -> list[pl.Series]:
    """(layers, through) of each point: the product of the loads from the edge up to its furthest caller that multiplies
    its own calls in that minute, too, and the services on the way. At each step the caller with the largest load."""
    point = {"point": pl.int_range(pl.len()), "through": pl.concat_list("caller", "service_name")}
    way = at.select("window", *SPACE, "number", top="caller", **point)
    way = way.with_columns(layers=_load(before, way))
    ends = [way]
    for _ in range(LAYERS - 1):
        up = before.subjects.select(*SPACE, "number", top="caller", service="service_name", at="subject")
        way = way.drop("number").join(up, left_on=[*SPACE, "top"], right_on=[*SPACE, "service"], suffix="_up")
        way = way.filter(~col("through").list.contains(col("top_up")).fill_null(False))
        way = way.with_columns(load=_load(before, way)).filter(col("load") >= MULTIPLIES)
        way = way.sort("point", "load", "at", descending=[False, True, False]).unique("point", keep="first")
        way = way.select(
            *("window", *SPACE, "number", "point"),
            top="top_up",
            through=pl.concat_list(pl.concat_list("top_up"), "through"),
            layers=col("layers") * col("load"),
        )
        ends.append(way)
    last = pl.concat(e.select("point", "through", "layers") for e in ends).unique("point", keep="last")
    last = last.sort("point")
    return [last["layers"], last["through"]]


def _load(before: Past, at: pl.DataFrame) -> pl.Series:
    sums = before.over(at, MINUTE_US, 0)
    return pl.DataFrame({n: pl.Series(v) for n, v in sums.items()}).select(load=LOAD).to_series()


retry_storm = Detector(
    name=NAME,
    reads=CALLS,
    also=(REPEATS,),
    assess=assess,
    subject_kind="edge",
    thresholds=(
        WARN,
        Threshold("page_per_min", "page", 500, "retries/min", 0, 1e9),
        Threshold("floor_ratio", "both", 0.05, "ratio", 0, 1, of="share"),
        Threshold("times_past", "open", 2.0, "times its own past", 0, 1e6, of="times_past"),
    ),
    unit="retries/min",
    past_us=MINUTE_US + HOUR_US,
    reach_us=11 * MINUTE_US,
    needs=("retry_count or payload_hash",),
    lacks=(
        ("retry_count", "retries are told from equal calls after a failed one: possible, so it never pages"),
        ("caller", "all callers of a service are one"),
    ),
)
