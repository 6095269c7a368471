"""Topics on real Kafka, replayed: as the same recording in files, once each, and nothing is left behind in Kafka."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from detectors.detector import Settings
from detectors.events import encode_json
from streams.landing import state
from streams.outcome import Outcome
from streams.problems import Exit, Problem
from streams.replay import replay
from tests.kafka import Broker
from tests.streams.conftest import started
from tests.streams.live.test_worker import tape
from tests.streams.sources.test_avro import MAP, framed, mapped, order
from tests.streams.sources.test_debezium import change
from tests.streams.tape import T0, accounting, asynchealth, contents, differing, lines, storm, write

pytestmark = pytest.mark.xdist_group("kafka")
APPEND = {"message.timestamp.type": "LogAppendTime"}
FOR_EVER = {"retention.ms": "-1"}  # a tape's stamps are long past
WAIT_S = 30


@dataclass
class Topics:
    """Under a prefix of their own."""

    broker: str
    prefix: str

    def __post_init__(self) -> None:
        self.admin = AdminClient({"bootstrap.servers": self.broker})

    def make(self, stream: str, partitions: int = 1, config: dict[str, str] = APPEND) -> None:
        for made in self.admin.create_topics([NewTopic(self.prefix + stream, partitions, 1, config=config)]).values():
            made.result()
        while self.prefix + stream not in self.admin.list_topics().topics:
            time.sleep(0.1)

    def send(self, stream: str, values: Sequence[bytes | None], partition: int = 0, stamps: Sequence[int] = ()) -> None:
        producer = Producer({"bootstrap.servers": self.broker, "linger.ms": 20})
        for i, value in enumerate(values):
            producer.produce(self.prefix + stream, value, partition=partition, timestamp=stamps[i] if stamps else 0)
            producer.poll(0)
        assert producer.flush(WAIT_S) == 0

    def transaction(self, stream: str, values: Sequence[bytes | None]) -> Producer:
        """One that is open, with these in it."""
        producer = Producer({"bootstrap.servers": self.broker, "transactional.id": uuid.uuid4().hex})
        producer.init_transactions(WAIT_S)
        producer.begin_transaction()
        for value in values:
            producer.produce(self.prefix + stream, value)
        assert producer.flush(WAIT_S) == 0
        return producer

    def stamps(self, stream: str, partition: int = 0) -> list[int]:
        """In ms, of every record."""
        name = self.prefix + stream
        consumer = Consumer({"bootstrap.servers": self.broker, "group.id": "-", "enable.auto.commit": False})
        _, end = consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=WAIT_S)
        consumer.assign([TopicPartition(name, partition, 0)])
        got: list[Any] = []
        while len(got) < end:
            got += consumer.consume(end, 1)
        consumer.close()
        return [m.timestamp()[1] for m in got]

    def address(self, stream: str) -> str:
        return f"kafka://{self.broker}/{self.prefix}{stream}"


@pytest.fixture
def topics(kafka: str) -> Topics:
    return Topics(kafka, f"r{uuid.uuid4().hex[:8]}.")


def run(folder: Path, *paths: str | Path, **options: Any) -> Outcome:
    return replay([str(p) for p in paths], folder, Settings(), **options)


def encoded(events: Sequence[Any]) -> list[bytes | None]:
    return [None if e is None else e if isinstance(e, bytes) else msgspec.json.encode(e) for e in events]


def now(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """As if the last of them had just happened."""
    shift = time.time() - max(e["timestamp"] for e in events)
    return [{**e, "timestamp": e["timestamp"] + shift} | {"arrival": None} for e in events]


def offsets(folder: Path) -> list[tuple[int, int]]:
    con = state.open_readable(folder)
    try:
        return con.execute('SELECT "partition", "offset" FROM requests ORDER BY ALL').fetchall()
    finally:
        con.close()


def test_a_tape_in_topics_gives_what_it_gives_in_files(topics: Topics, tmp_path: Path) -> None:
    case = tape()
    files, addresses = [], []
    for stream, parts in case.streams.items():
        topics.make(stream, len(parts), FOR_EVER)
        addresses.append(topics.address(stream))
        for p, part in enumerate(parts):
            stamps = part["arrival"].dt.epoch("ms").to_list()
            topics.send(stream, encode_json(stream, part.drop("arrival", "offset")), p, stamps)
            values = encode_json(stream, part.drop("offset"))
            files.append(write(tmp_path / f"{stream}-{p}.jsonl", b"\n".join(values) + b"\n"))
    run(tmp_path / "files", *files)
    outcome = run(tmp_path / "topics", *addresses, arrival="stamp")
    expected = contents(tmp_path / "files")
    assert expected["findings"]["detector"].n_unique() >= 8
    assert differing(contents(tmp_path / "topics"), expected, but=["source"]) == []
    assert any("CreateTime" in note for note in outcome.notes)


def test_the_brokers_append_time_is_the_arrival(topics: Topics, tmp_path: Path) -> None:
    events, others = now(storm(2_000)), [None, b"{", b'{"service_name": "payment"}']
    topics.make("requests")
    topics.send("requests", [*encoded(events), *others])
    stamps = topics.stamps("requests")
    told = [event | {"arrival": stamp / 1_000} for event, stamp in zip(events, stamps[:2_000], strict=True)]
    file = write(tmp_path / "requests.jsonl", lines(told) + b'null\n{\n{"service_name": "payment"}\n')
    run(tmp_path / "file", file)
    outcome = run(tmp_path / "topic", topics.address("requests"))
    assert accounting(tmp_path / "topic")["read"] == 2_003
    assert {"rejected": 2, "tombstones": 1}.items() <= accounting(tmp_path / "topic").items()
    assert differing(contents(tmp_path / "topic"), contents(tmp_path / "file"), but=["source"]) == []
    assert outcome.notes == []


def test_a_second_run_reads_what_is_new_and_gives_what_one_over_all_gives(topics: Topics, tmp_path: Path) -> None:
    values = encoded(now(storm(3_000)))
    topics.make("requests", 2)
    topics.send("requests", [*values[:1_000], b"{"])
    address = topics.address("requests")
    run(tmp_path / "twice", address)
    topics.send("requests", values[1_000:2_000])
    topics.send("requests", values[2_000:], partition=1)
    run(tmp_path / "twice", address)
    run(tmp_path / "once", address)
    assert accounting(tmp_path / "twice")["read"] == 3_001
    assert differing(contents(tmp_path / "twice"), contents(tmp_path / "once")) == []
    before = contents(tmp_path / "twice")
    outcome = run(tmp_path / "twice", address)
    assert [n.partition(": ")[2] for n in outcome.notes] == [
        f"read before as {topics.prefix}requests/{p}, nothing new in it" for p in range(2)
    ]
    assert differing(contents(tmp_path / "twice"), before) == []


def test_without_arrivals_a_topic_that_has_grown_is_judged_as_a_whole(topics: Topics, tmp_path: Path) -> None:
    values = encoded([{n: v for n, v in e.items() if n != "arrival"} for e in storm(8_000)])
    stamps = [(T0 + i // 20) * 1_000 for i in range(8_000)]
    topics.make("requests", config=FOR_EVER)
    topics.send("requests", values[:5_000], stamps=stamps[:5_000])
    address = topics.address("requests")
    first = run(tmp_path / "twice", address, since="2026-01-26T08:01Z")
    topics.send("requests", values[5_000:], stamps=stamps[5_000:])
    run(tmp_path / "twice", address)
    run(tmp_path / "once", address, since="2026-01-26T08:01Z")
    assert accounting(tmp_path / "once") == {"read": 6_800, "used": 6_800}
    assert len(contents(tmp_path / "once")["findings"]) >= 1
    assert not contents(tmp_path / "once")["requests"]["told"].any()
    assert differing(contents(tmp_path / "twice"), contents(tmp_path / "once")) == []
    [note] = first.notes
    assert "CreateTime" in note and "--arrival stamp" in note and "kafka-configs.sh" in note


@pytest.mark.parametrize(
    ("since", "begin"),
    [("5m", 1_999), ("2026-01-26T08:06:00Z", 7_200), ("2026-01-26T09:00", None), ("9d", 0), ("1960-01-01", 0)],
)
def test_since_is_a_time_or_counts_back_from_the_newest_record(
    topics: Topics, tmp_path: Path, since: str, begin: int | None
) -> None:
    """Of all topics of the run: here heartbeats end before requests."""
    topics.make("requests", config=FOR_EVER)
    topics.make("heartbeats", config=FOR_EVER)
    stamps = [round((T0 + i / 20) * 1_000) for i in range(8_000)]
    topics.send("requests", encoded(storm(8_000)), stamps=stamps)
    beats = [{"node_id": "n", "client_time": T0 + s, "server_time": T0 + s} for s in range(120)]
    topics.send("heartbeats", encoded(beats), stamps=[(T0 + s) * 1_000 for s in range(120)])
    both = [topics.address(s) for s in ("requests", "heartbeats")]
    if begin is None:
        with pytest.raises(Problem, match="nothing since"):
            run(tmp_path, *both, since=since, arrival="stamp")
        return
    run(tmp_path, *both, since=since, arrival="stamp")
    assert [o for _, o in offsets(tmp_path)] == list(range(begin, 8_000))
    seen = len(contents(tmp_path)["heartbeats"])
    assert seen == max(0, 120 - -(-begin // 20)) if begin < 2_400 else seen == 0


def test_what_was_not_committed_is_not_read_and_offsets_are_kafkas(topics: Topics, tmp_path: Path) -> None:
    values = encoded(now(storm(40)))
    topics.make("requests")
    topics.transaction("requests", values[:10]).commit_transaction(WAIT_S)  # 0 to 9, a marker at 10
    topics.transaction("requests", values[10:20]).abort_transaction(WAIT_S)  # 11 to 20, a marker at 21
    open_ = topics.transaction("requests", values[20:30])  # 22 to 31
    topics.send("requests", values[30:])  # 32 to 41, behind a transaction that is open
    run(tmp_path, topics.address("requests"))
    assert [o for _, o in offsets(tmp_path)] == list(range(10))
    open_.commit_transaction(WAIT_S)
    topics.transaction("requests", values[:10]).abort_transaction(WAIT_S)
    run(tmp_path, topics.address("requests"))
    assert [o for _, o in offsets(tmp_path)] == [*range(10), *range(22, 42)]
    outcome = run(tmp_path, topics.address("requests"))
    assert len(outcome.notes) == 1 and outcome.notes[0].endswith("nothing new in it")


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
def test_what_producers_pack_is_read(topics: Topics, tmp_path: Path, codec: str) -> None:
    topics.make("requests")
    producer = Producer({"bootstrap.servers": topics.broker, "compression.type": codec, "linger.ms": 100})
    for value in encoded(now(storm(500))):
        producer.produce(topics.prefix + "requests", value)
    assert producer.flush(WAIT_S) == 0
    run(tmp_path, topics.address("requests"))
    assert accounting(tmp_path) == {"read": 500, "used": 500}


def test_what_an_earlier_run_left_out_is_said(topics: Topics, tmp_path: Path) -> None:
    topics.make("requests", config=FOR_EVER)
    topics.send("requests", encoded(storm(400)), stamps=[(T0 + i // 20) * 1_000 for i in range(400)])
    run(tmp_path, topics.address("requests"), since="5s", arrival="stamp")
    assert run(tmp_path, topics.address("requests"), since="5s", arrival="stamp").notes == [
        f"{topics.prefix}requests/0: read before as {topics.prefix}requests/0, nothing new in it"
    ]
    said = run(tmp_path, topics.address("requests"), arrival="stamp").notes
    assert any(
        "read from 280 on, as the first time\nNext: for all of it, asynchealth replay kafka://" in note for note in said
    )
    assert len(offsets(tmp_path)) == 120


def test_a_deleted_stretch_is_said_and_counts_nothing(topics: Topics, tmp_path: Path) -> None:
    topics.make("requests")
    topics.send("requests", encoded(now(storm(100))))
    run(tmp_path, topics.address("requests"))
    before = contents(tmp_path)
    topics.send("requests", encoded(now(storm(100))))
    for done in topics.admin.delete_records([TopicPartition(topics.prefix + "requests", 0, 150)]).values():
        done.result()
    with pytest.raises(Problem, match="holds 150 to 200, read was up to 100: what lies between was deleted") as told:
        run(tmp_path, topics.address("requests"))
    assert told.value.code == Exit.STATE
    assert differing(contents(tmp_path), before) == []


def test_what_must_be_read_again_and_is_gone_is_said(topics: Topics, tmp_path: Path) -> None:
    values = encoded(storm(100))
    topics.make("requests", config=FOR_EVER)
    topics.send("requests", values[:50], stamps=[T0 * 1_000] * 50)
    run(tmp_path, topics.address("requests"))
    topics.send("requests", values[50:], stamps=[T0 * 1_000] * 50)
    run(tmp_path, topics.address("requests"), arrival="stamp")
    for done in topics.admin.delete_records([TopicPartition(topics.prefix + "requests", 0, 10)]).values():
        done.result()
    with pytest.raises(Problem, match=r"all from 0 on must be read again, .* at 10 now\nNext: .*--state NEW"):
        run(tmp_path, topics.address("requests"), arrival="timestamp")
    assert len(offsets(tmp_path)) == 100


def test_another_owner_of_a_partition_number_is_refused(topics: Topics, tmp_path: Path) -> None:
    topics.make("requests")
    topics.send("requests", encoded(now(storm(100))))
    file = write(tmp_path / "requests.jsonl", lines(storm(50)))
    run(tmp_path / "file", file)
    with pytest.raises(Problem, match=r"requests/0: requests.jsonl is partition 0 of requests in this state"):
        run(tmp_path / "file", topics.address("requests"))
    run(tmp_path / "both", file, topics.address("requests"))
    assert set(contents(tmp_path / "both")["requests"]["partition"]) == {0, 1}
    other = Topics(topics.broker, f"other-{topics.prefix}")
    other.make("requests")
    other.send("requests", encoded(now(storm(10))))
    with pytest.raises(Problem, match=r"other-.*requests/0: .*requests/0 is partition 0"):
        run(tmp_path / "two", topics.address("requests"), other.address("requests"))


def test_a_topic_made_anew_is_another(topics: Topics, tmp_path: Path) -> None:
    topics.make("requests")
    topics.send("requests", encoded(now(storm(100))))
    run(tmp_path, topics.address("requests"))
    for done in topics.admin.delete_topics([topics.prefix + "requests"]).values():
        done.result()
    while topics.prefix + "requests" in topics.admin.list_topics().topics:
        time.sleep(0.1)
    topics.make("requests")
    topics.send("requests", encoded(now(storm(200))))
    with pytest.raises(Problem, match="is partition 0 of requests in this state"):
        run(tmp_path, topics.address("requests"))


def test_a_topic_of_any_name_is_known_by_its_first_records(topics: Topics, tmp_path: Path) -> None:
    topics.make("traffic", 2)
    topics.send("traffic", [None, b"{", *encoded(now(storm(100)))], partition=1)
    run(tmp_path, topics.address("traffic"))
    assert offsets(tmp_path) == [(1, o) for o in range(2, 102)]
    topics.make("noise")
    topics.send("noise", [b'{"a": 1}'])
    with pytest.raises(Problem, match="noise: not recognised"):
        run(tmp_path / "noise", topics.address("noise"))


def test_change_events_of_a_topic_are_known_and_its_tombstones_are_nothing(topics: Topics, tmp_path: Path) -> None:
    topics.make("shop.public.orders")
    changes = [change("c", None, {"id": 1}), change("d", {"id": 1}), None, {"schema": None, "payload": change("r")}]
    topics.send("shop.public.orders", [*encoded(changes), b"{"])
    outcome = run(tmp_path, topics.address("shop.public.orders"))
    assert f"{topics.prefix}shop.public.orders/0: debezium → write_log, 3 events, 1 rejected" in outcome.notes[0]
    rows = contents(tmp_path)["write_log"].sort("offset").select("offset", "entity_id", "op", "told").rows()
    assert rows == [(0, "1", "create", True), (1, "1", "delete", True), (3, None, "read", True)]
    assert {"read": 5, "tombstones": 1, "rejected": 1}.items() <= accounting(tmp_path).items()
    assert "nothing new in it" in run(tmp_path, topics.address("shop.public.orders")).notes[0]


def test_avro_messages_are_read_by_a_map_and_by_another_once_more(topics: Topics, tmp_path: Path) -> None:
    topics.make("orders")
    events = [order(round(time.time() * 1_000), f"pay-{i}") for i in range(20)]
    topics.send("orders", [*map(framed, events[:10]), b"no avro", None])
    by = mapped(tmp_path)
    outcome = run(tmp_path / "state", topics.address("orders"), maps=[by])
    assert "0: orders → requests, 10 events, 1 rejected (1 time: no message in Confluent's frame" in outcome.notes[0]
    topics.send("orders", [*map(framed, events[10:])])
    run(tmp_path / "state", topics.address("orders"), maps=[by])
    assert [o for _, o in offsets(tmp_path / "state")] == [*range(10), *range(12, 22)]
    other = mapped(tmp_path, MAP + 'region = { file = "(ders)" }\n')
    outcome = run(tmp_path / "state", topics.address("orders"), maps=[other])
    assert any("read again with another field map" in note for note in outcome.notes)
    found = contents(tmp_path / "state")["requests"]
    assert {*found["service_name"]} == {e["who"]["svc"] for e in events} and {*found["region"]} == {"ders"}


def test_nothing_is_made_in_kafka_and_what_is_missing_is_named(tmp_path: Path) -> None:
    broker = started(Broker(tmp_path / "kafka", more="auto.create.topics.enable=true\n"))
    try:
        topics = Topics(broker.bootstrap, "")
        topics.make("requests", 3)
        topics.make("signals")
        topics.send("requests", encoded(now(storm(100))))
        done = asynchealth("replay", topics.address("requests"), "--since", "2h", "--state", tmp_path / "state")
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(b"100 read = 100 used\n")
        missing = asynchealth("replay", topics.address("heartbeats"), "--state", tmp_path / "state")
        assert missing.returncode == Exit.USAGE
        assert b"topic heartbeats: not there; topics are requests, signals\nNext: " in missing.stderr
        empty = asynchealth("replay", topics.address("signals"), "--state", tmp_path / "empty")
        assert empty.returncode == Exit.NOTHING
        assert b"topic signals: empty" in empty.stderr
        assert sorted(topics.admin.list_topics().topics) == ["requests", "signals"]
        groups = topics.admin.list_consumer_groups().result()
        assert (groups.valid, groups.errors) == ([], [])
    finally:
        broker.stop()
    away = asynchealth("replay", topics.address("requests"), "--state", tmp_path / "state")
    assert away.returncode == Exit.USAGE
    assert b"no Kafka answers" in away.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kafka://127.0.0.1:9"], "kafka://127.0.0.1:9: names no topic"),
        (["kafka://127.0.0.1:9/a/b"], "names no topic"),
        (["requests.jsonl", "--since", "2h"], "--since 2h: files are read whole"),
    ],
)
def test_a_slip_is_named_with_what_to_write(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = asynchealth("replay", *arguments, "--state", tmp_path)
    assert done.returncode == Exit.USAGE
    assert said in done.stderr.decode()
    assert "kafka://host:9092/requests" in done.stderr.decode()
