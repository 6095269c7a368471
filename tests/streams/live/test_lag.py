"""What `asynchealth lag` says: screens of known facts; real Kafka with a worker, without one, and with one stuck."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from typer.testing import CliRunner

from detectors.events import STREAMS
from detectors.windows import SECOND_US, SLICE_US, WINDOW_US
from streams.cli import app
from streams.landing.state import BROKER, fed_from
from streams.live.connect import Connection
from streams.live.lag import Facts, Landed, Member, Partition, added, answered, facts, lag
from streams.live.reduce import Point
from streams.live.topics import admin, create, names, topics
from streams.live.worker import group
from streams.problems import Exit, Problem
from streams.report.lag import age, screen, spelled
from tests.kafka import free_port
from tests.streams.live.test_commands import begun
from tests.streams.tape import T0, asynchealth

Golden = Callable[[str, str], None]
NOW_US = (T0 + 3_600) * SECOND_US
MINUTE_US = 60 * SECOND_US
PATIENCE_S = 60


def log(stream: str, number: int, ago_us: int = 8 * SECOND_US, unread: int = 0) -> Partition:
    """As a worker commits it that has read until so long ago."""
    point = Point(1_000 - unread, (NOW_US - ago_us) // SLICE_US)
    oldest_us = NOW_US - ago_us if unread else None
    return Partition(stream, number, 0, 1_000, point.offset, point.metadata, "host-1", oldest_us)


def later(topic: str, number: int, ago_us: int = 40 * SECOND_US) -> Partition:
    return Partition(topic, number, 0, 500, 420, f"{(NOW_US - ago_us) // WINDOW_US} 7", "host-1")


def known(**changes: Any) -> Facts:
    sources = [log(stream, n, unread=12 * (stream == "requests")) for stream in STREAMS for n in range(2)]
    owns = {s: [0, 1] for s in (*STREAMS, "ah.slices")}
    members = [Member("host-2", "10.0.0.2", {}), Member("host-1", "10.0.0.1", {**owns, "ah.tables": [0]})]
    rest = [later("ah.events", 0), later("ah.events", 1), later("ah.findings", 0)]
    made = Facts(NOW_US, sources, [later("ah.slices", n) for n in range(2)], [later("ah.tables", 0)], members, rest)
    return replace(made, **changes)


def stuck() -> Facts:
    """heartbeats/1 has been read until ten minutes ago; write_log/0 has no broker, signals/1 is new."""
    made = known()
    changed = {
        ("heartbeats", 1): replace(log("heartbeats", 1, 10 * MINUTE_US, unread=900), begin=300),
        ("write_log", 0): replace(log("write_log", 0), end=0, leader=False),
        ("signals", 1): Partition("signals", 1, 0, 40, owner="host-1", oldest_us=NOW_US - 90 * SECOND_US),
    }
    positions = {("ah.tables", 0): 450, ("ah.findings", 0): 500, ("ah.events", 0): 500, ("ah.events", 1): 470}
    return replace(
        made,
        sources=[changed.get((p.topic, p.number), p) for p in made.sources],
        slices=[later("ah.slices", n, 11 * MINUTE_US) for n in range(2)],
        tables=[later("ah.tables", 0, 12 * MINUTE_US)],
        landed=Landed(positions, (NOW_US - 15 * MINUTE_US) // WINDOW_US, NOW_US - 14 * MINUTE_US),
    )


def never() -> Facts:
    """Topics were made, services wrote, and no worker has ever run."""
    unowned = [Partition(s, n, 0, 100, oldest_us=NOW_US - 7 * MINUTE_US) for s in STREAMS for n in range(2)]
    return Facts(NOW_US, unowned, [Partition("ah.slices", 0)], [Partition("ah.tables", 0)], [])


@pytest.mark.parametrize("case", [known, stuck, never])
def test_the_screen_is_the_golden_one(case: Callable[[], Facts], golden: Golden) -> None:
    lines = screen(lag(case()), " --broker kafka:9092", lambda command: f"asynchealth {command} --state live")
    golden(f"lag_{case.__name__}.txt", "".join(f"{line}\n" for line in lines))


def test_the_first_line_says_what_is_behind_where_what_is_final_is_not() -> None:
    def first(**changes: Any) -> str:
        return next(screen(lag(known(**changes)), "", str)).partition(" ago: ")[2]

    assert first() == "normal"
    held = [log("requests", 0, 7 * MINUTE_US, unread=3), *known().sources[1:]]
    assert first(sources=held) == "BEHIND, what waits is 7 min old (up to 60 s is normal)"
    fresh = [Partition("requests", 0), *known().sources[1:]]
    assert first(sources=fresh) == "NOT ALL IS KNOWN, see what is blind"
    assert first(tables=[later("ah.tables", 0, 5 * MINUTE_US)]) == "BEHIND (up to 60 s is normal)"


def test_a_worker_that_owns_nothing_is_one_too_many_only_where_all_is_owned() -> None:
    def idle(**changes: Any) -> str:
        return next(line for line in screen(lag(known(**changes)), "", str) if "host-2" in line)

    assert idle().endswith("nothing: there are more workers than partitions")
    nobodys = [replace(p, owner="") for p in known().sources]
    assert idle(sources=nobodys).endswith("nothing: the work is being shared anew, for up to 2 min")


def test_the_worst_is_the_oldest_of_all_that_waits_and_unknown_where_somebody_is_blind() -> None:
    assert lag(known()).worst_s == 40
    waiting = replace(known(), tables=[later("ah.tables", 0, 5 * MINUTE_US)])
    assert lag(waiting).worst_s == 300
    assert [s.behind_windows for s in lag(waiting).steps] == [0, 26]
    held = [log("requests", 0, 7 * MINUTE_US, unread=3), *known().sources[1:]]
    assert lag(replace(known(), sources=held)).worst_s == 420
    assert lag(stuck()).worst_s is None
    assert lag(never()).worst_s is None


def test_a_partition_that_nobody_committed_was_added_once_windows_were_said_and_others_were_committed() -> None:
    sources, tables = [log("requests", 0), Partition("requests", 1)], [later("ah.tables", 0)]
    assert [p.number for p in added(sources, tables)] == [1]
    assert added(sources, [Partition("ah.tables", 0)]) == []  # nothing was said without it
    assert added(sources[:1], tables) == []
    assert added(sources[1:], tables) == []  # all that was committed has expired: it begins anew


def test_numbers_and_spans_are_short() -> None:
    assert spelled("requests", [3, 0, 1, 2, 7]) == "requests/0-3,7"
    assert [age(s) for s in (None, 0.4, 119, 120, 7_300, 200_000)] == ["-", "0 s", "119 s", "2 min", "2 h", "2 d"]


def test_a_partition_whose_leader_is_being_chosen_is_asked_again_and_what_is_refused_is_not() -> None:
    said = iter([KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.NOT_COORDINATOR])

    def ask() -> str:
        if code := next(said, None):
            raise KafkaException(KafkaError(code))
        return "seven"

    assert answered(ask) == "seven" and next(said, None) is None
    said = iter([KafkaError.TOPIC_AUTHORIZATION_FAILED])
    with pytest.raises(KafkaException):
        answered(ask)


# ---- real Kafka ----

real = pytest.mark.xdist_group("kafka")


@pytest.fixture
def prefix(kafka: str) -> str:
    made = f"l{uuid.uuid4().hex[:8]}."
    create(admin(Connection(broker=kafka)), topics(2, made))
    return made


def produced(kafka: str, topic: str, n: int, partition: int = 0) -> None:
    producer = Producer({"bootstrap.servers": kafka})
    for _ in range(n):
        producer.produce(topic, b'{"timestamp":"2026-01-26T08:00:00Z"}', partition=partition)
    assert producer.flush(PATIENCE_S) == 0


def told(kafka: str, prefix: str, *more: str, code: int = 0) -> dict[str, Any]:
    done = asynchealth("lag", "--broker", kafka, "--prefix", prefix, "--json", *more)
    assert done.returncode == code, done.stderr.decode()
    return dict(json.loads(done.stdout))


@real
def test_without_a_worker_ever_all_is_unread_blind_and_nobodys(kafka: str, prefix: str) -> None:
    produced(kafka, f"{prefix}requests", 7)
    client = admin(Connection(broker=kafka))
    groups = {g.group_id for g in client.list_consumer_groups().result().valid}
    found = told(kafka, prefix, "--max-lag-s", "1000000", code=Exit.FOUND)
    assert found["final_until"] is None and found["workers"] == []
    assert sum(p["unread"] for p in found["logs"]) == 7 and len(found["logs"]) == 2 * len(STREAMS)
    (waiting,) = [p for p in found["logs"] if p["unread"]]
    assert 0 <= waiting["oldest_s"] < PATIENCE_S and waiting["partition"] == 0
    assert {p["blind"] for p in found["logs"]} == {"nobody has read it yet"}
    assert {g.group_id for g in client.list_consumer_groups().result().valid} == groups  # it has joined none


@pytest.fixture
def worked(kafka: str, prefix: str) -> Iterator[str]:
    """A worker that runs."""
    running = begun("worker", "--broker", kafka, "--prefix", prefix)
    yield prefix
    running.kill()
    running.wait()


@real
def test_of_a_worker_that_runs_it_says_what_it_owns_and_how_far_it_is(kafka: str, worked: str) -> None:
    produced(kafka, f"{worked}requests", 5)
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and (found := told(kafka, worked))["worst_s"] is None:
        time.sleep(1)
    assert 30 <= found["behind_s"] <= PATIENCE_S and found["worst_s"] <= PATIENCE_S
    ((_, host, owns),) = found["workers"]
    assert host and owns[f"{worked}requests"] == [0, 1] and owns[f"{worked}ah.tables"] == [0]
    assert not any(p["held"] or p["blind"] or p["unread"] for p in found["logs"])
    assert {p["owner"] for p in found["logs"]} == {found["workers"][0][0]}
    assert all(s["behind_windows"] <= 1 for s in found["steps"])
    told(kafka, worked, "--max-lag-s", "600")
    told(kafka, worked, "--max-lag-s", "1", code=Exit.FOUND)


@real
def test_one_partition_that_is_stuck_is_named_with_what_waits_for_it(kafka: str, prefix: str, tmp_path: Path) -> None:
    """What a worker commits of requests/1, three minutes ago; all the others it has read until now."""
    produced(kafka, f"{prefix}requests", 9, partition=1)
    now_us = time.time_ns() // 1000
    ago_us = now_us - 3 * MINUTE_US
    ours = names(prefix)
    points = [(f"{prefix}{s}", n, Point(0, now_us // SLICE_US)) for s in STREAMS for n in range(2)]
    points.append((f"{prefix}requests", 1, Point(2, ago_us // SLICE_US)))  # in place of the one above
    commits = {TopicPartition(t, n): OffsetAndMetadata(p.offset, p.metadata, -1) for t, n, p in points}
    window = str(ago_us // WINDOW_US)
    commits |= {TopicPartition(ours.slices, n): OffsetAndMetadata(0, window, -1) for n in range(2)}
    commits[TopicPartition(ours.tables, 0)] = OffsetAndMetadata(0, f"{window} -1", -1)
    member = KafkaConsumer(bootstrap_servers=kafka, group_id=group(prefix), enable_auto_commit=False)
    member.assign(list(commits))
    member.commit(commits)
    member.close()
    found = lag(facts(Connection(broker=kafka), prefix))
    (held,) = [p for p in found.logs if p.held]
    assert (held.topic, held.partition, held.unread) == (f"{prefix}requests", 1, 7)
    assert held.oldest_s is not None and held.oldest_s < PATIENCE_S
    assert found.behind_s is not None and 180 <= found.behind_s < 180 + PATIENCE_S
    said = asynchealth("lag", "--broker", kafka, "--prefix", prefix).stdout.decode()
    assert f"Held by {prefix}requests/1: " in said and "7 unread, of nobody" in said and "No worker runs" in said


def test_a_state_tells_which_kafka_its_lander_reads_unless_another_is_given(tmp_path: Path) -> None:
    mine, other = (f"127.0.0.1:{free_port()}" for _ in range(2))
    (tmp_path / BROKER).write_text(f"{mine}\nblue.\n")
    for options, asked in (([], mine), (["--broker", other], other)):
        with pytest.raises(Problem, match=f"^{asked}: no Kafka answers"):
            CliRunner().invoke(app, ["lag", "--state", str(tmp_path), *options], catch_exceptions=False)
    assert fed_from(tmp_path) == (mine, "blue.") and fed_from(tmp_path / "none") == ("", "")


@real
def test_topics_that_are_not_there_and_a_state_that_no_lander_wrote_are_said(
    kafka: str, prefix: str, demo_state: Path
) -> None:
    missing = asynchealth("lag", "--broker", kafka, "--prefix", "none.")
    assert missing.returncode == Exit.USAGE and b"topic none.requests: not there" in missing.stderr
    assert f"asynchealth topics create --broker {kafka}".encode() in missing.stderr
    recorded = asynchealth("lag", "--broker", kafka, "--prefix", prefix, "--state", demo_state)
    assert recorded.returncode == Exit.STATE and b"no lander wrote it" in recorded.stderr
