"""A worker and a lander on real Kafka count what they read, and say whether they are well."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer

from streams.live.connect import Connection
from streams.live.topics import admin, create, topics
from tests.kafka import Broker, free_port
from tests.streams.live.test_commands import begun, ended
from tests.streams.watch.test_metrics import Samples, asked, of, samples

PATIENCE_S = 90


def wait_for(port: int, *wanted: tuple[str, float, dict[str, str]]) -> Samples:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        found = samples(port)
        if all((of(found, name, **labels) or 0) >= least for name, least, labels in wanted):
            return found
        time.sleep(1)
    raise AssertionError({(n, str(where)): of(samples(port), n, **where) for n, _, where in wanted})


@pytest.mark.xdist_group("kafka")
def test_a_worker_and_a_lander_count_what_they_read_and_are_ready_when_they_are(kafka: str, tmp_path: Path) -> None:
    prefix = f"m{uuid.uuid4().hex[:8]}."
    create(admin(Connection(broker=kafka)), topics(2, prefix))
    ports = free_port(), free_port()
    where = ["--broker", kafka, "--prefix", prefix]
    running = [
        begun("worker", *where, "--metrics", str(ports[0])),
        begun("land", *where, "--state", str(tmp_path / "state"), "--metrics", str(ports[1])),
    ]
    try:
        producer, now = Producer({"bootstrap.servers": kafka}), datetime.now(UTC)
        stamps = [now] * 20 + [now - timedelta(minutes=5)] * 3 + [now + timedelta(days=400)] * 2
        for stamp in stamps:
            event = {"timestamp": stamp, "service_name": "payment", "node_id": "n1"}
            producer.produce(f"{prefix}requests", msgspec.json.encode(event), partition=0)
        producer.produce(f"{prefix}requests", b"no JSON", partition=1)
        assert producer.flush(PATIENCE_S) == 0
        events = "asynchealth_events_total"
        found = wait_for(
            ports[0],
            (events, 26, {"stream": "requests"}),
            ("asynchealth_windows_total", 1, {"step": "judge"}),
            ("asynchealth_finding_changes_total", 1, {"detector": "impossible_timestamp"}),
            ("asynchealth_open_findings", 1, {"detector": "impossible_timestamp"}),
        )
        fates = {f: of(found, events, stream="requests", fate=f) for f in ("used", "late", "implausible", "rejected")}
        assert fates == {"used": 20, "late": 3, "implausible": 2, "rejected": 1}
        assert of(found, "asynchealth_open_findings", detector="impossible_timestamp") == 1
        assert of(found, "asynchealth_assigned_partitions") == 2 * 4 + 2 + 1
        assert of(found, "asynchealth_blind_partitions") == 0
        assert of(found, "asynchealth_copies_total", step="merge") == 0
        assert len([n for n, _ in found if n == "asynchealth_lag_messages"]) == 2 * 4 + 2 + 1
        until = of(found, "asynchealth_read_until_timestamp_seconds", topic=f"{prefix}requests", partition="1")
        assert until is not None and 0 < time.time() - until < 30
        final = of(found, "asynchealth_final_until_timestamp_seconds", step="judge")
        assert final is not None and 30 < time.time() - final < PATIENCE_S
        landed = wait_for(ports[1], ("asynchealth_landed_rows_total", 25, {"stream": "requests"}))
        assert of(landed, "asynchealth_file_bytes") and of(landed, "asynchealth_publication_duration_seconds")
        assert of(landed, "asynchealth_lake_bytes") is not None
        published = of(landed, "asynchealth_publication_timestamp_seconds")
        assert published is not None and time.time() - published < PATIENCE_S
        assert [asked(p, path) for p in ports for path in ("/health", "/ready")] == [(200, "ok\n")] * 4
        ended(running)
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.mark.xdist_group("kafka")
def test_a_worker_whose_kafka_is_gone_is_alive_and_not_ready_and_is_again_when_it_is_back(
    private_kafka: Broker,
) -> None:
    create(admin(Connection(broker=private_kafka.bootstrap)), topics(1))
    port = free_port()
    running = begun("worker", "--broker", private_kafka.bootstrap, "--metrics", str(port))

    def becomes(code: int) -> str:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and asked(port, "/ready")[0] != code:
            time.sleep(1)
        found, why = asked(port, "/ready")
        assert found == code, why
        return why

    try:
        becomes(200)
        private_kafka.kill()
        assert "Kafka has not answered for" in becomes(503)
        assert asked(port, "/health") == (200, "ok\n")
        private_kafka.start()
        becomes(200)
    finally:
        running.kill()
        running.wait()
