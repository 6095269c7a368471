"""Kafka's fetches enter, one event per fetched chunk reaches an agent: Faust's consumer, but not message by message.

Faust gives each message four asyncio tasks and an acknowledgement of its own, and commits what its acknowledgements
say: 12,000 messages a second, and offsets past a message that is still at work. Here a chunk of raw records is one
message, positions and commits are those of our own state (`Store`), and Faust keeps what it is good at: the group, its
rebalances, agents and timers. What is changed, and why:

- getmany     yields a Chunk with the fetch positions where it began and ended, since the offsets of records have holes:
              markers of transactions, and what compaction removed.
- perform_seek, on every assignment, asks the store where each partition stands instead of the last commit.
- force_commit, also at a revocation, commits the store's offsets with their metadata, never during a join: that would
              reset the generation and begin a storm of rebalances.
- the thread  runs whatever touches aiokafka (its objects belong to one loop); a refused commit of a member that was
              fenced is no error, since its successor has its own.

Rule one: a chunk that does not begin at our position is dropped and sought again (`fits`). After back-to-back
rebalances records of the old assignment can arrive stamped with the new generation; without the rule they are lost.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

import faust
from aiokafka.consumer import fetcher
from aiokafka.errors import IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from detectors.engine import UNEXPECTED
from streams.problems import Exit

ENDS_S = 10.0  # supervisors wait about as long for a process that they told to end
FAILED = 70  # the exit code of a process that an agent's error ended: a supervisor starts it again
BATCH_BYTES = 512 << 10  # what goes out together; a broker takes 1 MiB
FETCH_WAIT_MS = 100  # a broker that waits for a quiet partition meanwhile gets no request for a busy one
METADATA_MS = 5_000  # as often it looks whether topics have more partitions
AGAIN_S = 10.0
CHATTY = ("", ".conn", ".consumer.fetcher", ".consumer.group_coordinator", ".producer.sender")  # aiokafka's loggers
CHUNKS_AHEAD = 4  # per agent; what is fetched beyond waits in aiokafka, which then fetches no more


class Record(Protocol):
    """What a client unpacks, of which this much is used. timestamp: ms."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True)
class Chunk:
    """Records of one partition as they were fetched; begin ≤ their offsets < end, which may be more than they are."""

    tp: TP
    begin: int
    end: int
    records: Sequence[Record]


class Held(NamedTuple):
    """What Kafka knows of a partition that was assigned: the last commit (-1: none), and where its log begins."""

    committed: int
    metadata: str
    log_start: int


class Store(Protocol):
    """Our state, which says where each partition goes on and what may be committed."""

    async def assigned(self, held: Mapping[TP, Held]) -> Mapping[TP, int]:
        """Called on each assignment, with all partitions that are ours now: the position of each."""
        ...

    def committable(self) -> Mapping[TP, tuple[int, str]]:
        """Offset and metadata of each partition from which a successor could go on."""
        ...


def fits(chunk: Chunk, position: int) -> Literal["next", "old", "gap"]:
    """next: feed it (a stage passes over what lies below its position). old: drop it. gap: drop it and seek."""
    if chunk.begin > position:
        return "gap"
    return "old" if chunk.end <= position else "next"


# ---- what is fetched ----


def _as_unpacked(_self: Any, _tp: TopicPartition, record: Record) -> Record:
    return record


fetcher.PartitionRecords._consumer_record = _as_unpacked  # eleven fields for each cost as much as to unpack it


class Fetched(list[Record]):
    """The records of one fetch with the positions where it began and ended."""

    begin: int
    end: int


_holes: dict[TopicPartition, dict[int, int]] = {}  # stretches without a record, which no chunk will tell of
_getall = fetcher.FetchResult.getall


def _getall_with_positions(self: Any, max_records: int | None = None) -> list[Any]:
    rows = self._partition_records
    begin = None if rows is None else rows.next_fetch_offset
    records: list[Any] = _getall(self, max_records)
    if begin is None:
        return records
    end = rows.next_fetch_offset
    if not records:
        if end > begin:
            _holes.setdefault(self._topic_partition, {})[begin] = end
        return records
    fetched = Fetched(records)
    fetched.begin, fetched.end = begin, end
    return fetched


