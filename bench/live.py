"""python -m bench.live [--events N]: one worker with all detectors on a real Kafka, beside peers in the same run.

Two partitions of requests, appended as fast as Kafka takes them; each row is of the time when it is sent, so that it
counts. Peers read the same topic: an empty agent of stock Faust, Pathway that counts retries per service and minute and
nothing else, a bare client, and one whose records our decoder takes apart. Ratios count, absolute times drift. Last a
worker is looked at a hundred times a second, for where its time goes.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from confluent_kafka import Consumer, Producer
from prometheus_client.parser import text_string_to_metric_families

from bench import tape
from bench.cpu import cpu_s, most_mb
from detectors.events import decode_json, encode_json
from streams.live.connect import Connection
from streams.live.play import send
from streams.live.topics import admin, create, topics
from tests.kafka import Broker, free_port

PARTITIONS = 2
BLOCK = 10_000
PATIENCE_S = 600
LOOK_S = 0.25  # each look costs the worker the text of all its metrics
READ = 5_000
PEERS = Path(__file__).with_name("peers") / ".venv" / "bin"  # made by `make bench-live`
QUOTED = {  # × stock Faust on the same small task as Pathway's
    "Flink SQL, only retries per service and minute": 610 / 11.6,
    "bytewax, only retries per service and minute": 65 / 11.6,
}
FAUST = """
import sys, time, resource, os
import faust
bootstrap, total = sys.argv[1], int(sys.argv[2])
app = faust.App("stock", broker=f"kafka://{bootstrap}", consumer_auto_offset_reset="earliest",
                topic_disable_leader=True, web_enabled=False, datadir=sys.argv[3])
count, begun = 0, None

@app.agent(app.topic("requests", value_serializer="raw"))
async def count_all(stream):
    global count, begun
    async for _ in stream:
        count += 1
        if count == 1:
            begun = time.monotonic(), cpu()
        if count == total:
            os.write(1, f"\\n{time.monotonic() - begun[0]} {cpu() - begun[1]}".encode())  # Faust takes what is printed
            os._exit(0)

def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

sys.argv = [sys.argv[0], "--quiet", "worker", "-l", "error", "--without-web"]
app.main()
"""


@dataclass(frozen=True)
class Rate:
    """Of events read after the first were."""

    events: int
    wall_s: float
    cpu_s: float

    def row(self, what: str, stock: Rate) -> str:
        per_s, cpu_us = self.events / self.wall_s, self.cpu_s / self.events * 1e6
        ratio = per_s / (stock.events / stock.wall_s)
        return f"| {what} | {per_s / 1e3:,.0f} | {cpu_us:.1f} | {ratio:.1f} |"


def blocks(events: int) -> Iterator[pl.DataFrame]:
    rng, minute = np.random.default_rng(7), 0
    while events > 0:
        rows = tape.requests(rng, minute).head(events)
        events -= len(rows)
        minute += 1
        yield from rows.iter_slices(BLOCK)


def produce(bootstrap: str, events: int, prefix: str = "") -> int:
    """The bytes that were sent."""
    producer = Producer({"bootstrap.servers": bootstrap, "compression.type": "lz4", "linger.ms": 20})
    sent = 0
    for rows in blocks(events):
        for i, value in enumerate(ended_now(rows)):
            send(producer, f"{prefix}requests", value, i % PARTITIONS)
            sent += len(value)
    producer.flush(PATIENCE_S)
    return sent


def ended_now(requests: pl.DataFrame) -> list[bytes]:
    """As records of calls that ended just now."""
    lasted = (pl.col("duration_ms").fill_null(0) * 1_000).cast(pl.Int64)
    began = (pl.lit(time.time_ns() // 1_000) - lasted).cast(pl.Datetime("us", "UTC"))
    return encode_json("requests", requests.drop("arrival").with_columns(timestamp=began))


def stock(bootstrap: str, events: int, folder: Path) -> Rate:
    given = [sys.executable, "-c", FAUST, bootstrap, str(events), str(folder / "stock")]
    said = subprocess.run(given, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout
    wall, cpu = map(float, said.split()[-2:])
    return Rate(events, wall, cpu)


def pathway(bootstrap: str, events: int) -> Rate:
    """The better of one and of two threads."""
    retries = sum(rows.filter(pl.col("side") == "client", pl.col("retry_count") > 0).height for rows in blocks(events))
    program = Path(__file__).with_name("peers") / "pathway_retries.py"
    rates = []
    for threads in ("1", "2"):
        given = [str(PEERS / "python"), str(program), bootstrap, "requests", str(retries)]
        own = os.environ | {"PATHWAY_THREADS": threads}
        done = subprocess.run(given, capture_output=True, text=True, check=True, timeout=PATIENCE_S, env=own)
        wall, cpu, share = map(float, done.stdout.split())
        rates.append(Rate(round(events * share), wall, cpu))
    return max(rates, key=lambda r: r.events / r.wall_s)


def bare(bootstrap: str, events: int, work: Callable[[list[bytes]], object]) -> Rate:
    settings = {"bootstrap.servers": bootstrap, "group.id": "bare", "auto.offset.reset": "earliest"}
    consumer = Consumer({**settings, "enable.auto.commit": False, "fetch.queue.backoff.ms": "10"})  # see peers
    consumer.subscribe(["requests"])
    first = consumer.consume(1, PATIENCE_S)
    read, begun, cpu = len(first), time.monotonic(), cpu_s()
    while read < events:
        values = [v for m in consumer.consume(READ, 1.0) if (v := m.value()) is not None]
        work([v if isinstance(v, bytes) else v.encode() for v in values])
        read += len(values)
    rate = Rate(events - len(first), time.monotonic() - begun, cpu_s() - cpu)
    consumer.close()
    return rate


def metric(port: int, name: str, **labels: str) -> float:
    """The sum of a metric's samples; 0 while nobody answers yet."""
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    except urllib.error.URLError:
        return 0.0
    samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


