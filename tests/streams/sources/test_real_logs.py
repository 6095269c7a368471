"""Logs that others recorded, with known answers, through the command as anybody would type it.

In each set one planted fault of a kind it does not have is found, so that "clean" is no silence of the dead.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from streams.problems import Exit
from tests.streams.tape import ROOT, accounting, asked, asynchealth

DATA = Path(os.environ.get("ASYNCHEALTH_DATA", "../shared/data"))
MAPS = ROOT / "tests" / "maps"


def shared(name: str) -> Path:
    path = (DATA / name).resolve()
    if not path.exists():
        pytest.skip(f"no recording at {path}: set ASYNCHEALTH_DATA to the folder with the shared recordings")
    return path


def replayed(path: Path, folder: Path, *more: str | Path) -> Path:
    done = asynchealth("replay", path, "--state", folder, *more)
    assert done.returncode == Exit.FINE, done.stdout + done.stderr
    return folder


def found(folder: Path) -> list[tuple[str, str, str, str]]:
    return asked(folder, "SELECT detector, subject, level, certainty FROM findings ORDER BY ALL")


# ---- API calls of a cloud account -----------------------------------------------------------------------------------

REJECTED = """
SELECT strftime(date_trunc('minute', window_start), '%H:%M'), sum(rejected)::INT FROM calls
GROUP BY ALL HAVING sum(rejected) > 0 ORDER BY ALL
"""


def test_api_calls_are_known_by_their_fields_and_rejected_in_three_minutes(tmp_path: Path) -> None:
    folder = replayed(shared("cloud_api_throttling/events.jsonl.gz"), tmp_path)
    assert asked(folder, REJECTED) == [("11:58", 26), ("12:07", 17), ("12:08", 59)]
    assert accounting(folder) == {"read": 2_900, "used": 2_900}
    nested = "SELECT count(*) FROM requests WHERE payload_hash IS NULL"
    assert asked(folder, nested) == [(0,)]
    assert asked(folder, "SELECT count(DISTINCT idempotency_key), count(idempotency_key) FROM requests") == [(54, 54)]
    assert [d for d, *_ in found(folder) if d == "duplicate_key"] == []


def test_throttled_calls_that_came_again_are_two_possible_storms(tmp_path: Path) -> None:
    """No record counts retries: they are told from equal calls after a rejected one."""
    log = shared("cloud_api_throttling/events.jsonl.gz")
    folder = replayed(log, tmp_path, "--set", "retry_storm.warn_per_min=15")
    spans = "SELECT strftime(onset, '%H:%M'), strftime(last, '%H:%M'), certainty FROM findings ORDER BY onset"
    assert asked(folder, spans) == [("11:58", "11:58", "possible"), ("12:07", "12:08", "possible")]
    assert {d for d, *_ in found(folder)} == {"retry_storm"}
    counted = asked(folder, "SELECT count(*) FROM repeats")
    assert counted == [(98,)] != [(102,)], "some of the rejected calls came once only"


def test_a_token_used_again_with_another_payload_is_found_among_the_api_calls(tmp_path: Path) -> None:
    records = gzip.decompress(shared("cloud_api_throttling/events.jsonl.gz").read_bytes()).splitlines()
    tokens = [json.loads(r) for r in records if b'"clientToken"' in r]
    first = next(t for t in tokens if (t.get("requestParameters") or {}).get("clientToken"))
    planted = {**first, "eventID": "planted", "requestParameters": {**first["requestParameters"], "planted": 1}}
    path = tmp_path / "planted.jsonl"
    path.write_bytes(b"\n".join([*records, json.dumps(planted).encode()]) + b"\n")
    folder = replayed(path, tmp_path / "state")
    assert [(d, s) for d, s, *_ in found(folder)] == [("duplicate_key", first["eventSource"])]


# ---- clocks of hosts ------------------------------------------------------------------------------------------------


def test_the_stamps_of_one_host_go_back_once_and_no_clock_is_blamed(tmp_path: Path) -> None:
    path = shared("host_clocks/three_hosts.jsonl.gz")
    folder = replayed(path, tmp_path, "--map", MAPS / "hosts.toml")
    assert accounting(folder) == {"read": 40_569, "used": 14_995, "late": 25_574}
    host = "WORKSTATION5.theshire.local"
    assert found(folder)[0] == ("impossible_timestamp", host, "warn", "certain")
    assert {d for d, *_ in found(folder)} == {"impossible_timestamp", "pipeline"}  # the latter: most came late
    proof = "SELECT unnest(proof) FROM findings WHERE detector = 'impossible_timestamp'"
    rows = f"SELECT seq_scope, seq FROM write_log WHERE 'write_log/' || partition || ':' || \"offset\" IN ({proof})"
    assert sorted(asked(folder, rows)) == [(f"{host}/System", 523), (f"{host}/System", 524)]
    screen = asynchealth("findings", "--state", folder).stdout.decode()
    assert "1 row stamped before the row that came before, by up to 32 s" in screen


def test_a_host_whose_stamps_are_of_2099_is_found_among_the_hosts(tmp_path: Path) -> None:
    records = gzip.decompress(shared("host_clocks/three_hosts.jsonl.gz").read_bytes()).splitlines()
    planted = {**json.loads(records[-1]), "Hostname": "planted", "EventTime": "2099-01-01 00:00:00"}
    path = tmp_path / "planted.jsonl"
    path.write_bytes(b"\n".join([*records, json.dumps(planted).encode()]) + b"\n")
    folder = replayed(path, tmp_path / "state", "--map", MAPS / "hosts.toml")
    assert ("impossible_timestamp", "planted", "warn", "certain") in found(folder)


CHRONY = {"tracking": 6, "statistics": 4}  # log, and the column of its offset


@pytest.mark.parametrize(("log", "column"), CHRONY.items())
def test_each_line_of_chrony_is_a_signal_with_the_offset_that_stands_there(
    tmp_path: Path, log: str, column: int
) -> None:
    paths = sorted(p for p in DATA.rglob("*.log*") if "chrony" in p.as_posix() and log in p.name)
    if not paths:
        pytest.skip(f"no {log}.log of chrony under {DATA.resolve()}: set ASYNCHEALTH_DATA to a folder with some")
    for i, path in enumerate(paths):
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
        told = [line.split() for line in text.splitlines() if line[:1].isdigit()]
        folder = replayed(path, tmp_path / str(i))
        by_hand = Counter((cells[2], float(cells[column])) for cells in told if cells[7] != "?")
        ours = asked(folder, "SELECT text, value FROM signals WHERE value IS NOT NULL")
        assert Counter(ours) == by_hand and by_hand
        assert asked(folder, "SELECT count(*) FROM rejects") == [(0,)]


# ---- vector clocks --------------------------------------------------------------------------------------------------


def test_writes_of_four_threads_that_did_not_know_of_each_other(tmp_path: Path) -> None:
    path = shared("vector_clocks/tsviz_shared_var_4_threads.log.gz")
    folder = replayed(path, tmp_path, "--map", MAPS / "threads.toml")
    assert accounting(folder) == {"read": 5_000, "used": 588, "tombstones": 4_412}
    rows = asked(folder, "SELECT entity_id, sum(newly)::INT FROM writes GROUP BY ALL HAVING sum(newly) > 0")
    assert sorted(n for _, n in rows) == [4, 135, 192]
    assert len([d for d, *_ in found(folder) if d == "concurrent_writers"]) == 3
    assert asked(folder, BACK) == []


BACK = "SELECT node_id, sum(back)::INT FROM orders GROUP BY ALL HAVING sum(back) > 0"


def clocks_of(name: str, folder: Path) -> Path:
    return replayed(shared(f"vector_clocks/{name}.events.jsonl.gz"), folder, "--map", MAPS / "clocks.toml")


def test_a_node_of_the_ring_counts_back_twice(tmp_path: Path) -> None:
    folder = clocks_of("chord", tmp_path)
    assert asked(folder, BACK) == [("kv-node-60", 2)]
    assert found(folder) == [], "2 of 223 lines are less than a hundredth"
    near = asynchealth("why-not", "ordering", "--state", folder).stdout.decode()
    assert re.search(r"kv-node-60 +90% of warn .*\(warn_ratio: 0\.00897 of 0\.01 ratio\)", near), near
    asynchealth("rebuild", "--state", folder, "--set", "ordering.warn_ratio=0.005")
    assert found(folder) == [("ordering", "kv-node-60", "warn", "certain")]


def test_no_thread_of_the_server_counts_back(tmp_path: Path) -> None:
    folder = clocks_of("voldemort", tmp_path)
    assert asked(folder, BACK) == [] and found(folder) == []
    assert asked(folder, "SELECT sum(lines) > 500 FROM orders") == [(True,)]


def test_lines_that_count_back_are_found_among_those_of_the_server(tmp_path: Path) -> None:
    records = gzip.decompress(shared("vector_clocks/voldemort.events.jsonl.gz").read_bytes()).splitlines()
    host = Counter(json.loads(r)["host"] for r in records).most_common(1)[0][0]
    mine = [i for i, r in enumerate(records) if json.loads(r)["host"] == host]
    for i in mine[10::10]:
        event = json.loads(records[i])
        records[i] = json.dumps({**event, "clock": {**event["clock"], host: 1}}).encode()
    path = tmp_path / "planted.jsonl"
    path.write_bytes(b"\n".join(records) + b"\n")
    folder = replayed(path, tmp_path / "state", "--map", MAPS / "clocks.toml")
    assert [(d, s) for d, s, *_ in found(folder)] == [("ordering", host)]


# ---- spans of two shops ---------------------------------------------------------------------------------------------

SPANS = [
    *("2022-08-22_04_28", "2022-08-22_05_28", "2022-08-22_07_18", "2022-08-23_15_13", "2022-08-23_16_06"),
    *("2023-01-30_11_52", "2023-01-30_12_16", "2023-01-30_13_31", "normal_2022-08-23_17_00"),
]


def edges_by_hand(text: str) -> Counter[tuple[str | None, str]]:
    rows = list(csv.DictReader(io.StringIO(text)))
    service = {r["SpanID"]: r["PodName"].rsplit("-", 2)[0] for r in rows}
    return Counter((service.get(r["ParentID"]), service[r["SpanID"]]) for r in rows)


@pytest.mark.parametrize("name", SPANS)
def test_spans_have_the_edges_that_a_few_lines_find(tmp_path: Path, name: str) -> None:
    path = shared(f"traces_network_delay/{name}_trace.csv.gz")
    by_hand = edges_by_hand(gzip.decompress(path.read_bytes()).decode())
    folder = replayed(path, tmp_path, "--map", MAPS / "spans.toml")
    assert accounting(folder) == {"read": by_hand.total(), "used": by_hand.total()}
    ours = asked(folder, "SELECT caller, service_name, count(*) FROM requests GROUP BY ALL")
    assert {(c, s): n for c, s, n in ours} == by_hand
    assert not [f for f in found(folder) if f[2] == "page"]
    screen = asynchealth("findings", "--state", folder).stdout.decode()
    assert "timeout_ratio (no status in any source)" in screen


DELAYED = {
    "2022-08-22_04_28": "cartservice",
    "2022-08-22_05_28": "currencyservice",
    "2022-08-22_07_18": "shippingservice",
    "2022-08-23_15_13": "recommendationservice",
    "2022-08-23_16_06": "adservice",
    "2023-01-30_11_52": "ts-contacts-service",
    "2023-01-30_12_16": "ts-basic-service",
    "2023-01-30_13_31": "ts-preserve-service",
}


@pytest.mark.parametrize("name", SPANS)
def test_the_delayed_service_is_the_longest_hop_of_traces_over_a_budget(tmp_path: Path, name: str) -> None:
    """The same budget for all files: where the network was as always, no hop is named, though traces are as slow."""
    path = shared(f"traces_network_delay/{name}_trace.csv.gz")
    budget = ("--set", "timeout_cascade.budget_ms=500")
    folder = replayed(path, tmp_path, "--map", MAPS / "spans.toml", *budget)
    slow = asked(folder, "SELECT count(DISTINCT trace_id) FROM traces WHERE elapsed_us > 500000")
    assert slow[0][0] >= 5
    longest = "SELECT DISTINCT split_part(json_extract_string(facts, '$.longest'), '->', 2) FROM findings"
    named = [s for (s,) in asked(folder, f"{longest} WHERE detector = 'timeout_cascade'")]
    assert named == ([DELAYED[name]] if name in DELAYED else [])
    assert {(d, level, sure) for d, _, level, sure in found(folder)} <= {("timeout_cascade", "warn", "possible")}


def test_expected_answers_are_those_of_the_recordings(tmp_path: Path) -> None:
    told = csv.DictReader(shared("traces_network_delay/expected.csv").read_text().splitlines())
    assert {r["file"].removesuffix("_trace.csv"): r["injected_service"] for r in told} == DELAYED


def test_a_span_stamped_in_2099_is_found_among_the_spans(tmp_path: Path) -> None:
    rows = gzip.decompress(shared(f"traces_network_delay/{SPANS[-1]}_trace.csv.gz").read_bytes()).splitlines()
    cells = rows[-1].decode().split(",")
    start = int(datetime.fromisoformat("2099-01-01T00:00:00+00:00").timestamp()) * 10**9
    planted = ",".join([cells[0], "planted", "root", "planted-1-2", cells[4], str(start), str(start + 1000), "1"])
    path = tmp_path / "planted.csv"
    path.write_bytes(b"\n".join([*rows, planted.encode()]) + b"\n")
    folder = replayed(path, tmp_path / "state", "--map", MAPS / "spans.toml")
    assert [(d, s) for d, s, *_ in found(folder)] == [("impossible_timestamp", "planted-1-2")]
