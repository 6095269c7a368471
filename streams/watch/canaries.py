"""Time enters, a canary a minute leaves for the topic `signals`; which of them came back comes back.

Each goes into the next partition, so that all are tried in turn. One that took too long proves nothing: by then the
chain was behind. Clocks: when it is due and how long it took go by the monotonic one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import uuid4

from confluent_kafka import KafkaException, Producer

from streams.live.canary import signal
from streams.live.connect import Connection

EVERY_S = 60.0
TOO_LONG_S = 120.0  # window and lateness are 40 s


class Sent(NamedTuple):
    number: int
    monotonic: float
    at: datetime


@dataclass
class Canaries:
    """Those of one process. refused: why the last one was not taken, empty where it was. came_at: see metrics."""

    connection: Connection
    topic: str
    partitions: int = 0
    refused: str = ""
    came_at: datetime | None = None
    name: str = field(default_factory=lambda: uuid4().hex)
    _producer: Any = None
    _out: list[Sent] = field(default_factory=list)
    _sent: Sent | None = None
    _since: float | None = None  # when the last came back, or the first was due

    def send(self, now: float, at: datetime) -> None:
        """The one that is due, if it is."""
        if self._since is None:
            self._since = now
        if self._producer is not None:
            self._producer.poll(0)
        if self._sent is not None and now < self._sent.monotonic + EVERY_S:
            return
        number = self._sent.number + 1 if self._sent else 1
        self._sent = Sent(number, now, at)
        self._out = [*(s for s in self._out if now < s.monotonic + TOO_LONG_S), self._sent]
        if not self.partitions:
            self.refused = "it is not there"
            return
        self._produce(signal(self.name, number, at), number % self.partitions)

    def _produce(self, value: bytes, partition: int) -> None:
        if self._producer is None:
            again = {"message.timeout.ms": int(TOO_LONG_S * 1_000), "log_level": 0}
            self._producer = Producer({**self.connection.confluent(), **again})
        try:
            self._producer.produce(self.topic, value, partition=partition, on_delivery=self._delivered)
        except (BufferError, KafkaException) as error:
            self.refused = str(error)

    def _delivered(self, error: Any, _: object) -> None:
        self.refused = error.str() if error else ""

    def back(self, seen: Mapping[str, int], now: float) -> bool:
        """Whether another one came back in time. seen: of each sender the last that came out."""
        last = seen.get(self.name, 0)
        came = [s for s in self._out if s.number <= last and now < s.monotonic + TOO_LONG_S]
        self._out = [s for s in self._out if s.number > last]
        if came:
            self._since, self.came_at = now, came[-1].at
        return bool(came)

    def missing(self, now: float) -> bool:
        """None came back for longer than it can take where all is well."""
        return self._since is not None and now > self._since + TOO_LONG_S

    def close(self) -> None:
        if self._producer is not None:
            self._producer.purge()