@contextmanager
def working(bootstrap: str, count: int, prefix: str) -> Iterator[tuple[list[int], list[int]]]:
    """So many workers: their process ids, and the ports of their metrics."""
    ports = [free_port() for _ in range(count)]
    given = [sys.executable, "-m", "streams.cli", "worker", "--broker", bootstrap, "--prefix", prefix, "--metrics"]
    quiet = subprocess.DEVNULL
    processes = [subprocess.Popen([*given, str(port)], stdout=quiet, stderr=quiet) for port in ports]
    try:
        yield [p.pid for p in processes], ports
    finally:
        for process in processes:
            process.kill()
            process.wait()


def read_by(ports: Sequence[int]) -> float:
    return sum(metric(port, "asynchealth_events_total") for port in ports)


def judged_until_s(ports: Sequence[int]) -> float:
    return max(metric(port, "asynchealth_final_until_timestamp_seconds", step="judge") for port in ports)


def workers(bootstrap: str, events: int, count: int = 1, prefix: str = "") -> tuple[Rate, Rate, int]:
    """(until all is measured and said, until all is judged, the peak of one's memory in MB)."""
    sent_by_s = time.time()
    with working(bootstrap, count, prefix) as (pids, ports):

        def rate() -> Rate:
            return Rate(events - int(first), time.monotonic() - begun, sum(map(cpu_s, pids)) - cpu)

        first = _until(lambda: read_by(ports))
        begun, cpu = time.monotonic(), sum(map(cpu_s, pids))
        _until(lambda: read_by(ports) >= events)
        measured = rate()
        _until(lambda: judged_until_s(ports) > sent_by_s)
        return measured, rate(), max(most_mb(pid) for pid in pids)


def profiled(bootstrap: str, folder: Path, prefix: str) -> dict[str, float]:
    """Where one worker's time goes, from its first event until all is judged."""
    sent_by_s = time.time()
    with working(bootstrap, 1, prefix) as ((pid,), ports):
        _until(lambda: read_by(ports))
        return profile(pid, lambda: judged_until_s(ports) > sent_by_s, folder)


