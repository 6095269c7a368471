"""What stages and lander told Kafka enters; up to when a tape is judged, and how far it is landed, leaves."""

from __future__ import annotations

from dataclasses import dataclass

from confluent_kafka import Consumer, Message, TopicPartition

from detectors.windows import WINDOW_US
from streams.live import land
from streams.live.connect import Connection
from streams.live.numbered import head_of
from streams.live.topics import names

ASK_S = 10.0
WAIT_MS = 20  # of a fetch, since other questions queue behind it
TAKE = 1_000


@dataclass
class Follower:
    """Reads what judge says, and asks what the lander committed. Changes nothing."""

    connection: Connection
    queues: int
    prefix: str = ""
    judged_us: int = 0

    def __post_init__(self) -> None:
        ours = names(self.prefix)
        self.findings = TopicPartition(ours.findings, 0, 0)
        self.to_land = [TopicPartition(ours.events, q) for q in range(self.queues)]
        self.to_land += [TopicPartition(ours.tables, 0), TopicPartition(ours.findings, 0)]
        quick = {"fetch.wait.max.ms": WAIT_MS, "enable.auto.commit": False, "log_level": 0}
        alone = {**self.connection.confluent(), **quick}
        self.reader = Consumer({**alone, "group.id": f"{self.prefix}asynchealth-follow"})
        self.reader.assign([self.findings])
        self.lander = Consumer({**alone, "group.id": land.group(self.prefix)})

    def look(self) -> int:
        """The end of the last window that was judged, in µs."""
        for message in self.reader.consume(TAKE, 0.0):
            self._took(message)
        return self.judged_us

    def _took(self, message: Message) -> None:
        key = message.key()
        if message.error() is None and isinstance(key, bytes):
            head = head_of(key)
            self.judged_us = max(self.judged_us, head.hi * WINDOW_US if head.kind == "state" else 0)

    def ends(self) -> list[int]:
        """Up to where the logs that are landed reach now."""
        return [self.reader.get_watermark_offsets(tp, timeout=ASK_S)[1] for tp in self.to_land]

    def landed(self, ends: list[int]) -> bool:
        """Whether all of it is in the lander's database."""
        committed = self.lander.committed(self.to_land, timeout=ASK_S)
        return all(tp.offset >= end for tp, end in zip(committed, ends, strict=True) if end)

    def close(self) -> None:
        self.reader.close()
        self.lander.close()
