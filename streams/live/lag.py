"""What Kafka knows of the workers' group enters, how far behind they are leaves; no group is joined, nothing changes.

The offset that a stage commits is where a successor begins. Of a log that is nearly how far it was read; the later
stages look back from there, by up to a day, and how far they have come is the window in the commit's metadata.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import AdminClient, OffsetSpec
from kafka import KafkaAdminClient, TopicPartition
from kafka.errors import KafkaError as NoAnswer

from detectors.events import STREAMS
from detectors.windows import LATENESS_US, SECOND_US, SLICE_US, WINDOW_US
from streams.landing.state import open_readable
from streams.live.connect import Connection
from streams.live.topics import admin, names
from streams.live.worker import group
from streams.problems import Exit, Problem
from streams.sources.files import READABLE

Answer = TypeVar("Answer")
WAIT_S, TRY_S = 10.0, 0.2
NOT_YET = (  # of a Kafka, or a topic, that has just begun
    *(KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.NOT_COORDINATOR),
    *(KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION),
)
THEN = "grant Describe on the topics and the group to this user; is a broker away?"
ADDED = "added while workers ran, waits for topics grow"
HELD_US = 30 * SECOND_US  # a partition that was read until longer ago holds all the others


@dataclass(frozen=True)
class Partition:
    """One partition as Kafka shows it. committed: -1 where nobody has; begin and end: what its log holds."""

    topic: str
    number: int
    begin: int = 0
    end: int = 0
    committed: int = -1
    metadata: str = ""
    owner: str = ""
    oldest_us: int | None = None  # the append time of its first unread record
    leader: bool = True

    @property
    def unread(self) -> int:
        return max(0, self.end - max(self.begin, self.committed))

    @property
    def next(self) -> int:
        """The first number that is not said: a slice, where it is a log; else a window."""
        return int(self.metadata.split()[0]) if self.metadata else 0


class Member(NamedTuple):
    """A worker as the group's coordinator knows it."""

    name: str
    host: str
    owns: Mapping[str, Sequence[int]]


class Landed(NamedTuple):
    """Where the published file stands."""

    positions: Mapping[tuple[str, int], int]  # by topic, with its prefix
    next: int  # the first window whose findings are not in it
    published_us: int


@dataclass(frozen=True)
class Facts:
    now_us: int
    sources: Sequence[Partition]
    slices: Sequence[Partition]
    tables: Sequence[Partition]
    members: Sequence[Member]
    rest: Sequence[Partition] = ()  # what only the lander reads
    landed: Landed | None = None


def added(sources: Sequence[Partition], tables: Sequence[Partition]) -> list[Partition]:
    """The source partitions without which windows were said. A worker commits each before it says anything of it, and
    no window is said before all are; so one that nobody has committed was not there for those that said the windows.
    """
    said = any(p.end or not p.leader for p in tables)
    begun = said and any(p.committed >= 0 for p in sources)
    return [p for p in sources if begun and p.committed < 0]


class Log(msgspec.Struct, frozen=True):
    """One partition of what services wrote."""

    topic: str
    partition: int
    unread: int
    oldest_s: float | None  # the age of its first unread record
    read_until: datetime | None
    deleted_unread: int
    held: bool  # the windows after read_until wait for it
    blind: str  # why nothing can be said of it
    owner: str


class Step(msgspec.Struct, frozen=True):
    """A later stage: how many final windows it has still to do, and what it reads again when it starts again."""

    name: str
    final_until: datetime | None
    behind_windows: int | None
    unread: int  # by the lander; of merge and judge: what they read again


class Lag(msgspec.Struct, frozen=True):
    at: datetime
    final_until: datetime | None  # all windows that end before are judged
    behind_s: float | None
    worst_s: float | None  # the largest of behind_s, the oldest unread record and what has landed; none: not known
    logs: list[Log]
    steps: list[Step]
    workers: list[Member]
    published_s: float | None = None  # the age of the readable file


