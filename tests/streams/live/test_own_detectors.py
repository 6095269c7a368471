"""A worker with a user's detector and a lander without it, on real Kafka: what it found lands; the lander says so.

Meanwhile a notifier's canaries go the same way, in no table that anybody reads, until the worker is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer

from streams.landing import state
from streams.live.connect import Connection
from streams.sources.files import READABLE
from streams.watch.notify import Clocks, Notifier
from streams.watch.send import WATCHDOG, Alertmanager
from tests.streams.tape import COMMAND, ROOT, asynchealth
from tests.streams.test_catalog import PYTHON, place
from tests.streams.watch.receivers import Receiver, receiving

pytestmark = pytest.mark.xdist_group("kafka")
PATIENCE_S = 120  # a window is judged 40 s after it began
ROWS = 300
FASTER = 20


@dataclass
class Watch:
    """A notifier with a dead man's alert, and a clock that can be made to run."""

    notifier: Notifier
    manager: Receiver
    lines: list[str]
    rate: list[int]

    @property
    def fed(self) -> int:
        alerts = [a for _, body in list(self.manager.got) for a in body]
        return sum(a["labels"]["alertname"] == WATCHDOG for a in alerts)


@contextmanager
def watching(kafka: str, prefix: str) -> Iterator[Watch]:
    rate, at = [1], [time.monotonic(), 0.0]

    def clock() -> float:
        now = time.monotonic()
        at[:] = [now, at[1] + rate[0] * (now - at[0])]
        return at[1]

    lines: list[str] = []
    with receiving() as manager:
        ways = [Alertmanager(manager.url)]
        notifier = Notifier(Connection(broker=kafka), ways, lines.append, prefix, clocks=Clocks(clock, time.time))
        running = threading.Thread(target=notifier.run)
        running.start()
        try:
            yield Watch(notifier, manager, lines, rate)
        finally:
            notifier.stop()
            running.join(PATIENCE_S)


def wait(until: Callable[[], object]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not until() and time.monotonic() < ends:
        time.sleep(0.5)
    assert until()


def read(folder: Path) -> tuple[int, set[str]]:
    """How many requests were read, and which signals are shown."""
    con = state.open_readable(folder)
    try:
        requests = con.execute("SELECT sum(read)::BIGINT FROM accounting WHERE stream = 'requests'").fetchall()
        (tables,) = zip(*con.execute("SELECT table_name FROM duckdb_tables()").fetchall(), strict=True)
        assert "canary" not in tables
        return requests[0][0], {name for (name,) in con.execute("SELECT name FROM signals").fetchall()}
    finally:
        con.close()


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
    with watching(kafka, where[-1]) as watch:
        _landed(kafka, tmp_path, where, worker, lander, watch)


def _landed(
    kafka: str,
    tmp_path: Path,
    where: list[str],
    worker: subprocess.Popen[bytes],
    lander: subprocess.Popen[bytes],
    watch: Watch,
) -> None:
    try:
        producer = Producer({"bootstrap.servers": kafka})
        for i in range(ROWS):
            status = "ok" if i % 3 else "rejected"
            names = {"service_name": "payment", "caller": "gateway", "node_id": "gateway-1", "side": "client"}
            event = {**names, "timestamp": datetime.now(UTC), "status": status}
            producer.produce(f"{where[-1]}requests", msgspec.json.encode(event))
        assert producer.flush(PATIENCE_S) == 0
        wait(lambda: found(tmp_path / "state"))
        assert found(tmp_path / "state") == [("refusals", "gateway->payment")]
        wait(lambda: watch.fed)
        lander.send_signal(signal.SIGINT)
        said = lander.communicate(timeout=PATIENCE_S)[1].decode()
        assert (watch.fed, watch.lines) == (1, [])
        worker.kill()
        watch.rate[0] = FASTER
        wait(lambda: watch.lines)
        fed = watch.fed
        time.sleep(200 / FASTER)
        assert watch.fed == fed, "nothing that comes out feeds it, since nothing does"
        assert watch.lines[0].startswith("the dead man's alert is not fed: nothing is judged since ")
    finally:
        for process in (worker, lander):
            process.kill()
    assert said.count("detector refusals: run by the workers, not by this lander\nNext: the same asynchealth.toml") == 1
    assert said.count("table answers: measured by the workers, not landed") == 1
    topics = [f"kafka://{kafka}/{where[-1]}{stream}" for stream in ("requests", "signals")]
    replayed = asynchealth("replay", *topics, "--state", str(tmp_path / "replayed"))
    assert replayed.returncode == 0, replayed.stderr
    rows, told = read(tmp_path / "replayed")
    assert (rows, told) == (ROWS, {"incident.notified"}), "people were told, and no canary is shown"
    rows, landed = read(tmp_path / "state")
    assert rows == ROWS and landed <= told, "the lander may have ended before that was said"
