"""Topics in other formats on real Kafka: the worker reads each by its map, and replay of the topics reads the same."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.streams.live.test_commands import PATIENCE_S, accounted, ended, wait_landed
from tests.streams.live.test_own_detectors import begun
from tests.streams.sources.test_avro import MILLIS, framed, mapped
from tests.streams.tape import asynchealth, contents

pytestmark = pytest.mark.xdist_group("kafka-2")
TRACES = 60


def exported(number: int, at_ns: int) -> bytes:
    """What a collector's batch holds: both sides of a call, and a span that is none."""

    def span(kind: int, service: str, own: str, parent: str) -> dict[str, Any]:
        status = [{"key": "http.response.status_code", "value": {"intValue": "503" if number % 3 == 0 else "200"}}]
        times = {"startTimeUnixNano": str(at_ns), "endTimeUnixNano": str(at_ns + 5_000_000)}
        one = {"traceId": f"t{number}", "spanId": own, "parentSpanId": parent, "kind": kind, "attributes": status}
        resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
        return {"resource": resource, "scopeSpans": [{"spans": [one | times]}]}

    spans = [span(1, "web", f"i{number}", ""), span(3, "web", f"c{number}", f"i{number}")]
    return json.dumps({"resourceSpans": [*spans, span(2, "pay", f"s{number}", f"c{number}")]}).encode()


ROW = {
    "type": "record",
    "name": "Row",
    "fields": [{"name": "at", "type": MILLIS}, {"name": "pod", "type": "string"}, {"name": "no", "type": "long"}],
}
WRITES = """stream = "write_log"
[format]
kind = "avro"
schema = "row.avsc"
[fields]
timestamp = { from = "at", unit = "ms" }
node_id = "pod"
entity_id = "no"
"""


def test_a_worker_reads_spans_and_avro_by_the_maps_of_their_topics_and_replay_reads_the_same(
    kafka: str, tmp_path: Path
) -> None:
    name = uuid.uuid4().hex[:8]
    topic, rows, where = f"otel-{name}", f"rows-{name}", ["--broker", kafka, "--prefix", f"m{name}."]
    mapped(tmp_path, WRITES, row=ROW)
    (tmp_path / "asynchealth.toml").write_text(f'[topics]\n{topic} = "otlp"\n{rows} = "orders.toml"\n')
    made = asynchealth("topics", "create", *where, "--partitions", "2", cwd=tmp_path)
    assert made.returncode == 0 and topic.encode() in made.stdout and f"m{name}.requests".encode() not in made.stdout
    running = [begun(tmp_path, "worker", *where), begun(tmp_path, "land", *where, "--state", "live")]
    try:
        producer = Producer({"bootstrap.servers": kafka})
        for i in range(TRACES):
            producer.produce(topic, exported(i, time.time_ns()), partition=i % 2)
        for bad in (b"{", b'{"resourceSpans": 5}', b'{"resourceLogs": []}', None):
            producer.produce(topic, bad, partition=0)
        producer.produce(topic, exported(TRACES, time.time_ns()), partition=0)
        for i in range(TRACES):
            row = {"at": time.time_ns() // 10**6, "pod": f"w-{i % 2}", "no": i}
            producer.produce(rows, framed(row, schema=ROW), partition=i % 2)
        for bad in (framed(row, schema=ROW)[:-1], b"{}", None):
            producer.produce(rows, bad, partition=1)
        assert producer.flush(PATIENCE_S) == 0
        wait_landed(tmp_path / "live", 2 * TRACES + 2)
        wait_landed(tmp_path / "live", TRACES, "write_log")
        behind = asynchealth("lag", *where, cwd=tmp_path)
        assert behind.returncode == 0 and topic.encode() in behind.stdout
        ended(running)
    finally:
        for process in running:
            process.kill()
    addresses = [f"kafka://{kafka}/{t}" for t in (topic, rows)]
    done = asynchealth("replay", *addresses, "--state", "replayed", cwd=tmp_path)
    assert done.returncode == 0 and b"otlp" in done.stdout, done.stdout + done.stderr
    parts = {"used": 3 * TRACES + 2, "rejected": 4, "tombstones": 3}
    assert accounted(tmp_path / "live") == accounted(tmp_path / "replayed") == {"read": sum(parts.values()), **parts}
    live, replayed = (contents(tmp_path / folder)["write_log"] for folder in ("live", "replayed"))
    assert live.drop("source").equals(replayed.drop("source"))
    assert sorted(int(no) for no in live["entity_id"]) == [*range(TRACES)]
    live, replayed = contents(tmp_path / "live")["requests"], contents(tmp_path / "replayed")["requests"]
    assert live.drop("source").equals(replayed.drop("source"))
    assert set(live.select("caller", "service_name").rows()) == {("web", "pay")}
    assert live["status"].value_counts().sort("status").rows() == [("ok", 2 * 40), ("rejected", 2 * 21)]
