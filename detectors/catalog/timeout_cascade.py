"""The hop of a trace that used its time up, where an attempt timed out or the whole took longer than a given budget.

Formula: traces of the last six windows of 10 s, by the service they enter, as told by the latest of their lines; one
whose first line is not there is waited for, a minute. Kinds:
- timed_out: an attempt in it has status timeout. Certain. depth counts timed-out attempts that lie in one another; warn
  at any, page where they are three hops deep or more (above 2);
- over_budget: none has, its root names no timeout, and it took longer than `budget_ms` (100 ms or more; none is given
  unless set). Possible, so it never pages. It counts only if one hop's median attempt takes more than a quarter of the
  budget: many short calls are slow as well, and none of them is the one to repair.
The longest hop is the edge with the most time of its own: the time of its attempts on the critical path, network
included, that no call further down explains. The service that waits is not the one that is slow.
Facts: longest, elapsed_ms (of it, in a trace that it was long in), hops and hops_ms (the longest four), depth,
inverted (traces in which a call had a longer timeout than its caller had left: its answer comes to nobody), typical_ms
(the median attempt of the longest hop), budget_ms.
False alarms: callers that time out on purpose (hedging, long polls); a budget that was never promised.
Misses: traces longer than a minute, or whose lines come more than 30 s late; traces of one line; sources without span
ids; a chatty loop of short calls; calls that nobody waits for look like time of their caller's.
Use timeout_ratio for how many attempts of an edge time out, timeout_budget for how near they come to it.
Source: Z. Zhang et al., "CRISP: Critical path analysis of large-scale microservice architectures", USENIX ATC 2022.
"""

from __future__ import annotations

import polars as pl
from polars import col

from detectors.detector import Detector, Threshold, View
from detectors.subjects import edge
from detectors.table import SPACE
from detectors.tables.traces import BACK_US, TRACES
from detectors.windows import MINUTE_US, MS_PER_US, WINDOW_US

NAME = "timeout_cascade"
WHO = [*SPACE, "subject"]
TRACE = [*SPACE, "trace_id"]
AT = ["window", *WHO]
NAMED = 4  # hops
WAITS_US = MINUTE_US
HOP = Threshold("hop_ratio", "both", 0.25, "of the budget", 0, 1, of="hop_ratio", kind="over_budget")


def assess(view: View) -> pl.DataFrame:
    rows = view.rows.rename({"root": "subject"})
    rows = _lasting(rows.with_columns(budget_us=view.settings.number(NAME, "budget_ms", 0, "service") * 1000))
    over = rows.filter(col("timeouts") == 0, col("budget_us") > 0, col("elapsed_us") > col("budget_us"))
    kinds = {"timed_out": rows.filter(col("timeouts") > 0), "over_budget": over}
    return pl.concat([_of_kind(view, some, kind) for kind, some in kinds.items()])


def _lasting(rows: pl.DataFrame) -> pl.DataFrame:
    """Each trace in every window in which it counts: for a minute from when it was told, or until it is told anew.

    What is told without its root waits a minute for it: callers end after those that they call.
    """
    told = rows.select(*TRACE, "rooted", told="window").unique().sort(*TRACE, "told")
    counts = told.with_columns(
        began=col("told") + pl.when("rooted").then(0).otherwise(WAITS_US), again=col("told").shift(-1).over(TRACE)
    ).with_columns(until=pl.min_horizontal("again", col("began") + MINUTE_US))
    some = counts.filter(col("began") < col("until")).with_columns(before=col("told").shift().over(TRACE))
    spans = some.select(
        *(*TRACE, "told", "began"),
        new=(col("told") - col("before") > BACK_US).fill_null(True),
        window=pl.int_ranges("began", "until", WINDOW_US),
    )
    return rows.rename({"window": "told"}).join(spans, on=[*TRACE, "told"]).explode("window")


def _of_kind(view: View, lasting: pl.DataFrame, kind: str) -> pl.DataFrame:
    now = col("window").is_between(view.lo, view.to, closed="left")
    hops = lasting.filter(now)
    ended = lasting.select(*WHO, window=col("began") + MINUTE_US).filter(now).unique()
    counted = (
        hops.filter("longest")
        .sort(*AT, -col("depth"), -col("elapsed_us"), "coord")
        .group_by(AT, maintain_order=True)
        .agg(
            first=col("told").min(),
            total=pl.len(),
            fresh=(col("new") & (col("began") == col("window"))).sum(),
            depth=col("depth").first(),
            inverted=col("inverted").sum(),
            proof=col("spans").first(),
            budget_ms=col("budget_us").first() * MS_PER_US,
        )
    )
    ended = ended.join(counted, on=AT, how="anti").with_columns(first="window", total=0, fresh=0)
    named = _longest(view, hops, kind)
    return (
        pl.concat([counted, ended], how="diagonal_relaxed")
        .join(named, on=AT, how="left")
        .select(
            *(*AT, "first", "total", "fresh", "proof", "longest", "elapsed_ms", "typical_ms", "hops", "hops_ms"),
            *("depth", "inverted", "hop_ratio"),
            kind=pl.lit(kind),
            value=col("total").cast(pl.Float64),
            certain=pl.lit(kind == "timed_out"),
            budget_ms=pl.when(pl.lit(kind == HOP.kind)).then("budget_ms"),
        )
    )


def _longest(view: View, hops: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Of each subject and window the hop with the most time of its own, and what others took.

    Without a timeout it is one whose median attempt takes more than its share of the budget, if there is any.
    """
    wanted, median = view.settings.threshold(NAME, HOP, "service"), col("typical_us").get((pl.len() - 1) // 2)
    over = (col("hop_ratio") > wanted) if kind == HOP.kind else pl.lit(True)
    every = (
        hops.filter(col("service_name").is_not_null())
        .with_columns(hop=edge())
        .sort(*AT, "hop", "typical_us")
        .group_by(*AT, "hop", maintain_order=True)
        .agg(
            spent=col("hop_us").sum(),
            elapsed_ms=col("hop_us").sum() / pl.len() * MS_PER_US,
            typical_ms=median * MS_PER_US,
            hop_ratio=pl.when(pl.lit(kind == HOP.kind)).then(median / col("budget_us").first()),
        )
    )
    return (
        every.with_columns(over=over)
        .sort(*AT, "over", "spent", "hop", descending=[*[False] * len(AT), True, True, False])
        .group_by(AT, maintain_order=True)
        .agg(
            *(col(n).first() for n in ("typical_ms", "hop_ratio")),
            longest=col("hop").first(),
            elapsed_ms=col("elapsed_ms").first(),
            hops=col("hop").head(NAMED),
            hops_ms=col("elapsed_ms").head(NAMED),
        )
    )


timeout_cascade = Detector(
    name=NAME,
    reads=TRACES,
    assess=assess,
    subject_kind="service",
    thresholds=(
        Threshold("warn_traces", "warn", 0, "traces/min", 0, 1e9),
        Threshold("page_traces", "page", 0, "traces/min", 0, 1e9),
        Threshold("page_hops", "page", 2, "hops", 0, 100, of="depth"),
        HOP,
    ),
    unit="traces/min",
    past_us=BACK_US + WAITS_US + MINUTE_US,
    numbers=("budget_ms",),
    needs=("trace_id", "span_id", "parent_span_id"),
    lacks=(
        ("status", "no attempt is known to have timed out: only traces over a budget that is set"),
        ("timeout_ms", "calls with a longer timeout than their callers had left are not seen"),
    ),
)
