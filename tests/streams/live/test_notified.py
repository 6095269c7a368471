"""The command notify on real Kafka, killed again and again while findings are written."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
import uuid
from dataclasses import dataclass

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from detectors.windows import SECOND_US, WINDOW_US
from streams.live.connect import Connection
from streams.live.topics import admin, create, names, topics
from streams.said import Word, words_in
from streams.watch.notify import Clocks, Notifier
from streams.watch.send import Webhook
from tests.kafka import Broker, free_port
from tests.streams.live.test_commands import begun
from tests.streams.tape import asynchealth
from tests.streams.watch.judged import Change, said
from tests.streams.watch.receivers import Receiver, receiving
from tests.streams.watch.test_metrics import asked, of, samples

pytestmark = pytest.mark.xdist_group("kafka-2")
PATIENCE_S = 60
FINDINGS = 40


def story(first: int) -> list[Change]:
    """In windows of the last minutes: each begins, every second one ends."""
    begin = [Change(first + i // 2, f"RS-{i:02}", "page") for i in range(FINDINGS)]
    return begin + [c._replace(window=c.window + 3, ends=True) for c in begin[::2]] + [Change(first, "TB-0", "warn")]


def write(producer: Producer, topic: str, messages: list[tuple[bytes, bytes]]) -> None:
    for key, value in messages:
        producer.produce(topic, key=key, value=value, partition=0)
    assert producer.flush(PATIENCE_S) == 0


def wait_for(receiver: Receiver, keys: set[str]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not keys <= set(receiver.keys) and time.monotonic() < until:
        time.sleep(0.1)


@dataclass
class Supervised:
    """The command, started again whenever it was killed."""

    command: list[str]
    kills: int = 0

    def __post_init__(self) -> None:
        self.running = begun(*self.command)

    def kill(self) -> None:
        self.running.send_signal(signal.SIGKILL)
        self.running.wait(PATIENCE_S)
        self.kills += 1

    def look(self) -> None:
        if self.running.poll() is not None:
            assert self.running.returncode == -signal.SIGKILL, self.running.communicate()
            self.running.communicate()
            self.running = begun(*self.command)

    def end(self) -> int:
        self.running.send_signal(signal.SIGINT)
        return self.running.wait(PATIENCE_S)

    def close(self) -> None:
        self.running.kill()
        self.running.communicate()


def test_killed_at_any_moment_it_tells_all_and_repeats_at_most_the_one_in_flight(kafka: str) -> None:
    prefix = f"n{uuid.uuid4().hex[:8]}."
    create(admin(Connection(broker=kafka)), topics(1, prefix))
    topic, producer = names(prefix).findings, Producer({"bootstrap.servers": kafka})
    first = int(time.time() * SECOND_US // WINDOW_US) - 40
    every = story(first)
    wanted = {c.key for c in every if c.level == "page"}
    with receiving() as hook, receiving() as manager:
        ways = ["--webhook", f"{hook.url}/hook", "--alertmanager", manager.url]
        notifier = Supervised(["notify", "--broker", kafka, "--prefix", prefix, *ways])
        hook.at = dict.fromkeys((2, 11, 30), notifier.kill)  # it was taken, and nobody is left to hear so
        manager.at = dict.fromkeys((5, 20), notifier.kill)
        lo = 0
        try:
            for to in range(first + 1, first + 31):
                write(producer, topic, said(every, lo, to))
                if to % 3:
                    lo = to  # else what was said is said again, as by a judge that was killed
                if to == first + 17:
                    notifier.kill()
                notifier.look()
                time.sleep(0.2)
            until = time.monotonic() + PATIENCE_S
            while not wanted <= set(hook.keys) & set(manager.keys) and time.monotonic() < until:
                notifier.look()
                time.sleep(0.2)
            time.sleep(1)
            assert notifier.end() == 0
        finally:
            notifier.close()
        assert (set(hook.keys), set(manager.keys), manager.refusals) == (wanted, wanted, [])
        extra = sum(len(r.keys) - len(set(r.keys)) for r in (hook, manager))
        assert notifier.kills == 6 and 5 <= extra <= notifier.kills


def words_of(kafka: str, topic: str) -> list[Word]:
    """What was said in the one partition of a topic."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "test", "enable.partition.eof": True})
    consumer.assign([TopicPartition(topic, 0, 0)])
    words: list[Word] = []
    while (message := consumer.poll(PATIENCE_S)) is not None and not message.error():
        words += words_in(message.value())
    consumer.close()
    return words


FASTER = 30


def test_while_kafka_is_away_a_page_says_so_and_when_it_judges_again_that_it_does(private_kafka: Broker) -> None:
    at = Connection(broker=private_kafka.bootstrap)
    create(admin(at), topics(1))
    first = int(time.time() * SECOND_US // WINDOW_US) - 10
    with receiving() as hook:
        lines: list[str] = []
        clocks = Clocks(monotonic=lambda: time.monotonic() * FASTER)
        notifier = Notifier(at, [Webhook(hook.url)], lines.append, clocks=clocks)
        running = threading.Thread(target=notifier.run)
        running.start()
        try:
            every = [Change(first, "RS-1", "page"), Change(first + 6, "RS-1", "page", ends=True)]
            write(Producer({"bootstrap.servers": at.broker}), names().findings, said(every, 0, first + 5))
            wait_for(hook, {every[0].key})
            private_kafka.kill()
            away = f"unreachable-{first + 5}/page"
            wait_for(hook, {f"{away}/firing"})
            assert hook.keys == [every[0].key, f"{away}/firing"]
            private_kafka.start()
            write(Producer({"bootstrap.servers": at.broker}), names().findings, said(every, first + 5, first + 8))
            wait_for(hook, {f"{away}/resolved", every[1].key})
            assert set(hook.keys[2:]) == {every[1].key, f"{away}/resolved"}
        finally:
            notifier.stop()
            running.join(PATIENCE_S)
        assert not running.is_alive()


def test_its_numbers_are_shown_and_a_missing_topic_is_named(kafka: str) -> None:
    prefix = f"n{uuid.uuid4().hex[:8]}."
    refused = asynchealth("notify", "--broker", kafka, "--prefix", prefix, "--webhook", "http://127.0.0.1:9")
    assert refused.returncode == 2
    assert f"topic {prefix}ah.findings: not there\nNext: asynchealth topics create".encode() in refused.stderr
    create(admin(Connection(broker=kafka)), topics(1, prefix))
    port, first = free_port(), int(time.time() * SECOND_US // WINDOW_US) - 10
    page = Change(first, "RS-1", "page")
    write(Producer({"bootstrap.servers": kafka}), names(prefix).findings, said([page], 0, first + 5))
    with receiving() as hook:
        command = ["notify", "--broker", kafka, "--prefix", prefix, "--webhook", hook.url, "--metrics", str(port)]
        running: subprocess.Popen[bytes] = begun(*command)
        try:
            wait_for(hook, {page.key})
            assert hook.keys == [page.key]
            time.sleep(1)
            found = samples(port)
            assert of(found, "asynchealth_notifications_total", way="webhook", outcome="taken") == 1
            assert of(found, "asynchealth_notify_windows_waiting", way="webhook") == 0
            assert [asked(port, path) for path in ("/health", "/ready")] == [(200, "ok\n")] * 2
            (noted,) = words_of(kafka, f"{prefix}signals")
            assert (noted.what, noted.about, noted.note) == ("notified", page.incident, "page, open")
            assert noted.by == f"webhook 127.0.0.1:{hook.port}" and noted.event_id == f"{page.key}/webhook"
        finally:
            running.kill()
            running.communicate()
