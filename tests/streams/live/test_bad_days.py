"""A broker that is away for a minute, logs of ours that are gone, a database that is held: said, nothing lost."""

from __future__ import annotations

import signal
import subprocess
import time
import uuid
from pathlib import Path

import duckdb
import pytest
from confluent_kafka import OFFSET_END, TopicPartition
from confluent_kafka.admin import AdminClient

from streams.landing import state
from streams.problems import Exit
from tests.cases import Case
from tests.harness import one_pass
from tests.kafka import Broker
from tests.streams.live.chain import until
from tests.streams.live.test_ourselves import calls, landed
from tests.streams.live.test_rebuilt import both, later, rows
from tests.streams.live.test_worker import PARTITIONS, PATIENCE_S, Play, workers

pytestmark = pytest.mark.xdist_group("kafka-2")
AWAY_S = 60


def two_hours() -> tuple[Case, Case, Case]:
    """One, the next, and both."""
    first, second = calls(), later(calls(), 1)
    return first, second, both(first, second)


def emptied(play: Play, *topics: str) -> None:
    """As by a retention that is too short."""
    admin = AdminClient({"bootstrap.servers": play.bootstrap})
    places = [(f"{play.prefix}ah.{topic}", p) for topic in topics for p in range(PARTITIONS)]
    for future in admin.delete_records([TopicPartition(*place, OFFSET_END) for place in places]).values():
        assert future.result().low_watermark > 0


def test_a_broker_that_is_killed_and_away_for_a_minute_costs_nothing(private_kafka: Broker, tmp_path: Path) -> None:
    first, second, whole = two_hours()
    play = Play(private_kafka.bootstrap, whole, f"b{uuid.uuid4().hex[:8]}.", tmp_path)
    play.produce(first)
    with workers(play, 1) as (worker,):
        play.wait(until(first))
        private_kafka.kill()
        time.sleep(AWAY_S)
        assert worker.poll() is None
        private_kafka.start()
        play.send(second)
        play.wait()
    assert play.result()[0].differs(one_pass(whole)) == []


def test_slices_that_are_gone_end_a_worker_with_the_reason_and_rows_that_are_gone_a_lander(
    kafka: str, tmp_path: Path
) -> None:
    first, second, whole = two_hours()
    play = Play(kafka, whole, f"b{uuid.uuid4().hex[:8]}.", tmp_path, stderr=subprocess.PIPE)
    play.produce(first)
    with workers(play, 1):
        play.wait(until(first))
        landed(play, rows(first))
        play.send(second)
        play.wait()
        time.sleep(2)  # its commits come three times a second
    emptied(play, "slices", "events")
    worker = play.worker()
    _, said = worker.communicate(timeout=PATIENCE_S)
    assert worker.returncode == Exit.STATE
    assert b"ah.slices/" in said and b"what lies between was deleted" in said
    lander = play.lander()
    _, said = lander.communicate(timeout=PATIENCE_S)
    assert lander.returncode != 0
    assert b"ah.events/" in said
    assert b"what lies between was deleted\nNext: asynchealth land --broker " in said and b" --state NEW\n" in said


def test_rows_that_are_deleted_while_a_lander_stands_still_end_it_with_the_reason(kafka: str, tmp_path: Path) -> None:
    first, second, whole = two_hours()
    play = Play(kafka, whole, f"b{uuid.uuid4().hex[:8]}.", tmp_path)
    play.produce(first)
    with workers(play, 1):
        play.wait(until(first))
        landed(play, rows(first))
        lander = play.lander()
        time.sleep(5)
        lander.send_signal(signal.SIGSTOP)
        time.sleep(1)  # its last fetch is answered, with nothing
        play.send(second)
        play.wait()
        emptied(play, "events")
        lander.send_signal(signal.SIGCONT)
        _, said = lander.communicate(timeout=PATIENCE_S)
    assert b"ah.events/" in said
    assert b"what lies between was deleted\nNext: asynchealth land --broker " in said and b" --state NEW\n" in said
    assert b"OffsetOutOfRange" not in said


def test_a_database_that_somebody_has_open_is_named_with_how_to_find_who(kafka: str, tmp_path: Path) -> None:
    play = Play(kafka, calls(), f"b{uuid.uuid4().hex[:8]}.", tmp_path)
    play.produce()
    with workers(play, 1):
        play.wait()
    folder = landed(play, rows(play.case))
    with duckdb.connect(str(folder / state.LANDING)):
        lander = play.lander()
        _, said = lander.communicate(timeout=PATIENCE_S)
    assert lander.returncode != 0
    assert f'Could not set lock on file "{folder / state.LANDING}"'.encode() in said and b"\nNext: fuser " in said
    assert landed(play, rows(play.case)) == folder
