"""Chunks enter the three stages, their messages leave: what Faust agents have to do around reduce, match and judge.

Each partition that is ours has its stage, and the stage has the truth: where it goes on, what it said, what may be
committed. A stage says its messages, all are acknowledged, then they count as said, and only then is that committed; so
a worker that dies at any moment leaves numbers said twice or not yet, and never half.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition
from faust.types import TP

from detectors.detector import Detector, Settings
from detectors.events import STREAMS
from detectors.finding import LEVELS, Episodes
from detectors.table import Table
from detectors.windows import LATENESS_US, NEVER, SECOND_US, SLICE_US, WINDOW_US
from streams.landing.horizon import Segments
from streams.live.connect import Connection
from streams.live.judge import Judge, read_episodes
from streams.live.match import Matcher
from streams.live.numbered import Head, head_of
from streams.live.reduce import EVENTS, Out, Point, Reducer
from streams.live.topics import names
from streams.live.transport import App, Chunk, Consumer, Held, app, fatal, fits, over_holes, raw
from streams.watch.metrics import COUNTED, WORKER, Meter

Stage = Reducer | Matcher | Judge
TICK_S = 1.0
SKEW_US = 2_000_000  # brokers' clocks may differ by this much


class Truncated(Exception):
    """A topic of ours begins after our position: what lies between is gone."""


@dataclass
class Worker:
    """The store of a worker's app. partitions: of slices; sources: those of each stream, as many where it is empty.

    ends_us: where a played tape ends.
    """

    app: App
    connection: Connection
    partitions: int
    detectors: Sequence[Detector]
    settings: Settings
    folder: Path
    prefix: str = ""
    ends_us: int | None = None
    sources: Mapping[str, int] = field(default_factory=dict)
    stages: dict[TP, Stage] = field(default_factory=dict)
    locks: dict[TP, asyncio.Lock] = field(default_factory=dict)
    state_at: int = -1  # the offset in findings of judge's last acknowledged state
    meter: Meter = field(default_factory=lambda: Meter(WORKER))

    def __post_init__(self) -> None:
        self.tables: list[Table] = list({t.name: t for d in self.detectors for t in d.tables}.values())
        self.names = names(self.prefix)
        self.streams = {self.prefix + stream: stream for stream in STREAMS}
        counts = {stream: self.sources.get(stream, self.partitions) for stream in STREAMS}
        self.producers = [f"{stream}/{p}" for stream, n in counts.items() for p in range(n)]
        self.out = {name: raw(self.app, name) for name in self.names}
        self.app.store = self
        self._agent("reduce", raw(self.app, *self.streams), self._reduce)
        self._agent("match", self.out[self.names.slices], self._match)
        self._agent("judge", self.out[self.names.tables], self._judge)
        self.app.timer(TICK_S)(self._tick)
        self.app.timer(TICK_S)(self._beat)

    def _agent(self, name: str, topic: Any, work: Callable[[Any], Awaitable[None]]) -> None:
        self.app.agent(topic, name=name)(fatal(work))

    # ---- the store ----

    async def assigned(self, held: Mapping[TP, Held]) -> Mapping[TP, int]:
        self.stages = {tp: stage for tp, stage in self.stages.items() if tp in held}
        for tp, known in held.items():
            if tp not in self.stages:
                self.stages[tp] = await self._begin(tp, known)
                self.locks[tp] = asyncio.Lock()
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
                offset, number = stage.saved()
                return (offset, f"{number} {self.state_at}") if self.state_at >= 0 else None

    async def _begin(self, tp: TP, held: Held) -> Stage:
        committed = max(held.committed, 0)
        if stream := self.streams.get(tp.topic):
            point = Point.of(committed, held.metadata)
            return Reducer(stream, tp.partition, self.tables, self.partitions, point, held.log_start)
        if held.log_start > committed and held.committed >= 0:
            raise Truncated(f"{tp.topic}/{tp.partition} begins at {held.log_start}, we had read to {committed}")
        position = max(committed, held.log_start)
        if tp.topic == self.names.slices:
            home = self.folder / f"horizon-{tp.partition}"
            shutil.rmtree(home, ignore_errors=True)  # it is filled again from what is read again
            number = int(held.metadata or 0)
            return Matcher(tp.partition, self.producers, self.tables, Segments(home), position, number)
        number, self.state_at = map(int, (held.metadata or "0 -1").split())
        episodes = await self._episodes(self.state_at) if self.state_at >= 0 else {}
        queues = [str(q) for q in range(self.partitions)]
        ends_us = NEVER if self.ends_us is None else self.ends_us
        return Judge(queues, self.detectors, self.settings, position, number, episodes, ends_us=ends_us)

    async def _episodes(self, offset: int) -> dict[str, Episodes]:
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
                if (head.kind, head.lo, head.hi) == (first.kind, first.lo, first.hi):
                    parts.setdefault(head.part, record.value)
            return read_episodes(b"".join(parts[i] for i in sorted(parts)))
        finally:
            await consumer.stop()

    # ---- the agents ----

    async def _reduce(self, stream: Any) -> None:
        async for chunk in stream:
            await self._take(chunk, self._say_slices)

    async def _match(self, stream: Any) -> None:
        async for chunk in stream:
            await self._take(chunk, self._say_windows)

    async def _judge(self, stream: Any) -> None:
        async for chunk in stream:
            await self._take(chunk, self._say_findings)

    async def _take(self, chunk: Chunk, say: Callable[[TP, Any], Awaitable[None]]) -> None:
        """Rule one, then feed the partition's stage and let it say what it can."""
        stage = self.stages.get(chunk.tp)
        if stage is None:
            return  # revoked meanwhile: its new owner reads it
        async with self.locks[chunk.tp]:
            stage.position = over_holes(chunk.tp, stage.position)
            match fits(chunk, stage.position):
                case "gap":
                    await self._consumer.seek_all({chunk.tp: stage.position})
                case "next":
                    self._count_copies(stage, lambda: feed(stage, chunk))
                    stage.position = max(stage.position, chunk.end)
                    await say(chunk.tp, stage)

    @property
    def _consumer(self) -> Consumer:
        assert isinstance(self.app.consumer, Consumer)
        return self.app.consumer

    async def _publish(self, topic: str, messages: Sequence[tuple[int, Out]]) -> list[Any]:
        """All at once; returns when every one is acknowledged."""
        sent = [await self.out[topic].send(key=m.key, value=m.value, partition=p) for p, m in messages]
        return [await s for s in sent]

    async def _say_slices(self, tp: TP, stage: Reducer) -> None:
        to = stage.closable()
        if to == stage.next:
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

    async def _say_windows(self, tp: TP, stage: Matcher) -> None:
        to, said = stage.say()
        if said:
            await self._publish(self.names.tables, [(0, m) for m in said])
            self.meter.add("asynchealth_windows_total", to - (stage.next or to), "merge")
            stage.done()

    async def _say_findings(self, tp: TP, stage: Judge) -> None:
        to, said = stage.say()
        if said:
            acknowledged = await self._publish(self.names.findings, [(0, m) for m in said])
            of_state = [a.offset for m, a in zip(said, acknowledged, strict=True) if head_of(m.key).kind == "state"]
            self.meter.add("asynchealth_windows_total", to - (stage.next or to), "judge")
            stage.done()
            self.state_at = min(of_state)
            for detector, level in stage.begun:
                self.meter.add("asynchealth_finding_changes_total", 1, detector, LEVELS[level])

    # ---- what it shows of itself ----

    async def _beat(self) -> None:
        self.meter.beat()

    def _count_copies(self, stage: Stage, work: Callable[[], None]) -> None:
        """Of the work of a stage that reads our own messages."""
        if isinstance(stage, Reducer):
            return work()
        copies, unequal = stage.reader.copies, stage.reader.unequal
        work()
        self.meter.add("asynchealth_copies_total", stage.reader.copies - copies, step_of(stage))
        self.meter.add("asynchealth_copies_unequal_total", stage.reader.unequal - unequal, step_of(stage))

    def _show(self, ends: Mapping[TP, int]) -> None:
        """Where the partitions that are ours stand."""
        stages = {tp: s for tp, s in self.stages.items() if tp in ends}
        logs = {(tp.topic, str(tp.partition)): s for tp, s in stages.items() if isinstance(s, Reducer)}
        behind = {(tp.topic, str(tp.partition)): max(0, ends[tp] - s.position) for tp, s in stages.items()}
        until = {place: s.next * SLICE_US / SECOND_US for place, s in logs.items() if s.next}
        blind = {(topic,): sum(not s.next for (t, _), s in logs.items() if t == topic) for topic, _ in logs}
        final: dict[tuple[str, ...], float] = {}
        for s in stages.values():
            if s.next and not isinstance(s, Reducer):
                at = s.next * WINDOW_US / SECOND_US
                final[(step_of(s),)] = min(at, final.get((step_of(s),), at))
        self.meter.set("asynchealth_lag_messages", behind)
        self.meter.set("asynchealth_read_until_timestamp_seconds", until)
        self.meter.set("asynchealth_blind_partitions", blind)
        self.meter.set("asynchealth_assigned_partitions", {(): len(stages)})
        self.meter.set("asynchealth_final_until_timestamp_seconds", final)
        self._show_findings()
        self.meter.reach(bool(stages))

    def _show_findings(self) -> None:
        """By the worker that judges; the others know of none."""
        judges = [s for s in self.stages.values() if isinstance(s, Judge)]
        open_ = {(d.name, level): 0 for d in self.detectors for level in LEVELS[1:]} if judges else {}
        for name, episodes in (pair for judge in judges for pair in judge.state.episodes.items()):
            for episode in episodes.open.values():
                open_[name, LEVELS[episode.level]] += 1
        self.meter.set("asynchealth_open_findings", open_)

    # ---- idle partitions ----

    async def _tick(self) -> None:
        """The brokers' clock, then each source partition that has been read to its end is promised up to it."""
        if self.app.rebalancing:
            return
        now_us = await self._brokers_us()
        held = self._consumer.assignment()
        mine = {tp: s for tp, s in self.stages.items() if isinstance(s, Reducer) and tp in held}
        ends = await self._consumer.highwaters(*self.stages.keys() & held)  # asked after the clock: what came is below
        for tp, stage in mine.items():
            async with self.locks[tp]:
                stage.position = over_holes(tp, stage.position)
                if stage.position == ends.get(tp) and await self._promised(tp, stage, now_us):
                    await self._say_slices(tp, stage)
        self._show(ends)

    async def _promised(self, tp: TP, stage: Reducer, us: int) -> bool:
        before = stage.promised, stage.promised_at
        stage.promise(us)
        if (stage.promised, stage.promised_at) == before:
            return True
        point = self._point(stage)
        if point is None or (not self.app.rebalancing and await self._consumer.thread.commit_points({tp: point})):
            return True
        stage.promised, stage.promised_at = before
        return False

    async def _brokers_us(self) -> int:
        if self.ends_us is not None:  # a tape's own clock: so far that its last window is final
            return (self.ends_us // WINDOW_US + 1) * WINDOW_US + LATENESS_US + SLICE_US
        (tick,) = await self._publish(self.names.ticks, [(0, Out(0, b"", b""))])
        return int(tick.timestamp) * 1000 - SKEW_US


def feed(stage: Stage, chunk: Chunk) -> None:
    records = chunk.records
    if isinstance(stage, Reducer):
        stage.feed([r.offset for r in records], [r.timestamp * 1000 for r in records], [r.value for r in records])
        return
    for r in records:
        stage.feed(r.offset, r.key, r.value)


def step_of(stage: Matcher | Judge) -> str:
    """As people call it."""
    return "judge" if isinstance(stage, Judge) else "merge"


def group(prefix: str) -> str:
    """The group whose members share the work."""
    return f"{prefix}asynchealth"


def serve(connection: Connection, folder: Path, prefix: str, work: Callable[[App], Worker]) -> None:
    """One process of the group that shares the work, until a signal ends it."""
    name = f"{socket.gethostname()}-{os.getpid()}"  # by which `lag` and the brokers' logs call this worker
    made = app(group(prefix), connection.broker, folder / "faust", broker_client_id=name, **connection.faust())
    work(made)
    sys.argv = [sys.argv[0], "worker", "-l", "error", "--without-web"]  # Faust's own command line runs the app
    made.main()
