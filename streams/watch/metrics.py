"""Plain numbers enter, /metrics, /health and /ready leave: how worker, lander and notifier are watched.

The process counts into a Meter; a thread of its own answers HTTP from it, so that an answer never waits for the loop
that works. Instants are exported, not ages: those go on growing where the process has stopped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from detectors.windows import FATES
from streams.problems import Problem

ALIVE_S = 30.0  # a loop that did not come round for so long is stuck
READY_S = 30.0  # nor is what has not reached Kafka for so long
COUNTED = (*FATES, "rejected", "stray", "repeated", "parked")

Labels = tuple[str, ...]


class Measure(NamedTuple):
    name: str
    kind: Literal["counter", "gauge"]
    labels: Labels
    meaning: str


FINAL = Measure(
    "asynchealth_final_until_timestamp_seconds", "gauge", ("step",), "Windows that end before are done by this step."
)
COPIES = (
    Measure("asynchealth_copies_total", "counter", ("step",), "Messages of ours that came again and were dropped."),
    Measure("asynchealth_copies_unequal_total", "counter", ("step",), "Of those, said something else than the first."),
)
LAG = Measure("asynchealth_lag_messages", "gauge", ("topic", "partition"), "Behind the end of a partition's log.")
WORKER = (
    Measure("asynchealth_events_total", "counter", ("stream", "fate"), "Events read, by what became of them."),
    Measure("asynchealth_slices_total", "counter", ("stream",), "Intervals of 2 s of a partition that were said."),
    Measure("asynchealth_windows_total", "counter", ("step",), "Windows of 10 s that a step made final."),
    Measure(
        "asynchealth_read_until_timestamp_seconds",
        "gauge",
        ("topic", "partition"),
        "All that arrived in a partition before is accounted for: the smallest holds the others.",
    ),
    Measure(
        "asynchealth_blind_partitions", "gauge", ("topic",), "Partitions of this worker whose end Kafka does not tell."
    ),
    Measure("asynchealth_assigned_partitions", "gauge", (), "Partitions that this worker has."),
    Measure("asynchealth_finding_changes_total", "counter", ("detector", "level"), "Findings that began or rose."),
    Measure("asynchealth_open_findings", "gauge", ("detector", "level"), "Findings that are open now."),
    FINAL,
    LAG,
    *COPIES,
)
LANDER = (
    Measure("asynchealth_landed_rows_total", "counter", ("stream",), "Rows that went into the lake."),
    Measure("asynchealth_publication_timestamp_seconds", "gauge", (), "When the readable file was last put in place."),
    Measure("asynchealth_publication_duration_seconds", "gauge", (), "How long that took."),
    Measure("asynchealth_file_bytes", "gauge", (), "Size of the readable file."),
    Measure("asynchealth_lake_bytes", "gauge", (), "Size of the parts of the lake that count."),
    Measure("asynchealth_lake_oldest_timestamp_seconds", "gauge", (), "Arrival of the oldest row in the lake."),
    FINAL,
    LAG,
    *COPIES,
)
NOTIFIER = (
    Measure("asynchealth_notifications_total", "counter", ("way", "outcome"), "Requests: taken, refused, or away."),
    Measure("asynchealth_notify_windows_waiting", "gauge", ("way",), "Windows whose findings are still to be told."),
    Measure("asynchealth_canary_timestamp_seconds", "gauge", (), "When the last canary that came back was sent."),
    FINAL,
    *COPIES,
)


class Meter(Collector):
    """The numbers of one process, by measure and labels. Nothing is told of what was never counted or set."""

    def __init__(self, measures: Sequence[Measure]) -> None:
        self.measures = {m.name: m for m in measures}
        self._lock = threading.Lock()
        self._values: dict[str, dict[Labels, float]] = {m.name: {} for m in measures}
        self.beaten = time.monotonic()
        self.reached: float | None = None  # when Kafka last answered, and there was something to do

    def add(self, name: str, amount: float, *labels: str) -> None:
        with self._lock:
            mine = self._values[name]
            mine[labels] = mine.get(labels, 0) + amount

    def set(self, name: str, values: Mapping[Any, float]) -> None:
        """In place of all that was set: a partition that went to another worker is told by that one."""
        with self._lock:
            self._values[name] = dict(values)

    def beat(self) -> None:
        """The loop came round."""
        self.beaten = time.monotonic()

    def reach(self, ready: bool) -> None:
        self.reached = time.monotonic() if ready else None

    def unhealthy(self, now: float) -> str:
        """Why; empty where it is well. now: by the monotonic clock."""
        stuck = now - self.beaten
        return f"the loop has not come round for {stuck:.0f} s" if stuck > ALIVE_S else ""

    def unready(self, now: float) -> str:
        if self.reached is None:
            return "nothing to work on yet"
        ago = now - self.reached
        return self.unhealthy(now) or (f"Kafka has not answered for {ago:.0f} s" if ago > READY_S else "")

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            values = {name: dict(mine) for name, mine in self._values.items()}
        for m in self.measures.values():
            made: Any = CounterMetricFamily if m.kind == "counter" else GaugeMetricFamily
            family = made(m.name, m.meaning, labels=m.labels)
            for labels, value in sorted(values[m.name].items()):
                family.add_metric(labels, value)
            yield family


def exposed(meter: Meter) -> CollectorRegistry:
    """With what Prometheus knows of every process: memory, CPU, open files."""
    registry = CollectorRegistry()
    registry.register(meter)
    ProcessCollector(registry=registry)
    return registry


def answer(meter: Meter, address: str, port: int) -> ThreadingHTTPServer:
    """Answers until the process ends."""
    registry = exposed(meter)

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/metrics":
                    self._answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
                case "/health":
                    self._judge(meter.unhealthy(time.monotonic()))
                case "/ready":
                    self._judge(meter.unready(time.monotonic()))
                case _:
                    self._answer(404, b"there are /metrics, /health and /ready\n")

        def _judge(self, why: str) -> None:
            self._answer(503 if why else 200, f"{why or 'ok'}\n".encode())

        def _answer(self, code: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A scrape every few seconds is no news."""

    try:
        server = ThreadingHTTPServer((address, port), Answers)
    except (OSError, OverflowError) as error:
        reason = f"can't listen there: {getattr(error, 'strerror', None) or error}"
        raise Problem(f"--metrics {port} on {address}", reason, "another port, or --metrics-address") from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
