"""The Faust consumer on real Kafka: every record once and in order over chunks, commits, rebalances, kills, holes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from streams.live.transport import AGAIN_S, ENDS_S, FAILED, Chunk, Consumer, Held, Seldom, app, fatal, fits
from tests.kafka import Broker
from tests.streams.tape import ROOT

pytestmark = pytest.mark.xdist_group("kafka")
PARTITIONS = 3
PATIENCE_S = 60


@dataclass
class Work:
    """One topic, one group, and what its workers wrote down."""

    bootstrap: str
    topic: str
    folder: Path

    def worker(self) -> subprocess.Popen[bytes]:
        arguments = [self.bootstrap, f"g-{self.topic}", self.topic, str(self.folder)]
        command = [sys.executable, "-m", "tests.streams.live.copier", *arguments]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def send(self, first: int, n: int, partition: int | None = None, **settings: str) -> None:
        producer = Producer({"bootstrap.servers": self.bootstrap, **settings})
        for i in range(first, first + n):
            producer.produce(self.topic, str(i).encode(), partition=i % PARTITIONS if partition is None else partition)
        assert producer.flush(PATIENCE_S) == 0

    def lines(self, word: str) -> list[tuple[int, int, int]]:
        every = [line.split() for f in sorted(self.folder.glob("*.txt")) for line in f.read_text().splitlines()]
        found = [tuple(map(int, rest)) for first, *rest in every if first == word]
        return [(a, b, c) for a, b, c in found]

    def taken(self) -> dict[int, dict[int, set[int]]]:
        """Of each partition and offset, the numbers that workers' states gave it."""
        found: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        for partition, offset, number in self.lines("took"):
            found[partition][offset].add(number)
        return found

    def until(self, n: int) -> None:
        """Waits until n different records were taken."""
        for _ in range(PATIENCE_S * 10):
            if sum(map(len, self.taken().values())) >= n:
                return
            time.sleep(0.1)
        raise AssertionError(f"{sum(map(len, self.taken().values()))} of {n} records after {PATIENCE_S} s")


@pytest.fixture
def work(kafka: str, tmp_path: Path) -> Work:
    return made(kafka, tmp_path)


def made(bootstrap: str, folder: Path) -> Work:
    folder.mkdir(exist_ok=True)
    name = f"c-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for future in admin.create_topics([NewTopic(name, PARTITIONS, 1)]).values():
        future.result()
    return Work(bootstrap, name, folder)


@contextmanager
def running(work: Work, n: int = 1) -> Iterator[list[subprocess.Popen[bytes]]]:
    workers = [work.worker() for _ in range(n)]
    try:
        yield workers
    finally:
        for w in workers:
            w.kill()
            w.wait()


def once_each(work: Work, n: int) -> None:
    """Whoever took a record, and however often: its number is the same, and they are 0 .. n - 1 in offset order."""
    taken = work.taken()
    assert sum(map(len, taken.values())) == n
    for offsets in taken.values():
        assert [offsets[o] for o in sorted(offsets)] == [{i} for i in range(len(offsets))]


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 19))
def test_a_chunk_is_fed_only_where_it_goes_on_from_our_position(begin: int, length: int, position: int) -> None:
    chunk = Chunk(TP("t", 0), begin, begin + length, [])
    what = fits(chunk, position)
    assert (what == "gap") == (position < begin)
    assert (what == "next") == (begin <= position < begin + length)


def test_what_a_client_repeats_is_said_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now, seldom = 0.0, Seldom()
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def passes(text: str) -> bool:
        return seldom.filter(logging.LogRecord("aiokafka", logging.ERROR, "", 0, text, (), None))

    assert [passes("away"), passes("away"), passes("other"), passes("away")] == [True, False, True, False]
    now = AGAIN_S + 1
    assert passes("away") and not passes("away")
    assert len(seldom.said) == 1


def test_every_record_is_taken_once_and_in_order_over_a_restart(work: Work) -> None:
    work.send(0, 5_000)
    with running(work) as (first,):
        work.until(5_000)
        time.sleep(1)  # its commits come five times a second
        first.send_signal(signal.SIGTERM)
        assert first.wait(PATIENCE_S) == 0
    assert len(work.lines("took")) == 5_000
    work.send(5_000, 3_000)
    with running(work):
        work.until(8_000)
    once_each(work, 8_000)
    assert len(work.lines("took")) == 8_000  # it went on from the commit


def test_what_producers_compress_is_read_whatever_the_codec(work: Work) -> None:
    codecs = ("gzip", "snappy", "lz4", "zstd", "none")
    for i, codec in enumerate(codecs):
        work.send(i * 300, 300, None, **{"compression.type": codec})
    with running(work):
        work.until(300 * len(codecs))
    once_each(work, 300 * len(codecs))


