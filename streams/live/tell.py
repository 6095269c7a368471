"""Records enter a topic: at once for who waits, behind the back of who does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaException, Producer

from streams.live.connect import Connection
from streams.problems import Problem

WAIT_S = 20.0
ANY = -1  # whichever partition


def tell(at: Connection, stream: str, value: bytes, prefix: str = "") -> None:
    """It is there when this returns."""
    topic = prefix + stream
    writer = Writer(at, topic, WAIT_S)
    writer.write(value)
    if not writer.wait(WAIT_S + 1):
        reason = f"not written to topic {topic}: {writer.refused or 'no answer'}"
        raise Problem(at.broker, reason, f"asynchealth topics check {at.options(prefix)}")


@dataclass
class Writer:
    """Holds each record for so long until Kafka takes it. refused: why the last was not taken, empty where it was."""

    connection: Connection
    topic: str
    holds_s: float
    refused: str = ""
    _producer: Any = None

    def write(self, value: bytes, partition: int = ANY) -> None:
        try:
            if self._producer is None:
                again = {"message.timeout.ms": int(self.holds_s * 1_000), "log_level": 0}
                self._producer = Producer({**self.connection.confluent(), **again})
            self._producer.produce(self.topic, value, partition=partition, on_delivery=self._delivered)
        except (BufferError, KafkaException) as error:
            self.refused = str(error)

    def _delivered(self, error: Any, _: object) -> None:
        self.refused = error.str() if error else ""

    def look(self) -> None:
        """What became of those that were written."""
        if self._producer is not None:
            self._producer.poll(0)

    def wait(self, seconds: float) -> bool:
        """Whether all that was written is there."""
        left = 0 if self._producer is None else self._producer.flush(seconds)
        return not left and not self.refused

    def close(self) -> None:
        if self._producer is not None:
            self._producer.purge()