fetcher.FetchResult.getall = _getall_with_positions  # aiokafka has no other place that knows both


def over_holes(tp: TP, position: int) -> int:
    """The position after stretches without a record that begin at it."""
    holes = _holes.get(TopicPartition(*tp), {})
    while position in holes:
        position = holes.pop(position)
    return position


# ---- the consumer ----


class Thread(driver.AIOKafkaConsumerThread):
    """aiokafka's objects belong to this thread's loop, so everything that touches them is called on it."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"  # Faust has no setting for it, and aborted rows would count
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS  # nor for this
        return consumer

    def assignment(self) -> set[TP]:
        """Of nothing before it has begun, when Faust's timers ask already: an error there ended the process."""
        return super().assignment() if self._consumer else set()

    async def held(self, tps: Sequence[TP]) -> dict[TP, Held]:
        consumer = self._ensure_consumer()
        plain = [TopicPartition(*tp) for tp in tps]
        committed = await self.call_thread(consumer._coordinator.fetch_committed_offsets, plain)
        starts = await self.call_thread(consumer.beginning_offsets, plain)
        none = OffsetAndMetadata(-1, "")
        last = {tp: committed.get(p) or none for tp, p in zip(tps, plain, strict=True)}
        return {tp: Held(c.offset, c.metadata, starts[TopicPartition(*tp)]) for tp, c in last.items()}

    async def begins(self, tps: Sequence[TP]) -> dict[TP, int]:
        """Where their logs begin now."""
        starts = await self.call_thread(self._ensure_consumer().beginning_offsets, [TopicPartition(*tp) for tp in tps])
        return {tp: starts[TopicPartition(*tp)] for tp in tps}

    async def counts(self, topics: Iterable[str]) -> dict[str, int]:
        """The partitions of each topic as the brokers say now: what this client has heard may be old."""
        known = await self.call_thread(self._ensure_consumer()._client.fetch_all_metadata)
        return {topic: len(known.partitions_for_topic(topic) or ()) for topic in topics}

    async def seek_all(self, positions: Mapping[TP, int]) -> None:
        async def seek() -> None:
            consumer = self._ensure_consumer()
            for tp, position in positions.items():
                if TopicPartition(*tp) in consumer.assignment():  # it may have been revoked meanwhile
                    consumer.seek(TopicPartition(*tp), position)

        await self.call_thread(seek)

    async def commit_points(self, points: Mapping[TP, tuple[int, str]]) -> bool:
        offsets = {TopicPartition(*tp): OffsetAndMetadata(*point) for tp, point in points.items()}
        try:
            await self.call_thread(self._ensure_consumer().commit, offsets)
        except (KafkaError, IllegalStateError) as refused:  # fenced, or no broker answers: whoever has it then commits
            self.log.info("commit refused: %r", refused)
            return False
        return True


class Consumer(driver.Consumer):
    """See the head of this file."""

    said: dict[TP, tuple[int, str]]  # the last commit of each partition

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.said = {}

    def _new_consumer_thread(self) -> Thread:
        return Thread(self, loop=self.loop, beacon=self.beacon)

    @property
    def thread(self) -> Thread:
        assert isinstance(self._thread, Thread)
        return self._thread

    @property
    def store(self) -> Store:
        assert isinstance(self.app, App)
        return self.app.store

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        fetched, active = await self._wait_next_records(timeout)
        if fetched is None or self.should_stop:
            return
        for tp, records in fetched.items():
            if not self.flow_active:  # a rebalance began: recovery seeks before the flow goes on
                return
            if active is None or tp in active:
                assert isinstance(records, Fetched)
                yield tp, self._message(Chunk(tp, records.begin, records.end, records))

    def _message(self, chunk: Chunk) -> ConsumerMessage:
        """Faust passes it on by the offset of its last record."""
        last, value = chunk.records[-1], cast(Any, chunk)
        where = (*chunk.tp, last.offset, last.timestamp / 1_000, 0)
        generation = self.app.consumer_generation_id
        return ConsumerMessage(*where, None, None, value, None, tp=chunk.tp, generation_id=generation)

    async def perform_seek(self) -> None:
        tps = sorted(self.assignment())
        self.said = {}
        await self.seek_all(await self.store.assigned(await self.thread.held(tps)))

    async def seek_all(self, positions: Mapping[TP, int]) -> None:
        await self.thread.seek_all(positions)
        self._read_offset.update({tp: position or None for tp, position in positions.items()})

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        if self.app.rebalancing and start_new_transaction:
            return False
        mine = self.assignment()
        points = {tp: point for tp, point in self.store.committable().items() if tp in mine}
        fresh = {tp: point for tp, point in points.items() if self.said.get(tp) != point}
        if not fresh or not await self.thread.commit_points(fresh):
            return False
        self.said.update(fresh)
        return True


