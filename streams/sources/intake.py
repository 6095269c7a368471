"""Files enter, rows in the lake leave: each record decoded, placed by its arrival, and either landed or rejected.

A file that was read before is read on from where it ended; its partition is its number among the files of its stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from detectors.engine import INSTANT
from detectors.events import SCHEMA, Decoded
from detectors.windows import PARTITION_BITS, event_time, place, running_arrival, stand_in_arrival
from streams.landing.lake import Writer
from streams.problems import Exit, Problem
from streams.progress import Progress
from streams.sources.decode import chunks, recognise
from streams.sources.files import File, Known, Recording, read_before


@dataclass
class Ledger:
    """What was not landed and why, which fields the rows fill, and what people should know about the files."""

    rejects: list[pl.DataFrame] = field(default_factory=list)
    coverage: dict[tuple[str, str], list[int]] = field(default_factory=dict)  # (stream, field) to rows, filled
    notes: list[str] = field(default_factory=list)


@dataclass
class Intake:
    """Reads recordings into the lake: which partition each has, what is known of it, where its clock stands."""

    folder: Path
    lateness_us: int
    arrival: str
    writer: Writer
    ledger: Ledger
    progress: Progress
    known: list[Known]

    def take(self, file: File) -> bool:
        """Reads what is new of one file; False where nothing could be read."""
        try:
            stream = recognise(file)
            before = read_before(file, [k for k in self.known if k.stream == stream])
            recording = Recording(file)
            self._read(recording, stream, before)
        except Problem as problem:
            if problem.code != Exit.NOTHING:
                raise
            self.ledger.notes.append(str(problem))
            return False
        if recording.broken:
            self.ledger.notes.append(f"{file.name}: {recording.broken}; all records before were read")
        return True

    def _read(self, recording: Recording, stream: str, before: Known | None) -> None:
        name = recording.file.name
        partition = before.partition if before else self._next_partition(stream)
        skip = before.records if before else 0
        records = 0
        tombstones = before.tombstones if before else 0
        for count, rows, rejects, empty in self._placed(recording, stream, skip, partition):
            records += count
            tombstones += empty
            self._note(stream, name, partition, rows, rejects)
            self.writer.add(stream, rows)
            self.progress.add(count)
        whole = skip + records - (1 if recording.torn else 0)
        entry = Known(stream, name, recording.length, recording.digest, whole, partition, tombstones)
        if before:
            self.known.remove(before)
            if not records:
                self.ledger.notes.append(f"{name}: read before as {before.name}, nothing new in it")
        self.known.append(entry)

    def _next_partition(self, stream: str) -> int:
        number = 1 + max((k.partition for k in self.known if k.stream == stream), default=-1)
        if number >= 2**PARTITION_BITS:
            raise Problem(
                stream, f"more than {2**PARTITION_BITS} files of one stream", "join them, or use a new --state"
            )
        return number

    def _placed(
        self, recording: Recording, stream: str, skip: int, partition: int
    ) -> Iterator[tuple[int, pl.DataFrame, pl.DataFrame, int]]:
        """(records, placed rows, rejects, tombstones); without arrivals it takes all of them to place one."""
        clock, told, held = -(2**62), None, []
        for count, decoded in chunks(recording, stream, skip):
            events = self._with_arrival(decoded.events)
            if told is None:
                told = bool(events["arrival"].count())
            if not told:
                held.append((count, replace(decoded, events=events)))
                continue
            raw = events["arrival"].cast(pl.Int64)
            arrived = running_arrival(events["arrival"], clock)
            clock = int(arrived.max()) if len(arrived) else clock  # type: ignore[arg-type]
            rows = self._place(
                events, stream, recording.file.name, partition, arrived, (arrived - raw).fill_null(0), True
            )
            yield count, rows, decoded.rejects, decoded.tombstones
        if held:
            yield from self._stand_in(held, stream, recording.file.name, partition)

    def _with_arrival(self, events: pl.DataFrame) -> pl.DataFrame:
        if self.arrival == "none":
            return events.with_columns(arrival=pl.lit(None, dtype=INSTANT))
        return events if self.arrival == "arrival" else events.with_columns(arrival=pl.col(self.arrival))

    def _stand_in(
        self, held: Sequence[tuple[int, Decoded]], stream: str, name: str, partition: int
    ) -> Iterator[tuple[int, pl.DataFrame, pl.DataFrame, int]]:
        times = pl.concat([d.events.select(event_time(stream).alias("t"))["t"] for _, d in held])
        arrived = stand_in_arrival(times)
        at = 0
        for count, decoded in held:
            events = decoded.events
            mine = arrived[at : at + len(events)]
            at += len(events)
            rows = self._place(
                events, stream, name, partition, mine, pl.zeros(len(events), pl.Int64, eager=True), False
            )
            yield count, rows, decoded.rejects, decoded.tombstones

    def _place(
        self,
        events: pl.DataFrame,
        stream: str,
        name: str,
        partition: int,
        arrived: pl.Series,
        stepped: pl.Series,
        told: bool,
    ) -> pl.DataFrame:
        return place(
            events.with_columns(
                arrival=arrived.cast(INSTANT),
                told=pl.lit(told),
                stepped_us=stepped,
                source=pl.lit(name),
                topic=pl.lit(stream),
                partition=pl.lit(partition, dtype=pl.Int64),
            ),
            stream,
            self.lateness_us,
        )

    def _note(self, stream: str, name: str, partition: int, rows: pl.DataFrame, rejects: pl.DataFrame) -> None:
        if len(rejects):
            who = [pl.lit(stream).alias("stream"), pl.lit(name).alias("source")]
            number = pl.lit(partition, dtype=pl.Int64).alias("partition")
            self.ledger.rejects.append(rejects.with_columns(*who, number))
        for column, nulls in rows.select(list(SCHEMA[stream])).null_count().row(0, named=True).items():
            filled = self.ledger.coverage.setdefault((stream, column), [0, 0])
            filled[0] += len(rows)
            filled[1] += len(rows) - nulls
