"""A worker with a user's detector and a lander without it, on real Kafka: what it found lands; the lander says so."""

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
from tests.streams.test_catalog import PYTHON, place

pytestmark = pytest.mark.xdist_group("kafka")
PATIENCE_S = 120  # a window is judged 40 s after it began
ROWS = 300


def begun(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    return subprocess.Popen([*COMMAND, *arguments], cwd=folder, stderr=subprocess.PIPE, env=environment)


def found(folder: Path) -> list[tuple[str, str]]:
    if not (folder / READABLE).exists():
        return []
    con = state.open_readable(folder)
    try:
        return con.execute("SELECT detector, subject FROM findings").fetchall()
    finally:
        con.close()


def test_a_lander_without_the_workers_detector_lands_its_findings_and_says_what_it_lacks(
    kafka: str, tmp_path: Path
) -> None:
    where = ["--broker", kafka, "--prefix", f"o{uuid.uuid4().hex[:8]}."]
    assert asynchealth("topics", "create", *where, "--partitions", "1").returncode == 0
    (tmp_path / "with").mkdir()
    place(tmp_path / "with", refusals=PYTHON)
    worker = begun(tmp_path / "with", "worker", *where)
    lander = begun(tmp_path, "land", *where, "--state", "state")
    try:
        producer = Producer({"bootstrap.servers": kafka})
        for i in range(ROWS):
            status = "ok" if i % 3 else "rejected"
            names = {"service_name": "payment", "caller": "gateway", "node_id": "gateway-1", "side": "client"}
            event = {**names, "timestamp": datetime.now(UTC), "status": status}
            producer.produce(f"{where[-1]}requests", msgspec.json.encode(event))
        assert producer.flush(PATIENCE_S) == 0
        until = time.monotonic() + PATIENCE_S
        while not found(tmp_path / "state") and time.monotonic() < until:
            time.sleep(0.5)
        assert found(tmp_path / "state") == [("refusals", "gateway->payment")]
        lander.send_signal(signal.SIGINT)
        said = lander.communicate(timeout=PATIENCE_S)[1].decode()
        worker.send_signal(signal.SIGINT)
        worker.communicate(timeout=PATIENCE_S)
    finally:
        for process in (worker, lander):
            process.kill()
    assert said.count("detector refusals: run by the workers, not by this lander\nNext: the same asynchealth.toml") == 1
    assert said.count("table answers: measured by the workers, not landed") == 1