def lag(facts: Facts) -> Lag:
    fresh = added(facts.sources, facts.tables)
    logs = [_log(p, facts.now_us, ADDED if p in fresh else "") for p in facts.sources]
    complete = min((p.next for p in facts.sources), default=0) * SLICE_US
    merged, judged = (min((p.next for p in parts), default=0) for parts in (facts.slices, facts.tables))
    steps = [
        _step("merge", merged, (complete - LATENESS_US) // WINDOW_US, sum(p.unread for p in facts.slices)),
        _step("judge", judged, merged, sum(p.unread for p in facts.tables)),
    ]
    ages: list[float | None] = [_age(facts.now_us, judged * WINDOW_US or None)]
    published = None
    if facts.landed:
        mine = (*facts.rest, *facts.tables)
        unread = sum(p.end - max(p.begin, facts.landed.positions.get((p.topic, p.number), 0)) for p in mine)
        steps.append(_step("land", facts.landed.next, judged, unread))
        ages.append(_age(facts.now_us, facts.landed.next * WINDOW_US or None))
        published = _age(facts.now_us, facts.landed.published_us)
    known = None not in ages and not any(one.blind for one in logs)
    worst = max(a for a in (*ages, *(one.oldest_s for one in logs), 0.0) if a is not None)
    return Lag(
        at=_instant(facts.now_us),
        final_until=_instant(judged * WINDOW_US) if judged else None,
        behind_s=ages[0],
        worst_s=worst if known else None,
        logs=logs,
        steps=steps,
        workers=sorted(facts.members),
        published_s=published,
    )


def _log(p: Partition, now_us: int, blind: str) -> Log:
    until = p.next * SLICE_US
    if not p.leader:
        blind = "no broker leads it"
    elif not p.metadata:
        blind = blind or "nobody has read it yet"
    return Log(
        topic=p.topic,
        partition=p.number,
        unread=p.unread,
        oldest_s=_age(now_us, p.oldest_us),
        read_until=_instant(until) if until else None,
        deleted_unread=max(0, p.begin - p.committed) if p.committed >= 0 else 0,
        held=not blind and until < now_us - HELD_US,
        blind=blind,
        owner=p.owner,
    )


def _step(name: str, done: int, could: int, unread: int) -> Step:
    return Step(name, _instant(done * WINDOW_US) if done else None, max(0, could - done) if done else None, unread)


def _age(now_us: int, us: int | None) -> float | None:
    return None if us is None else round((now_us - us) / SECOND_US, 1)


def _instant(us: int) -> datetime:
    return datetime.fromtimestamp(us // SECOND_US, UTC).replace(microsecond=us % SECOND_US)


# ---- asking ----


def facts(connection: Connection, prefix: str = "", state: Path | None = None, sources: Sequence[str] = ()) -> Facts:
    """sources: the topic of each stream, if not the prefix and the stream."""
    client = admin(connection)
    ours = names(prefix)
    sources = sources or [prefix + stream for stream in STREAMS]
    with telling(connection.broker):
        topics = [*sources, ours.slices, ours.tables, ours.events, ours.findings]
        known = standing(client, connection, topics, prefix)
        members = members_of(client, group(prefix))
        ticked_us = answered(lambda: _last_tick(client, ours.ticks))
        _know_oldest(connection, known, sources)
    for member in members:
        for place in ((topic, n) for topic, numbers in member.owns.items() for n in numbers):
            if place in known:
                known[place] = replace(known[place], owner=member.name)

    def of(*topics: str) -> list[Partition]:
        return [p for (topic, _), p in sorted(known.items()) if topic in topics]

    return Facts(
        now_us=max(time.time_ns() // 1000, ticked_us),
        sources=[p for s in sources for p in of(s)],
        slices=of(ours.slices),
        tables=of(ours.tables),
        rest=of(ours.events, ours.findings),
        members=members,
        landed=landed(state, prefix, connection.options(prefix)) if state else None,
    )


@contextmanager
def telling(broker: str) -> Iterator[None]:
    """What Kafka does not answer is a problem."""
    try:
        yield
    except KafkaException as error:
        if error.args[0].code() == KafkaError._UNSUPPORTED_FEATURE:
            reason = "does not tell how far its readers are: is it the broker inside asynchealth up?"
            raise Problem(broker, reason, "look at its state instead: asynchealth report --state STATE") from None
        why = error.args[0].str() or error.args[0].name()
        raise Problem(broker, f"Kafka does not tell: {why}", THEN) from None
    except NoAnswer as error:
        raise Problem(broker, f"Kafka does not tell: {error}", THEN) from None


def standing(
    client: AdminClient, connection: Connection, topics: Sequence[str], prefix: str
) -> dict[tuple[str, int], Partition]:
    """By topic and number: what each log holds, and what the workers committed."""
    there = _there(client, topics, connection.options(prefix))
    known = {(p.topic, p.number): p for p in answered(lambda: [*_offsets(client, there)])}
    answered(lambda: _described(client, group(prefix)))  # kafka-python does not wait for a coordinator
    _know_commits(connection, group(prefix), known)
    return known


def _there(client: AdminClient, topics: Sequence[str], where: str) -> list[Partition]:
    shown = client.list_topics(timeout=WAIT_S).topics
    if missing := [t for t in topics if t not in shown]:
        raise Problem(f"topic {missing[0]}", "not there", f"asynchealth topics create {where}")
    return [Partition(t, n, leader=p.leader >= 0) for t in topics for n, p in sorted(shown[t].partitions.items())]


def _offsets(client: AdminClient, there: Sequence[Partition]) -> Iterator[Partition]:
    """With begin and end, where a broker leads the partition."""
    led = [p for p in there if p.leader]
    specs: Any = OffsetSpec
    begin, end = (
        client.list_offsets({Place(p.topic, p.number): spec for p in led}, request_timeout=WAIT_S)
        for spec in (specs.earliest(), specs.latest())
    )
    found: dict[tuple[str, int], list[int]] = {}
    for futures in (begin, end):
        for place, future in futures.items():
            found.setdefault((place.topic, place.partition), []).append(future.result().offset)
    for p in there:
        yield replace(p, begin=found[p.topic, p.number][0], end=found[p.topic, p.number][1]) if p.leader else p


def _last_tick(client: AdminClient, ticks: str) -> int:
    """The brokers' clock when a worker last asked for it: this machine's may be behind."""
    spec: Any = OffsetSpec
    asked = client.list_offsets({Place(ticks, 0): spec.max_timestamp()}, request_timeout=WAIT_S)
    (future,) = asked.values()
    return int(future.result().timestamp) * 1000


def _know_commits(connection: Connection, group: str, known: dict[tuple[str, int], Partition]) -> None:
    """By kafka-python: confluent-kafka reads metadata past its end."""
    client = KafkaAdminClient(**connection.kafka_python())
    try:
        committed = client.list_group_offsets({group: None})[group]
    finally:
        client.close()
    for tp, point in committed.items():
        key = tp.topic, tp.partition
        if key in known and point.offset >= 0:
            known[key] = replace(known[key], committed=point.offset, metadata=point.metadata or "")


def members_of(client: AdminClient, group: str) -> list[Member]:
    described = answered(lambda: _described(client, group))
    if described.state == ConsumerGroupState.DEAD:
        return []
    members = []
    for m in described.members:
        owns: dict[str, list[int]] = {}
        for place in sorted((p.topic, p.partition) for p in m.assignment.topic_partitions):
            owns.setdefault(place[0], []).append(place[1])
        members.append(Member(m.client_id, m.host.removeprefix("/"), owns))
    return members


def _described(client: AdminClient, group: str) -> Any:
    (future,) = client.describe_consumer_groups([group], request_timeout=WAIT_S).values()
    return future.result()


def answered(ask: Callable[[], Answer]) -> Answer:
    """The answer, once the brokers know who leads the partitions and who coordinates the group; it waits WAIT_S."""
    until = time.monotonic() + WAIT_S
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in NOT_YET or time.monotonic() > until:
                raise
            time.sleep(TRY_S)


def _know_oldest(connection: Connection, known: dict[tuple[str, int], Partition], topics: Sequence[str]) -> None:
    """The append time of the first unread record; a group of one's own is none."""
    waiting = {TopicPartition(*at): p for at, p in known.items() if p.topic in topics and p.leader and p.unread}
    if not waiting:
        return
    consumer = connection.consumer(group_id=None, enable_auto_commit=False, max_partition_fetch_bytes=1)
    try:
        consumer.assign(list(waiting))
        for tp, p in waiting.items():
            consumer.seek(tp, max(p.begin, p.committed))
        until = time.monotonic() + WAIT_S
        while waiting and time.monotonic() < until:
            for tp, records in consumer.poll(timeout_ms=200, max_records=len(waiting)).items():
                if tp in waiting:
                    p = waiting.pop(tp)
                    known[p.topic, p.number] = replace(p, oldest_us=records[0].timestamp * 1000)
                    consumer.pause(tp)
            for tp in [tp for tp, p in waiting.items() if consumer.position(tp) >= p.end]:
                del waiting[tp]  # markers of transactions, and no record
    finally:
        consumer.close()


def landed(state: Path, prefix: str, where: str) -> Landed:
    """From the readable file, which is there whether a lander runs or not."""
    con = open_readable(state)
    try:
        if not con.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'landed'").fetchall():
            reason = "holds what was replayed from files; no lander wrote it"
            raise Problem(str(state), reason, f"asynchealth lag {where} --state LIVE", Exit.STATE)
        topics = names(prefix)._asdict()
        positions = {(topics[t], n): offset for t, n, offset in con.execute("FROM positions").fetchall()}
        ((judged,),) = con.execute("SELECT judged FROM landed").fetchall()
    finally:
        con.close()
    return Landed(positions, judged, (state / READABLE).stat().st_mtime_ns // 1000)
