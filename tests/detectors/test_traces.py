"""Traces: whose time it was, by a walk over small trees that anybody can follow."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from detectors.engine import MatchState, match, reduce
from detectors.tables.traces import BACK_US, KEPT, LEAST_US, PART, TRACES
from detectors.windows import WINDOW_US, parse_coordinate
from tests.cases import Case, at, partitions
from tests.harness import Memory, placed

Row = dict[str, Any]
MS = 1_000


def line(span: str, parent: str | None, start_ms: float, took_ms: float, service: str, **more: Any) -> Row:
    times = {"timestamp": at(start_ms / 1000), "arrival": at((start_ms + took_ms) / 1000 + 1), "duration_ms": took_ms}
    ids = {"trace_id": "t", "span_id": span, "parent_span_id": parent}
    return {**ids, **times, "service_name": service, "node_id": "n", "status": "ok", **more}


def told(*rows: Row, windows: int = 1_000) -> pl.DataFrame:
    """windows: how many are measured at once."""
    (part,) = placed(Case({"requests": partitions("requests", rows, 1)}))["requests"]
    first, end = (int(edge) // WINDOW_US * WINDOW_US for edge in (part["t"].min(), part["t"].max()))  # type: ignore[arg-type]
    state, news, frames = MatchState(), [reduce([TRACES], "requests", part)], list[pl.DataFrame]()
    for to in [*range(first + windows * WINDOW_US, end + 1, windows * WINDOW_US), end + WINDOW_US]:
        tables, state = match([TRACES], state, news, to, Memory())
        news, frames = [], [*frames, *tables.values()]
    return pl.concat(frames) if frames else pl.DataFrame()


def edges(table: pl.DataFrame) -> dict[str, int]:
    """The hops of the trace as it was told last, in ms of their own time."""
    last = table.filter(pl.col("window") == pl.col("window").max())
    return {f"{r['caller']}->{r['service_name']}": r["hop_us"] // MS for r in last.iter_rows(named=True)}


def call(
    n: int, parent: str, start: float, client_ms: float, server_ms: float, caller: str, service: str, **more: Any
) -> tuple[Row, Row]:
    """Both lines of one attempt; the server's begins 1 ms later."""
    names: Row = {"caller": caller, "service": service}
    return (
        line(f"c{n}", parent, start, client_ms, side="client", **names, **more),
        line(f"s{n}", f"c{n}", start + 1, server_ms, side="server", **names),
    )


ROOT = line("r", None, 0, 1000, "gate", side="server")


def test_a_hop_that_waits_is_not_the_one_that_takes_long() -> None:
    """
    gate  |==============================| 1000
    a      |==========================|     900, of which the call of b takes 800
    b        |=====================|        790 of work, and 10 of network
    """
    table = told(ROOT, *call(1, "r", 10, 900, 880, "gate", "a"), *call(2, "s1", 30, 800, 790, "a", "b"))
    assert edges(table) == {"a->b": 800}, "a took 100 of its own, less than an eighth"
    assert table.filter("longest").select("root", "rooted", "elapsed_us").rows() == [("gate", True, 1000 * MS)]


def test_the_network_is_time_of_the_hop() -> None:
    assert edges(told(ROOT, *call(1, "r", 10, 900, 5, "gate", "a"))) == {"gate->a": 900}


def test_of_calls_at_once_the_one_that_ended_last_counts() -> None:
    rows = (*call(1, "r", 10, 500, 490, "gate", "a"), *call(2, "r", 10, 600, 590, "gate", "b"))
    assert edges(told(ROOT, *rows)) == {"gate->b": 600}


def test_calls_one_after_the_other_add_up() -> None:
    rows = (*call(1, "r", 10, 300, 290, "gate", "a"), *call(2, "r", 400, 250, 240, "gate", "a"))
    table = told(ROOT, *rows)
    assert edges(table) == {"gate->a": 550}
    assert table.select("attempts", "typical_us").rows() == [(2, 250 * MS)]


