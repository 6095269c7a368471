"""The broker inside the process: what each of our clients needs of it works, and what it refuses is said."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from kafka import KafkaConsumer
from kafka import TopicPartition as Partition

from streams.live.connect import Connection
from streams.live.embedded import API_VERSION, EmbeddedBroker, Refused, embedded
from streams.live.lag import facts
from streams.live.topics import admin, faults, topics
from streams.problems import Problem

WAIT_S = 30


def send(broker: EmbeddedBroker, topic: str, partition: int, *values: bytes) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for value in values:
        producer.produce(topic, value, partition=partition)
    assert producer.flush(WAIT_S) == 0


def test_a_topic_has_as_many_partitions_as_it_was_made_with(embedded_broker: EmbeddedBroker) -> None:
    embedded_broker.create("requests", 7)
    found = AdminClient({"bootstrap.servers": embedded_broker.bootstrap}).list_topics("requests", timeout=WAIT_S)
    assert len(found.topics["requests"].partitions) == 7


def test_a_topic_that_is_there_is_not_made_twice(embedded_broker: EmbeddedBroker) -> None:
    embedded_broker.create("requests", 1)
    with pytest.raises(Refused, match=r"requests: .*already exists"):
        embedded_broker.create("requests", 1)


def test_confluent_kafka_reads_what_was_sent_and_its_commit_keeps_offset_and_metadata(
    embedded_broker: EmbeddedBroker,
) -> None:
    embedded_broker.create("requests", 2)
    send(embedded_broker, "requests", 1, b"a", b"b")
    settings = {"bootstrap.servers": embedded_broker.bootstrap, "group.id": "g", "enable.auto.commit": False}
    reader = Consumer(settings)
    reader.assign([TopicPartition("requests", 1, 0)])
    assert [m.value() for m in reader.consume(2, WAIT_S)] == [b"a", b"b"]
    point = TopicPartition("requests", 1, 2, metadata="17 4")
    reader.commit(offsets=[point], asynchronous=False)
    reader.close()
    again = Consumer(settings)
    [kept] = again.committed([TopicPartition("requests", 1)], timeout=WAIT_S)
    again.close()
    assert (kept.offset, kept.metadata) == (2, "17 4")


def test_kafka_python_reads_it_when_told_the_version(embedded_broker: EmbeddedBroker) -> None:
    embedded_broker.create("ah.findings", 1)
    send(embedded_broker, "ah.findings", 0, b"a", b"b")
    reader = KafkaConsumer(
        bootstrap_servers=embedded_broker.bootstrap, api_version=API_VERSION, consumer_timeout_ms=WAIT_S * 1_000
    )
    reader.assign([Partition("ah.findings", 0)])
    reader.seek_to_beginning()
    assert [next(reader).value for _ in range(2)] == [b"a", b"b"]
    reader.close()


def test_aiokafka_in_a_group_reads_what_aiokafka_sent(embedded_broker: EmbeddedBroker) -> None:
    embedded_broker.create("requests", 3)

    async def there_and_back() -> set[bytes | None]:
        async with AIOKafkaProducer(bootstrap_servers=embedded_broker.bootstrap) as producer:
            for partition in range(3):
                await producer.send_and_wait("requests", b"%d" % partition, partition=partition)
        settings = {"bootstrap_servers": embedded_broker.bootstrap, "group_id": "g", "auto_offset_reset": "earliest"}
        async with AIOKafkaConsumer("requests", **settings) as reader:
            return {(await asyncio.wait_for(reader.getone(), WAIT_S)).value for _ in range(3)}

    assert asyncio.run(there_and_back()) == {b"0", b"1", b"2"}


def test_two_brokers_in_one_process_know_nothing_of_each_other(embedded_broker: EmbeddedBroker) -> None:
    with embedded() as other:
        other.create("requests", 1)
        assert other.bootstrap != embedded_broker.bootstrap
        known = AdminClient({"bootstrap.servers": embedded_broker.bootstrap}).list_topics(timeout=WAIT_S).topics
        assert list(known) == []
        assert list(AdminClient({"bootstrap.servers": other.bootstrap}).list_topics(timeout=WAIT_S).topics)


def test_a_broker_whose_block_has_ended_answers_nobody() -> None:
    with embedded() as broker:
        admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
        admin.list_topics(timeout=WAIT_S)
    with pytest.raises(KafkaException):
        AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0}).list_topics(timeout=1)


def test_beyond_5_mib_the_oldest_of_a_partition_are_gone(embedded_broker: EmbeddedBroker) -> None:
    """What the docstring warns of: whoever plays more through it must know."""
    embedded_broker.create("requests", 1)
    send(embedded_broker, "requests", 0, *(b"x" * 500_000 for _ in range(16)))
    reader = Consumer({"bootstrap.servers": embedded_broker.bootstrap, "group.id": "g"})
    low, high = reader.get_watermark_offsets(TopicPartition("requests", 0), timeout=WAIT_S)
    reader.close()
    assert high == 16
    assert 0 < low < 16


def test_what_it_cannot_tell_is_said_and_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where people look at it from another terminal."""
    monkeypatch.setattr("streams.live.topics.WAIT_S", 0.3)
    with embedded() as broker:
        for topic in topics(1):
            broker.create(topic.name, topic.partitions)
        at = Connection(broker=broker.bootstrap)
        with pytest.raises(Problem, match=r"settings: Kafka does not show them: .*\n.*The one inside asynchealth up"):
            faults(admin(at), topics(1), at)
        with pytest.raises(Problem, match=r"is it the broker inside asynchealth up.*\nNext: .* asynchealth report"):
            facts(at)
        with pytest.raises(Problem, match=r"no Kafka answers a consumer .*\nNext: .*inside asynchealth up"):
            at.consumer(bootstrap_timeout_ms=300)
