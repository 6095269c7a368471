"""The command notify on real Kafka, killed again and again while findings are written."""

from __future__ import annotations

import signal
import subprocess
import time
import uuid

import pytest
from confluent_kafka import Producer

from detectors.windows import SECOND_US, WINDOW_US
from streams.live.connect import Connection
from streams.live.topics import admin, create, names, topics
from tests.kafka import free_port
from tests.streams.live.test_commands import begun
from tests.streams.tape import asynchealth
from tests.streams.watch.judged import Change, said
from tests.streams.watch.receivers import Receiver, receiving
from tests.streams.watch.test_metrics import asked, of, samples

pytestmark = pytest.mark.xdist_group("kafka")
PATIENCE_S = 60
FINDINGS = 40
KILLS = 6


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


def test_killed_at_any_moment_it_tells_all_and_repeats_at_most_the_one_in_flight(kafka: str) -> None:
    prefix = f"n{uuid.uuid4().hex[:8]}."
    create(admin(Connection(broker=kafka)), topics(1, prefix))
    topic, producer = names(prefix).findings, Producer({"bootstrap.servers": kafka})
    first = int(time.time() * SECOND_US // WINDOW_US) - 40
    every = story(first)
    wanted = {c.key for c in every if c.level == "page"}
    with receiving() as hook, receiving() as manager:
        ways = ["--webhook", f"{hook.url}/hook", "--alertmanager", manager.url]
        command = ["notify", "--broker", kafka, "--prefix", prefix, *ways]
        running = begun(*command)
        kills, lo = 0, 0
        try:
            for to in range(first + 1, first + 31):
                messages = said(every, lo, to)
                write(producer, topic, messages)
                if to % 3:
                    lo = to  # else what was said is said again, as by a judge that was killed
                if (to - first) % 5 == 0 and kills < KILLS:
                    wait_for(hook, {c.key for c in every if c.window < to - 3 and c.level == "page"})
                    running.send_signal(signal.SIGKILL)
                    running.wait(PATIENCE_S)
                    kills += 1
                    running = begun(*command)
                time.sleep(0.2)
            for receiver in (hook, manager):
                wait_for(receiver, wanted)
            time.sleep(2)
            running.send_signal(signal.SIGINT)
            assert running.wait(PATIENCE_S) == 0
        finally:
            running.kill()
            running.communicate()
        extra = [len(r.keys) - len(set(r.keys)) for r in (hook, manager)]
        renewed = sum(len(body) > 1 for _, body in manager.got)
        assert kills == KILLS and manager.refusals == []
        assert set(hook.keys) == wanted and set(manager.keys) == wanted
        assert renewed or sum(extra) <= kills
        assert extra[0] <= kills


def test_its_numbers_are_shown_and_a_missing_topic_is_named(kafka: str) -> None:
    prefix = f"n{uuid.uuid4().hex[:8]}."
    refused = asynchealth("notify", "--broker", kafka, "--prefix", prefix, "--webhook", "http://127.0.0.1:9")
    assert refused.returncode == 2
    assert f"topic {prefix}ah.findings: not there\nNext: asynchealth topics create".encode() in refused.stderr
    create(admin(Connection(broker=kafka)), topics(1, prefix))
    port, first = free_port(), int(time.time() * SECOND_US // WINDOW_US) - 10
    write(
        Producer({"bootstrap.servers": kafka}),
        names(prefix).findings,
        said([Change(first, "RS-1", "page")], 0, first + 5),
    )
    with receiving() as hook:
        command = ["notify", "--broker", kafka, "--prefix", prefix, "--webhook", hook.url, "--metrics", str(port)]
        running: subprocess.Popen[bytes] = begun(*command)
        try:
            wait_for(hook, {"RS-1/page/firing"})
            assert hook.keys == ["RS-1/page/firing"]
            time.sleep(1)
            found = samples(port)
            assert of(found, "asynchealth_notifications_total", way="webhook", outcome="taken") == 1
            assert of(found, "asynchealth_notify_windows_waiting", way="webhook") == 0
            assert [asked(port, path) for path in ("/health", "/ready")] == [(200, "ok\n")] * 2
        finally:
            running.kill()
            running.communicate()
