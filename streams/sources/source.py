"""Paths and addresses enter, sources leave: recordings in files and partitions of Kafka, behind one protocol."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, Protocol

import polars as pl

from detectors.events import Decoded
from streams.landing.lake import Writer
from streams.privacy import Privacy
from streams.problems import Problem
from streams.settings import private
from streams.sources.copies import Alike, alike, head
from streams.sources.decode import chunks, recognise
from streams.sources.fieldmap import FieldMap
from streams.sources.files import Known, Recording, find, look, read_before

KAFKA = "kafka://"


class Source(Protocol):
    """The records of one stream in one order, under numbers that stay when it grows."""

    @property
    def name(self) -> str: ...

    @property
    def stream(self) -> str: ...

    @property
    def by(self) -> str:
        """The digest of the field map that it is read with, where there is one."""

    @property
    def format(self) -> str:
        """What people call what it is; nothing where it is our own."""

    @property
    def ordered(self) -> bool:
        """Whether its rows have an order, and no time."""

    @property
    def partition(self) -> int | None:
        """Its own number; None: the next of its stream."""

    @property
    def reached(self) -> int:
        """How much was read so far, of the size that its opening says."""

    @property
    def notes(self) -> Sequence[str]:
        """What people should know of it, once it was read."""

    def read_before(self, known: Sequence[Known]) -> Known | None:
        """What of it was read before."""

    def has_more(self, before: Known) -> bool:
        """Whether it holds records that were not read before."""

    def alike(self, known: Sequence[Known], landed: Writer, rejects: Sequence[pl.DataFrame]) -> Alike | None:
        """The recording that says the same, as far as it does, where nothing tells that it was read before."""

    def whole(self, partition: int, before: Known | None) -> Known:
        """Where reading all of it begins, for the first time or again."""

    def chunks(self, skip: int) -> Iterator[tuple[int, Decoded]]:
        """(records in the chunk, what they hold), from record number `skip` on."""

    def known(self, start: Known, records: int) -> Known:
        """What is known once it was read from the start to this record number."""


class Opening(NamedTuple):
    """open: raises a Problem where there is nothing that can be read. size: in bytes, where it is told."""

    open: Callable[[], Source]
    size: int | None = None


class Recorded:
    """A file."""

    partition = None

    def __init__(self, path: Path, name: str, maps: Sequence[FieldMap] = (), hidden: Privacy | None = None) -> None:
        self.file = look(path, name)
        self.name = name
        self.reading = recognise(self.file, maps)._replace(private=hidden)
        self.stream, self.by, self.format = self.reading.stream, self.reading.by, self.reading.format
        self.ordered = self.reading.ordered
        self.recording = Recording(self.file)
        self._from_start = chunks(self.recording, self.reading)
        self._ahead: deque[tuple[int, Decoded]] = deque()

    @cached_property
    def head(self) -> str:
        """The hash of its first event. What is read to find it is not read a second time."""
        for chunk in self._from_start:
            self._ahead.append(chunk)
            if found := head(self.stream, chunk[1].events):
                return found
        return ""

    @property
    def reached(self) -> int:
        return self.recording.reached

    @property
    def notes(self) -> Sequence[str]:
        broken = self.recording.broken
        if self.reading.private:  # a library's words may quote what it met
            broken = broken.partition(":")[0]
        return [f"{self.name}: {broken}; all records before were read"] if broken else []

    def read_before(self, known: Sequence[Known]) -> Known | None:
        return read_before(self.file, known)

    def has_more(self, before: Known) -> bool:
        return next(chunks(Recording(self.file), self.reading, before.records), None) is not None

    def alike(self, known: Sequence[Known], landed: Writer, rejects: Sequence[pl.DataFrame]) -> Alike | None:
        same = [k for k in known if k.head and k.head == self.head]
        return alike(self.file, self.reading, same, landed, rejects) if same else None

    def whole(self, partition: int, before: Known | None) -> Known:
        return Known(self.stream, self.name, 0, "", 0, partition, 0, None)

    def chunks(self, skip: int) -> Iterator[tuple[int, Decoded]]:
        if skip:
            self.recording = Recording(self.file)
            yield from chunks(self.recording, self.reading, skip)
            return
        _ = self.head
        while self._ahead:
            yield self._ahead.popleft()
        yield from self._from_start

    def known(self, start: Known, records: int) -> Known:
        read, first = self.recording, start.head or self.head
        return replace(start, length=read.length, digest=read.digest, records=records - read.torn, head=first)


@contextmanager
def sources(
    paths: Sequence[str],
    folder: Path,
    *,
    arrival: str,
    since: str = "",
    kafka: Sequence[str] = (),
    maps: Sequence[FieldMap] = (),
) -> Iterator[list[Opening]]:
    """All that is to be read. Topics come first: their partitions have numbers of their own, files take the next."""
    addresses = [path for path in paths if path.startswith(KAFKA)]
    files = [path for path in paths if not path.startswith(KAFKA)]
    if since and not addresses:
        raise Problem(f"--since {since}", "files are read whole; it is for topics", f"{KAFKA}host:9092/requests")
    hidden = private()
    with ExitStack() as open_:
        found: list[Opening] = []
        if addresses:
            from streams.sources.topics import topics

            found += open_.enter_context(topics(addresses, arrival, since, kafka, maps))
        for path, name in find(files, folder):
            size = path.stat().st_size if path.is_file() else 0
            found.append(Opening(partial(Recorded, path, name, maps, hidden), size))
        yield found