class Transport(driver.Transport):
    Consumer = Consumer


class App(faust.App):
    """A Faust app whose positions are those of a store; give it `store` before it starts."""

    store: Store


class FaustWorker(faust.Worker):
    """One that ends when it is told to, and has no spinner: that writes control codes into files and has every
    debug line made to turn by.

    Its clients end with what they asked of the brokers last: a join that waits for a member that was killed, up to a
    minute; brokers that are away, for ever. No successor needs that, so a second signal or ENDS_S end it at once.
    """

    def on_setup_root_logger(self, logger: logging.Logger, level: int) -> None:
        self.spinner = None

    def _schedule_shutdown(self, number: signal.Signals) -> None:
        if self._signal_stop_time:
            left_to_a_successor()
        super()._schedule_shutdown(number)
        last = threading.Timer(ENDS_S, left_to_a_successor)  # no loop's: one may be closed while another's thread runs
        last.daemon = True
        last.start()


def left_to_a_successor() -> None:
    """Told to end, this process does so with work under way, as if it were killed."""
    text = "ended before Kafka had answered all that it was asked; what was under way is left to a successor"
    print(text, file=sys.__stderr__, flush=True)
    os._exit(Exit.FINE)


class Seldom(logging.Filter):
    """While a broker is away its clients say so thirty times a second: the same text passes once in AGAIN_S."""

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text, now = record.getMessage(), time.monotonic()
        passes = now >= self.said.get(text, -AGAIN_S) + AGAIN_S
        if passes:
            self.said = {**{t: at for t, at in self.said.items() if now < at + AGAIN_S}, text: now}
        return passes


def app(name: str, bootstrap: str, folder: Path, **settings: Any) -> App:
    """The group `name` at a broker; folder holds what Faust itself wants to write. More settings are Faust's own."""
    folder.mkdir(parents=True, exist_ok=True)
    seldom = Seldom()
    for module in CHATTY:
        logging.getLogger(f"aiokafka{module}").addFilter(seldom)
    made = App(
        name,
        broker=[f"kafka://{address}" for address in bootstrap.split(",")],
        datadir=folder,
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        stream_buffer_maxsize=CHUNKS_AHEAD,
        consumer_auto_offset_reset="earliest",
        consumer_metadata_max_age_ms=METADATA_MS,
        producer_acks=-1,
        producer_compression_type="zstd",
        producer_max_batch_size=BATCH_BYTES,
        Worker=FaustWorker,
        **settings,
    )
    made.transport = Transport(made.conf.broker, made)
    return made


def raw(app_: App, *names: str) -> Any:
    """A topic whose keys and values nobody decodes and nobody acknowledges."""
    return app_.topic(
        *names, acks=False, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
    )


def fatal(app_: App, work: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Faust starts an agent that raised again behind the chunk it was given, which is lost: end the process instead.

    One that ends already closes its clients, with work still under way: that fails, is not committed, and a successor
    does it again.
    """

    @functools.wraps(work)
    async def guarded(*given: Any) -> None:
        try:
            await work(*given)
        except UNEXPECTED as error:  # whatever it is, only a new process reads those records again
            if app_.should_stop:
                app_.log.info("left to a successor: %r", error)
                return
            traceback.print_exc(file=sys.__stderr__)  # Faust takes the other one into its log
            os._exit(FAILED)

    return guarded
