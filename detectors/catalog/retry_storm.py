"""Retries per minute of an edge, when they are also many for what the edge does.

Formula: retries over the last six windows of 10 s, of client lines (server lines where an edge has no client's). Counts
only while retries / attempts is above 5 %, and begins only where that share is above twice the edge's own past: the
calmest ten minutes, of at least 100 attempts, of the hour before. What has begun lasts until its retries are few again,
however long that takes: a storm does not become its own past. Warn above 100, page above 500 retries per minute; where
the data has no past to compare with, the storm is possible and only warns.
Where a source counts no retries, a call equal to one that failed within a minute before is taken for one (table
repeats); what rests on such is possible, never certain.
Facts: share, times_past (share by its past's, where there is one), load (attempts / first attempts: what retries
multiply the load by), goodput (share of attempts that succeeded), guessed (how many are such equal calls).
False alarms: a batch client that is restarted and repeats its work; an edge that always retries more than 100 times a
minute, when the recording begins: one possible finding, which stays open and never pages (raise its warn_per_min).
Misses: retries that nobody counts where calls have no payload_hash either: use timeout_ratio to see what they would
answer to; a storm that grows so slowly that no minute has twice the share of the hour before.
Source: the operators' playbook, 4.1; N. Bronson et al., "Metastable failures in distributed systems", HotOS 2021.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import polars as pl
from polars import col

from detectors.detector import Detector, Threshold, View, one_side, trailing
from detectors.subjects import edge
from detectors.table import SPACE
from detectors.tables.calls import CALLS
from detectors.tables.repeats import REPEATS
from detectors.windows import HOUR_US, MINUTE_US, WINDOW_US, windows

NAME = "retry_storm"
WHO = [*SPACE, "subject"]
BLOCK_US = 10 * MINUTE_US
LEAST_ATTEMPTS = 100
SUBJECT = 2**40  # more than there are windows
WARN = Threshold("warn_per_min", "warn", 100, "retries/min", 0, 1e9)


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
    sums = ("retries", "attempts", "ok", "guessed")
    seen = trailing(view, rows, col("subject"), sums, "retries", MINUTE_US, MINUTE_US + HOUR_US)
    many = seen.filter(col("retries") > view.settings.threshold(NAME, WARN, "edge")).select("window", *WHO)
    many = many.with_columns(past=calmest(rows, many))
    share = col("retries") / col("attempts")
    return seen.join(many, on=["window", *WHO], how="left").select(
        pl.exclude("retries", "ok", "past", "^before_.*$"),
        value=col("retries").cast(pl.Float64),
        share=share.fill_nan(0.0),
        times_past=(share / col("past")).fill_null(float("inf")),
        load=col("attempts") / (col("attempts") - col("retries")),
        goodput=(col("ok") / col("attempts")).fill_nan(0.0),
        certain=(col("before_attempts") >= col("attempts")) & col("past").is_not_null() & (col("guessed") == 0),
    )


def calmest(rows: pl.DataFrame, points: pl.DataFrame) -> pl.Series:
    """For each point (WHO, window) the lowest share of retries of a block of the hour before its minute, or null."""
    subjects = points.select(WHO).unique().with_row_index("number")
    place = (col("number").cast(pl.Int64) * SUBJECT + col("window") // WINDOW_US).alias("place")
    mine = rows.join(subjects, on=WHO).select(place, "retries", "attempts").sort("place")
    at = points.join(subjects, on=WHO, how="left", maintain_order="left").select(place).to_series().to_numpy()
    retries, attempts = (np.concatenate([[0], mine[n].cum_sum().to_numpy()]) for n in ("retries", "attempts"))
    lowest = np.full(len(points), np.inf)
    for before_us in range(MINUTE_US, MINUTE_US + HOUR_US, BLOCK_US):
        last = at - windows(before_us)
        lo, hi = (
            np.searchsorted(mine["place"].to_numpy(), end, side="right") for end in (last - windows(BLOCK_US), last)
        )
        many = attempts[hi] - attempts[lo]
        share = np.where(many >= LEAST_ATTEMPTS, (retries[hi] - retries[lo]) / np.maximum(many, 1), np.inf)
        lowest = np.minimum(lowest, share)
    return pl.select(pl.when(pl.Series(lowest).is_finite()).then(pl.Series(lowest))).to_series()


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
