"""The commands worker and land on real Kafka, on topics as they are made for production, and what services may send."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer, TopicPartition

from streams.landing import state
from streams.live.connect import Connection
from streams.live.topics import admin
from streams.live.transport import FETCH_WAIT_MS
from streams.sources.files import READABLE
from tests.streams.live.test_topics import alter
from tests.streams.tape import COMMAND, ROOT, asynchealth

pytestmark = pytest.mark.xdist_group("kafka")
PATIENCE_S = 60
ROWS = 100
LARGE = 10_000_000  # bytes; a fetch asks for a tenth of it


def begun(*arguments: str) -> subprocess.Popen[bytes]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    return subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def ended(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """One signal ends each, as it should."""
    for process in running:
        process.send_signal(signal.SIGINT)
    said = [process.communicate(timeout=PATIENCE_S)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0] * len(running), said


def wait_landed(folder: Path, rows: int, stream: str = "requests") -> None:
    until = time.monotonic() + PATIENCE_S
    while landed(folder, stream) < rows and time.monotonic() < until:
        time.sleep(0.5)
    assert landed(folder, stream) == rows


def landed(folder: Path, stream: str = "requests") -> int:
    if not (folder / READABLE).exists():
        return 0
    con = state.open_readable(folder)
    try:
        return int(con.execute(f"SELECT count(*) FROM {stream} WHERE fate = 'used'").fetchall()[0][0])
    finally:
        con.close()


def accounted(folder: Path) -> dict[str, int]:
    """What became of the requests, without what did not happen."""
    con = state.open_readable(folder)
    try:
        numbers = con.sql('SELECT sum(COLUMNS(* EXCLUDE (stream, source, "partition", minute))) FROM accounting').pl()
        return {n: int(v) for n, v in numbers.row(0, named=True).items() if v}
    finally:
        con.close()


def event(**more: Any) -> bytes:
    names = {"service_name": "payment", "node_id": "n1"}
    return msgspec.json.encode({"timestamp": datetime.now(UTC), **names} | more)


def test_what_services_send_is_in_duckdb_while_both_run_and_one_signal_ends_each(kafka: str, tmp_path: Path) -> None:
    """Also 10 MB at once, garbage, nothing, and what is dated 2099. The second partition goes idle and comes back."""
    prefix = f"c{uuid.uuid4().hex[:8]}."
    where = ["--broker", kafka, "--prefix", prefix]
    assert asynchealth("topics", "create", *where, "--partitions", "2").returncode == 0
    topic = f"{prefix}requests"
    alter(admin(Connection(broker=kafka)), topic, "max.message.bytes", str(2 * LARGE))
    running = [begun("worker", *where), begun("land", *where, "--state", str(tmp_path / "state"))]
    try:
        producer = Producer({"bootstrap.servers": kafka, "message.max.bytes": 2 * LARGE})
        for i in range(ROWS):
            producer.produce(topic, event(node_id=f"n{i % 3}"), partition=i % 2)
        for bad in (b"no JSON", b"\xff\x00\xfe", None, event(timestamp="2099-01-01T00:00:00Z")):
            producer.produce(topic, bad, partition=0)
        producer.produce(topic, event(error="x" * LARGE), partition=0)
        producer.produce(topic, event(node_id="n2"), partition=0)
        assert producer.flush(PATIENCE_S) == 0
        wait_landed(tmp_path / "state", ROWS + 2)
        producer.produce(topic, event(node_id="n2"), partition=1)
        assert producer.flush(PATIENCE_S) == 0
        wait_landed(tmp_path / "state", ROWS + 3)
        ended(running)
    finally:
        for process in running:
            process.kill()
    said = asynchealth("sql", "SELECT reason FROM rejects", "--json", "--state", tmp_path / "state").stdout
    assert said.count(b"not JSON") == 2
    parts = {"used": ROWS + 3, "implausible": 1, "rejected": 2, "tombstones": 1}
    assert accounted(tmp_path / "state") == {"read": sum(parts.values()), **parts}
    sizes = asynchealth("sql", "SELECT max(length(error)) AS n FROM requests", "--json", "--state", tmp_path / "state")
    assert str(LARGE).encode() in sizes.stdout
    alter(admin(Connection(broker=kafka)), topic, "message.timestamp.type", "CreateTime")
    refused = asynchealth("worker", *where)
    assert refused.returncode == 2
    assert f"topic {topic}: its records carry their producers' clocks".encode() in refused.stderr


@pytest.mark.parametrize("command", ["worker", "land"])
def test_topics_that_are_not_there_are_named_with_the_command_that_looks(command: str, kafka: str) -> None:
    refused = asynchealth(command, "--broker", kafka, "--prefix", "none.")
    assert refused.returncode == 2
    assert b"topic none.requests: not there" in refused.stderr
    assert f"asynchealth topics check --broker {kafka} --prefix none.".encode() in refused.stderr


LOSS_PATIENCE_S = 120  # a window is final 40 s after it began


@pytest.mark.parametrize("stands_still", [False, True])
def test_what_the_log_deleted_before_it_was_read_is_a_finding_and_the_rest_is_accounted_for(
    stands_still: bool, kafka: str, tmp_path: Path
) -> None:
    """The worker is away, and retention passes its position."""
    prefix, folder = f"d{uuid.uuid4().hex[:8]}.", tmp_path / "state"
    where = ["--broker", kafka, "--prefix", prefix]
    assert asynchealth("topics", "create", *where, "--partitions", "1").returncode == 0
    producer, topic = Producer({"bootstrap.servers": kafka}), f"{prefix}requests"

    def send(rows: int) -> None:
        for i in range(rows):
            producer.produce(topic, event(node_id=f"n{i % 3}"), partition=0)
        assert producer.flush(PATIENCE_S) == 0

    worker, lander = begun("worker", *where), begun("land", *where, "--state", str(folder))
    try:
        send(ROWS)
        wait_landed(folder, ROWS)
        if stands_still:
            worker.send_signal(signal.SIGSTOP)
            time.sleep(10 * FETCH_WAIT_MS / 1_000)  # its last fetch is answered, with nothing
        else:
            ended([worker])
        send(50)
        asked = admin(Connection(broker=kafka))
        deleted = asked.delete_records([TopicPartition(topic, 0, ROWS + 30)])
        assert [d.result().low_watermark for d in deleted.values()] == [ROWS + 30]
        if stands_still:
            worker.send_signal(signal.SIGCONT)
        else:
            worker = begun("worker", *where)
        wait_landed(folder, ROWS + 20)
        found: list[dict[str, Any]] = []
        until = time.monotonic() + LOSS_PATIENCE_S
        while not found and time.monotonic() < until and worker.poll() is None:
            time.sleep(1)
            said = asynchealth("findings", "--json", "--state", folder).stdout.splitlines()
            found = [f for f in map(json.loads, said) if f["kind"] == "deleted"]
        ended([worker, lander])
    finally:
        for process in (worker, lander):
            process.kill()
    (one,) = found
    assert (one["detector"], one["level"], one["subject"], one["value"]) == ("pipeline", "page", "requests/0", 30)
    assert (one["facts"]["first_offset"], one["facts"]["last_offset"]) == (ROWS, ROWS + 29)
    assert accounted(folder) == {"read": ROWS + 20, "used": ROWS + 20}
