"""A number of partitions enters, sources that have as many leave, each of which counts from a named slice on.

Only sources grow; ah.slices keeps the partitions that it was made with, since its keys would move to other queues. It
is done at rest. What must hold is that whoever says a window says the same of it, with the new sources or without:

1. Kafka makes the partitions, or somebody had made them behind our back. At every assignment workers look how many
   there are, and end where these are more than they know.
2. In each queue (a partition of ah.slices) a message of each new producer is put behind all that was said. Workers that
   do not know the producer end there, so whatever such a zombie says is made of the slices before it.
3. The largest slice S that any reader of those could have reached is looked up: the frontier of the old producers.
4. In the group of the workers each new partition is committed as if read to its begin, with the promise that no slice
   before S holds anything. Kafka refuses that while the group has a member.

So the slices before S of the new producers are empty, whoever reads them. Of a partition that was made at rest that is
so by itself; where records came before, they are strays: landed, counted, in no table.

A command that was killed is given again. The new are known by having no commit, and a worker does not begin before all
have one. Nothing needs to be kept: a successor finds the promise in the commit, as any other.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import KafkaException, Producer
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import NewPartitions, OffsetSpec
from kafka import KafkaAdminClient, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, NoError, UnknownMemberIdError

from detectors.windows import LATENESS_US, SECOND_US, SLICE_US, WINDOW_US
from streams.live.connect import Connection
from streams.live.lag import WAIT_S, Partition, added, members_of, standing, telling
from streams.live.numbered import Head, OtherProtocol, head_of, messages
from streams.live.reduce import Point
from streams.live.topics import admin, names, wait_for
from streams.live.topics import partitions as counted
from streams.live.worker import group
from streams.problems import Exit, Problem

POLL_MS = 500


# ---- what a queue says ----


def announced(producers: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """The messages by which producers join: they say nothing, and who does not know the producer ends there."""
    return [m for p in producers for m in messages(Head(producer=p, lo=0, hi=0, kind="empty"))]


@dataclass
class Frontier:
    """Of one queue. next: the window that its reader had committed as the next; heard: what it reads again."""

    producers: Sequence[str]
    next: int
    heard: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.heard = dict.fromkeys(self.producers, 0)

    def hear(self, key: bytes | None) -> None:
        head = head_of(key)
        if head.producer in self.heard:
            self.heard[head.producer] = max(self.heard[head.producer], head.hi)

    @property
    def slice(self) -> int:
        """No reader can have been further, since it waits for every producer."""
        said = (self.next * WINDOW_US + LATENESS_US) // SLICE_US if self.next else 0
        return max(said, min(self.heard.values(), default=0))


def point(first: int) -> Point:
    """What is committed of a partition whose slices before the first are empty."""
    return Point(0, promised=first)


# ---- on Kafka ----


@dataclass(frozen=True)
class Joined:
    """A partition that was taken in, and how many of its records came before it counted."""

    topic: str
    partition: int
    strays: int


@dataclass(frozen=True)
class Grown:
    """counts: of each source before and now. since: from when on what joined counts."""

    counts: Mapping[str, tuple[int, int]]
    joined: Sequence[Joined] = ()
    since: datetime | None = None


@dataclass
class Growth:
    """sources: the topic of each stream."""

    connection: Connection
    prefix: str
    sources: Mapping[str, str]

    def __post_init__(self) -> None:
        self.client = admin(self.connection)
        self.names = names(self.prefix)
        self.streams = {topic: stream for stream, topic in self.sources.items()}

    def grow(self, partitions: int) -> Grown:
        """To so many of each source that has fewer; then those that no worker knows join."""
        with telling(self.connection.broker):
            try:
                return self._grow(partitions)
            except OtherProtocol as error:
                then = f"the asynchealth that workers ran here: {self._again}"
                raise Problem(f"topic {self.names.slices}", str(error), then, Exit.STATE) from None

    def _grow(self, partitions: int) -> Grown:
        self._at_rest()
        counts = self._make(partitions)
        known = self._known()
        new = self._added(known)
        if not new:
            return Grown(counts)
        first = self._first(known, new)
        self._commit({TopicPartition(p.topic, p.number): point(first) for p in new})
        since = datetime.fromtimestamp(first * SLICE_US // SECOND_US, UTC)
        return Grown(counts, self._joined(new, since), since)

    def problems(self) -> list[Problem]:
        """What was added and is not taken in: a worker must not begin on it."""
        new = self._added(self._known())
        some = " ".join(f"{p.topic}/{p.number}" for p in new)
        reason = "added while workers ran, and read by none: what is in there waits, and nothing is lost"
        then = f"stop all workers, then {self._again}"
        return [Problem(some, reason, then, Exit.STATE)] if new else []

    def _known(self) -> dict[tuple[str, int], Partition]:
        with telling(self.connection.broker):
            topics = [*self.streams, self.names.slices, self.names.tables]
            return standing(self.client, self.connection, topics, self.prefix)

    def _added(self, known: Mapping[tuple[str, int], Partition]) -> list[Partition]:
        every = [p for _, p in sorted(known.items())]
        return added([p for p in every if p.topic in self.streams], [p for p in every if p.topic == self.names.tables])

    def _at_rest(self) -> None:
        members = members_of(self.client, group(self.prefix))
        if members:
            raise self._running(", ".join(sorted(m.name for m in members)))

    def _running(self, who: str) -> Problem:
        reason = f"workers are running, or were killed less than a minute ago: {who}"
        then = f"stop them, then {self._again}"
        return Problem(f"group {group(self.prefix)}", reason, then, Exit.STATE)

    def _make(self, partitions: int) -> dict[str, tuple[int, int]]:
        """How many each source had and has."""
        before = {t: n for t, n in counted(self.client).items() if t in self.streams}
        few = {t: partitions for t, n in before.items() if n < partitions}
        futures = self.client.create_partitions([NewPartitions(*t) for t in few.items()]) if few else {}
        for topic, future in futures.items():
            try:
                future.result()
            except KafkaException as error:
                then = "ask who runs Kafka for the right to alter topics, or to alter this one"
                raise Problem(f"topic {topic}", f"Kafka did not alter it: {error.args[0].str()}", then) from None
        wait_for(self.client, few)
        return {t: (n, few.get(t, n)) for t, n in before.items()}

    def _first(self, known: Mapping[tuple[str, int], Partition], new: Sequence[Partition]) -> int:
        """The first slice of the new that counts. Who does not know them reads nothing behind what is written here."""
        old = [self._producer(p) for p in known.values() if p.topic in self.streams and p not in new]
        queues = [p for p in known.values() if p.topic == self.names.slices]
        self._announce(list(map(self._producer, new)), [p.number for p in queues])
        frontiers = {TopicPartition(p.topic, p.number): Frontier(old, p.next) for p in queues}
        self._hear(frontiers, {TopicPartition(p.topic, p.number): max(p.begin, p.committed) for p in queues})
        return max(f.slice for f in frontiers.values())

    def _announce(self, producers: Sequence[str], queues: Sequence[int]) -> None:
        """In every queue; they are there when this returns."""
        again = {"message.timeout.ms": int(WAIT_S * 1_000), "log_level": 0}
        producer = Producer({**self.connection.confluent(), **again})
        refused: list[str] = []

        def told(error: Any, _: object) -> None:
            if error:
                refused.append(error.str())

        for key, value in announced(producers):
            for queue in queues:
                producer.produce(self.names.slices, value, key, queue, told)
        if producer.flush(WAIT_S + 1) or refused:
            reason = f"not written to: {refused[0] if refused else 'no answer'}"
            raise Problem(f"topic {self.names.slices}", reason, self._check())

    def _producer(self, p: Partition) -> str:
        return f"{self.streams[p.topic]}/{p.number}"

    @property
    def _again(self) -> str:
        return f"asynchealth topics grow {self.connection.options(self.prefix)}"

    def _check(self) -> str:
        return f"asynchealth topics check {self.connection.options(self.prefix)}"

    def _hear(self, frontiers: Mapping[TopicPartition, Frontier], since: Mapping[TopicPartition, int]) -> None:
        consumer = self.connection.consumer(group_id=None, enable_auto_commit=False)
        try:
            consumer.assign(list(since))
            for tp, offset in since.items():
                consumer.seek(tp, offset)
            ends = consumer.end_offsets(list(since))
            at, until = since, time.monotonic() + WAIT_S
            while any(at[tp] < end for tp, end in ends.items()):
                for tp, records in consumer.poll(timeout_ms=POLL_MS).items():
                    for r in records:
                        frontiers[tp].hear(r.key)
                before, at = at, {tp: consumer.position(tp) for tp in since}
                if at != before:
                    until = time.monotonic() + WAIT_S
                elif time.monotonic() > until:
                    then = f"once Kafka answers, {self._again}; nothing is lost until then"
                    raise Problem(f"topic {self.names.slices}", f"nothing came in {WAIT_S:.0f} s", then, Exit.STATE)
        finally:
            consumer.close()

    def _commit(self, points: Mapping[TopicPartition, Point]) -> None:
        """By kafka-python: confluent-kafka reads metadata past its end."""
        offsets = {tp: OffsetAndMetadata(p.offset, p.metadata, -1) for tp, p in points.items()}
        client = KafkaAdminClient(**self.connection.kafka_python())
        try:
            answers = client.alter_group_offsets(group(self.prefix), offsets)
        except KafkaError as error:
            raise Problem(f"group {group(self.prefix)}", f"Kafka took no commit: {error}", self._check()) from None
        finally:
            client.close()
        for tp, answer in answers.items():
            if answer is UnknownMemberIdError:
                raise self._running("one was started meanwhile")
            if answer is not NoError:
                reason = f"Kafka took no commit of {tp.topic}/{tp.partition}: {answer.__name__}"
                raise Problem(f"group {group(self.prefix)}", reason, self._check())

    def _joined(self, new: Sequence[Partition], since: datetime) -> list[Joined]:
        spec: Any = OffsetSpec
        at = spec.for_timestamp(int(since.timestamp()) * 1_000)
        asked = {Place(p.topic, p.number): at for p in new if p.end > p.begin}
        first: dict[tuple[str, int], int] = {}
        for place, future in (self.client.list_offsets(asked, request_timeout=WAIT_S) if asked else {}).items():
            first[place.topic, place.partition] = future.result().offset
        offsets = ((p, first.get((p.topic, p.number), p.begin)) for p in new)
        return [Joined(p.topic, p.number, (p.end if o < 0 else o) - p.begin) for p, o in offsets]
