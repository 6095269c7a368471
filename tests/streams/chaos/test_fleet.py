"""The simulated hour: reproducible, and its labels agree with a recount by plain loops over the rows alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from detectors.events import SCHEMA, decode_json
from streams.chaos.fleet import START, Tape, make_hour, write_tape

pytestmark = pytest.mark.xdist_group("fleet")  # they share its hours

Row = dict[str, Any]
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
AHEAD, OLD, LATENESS = 60 * SECOND, timedelta(days=30), 30 * SECOND


@pytest.fixture(scope="module", params=[1, 2])
def seed(request: pytest.FixtureRequest) -> Iterator[int]:
    """An hour with faults. All tests of one hour run together, so that only its rows are in memory."""
    yield int(request.param)
    rows.cache_clear()


@pytest.fixture(scope="module", params=[101, 104])
def calm_seed(request: pytest.FixtureRequest) -> Iterator[int]:
    yield int(request.param)
    rows.cache_clear()


@lru_cache(maxsize=2)
def hour(seed: int, is_calm: bool = False) -> Tape:
    return make_hour(seed, calm=is_calm)


@lru_cache(maxsize=4)
def rows(seed: int, stream: str, is_calm: bool = False) -> list[Row]:
    found = [row for part in hour(seed, is_calm).frames[stream] for row in part.iter_rows(named=True)]
    assert found
    return found


def fault(seed: int, detector: str, level: str = "page") -> Row:
    faults: list[Row] = hour(seed).labels["faults"]
    (one,) = [f for f in faults if (f["detector"], f["level"]) == (detector, level)]
    return one


def end(row: Row) -> datetime:
    """Event time of a request, as the line tells it."""
    at: datetime = row["timestamp"] + timedelta(milliseconds=row["duration_ms"])
    return at


def event_time(stream: str, row: Row) -> datetime:
    at: datetime = end(row) if stream == "requests" else row[{"heartbeats": "server_time"}.get(stream, "timestamp")]
    return row["finished"] if stream == "write_log" and row["finished"] else at


def attempts(seed: int, is_calm: bool = False) -> dict[str, list[Row]]:
    """Client lines by edge."""
    found = defaultdict(list)
    for row in rows(seed, "requests", is_calm):
        if row["side"] == "client":
            found[f"{row['caller']}->{row['service_name']}"].append(row)
    assert len(found) >= 10
    return found


def by_key(seed: int, is_calm: bool = False) -> dict[tuple[str, str], list[Row]]:
    """Server lines of one idempotency key, by start."""
    found = defaultdict(list)
    for row in rows(seed, "requests", is_calm):
        if row["side"] == "server" and row["idempotency_key"]:
            found[row["service_name"], row["idempotency_key"]].append(row)
    assert len(found) > 10_000
    return {k: sorted(v, key=lambda r: r["timestamp"]) for k, v in found.items()}


def trailing_minutes(lines: list[Row], bad: Callable[[Row], bool]) -> Iterator[tuple[datetime, int, int]]:
    """(start of the minute, attempts, bad ones) for each minute that ends with a window of 10 s."""
    per: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for row in lines:
        window = int(end(row).timestamp()) // 10
        for w in range(window, window + 6):
            per[w][0] += 1
            per[w][1] += bad(row)
    for w in sorted(per):
        yield datetime.fromtimestamp((w - 5) * 10, UTC), per[w][0], per[w][1]


# ---- the same hour again ---------------------------------------------------------------------------------------------


def test_one_seed_gives_the_same_bytes_in_processes_with_other_hash_seeds(tmp_path: Path) -> None:
    made = "from streams.chaos.fleet import *; write_tape(make_hour(5, minutes=40, scale=0.2), Path({!r}))"
    for hash_seed in ("1", "2"):
        code = made.format(str(tmp_path / hash_seed))
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONHASHSEED": hash_seed})
    names = sorted(p.name for p in (tmp_path / "1").iterdir())
    assert len(names) == 6
    assert [(tmp_path / "1" / n).read_bytes() for n in names] == [(tmp_path / "2" / n).read_bytes() for n in names]


def test_another_seed_moves_the_faults_and_every_row() -> None:
    def what(seed: int) -> list[tuple[str, str, str]]:
        return [(f["detector"], f["subject"], f["onset_first_row"]) for f in hour(seed).labels["faults"]]

    assert what(1) != what(2) != what(3) != what(1)
    for stream, parts in hour(1).frames.items():
        assert not parts[0].equals(hour(2).frames[stream][0])


def test_the_options_set_where_the_tape_begins_and_ends_and_how_much_is_in_it() -> None:
    start = datetime(2026, 3, 1, 12, tzinfo=UTC)
    one, two = (make_hour(1, calm=True, start=start, minutes=10, scale=s) for s in (1.0, 2.0))
    arrivals = pl.concat([p["arrival"] for parts in one.frames.values() for p in parts])
    assert start <= arrivals.min() <= start + MINUTE  # type: ignore[operator]
    assert start + 9 * MINUTE <= arrivals.max() < start + 10 * MINUTE  # type: ignore[operator]
    many, more = (sum(map(len, t.frames["requests"])) for t in (one, two))
    assert 1.9 < more / many < 2.1


def test_an_hour_too_short_for_its_faults_is_refused() -> None:
    with pytest.raises(ValueError, match="40 minutes"):
        make_hour(1, minutes=39)


# ---- the tape --------------------------------------------------------------------------------------------------------


def test_files_decode_to_the_frames_and_what_is_rejected_is_what_the_label_says(tmp_path: Path) -> None:
    tape = hour(1)
    paths = write_tape(tape, tmp_path)
    read = rejected = 0
    for stream, parts in tape.frames.items():
        for p, part in enumerate(parts):
            lines = (tmp_path / f"{stream}-{p}.jsonl").read_bytes().splitlines()
            decoded = decode_json(stream, lines)
            assert decoded.events.select(part.columns).equals(part)
            read += len(lines)
            rejected += len(decoded.rejects)
    assert rejected == tape.labels["totals"]["rejected"] == 12
    assert read == tape.labels["totals"]["read"]
    assert sorted(p.name for p in paths) == sorted(p.name for p in tmp_path.iterdir())


def test_parquet_holds_the_same_rows_and_labels_without_rejects(tmp_path: Path) -> None:
    tape = make_hour(2, minutes=40, scale=0.3)
    write_tape(tape, tmp_path / "jsonl")
    write_tape(tape, tmp_path / "parquet", "parquet")
    parts = [p for parts in tape.frames.values() for p in parts]
    files = [f"{s}-{i}.parquet" for s, ps in tape.frames.items() for i in range(len(ps))]
    assert all(pl.read_parquet(tmp_path / "parquet" / f).equals(p) for f, p in zip(files, parts, strict=True))
    jsonl, parquet = ((tmp_path / fmt / "labels.json").read_text() for fmt in ("jsonl", "parquet"))
    assert '"rejected": 0' in parquet
    assert '"rejected": 0' not in jsonl


def test_columns_are_the_streams_and_arrival_never_goes_back_in_a_partition(seed: int) -> None:
    tape = hour(seed)
    assert {s: len(parts) for s, parts in tape.frames.items()} == {
        "requests": 2,
        "heartbeats": 1,
        "write_log": 1,
        "signals": 1,
    }
    for stream, parts in tape.frames.items():
        for part in parts:
            assert part["arrival"].is_sorted()
            assert part["arrival"].null_count() == 0
            assert all(SCHEMA[stream][n] == t for n, t in part.schema.items())


def test_the_default_hour_has_the_size_and_the_shares_that_the_screens_show() -> None:
    sizes = {s: sum(map(len, parts)) for s, parts in hour(1).frames.items()}
    assert 290_000 < sum(sizes.values()) < 315_000
    assert 0.82 < sizes["requests"] / sum(sizes.values()) < 0.90
    assert len({r["node_id"] for r in rows(1, "heartbeats")}) == 47
    assert hour(1).labels["hour"]["start"].startswith(START.strftime("%Y-%m-%dT%H"))


def test_the_recounted_fates_are_the_labelled_totals(seed: int) -> None:
    used = late = implausible = 0
    for stream in SCHEMA:
        for row in rows(seed, stream):
            delay = row["arrival"] - event_time(stream, row)
            if delay < -AHEAD or delay > OLD:
                implausible += 1
            elif delay > LATENESS:
                late += 1
            else:
                used += 1
    totals = hour(seed).labels["totals"]
    assert (used, late, implausible) == (totals["used"], totals["late"], totals["implausible"])
    assert 20 <= late <= 50
    assert totals["read"] == used + late + implausible + totals["rejected"]


def test_a_servers_parent_is_the_client_span_of_the_same_attempt(seed: int) -> None:
    clients = {r["span_id"]: r for r in rows(seed, "requests") if r["side"] == "client"}
    paired = 0
    for r in rows(seed, "requests"):
        if r["side"] == "server" and (c := clients.get(r["parent_span_id"])):  # a client line may still be on its way
            same = ("trace_id", "request_id", "retry_count", "caller", "service_name", "idempotency_key")
            assert [r[n] for n in same] == [c[n] for n in same]
            assert (r["node_id"], r["peer_node"]) == (c["peer_node"], c["node_id"])
            assert c["cache"] is None and c["applied"] is None
            paired += 1
    assert paired > 50_000
    assert len({r["span_id"] for r in rows(seed, "requests")}) == len(rows(seed, "requests"))


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_keys_that_servers_applied_twice_are_the_labelled_ones(seed: int) -> None:
    applied = {k: [r for r in v if r["applied"]] for k, v in by_key(seed).items()}
    twice = {key for (service, key), v in applied.items() if len(v) > 1}
    label = fault(seed, "duplicate_key")
    assert twice == set(label["keys"])
    assert len(twice) == label["count"] == hour(seed).plan.faults.doubled  # type: ignore[union-attr]
    second = min(sorted(end(r) for r in applied["payment", key])[1] for key in twice)
    assert abs(second - datetime.fromisoformat(label["onset_first_row"])) < timedelta(milliseconds=1)


def test_both_runs_of_a_doubled_key_overlap_once_their_clocks_are_set_right(seed: int) -> None:
    label, truth = fault(seed, "duplicate_key"), hour(seed).labels["truth"]
    lines = by_key(seed)
    for key in label["keys"]:
        spans = []
        for r in lines["payment", key]:
            if r["applied"]:
                ahead = timedelta(microseconds=truth[r["node_id"]]["end_us"])  # a step comes before the storm
                spans.append((r["timestamp"] - ahead, end(r) - ahead, r["retry_count"]))
        (a, b) = sorted(spans, key=lambda s: s[2])
        assert (a[2], b[2]) == (0, 1)
        assert a[0] < b[0] < b[1] < a[1]


def test_every_other_repeat_begins_after_the_effect_even_by_wrong_clocks(seed: int) -> None:
    doubled, repeats = set(fault(seed, "duplicate_key")["keys"]), 0
    for (_, key), lines in by_key(seed).items():
        if key in doubled:
            continue
        effects = [r for r in lines if r["applied"]]
        assert len(effects) <= 1
        for r in lines:
            if effects and r is not effects[0] and r["status"] == "ok":
                assert r["timestamp"] > end(effects[0])
                assert r["payload_hash"] == effects[0]["payload_hash"]
                repeats += 1
    assert repeats > 1_000


def knows(w: Row, of: Row) -> bool:
    """Whether the write w was made in knowledge of the other."""
    if w["vector_clock"] is not None:
        mine, its = ({c["key"]: c["value"] for c in x["vector_clock"]} for x in (w, of))
        return bool(mine.get(of["node_id"], 0) >= its[of["node_id"]])
    return bool(w["base_version"] >= of["version"])


def conflicts(seed: int, is_calm: bool = False) -> dict[str, list[Row]]:
    """By entity, the writes that have a write of another node that neither knew of."""
    entities, found = defaultdict(list), defaultdict(list)
    for w in rows(seed, "write_log", is_calm):
        entities[f"{w['entity_type']}/{w['entity_id']}"].append(w)
    assert len(entities) > 100
    for name, writes in entities.items():
        for w in writes:
            others = [o for o in writes if o["node_id"] != w["node_id"] and not knows(w, o) and not knows(o, w)]
            if others:
                assert min(abs(o["timestamp"] - w["timestamp"]) for o in others) < MINUTE
                found[name].append(w)
    return found


def test_writes_that_did_not_know_each_other_are_the_labelled_ones_and_no_others(seed: int) -> None:
    labels = {f["subject"]: f for f in hour(seed).labels["faults"] if f["detector"] == "concurrent_writers"}
    found = conflicts(seed)
    assert {name: len(w) for name, w in found.items()} == {name: f["count"] for name, f in labels.items()}
    assert labels["order/cart"]["level"] == "page" and labels["order/cart"]["count"] > 10
    assert labels["user/profile"]["level"] == "warn" and 1 < labels["user/profile"]["count"] <= 10
    for name, writes in found.items():
        assert len({w["node_id"] for w in writes}) == 2
        second = sorted(event_time("write_log", w) for w in writes)[1]
        assert labels[name]["onset_first_row"].startswith(second.strftime("%Y-%m-%dT%H:%M:%S.%f"))


def test_retries_and_timeouts_cross_their_thresholds_on_the_labelled_edge_alone(seed: int) -> None:
    storm, ratio = fault(seed, "retry_storm"), fault(seed, "timeout_ratio")
    for edge, lines in attempts(seed).items():
        retries = [m for m in trailing_minutes(lines, lambda r: r["retry_count"] > 0) if m[2] > 0.05 * m[1]]
        timeouts = [m for m in trailing_minutes(lines, lambda r: r["status"] == "timeout") if m[1] >= 50]
        most, worst = max((m[2] for m in retries), default=0), max((m[2] / m[1] for m in timeouts), default=0)
        if edge != storm["subject"]:
            assert most <= 100 and worst <= 0.05, edge
            continue
        assert most > 520 and worst > 0.15
        hot = next(m[0] for m in retries if m[2] > 100), next(m[0] for m in timeouts if m[2] > 0.05 * m[1])
        first = (
            min(end(r) for r in lines if end(r) >= hot[0] and r["retry_count"] > 0),
            min(end(r) for r in lines if end(r) >= hot[1] and r["status"] == "timeout"),
        )
        for label, at in zip((storm, ratio), first, strict=True):
            assert abs(datetime.fromisoformat(label["onset_first_row"]) - at) < timedelta(milliseconds=1)


def test_the_dated_rows_are_few_enough_of_their_nodes_for_a_warning(seed: int) -> None:
    label = fault(seed, "impossible_timestamp", "warn")
    own = [
        row["arrival"] - event_time(stream, row)
        for stream in ("requests", "heartbeats", "write_log")
        for row in rows(seed, stream)
        if row["node_id"] == label["subject"]
    ]
    dated = [d for d in own if d < -AHEAD]
    assert len(dated) == label["count"] > 0
    assert all(d < -timedelta(days=365 * 70) for d in dated)
    before = [
        row
        for row in rows(seed, "requests")
        if row["node_id"] == label["subject"] and row["arrival"] < datetime.fromisoformat(label["onset_first_row"])
    ]
    assert len(before) >= 1_300
    assert len(dated) < 0.01 * len(before)


def test_heartbeats_show_the_offsets_that_the_labels_call_true(seed: int) -> None:
    labels = hour(seed).labels
    skewed = {f["subject"] for f in labels["faults"] if f["detector"] == "clock_skew"}
    assert len(skewed) == 2
    seen = defaultdict(list)
    for row in rows(seed, "heartbeats"):
        seen[row["node_id"]].append(row["client_time"] - row["server_time"])
    for node, ahead in seen.items():
        first, last = (labels["truth"][node][n] / 1e6 for n in ("start_us", "end_us"))
        assert abs(max(ahead[:30]).total_seconds() - first) < 0.002
        assert abs(max(ahead[-30:]).total_seconds() - last) < 0.002
        assert (max(abs(first), abs(last)) > 0.1) == (node in skewed)


# ---- calm hours ------------------------------------------------------------------------------------------------------


def test_a_calm_hour_has_no_fault_and_nothing_near_a_page(calm_seed: int) -> None:
    labels = hour(calm_seed, True).labels
    assert labels["faults"] == labels["allowed"] == []
    assert labels["totals"]["implausible"] == labels["totals"]["rejected"] == 0
    assert not conflicts(calm_seed, True)
    for edge, lines in attempts(calm_seed, True).items():
        retries = list(trailing_minutes(lines, lambda r: r["retry_count"] > 0))
        timeouts = list(trailing_minutes(lines, lambda r: r["status"] == "timeout"))
        spent = list(trailing_minutes(lines, lambda r: r["duration_ms"] > 0.8 * r["timeout_ms"]))
        assert max(m[2] for m in retries) <= 100, edge
        assert max((m[2] / m[1] for m in timeouts if m[1] >= 50), default=0) <= 0.05, edge
        assert max((m[2] / m[1] for m in spent if m[1] >= 50), default=0) <= 0.01, edge
    for truth in labels["truth"].values():
        assert max(abs(truth["start_us"]), abs(truth["end_us"])) <= 5_000


def test_a_calm_hour_has_honest_retries_repeats_and_some_cold_misses_but_no_double_effect(calm_seed: int) -> None:
    lines = [r for edge in attempts(calm_seed, True).values() for r in edge]
    assert sum(r["retry_count"] > 0 for r in lines) >= 0.01 * len(lines)
    looked_up = [
        r for v in by_key(calm_seed, True).values() for r in v[1:] if any(o["applied"] for o in v if o is not r)
    ]
    missed = sum(r["cache"] == "miss" for r in looked_up)
    assert len(looked_up) > 1_000
    assert missed <= 0.2 * len(looked_up)
    assert all(sum(bool(r["applied"]) for r in v) <= 1 for v in by_key(calm_seed, True).values())


def test_a_calm_deploy_is_signalled_and_who_is_silent_has_said_goodbye(calm_seed: int) -> None:
    deploys = [s for s in rows(calm_seed, "signals", True) if (s["kind"], s["name"]) == ("change", "deploy")]
    assert len(deploys) == 1
    beats = defaultdict(list)
    for row in sorted(rows(calm_seed, "heartbeats", True), key=lambda r: r["server_time"]):
        beats[row["node_id"]].append(row)
    gone = set()
    for node, own in beats.items():
        for one, next_ in pairwise(own):
            if next_["server_time"] - one["server_time"] > 15 * SECOND:
                assert one["role"] == "leaving"
                gone.add(node)
    assert gone
    assert all(node.startswith(deploys[0]["subject"]) for node in gone)
