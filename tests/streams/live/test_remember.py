"""What a queue kept for a day, read again by a successor: all that was committed, once, and nothing else."""

from __future__ import annotations

import polars as pl

from detectors.windows import HOUR_US, WINDOW_US
from streams.live.numbered import Head, messages, pack
from streams.live.remember import Recall, spans_us
from tests.harness import Memory, everything

TABLES, _ = everything()
PLACE = ("keys", 0)
DAY = 24 * HOUR_US // WINDOW_US  # in windows


def said(lo: int, hi: int, hashes: list[int]) -> list[tuple[bytes, bytes]]:
    rows = pl.DataFrame({"window": [(hi - 1) * WINDOW_US] * len(hashes), "hash": pl.Series(hashes, dtype=pl.UInt64)})
    head = Head(producer="0", lo=lo, hi=hi, kind="rows" if hashes else "empty")
    return messages(head, pack({"keys/0": rows}))


def recalled(next_: int, *log: list[tuple[bytes, bytes]]) -> list[int]:
    recall = Recall(0, next_, TABLES, Memory())
    for offset, message in enumerate(m for said_at_once in log for m in said_at_once):
        recall.feed([(offset, *message)])
    assert recall.forgotten().ranges == []
    hashes = pl.Series("hash", range(10), dtype=pl.UInt64)
    seen = recall.horizon.seen(PLACE, hashes, 0)
    return sorted(seen["hash"].to_list()) if seen is not None else []


def test_only_what_looks_back_further_than_the_hour_is_kept() -> None:
    assert spans_us(TABLES)[PLACE] == 24 * HOUR_US
    assert all(back_us > HOUR_US for back_us in spans_us(TABLES).values())


def test_what_was_said_and_not_committed_is_left_to_be_said_again() -> None:
    assert recalled(20, said(0, 10, [1]), said(10, 20, [2]), said(20, 30, [3])) == [1, 2]


def test_copies_count_once() -> None:
    assert recalled(20, said(0, 10, [1]), said(0, 10, [1]), said(10, 20, [2])) == [1, 2]


def test_what_lies_further_back_than_a_row_may_look_is_not_needed() -> None:
    assert recalled(DAY + 100, said(50, 101, [1]), said(101, DAY + 100, [2])) == [1, 2]
    assert recalled(DAY + 101, said(50, 101, [1]), said(101, DAY + 101, [2])) == [2]


def test_a_missing_window_is_said() -> None:
    recall = Recall(0, 30, TABLES, Memory())
    recall.feed((i, *message) for i, message in enumerate([*said(0, 10, [1]), *said(20, 30, [3])]))
    assert recall.forgotten().ranges == [(10, 20)]
