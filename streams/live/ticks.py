"""A topic of ticks enters, the brokers' time leaves: up to when a partition that was read to its end is complete.

Our own host's clock never matters. On Kafka the acknowledgement of a tick carries the broker's clock. While a tape is
played, and on a broker that stamps nothing, the player is the clock: a tick that it sends says up to when everything
has been sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from streams.live.connect import Connection

SKEW_US = 2_000_000  # brokers' clocks may differ by this much
WAIT_MS = 50


class Clock(Protocol):
    async def now_us(self) -> int:
        """What was appended before this time has been appended."""

    async def stop(self) -> None: ...


@dataclass
class Asked:
    """send gives the acknowledgement of an empty message to the topic of ticks."""

    send: Callable[[], Awaitable[Any]]

    async def now_us(self) -> int:
        return int((await self.send()).timestamp) * 1_000 - SKEW_US

    async def stop(self) -> None:
        pass


@dataclass
class Played:
    """The last tick that a player sent."""

    connection: Connection
    topic: str
    last_us: int = 0
    consumer: Any = None

    async def now_us(self) -> int:
        if self.consumer is None:
            self.consumer = AIOKafkaConsumer(**self.connection.aiokafka(), enable_auto_commit=False)
            await self.consumer.start()
            self.consumer.assign([TopicPartition(self.topic, 0)])
            await self.consumer.seek_to_beginning()
        for records in (await self.consumer.getmany(timeout_ms=WAIT_MS)).values():
            self.last_us = max(self.last_us, *(said(r.value) for r in records))
        return self.last_us

    async def stop(self) -> None:
        if self.consumer is not None:
            await self.consumer.stop()


def tick(us: int) -> bytes:
    """As a player sends it."""
    return b"%d" % us


def said(value: bytes) -> int:
    return int(value)
