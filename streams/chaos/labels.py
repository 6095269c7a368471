"""A tape and its plan enter, labels leave: what must be found in it, where it begins, and how its rows must add up.

Labels are counted from the rows by the definitions of the product, not by its code: the first row that counts is the
earliest one inside the span that first crossed the warning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from detectors.windows import AHEAD_US, LATENESS_US, OLD_US, SECOND_US, WINDOW_US, event_time
from streams.chaos.plan import Faults, Plan
from streams.chaos.topology import COLLECTOR, NODES, NONE, Bools, Ints

Parts = Mapping[str, list[pl.DataFrame]]
Garbage = Mapping[str, list[tuple[int, bytes]]]  # by file stem: (record number, line)
Values = npt.NDArray[np.floating[Any]]
MINUTE_WINDOWS = 6


def rfc3339(us: int) -> str:
    return datetime.fromtimestamp(us // SECOND_US, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{us % SECOND_US:06d}Z"


def labels(plan: Plan, tape: Parts, garbage: Garbage) -> dict[str, Any]:
    rows = {s: pl.concat(parts).with_columns(t=event_time(s)) for s, parts in tape.items()}
    faults = _faults(plan, plan.faults, rows, tape, garbage) if plan.faults else []
    allowed = [
        {"detector": "idempotency_cache", "kind": None, "subject": "payment", "max_level": "warn"},
        {"detector": "duplicate_key", "kind": "concurrent", "subject": "payment", "max_level": "warn"},
    ]
    return {
        "hour": {"start": rfc3339(plan.start_us), "end": rfc3339(plan.end_us), "calm": plan.faults is None},
        "faults": faults,
        "allowed": allowed if faults else [],
        "totals": totals(rows, sum(map(len, garbage.values()))),
        "truth": _clock_truth(plan),
    }


def totals(rows: Mapping[str, pl.DataFrame], rejected: int) -> dict[str, int]:
    delay = pl.concat(f.select(pl.col("arrival").cast(pl.Int64) - pl.col("t")) for f in rows.values()).to_series()
    implausible = int(((delay < -AHEAD_US) | (delay > OLD_US)).sum())
    late = int(((delay > LATENESS_US) & (delay <= OLD_US)).sum())
    used = len(delay) - late - implausible
    read = len(delay) + rejected
    return {"read": read, "used": used, "late": late, "implausible": implausible, "rejected": rejected}


def _clock_truth(plan: Plan) -> dict[str, dict[str, int]]:
    node = np.arange(COLLECTOR + 1)
    at = [plan.clocks.offset(node, np.full(len(node), t)).tolist() for t in (plan.start_us, plan.end_us)]
    names = [*NODES, "collector"]
    return {n: {"start_us": a, "end_us": b} for n, a, b in zip(names, *at, strict=True)}


def _label(
    detector: str, kind: str | None, subject_kind: str, subject: str, level: str, first_us: int, **more: Any
) -> dict[str, Any]:
    what = {"detector": detector, "kind": kind, "subject_kind": subject_kind, "subject": subject, "level": level}
    unknown = {"count": None, "value": None, "tolerance": None, "keys": None}
    return what | {"onset_first_row": rfc3339(first_us)} | unknown | more


def _faults(
    plan: Plan, f: Faults, rows: Mapping[str, pl.DataFrame], tape: Parts, garbage: Garbage
) -> list[dict[str, Any]]:
    step_us = plan.start_us + f.step_at_us
    return [
        _skew(rows, f.step_node, f.step_us, step_us, "page"),
        _skew(rows, f.ahead_node, f.ahead_us, plan.start_us, "warn"),
        _dated(f, rows),
        *_storm(rows["requests"]),
        _doubled(rows["requests"], tape["requests"], garbage),
        _conflicts(rows["write_log"], "order", "cart", "page"),
        _conflicts(rows["write_log"], "user", "profile", "warn"),
    ]


def _skew(rows: Mapping[str, pl.DataFrame], node: str, ahead_us: int, since_us: int, level: str) -> dict[str, Any]:
    """The first line that the node stamped by its wrong clock. A fact shows the offset less a delay ≥ 0.12 ms."""
    stamps = {"requests": "timestamp", "heartbeats": "client_time", "write_log": "timestamp"}
    wrong = [
        rows[s].filter(pl.col("node_id") == node, pl.col(c).cast(pl.Int64) >= since_us + ahead_us - 1_000)["t"].min()
        for s, c in stamps.items()
    ]
    first = min(t for t in wrong if isinstance(t, int))
    return _label("clock_skew", None, "node", node, level, first, value=ahead_us / 1_000, tolerance=2.0)


def _dated(f: Faults, rows: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
    """Its onset is an arrival: a stamp that can't be true says nothing. Page above 1 % of ≥ 1,000 rows of the hour."""
    own = pl.concat(
        rows[s].filter(pl.col("node_id") == f.dated_node).select(a=pl.col("arrival").cast(pl.Int64), t="t")
        for s in ("requests", "heartbeats", "write_log")
    ).sort("a")
    bad = own["t"] - own["a"] > AHEAD_US
    seen = np.arange(1, len(own) + 1)
    many = (seen >= 1_000) & (bad.cum_sum().to_numpy() > 0.01 * seen)
    first = int(own["a"].filter(bad)[0])
    level = "page" if many.any() else "warn"
    return _label("impossible_timestamp", "ahead", "node", f.dated_node, level, first, count=int(bad.sum()))


