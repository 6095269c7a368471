"""Landed rows with their bars enter; which of two moments came first, for certain or possibly, and by what, leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from string import ascii_lowercase

from detectors.clocks import MAX_DRIFT_PPM
from detectors.order import BEGAN, CALLED, DONE, RETURNED, Event, Order, Orders
from detectors.windows import SECOND_US
from streams.report.evidence import Row

ROUNDED_US = 1_000  # durations are logged in whole ms


def begun(row: Row) -> Event:
    """The moment of its stamp; one that can't be true tells nothing."""
    early, late = (None, None) if row["fate"] == "implausible" else row["bar"].ends_us
    if row["stream"] != "requests":
        return Event(early, late, row["bar"].reference, row.get("vector_clock") or None)
    stage = CALLED if row["side"] == "client" else BEGAN
    return Event(early, late, row["bar"].reference, attempt=attempt(row), stage=stage)


def over(row: Row) -> Event:
    """The moment at which a call was over: as long after its begin as its own clock measured."""
    took = row["duration_ms"] or 0
    error = ROUNDED_US + math.ceil(took * MAX_DRIFT_PPM / SECOND_US * 1_000)
    early, late = (None, None) if row["fate"] == "implausible" else row["bar"].ends_us
    gave_up = row["side"] == "client" and row["status"] == "timeout"
    return Event(
        None if early is None else early + took * 1_000 - error,
        None if late is None else late + took * 1_000 + error,
        row["bar"].reference,
        attempt=None if gave_up else attempt(row),
        stage=RETURNED if row["side"] == "client" else DONE,
    )


def attempt(row: Row) -> str:
    return f"{row['request_id'] or ''}#{row['retry_count'] or 0}"


def effects(first: Row, second: Row, others: Sequence[Row] = ()) -> Order:
    """What the first effect is to the second; others: lines of the same attempts, which may tell.

    Two effects of one attempt are told apart by their times alone: which of them a caller's line is of, nobody knows.
    """
    told = () if attempt(first) == attempt(second) else (first, second, *others)
    known = [over(first), over(second), *(f(r) for r in told if r["request_id"] for f in (begun, over))]
    return Orders(known).between(0, 1)


def writes(rows: Sequence[Row]) -> Iterator[str]:
    """Of rows as a screen letters them: what is known of neighbours that two nodes wrote on one base."""
    known = Orders([begun(r) for r in rows])
    names = [f"{c} ({r['node_id']})" for c, r in zip(ascii_lowercase, rows, strict=False)]
    for i, j in pairwise(range(len(names))):
        if rows[i]["node_id"] != rows[j]["node_id"] and rows[i]["base_version"] == rows[j]["base_version"]:
            yield told(names[i], names[j], known.between(i, j))


def told(a: str, b: str, is_: Order) -> str:
    """In one line."""
    match is_.relation:
        case "concurrent":
            return f"Neither {a} nor {b} knew of the other: {is_.certainty}, by {is_.why}"
        case "unknown":
            return f"Which of {a} and {b} came first is unknown: {is_.why}"
        case "after":
            return told(b, a, is_.turned())
    why = f"by {is_.why.removeprefix('by ')}" if is_.certainty == "certain" else is_.why
    return f"{a} came before {b}: {is_.certainty}, {why}"
