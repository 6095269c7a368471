"""How long retries waited enters, what course these waits take and whether they are spread leaves, minute by minute.

Definitions: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. A course is told of medians, so
that full jitter (a wait anywhere from 0 to what the backoff allows) takes the course of what it allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import polars as pl
from polars import col

from detectors.past import WHO
from detectors.tables.backoffs import middle
from detectors.windows import MINUTE_US, WINDOW_US

LEAST = 10  # retries of one retry_count
IMMEDIATE_US = 10_000
GROWS = 1.2  # times the wait before
SPREAD_PCT, TICK_US = 125, 2_000  # the long waits by the short ones, and what timers and rounding differ by anyway
FITS = 0.5  # how far a course is off, by how far the other is

FACTS: dict[str, pl.DataType] = {"backoff": pl.String(), "jitter": pl.Boolean(), "waits_ms": pl.List(pl.Int64())}


def backoffs(waited: pl.DataFrame, minutes: pl.DataFrame) -> pl.DataFrame:
    """FACTS of each minute (the window that ends it, WHO, retries) of which half the retries can be told the wait of.

    waited: the table backoffs with WHO.
    """
    at = minutes.select(*WHO, "retries", ends="window")
    ago = [at.with_columns(window=col("ends") - us) for us in range(0, MINUTE_US, WINDOW_US)]
    key = ["ends", *WHO, "retry_count"]
    mine = pl.concat(ago).join(waited, on=["window", *WHO], suffix="_told")
    known = mine.group_by(*key, "waited_us").agg(col("retries").first(), told=col("retries_told").sum())
    so_far = known.sort(*key, "waited_us").with_columns(
        far=col("told").cum_sum().over(key), of=col("told").sum().over(key)
    )
    numbers = (
        so_far.group_by(key)
        .agg(
            col("retries").first(),
            col("of").first(),
            *(col("waited_us").filter(col("far") * 10 >= col("of") * n).min().alias(f"tenths_{n}") for n in (1, 5, 9)),
        )
        .sort(key)
    )
    spread = col("tenths_9") * 100 > col("tenths_1") * SPREAD_PCT + TICK_US * 100
    each = numbers.group_by("ends", *WHO, maintain_order=True).agg(
        waits_us=col("tenths_5").filter(col("of") >= LEAST),
        jitter=spread.sort_by("of", descending=True, maintain_order=True).first(),
        told=col("of").sum(),
        retries=col("retries").first(),
    )
    some = each.filter(col("waits_us").list.len() > 0, 2 * col("told") >= col("retries"))
    waits = [[middle(us) for us in of] for of in some["waits_us"].to_list()]
    courses = pl.Series("backoff", map(course, waits), dtype=pl.String)
    waits_ms = pl.Series("waits_ms", [[_told_ms(us) for us in of] for of in waits], dtype=pl.List(pl.Int64))
    return some.select(*WHO, courses, "jitter", waits_ms, window="ends")


def _told_ms(us: int) -> int:
    """In two digits, which is what is known of it."""
    return round(float(f"{us / 1000:.2g}"))


def course(waits_us: Sequence[int]) -> str | None:
    """Of the median waits before the first, second, … retry; None where they tell none."""
    paused = [w for w in waits_us if w > IMMEDIATE_US]
    if not paused:
        return "immediate"
    if len(paused) == 1:
        return None
    if max(paused) <= GROWS * min(paused):
        return "fixed"
    grown = next((i for i, (a, b) in enumerate(pairwise(paused), 1) if b <= GROWS * a), len(paused))
    rising, cap = paused[:grown], paused[grown - 1 :]
    if grown == 1 or max(cap) > GROWS * min(cap):
        return None
    even = [rising[0] + (rising[-1] - rising[0]) * i / (grown - 1) for i in range(grown)]
    doubling = [rising[0] * (rising[-1] / rising[0]) ** (i / (grown - 1)) for i in range(grown)]
    off = {"linear": _off(rising, even), "exponential": _off(rising, doubling)}
    best = min(off, key=off.__getitem__)
    return best if off[best] < FITS * max(off.values()) else "growing"


def _off(waits_us: Sequence[int], course_us: Sequence[float]) -> float:
    return sum(abs(math.log(w / c)) for w, c in zip(waits_us, course_us, strict=True))
