"""Share of look-ups of known keys that the idempotency cache of a service missed, over the last five minutes.

Formula: misses / look-ups of keys that were used before, within the service's TTL (24 h unless settings name one), and
whose earlier call was neither rejected nor failed nor cancelled: there a cache has something to forget. A first use
always misses and does not count. A look-up while the first use still runs counts as the miss that it is. Once there
are 50 such look-ups; below that it is unknown. Warn above 20 %, page above 30 %. Server lines; client lines only of
services that have no others.
Facts: look-ups; flush: a step, above the page threshold although the ten minutes before these five were below half the
warning (somebody emptied the cache, or it restarted), rather than a cache that slowly became too small.
False alarms: a cache that keeps only successes where clients retry after timeouts that did fail; TTLs shorter than the
settings say. Misses: services that do not log hit or miss; keys that were used before the recording began.
Use duplicate_key for what a miss has done already.
Source: the operators' playbook, 4.1 (alert thresholds) and 4.5.
"""

import polars as pl
from polars import col

from detectors.detector import Detector, Threshold, View, trailing
from detectors.tables.calls import CALLS
from detectors.tables.keys import KEYS, one_line, ttl_us
from detectors.windows import MINUTE_US

NAME = "idempotency_cache"
OVER_US, BEFORE_US, LOOKBACK_US = 5 * MINUTE_US, 10 * MINUTE_US, 10 * MINUTE_US
LEAST_LOOKUPS = 50
WARN = Threshold("warn_ratio", "warn", 0.20, "ratio", 0, 1)
PAGE = Threshold("page_ratio", "page", 0.30, "ratio", 0, 1)


def assess(view: View) -> pl.DataFrame:
    known = col("cache").is_in(["hit", "miss"]) & (col("stored") > 0) & (col("gap_us") <= ttl_us(view.settings))
    miss = col("cache") == "miss"
    lookups = one_line(view.rows, col("line") == "server", view.also[CALLS.name], LOOKBACK_US).filter(known)
    rows = lookups.with_columns(
        misses=pl.when(miss).then("weight").otherwise(0),
        lookups="weight",
        rows=pl.lit(1, dtype=pl.Int64),
        proof=pl.when(miss).then("coord"),
    )
    sums = ("misses", "lookups", "rows")
    seen = trailing(view, rows, col("service_name"), sums, "misses", OVER_US, OVER_US + BEFORE_US)
    warn, page = (view.settings.threshold(NAME, t, "service") for t in (WARN, PAGE))
    calm_before = col("before_misses") < warn / 2 * col("before_lookups")  # and there were look-ups
    return (
        seen.with_columns(
            value=(col("misses") / col("lookups")).fill_nan(0.0),
            unknown=col("rows") < view.settings.number(NAME, "min_volume", LEAST_LOOKUPS, "service"),
        )
        .with_columns(flush=(col("value") > page) & calm_before)
        .select(pl.exclude("misses", "rows", "^before_.*$"))
    )


idempotency_cache = Detector(
    name=NAME,
    reads=KEYS,
    also=(CALLS,),
    assess=assess,
    subject_kind="service",
    unknown_when="fewer than idempotency_cache.min_volume look-ups of known keys in five minutes",
    thresholds=(WARN, PAGE),
    unit="ratio",
    numbers=("min_volume",),
    past_us=OVER_US + BEFORE_US + LOOKBACK_US,
    needs=("idempotency_key", "cache"),
)