def test_workers_that_join_are_killed_and_stop_for_a_while_lose_and_double_nothing(work: Work) -> None:
    with running(work, 2) as workers:
        for step in range(6):
            work.send(step * 4_000, 4_000)
            work.until(step * 4_000 + 2_000)
            if step == 1:
                workers.append(work.worker())
            if step == 2:
                workers.pop(0).kill()
            if step == 3:
                os.kill(workers[0].pid, signal.SIGSTOP)
                time.sleep(8)  # longer than the session: it wakes up as a zombie
                os.kill(workers[0].pid, signal.SIGCONT)
        work.until(24_000)
        assert len([w for w in workers if w.poll() is None]) >= 2
    once_each(work, 24_000)
    assert len(list(work.folder.glob("*.txt"))) >= 2


def test_what_a_transaction_aborted_is_never_seen_and_its_markers_stop_nothing(work: Work) -> None:
    producer = Producer({"bootstrap.servers": work.bootstrap, "transactional.id": work.topic})
    producer.init_transactions()
    for step in range(20):
        producer.begin_transaction()
        for i in range(50):
            producer.produce(work.topic, str(i).encode(), partition=0)
        producer.flush()
        (producer.abort_transaction if step % 2 else producer.commit_transaction)()
    with running(work):
        work.until(500)
        work.send(0, 100, partition=0)
        work.until(600)
    offsets = sorted(work.taken()[0])
    assert len(offsets) == 600 and offsets[-1] == 20 * 51 + 99  # each transaction has a marker
    once_each(work, 600)


def test_a_log_cut_behind_the_commit_is_noticed(work: Work) -> None:
    work.send(0, 300, partition=0)
    with running(work):
        work.until(300)
        time.sleep(1)
    work.send(300, 300, partition=0)
    admin = AdminClient({"bootstrap.servers": work.bootstrap})
    for future in admin.delete_records([TopicPartition(work.topic, 0, 450)]).values():
        future.result()
    with running(work):
        work.until(450)
    assert work.lines("lost") == [(0, 300, 450)]
    assert sorted(work.taken()[0]) == [*range(300), *range(450, 600)]


def test_an_error_in_an_agent_ends_the_process_and_its_record_comes_again(work: Work) -> None:
    work.send(0, 10, partition=0)
    producer = Producer({"bootstrap.servers": work.bootstrap})
    producer.produce(work.topic, b"poison", partition=0)
    producer.flush()
    work.send(11, 10, partition=0)
    for _ in range(2):
        with running(work) as (worker,):
            assert worker.wait(PATIENCE_S) == FAILED
            assert worker.stderr and b"a record that nobody can take" in worker.stderr.read()
    assert max(work.taken()[0]) == 9


def test_a_worker_that_is_told_to_end_does_so_while_no_broker_answers(private_kafka: Broker, tmp_path: Path) -> None:
    """The clients of its own would wait for ever, and for a minute where a join waits for a member that was killed."""
    work = made(private_kafka.bootstrap, tmp_path / "out")
    work.send(0, 30)
    with running(work, 2) as (once, twice):
        work.until(30)
        private_kafka.kill()
        for worker in (once, twice):
            worker.send_signal(signal.SIGTERM)
        time.sleep(ENDS_S / 10)
        twice.send_signal(signal.SIGINT)
        assert twice.wait(ENDS_S / 2) == 0
        assert once.wait(2 * ENDS_S) == 0
        for worker in (once, twice):
            assert worker.stderr and b"left to a successor" in worker.stderr.read()
    private_kafka.start()
    work.send(30, 30)
    with running(work):
        work.until(60)
    once_each(work, 60)


def test_what_fails_while_its_clients_are_closing_is_left_to_a_successor(tmp_path: Path) -> None:
    """As a commit of a timer that is under way when the consumer's thread has ended."""
    tried = []

    async def commit() -> None:
        tried.append(1)
        raise RuntimeError("Event loop is closed")

    async def ending() -> None:
        made = app("ending", "127.0.0.1:1", tmp_path)
        await made.stop()
        await fatal(made, commit)()

    asyncio.run(ending())
    assert tried == [1]  # and this process is still here


@dataclass
class Kept:
    """A store that has something to commit, whatever is assigned."""

    points: Mapping[TP, tuple[int, str]]

    async def assigned(self, held: Mapping[TP, Held]) -> Mapping[TP, int]:
        return dict.fromkeys(held, 0)

    def committable(self) -> Mapping[TP, tuple[int, str]]:
        return self.points


def test_a_timer_that_asks_before_the_consumers_thread_has_begun_commits_nothing(tmp_path: Path) -> None:
    """As on a busy machine, half a second after the start."""

    async def asked() -> tuple[set[TP], bool, bool]:
        made = app("early", "127.0.0.1:1", tmp_path)
        made.store = Kept({TP("topic", 0): (7, "")})
        consumer = made.consumer
        assert isinstance(consumer, Consumer)
        return consumer.assignment(), await consumer.commit(), consumer.said == {}

    assert asyncio.run(asked()) == (set(), False, True)