@dataclass(frozen=True)
class Minute:
    """Sums over the trailing minute at every window of 10 s."""

    window: Ints
    every: Ints
    bad: Ints


def _trailing_minute(t: Ints, bad: Bools) -> Minute:
    index = t // WINDOW_US
    base, n = index.min(), int(index.max() - index.min()) + 1
    window = (np.arange(n) + base) * WINDOW_US
    sums = [np.convolve(np.bincount(index[m] - base, minlength=n), np.ones(MINUTE_WINDOWS, np.int64))[:n] for m in
            (np.ones(len(t), np.bool_), bad)]  # fmt: skip
    return Minute(window, sums[0], sums[1])


def _statistical(
    names: tuple[str, str, str],
    t: Ints,
    bad: Bools,
    value: Callable[[Minute], Values],
    warn: float,
    page: float,
) -> list[dict[str, Any]]:
    """Nothing, if the scale of the hour keeps it under its warning."""
    minute = _trailing_minute(t, bad)
    values = np.where(minute.every >= 50, value(minute), 0.0)
    if not (values > warn).any():
        return []
    crossed = int(minute.window[np.argmax(values > warn)])
    inside = t[bad & (t >= crossed - (MINUTE_WINDOWS - 1) * WINDOW_US)]
    peak = float(values.max())
    level = "page" if peak > page else "warn"
    detector, subject_kind, subject = names
    about = {"value": round(peak, 4), "tolerance": round(0.02 * peak, 4)}
    return [_label(detector, None, subject_kind, subject, level, int(inside.min()), **about)]


def _storm(requests: pl.DataFrame) -> list[dict[str, Any]]:
    delay = pl.col("arrival").cast(pl.Int64) - pl.col("t")
    calls = requests.filter(
        pl.col("caller") == "gateway", pl.col("service_name") == "payment", pl.col("side") == "client",
        delay <= LATENESS_US,
    ).sort("t")  # fmt: skip
    t = calls["t"].to_numpy()
    retry, timeout = (calls["retry_count"] > 0).to_numpy(), (calls["status"] == "timeout").to_numpy()
    used_up = (calls["duration_ms"] > 0.8 * calls["timeout_ms"]).to_numpy()
    edge = ("edge", "gateway->payment")
    budget = _statistical(
        ("timeout_budget", "service", "payment"), t, used_up, lambda m: 100.0 * (m.bad > 0.01 * m.every), 80, 95
    )
    return [
        *_statistical(("retry_storm", *edge), t, retry, lambda m: m.bad * (m.bad > 0.05 * m.every) * 1.0, 100, 500),
        *_statistical(("timeout_ratio", *edge), t, timeout, lambda m: m.bad / np.maximum(m.every, 1), 0.05, 0.10),
        *budget,
        *(_label("timeout_cascade", "timed_out", "service", "gateway", "warn", int(first)) for first in t[timeout][:1]),
    ]


def _doubled(requests: pl.DataFrame, parts: list[pl.DataFrame], garbage: Garbage) -> dict[str, Any]:
    """keys: each doubled key with the file and record number of its lines, both sides of both attempts."""
    server = requests.filter(pl.col("doubled"), pl.col("side") == "server")
    second = server.group_by("idempotency_key").agg(pl.col("t").max())
    records: dict[str, list[list[Any]]] = {k: [] for k in sorted(second["idempotency_key"])}
    for p, part in enumerate(parts):
        stem = f"requests-{p}"
        taken = [n for n, _ in garbage.get(stem, [])]
        for row, key in part.with_row_index("row").filter("doubled").select("row", "idempotency_key").iter_rows():
            number = row
            for n in taken:  # ascending: each garbage line at or before it moves it by one
                number += n <= number
            records[key].append([stem, number])
    first = int(second["t"].min())  # type: ignore[arg-type]
    about = {"count": len(records), "keys": records}
    return _label("duplicate_key", "applied_twice", "service", "payment", "page", first, **about)


def _conflicts(writes: pl.DataFrame, entity_type: str, entity_id: str, level: str) -> dict[str, Any]:
    """The finding can begin only when the second write of a group is there."""
    own = writes.filter(pl.col("entity_type") == entity_type, pl.col("entity_id") == entity_id, pl.col("group") != NONE)
    second = own.group_by("group").agg(pl.col("t").bottom_k(2).max())
    first = int(second["t"].min())  # type: ignore[arg-type]
    name = f"{entity_type}/{entity_id}"
    return _label("concurrent_writers", None, "entity", name, level, first, count=len(own))
