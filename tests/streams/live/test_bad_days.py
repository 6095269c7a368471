"""A broker that is away for a minute, logs of ours that are gone, a database that is held: said, nothing lost."""

from __future__ import annotations

import signal
import subprocess
import time
import uuid
from pathlib import Path

import duckdb
import pytest
from confluent_kafka import OFFSET_END, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from streams.landing import state
from streams.live.connect import Connection
from streams.live.land import Landing, cut
from streams.live.topics import names
from streams.problems import Exit, Problem
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


def test_a_log_that_ends_before_what_was_landed_is_another_one() -> None:
    place = TopicPartition("ah.events", 0)
    again = "asynchealth land --state NEW"
    assert "begins at 5, landed was up to 3: what lies between was deleted" in str(cut(place, 5, 9, 3, again))
    assert "ends at 2, landed was up to 3: it was made anew, or is another Kafka's" in str(cut(place, 0, 2, 3, again))


def test_topics_that_were_made_anew_are_not_landed_into_the_state_of_the_old_ones(kafka: str, tmp_path: Path) -> None:
    play = Play(kafka, calls(), f"b{uuid.uuid4().hex[:8]}.", tmp_path)
    play.make()
    landing = Landing(tmp_path / "state", Connection(broker=kafka), [], {"requests": 1}, 1, play.prefix)
    landing.stop()
    landing.run()
    with duckdb.connect(str(tmp_path / "state" / state.LANDING)) as con:
        con.execute("DELETE FROM positions")
        con.execute("INSERT INTO positions VALUES ('events', 0, 7)")
    with pytest.raises(
        Problem, match=r"ah.events/0: ends at 0, landed was up to 7: .*\nNext: asynchealth land"
    ) as refused:
        landing.run()
    assert refused.value.code == Exit.STATE


@pytest.mark.parametrize("prefixes", [("", "blue."), ("blue.", ""), ("blue.", "green.")])
def test_a_state_takes_no_rows_of_another_prefix(prefixes: tuple[str, str], tmp_path: Path) -> None:
    before, now = prefixes
    (tmp_path / state.BROKER).write_text(f"host:9092\n{before}\n")
    with pytest.raises(
        Problem, match=r"its rows are of other topics: .*\nNext: asynchealth land .*--state NEW"
    ) as refused:
        Landing(tmp_path, Connection(broker="host:9092"), [], {}, 1, now).run()
    assert refused.value.code == Exit.STATE
    assert not (tmp_path / state.LANDING).exists()


def test_what_another_version_said_ends_a_worker_with_the_reason(kafka: str, tmp_path: Path) -> None:
    play = Play(kafka, calls(), f"b{uuid.uuid4().hex[:8]}.", tmp_path, stderr=subprocess.PIPE)
    play.make()
    producer = Producer({"bootstrap.servers": kafka})
    producer.produce(names(play.prefix).slices, b"", key=b'{"protocol":4,"producer":"requests/0"}', partition=0)
    assert producer.flush(PATIENCE_S) == 0
    worker = play.worker()
    _, said = worker.communicate(timeout=PATIENCE_S)
    assert worker.returncode == Exit.STATE
    assert b"ah.slices/0: what workers say: written by protocol 4, this version reads " in said
    assert b"\nNext: run one version" in said and b"Traceback" not in said


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
