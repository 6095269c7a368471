"""The table of facts says the same as a plain loop over lines, and the detector says no more than the facts do."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.catalog.clock_skew import assess
from detectors.detector import Settings, View
from detectors.engine import MatchState, match, reduce
from detectors.tables.clocks import CLOCKS, KEPT, NEAR_US, PAIR_BACK_US
from detectors.windows import DAY_US, HOUR_US, MINUTE_US, SECOND_US, WINDOW_US
from tests.cases import Case, at, partitions
from tests.harness import Memory, one_pass, placed

Row = dict[str, Any]
Fact = tuple[Row, str, str, int, int]
Facts = dict[tuple[int, str, str], tuple[list[int], int, int, int]]
T0_US = int(at(0).timestamp()) * SECOND_US


def case(**streams: list[Row]) -> Case:
    return Case({stream: partitions(stream, rows, min(2, len(rows))) for stream, rows in streams.items() if rows})


def table(of: Case) -> pl.DataFrame:
    log = placed(of)
    news = [reduce([CLOCKS], stream, part) for stream, parts in log.items() for part in parts if len(part)]
    last = max(int(part["arrived"].max()) for parts in log.values() for part in parts if len(part))  # type: ignore[arg-type]
    return match([CLOCKS], MatchState(), news, last + WINDOW_US, Memory())[0].get("clocks", pl.DataFrame())


# ---- facts -----------------------------------------------------------------------------------------------------------


def call(side: str, node: str, start_us: int, took_us: int | None, arrived_s: float, **more: Any) -> Row:
    return {
        "timestamp": at(0) + timedelta(microseconds=start_us),
        "arrival": at(arrived_s),
        "duration_ms": None if took_us is None else took_us / 1000,
        "service_name": "b",
        "caller": None,
        "node_id": node,
        "side": side,
        **more,
    }


def beat(node: str, sent_us: int, received_us: int, arrived_s: float, reply_us: int | None) -> Row:
    sent, received = at(0) + timedelta(microseconds=sent_us), at(0) + timedelta(microseconds=received_us)
    row: Row = {"node_id": node, "client_time": sent, "server_time": received, "arrival": at(arrived_s)}
    if reply_us is not None:
        row |= {"reply_sent": received, "reply_received": sent + timedelta(microseconds=reply_us)}
    return row


def cut(us: int) -> int:
    return 999_999 if us % 1_000_000 == 0 else 999 if us % 1_000 == 0 else 0


def attempt(r: Row) -> str | None:
    span = r["span_id"] if r["side"] == "client" else r["parent_span_id"]
    if span is not None:
        return f"{r['trace_id'] or ''}:{span} {r['service_name']}"
    return None if r["request_id"] is None else f"{r['request_id']}#{r['retry_count'] or 0} {r['service_name']}"


def line_facts(rows: list[Row]) -> list[Fact]:
    found = []
    rows = [r for r in rows if attempt(r) and r["side"] and abs(us(r["timestamp"]) - r["arrived"]) <= NEAR_US]
    rows.sort(key=lambda r: (window(r), r["t"], r["coord"]))
    for i, b in enumerate(rows):
        before = [
            a
            for a in rows[:i]
            if (attempt(a), a["tenant"]) == (attempt(b), b["tenant"]) and window(b) - window(a) <= PAIR_BACK_US
        ]
        if len(before) != 1 or before[0]["side"] == b["side"] or before[0]["node_id"] == b["node_id"]:
            continue
        if None not in (b["caller"], before[0]["caller"]) and b["caller"] != before[0]["caller"]:
            continue
        client, server = (b, before[0]) if b["side"] == "client" else (before[0], b)
        start, begun = us(client["timestamp"]), us(server["timestamp"])
        lag = b["arrived"] - min(start, begun + cut(begun))
        found.append((b, client["node_id"], server["node_id"], begun + cut(begun) - start, lag))
        ours, theirs = end(client), end(server)
        if client["status"] == "ok" and ours is not None and theirs is not None:
            ours, theirs = ours + cut(start) + rounded(client), theirs - rounded(server)
            lag = b["arrived"] - min(ours, theirs)
            found.append((b, server["node_id"], client["node_id"], ours - theirs, lag))
    return found


def end(r: Row) -> int | None:
    if r["duration_ms"] is None:
        return None
    ended = us(r["timestamp"]) + round(r["duration_ms"] * 1000)
    return ended if abs(ended - r["arrived"]) <= NEAR_US else None


def rounded(r: Row) -> int:
    return 999 if round(r["duration_ms"] * 1000) % 1000 == 0 else 0


def beat_facts(rows: list[Row]) -> list[Fact]:
    found = []
    for r in rows:
        ways = [("client_time", "server_time", r["node_id"], r["observer"])]
        ways.append(("reply_sent", "reply_received", r["observer"], r["node_id"]))
        for sent, received, src, dst in ways:
            stamps = [us(r[n]) for n in (sent, received) if r[n] is not None]
            if len(stamps) == 2 and all(abs(s - r["arrived"]) <= NEAR_US for s in stamps):
                fact = stamps[1] + cut(stamps[1]) - stamps[0]
                found.append((r, src, dst, fact, r["arrived"] - min(stamps)))
    return found


def us(stamp: Any) -> int:
    return int((stamp - at(0)) / timedelta(microseconds=1)) + T0_US


def window(r: Row) -> int:
    return int(r["arrived"] // WINDOW_US * WINDOW_US)


def by_loop(of: Case) -> Facts:
    log = placed(of)
    rows = {s: [r for part in parts for r in part.iter_rows(named=True)] for s, parts in log.items()}
    groups: dict[tuple[int, str, str], list[tuple[int, int, int]]] = {}
    for row, src, dst, fact, lag in line_facts(rows.get("requests", [])) + beat_facts(rows.get("heartbeats", [])):
        groups.setdefault((window(row), src, dst), []).append((fact, lag, row["coord"]))
    return {
        key: (sorted(f[0] for f in found)[:KEPT], max(f[1] for f in found), len(found), min(f[2] for f in found))
        for key, found in groups.items()
    }


stamps = st.sampled_from([0, 1, 999, 1_000, 1_500, 2_000_001, 1_000_000, 30 * HOUR_US, -30 * HOUR_US])
arrivals = st.sampled_from([1, 2, 9, 11, 59, 61, 75, 130])
calls = st.builds(
    call,
    st.sampled_from(["client", "server"]),
    st.sampled_from(["a", "b", "b"]),
    stamps,
    st.sampled_from([None, 0, 700, 1_000, 2_500, 40 * HOUR_US]),
    arrivals,
    status=st.sampled_from([None, "ok", "ok", "timeout"]),
    trace_id=st.sampled_from([None, "t"]),
    span_id=st.sampled_from([None, "s1", "s2"]),
    parent_span_id=st.sampled_from([None, "s1", "s2"]),
    request_id=st.sampled_from([None, "r", "r"]),
    retry_count=st.sampled_from([None, 0, 1]),
    service_name=st.sampled_from(["b", "b", "c"]),
    caller=st.sampled_from([None, "x", "x", "y"]),
)
beats = st.builds(
    beat, st.sampled_from(["a", "b"]), stamps, stamps, arrivals, st.sampled_from([None, 5, 1_000, 50 * HOUR_US])
)


@settings(deadline=None, max_examples=200)
@given(st.lists(calls, min_size=2, max_size=12), st.lists(beats, max_size=8))
def test_facts_are_those_of_a_plain_loop_over_lines(requests: list[Row], heartbeats: list[Row]) -> None:
    of = case(requests=requests, heartbeats=heartbeats)
    got = {
        (r["window"], r["src"], r["dst"]): (r["facts"], r["lag"], r["seen"], r["proof"])
        for r in table(of).iter_rows(named=True)
    }
    assert got == by_loop(of)


def test_both_ways_of_a_call_and_of_a_four_stamp_heartbeat_give_facts() -> None:
    """client    1 |--------------------| 21_001      the server's clock is 5 ms ahead
    server  5_501      |-------|           15_503
    """
    pair = {"trace_id": "t", "status": "ok"}
    lines = [
        call("client", "a", 1, 21_001 - 1, 2, span_id="s", **pair),
        call("server", "b", 5_501, 15_503 - 5_501, 2, parent_span_id="s", **pair),
    ]
    told = table(case(requests=lines, heartbeats=[beat("c", 1, 401, 2, 702)]))
    assert dict(zip(told.select("src", "dst").rows(), told["facts"].to_list(), strict=True)) == {
        ("a", "b"): [5_500],
        ("b", "a"): [21_001 - 15_503 + 999],  # the client's duration is in whole milliseconds
        ("c", "collector"): [400],
        ("collector", "c"): [302],
    }


# ---- what they say ---------------------------------------------------------------------------------------------------


def exchanged(off_us: int, digits_us: int = 1, n: int = 120) -> Case:
    """a calls b, 150 µs each way; all stamps and durations are cut off to digits_us."""
    rows: list[Row] = []
    for i in range(n):
        start, served = i * 1_000_003, 900 + 37 * (i % 50)
        begun, way = start + 150 + off_us, 150
        common: Row = {"trace_id": "t", "status": "ok", "arrived_s": start / 1e6 + 1}
        stamps = [start, served + 2 * way, begun, served]
        start, took, begun, served = (s // digits_us * digits_us for s in stamps)
        rows.append(call("client", "a", start, took, span_id=f"s{i}", **common))
        rows.append(call("server", "b", begun, served, parent_span_id=f"s{i}", **common))
    return case(requests=rows)


def judged(facts: pl.DataFrame, lo: int | None = None, to: int | None = None) -> pl.DataFrame:
    first, last = int(facts["window"][0]), int(facts["window"][-1])
    return assess(View(facts, {}, lo or first, to or last + 2 * MINUTE_US, last + DAY_US, Settings()))


def test_an_exchange_both_ways_bounds_a_clock_from_both_sides() -> None:
    told = judged(table(exchanged(-300_000)), to=T0_US + 2 * MINUTE_US).filter(
        pl.col("subject") == "b", ~pl.col("unknown")
    )
    assert len(told) >= 12
    assert (told["lower_ms"] <= -300).all()
    assert (told["upper_ms"] >= -300).all()
    assert (told["upper_ms"] - told["lower_ms"] < 1).all()
    assert told["certain"].all()


@settings(deadline=None, max_examples=25)
@given(st.integers(-1_500, 1_500), st.sampled_from([1_000, 1_000_000]))
def test_stamps_in_whole_milliseconds_or_seconds_contradict_nothing(off_us: int, digits_us: int) -> None:
    told = judged(table(exchanged(off_us, digits_us)), to=T0_US + 2 * MINUTE_US).filter(pl.col("subject") == "b")
    assert len(told) >= 12
    assert not told["unknown"].any()
    assert (told["lower_ms"] * 1000 <= off_us).all()
    assert (told["upper_ms"] * 1000 >= off_us).all()


def star(wrong_ms: dict[str, float], until: dict[str, int] | None = None, n: int = 20) -> Case:
    """Nodes a to e send heartbeats, each until its second, to the collector."""
    return case(
        heartbeats=[
            beat(node, s * SECOND_US + 77 + int(wrong_ms.get(node, 0) * 1000), s * SECOND_US + 577, s + 1, None)
            for s in range(0, n * 10, 5)
            for node in "abcde"
            if s < (until or {}).get(node, 10**9)
        ]
    )


def test_a_node_behind_that_only_sends_may_be_a_slow_way_and_never_pages() -> None:
    found = one_pass(star({"a": 2_000, "b": -2_000, "c": -900})).findings.filter(pl.col("detector") == "clock_skew")
    assert sorted(found.select("subject", "level", "certainty").rows()) == [
        ("a", "page", "certain"),
        ("b", "warn", "possible"),
    ]


def test_a_node_that_is_not_heard_for_a_minute_is_unknown() -> None:
    told = judged(table(star({}, until={"e": 60}))).filter(pl.col("subject") == "e")
    unknown = told.filter(pl.col("unknown"))
    assert unknown["window"].to_list() == [T0_US + 110 * SECOND_US]
    assert told["window"].max() == unknown["window"][0]
    assert told.filter(~pl.col("unknown"))["window"].len() == 11


@settings(deadline=None, max_examples=10)
@given(st.integers(-40, 40))
def test_windows_about_epoch_0_are_judged_like_any_other(first: int) -> None:
    """A clock that was never set says 1970: numbers of windows are small there, or below nothing."""
    facts, moved = table(star({"b": 300}, until={"e": 60})), first * WINDOW_US - T0_US
    early = judged(facts.with_columns(pl.col("window") + moved))
    assert early["unknown"].any()
    assert early.with_columns(pl.col("window") - moved).equals(judged(facts))


def test_facts_that_are_older_are_worth_less() -> None:
    told = judged(table(star({"e": 500}, until={"e": 10}))).filter(pl.col("subject") == "e", ~pl.col("unknown"))
    lower = told.sort("window")["lower_ms"]
    assert len(lower) == 6
    assert (lower.diff().drop_nulls() < 0).all()
    assert lower[0] - lower[-1] < 0.0002 * MINUTE_US / 1000


def test_the_proof_is_a_row_of_the_pair_that_shows_it_best() -> None:
    of = star({"c": 800})
    told = judged(table(of)).filter(pl.col("subject") == "c")
    rows = pl.concat(placed(of)["heartbeats"])
    shown = rows.filter(pl.col("coord").is_in(told["proof"].explode().implode()))
    assert len(shown) >= 20
    assert set(shown["node_id"]) == {"c"}


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 30), st.integers(1, 30))
def test_windows_judged_apart_say_the_same_as_together(first: int, second: int) -> None:
    facts = table(star({"b": 300, "d": -1_300}, until={"b": 50, "d": 90}))
    end_us = int(facts["window"][-1]) + 2 * MINUTE_US
    inner = [T0_US + n * WINDOW_US for n in (first, first + second)]
    cuts = [T0_US, *(c for c in inner if c < end_us), end_us]
    parts = []
    for lo, to in pairwise(cuts):
        seen = facts.filter(pl.col("window") < to, pl.col("window") >= lo - MINUTE_US - WINDOW_US)
        parts.append(assess(View(seen, {}, lo, to, to, Settings())))
    together = assess(View(facts, {}, T0_US, end_us, end_us, Settings()))
    assert len(together) > 100
    assert pl.concat(parts).sort("window", "subject").equals(together.sort("window", "subject"))
