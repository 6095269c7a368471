"""Our topics enter, the readable file leaves every few seconds: the process around the lander.

Which messages it has is in its own database, with what they said. It commits the same to Kafka after each landing, for
others to see how far it is; it never asks.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import OffsetOutOfRangeError

from detectors.detector import Detector
from detectors.events import STREAMS
from detectors.windows import SECOND_US, WINDOW_US
from streams.landing import lake, state
from streams.landing.lander import Lander
from streams.landing.publish import publish
from streams.live.connect import Connection
from streams.live.numbered import OtherProtocol
from streams.live.topics import names
from streams.problems import Exit, Problem, disk_full, shell
from streams.settings import Limits
from streams.sources.files import READABLE
from streams.watch.metrics import LANDER, Meter

POLL_MS = 200
POLL_MESSAGES = 200
LAND_S = 1.0
LAND_BYTES = 32 << 20  # packed, as messages are: a lander that was away reads its backlog in such pieces
PUBLISH_S = 2.0  # at most, but at once where more is judged
COPY_SHARE = 5  # a publication may take a fifth of the time: of a large file there are fewer
SWEEP_S = 60.0


@dataclass
class Landing:
    """One lander on one state folder; run() ends with what was landed published."""

    folder: Path
    connection: Connection
    detectors: Sequence[Detector]
    sources: Mapping[str, int]  # the partitions of each stream
    queues: int
    prefix: str = ""
    command: str = ""
    limits: Limits = field(default_factory=Limits)
    client: Mapping[str, Any] = field(default_factory=dict)  # more settings of the consumer
    stopping: bool = False
    meter: Meter = field(default_factory=lambda: Meter(LANDER))

    def run(self) -> None:
        with ExitStack() as open_:
            open_.enter_context(state.locked(self.folder))
            open_.enter_context(disk(self.folder, self.command))
            self._same_logs()
            con = open_.enter_context(opened(self.folder, self.anew))
            producers = [f"{s}/{p}" for s, n in self.sources.items() for p in range(n)]
            self.lander = Lander(self.folder, con, self.detectors, producers, self.queues, self.command)
            consumer = self.connection.consumer(
                group_id=group(self.prefix),
                enable_auto_commit=False,
                auto_offset_reset="none",  # a position that is gone is said, not passed over
                max_poll_records=POLL_MESSAGES,
                **self.client,
            )
            open_.callback(consumer.close)
            self._begin(consumer)
            (self.folder / state.BROKER).write_text(f"{self.connection.broker}\n{self.prefix}\n")
            self._work(consumer, con)

    @property
    def anew(self) -> str:
        """The command for a state of its own."""
        return f"asynchealth land {self.connection.options(self.prefix)} --state NEW"

    def stop(self, *_: object) -> None:
        self.stopping = True

    def _same_logs(self) -> None:
        """A position means nothing in the topics of another prefix: what lies before it would be passed over."""
        broker, prefix = state.fed_from(self.folder)
        if broker and prefix != self.prefix:
            landed, asked = (f"those with prefix {p}" if p else "those without a prefix" for p in (prefix, self.prefix))
            reason = f"its rows are of other topics: {landed}, not {asked}"
            raise Problem(str(self.folder), reason, self.anew, Exit.STATE)

    def _begin(self, consumer: KafkaConsumer) -> None:
        """To where the database stands."""
        topics = names(self.prefix)._asdict()
        self.places = {TopicPartition(topics[p.topic], p.partition): p for p in self.lander.readers}
        consumer.assign(list(self.places))
        starts, ends = consumer.beginning_offsets(list(self.places)), consumer.end_offsets(list(self.places))
        for tp, place in self.places.items():
            position = self.lander.positions[place]
            if starts[tp] > position > 0 or position > ends[tp]:
                raise cut(tp, starts[tp], ends[tp], position, self.anew)
            self.lander.positions[place] = max(position, starts[tp])
            consumer.seek(tp, self.lander.positions[place])

    def _work(self, consumer: KafkaConsumer, con: duckdb.DuckDBPyConnection) -> None:
        landed = published = swept = copying_s = 0.0
        waiting, told = 0, -1  # told: up to which window the readable file is judged
        changed = True  # a predecessor may have landed what it did not publish
        self.shown = shown(self.folder)
        while True:
            polled = self._polled(consumer)
            judged = any(self.places[tp].topic == "findings" for tp in polled)  # what people wait for
            for tp, records in polled.items():
                for r in records:
                    self.lander.feed(self.places[tp], r.offset, r.key, r.value)
                    waiting += len(r.value or b"")
            if time.monotonic() > swept + SWEEP_S:
                changed = self._shrink() or changed
                swept = time.monotonic()
            if self.stopping or judged or waiting > LAND_BYTES or time.monotonic() > landed + LAND_S:
                changed = self.lander.land() or changed
                landed, waiting = time.monotonic(), 0
                self._tell(consumer)
                self._show(consumer)
            wait_s = max(COPY_SHARE * copying_s, 0.0 if self.lander.judged > told else PUBLISH_S)
            if changed and (self.stopping or time.monotonic() > published + wait_s):
                began = time.monotonic()
                self.lander.tidy()
                publish(con, self.folder / state.LANDING)
                self.shown = {p.path for p in self.lander.parts}
                published, changed, told = time.monotonic(), False, self.lander.judged
                copying_s = published - began
                self.meter.set("asynchealth_publication_duration_seconds", {(): copying_s})
            self.meter.beat()
            if self.stopping:
                return

    def _polled(self, consumer: KafkaConsumer) -> Mapping[TopicPartition, Sequence[Any]]:
        try:
            polled: Mapping[TopicPartition, Sequence[Any]] = consumer.poll(timeout_ms=POLL_MS)
        except OffsetOutOfRangeError as error:  # while we stood still
            ((tp, position),) = error.args[0].items()
            start, end = consumer.beginning_offsets([tp])[tp], consumer.end_offsets([tp])[tp]
            raise cut(tp, start, end, position, self.anew) from None
        return polled

    def _shrink(self) -> bool:
        """To what the limits allow; a file that no reader can know any more goes. Whether anything left the list."""
        before = len(self.lander.parts)
        for line in self.lander.shrink(self.limits):
            sys.stderr.write(f"{self.folder}: {line}\n")
        lake.sweep(self.folder, {p.path for p in self.lander.parts} | self.shown)
        bytes_of = lake.sizes(self.folder, self.lander.parts)
        self.meter.set("asynchealth_lake_bytes", {(): sum(bytes_of.values())})
        if firsts := [p.first_arrival for p in self.lander.parts if p.stream in STREAMS]:
            self.meter.set("asynchealth_lake_oldest_timestamp_seconds", {(): min(firsts) / SECOND_US})
        return len(self.lander.parts) < before

    def _tell(self, consumer: KafkaConsumer) -> None:
        points = {tp: OffsetAndMetadata(self.lander.positions[p], "", -1) for tp, p in self.places.items()}
        consumer.commit_async(points)

    def _show(self, consumer: KafkaConsumer) -> None:
        """How far it is, and the file that readers have."""
        ends = {tp: consumer.highwater(tp) for tp in self.places}
        behind = {
            (tp.topic, str(tp.partition)): max(0, ends[tp] - self.lander.positions[place])
            for tp, place in self.places.items()
            if ends[tp] is not None
        }
        self.meter.set("asynchealth_lag_messages", behind)
        self.meter.set("asynchealth_landed_rows_total", {(s,): n for s, n in self.lander.rows.items()})
        if self.lander.judged:
            until = self.lander.judged * WINDOW_US / SECOND_US
            self.meter.set("asynchealth_final_until_timestamp_seconds", {("land",): until})
        readers = self.lander.readers.values()
        self.meter.set("asynchealth_copies_total", {("land",): sum(r.copies for r in readers)})
        self.meter.set("asynchealth_copies_unequal_total", {("land",): sum(r.unequal for r in readers)})
        readable = self.folder / READABLE
        if readable.exists():
            known = readable.stat()
            self.meter.set("asynchealth_publication_timestamp_seconds", {(): known.st_mtime})
            self.meter.set("asynchealth_file_bytes", {(): known.st_size})
        self.meter.reach(readable.exists())


def group(prefix: str = "") -> str:
    """Under this name Kafka shows how far the lander is."""
    return f"{prefix}asynchealth-land"


def cut(tp: TopicPartition, start: int, end: int, position: int, then: str) -> Problem:
    """A log that begins after our position: another state may begin there, this one would lack what lies between. One
    that ends before it is not the log that was landed."""
    reason = f"begins at {start}, landed was up to {position}: what lies between was deleted"
    if position > end:
        reason = f"ends at {end}, landed was up to {position}: it was made anew, or is another Kafka's"
    return Problem(f"{tp.topic}/{tp.partition}", reason, then, Exit.STATE)


@contextmanager
def disk(folder: Path, again: str) -> Iterator[None]:
    """One that is full ends the lander with a word about it."""
    try:
        yield
    except (OSError, duckdb.Error) as error:
        if not (why := disk_full(error)):
            raise
        free = shutil.disk_usage(folder).free / 1e6
        reason = f"{why} ({free:,.1f} MB free); what was landed is whole, the rest is read again"
        then = f"df -h {shell(folder)}; make room, or set [lake] max_gb in asynchealth.toml; then {again}"
        raise Problem(str(folder), reason, then, Exit.STATE) from error


def shown(folder: Path) -> set[str]:
    """The parts that the readable file lists: it may be of a predecessor that was killed before it published again."""
    if not (folder / READABLE).exists():
        return set()
    with state.open_readable(folder) as con:
        return {p.path for p in state.parts_of(con)}


def opened(folder: Path, anew: str) -> duckdb.DuckDBPyConnection:
    """The database that only the lander writes. Recordings have a state of their own."""
    landing = folder / state.LANDING
    if not landing.exists() and (folder / READABLE).exists():
        raise Problem(str(folder), "holds what was replayed from files", anew, Exit.STATE)
    try:
        con = duckdb.connect(str(landing))
    except duckdb.Error as error:
        raise state.unopened(landing, error) from None
    state.prepare(con)
    version = state.version_of(con)
    if version not in (None, state.SCHEMA_VERSION):
        con.close()
        reason = f"has schema {version}, this asynchealth writes {state.SCHEMA_VERSION}"
        raise Problem(str(folder), reason, anew, Exit.STATE)
    return con


def run(landing: Landing) -> None:
    """Until it is told to stop; one signal ends it cleanly."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, landing.stop)
    try:
        landing.run()
    except OtherProtocol as error:
        raise Problem("what workers say", str(error), landing.command, Exit.STATE) from None
