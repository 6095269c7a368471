"""Pairs of writes against a plain loop over all pairs, and against a recording whose conflicts are known."""

from __future__ import annotations

import gzip
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.events import CLOCK, INSTANT
from detectors.tables.writes import ON, concurrent, match_writes
from detectors.windows import MINUTE_US, WINDOW_US

DATA = Path(os.environ.get("ASYNCHEALTH_DATA", "../shared/data")) / "vector_clocks"
NODES = "abc"


def frame(writes: list[dict[str, Any]]) -> pl.DataFrame:
    shape = {
        "environment": pl.String,
        "tenant": pl.String,
        "entity_type": pl.String,
        "entity_id": pl.String,
        "node_id": pl.String,
        "version": pl.Int64,
        "base_version": pl.Int64,
        "vector_clock": CLOCK,
        "started": INSTANT,
        "finished": INSTANT,
        "t": pl.Int64,
        "coord": pl.Int64,
        "weight": pl.Int64,
    }
    rows = [
        {"environment": "", "tenant": "", "entity_type": "x", "coord": i, "weight": 1} | w for i, w in enumerate(writes)
    ]
    columns = {n: [_plain(n, r.get(n)) for r in rows] for n in shape}
    placed = pl.DataFrame(columns, schema=shape).with_columns(window=pl.col("t") // WINDOW_US * WINDOW_US)
    return placed.sort("environment", "tenant", *ON, "t", "coord")


def _plain(name: str, value: Any) -> Any:
    if name == "vector_clock" and value is not None:
        return [{"key": k, "value": v} for k, v in sorted(value.items())]
    return value


def by_loop(rows: pl.DataFrame, reach_us: int) -> set[tuple[int, int, str]]:
    """Every pair, by the definition."""
    found = set()
    writes = rows.to_dicts()
    for i, b in enumerate(writes):
        for a in writes[:i]:
            near = b["window"] - a["window"] <= reach_us
            if a["entity_id"] == b["entity_id"] and a["node_id"] != b["node_id"] and near and (how := _how(a, b)):
                found.add((a["coord"], b["coord"], how))
    return found


def _how(a: dict[str, Any], b: dict[str, Any]) -> str:
    if a["vector_clock"] is not None and b["vector_clock"] is not None:
        ca, cb = ({c["key"]: c["value"] for c in w["vector_clock"]} for w in (a, b))
        knew = cb.get(a["node_id"], 0) >= ca.get(a["node_id"], 0) or ca.get(b["node_id"], 0) >= cb.get(b["node_id"], 0)
        return "" if knew else "vector_clock"
    if None not in (a["version"], a["base_version"], b["version"], b["base_version"]):
        knew = b["base_version"] >= a["version"] or a["base_version"] >= b["version"]
        return "" if knew else "base_version"
    if None not in (a["started"], a["finished"], b["started"], b["finished"]):
        return "interval" if b["started"] < a["finished"] and a["started"] < b["finished"] else ""
    return ""


@st.composite
def histories(draw: st.DrawFn) -> pl.DataFrame:
    writes = []
    for _ in range(draw(st.integers(1, 25))):
        t = draw(st.integers(0, 900)) * 1_000_000
        kind = draw(st.sampled_from(["clock", "version", "interval", "none"]))
        write: dict[str, Any] = {
            "t": t,
            "entity_id": draw(st.sampled_from("12")),
            "node_id": draw(st.sampled_from(NODES)),
        }
        if kind == "clock":
            write["vector_clock"] = draw(st.dictionaries(st.sampled_from(NODES), st.integers(0, 3)))
        elif kind == "version":
            write |= {"base_version": draw(st.integers(0, 5)), "version": draw(st.integers(0, 6))}
        elif kind == "interval":
            write |= {"started": t - draw(st.integers(1, 9_000_000)), "finished": t}
        writes.append(write)
    return frame(writes)


@settings(deadline=None, max_examples=200)
@given(histories(), st.sampled_from([WINDOW_US, 5 * MINUTE_US]))
def test_pairs_are_those_of_a_plain_loop(rows: pl.DataFrame, reach_us: int) -> None:
    pairs = concurrent(rows, reach_us)
    coord = rows["coord"].to_numpy()
    names = ("vector_clock", "base_version", "interval")
    found = {(int(coord[a]), int(coord[b]), names[h]) for a, b, h in zip(*pairs, strict=True)}
    assert found == by_loop(rows, reach_us)


@settings(deadline=None, max_examples=200)
@given(histories())
def test_each_write_with_company_counts_once(rows: pl.DataFrame) -> None:
    expected = {c for a, b, _ in by_loop(rows, 5 * MINUTE_US) for c in (a, b)}
    met = match_writes(rows.with_columns(now=pl.lit(True)))
    assert met["newly"].sum() == len(expected)
    assert set(met["coord"]) <= expected
    assert set(met["witness"]) <= expected


WRITE = re.compile(r"^(?P<t>\d+) Write .*\(ptr=(?P<pointer>\S+)\)$")


def shared_variable() -> list[dict[str, Any]]:
    """The writes of a recording of four threads: two lines an event, what was done and who knew what."""
    path = DATA / "tsviz_shared_var_4_threads.log.gz"
    if not path.exists():
        pytest.skip(f"no recording at {path}: set ASYNCHEALTH_DATA to the folder with the shared recordings")
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    writes = []
    for what, who in zip(lines[::2], lines[1::2], strict=True):
        if write := WRITE.match(what):
            node, clock = who.split(" ", 1)
            t = int(write["t"]) // 1000
            known = msgspec.json.decode(clock)
            writes.append({"t": t, "node_id": node, "entity_id": write["pointer"], "vector_clock": known})
    return writes


def test_a_recording_of_four_threads_has_its_331_concurrent_writes_on_three_of_ten_pointers() -> None:
    writes = shared_variable()
    assert len(writes) == 588
    rows = frame(writes)
    span = int(rows["t"].max() - rows["t"].min()) + WINDOW_US  # type: ignore[operator]
    pairs = concurrent(rows, span)
    involved = rows[sorted({*pairs.earlier.tolist(), *pairs.later.tolist()})]
    assert sorted(Counter(involved["entity_id"]).values()) == [4, 135, 192]
    assert rows["entity_id"].n_unique() == 10
