"""The commands worker and land on real Kafka, on topics as they are made for production."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer

from streams.landing import state
from streams.sources.files import READABLE
from tests.streams.tape import COMMAND, ROOT, asynchealth

pytestmark = pytest.mark.xdist_group("kafka")
PATIENCE_S = 60
ROWS = 100


def begun(*arguments: str) -> subprocess.Popen[bytes]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    return subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def landed(folder: Path) -> int:
    if not (folder / READABLE).exists():
        return 0
    con = state.open_readable(folder)
    try:
        return int(con.execute("SELECT count(*) FROM requests WHERE fate = 'used'").fetchall()[0][0])
    finally:
        con.close()


def test_what_services_send_is_in_duckdb_while_both_run_and_one_signal_ends_each(kafka: str, tmp_path: Path) -> None:
    prefix = f"c{uuid.uuid4().hex[:8]}."
    where = ["--broker", kafka, "--prefix", prefix]
    assert asynchealth("topics", "create", *where, "--partitions", "2").returncode == 0
    running = [begun("worker", *where), begun("land", *where, "--state", str(tmp_path / "state"))]
    try:
        producer = Producer({"bootstrap.servers": kafka})
        for i in range(ROWS):
            event = {"timestamp": datetime.now(UTC), "service_name": "payment", "node_id": f"n{i % 3}"}
            producer.produce(f"{prefix}requests", msgspec.json.encode(event))
        producer.produce(f"{prefix}requests", b"no JSON")
        assert producer.flush(PATIENCE_S) == 0
        until = time.monotonic() + PATIENCE_S
        while landed(tmp_path / "state") < ROWS and time.monotonic() < until:
            time.sleep(0.5)
        assert landed(tmp_path / "state") == ROWS
        for process in running:
            process.send_signal(signal.SIGINT)
        assert [process.wait(PATIENCE_S) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    said = asynchealth("sql", "SELECT reason FROM rejects", "--json", "--state", tmp_path / "state").stdout
    assert b"JSON" in said


@pytest.mark.parametrize("command", ["worker", "land"])
def test_topics_that_are_not_there_are_named_with_the_command_that_looks(command: str, kafka: str) -> None:
    refused = asynchealth(command, "--broker", kafka, "--prefix", "none.")
    assert refused.returncode == 2
    assert b"topic none.requests: not there" in refused.stderr
    assert f"asynchealth topics check --broker {kafka} --prefix none.".encode() in refused.stderr
