"""The one protocol: first copies, ranges, parts, and what a reader must never misread."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.live.numbered import Head, OtherProtocol, Ranges, Reader, messages, pack, unpack

LOHI = st.tuples(st.integers(0, 30), st.integers(0, 30))


def rows(*values: int) -> pl.DataFrame:
    return pl.DataFrame({"n": list(values)}, schema={"n": pl.Int64})


def said(producer: str, lo: int, hi: int, *values: int, limit: int = 10**6) -> list[tuple[bytes, bytes]]:
    head = Head(producer=producer, lo=lo, hi=hi, kind="rows" if values else "empty")
    return messages(head, pack({"t": rows(*values)}), limit)


def fed(reader: Reader, *some: tuple[bytes, bytes], at: int = 0) -> None:
    for offset, (key, value) in enumerate(some, at):
        reader.take(offset, key, value)


@given(st.lists(LOHI, max_size=12), LOHI)
def test_ranges_are_the_set_of_their_numbers(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    ranges, numbers = Ranges(added), {n for lo, hi in added for n in range(lo, hi)}
    lo, hi = asked
    assert {n for a, b in ranges.ranges for n in range(a, b)} == numbers
    assert all(b < c for (_, b), (c, _) in zip(ranges.ranges, ranges.ranges[1:], strict=False))
    assert {n for a, b in ranges.missing(lo, hi) for n in range(a, b)} == set(range(lo, hi)) - numbers
    assert ranges.upto(lo) == next(n for n in range(lo, 62) if n not in numbers)
    assert ranges.overlaps(lo, hi) == bool(numbers & set(range(lo, hi)))
    ranges.forget(lo)
    assert {n for a, b in ranges.ranges for n in range(a, b)} == {n for n in numbers if n >= lo}


@given(st.integers(1, 40), st.permutations(range(6)))
def test_a_body_in_parts_is_whole_whatever_their_order(limit: int, order: list[int]) -> None:
    parts = said("a", 0, 1, *range(50), limit=max(limit * 20, 1))
    mixed = [parts[i] for i in order if i < len(parts)] + parts[6:]
    reader = Reader(["a"])
    fed(reader, *mixed[:-1])
    assert (reader.upto(0) == 1) == (len(parts) == 0)
    assert reader.restart(99) == (0 if len(parts) > 1 else 99)
    fed(reader, mixed[-1], at=len(mixed) - 1)
    (taken,) = reader.below(1)
    assert taken.frames["t"].equals(rows(*range(50)))


def test_parts_of_two_copies_that_are_packed_otherwise_are_never_mixed() -> None:
    frame = rows(*range(50))
    body, head = pack({"t": frame}), Head(producer="a", lo=0, hi=1, kind="rows")
    whole, other = messages(head, body, 60), messages(head, bytes(b ^ 1 for b in body), 60)
    assert len(whole) == len(other) > 2
    reader = Reader(["a"])
    fed(reader, other[0], *whole[1:])
    assert reader.upto(0) == 0
    fed(reader, whole[0], at=9)
    (taken,) = reader.below(1)
    assert taken.frames["t"].equals(frame)


def test_a_number_counts_once_and_is_acted_upon_when_everybody_has_said_it() -> None:
    reader = Reader(["a", "b"])
    fed(reader, *said("a", 0, 3, 7), *said("a", 0, 3, 7), *said("a", 3, 9))
    assert reader.copies == 1 and reader.unequal == 0
    assert reader.first() is None and reader.upto(0) == 0
    fed(reader, *said("b", 0, 5), at=3)
    assert reader.upto(0) == 5
    assert [(t.producer, t.number) for t in reader.below(5)] == [("a", 2)]
    assert reader.below(5) == []


def test_a_copy_cut_otherwise_is_equal_and_one_that_says_something_else_is_counted() -> None:
    reader = Reader(["a"])
    fed(reader, *said("a", 0, 3, 7), *said("a", 3, 4, 8))
    fed(reader, *said("a", 0, 2), *said("a", 2, 3, 7), *said("a", 3, 4, 8))
    assert (reader.copies, reader.unequal) == (3, 0)
    fed(reader, *said("a", 2, 3, 9))
    fed(reader, *said("a", 0, 4))
    assert (reader.copies, reader.unequal) == (5, 2)


def test_what_is_lost_is_known_as_such() -> None:
    reader = Reader(["a"])
    fed(reader, *messages(Head(producer="a", lo=0, hi=5, kind="lost")), *said("a", 5, 6, 1))
    assert reader.upto(0) == 6
    assert reader.is_lost(4, 5) and not reader.is_lost(5, 6)


def test_what_is_still_needed_is_read_again_after_a_restart() -> None:
    reader = Reader(["a"])
    fed(reader, *(m for n in range(10) for m in said("a", n, n + 1, n)), at=100)
    assert reader.restart(110) == 100
    reader.below(10)
    reader.forget(7)
    assert reader.restart(110) == 107
    fed(reader, *said("a", 3, 4, 3))  # a zombie: of no use any more
    assert reader.copies == 1 and reader.below(10) == []


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (b'{"protocol":1,"producer":"a"}', "written by protocol 1, this version reads 5"),
        (b"garbage", "no asynchealth wrote"),
        (None, "no asynchealth wrote"),
        (messages(Head(producer="z", lo=0, hi=1, kind="empty"))[0][0], "producer 'z' is none of this epoch's 1"),
    ],
)
def test_what_another_version_wrote_is_refused_and_never_misread(key: bytes | None, why: str) -> None:
    with pytest.raises(OtherProtocol, match=why):
        Reader(["a"]).take(0, key, b"")


def test_nothing_packs_to_nothing() -> None:
    assert pack({"t": rows()}) == b""
    assert unpack(b"") == {}
