"""Chunks enter the three stages, their messages leave: what Faust agents have to do around reduce, match and judge.

Each partition that is ours has its stage, and the stage has the truth: where it goes on, what it said, what may be
committed. A stage says its messages, all are acknowledged, then they count as said, and only then is that committed; so
a worker that dies at any moment leaves numbers said twice or not yet, and never half.

A rebalance may put another stage in a partition's place at any `await`: whoever works on one holds the partition's
lock, and takes the stage only once it has it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition
from faust.exceptions import ProducerSendError
from faust.types import TP

from detectors.detector import Detector, Settings
from detectors.events import STREAMS
from detectors.table import Table
from detectors.windows import NEVER, SLICE_US, WINDOW_US, time_of
from streams.landing.horizon import Segments
from streams.live.connect import Connection
from streams.live.judge import Judge, Left, left
from streams.live.match import KEYS, TABLES, Matcher
from streams.live.numbered import Head, OtherProtocol, Ranges, head_of
from streams.live.own import own_folder
from streams.live.pace import Pace
from streams.live.reduce import EVENTS, Out, Point, Poisoned, Reducer
from streams.live.remember import Recall
from streams.live.shown import Stage, show
from streams.live.ticks import Asked, Clock, Played
from streams.live.topics import names
from streams.live.transport import App, Chunk, Consumer, Held, app, fatal, fits, over_holes, raw
from streams.problems import Exit, Problem
from streams.settings import private
from streams.sources.decode import Reading
from streams.watch.metrics import COUNTED, WORKER, Meter

TRIES = 3  # to measure a slice; then it is set aside
TICK_S, SAY_S = 1.0, 0.5
PLAYED_S = 0.25  # in place of both: a player waits for what is said of what it played
RECALL_MS = 1_000


@dataclass
class Worker:
    """The store of a worker's app. partitions: of slices; sources: those of each stream, as many where it is empty.

    played: a player sends the ticks, and says with them what time it is. ends_us: where the tape that it plays ends.
    """

    app: App
    connection: Connection
    partitions: int
    detectors: Sequence[Detector]
    settings: Settings
    folder: Path
    prefix: str = ""
    played: bool = False
    ends_us: int = NEVER
    sources: Mapping[str, int] = field(default_factory=dict)
    readings: Mapping[str, Reading] = field(default_factory=dict)  # by topic; empty: our own, each under its name
    stages: dict[TP, Stage] = field(default_factory=dict)
    locks: dict[TP, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    meter: Meter = field(default_factory=lambda: Meter(WORKER))

    def __post_init__(self) -> None:
        self.tables: list[Table] = list({t.name: t for d in self.detectors for t in d.tables}.values())
        self.names = names(self.prefix)
        hidden = private()
        self.readings = self.readings or {self.prefix + stream: Reading(stream, None, hidden) for stream in STREAMS}
        counts = {stream: self.sources.get(stream, self.partitions) for stream in STREAMS}
        self.counts = {topic: counts[reading.stream] for topic, reading in self.readings.items()}
        self.producers = [f"{stream}/{p}" for stream, n in counts.items() for p in range(n)]
        self.out = {name: raw(self.app, name) for name in self.names}
        self.app.store = self
        self._agent("reduce", raw(self.app, *self.readings))
        self._agent("match", self.out[self.names.slices])
        self._agent("judge", self.out[self.names.tables])
        at = Played(self.connection, self.names.ticks) if self.played else None
        self.clock: Clock = at or Asked(self._acknowledged_tick)
        self.where = self.connection.options(self.prefix)
        look = f"asynchealth lag {self.where}; one more worker takes its share"
        self.pace = Pace(0, f"nothing is lost, findings come later. Next: {look}")
        self.app.timer(PLAYED_S if self.played else TICK_S)(fatal(self.app, self._tick))
        self.app.timer(PLAYED_S if self.played else SAY_S)(fatal(self.app, self._say))
        self.app.timer(TICK_S)(self._beat)
        self.app.on_before_shutdown.connect(self._end)

    def _agent(self, name: str, topic: Any) -> None:
        self.app.agent(topic, name=name)(fatal(self.app, self._read))

    async def _end(self, *_: Any, **__: Any) -> None:
        await self.clock.stop()

    # ---- the store ----

    async def assigned(self, held: Mapping[TP, Held]) -> Mapping[TP, int]:
        """Whoever begins to merge must know all sources: one that was added is told by no message behind `held`."""
        now = await self._consumer.thread.counts(self.counts)
        for topic, count in self.counts.items():
            if now[topic] > count:
                self._end_now(not_taken_in(topic, count, now[topic], self.where))
        self.stages = {tp: stage for tp, stage in self.stages.items() if tp in held}
        for tp, known in held.items():
            if tp not in self.stages:
                with self._understood(tp):
                    self.stages[tp] = await self._begin(tp, known)
        return {tp: stage.position for tp, stage in self.stages.items()}

    def committable(self) -> Mapping[TP, tuple[int, str]]:
        points = {tp: self._point(stage) for tp, stage in self.stages.items()}
        return {tp: point for tp, point in points.items() if point is not None}

    def _point(self, stage: Stage) -> tuple[int, str] | None:
        match stage:
            case Reducer():
                saved = stage.saved()
                return (saved.offset, saved.metadata) if saved else None
            case Matcher():
                return stage.saved()
            case Judge():
                return stage.saved() if stage.state_at >= 0 else None

    async def _begin(self, tp: TP, held: Held) -> Stage:
        committed = max(held.committed, 0)
        if reading := self.readings.get(tp.topic):
            fresh = held.committed < 0  # what the log lost before we came is no loss of ours
            point = Point(held.log_start) if fresh else Point.of(committed, held.metadata)
            given = (self.tables, self.partitions, point, held.log_start, reading)
            return Reducer(reading.stream, tp.partition, *given)
        if held.log_start > committed and held.committed >= 0:
            self._truncated(tp, held)
        position = max(committed, held.log_start)
        if tp.topic == self.names.slices:
            home = self.folder / f"horizon-{tp.partition}"
            shutil.rmtree(home, ignore_errors=True)  # it is filled again from what is read again
            number, horizon = int(held.metadata or 0), Segments(home)
            recall = Recall(tp.partition, number, self.tables, horizon)
            forgotten = await self._recall(recall) if number else Ranges()
            return Matcher(tp.partition, self.producers, self.tables, horizon, position, number, forgotten=forgotten)
        number, state_at = map(int, (held.metadata or "0 -1").split())
        before = await self._left(state_at) if state_at >= 0 else Left()
        queues = [str(q) for q in range(self.partitions)]
        return Judge(queues, self.detectors, self.settings, position, number, state_at, before, ends_us=self.ends_us)

    def _truncated(self, tp: TP, held: Held) -> NoReturn:
        """A topic of ours begins after our position: no new process would find what lies between."""
        reason = f"begins at {held.log_start}, read again must be from {held.committed}: what lies between was deleted"
        then = f"asynchealth topics check {self.where}"
        if self.played:
            reason += ", as the broker inside keeps 5 MiB of a partition"
            then = "begin again: asynchealth up, or asynchealth replay PATH…"
        self._end_now(Problem(f"{tp.topic}/{tp.partition}", reason, then, Exit.STATE))

    @contextmanager
    def _understood(self, tp: TP) -> Iterator[None]:
        """A message that another version wrote ends this worker, and so would it each that is started again."""
        try:
            yield
        except OtherProtocol as error:
            then = f"run one version of asynchealth on these topics; see asynchealth lag {self.where}"
            self._end_now(Problem(f"{tp.topic}/{tp.partition}", f"what workers say: {error}", then, Exit.STATE))

    def _end_now(self, why: Problem) -> NoReturn:
        """What no new process would mend."""
        print(why, file=sys.__stderr__, flush=True)
        os._exit(why.code)

    async def _recall(self, recall: Recall) -> Ranges:
        """From all that the queue said it kept: the windows of which that is gone."""
        tp = TopicPartition(self.names.keys, recall.queue)
        consumer = AIOKafkaConsumer(**self.connection.aiokafka(), enable_auto_commit=False)
        await consumer.start()
        try:
            consumer.assign([tp])
            await consumer.seek_to_beginning(tp)
            end = (await consumer.end_offsets([tp]))[tp]
            while await consumer.position(tp) < end:
                for records in (await consumer.getmany(timeout_ms=RECALL_MS)).values():
                    recall.feed((r.offset, r.key, r.value) for r in records)
        finally:
            await consumer.stop()
        if (forgotten := recall.forgotten()).ranges:
            print(self._forgot(tp, forgotten), file=sys.__stderr__, flush=True)
        return forgotten

    def _forgot(self, tp: TopicPartition, forgotten: Ranges) -> Problem:
        first, end = forgotten.ranges[0][0], forgotten.ranges[-1][1]
        since, until = (f"{time_of(w * WINDOW_US):%Y-%m-%d %H:%M:%S}" for w in (first, end))
        reason = f"has not all keys from {since} to {until} UTC: what looks back on them is unknown, the rest goes on"
        then = f"asynchealth topics check {self.where}"
        return Problem(f"{tp.topic}/{tp.partition}", reason, then)

    async def _left(self, offset: int) -> Left:
        """The state that begins at an offset of the topic of findings; its parts may have others' messages between."""
        consumer = AIOKafkaConsumer(**self.connection.aiokafka(), enable_auto_commit=False)
        await consumer.start()
        try:
            tp = TopicPartition(self.names.findings, 0)
            consumer.assign([tp])
            consumer.seek(tp, offset)
            parts: dict[int, bytes] = {}
            first: Head | None = None
            while first is None or len(parts) < first.parts:
                record = await consumer.getone()
                head = head_of(record.key)
                first = first or head
                if msgspec.structs.replace(head, part=0) == msgspec.structs.replace(first, part=0):
                    parts.setdefault(head.part, record.value)
            return left(b"".join(parts[i] for i in sorted(parts)))
        finally:
            await consumer.stop()

    # ---- the agents ----

    async def _read(self, stream: Any) -> None:
        async for chunk in stream:
            await self._take(chunk)

    async def _take(self, chunk: Chunk) -> None:
        """Rule one, then feed the partition's stage. A reducer says what it can at once, the others in _say."""
        async with self.locks[chunk.tp]:
            stage = self.stages.get(chunk.tp)
            if stage is None:
                return  # revoked meanwhile: its new owner reads it
            stage.position = over_holes(chunk.tp, stage.position)
            match fits(chunk, stage.position):
                case "gap":
                    await self._consumer.seek_all({chunk.tp: stage.position})
                case "next":
                    if isinstance(stage, Reducer):
                        await self._feed(chunk, stage)
                    else:
                        with self._understood(chunk.tp):
                            feed(stage, chunk)
                    stage.position = max(stage.position, chunk.end)
                    if isinstance(stage, Reducer):
                        await self._say_slices(chunk.tp, stage)

    async def _feed(self, chunk: Chunk, stage: Reducer) -> None:
        """All of it, or up to a slice that ends this process."""
        while True:
            try:
                feed(stage, chunk)
                return
            except Poisoned as poison:
                await self._poisoned(chunk.tp, stage, poison)

    async def _poisoned(self, tp: TP, stage: Reducer, poison: Poisoned) -> None:
        """A slice that can't be measured is tried by new processes, which may fare better; then it is set aside.

        What lies before it is said first. How often it raised is committed: a worker that is killed adds nothing.
        """
        times = stage.failed(poison)
        where = f"{tp.topic}/{tp.partition}, offsets {poison.first} to {poison.last}"
        print(f"{where}: can't be measured, {times} of {TRIES} times: {poison.reason}", file=sys.__stderr__, flush=True)
        if times >= TRIES:
            stage.park(poison)
            return
        await self._publish_slices(tp, stage, poison.number)
        await self._committed(tp, stage)
        raise poison

    async def _say(self) -> None:
        """All that was read meanwhile at once: the further behind, the cheaper each window."""
        for tp in list(self.stages):
            async with self.locks[tp]:
                match stage := self.stages.get(tp):
                    case Matcher():
                        await self._say_windows(stage)
                    case Judge():
                        await self._say_findings(stage)

    @property
    def _consumer(self) -> Consumer:
        assert isinstance(self.app.consumer, Consumer)
        return self.app.consumer

    async def _publish(self, topic: str, messages: Sequence[tuple[int, Out]]) -> list[Any]:
        """All at once; returns when every one is acknowledged."""
        sent = [await self.out[topic].send(key=m.key, value=m.value, partition=p) for p, m in messages]
        return [await s for s in sent]

    async def _say_slices(self, tp: TP, stage: Reducer) -> None:
        """All that are complete."""
        while True:
            try:
                await self._publish_slices(tp, stage, stage.closable())
                return
            except Poisoned as poison:
                await self._poisoned(tp, stage, poison)

    async def _publish_slices(self, tp: TP, stage: Reducer, to: int) -> None:
        """A partition of which nothing was said yet is committed first: by that others know it from one added later."""
        if to <= stage.next or not (stage.next or await self._committed(tp, stage)):
            return
        said, before = stage.say(to), stage.next
        await asyncio.gather(
            self._publish(
                self.names.events, [(stage.partition % self.partitions, m) for m in said if m.queue == EVENTS]
            ),
            self._publish(self.names.slices, [(m.queue, m) for m in said if m.queue != EVENTS]),
        )
        stage.done(to)
        for fate in COUNTED:
            self.meter.add("asynchealth_events_total", stage.counted[fate], stage.stream, fate)
        self.meter.add("asynchealth_slices_total", to - (before or to), stage.stream)

    async def _say_windows(self, stage: Matcher) -> None:
        to, said = stage.say()
        if said:
            await asyncio.gather(
                self._publish(self.names.tables, [(0, m) for m in said if m.queue == TABLES]),
                self._publish(self.names.keys, [(stage.queue, m) for m in said if m.queue == KEYS]),
            )
            self.meter.add("asynchealth_windows_total", to - (stage.next or to), "merge")
            stage.done()

    async def _say_findings(self, stage: Judge) -> None:
        to, said = stage.say()
        if said:
            acknowledged = await self._publish(self.names.findings, [(0, m) for m in said])
            of_state = [a.offset for m, a in zip(said, acknowledged, strict=True) if head_of(m.key).kind == "state"]
            self.meter.add("asynchealth_windows_total", to - (stage.next or to), "judge")
            stage.done()
            stage.state_at = min(of_state)
            for detector, level in stage.begun:
                self.meter.add("asynchealth_finding_changes_total", 1, detector, level)

    # ---- what it shows of itself ----

    async def _beat(self) -> None:
        self.meter.beat()

    # ---- idle partitions ----

    async def _tick(self) -> None:
        """A tick that fails promises nothing; the next one asks again."""
        if self.app.rebalancing:
            return
        try:
            await self._promise()
        except (KafkaError, ProducerSendError) as error:
            self.app.log.error("no tick: %r", error)

    async def _promise(self) -> None:
        """The brokers' clock, then each source partition that has been read to its end is promised up to it."""
        now_us = await self.clock.now_us()
        held = self._consumer.assignment()
        ends = await self._consumer.highwaters(*self.stages.keys() & held)  # asked after the clock: what came is below
        await self._over_cuts([tp for tp, end in ends.items() if tp in self.stages and self.stages[tp].position < end])
        for tp, end in ends.items():
            async with self.locks[tp]:
                stage = self.stages.get(tp)
                if isinstance(stage, Reducer):
                    stage.position = over_holes(tp, stage.position)
                    if stage.position == end and await self._promised(tp, stage, now_us):
                        await self._say_slices(tp, stage)
        if not self.played:
            self._paced(now_us)
        shown = {tp: s for tp, s in self.stages.items() if tp in ends}
        show(self.meter, shown, ends, self.detectors)

    async def _over_cuts(self, unread: Sequence[TP]) -> None:
        """A log may be cut past our position while we stand still: the partition is begun as a successor begins it."""
        begins = await self._consumer.thread.begins(unread) if unread else {}
        for tp, begin in begins.items():
            async with self.locks[tp]:
                stage = self.stages.get(tp)
                if stage is None:
                    continue
                stage.position = over_holes(tp, stage.position)
                if stage.position >= begin:
                    continue
                await self._committed(tp, stage)
                begun = await self._begin(tp, (await self._consumer.thread.held([tp]))[tp])
                if self.stages.get(tp) is stage:
                    self.stages[tp] = begun
                    await self._consumer.seek_all({tp: begun.position})

    def _paced(self, now_us: int) -> None:
        """By the brokers' clock, of the partition that is furthest behind."""
        until = [s.next * SLICE_US for s in self.stages.values() if isinstance(s, Reducer) and s.next]
        if until and (line := self.pace.line(now_us, min(until))):
            print(f"This worker {line}", file=sys.__stderr__, flush=True)

    async def _promised(self, tp: TP, stage: Reducer, us: int) -> bool:
        before = stage.promised, stage.promised_at
        stage.promise(us)
        if (stage.promised, stage.promised_at) == before:
            return True
        if await self._committed(tp, stage):
            return True
        stage.promised, stage.promised_at = before
        return False

    async def _committed(self, tp: TP, stage: Stage) -> bool:
        """Now, where there is something to commit."""
        point = self._point(stage)
        return point is None or (not self.app.rebalancing and await self._consumer.thread.commit_points({tp: point}))

    async def _acknowledged_tick(self) -> Any:
        (tick,) = await self._publish(self.names.ticks, [(0, Out(0, b"", b""))])
        return tick