STAGES = {  # by the innermost call that belongs to one
    "fetch": ("aiokafka/consumer", "aiokafka/client", "streams/live/transport.py"),
    "decode": ("detectors/events.py",),
    "pack, compress and publish": ("aiokafka/producer", "aiokafka/record", "streams/live/numbered.py", "faust/"),
    "slices and their tables": ("streams/live/reduce.py", "reduce (detectors/engine.py", "detectors/windows.py"),
    "match": ("streams/live/match.py", "match (detectors/engine.py", "streams/landing/horizon.py"),
    "judge": ("streams/live/judge.py", "judge (detectors/engine.py", "detectors/catalog/"),
}
ELSE = "the rest: event loop, metrics"
WAITS = ("select (selectors.py", "_worker (concurrent/futures/thread.py", "wait (threading.py")  # for work, not at it


def profile(pid: int, until: Callable[[], float], folder: Path) -> dict[str, float]:
    """The share of its time that a process spends in each stage, seen from outside.

    Threads that stand still are looked at, too: one that polars works for does.
    """
    seen = folder / "profile"
    given = ["record", "--pid", str(pid), "--rate", "100", "--idle", "--format", "raw", "--duration", "unlimited"]
    spy = subprocess.Popen(
        [str(PEERS / "py-spy"), *given, "--output", str(seen)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _until(until)
    spy.send_signal(signal.SIGINT)
    _, said = spy.communicate(timeout=PATIENCE_S)
    if not seen.exists():
        raise SystemExit(f"py-spy saw nothing: {said.decode().strip()}")
    spent: Counter[str] = Counter()
    for line in seen.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        calls = stack.split(";")
        if not any(mark in calls[-1] for mark in WAITS):
            spent[_stage(calls)] += int(count)
    return {stage: n / spent.total() for stage, n in spent.most_common()}


def _stage(stack: Sequence[str]) -> str:
    found = (stage for call in reversed(stack) for stage, marks in STAGES.items() if any(m in call for m in marks))
    return next(found, ELSE)


def _until(what: Callable[[], float]) -> float:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if value := what():
            return value
        time.sleep(LOOK_S)
    raise SystemExit(f"not reached in {PATIENCE_S} s")


def topic(bootstrap: str, events: int, prefix: str = "") -> int:
    """A filled topic; the bytes of an event."""
    create(admin(Connection(broker=bootstrap)), topics(PARTITIONS, prefix))
    return produce(bootstrap, events, prefix) // events


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=float, default=400e3)
    events = int(parser.parse_args().events)
    with tempfile.TemporaryDirectory(prefix="asynchealth-bench-") as made:
        folder = Path(made)
        broker = Broker(folder / "kafka")
        broker.start()
        at = broker.bootstrap
        try:
            size = topic(at, events)
            measured, judged, peak = workers(at, events)
            rows = {
                "stock Faust, an empty agent": stock(at, events, folder),
                "worker, all tables measured and said": measured,
                "Pathway, only retries per service and minute": pathway(at, events),
                "confluent-kafka, read": bare(at, events, len),
                "confluent-kafka, read and decoded": bare(at, events, lambda values: decode_json("requests", values)),
            }
            topic(at, events, "two.")
            rows["two workers"] = workers(at, events, 2, "two.")[0]
            topic(at, events, "seen.")
            spent = profiled(at, folder, "seen.")
        finally:
            broker.stop()
    print(f"{events:,} requests of {size} bytes in {PARTITIONS} partitions, one process each.\n")
    print("| what | k events/s | CPU µs/event | × stock Faust |\n|---|---|---|---|")
    faust = rows["stock Faust, an empty agent"]
    for what, rate in rows.items():
        print(rate.row(what, faust))
    for what, times in QUOTED.items():
        print(f"| {what} (in another run, before) | | | {times:.1f} |")
    cpu_us = judged.cpu_s / judged.events * 1e6
    print(
        f"\nUntil all was judged by all detectors it used {cpu_us:.1f} µs of CPU an event, and {peak:,} MB at most.\n"
    )
    print("| where a worker's time goes, until all is judged | share |\n|---|---|")
    for stage, share in spent.items():
        print(f"| {stage} | {share:.0%} |")


if __name__ == "__main__":
    main()
