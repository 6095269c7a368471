"""Retries per minute of an edge, when they are also many for what the edge does.

Formula: retries over the last six windows of 10 s, of client lines (server lines where an edge has no client's). Counts
only while retries / attempts is above 5 %, and begins only where that share is above twice the edge's own past: the
calmest ten minutes, of at least 100 attempts, of the hour before. What has begun lasts until its retries are few again,
however long that takes: a storm does not become its own past. Warn above 100, page above 500 retries per minute; where
the data has no past to compare with, the storm is possible and only warns.
Kind `metastable`: a storm that seems to keep itself going. At most half as many attempts succeed as in the calm ten
minutes. First attempts are at most 1.1 times those of then, and had been over 1.5 times in some minute since success
fell, or of the two before. Always possible: a callee that broke while they were many looks the same.
Where a source counts no retries, a call equal to one that failed within a minute before is taken for one (table
repeats); what rests on such is possible, never certain.
Facts: share, times_past (share by its past's, where there is one), load (attempts / first attempts: what retries
multiply the load by), layers (the product of the loads of the edges above one another, from this one up, as long as
each is 1.1 or more: what reaches the callee of one call at the top; through names them, at each step the caller with
most retries), goodput (share of attempts that succeeded), wanted_per_min (first attempts), calm_per_min, surge_per_min
(those of the calm ten minutes, of minutes that have any, and of the minute with most), guessed (how many are such equal
calls).
Facts of the backoff, from the table backoffs: waits_ms (median time from the end of an attempt to the next of the same
request, of each retry_count from 1 on, 10 and more as one, that at least 10 retries have), backoff (their course:
`immediate`, all at most 10 ms; `fixed`; `linear`, `exponential`, or `growing` where they fit neither or are only two;
they may stay at a cap, and a first that is immediate tells nothing of the others), jitter (whether the tenth longest
wait is more than 1.25 times the tenth shortest and 2 ms, of the retry_count with most). Null where less than half of
the minute's retries can be told the wait of, as with stamps in whole seconds, which tell of none under 16 s; backoff
also where waits are of one retry_count, or go up and down.
False alarms: a batch client that is restarted and repeats its work; an edge that always retries more than 100 times a
minute, when the recording begins: one possible finding, which stays open and never pages (raise its warn_per_min).
Misses: retries that nobody counts where calls have no payload_hash either: use timeout_ratio to see what they would
answer to; a storm that grows so slowly that no minute has twice the share of the hour before; metastable, where the
load had been high for an hour, or where it was a slow callee that began it; a backoff that only some of an edge's
callers have: different fixed waits look like jitter.
Source: the operators' playbook, 4.1; N. Bronson et al., "Metastable failures in distributed systems", HotOS 2021; for
layers: B. Beyer et al., "Site Reliability Engineering", O'Reilly 2016, chapter 22; for backoff and jitter: M. Brooker,
"Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import polars as pl
from polars import col

from detectors.backoff import FACTS, backoffs
from detectors.detector import Detector, Threshold, View, one_side, trailing
from detectors.past import WHO, Past, past
from detectors.subjects import UNTOLD, edge
from detectors.table import SPACE
from detectors.tables.backoffs import BACKOFFS
from detectors.tables.calls import CALLS
from detectors.tables.repeats import REPEATS
from detectors.windows import HOUR_US, MINUTE_US

NAME = "retry_storm"
SUMS, ENDS = ("retries", "attempts", "ok", "guessed"), ("caller", "service_name")
BLOCK = 10  # minutes
LEAST_ATTEMPTS = 100
LAYERS = 5  # edges above one another that are looked at
MULTIPLIES = 1.1  # a load that is one more layer of retries
SURGE, NORMAL = 1.5, 1.1  # times what is wanted in the calm
LEADS = 2  # minutes from a surge to what it led to
WARN = Threshold("warn_per_min", "warn", 100, "retries/min", 0, 1e9)

FIRSTS = col("attempts") - col("retries")
LOAD = col("attempts") / (col("attempts") - col("retries"))
STUCK = (
    (col("led") >= SURGE * col("calm_wanted"))
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
    many = seen.filter(col("retries") > warn).select("window", *WHO, "retries")
    share = col("retries") / col("attempts")
    told = compared(past(rows, SUMS, ENDS), many.drop("retries"))
    told = _with_backoffs(told, view.also.get(BACKOFFS.name), rows, many)
    storms = seen.join(told, on=["window", *WHO], how="left").select(
        pl.exclude("ok", "^calm_.*$", "surge", "led", "^before_(ok|guessed)$"),
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
        led_per_min="led",
    )
    stuck = storms.filter(col("retries") + col("before_retries") > warn).with_columns(
        kind=pl.lit("metastable"),
        value=pl.when("stuck").then("value").otherwise(0.0),
        certain=pl.lit(False),
        surge_per_min="led_per_min",
    )
    both = pl.concat([storms.with_columns(kind=pl.lit("")), stuck.select(*storms.columns, "kind")])
    return both.drop("retries", "before_retries", "before_attempts", "stuck", "led_per_min")


def _with_backoffs(
    points: pl.DataFrame, waited: pl.DataFrame | None, rows: pl.DataFrame, many: pl.DataFrame
) -> pl.DataFrame:
    """Points with the facts of the backoff of the minute that they end, null where it can't be told."""
    if waited is None or points.is_empty():
        return points.with_columns(pl.lit(None, dtype=t).alias(n) for n, t in FACTS.items())
    mine = rows.select("window", *SPACE, *ENDS, "side", "subject")
    told = waited.join(mine, on=["window", *SPACE, *ENDS, "side"], nulls_equal=True)
    return points.join(backoffs(told, many), on=["window", *WHO], how="left")


