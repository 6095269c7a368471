"""Topics of ours enter, what is in them leaves, read from their begin."""

from __future__ import annotations

from collections.abc import Sequence

from confluent_kafka import Consumer, Message, TopicPartition

from streams.live.numbered import Reader, Taken

Log = list[tuple[bytes, bytes]]


def read_log(bootstrap: str, topic: str, partition: int = 0) -> Log:
    """Keys and values of all messages."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "enable.auto.commit": False})
    at = TopicPartition(topic, partition, 0)
    _, end = consumer.get_watermark_offsets(at, timeout=30)
    consumer.assign([at])
    got: list[Message] = []
    while end and (not got or int(got[-1].offset() or 0) < end - 1):
        got += consumer.consume(1_000, 5)
    consumer.close()
    return [(_bytes(m.key()), _bytes(m.value())) for m in got]


def _bytes(given: bytes | str | None) -> bytes:
    assert isinstance(given, bytes)
    return given


def taken(log: Log, producers: Sequence[str]) -> list[Taken]:
    """The first copies, having asserted that the others say the same."""
    reader = Reader(producers)
    for offset, (key, value) in enumerate(log):
        reader.take(offset, key, value)
    assert reader.unequal == 0
    return reader.below(2**62)


def copies(log: Log) -> int:
    """Messages that came again."""
    return len(log) - len({key for key, _ in log})
