"""Pairs of writes against a plain loop over all pairs, and against a recording whose conflicts are known."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.events import CLOCK, INSTANT
from detectors.tables.writes import MOST, ON, REACH_US, match_writes
from detectors.windows import MINUTE_US, WINDOW_US

DATA = Path(os.environ.get("ASYNCHEALTH_DATA", "../shared/data")) / "vector_clocks"
NODES = "abc"
SAID = ("partners", "newly", "by_clock", "by_version", "same_base", "witness", "witness_node")
Row = dict[str, Any]


def frame(writes: list[Row]) -> pl.DataFrame:
    text = ("environment", "tenant", "entity_type", "entity_id", "node_id", "request_id", "idempotency_key", "op")
    number = ("version", "base_version", "t", "coord", "weight")
    shape: dict[str, Any] = dict.fromkeys(text, pl.String) | dict.fromkeys(number, pl.Int64)
    shape |= {"vector_clock": CLOCK, "started": INSTANT, "finished": INSTANT}
    usual = {"environment": "", "tenant": "", "entity_type": "x", "entity_id": "1", "weight": 1}
    rows = [usual | {"coord": i} | w for i, w in enumerate(writes)]
    columns = {n: [_plain(n, r.get(n)) for r in rows] for n in shape}
    placed = pl.DataFrame(columns, schema=shape).with_columns(window=pl.col("t") // WINDOW_US * WINDOW_US)
    ordered = placed.sort("environment", "tenant", *ON, "t", "coord")
    return ordered.with_columns(group=pl.struct(ON).rle_id().cast(pl.Int64), now=pl.lit(True))


def _plain(name: str, value: Any) -> Any:
    if name == "vector_clock" and value is not None:
        return [{"key": k, "value": v} for k, v in sorted(value.items())]
    return value


def pairs(rows: pl.DataFrame, reach_us: int) -> Iterator[tuple[Row, Row, str]]:
    """Every concurrent pair, earlier one first, by the definition."""
    writes = rows.to_dicts()
    for i, b in enumerate(writes):
        for a in writes[:i]:
            near = b["window"] - a["window"] <= reach_us
            if a["entity_id"] == b["entity_id"] and a["node_id"] != b["node_id"] and near and (how := _how(a, b)):
                yield a, b, how


def _how(a: Row, b: Row) -> str:
    one_request = any(a[n] is not None and a[n] == b[n] for n in ("request_id", "idempotency_key"))
    if one_request and (a["version"], a["op"]) == (b["version"], b["op"]):
        return ""
    clocks = [{c["key"]: c["value"] for c in w["vector_clock"] or ()} for w in (a, b)]
    if clocks[0].get(a["node_id"]) and clocks[1].get(b["node_id"]):
        b_knew_a = clocks[1].get(a["node_id"], 0) >= clocks[0][a["node_id"]]
        a_knew_b = clocks[0].get(b["node_id"], 0) >= clocks[1][b["node_id"]]
        return "" if b_knew_a or a_knew_b else "vector_clock"
    if None not in (a["version"], a["base_version"], b["version"], b["base_version"]):
        knew = b["base_version"] >= a["version"] or a["base_version"] >= b["version"]
        return "" if knew else "base_version"
    if None not in (a["started"], a["finished"], b["started"], b["finished"]):
        return "interval" if b["started"] < a["finished"] and a["started"] < b["finished"] else ""
    return ""


def by_loop(rows: pl.DataFrame, reach_us: int) -> dict[int, Row]:
    """What the table should say of each later member."""
    partners: dict[int, list[tuple[Row, Row, str]]] = {}
    company: set[int] = set()
    said = {}
    for a, b, how in pairs(rows, reach_us):
        partners.setdefault(b["coord"], []).append((a, b, how))
    for own, found in partners.items():  # in the order of the rows
        lowest = min((a for a, _, _ in found), key=lambda a: int(a["coord"]))
        members = {own: found[0][1]["weight"]} | {a["coord"]: a["weight"] for a, _, _ in found}
        by_version = [(a, b) for a, b, how in found if how == "base_version"]
        said[own] = {
            "partners": len(found),
            "newly": sum(weight for coord, weight in members.items() if coord not in company),
            "by_clock": sum(how == "vector_clock" for _, _, how in found),
            "by_version": len(by_version),
            "same_base": sum(a["base_version"] == b["base_version"] for a, b in by_version),
            "witness": lowest["coord"],
            "witness_node": lowest["node_id"],
        }
        company |= set(members)
    return said


def told(met: pl.DataFrame) -> dict[int, Row]:
    return {r["coord"]: {n: r[n] for n in SAID} for r in met.iter_rows(named=True)}


@st.composite
def histories(draw: st.DrawFn) -> pl.DataFrame:
    writes = []
    for _ in range(draw(st.integers(1, 25))):
        t = draw(st.integers(0, 900)) * 1_000_000
        write: Row = {"t": t, "entity_id": draw(st.sampled_from("112")), "node_id": draw(st.sampled_from(NODES))}
        write["weight"] = draw(st.sampled_from([1, 1, 3]))
        if draw(st.booleans()):
            write["vector_clock"] = draw(st.dictionaries(st.sampled_from(NODES + "z"), st.integers(0, 3)))
        if draw(st.booleans()):
            write |= {"base_version": draw(st.integers(0, 5)), "version": draw(st.integers(0, 6))}
        if draw(st.booleans()):
            write |= {"started": t - draw(st.integers(1, 9_000_000)), "finished": t}
        write |= {n: draw(st.sampled_from([None, None, "x"])) for n in ("request_id", "idempotency_key", "op")}
        writes.append(write)
    return frame(writes)


@settings(deadline=None, max_examples=200)
@given(histories(), st.sampled_from([WINDOW_US, REACH_US]))
def test_each_later_write_says_what_a_plain_loop_over_all_pairs_finds(rows: pl.DataFrame, reach_us: int) -> None:
    assert told(match_writes(rows, reach_us)) == by_loop(rows, reach_us)


@settings(deadline=None, max_examples=100)
@given(histories())
def test_each_write_with_company_counts_once(rows: pl.DataFrame) -> None:
    involved = {w["coord"]: w["weight"] for a, b, _ in pairs(rows, REACH_US) for w in (a, b)}
    assert match_writes(rows)["newly"].sum() == sum(involved.values())


@settings(deadline=None, max_examples=100)
@given(histories(), st.integers(0, 90))
def test_twice_the_reach_before_a_window_is_all_that_it_needs(rows: pl.DataFrame, window: int) -> None:
    lo = window * WINDOW_US
    kept = rows.filter(pl.col("window") >= lo - 2 * REACH_US).with_columns(now=pl.col("window") >= lo)
    whole = match_writes(rows).filter(pl.col("window") >= lo)
    assert told(match_writes(kept)) == told(whole)


def test_a_vector_clock_that_does_not_name_its_own_node_leaves_the_word_to_the_versions() -> None:
    writes = [{"t": i, "node_id": n, "version": 2, "base_version": 1} for i, n in enumerate("ab")]
    clocks: list[Row] = [{"vector_clock": {"thread-1": 1}}, {"vector_clock": {"thread-2": 1}}]
    (row,) = told(match_writes(frame([w | c for w, c in zip(writes, clocks, strict=True)]))).values()
    assert (row["partners"], row["by_clock"], row["by_version"]) == (1, 0, 1)


@pytest.mark.parametrize(("between", "partners"), [(MOST - 1, 1), (MOST, 0)])
def test_a_write_is_compared_with_no_more_than_so_many_before_it(between: int, partners: int) -> None:
    def write(t: int, node: str, version: int) -> Row:
        return {"t": t, "node_id": node, "version": version, "base_version": version - 1}

    knowing = [write(1 + i, "b", 3 + i) for i in range(between)]
    rows = frame([write(0, "a", 2), *knowing, write(between + 1, "c", 2)])
    met = match_writes(rows)
    assert met.filter(pl.col("node_id") == "c", pl.col("witness_node") == "a").height == partners


WRITE = re.compile(r"^(?P<t>\d+) Write .*\(ptr=(?P<pointer>\S+)\)$")


def shared_variable() -> list[Row]:
    """The writes of a recording of four threads: two lines an event, what was done and who knew what."""
    path = DATA / "tsviz_shared_var_4_threads.log.gz"
    if not path.exists():
        pytest.skip(f"no recording at {path}: set ASYNCHEALTH_DATA to the folder with the shared recordings")
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert len(lines) == 2 * 5_000
    writes = []
    for what, who in zip(lines[::2], lines[1::2], strict=True):
        if write := WRITE.match(what):
            node, clock = who.split(" ", 1)
            t = int(write["t"]) // 1000
            known = msgspec.json.decode(clock)
            writes.append({"t": t, "node_id": node, "entity_id": write["pointer"], "vector_clock": known})
    return writes


def test_a_recording_of_four_threads_has_its_331_concurrent_writes_on_three_of_ten_pointers() -> None:
    rows = frame(shared_variable())
    assert len(rows) == 588
    assert rows["entity_id"].n_unique() == 10
    assert max(rows["t"]) - min(rows["t"]) < MINUTE_US  # all of it within reach
    met = match_writes(rows)
    assert sorted(met.group_by("entity_id").agg(pl.col("newly").sum())["newly"]) == [4, 135, 192]
    assert met["by_clock"].equals(met["partners"].rename("by_clock"))
