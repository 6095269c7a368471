"""The broker that the other tests stand on: real, with the append time that everything is ordered by."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.kafka import Broker, Unavailable

pytestmark = pytest.mark.xdist_group("kafka")


def topic(bootstrap: str) -> str:
    name = f"t-{uuid.uuid4().hex[:8]}"
    new = NewTopic(name, 1, 1, config={"message.timestamp.type": "LogAppendTime"})
    admin = AdminClient({"bootstrap.servers": bootstrap})  # it must outlive its futures
    for made in admin.create_topics([new]).values():
        made.result()
    return name


def send(bootstrap: str, name: str, *values: bytes) -> None:
    producer = Producer({"bootstrap.servers": bootstrap})
    for value in values:
        producer.produce(name, value)
    assert producer.flush(30) == 0


def received(bootstrap: str, name: str, n: int) -> list[tuple[bytes | None, int]]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": name, "enable.auto.commit": False})
    consumer.assign([TopicPartition(name, 0, 0)])
    got = consumer.consume(n, 30)
    consumer.close()
    return [(m.value(), m.timestamp()[0]) for m in got]


def test_the_broker_stamps_what_is_appended(kafka: str) -> None:
    name = topic(kafka)
    send(kafka, name, b"a", b"b")
    assert received(kafka, name, 2) == [(b"a", TIMESTAMP_LOG_APPEND_TIME), (b"b", TIMESTAMP_LOG_APPEND_TIME)]


def test_a_killed_broker_comes_back_on_its_port_with_its_data(private_kafka: Broker) -> None:
    name = topic(private_kafka.bootstrap)
    send(private_kafka.bootstrap, name, b"a")
    private_kafka.kill()
    private_kafka.start()
    send(private_kafka.bootstrap, name, b"b")
    assert [v for v, _ in received(private_kafka.bootstrap, name, 2)] == [b"a", b"b"]


def test_a_broker_does_not_start_where_another_would_answer_for_it(private_kafka: Broker, tmp_path: Path) -> None:
    second = Broker(tmp_path / "second", private_kafka.port)
    with pytest.raises(Unavailable, match=f"something listens on port {private_kafka.port}"):
        second.start()