def test_without_sides_a_service_s_own_span_around_one_call_is_its_end_of_it() -> None:
    inner = line("in", "out", 400, 5, "stock", caller="gate")
    table = told(line("r", None, 0, 1000, "gate"), line("out", "r", 10, 900, "gate", caller="gate"), inner)
    assert edges(table) == {"gate->stock": 900}


def test_a_server_that_goes_on_after_its_client_gave_up_adds_nothing() -> None:
    late = call(1, "r", 10, 900, 5000, "gate", "a", status="timeout", timeout_ms=900.0)
    table = told(ROOT, *late)
    assert edges(table) == {"gate->a": 900}
    assert table.select("timeouts", "depth", "inverted").row(-1) == (1, 1, False)


def test_depth_counts_attempts_and_not_their_lines() -> None:
    out: Row = {"status": "timeout", "timeout_ms": 700.0}
    one, two = call(1, "r", 10, 700, 700, "gate", "a", **out), call(2, "s1", 20, 680, 670, "a", "b", **out)
    table = told(ROOT, *({**r, "status": "timeout"} for r in (*one, *two)))
    assert table.select("timeouts", "depth").row(-1) == (2, 2)
    assert table["inverted"].any(), "b was given 700 ms when a had 691 left"


def test_a_root_that_timed_out_and_called_nobody_is_no_cascade() -> None:
    lost = line("l", None, 0, 1000, "gate", status="timeout", timeout_ms=1000.0)
    again = line("r", None, 1100, 90, "gate", timeout_ms=1000.0)
    assert told(lost, again).is_empty()
    under = call(1, "l", 10, 900, 890, "gate", "a")
    assert edges(told(lost, again, *under)) == {"gate->a": 900}


def test_what_nobody_could_want_is_not_told() -> None:
    quick = line("r", None, 0, LEAST_US / MS - 1, "gate")
    assert told(quick, *call(1, "r", 1, 90, 80, "gate", "a")).is_empty()
    with_timeout = {**ROOT, "timeout_ms": 5000.0}
    assert told(with_timeout, *call(1, "r", 10, 900, 880, "gate", "a")).is_empty()
    assert len(told(ROOT, *call(1, "r", 10, 900, 880, "gate", "a"))) == 1


def test_a_trace_is_told_again_when_its_root_comes() -> None:
    """The attempt ends in the first window, the root in the second: until then its caller is all that is known."""
    rows = (
        *call(1, "r", 8_000, 1000, 990, "gate", "a", status="timeout"),
        line("r", None, 7_000, 4_000, "front"),
    )
    assert told(*rows).filter("longest").select("root", "rooted").rows() == [("gate", False), ("front", True)]


def test_how_many_windows_are_measured_at_once_does_not_matter() -> None:
    """The outermost line of a window is not that of a later one; more timed-out lines than are kept compete."""
    quick = line("x", "r", 1_000, 500, "z", caller="gate", side="client")
    calls = [
        line(f"c{n}", "r", 2_500 + 1_000 * n, 900, "a", caller="gate", side="client", status="timeout")
        for n in range(20)
    ]
    rows = [line("r", None, 0, 25_000, "gate", side="server"), quick, *calls]
    at_once = told(*rows)
    assert at_once["window"].n_unique() >= 3 and at_once["spans"].list.len().max() == KEPT
    for windows in (1, 2):
        assert told(*rows, windows=windows).equals(at_once)


def test_lines_that_call_each_other_in_a_circle_are_no_part_of_it() -> None:
    circle = (line("x", "y", 10, 900, "a", caller="b"), line("y", "x", 10, 900, "b", caller="a"))
    assert edges(told(ROOT, *circle, *call(1, "r", 10, 300, 290, "gate", "c"))) == {"gate->c": 300}


# ---- any tree


