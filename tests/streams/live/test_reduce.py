"""One source partition: every record is counted once, what was promised away is a stray, what the log lost is said."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors import engine
from detectors.events import Decoded
from detectors.table import Rows, Sum, Table
from detectors.tables.accounts import ACCOUNTS
from detectors.windows import SECOND_US, SLICE_US
from streams.landing.lander import NUMBERS, counted
from streams.live import reduce as stage
from streams.live.canary import CANARY, signal
from streams.live.numbered import Reader, Taken, head_of, unpack
from streams.live.reduce import COUNTS, EVENTS, Out, Point, Poisoned, Reducer
from streams.sources import decode
from streams.sources.decode import Reading, messages
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
    assert said["tombstones"] == of("none") + of("null") + of("empty")
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


# ---- what can't be measured -----------------------------------------------------------------------------------------

POISON_MS = 666.0


def checked(ms: float) -> int:
    if ms == POISON_MS:
        raise ZeroDivisionError("a bug in a table of one's own")
    return 1


OWN = Table(
    name="own",
    key=("service_name",),
    sources=(Rows(stream="requests"),),
    columns={"checked": Sum(pl.col("duration_ms").map_elements(checked, return_dtype=pl.Int64))},
)
SLICES = 6
AT = [T0_US + i * SLICE_US // 3 for i in range(3 * SLICES)]
BAD = 7  # the record; its slice is the third
SLICE = AT[BAD] // SLICE_US


def fed(values: Sequence[bytes | None], point: Point | None = None, step: int = 5) -> Reducer:
    r = Reducer("requests", 0, [*TABLES, OWN, ACCOUNTS], 2, point or Point(0))
    for i in range(0, len(values), step):
        some = slice(i, i + step)
        r.feed(range(len(values))[some], AT[some], values[some])
    return r


def by_number(said: Sequence[Out]) -> dict[tuple[int, int], tuple[str, dict[str, list[tuple[Any, ...]]]]]:
    """By queue and number what is said there."""
    found: dict[tuple[int, int], tuple[str, dict[str, list[tuple[Any, ...]]]]] = {}
    for out in said:
        head = head_of(out.key)
        frames = {n: f.rows() for n, f in unpack(out.value).items()}
        if frames or head.kind == "lost":
            found[out.queue, head.hi - 1] = (head.kind, frames)
    return found


def account(rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    """The only row of the accounts."""
    (row,) = rows
    return dict(zip([*ACCOUNTS.full_key, *(ACCOUNTS.columns or ())], row, strict=True))


GOOD = [request(us, duration_ms=5.0) for us in AT]
POISONED = [request(us, duration_ms=POISON_MS if i == BAD else 5.0) for i, us in enumerate(AT)]


def test_a_slice_that_raised_three_times_is_set_aside_and_all_else_is_said_as_without_it() -> None:
    to, point = AT[-1] // SLICE_US, Point(0)
    for times in (1, 2, 3):
        r = fed(POISONED, point)
        with pytest.raises(Poisoned, match="offsets 6 to 8: ZeroDivisionError: a bug in a table") as raised:
            r.say(to)
        assert raised.value.number == SLICE
        assert r.failed(raised.value) == times
        r.say(SLICE)  # what lies before it can be said
        r.done(SLICE)
        saved = r.saved()
        assert saved is not None and saved.offset == 6
        point = Point.of(saved.offset, saved.metadata)
        assert (point.failed, point.times) == (SLICE, times)
    r.park(raised.value)
    said, whole = by_number(r.say(to)), by_number(fed(GOOD, Point(6, SLICE, AT[5])).say(to))
    assert {k for k, (kind, _) in said.items() if kind == "lost"} == {(q, SLICE) for q in (0, 1, EVENTS)}
    rest = {k: v for k, v in said.items() if k[1] != SLICE and k[0] != EVENTS}
    assert len(rest) > SLICES - 3 and rest == {k: v for k, v in whole.items() if k[1] != SLICE and k[0] != EVENTS}
    (counts,) = [f["accounts/0"] for q in (0, 1) if "accounts/0" in (f := said[q, SLICE][1])]
    found = account(counts)
    assert (found["rows"], found["parked"], found["lost_first"], found["lost_last"]) == (0, 3, 6, 8)
    (reject,) = said[EVENTS, SLICE][1]["rejects"]
    assert reject[:3] == (6, 0, "set aside with all up to offset 8: ZeroDivisionError: a bug in a table of one's own")
    assert (r.counted["messages"], r.counted["parked"], r.counted["used"]) == (9, 3, 6)
    r.done(to)
    ended = r.saved()
    assert ended is not None and (ended.failed, ended.times) == (0, 0)


@pytest.mark.parametrize("step", [1, 2, 18])
def test_records_that_can_not_even_be_decoded_are_set_aside_with_their_slice(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(reading: Reading, values: Sequence[bytes | None]) -> Decoded:
        if b"poison" in values:
            raise MemoryError("too deep")
        return messages(reading, values)

    monkeypatch.setattr(decode, "messages", read)
    values = [b"poison" if i == BAD else v for i, v in enumerate(GOOD)]
    r = fed([])
    tries = 0
    while r.position < len(values):
        try:
            for i in range(r.position, len(values), step):
                some = slice(i, i + step)
                r.feed(range(len(values))[some], AT[some], values[some])
        except Poisoned as poison:
            assert poison.number == SLICE
            tries += 1
            if r.failed(poison) == 3:
                r.park(poison)
    assert tries == 3
    r.say(AT[-1] // SLICE_US)
    assert (r.counted["messages"], r.counted["parked"], r.counted["used"]) == (15, 3, 12)


def test_a_slice_whose_records_only_fail_together_is_no_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where memory ran out: one by one they can be measured."""
    r, measure = fed(GOOD), engine.reduce

    def fails_on_many(tables: Any, stream: str, rows: pl.DataFrame, by: Sequence[str]) -> Any:
        if rows["slice"].n_unique() > 1:
            raise MemoryError
        return measure(tables, stream, rows, by)

    expected = by_number(r.say(AT[-1] // SLICE_US))
    monkeypatch.setattr(stage, "reduce", fails_on_many)
    assert len(expected) > SLICES and by_number(r.say(AT[-1] // SLICE_US)) == expected


def test_what_the_log_had_no_more_is_in_the_accounts_with_its_offsets() -> None:
    r = Reducer("requests", 0, [ACCOUNTS], 1, Point(5, T0_US // SLICE_US, T0_US), log_start=900)
    r.feed([900, 901], [T0_US + 9 * SLICE_US, T0_US + 10 * SLICE_US], [request(T0_US)] * 2)
    (kind, frames) = by_number(r.say(r.closable()))[0, T0_US // SLICE_US + 9]
    assert kind == "lost"
    found = account(frames["accounts/0"])
    assert (found["deleted"], found["lost_first"], found["lost_last"], found["rows"]) == (895, 5, 899, 0)


def test_what_is_landed_adds_up_whatever_became_of_it() -> None:
    values = [*POISONED[:3], None, request(AT[4], event_id="a"), request(AT[5], event_id="a"), *POISONED[6:9], b"{"]
    r = fed([*values, *GOOD[len(values) :]])
    to = AT[-1] // SLICE_US
    with pytest.raises(Poisoned) as raised:
        r.say(to)
    r.park(raised.value)
    said = [(head_of(o.key), unpack(o.value)) for o in r.say(to) if o.queue == EVENTS]
    landed = pl.concat(counted(Taken(head.producer, head.hi - 1, frames) for head, frames in said))
    sums = {n: v for n, v in landed.select(NUMBERS).sum().row(0, named=True).items() if v}
    parts = {"used": 9, "repeated": 1, "parked": 3, "tombstones": 1, "rejected": 1}
    assert sums == {"read": sum(parts.values()), **parts}


# ---- canaries and repeats -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong_s", [0, -3_600, 3_600])
def test_a_canary_goes_through_and_is_in_no_row_and_no_table_but_its_own(wrong_s: int) -> None:
    """Whatever its sender's clock says."""
    r = Reducer("signals", 0, [ACCOUNTS], 2, Point(0))
    now = datetime.fromtimestamp(T0_US / SECOND_US, UTC)
    at = now + timedelta(seconds=wrong_s)
    change = {"timestamp": now, "subject": "cart", "kind": "change", "name": "deploy"}
    values = [signal("me", 7, at), msgspec.json.encode(change), signal("me", 8, at)]
    r.feed(range(3), [T0_US, T0_US, T0_US + SLICE_US], values)
    said = by_number(r.say(T0_US // SLICE_US + 1))
    tables = {n: rows for (q, _), (_, frames) in said.items() if q != EVENTS for n, rows in frames.items()}
    assert tables.keys() == {f"{CANARY.name}/0", "accounts/3"}
    assert tables[f"{CANARY.name}/0"][0][-1] == 7
    assert (
        dict(zip(ACCOUNTS.full_key + list(ACCOUNTS.columns or ()), tables["accounts/3"][0], strict=False))["rows"] == 1
    )
    assert len(said[EVENTS, T0_US // SLICE_US][1]["rows"]) == 1
    said_of = {n: v for n, v in r.counted.items() if v}
    assert said_of == {"messages": 2, "events": 2, "used": 1, "canary": 1}


def test_an_event_id_that_comes_again_in_its_slice_is_repeated_and_in_no_table() -> None:
    again = [request(T0_US, event_id=i, retry_count=1) for i in ("a", "b", "a", "a")]
    other = [request(T0_US, event_id="a", tenant="t"), request(T0_US, event_id=""), request(T0_US, event_id="")]
    values = [*again, *other, request(T0_US + SLICE_US, event_id="a")]
    r = reducer()
    for i, value in enumerate(values):
        r.feed([i], [T0_US if i < 7 else T0_US + SLICE_US], [value])
    said = by_number(r.say(T0_US // SLICE_US + 1))
    said_of = {n: v for n, v in r.counted.items() if v}
    assert said_of == {"messages": 7, "events": 7, "used": 5, "repeated": 2}
    calls = [row for (q, _), (_, f) in said.items() if q != EVENTS for row in f.get("calls/0", [])]
    assert calls, "what came first is measured"
    (rows,) = [f["rows"] for (q, _), (_, f) in said.items() if q == EVENTS]
    assert [row[-1] for row in rows].count("repeated") == 2
    r.done(T0_US // SLICE_US + 1)
    r.feed([8], [T0_US + 2 * SLICE_US], [request(T0_US)])
    r.say(T0_US // SLICE_US + 2)
    assert r.counted["repeated"] == 0, "another slice: live does not know it any more"
