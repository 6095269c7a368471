"""Addresses kafka://host:9092/topic enter, the partitions of the topics leave, as far as they reached at the beginning.

It joins no group, commits nothing and creates nothing. Offsets and partitions are Kafka's own, so that coordinates are
those of the live system; the brokers' append time is the arrival. A producer's stamp (CreateTime) is none, unless
`--arrival stamp` says that it is: without it the events' own arrivals are taken, else event time stands in.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import partial
from itertools import islice
from typing import Any

import polars as pl
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import AdminClient, OffsetSpec
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from detectors.events import INSTANT, Decoded
from streams.landing.lake import Writer
from streams.live.connect import Connection, connection
from streams.live.topics import admin, altered
from streams.problems import Exit, Problem, few
from streams.settings import private, span_us
from streams.sources.decode import LOOKED_AT, Reading, messages, shipped_of
from streams.sources.fieldmap import FieldMap
from streams.sources.files import Known, stream_of
from streams.sources.named import reading, readings
from streams.sources.source import KAFKA, Opening

EXAMPLE = f"{KAFKA}host:9092/requests"
STAMP = "stamp"  # as --arrival: Kafka's stamps are arrivals, whoever set them
APPENDED = 1  # the kind of a stamp that the broker set
POLL_MS = 500
WAIT_S = 30.0
CHUNK, CHUNK_BYTES = 50_000, 16 << 20  # records and bytes that are decoded together


@dataclass(frozen=True)
class Log:
    """One partition of a topic: what its log held when reading began, and from where on it is wanted."""

    consumer: KafkaConsumer
    broker: str
    at: TopicPartition
    head: str  # the topic's id and the partition: a topic that was deleted and made again is another
    start: int
    wanted: int
    end: int

    @property
    def name(self) -> str:
        return f"{self.at.topic}/{self.at.partition}"

    def records(self, begin: int) -> Iterator[tuple[int, list[Any]]]:
        """(offsets passed, records), of what was committed; markers and aborted records have offsets, too."""
        with _answers(self.broker):
            self.consumer.assign([self.at])
            self.consumer.seek(self.at, begin)
        at, heard = begin, time.monotonic()
        while at < self.end:
            with _answers(self.broker):
                some = self.consumer.poll(timeout_ms=POLL_MS).get(self.at, [])
                to = min(int(self.consumer.position(self.at)), self.end)
            if to > at:
                yield to - at, [r for r in some if r.offset < self.end]
                at, heard = to, time.monotonic()
            elif time.monotonic() > heard + WAIT_S:
                reason = f"{self.name}: nothing came in {WAIT_S:.0f} s, at offset {at} of {self.end}"
                raise Problem(self.broker, reason, "run it again when Kafka answers: the state is as it was")


@dataclass
class Partition:
    """A log as a source."""

    log: Log
    reading: Reading
    arrival: str
    since: str
    notes: list[str] = field(default_factory=list)

    @property
    def stream(self) -> str:
        return self.reading.stream

    @property
    def by(self) -> str:
        return self.reading.by

    @property
    def format(self) -> str:
        return self.reading.format

    @property
    def name(self) -> str:
        return self.log.name

    @property
    def ordered(self) -> bool:
        return False

    @property
    def reached(self) -> int:
        return 0

    @property
    def partition(self) -> int:
        return int(self.log.at.partition)

    def read_before(self, known: Sequence[Known]) -> Known | None:
        before = next((k for k in known if k.head == self.log.head), None)
        if before and not self.log.start <= before.records <= self.log.end:
            holds = f"holds {self.log.start} to {self.log.end}, read was up to {before.records}"
            raise self._gone(f"{holds}: what lies between was deleted")
        if before and self.log.wanted < before.length:
            self._note(
                f"{self.name}: read from {before.length} on, as the first time\nNext: for all of it, {self._anew}"
            )
        return before

    @property
    def _anew(self) -> str:
        return f"asynchealth replay {KAFKA}{self.log.broker}/{self.log.at.topic} --state NEW"

    def _gone(self, reason: str) -> Problem:
        return Problem(self.name, reason, self._anew, Exit.STATE)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def has_more(self, before: Known) -> bool:
        return before.records < self.log.end

    def alike(self, _known: Sequence[Known], _landed: Writer, _rejects: Sequence[pl.DataFrame]) -> None:
        """A log has no copies."""

    def whole(self, partition: int, before: Known | None) -> Known:
        first = before.length if before else self.log.wanted
        if first == self.log.end:
            raise Problem(self.name, f"nothing since {self.since}", "an earlier --since", Exit.NOTHING)
        if first < self.log.start:
            raise self._gone(f"all from {first} on must be read again, and it begins at {self.log.start} now")
        return Known(self.stream, self.name, first, "", first, partition, 0, None, self.log.head)

    def known(self, start: Known, records: int) -> Known:
        return replace(start, records=records)

    def chunks(self, skip: int) -> Iterator[tuple[int, Decoded]]:
        passed, size, waiting = 0, 0, list[Any]()
        for count, some in self.log.records(skip):
            passed += count
            waiting += some
            size += sum(len(r.value or b"") for r in some)
            if len(waiting) >= CHUNK or size >= CHUNK_BYTES:
                yield passed, self._decoded(waiting)
                passed, size, waiting = 0, 0, []
        if passed:
            yield passed, self._decoded(waiting)

    def _decoded(self, records: Sequence[Any]) -> Decoded:
        decoded = messages(self.reading, [r.value for r in records])
        offsets = pl.Series([r.offset for r in records], dtype=pl.Int64)
        stamps = pl.Series([self._stamp_us(r) for r in records], dtype=pl.Int64).cast(INSTANT)
        if stamps.null_count() or any(r.timestamp_type != APPENDED for r in records):
            self._say_whose_stamps()
        at = decoded.events["offset"]
        arrived = stamps.gather(at).fill_null(decoded.events["arrival"])
        events = decoded.events.with_columns(offset=offsets.gather(at), arrival=arrived)
        rejects = decoded.rejects.with_columns(offset=offsets.gather(decoded.rejects["offset"]))
        return Decoded(events, rejects, decoded.tombstones)

    def _stamp_us(self, record: Any) -> int | None:
        told = record.timestamp_type == APPENDED or self.arrival == STAMP
        return record.timestamp * 1_000 if told and record.timestamp >= 0 else None

    def _say_whose_stamps(self) -> None:
        topic = self.log.at.topic
        if self.arrival == STAMP:
            self._note(f"topic {topic}: its stamps are its producers' (CreateTime), taken as arrivals")
            return
        then = altered(topic, "message.timestamp.type=LogAppendTime", self.log.broker)
        self._note(
            f"topic {topic}: its stamps are its producers' (CreateTime) and no arrivals: a column `arrival` is taken, "
            "else event time stands in and silence is unknown\n"
            f"Next: --arrival {STAMP}, if they tell when records arrived; for those to come {then}"
        )


@contextmanager
def topics(
    addresses: Sequence[str],
    arrival: str,
    since: str = "",
    kafka: Sequence[str] = (),
    maps: Sequence[FieldMap] = (),
) -> Iterator[list[Opening]]:
    """The partitions behind addresses, in their order. `since` counts back from the newest record of all at a Kafka.

    maps: given by people; one whose `files` fits the topic's name goes before what asynchealth.toml says of it.
    """
    named = readings()
    wanted: dict[str, list[str]] = {}
    for broker, topic in map(_address, dict.fromkeys(addresses)):
        wanted.setdefault(broker, []).append(topic)
    with ExitStack() as open_:
        found: list[Opening] = []
        for broker, names in wanted.items():
            at = connection(broker, kafka)
            client = admin(at)
            there = _described(client, at, names)
            consumer = open_.enter_context(_consumer(at))
            logs = _logs(client, consumer, at.broker, there, since)
            for topic in names:
                asked = next(
                    (reading(m, topic, f"topic {topic}") for m in maps if fnmatch(topic, m.files)), named.get(topic)
                )
                found += _openings([log for log in logs if log.at.topic == topic], topic, arrival, since, asked)
        yield found


def _address(text: str) -> tuple[str, str]:
    broker, _, topic = text.removeprefix(KAFKA).partition("/")
    if not re.fullmatch(r"[\w.-]+", topic, re.ASCII):
        raise Problem(text, "names no topic", f"asynchealth replay {EXAMPLE}")
    return broker, topic


@contextmanager
def _answers(broker: str) -> Iterator[None]:
    try:
        yield
    except OffsetOutOfRangeError as error:
        reason = f"deleted while it was read: {error}"
        raise Problem(broker, reason, "replay again, with a shorter --since", Exit.STATE) from None
    except (KafkaError, KafkaException) as error:
        then = "is a broker away, and may this user read and describe the topic? The state is as it was"
        raise Problem(broker, f"Kafka does not tell: {error}", then) from None


@contextmanager
def _consumer(at: Connection) -> Iterator[KafkaConsumer]:
    consumer = at.consumer(
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        allow_auto_create_topics=False,
        max_poll_records=CHUNK,
    )
    try:
        yield consumer
    finally:
        consumer.close()


def _described(client: AdminClient, at: Connection, names: Sequence[str]) -> dict[TopicPartition, str]:
    """Each partition with its identity. Whoever asks for all topics creates none."""
    with _answers(at.broker):
        there = client.list_topics(timeout=WAIT_S).topics
    for name in names:
        if name not in there:
            others = few(sorted(n for n in there if not n.startswith("__")), 10) or "none"
            reason = f"not there; topics are {others}"
            raise Problem(f"topic {name}", reason, f"asynchealth replay {KAFKA}{at.broker}/TOPIC")
    with _answers(at.broker):
        asked = client.describe_topics(TopicCollection(list(names)))
        described = {name: future.result() for name, future in asked.items()}
    return {
        TopicPartition(name, p.id): f"{d.topic_id}/{p.id}"
        for name, d in described.items()
        for p in sorted(d.partitions, key=lambda p: p.id)
    }


def _logs(
    client: AdminClient, consumer: KafkaConsumer, broker: str, heads: Mapping[TopicPartition, str], since: str
) -> list[Log]:
    places = list(heads)
    with _answers(broker):
        starts, ends = consumer.beginning_offsets(places), consumer.end_offsets(places)
        wanted = dict(starts)
        if since:
            begin_ms = _begin_ms(since, _newest_ms(client, places))
            found = consumer.offsets_for_times(dict.fromkeys(places, max(0, begin_ms)))
            wanted = {tp: found[tp].offset if found.get(tp) else ends[tp] for tp in places}
    return [Log(consumer, broker, tp, heads[tp], starts[tp], min(wanted[tp], ends[tp]), ends[tp]) for tp in places]


def _newest_ms(client: AdminClient, places: Sequence[TopicPartition]) -> int:
    spec: Any = OffsetSpec
    asked = client.list_offsets({Place(tp.topic, tp.partition): spec.max_timestamp() for tp in places})
    return max(int(future.result().timestamp) for future in asked.values())


def _begin_ms(since: str, newest_ms: int) -> int:
    try:
        at = datetime.fromisoformat(since)
    except ValueError:
        try:
            return newest_ms - span_us(since) // 1_000
        except Problem:
            reason = "neither a time nor a span"
            raise Problem(f"--since {since}", reason, "write 2026-01-26T08:00Z, or 2h (before the newest)") from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1_000)


def _openings(logs: Sequence[Log], topic: str, arrival: str, since: str, asked: Reading | None) -> list[Opening]:
    """An empty partition is none; of an empty topic somebody should hear."""
    if holding := [log for log in logs if log.start < log.end]:
        how = (asked or _reading(holding, topic))._replace(private=private())
        return [Opening(partial(Partition, log, how, arrival, since)) for log in holding]
    return [Opening(partial(_empty, topic))]


def _empty(topic: str) -> Partition:
    raise Problem(f"topic {topic}", "empty", "wait until it has records", Exit.NOTHING)


def _reading(logs: Sequence[Log], topic: str) -> Reading:
    """By the first records where a shipped map knows them, by the topic's name behind any prefix, by our own fields."""
    first = [value for log in logs for value in _first(log)]
    if given := shipped_of(first):
        return reading(given, topic, f"topic {topic}")
    cuts = [0, *(m.end() for m in re.finditer(r"[._-]", topic))]
    by_name = next(filter(None, (stream_of(topic[cut:]) for cut in cuts)), None)
    if stream := by_name or next(filter(None, (stream_of("", value) for value in first)), None):
        return Reading(stream)
    raise Problem(
        f"topic {topic}",
        "not recognised: its name ends with no stream, and its first records have none of their fields",
        "name it requests, heartbeats, write_log or signals after any prefix, or say in asynchealth.toml what it is: "
        f'[topics] {topic} = "maps/{topic}.toml"',
    )


def _first(log: Log) -> list[bytes]:
    return [*islice((r.value for _, records in log.records(log.start) for r in records if r.value), LOOKED_AT)]
