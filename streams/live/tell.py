"""One record enters a topic; it is there when this returns."""

from __future__ import annotations

from typing import Any

from confluent_kafka import KafkaException, Producer

from streams.live.connect import Connection
from streams.problems import Problem

WAIT_S = 20.0


def tell(at: Connection, topic: str, value: bytes) -> None:
    refused: list[str] = []

    def delivered(error: Any, _: object) -> None:
        refused.extend([error.str()] if error else [])

    try:
        producer = Producer({**at.confluent(), "message.timeout.ms": int(WAIT_S * 1_000), "log_level": 0})
        producer.produce(topic, value, on_delivery=delivered)
        left = producer.flush(WAIT_S + 1)
    except KafkaException as error:
        refused, left = [str(error)], 0
    if refused or left:
        reason = f"not written to topic {topic}: {' '.join(refused) or 'no answer'}"
        raise Problem(at.broker, reason, f"asynchealth topics check --broker {at.broker}")
