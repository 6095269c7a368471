"""python -m bench.steady [--minutes 10] [--rate 20000] [--hours 24]: a worker and a lander on a real Kafka, on and on.

A steady stream of requests, each of the time when it is sent; the same into a state that holds the tables of the hours
before; then nothing at all, on 24 partitions. Of the streams: from "a window is final" (every source partition has said
its slices up to its end and the lateness) to "its findings are in the readable file", memory over the minutes, and CPU.
Of the last: what rest costs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from bench import tape
from bench.cpu import Held, cpu_s, held
from bench.day import before_now, landed, measured
from bench.live import ended_now
from detectors.windows import LATENESS_US, SLICE_US, WINDOW_US
from streams.landing.state import open_readable
from streams.live.connect import Connection
from streams.live.judge import SLICES
from streams.live.numbered import head_of
from streams.live.play import send
from streams.live.topics import admin, create, topics
from streams.sources.files import READABLE
from tests.kafka import Broker

LOOK_S, SEND_S, WEIGH_S = 0.1, 0.1, 10.0
SETTLE_S = 90.0  # the first windows wait for consumers that join, and imports
BUSY, IDLE = 2, 6  # partitions of each of four streams
FEW_MINUTES = 2.0  # are enough for what does not grow
FLEETS = 2  # of which a day's tables are


@dataclass
class Watched:
    """One process: its memory at each look, and the CPU time that it used since the first."""

    name: str
    pid: int
    held: list[Held] = field(default_factory=list)
    began_cpu_s: float = 0.0

    def weigh(self) -> None:
        self.held.append(held(self.pid))
        if len(self.held) == 1:
            self.began_cpu_s = cpu_s(self.pid)

    @property
    def used_s(self) -> float:
        return cpu_s(self.pid) - self.began_cpu_s


def produce(bootstrap: str, rate: int, seconds: float) -> None:
    """In a process of its own, since it must not wait for whoever measures."""
    rng, minute = np.random.default_rng(7), 0
    producer = Producer({"bootstrap.servers": bootstrap, "compression.type": "lz4", "linger.ms": 20})
    rows, each, sent, begun = tape.requests(rng, minute), int(rate * SEND_S), 0, time.monotonic()
    while (since_s := time.monotonic() - begun) < seconds:
        if sent > since_s * rate:
            time.sleep(SEND_S / 10)
            continue
        if len(rows) < each:
            minute += 1
            rows = tape.requests(rng, minute)
        some, rows = rows.head(each), rows.slice(each)
        for i, value in enumerate(ended_now(some)):
            send(producer, "requests", value, i % BUSY)
        sent += each
    producer.flush(60)


def readable_at(folder: Path, processes: Sequence[Watched], seconds: float) -> dict[int, float]:
    """Of each window (its index) that was judged meanwhile, when the readable file told of it, in s since 1970."""
    at, known, weighed = dict[int, float](), 0, 0.0
    end, settled = time.monotonic() + seconds, time.monotonic() + SETTLE_S
    while (now := time.monotonic()) < end:
        if now > settled and now > weighed + WEIGH_S:
            for p in processes:
                p.weigh()
            weighed = now
        judged = _judged(folder)
        if known and now > settled:
            at |= dict.fromkeys(range(known, judged), time.time())
        known = max(known, judged)
        time.sleep(LOOK_S)
    return at


def final_at(bootstrap: str, windows: Iterable[int]) -> list[float]:
    """When every queue had the slices of every source partition that a window needs, in s since 1970, by the broker."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "enable.partition.eof": True})
    partitions = consumer.list_topics(SLICES).topics[SLICES].partitions
    consumer.assign([TopicPartition(SLICES, p, 0) for p in partitions])
    said, unread = dict[tuple[str, int | None], list[tuple[int, float]]](), {*partitions}
    while unread:
        for message in consumer.consume(1_000, 10):
            if error := message.error():
                assert error.code() == KafkaError._PARTITION_EOF, error.str()
                unread -= {message.partition()}  # it is told again whenever more has come
            else:
                head, at_s = head_of(message.key()), message.timestamp()[1] / 1_000
                said.setdefault((head.producer, message.partition()), []).append((head.hi, at_s))
    consumer.close()
    needed = [_due_us(w) // SLICE_US for w in windows]
    return [max(next(at_s for hi, at_s in some if hi >= n) for some in said.values()) for n in needed]


def _due_us(window: int) -> int:
    """When a window's end and the lateness have passed."""
    return (window + 1) * WINDOW_US + LATENESS_US


def _judged(folder: Path) -> int:
    if not (folder / READABLE).exists():
        return 0
    con = open_readable(folder)
    try:
        return int(con.execute("SELECT judged FROM landed").fetchall()[0][0])
    finally:
        con.close()


@contextmanager
def running(folder: Path, partitions: int) -> Iterator[tuple[str, list[Watched]]]:
    """A broker with all topics, a worker and a lander."""
    broker = Broker(folder / "kafka")
    broker.start()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        create(admin(Connection(broker=broker.bootstrap)), topics(partitions))
        for given in (["worker"], ["land", "--state", str(folder / "state")]):
            command = [sys.executable, "-m", "streams.cli", *given, "--broker", broker.bootstrap]
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        yield broker.bootstrap, [Watched(n, p.pid) for n, p in zip(("worker", "lander"), processes, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        broker.kill()


def hold_hours(folder: Path, hours: int) -> None:
    """A state that a lander on another Kafka left just now."""
    folder.mkdir()
    mine = landed(folder / "state", before_now(measured(folder, FLEETS), hours), hours)
    mine.con.execute("DELETE FROM positions")
    mine.con.close()


def busy(folder: Path, rate: int, minutes: float, hours: int = 0) -> None:
    if hours:
        hold_hours(folder, hours)
    with running(folder, BUSY) as (bootstrap, processes):
        seconds = minutes * 60 + SETTLE_S
        producer = multiprocessing.get_context("spawn").Process(target=produce, args=(bootstrap, rate, seconds))
        producer.start()
        readable = readable_at(folder / "state", processes, seconds)
        used = {p.name: p.used_s / (minutes * 60) for p in processes}
        producer.join()
        final = final_at(bootstrap, readable)
    before = f", after {hours} hours of {FLEETS} fleets" if hours else ""
    print(f"\n## {rate:,} requests a second for {minutes:g} minutes{before}\n")
    print("| of a window | p50 s | p99 s | longest s | windows |\n|---|---|---|---|---|")
    due = [_due_us(w) / 1e6 for w in readable]
    told("end and lateness passed to final", np.subtract(final, due))
    told("final to readable", np.subtract([*readable.values()], final))
    print()
    print("| process | own MB in the first minute | in the last | at most | mapped MB at most | CPU: share of a core |")
    print("|---|---|---|---|---|---|")
    for p in processes:
        own = [h.own_mb for h in p.held]
        mapped = max(h.mapped_mb for h in p.held)
        print(f"| {p.name} | {max(own[:6]):,} | {max(own[-6:]):,} | {max(own):,} | {mapped:,} | {used[p.name]:.0%} |")


def told(what: str, took: npt.NDArray[np.float64]) -> None:
    p50, p99 = np.percentile(took, [50, 99])
    print(f"| {what} | {p50:.1f} | {p99:.1f} | {took.max():.1f} | {len(took)} |")


def idle(folder: Path, minutes: float) -> None:
    with running(folder, IDLE) as (_, processes):
        readable_at(folder / "state", processes, minutes * 60 + SETTLE_S)
        used = ", ".join(f"{p.name} {p.used_s / (minutes * 60):.1%} of a core" for p in processes)
    print(f"\n## At rest, {4 * IDLE} source partitions\n\n{used}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=int, default=20_000)
    parser.add_argument("--hours", type=int, default=24)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="asynchealth-bench-") as made:
        few = min(wanted.minutes, FEW_MINUTES)
        busy(Path(made) / "busy", wanted.rate, wanted.minutes)
        busy(Path(made) / "day", wanted.rate, few, wanted.hours)
        idle(Path(made) / "idle", few)


if __name__ == "__main__":
    main()