@st.composite
def trees(draw: st.DrawFn) -> list[Row]:
    """Nested spans of a few services, of any side; some time out, some outlast what they lie in."""
    rows = [line("0", None, 0, draw(st.integers(100, 400)), "s0")]
    for n in range(1, draw(st.integers(2, 14))):
        above = rows[draw(st.integers(0, n - 1))]
        start = (above["timestamp"] - at(0)).total_seconds() * 1000 + draw(st.integers(0, 60))
        service = draw(st.sampled_from(["s0", "s1", "s2"]))
        side = draw(st.sampled_from([None, "client", "server"]))
        status = draw(st.sampled_from(["ok", "ok", "timeout"]))
        took = draw(st.integers(0, 300))
        rows.append(
            line(str(n), above["span_id"], start, took, service, caller=above["service_name"], side=side, status=status)
        )
    return rows


def by_hand(rows: list[Row]) -> dict[tuple[str, str], int]:
    """The own time of each hop in µs, by recursion over dicts."""
    kids: dict[str | None, list[Row]] = defaultdict(list)
    hops: dict[tuple[str, str], int] = defaultdict(int)
    for r in rows:
        kids[r["parent_span_id"]].append(r)

    def start(r: Row) -> int:
        return round(float((r["timestamp"] - at(0)).total_seconds()) * 1e6)

    def end(r: Row) -> int:
        took: int = r["duration_ms"] * MS
        return start(r) + took

    def kind(r: Row) -> str:
        return r.get("side") or ("within" if r.get("caller") == r["service_name"] else "server")

    def named(r: Row) -> Row:
        """The line that names the attempt: the server's, where this is the client's."""
        mine = kids[r["span_id"]]
        return mine[0] if kind(r) != "server" and len(mine) == 1 and kind(mine[0]) == "server" else r

    def walk(r: Row, lasted: int) -> None:
        path: list[Row] = []
        until: int | None = None
        for k in sorted(kids[r["span_id"]], key=lambda k: (-end(k), -start(k), int(k["span_id"]))):
            if until is None or end(k) <= until:
                path, until = [*path, k], start(k)
        spent = [min(int(k["duration_ms"]) * MS, lasted) for k in path]
        if r["parent_span_id"] is not None:
            hops[named(r)["caller"], named(r)["service_name"]] += max(lasted - sum(spent), 0)
        for k, took in zip(path, spent, strict=True):
            walk(k, took)

    walk(rows[0], int(rows[0]["duration_ms"]) * MS)
    return hops


@given(trees())
def test_hops_are_those_that_a_walk_finds(rows: list[Row]) -> None:
    table = told(*rows)
    hops = by_hand(rows)
    last = table.filter(pl.col("window") == pl.col("window").max())
    elapsed = rows[0]["duration_ms"] * MS
    wanted = {h: us for h, us in hops.items() if us * PART >= elapsed}
    ours = {(r["caller"], r["service_name"]): r["hop_us"] for r in last.iter_rows(named=True)}
    assert wanted.items() <= ours.items()
    assert set(ours) - set(wanted) <= set(hops) and len(ours) - len(wanted) <= 1
    top = last.filter("longest")["hop_us"].item()
    assert top == max(hops.values(), default=None)
    offsets = [parse_coordinate(c)[2] for c in last.filter("longest")["spans"].item()]
    assert 0 < len(offsets) <= KEPT and set(offsets) <= set(range(1, len(rows) + 1))


def test_lines_further_apart_than_a_minute_do_not_meet() -> None:
    rows = (ROOT, *call(1, "r", BACK_US / MS + 20_000, 900, 880, "gate", "a", status="timeout"))
    assert told(*rows).filter("longest").select("root", "rooted").rows() == [("gate", False)]
    near = (ROOT, *call(1, "r", BACK_US / MS - 20_000, 900, 880, "gate", "a", status="timeout"))
    assert told(*near).filter("longest").select("root", "rooted").rows()[-1] == ("gate", True)
