"""The slowest calls of a service use up the time that their callers wait for them.

Formula: p99 over the last six windows of 10 s of duration / timeout_ms in percent: the smallest whole number that 99 %
of the calls do not exceed. A timed-out call used at least 100 %. Client lines (server lines where a service has no
client's), health checks left out; a minute with fewer than 100 lines is unknown, since there one call alone would be
the p99. Warn above 80 %, page above 95 %.
Facts: headroom_ms (what is left of the longest timeout, negative beyond it), before_pct (p99 of the hour before, where
the p99 is above 50 %).
False alarms: deadlines that are meant to be used up (long polling, batch windows); callers that log the deadline that
was left instead of the timeout that they set.
Misses: calls without timeout_ms; a slow edge behind a fast and busier one, since a service is judged as a whole.
Use timeout_ratio for how many calls of one edge time out; this one warns before they do.
Source: the operators' playbook, 4.1 and 4.3; J. Dean and L. A. Barroso, "The tail at scale", CACM 2013.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import polars as pl
from polars import col

from detectors.detector import Detector, Threshold, View, one_side, trailing
from detectors.table import SPACE
from detectors.tables.durations import DURATIONS, MAX_PCT
from detectors.windows import HOUR_US, MINUTE_US, MS_PER_US, WINDOW_US, windows

NAME = "timeout_budget"
WHO = [*SPACE, "subject"]
MIN_VOLUME = 100
WARN = Threshold("warn_pct", "warn", 80, "% of timeout", 0, MAX_PCT)
PAGE = Threshold("page_pct", "page", 95, "% of timeout", 0, MAX_PCT)
WORTH_COMPARING_PCT = 50
SUBJECT = 2**40  # more than there are windows


def assess(view: View) -> pl.DataFrame:
    return one_side(view.rows.with_columns(subject="service_name"), partial(_of_side, view))


def _of_side(view: View, used: pl.DataFrame) -> pl.DataFrame:
    least = view.settings.number(NAME, "min_volume", MIN_VOLUME, "service")
    over = col("used_pct") > view.settings.threshold(NAME, WARN, "service")
    recent = used.filter(col("window") >= view.lo - MINUTE_US).with_columns(
        over=pl.when(over).then("rows").otherwise(0), proof=pl.when(over).then("proof")
    )
    seen = trailing(view, recent, col("subject"), ("rows", "over"), "over", MINUTE_US)
    seen = seen.with_columns(used_pct=p99(recent, seen, 0, MINUTE_US))
    hot = seen.filter(col("used_pct") > WORTH_COMPARING_PCT).select("window", *WHO)
    past = used.join(hot, on=WHO, how="semi")
    hot = hot.with_columns(before_pct=p99(past, hot, MINUTE_US, HOUR_US))
    longest = recent.group_by(*WHO, "window").agg(col("timeout_us").max()).sort("window")
    left_us = col("timeout_us") * (100 - col("used_pct")) * 0.01
    return (
        seen.join(hot, on=["window", *WHO], how="left")
        .sort("window")
        .join_asof(longest, on="window", by=WHO, check_sortedness=False)
        .with_columns(
            value=col("used_pct").fill_null(0).cast(pl.Float64),
            unknown=col("rows") < least,
            headroom_ms=left_us * MS_PER_US,
        )
        .drop("rows", "over", "used_pct", "timeout_us", "before_rows", "before_over")
    )


def p99(rows: pl.DataFrame, points: pl.DataFrame, until_us: int, over_us: int) -> pl.Series:
    """For each point (WHO, window) the p99 bucket of the over_us up to until_us before it; null where there is none."""
    subjects = rows.select(WHO).unique().with_row_index("number")
    place = col("number").cast(pl.Int64).fill_null(len(subjects)) * SUBJECT + col("window") // WINDOW_US
    of_rows, of_points = (
        f.join(subjects, on=WHO, how="left", maintain_order="left").select(place).to_series().to_numpy()
        for f in (rows, points)
    )
    places, at = np.unique(of_rows, return_inverse=True)
    counts = np.zeros((len(places) + 1, MAX_PCT + 1), dtype=np.int64)
    np.add.at(counts, (at + 1, rows["used_pct"].to_numpy()), rows["calls"].to_numpy())
    upto = counts.cumsum(axis=0)
    last = of_points - windows(until_us)
    hi, lo = (np.searchsorted(places, end, side="right") for end in (last, last - windows(over_us)))
    within = (upto[hi] - upto[lo]).cumsum(axis=1)
    total = within[:, -1]
    bucket = (within * 100 >= 99 * total[:, None]).argmax(axis=1)
    return pl.select(pl.when(pl.Series(total) > 0).then(pl.Series(bucket))).to_series().cast(pl.Int64)


timeout_budget = Detector(
    name=NAME,
    reads=DURATIONS,
    assess=assess,
    subject_kind="service",
    unknown_when="fewer than timeout_budget.min_volume calls with a timeout in the minute",
    thresholds=(WARN, PAGE),
    unit="% of timeout",
    numbers=("min_volume",),
    past_us=HOUR_US + MINUTE_US,
    reach_us=11 * MINUTE_US,
    needs=("timeout_ms", "duration_ms"),
)