def feed(stage: Stage, chunk: Chunk) -> None:
    records = chunk.records
    if isinstance(stage, Reducer):
        stage.feed([r.offset for r in records], [r.timestamp * 1000 for r in records], [r.value for r in records])
        return
    for r in records:
        stage.feed(r.offset, r.key, r.value)


Make = Callable[[App, Path], Worker]


def serve(connection: Connection, prefix: str, work: Make, folder: Path | None = None, **settings: Any) -> None:
    """One process of the group that shares the work, until a signal ends it.

    folder: where its own, which is empty at each start, is made. More settings are Faust's own.
    """
    name = f"{socket.gethostname()}-{os.getpid()}"  # by which `lag` and the brokers' logs call this worker
    own = {"broker_client_id": name, **connection.faust(), **settings}
    with own_folder(folder) as home:
        made = app(group(prefix), connection.broker, home / "faust", **own)
        work(made, home)
        options = ["--quiet", "worker", "-l", "error", "--without-web"]
        sys.argv = [sys.argv[0], *options]  # Faust's own command line runs the app
        made.main()


def not_taken_in(topic: str, count: int, now: int, where: str) -> Problem:
    """Without the partitions that were added, findings would be wrong; with them some windows were said already."""
    reason = f"has {now} partitions now, {count} are read: findings wait for the others, and nothing is lost"
    then = f"stop all workers, then asynchealth topics grow {where}"
    return Problem(f"topic {topic}", reason, then, Exit.STATE)


def group(prefix: str = "") -> str:
    """The name of the workers' group, under which Kafka keeps what they committed."""
    return f"{prefix}asynchealth"
