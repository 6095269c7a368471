"""One source partition: every record is counted once, what was promised away is a stray, what the log lost is said."""

from __future__ import annotations

from typing import Any

import msgspec
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from detectors.windows import SECOND_US, SLICE_US
from streams.live.numbered import Reader, unpack
from streams.live.reduce import COUNTS, EVENTS, Point, Reducer
from tests.harness import everything

T0_US = 1_769_414_400 * SECOND_US
TABLES, _ = everything("retry_storm")


def reducer(point: Point | None = None, log_start: int = 0) -> Reducer:
    return Reducer("requests", 0, TABLES, 2, point or Point(0), log_start)


def request(us: int, **more: Any) -> bytes:
    event = {"timestamp": us / 1e6, "service_name": "payment", "node_id": "payment-1", "caller": "gateway"}
    return msgspec.json.encode(event | more)


def events(r: Reducer, to: int) -> dict[int, dict[str, pl.DataFrame]]:
    reader = Reader([r.producer])
    for i, out in enumerate(o for o in r.say(to) if o.queue == EVENTS):
        reader.take(i, out.key, out.value)
    assert reader.upto(r.next) == to
    return {t.number: t.frames for t in reader.below(to)}


def counts(found: dict[int, dict[str, pl.DataFrame]]) -> dict[str, int]:
    total = pl.concat([f["accounting"] for f in found.values()]).sum().row(0, named=True)
    return {n: v for n, v in total.items() if v}


KINDS = st.sampled_from(["event", "two", "late", "ahead", "bad", "half", "garbage", "none", "null", "empty"])


def record(kind: str, us: int) -> bytes | None:
    good = request(us)
    return {
        "event": good,
        "two": b"[" + good + b"," + good + b"]",
        "late": request(us - 100 * SECOND_US),
        "ahead": request(us + 100 * SECOND_US),
        "bad": request(us, duration_ms=-1),
        "half": b"[" + good + b',{"a":1}]',
        "garbage": b"\xff{",
        "none": None,
        "null": b"null",
        "empty": b"[]",
    }[kind]


@given(st.lists(KINDS, min_size=1, max_size=40), st.integers(1, 7))
def test_every_record_and_every_event_is_counted_once(kinds: list[str], step: int) -> None:
    r = reducer()
    stamps = [T0_US + i * SECOND_US for i in range(len(kinds))]
    values = [record(k, us) for k, us in zip(kinds, stamps, strict=True)]
    for i in range(0, len(kinds), step):
        some = slice(i, i + step)
        r.feed(range(len(kinds))[some], stamps[some], values[some])
    found = events(r, stamps[-1] // SLICE_US + 1)
    said = dict.fromkeys(COUNTS, 0) | counts(found)
    of = kinds.count
    assert said["messages"] == len(kinds)
    assert said["tombstones"] == of("none") + of("null")
    assert said["used"] == of("event") + 2 * of("two") + of("half")
    assert (said["late"], said["implausible"]) == (of("late"), of("ahead"))
    assert said["rejected"] == of("bad") + of("half") + of("garbage")
    assert said["events"] == said["used"] + said["late"] + said["implausible"] + said["rejected"] + said["stray"]
    rows = [f["rows"] for f in found.values() if "rows" in f]
    assert sum(map(len, rows)) == said["used"] + said["late"] + said["implausible"]


def test_the_clock_of_a_partition_never_goes_back() -> None:
    r = reducer()
    r.feed([0, 1, 2], [T0_US, T0_US - 5 * SECOND_US, T0_US + SLICE_US], [request(T0_US)] * 3)
    (rows,) = [f["rows"] for f in events(r, r.closable()).values()]
    assert rows["arrival"].cast(pl.Int64).to_list() == [T0_US, T0_US]
    assert rows["stepped_us"].to_list() == [0, 5 * SECOND_US]


def test_what_lands_in_a_promised_slice_is_a_stray_in_no_table() -> None:
    r = reducer()
    r.feed([0], [T0_US], [request(T0_US)])
    r.promise(T0_US + 5 * SLICE_US)
    to = r.closable()
    assert to == T0_US // SLICE_US + 5
    saved = r.saved()
    assert saved
    r = reducer(saved)  # dies between its promise and saying it
    assert r.closable() == 0  # what the promise was made behind must be read again first
    r.feed([0], [T0_US], [request(T0_US)])
    assert r.closable() == to
    r.say(to)
    r.done(to)
    r.feed([1, 2], [T0_US + SLICE_US, T0_US + 9 * SLICE_US], [request(T0_US, retry_count=1)] * 2)
    said = r.say(r.closable())
    assert counts({t: unpack(o.value) for t, o in enumerate(said) if o.queue == EVENTS and o.value}) == {
        "messages": 1, "events": 1, "stray": 1,
    }  # fmt: skip
    assert not [o for o in said if o.queue != EVENTS and o.value]


def test_a_successor_begins_at_the_first_record_that_is_not_said_with_the_clock_before_it() -> None:
    r = reducer()
    stamps = [T0_US, T0_US + SLICE_US, T0_US + SLICE_US - 1, T0_US + 2 * SLICE_US]
    r.feed(range(4), stamps, [request(us) for us in stamps])
    r.done(T0_US // SLICE_US + 1)
    saved = r.saved()
    assert saved == Point(1, T0_US // SLICE_US + 1, T0_US)
    assert Point.of(saved.offset, saved.metadata) == saved
    again = reducer(saved)
    again.feed(range(4), stamps, [request(us) for us in stamps])
    to = T0_US // SLICE_US + 2
    assert [(o.queue, o.key) for o in again.say(to)] == [(o.queue, o.key) for o in r.say(to)]
    assert counts(events(again, to)) == counts(events(r, to)) == {"messages": 2, "events": 2, "used": 2}


def test_a_log_that_was_cut_behind_us_is_said_as_lost() -> None:
    r = reducer(Point(5, T0_US // SLICE_US, T0_US), log_start=9)
    assert r.saved() is None  # a successor would not see the loss
    at = T0_US + 4 * SLICE_US
    r.feed([9, 10], [at, at + SLICE_US], [request(at)] * 2)
    to = r.closable()
    readers = {q: Reader([r.producer]) for q in (0, 1, EVENTS)}
    for i, out in enumerate(r.say(to)):
        readers[out.queue].take(i, out.key, out.value)
    for queue, reader in readers.items():
        assert reader.upto(r.next) == to
        assert reader.is_lost(to - 5, to)
        assert len(reader.below(to)) == (queue == EVENTS)  # half a slice is no table, but its rows land
    r.done(to)
    assert r.saved() is not None


def test_a_log_that_is_empty_behind_us_is_lost_up_to_the_promise() -> None:
    r = reducer(Point(5, 100, 100 * SLICE_US), log_start=9)
    r.feed([], [], [])
    r.promise(120 * SLICE_US)
    to = r.closable()
    reader = Reader([r.producer])
    for i, out in enumerate(o for o in r.say(to) if o.queue == 0):
        reader.take(i, out.key, out.value)
    assert reader.is_lost(119, 120) and reader.upto(100) == 120
