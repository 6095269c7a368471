"""A node that sent heartbeats is silent and did not say goodbye.

Formula: silence / interval at the end of each window of 10 s, by arrival. interval: the median of a node's last 30 gaps
(from window to window: time between last beats / beats) within the past hour, of one observer; with fewer than 5 it is
not known yet. With several observers the one that the node is least silent to decides. Warn above 3, page above 10
intervals. A node whose last word was a goodbye (role `leaving`) is not lost; nor is anything that would have come after
the recording's end. Unknown: arrivals are not recorded; beats are sampled; the observer heard nobody since the
second beat was due (then it may be the observer); the silence lasts for so long that the past hour has fewer gaps.
Facts: interval_s, silence_s, observer.
False alarms: a shipper that holds beats back for more than three intervals; nodes taken away without a goodbye.
Misses: a node that hangs while its heartbeat thread goes on; all nodes of one observer at once; beats every ten minutes
or less.
Use it for nodes; a service that answers no calls while its nodes beat is found by timeout_ratio.
Source: N. Hayashibara et al., "The φ accrual failure detector", SRDS 2004; the operators' playbook, 4.1.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from polars import col

from detectors.detector import Detector, Threshold, View
from detectors.table import SPACE, Ints, coded
from detectors.tables.beats import BEATS
from detectors.windows import HOUR_US, MINUTE_US, NEVER, S_PER_US, WINDOW_US, window_of, windows

NODE = [*SPACE, "node_id", "window"]
LINK = [*SPACE, "node_id", "observer"]
OBSERVER = [*SPACE, "observer"]
GAPS_KEPT, GAPS_NEEDED = 30, 5
OVERDUE = 2  # intervals: an observer that heard nobody since then may be the one that is at fault
LINK_SPAN = 2**40  # more than there are windows
NO_GAP = 2**62
BLOCK = 2**14  # medians that are looked for at once: of a million nodes all their gaps fill no memory
LAST_WORD = pl.when(col("goodbye_us") == col("last_us")).then("goodbye_us")


def assess(view: View) -> pl.DataFrame:
    links = _links(view).with_columns(
        intervals=pl.when(col("interval_us") > 0).then(col("silence_us") / col("interval_us")),
        said_goodbye=(col("last_us") <= col("goodbye_us").max().over(NODE)).fill_null(False),
    )
    overdue_us = OVERDUE * col("interval_us")
    deaf = (col("silence_us") > overdue_us) & (col("observer_last_us") <= col("last_us") + overdue_us)
    blind = (col("told") == 0) | (col("sampled") > 0)
    unknown = (blind | deaf | col("intervals").is_null()) & ~col("said_goodbye")
    value = pl.when(col("unknown") | col("said_goodbye")).then(0.0).otherwise("intervals")
    missed = value.floor().cast(pl.Int64)
    missed_before = col("silence_before_us") // col("interval_us")
    return (
        links.with_columns(unknown=unknown)
        .with_columns(value=value)
        .sort(*NODE, "unknown", "said_goodbye", "value", "observer")
        .unique(NODE, keep="first", maintain_order=True)
        .select(
            "window",
            *SPACE,
            "value",
            "unknown",
            "observer",
            subject="node_id",
            first=window_of(col("last_us")),
            total=missed,
            fresh=(missed - missed_before).fill_null(0).clip(0),
            proof=pl.concat_list("proof"),
            interval_s=col("interval_us") * S_PER_US,
            silence_s=col("silence_us") * S_PER_US,
        )
        .with_columns(col(*SPACE, "subject", "observer").cast(pl.String))
    )


def _links(view: View) -> pl.DataFrame:
    """What was heard of each link (node, observer), at the windows of the view where that may be news.

    These are all from a beat on until too few gaps of the past hour are left to know an interval by: nothing changes
    then, until the next beat. A goodbye stands beside what is news of the node's other links for an hour; when that is
    over, what the other links know is news.
    goodbye_us: null unless it was the last word.
    """
    rows = coded(view.rows, LINK).sort(*LINK, "window")
    link = rows.select(pl.struct(LINK).rle_id().cast(pl.Int64)).to_series().to_numpy()
    index, hour = rows["window"].to_numpy() // WINDOW_US, windows(HOUR_US)
    place = link * LINK_SPAN + index
    needed = np.concatenate([np.full(GAPS_NEEDED, -LINK_SPAN), place])[: len(place)]  # the oldest row still needed
    informed = np.maximum(needed + hour, place) + 1
    known = np.minimum(np.append(place[1:], NEVER), place + hour + 1)
    speaks, spoken_for = _goodbyes(rows)
    end = np.where(spoken_for, known, np.minimum(known, informed)) - link * LINK_SPAN
    begin = np.maximum(index, view.lo // WINDOW_US)
    count = np.maximum(np.minimum(end, view.to // WINDOW_US) - begin, 0)
    last = np.repeat(np.arange(len(rows)), count)
    at = np.arange(len(last)) - np.repeat(np.cumsum(count) - count - begin, count)
    first = np.searchsorted(place, link[last] * LINK_SPAN + at - hour + 1)
    last_us = rows["last_us"].to_numpy()[last]
    silence, before = (np.maximum(np.minimum(end * WINDOW_US, view.heard_us) - last_us, 0) for end in (at + 1, at))
    points = rows.select(*LINK, "last_us", "told", "sampled", "proof", goodbye_us=LAST_WORD)[last]
    points = points.with_columns(
        window=pl.Series(at * WINDOW_US, dtype=pl.Int64),
        silence_us=pl.Series(silence),
        silence_before_us=pl.Series(before),
        interval_us=_interval_us(rows, first, last),
    )
    news = at < (informed - link * LINK_SPAN)[last]
    if not news.all():  # else, as in a fleet with one observer, it would cost as much as all the rest
        forgotten = rows.filter(speaks).select(*NODE[:-1], col("window") + HOUR_US + WINDOW_US).unique()
        points = (
            points.with_columns(news=pl.Series(news), speaks=pl.Series(speaks[last]))
            .join(forgotten.with_columns(over=pl.lit(True)), on=NODE, how="left")
            .filter((col("news").any().over(NODE) & (col("news") | col("speaks"))) | col("over"))
            .drop("news", "speaks", "over")
        )
    heard = rows.group_by(*OBSERVER, "window").agg(observer_last_us=col("last_us").max()).sort("window")
    heard = heard.with_columns(col("observer_last_us").cum_max().over(OBSERVER))
    return points.sort("window").join_asof(heard, on="window", by=OBSERVER, check_sortedness=False)


def _goodbyes(rows: pl.DataFrame) -> tuple[np.typing.NDArray[np.bool_], np.typing.NDArray[np.bool_]]:
    """Where a goodbye may matter to what another observer says of the node; where the node has one that does."""
    node = (*SPACE, "node_id")
    speaks = LAST_WORD.is_not_null() & (col("observer").n_unique().over(node) > 1)
    both = (
        rows.select(speaks=speaks).with_columns(rows.select(node)).select("speaks", of=col("speaks").any().over(node))
    )
    return both["speaks"].to_numpy(), both["of"].to_numpy()


def _interval_us(rows: pl.DataFrame, first: Ints, last: Ints) -> pl.Series:
    """The median gap between the rows first .. last of one link, of the last ones if there are many; null for few."""
    gap = rows["last_us"].diff().fill_null(0).to_numpy() // rows["beats"].to_numpy()
    many = np.minimum(last - first, GAPS_KEPT)
    some, of_point = np.unique(np.where(many >= GAPS_NEEDED, last * (GAPS_KEPT + 1) + many, -1), return_inverse=True)
    until, size = some // (GAPS_KEPT + 1), some % (GAPS_KEPT + 1)
    median = np.empty(len(some), np.int64)
    for i in range(0, len(some), BLOCK):
        median[i : i + BLOCK] = _medians(gap, until[i : i + BLOCK], size[i : i + BLOCK])
    return pl.select(pl.when(pl.Series(some) >= 0).then(pl.Series(median))).to_series().gather(of_point)


def _medians(gap: Ints, until: Ints, size: Ints) -> Ints:
    """Of so many gaps that end with each of these; the lower of two in the middle."""
    at = until[:, None] - np.arange(GAPS_KEPT)
    gaps = np.sort(np.where(at > (until - size)[:, None], gap[np.maximum(at, 0)], NO_GAP), axis=1)
    medians: Ints = gaps[np.arange(len(size)), np.maximum(size - 1, 0) // 2]
    return medians


heartbeat_loss = Detector(
    name="heartbeat_loss",
    reads=BEATS,
    assess=assess,
    subject_kind="node",
    unknown_when=f"fewer than {GAPS_NEEDED} gaps known, no arrivals recorded, or its observer heard nobody",
    thresholds=(
        Threshold("warn_intervals", "warn", 3, "intervals", 0, 1e6),
        Threshold("page_intervals", "page", 10, "intervals", 0, 1e6),
    ),
    unit="intervals",
    past_us=HOUR_US + WINDOW_US,
    reach_us=10 * MINUTE_US,
    needs=("arrival",),
)