def compared(before: Past, points: pl.DataFrame) -> pl.DataFrame:
    """Points (window, WHO) with what their edge did in the hour before their minute, and the layers that multiply it.

    calm_share, calm_wanted (first attempts a minute that has any row), calm_goodput: of the block with the lowest share
    of retries, null where no block has LEAST_ATTEMPTS. surge: first attempts of the minute with most of them; led: of
    those since success fell, and LEADS minutes before.
    """
    at = points.join(before.subjects, on=WHO, how="left", maintain_order="left")
    minutes = [before.over(at, us + MINUTE_US, us) for us in range(MINUTE_US, MINUTE_US + HOUR_US, MINUTE_US)]
    calm, calm_share = dict.fromkeys((*before.totals, "minutes"), np.ones(len(at), np.int64)), np.full(len(at), np.inf)
    for since in range(0, len(minutes), BLOCK):
        some = minutes[since : since + BLOCK]
        block = {n: sum(m[n] for m in some) for n in before.totals}
        block["minutes"] = sum((m["attempts"] > 0).astype(np.int64) for m in some)
        many = block["attempts"] >= LEAST_ATTEMPTS
        share = np.where(many, block["retries"] / np.maximum(block["attempts"], 1), np.inf)
        calm = {n: np.where(share < calm_share, block[n], calm[n]) for n in calm}
        calm_share = np.minimum(calm_share, share)
    known, goodput = pl.Series(np.isfinite(calm_share)), calm["ok"] / np.maximum(calm["attempts"], 1)
    surge, led, since_fell = (np.zeros(len(at), np.int64) for _ in range(3))
    for minute in minutes:
        wanted = minute["attempts"] - minute["retries"]
        fell = (since_fell == 0) & (2 * minute["ok"] <= minute["attempts"] * goodput)
        since_fell = np.where(fell, 0, since_fell + 1)
        surge, led = np.maximum(surge, wanted), np.maximum(led, np.where(since_fell <= LEADS, wanted, 0))
    found = {
        "calm_share": calm_share,
        "calm_wanted": (calm["attempts"] - calm["retries"]) / calm["minutes"],
        "calm_goodput": goodput,
    }
    told = points.with_columns(pl.when(known).then(pl.Series(v)).alias(n) for n, v in found.items())
    return told.with_columns(pl.Series("surge", surge), pl.Series("led", led), *layers(before, at))


def layers(before: Past, at: pl.DataFrame) -> list[pl.Series]:
    """(layers, through) of each point: the product of the loads from the edge up to its furthest caller that multiplies
    its own calls in that minute, too, and the services on the way. At each step the caller with the most retries, where
    those who call the service multiply all that they want of it."""
    point = {"point": pl.int_range(pl.len()), "through": pl.concat_list("caller", "service_name")}
    way = at.select("window", *SPACE, "number", top="caller", **point)
    way = way.with_columns(_sums(before, way)).with_columns(layers=LOAD)
    ends = [way]
    for _ in range(LAYERS - 1):
        up = before.subjects.select(*SPACE, "number", top="caller", service="service_name", at="subject")
        way = way.select("window", *SPACE, "point", "through", "layers", "top")
        way = way.join(up, left_on=[*SPACE, "top"], right_on=[*SPACE, "service"], suffix="_up")
        way = way.with_columns(_sums(before, way))
        of_all = col("attempts").sum() / (col("attempts") - col("retries")).sum()
        way = way.filter(LOAD >= MULTIPLIES, of_all.over("point") >= MULTIPLIES)
        way = way.filter(~col("through").list.contains(col("top_up")).fill_null(False))
        way = way.sort("point", "retries", "at", descending=[False, True, False]).unique("point", keep="first")
        way = way.select(
            *("window", *SPACE, "number", "point"),
            top="top_up",
            through=pl.concat_list(pl.concat_list("top_up"), "through"),
            layers=col("layers") * LOAD,
        )
        ends.append(way)
    last = pl.concat(e.select("point", "through", "layers") for e in ends).unique("point", keep="last")
    last = last.sort("point")
    return [last["layers"], last["through"].list.eval(pl.element().fill_null(UNTOLD))]


def _sums(before: Past, at: pl.DataFrame) -> list[pl.Series]:
    sums = before.over(at, MINUTE_US, 0)
    return [pl.Series(n, sums[n]) for n in ("attempts", "retries")]


retry_storm = Detector(
    name=NAME,
    reads=CALLS,
    also=(REPEATS, BACKOFFS),
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
        ("request_id", "how long callers wait before they retry is unknown"),
        ("caller", "all callers of a service are one"),
    ),
)
