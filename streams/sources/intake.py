"""Sources enter, rows in the lake leave: each record decoded, placed by its arrival, and either landed or rejected.

What was read before is read on from where it ended. A file's partition is its number among the files of its stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import polars as pl

from detectors.engine import INSTANT
from detectors.events import SCHEMA, Decoded
from detectors.windows import PARTITION_BITS, event_time, place, running_arrival, stand_in_arrival
from streams.coverage import filled_fields
from streams.landing.lake import Writer
from streams.live.canary import theirs
from streams.problems import Exit, Problem, shell
from streams.progress import Progress
from streams.sources.arrivals import Arrivals
from streams.sources.copies import Alike
from streams.sources.files import SPOOL, Known
from streams.sources.source import Opening, Source


@dataclass
class Ledger:
    """What was not landed and why, which fields the rows fill, and what people should know about this run's files."""

    rejects: list[pl.DataFrame] = field(default_factory=list)
    coverage: dict[tuple[str, str], list[int]] = field(default_factory=dict)  # (stream, field) to rows, filled
    notes: list[str] = field(default_factory=list)

    def cover(self, stream: str, rows: pl.DataFrame, times: int = 1) -> None:
        """Counts which fields are filled; times -1 takes rows back."""
        for column, many, filled in filled_fields(stream, rows):
            sums = self.coverage.setdefault((stream, column), [0, 0])
            sums[0] += times * many
            sums[1] += times * filled

    def reject(self, known: Known, rejects: pl.DataFrame) -> None:
        if len(rejects):
            who = [pl.lit(known.stream).alias("stream"), pl.lit(known.name).alias("source")]
            number = pl.lit(known.partition, dtype=pl.Int64).alias("partition")
            self.rejects.append(rejects.with_columns(*who, number))

    def take_back(self, start: Known) -> None:
        """What lies behind the start is read again: the whole recording, or the line that had no end yet."""
        again = (pl.col("stream") == start.stream) & (pl.col("partition") == start.partition)
        self.rejects = [f.filter(~(again & (pl.col("offset") >= start.records))) for f in self.rejects]


Chunk = tuple[int, pl.DataFrame, Decoded]  # records, placed rows, what else was among them


@dataclass(frozen=True)
class Waiting:
    """A chunk that waits on the disk until its arrivals are known; in memory are only its event times."""

    records: int
    path: Path
    rest: Decoded
    times: pl.Series

    def back(self) -> Decoded:
        events = pl.read_ipc(self.path)
        self.path.unlink()
        return replace(self.rest, events=events)


@dataclass
class Intake:
    """Reads recordings into the lake: which partition each has, what is known of it, where its clock stands.

    Writer, ledger and known begin as the old state left them and end as the new one.
    """

    folder: Path
    now_us: int
    lateness_us: int
    arrival: str
    writer: Writer
    ledger: Ledger
    progress: Progress
    known: list[Known]

    def take(self, opening: Opening) -> bool:
        """Reads what is new of one source; False where nothing in it could be used."""
        try:
            with self.progress.part(opening.size or 0):
                source = opening.open()
                usable = self._read(source)
        except Problem as problem:
            if problem.code != Exit.NOTHING:
                raise
            self.ledger.notes.append(str(problem))
            return False
        self.ledger.notes += [note for note in source.notes if note not in self.ledger.notes]
        return usable

    def _read(self, source: Source) -> bool:
        name, stream = source.name, source.stream
        before = source.read_before(self._of(stream))
        if not before and (alike := source.alike(self._of(stream), self.writer, self.ledger.rejects)):
            if alike.holds_all and (alike.is_shorter or alike.known.arrival == self.arrival):
                what = "a shorter copy of" if alike.is_shorter else "read before as"
                self.ledger.notes.append(f"{name}: {what} {alike.known.name}, nothing new in it")
                return True
            if alike.has_grown:
                before = self._taken_over(alike.known, source.by)
            else:
                self.ledger.notes.append(_parted(name, alike))
        same = before is not None and before.arrival == self.arrival and before.by == source.by
        if before and same and not source.has_more(before):
            self.ledger.notes.append(f"{name}: read before as {before.name}, nothing new in it")
            return True
        start = self._start(source, before)
        records, tombstones, used, clock = start.records, start.tombstones, 0, start.clock
        first_reject = len(self.ledger.rejects)
        arrivals = Arrivals(stream, self.now_us, clock)
        for count, rows, decoded in self._placed(source, start, arrivals):
            records += count
            tombstones += decoded.tombstones
            if len(rows) and rows["told"][0]:
                clock = int(rows["arrival"].cast(pl.Int64).max())  # type: ignore[arg-type]
            events = theirs(stream, rows)
            used += len(events)
            self.ledger.cover(stream, events)
            self.ledger.reject(start, decoded.rejects)
            self.writer.add(stream, events)
            self.progress.add(count, source.reached)
        if before:
            self.known.remove(before)
            if not same:
                other = f"with --arrival {self.arrival}; before it was {before.arrival}"
                told = other if before.by == source.by else _read_otherwise(before.by, source.by)
                self.ledger.notes.append(f"{name}: read again {told}")
        elif not used:
            nothing = _nothing_used(records - start.records, self.ledger.rejects[first_reject:])
            self.ledger.notes.append(f"{name}: {nothing}")
        elif source.format:
            self.ledger.notes.append(_read_as(source, used, self.ledger.rejects[first_reject:]))
        if arrivals.rejected:
            self.ledger.notes.append(_unbelieved(name, arrivals.rejected, self.folder))
        done, clock = source.known(start, records), None if arrivals.undecided else clock
        self.known.append(replace(done, tombstones=tombstones, clock=clock, arrival=self.arrival, by=source.by))
        return bool(used or before)

    def _taken_over(self, known: Known, by: str) -> Known:
        """The recording as if it had been read by this map, which makes the same rows of it."""
        other = replace(known, by=by)
        self.known[self.known.index(known)] = other
        return other

    def _of(self, stream: str) -> list[Known]:
        return [k for k in self.known if k.stream == stream]

    def _start(self, source: Source, before: Known | None) -> Known:
        """Where reading begins. Without arrivals a row's place depends on the whole recording: it is read again, and so
        it is where another column now holds them, and where its last arrivals could not be told from slips.
        """
        if not before:
            return source.whole(self._partition(source), None)
        start = replace(before, name=source.name)
        other = before.arrival != self.arrival or before.by != source.by
        if before.clock is None or other:
            start = source.whole(before.partition, before)
            for rows in self.writer.take_back(source.stream, before.partition):
                self.ledger.cover(source.stream, rows, -1)
        self.ledger.take_back(start)
        return start

    def _partition(self, source: Source) -> int:
        if source.partition is None:
            return self._next_partition(source.stream)
        for other in self._of(source.stream):
            if other.partition == source.partition:
                reason = f"{other.name} is partition {other.partition} of {source.stream} in this state"
                raise Problem(source.name, reason, "replay it into another --state", Exit.STATE)
        return source.partition

    def _next_partition(self, stream: str) -> int:
        number = 1 + max((k.partition for k in self._of(stream)), default=-1)
        if number >= 2**PARTITION_BITS:
            raise Problem(
                stream, f"more than {2**PARTITION_BITS} files of one stream", "join them, or use a new --state"
            )
        return number

    def _placed(self, source: Source, start: Known, arrivals: Arrivals) -> Iterator[Chunk]:
        """Chunks whose rows have their arrivals; while none was seen they wait, for a later row may have one."""
        clock = start.clock
        waiting: list[Waiting] = []
        for count, decoded in self._arrived(source, start, arrivals):
            events = decoded.events
            if clock is None:
                clock = events["arrival"].drop_nulls().cast(pl.Int64).first()  # type: ignore[assignment]
            if clock is None:
                waiting.append(self._aside(count, decoded, start.stream, len(waiting)))
                continue
            for number, some in chain(((w.records, w.back()) for w in waiting), [(count, decoded)]):
                raw = some.events["arrival"].cast(pl.Int64)
                arrived = running_arrival(raw, clock)
                clock = int(arrived[-1]) if len(arrived) else clock
                yield number, self._place(some.events, start, arrived, (arrived - raw).fill_null(0), True), some
            waiting = []
        if waiting:
            yield from self._stand_in(waiting, start, None if source.ordered else False)

    def _arrived(self, source: Source, start: Known, arrivals: Arrivals) -> Iterator[tuple[int, Decoded]]:
        chunks = (
            (count, replace(decoded, events=self._with_arrival(source, decoded.events)))
            for count, decoded in source.chunks(start.records)
        )
        of_broker = source.partition is not None
        return chunks if of_broker else arrivals.believed(chunks)

    def _with_arrival(self, source: Source, events: pl.DataFrame) -> pl.DataFrame:
        if self.arrival == "none" or source.ordered:
            return events.with_columns(arrival=pl.lit(None, dtype=INSTANT))
        named = SCHEMA[source.stream].get(self.arrival) == INSTANT
        return events.with_columns(arrival=pl.col(self.arrival)) if named else events

    def _aside(self, records: int, decoded: Decoded, stream: str, number: int) -> Waiting:
        path = self.folder / SPOOL / f"waiting-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        decoded.events.write_ipc(path, compression="lz4")
        times = decoded.events.select(event_time(stream).alias("t"))["t"]
        return Waiting(records, path, replace(decoded, events=decoded.events.clear()), times)

    def _stand_in(self, waiting: Sequence[Waiting], start: Known, told: bool | None) -> Iterator[Chunk]:
        arrived = stand_in_arrival(pl.concat([w.times for w in waiting]))
        at = 0
        for some in waiting:
            mine = arrived[at : at + len(some.times)]
            at += len(some.times)
            still = pl.zeros(len(some.times), pl.Int64, eager=True)
            decoded = some.back()
            yield some.records, self._place(decoded.events, start, mine, still, told), decoded

    def _place(
        self, events: pl.DataFrame, start: Known, arrived: pl.Series, stepped: pl.Series, told: bool | None
    ) -> pl.DataFrame:
        placed = events.with_columns(
            arrival=arrived.cast(INSTANT),
            told=pl.lit(told, dtype=pl.Boolean),
            stepped_us=stepped,
            source=pl.lit(start.name),
            topic=pl.lit(start.stream),
            partition=pl.lit(start.partition, dtype=pl.Int64),
        )
        return place(placed, start.stream, self.lateness_us)


def _parted(name: str, alike: Alike) -> str:
    """Two that are one as far as anybody can tell, and then are not: they may be two."""
    shared, other = alike.shared, alike.known.name
    first = f"its first {shared:,} records are" if shared > 1 else "its first record is"
    then = f"if they are one log, asynchealth replay PATH… --fresh without {name} or {other}"
    return f"{name}: {first} in {other}, too, then the two differ: events without an event_id count twice\nNext: {then}"


def _unbelieved(name: str, rows: int, folder: Path) -> str:
    what = "1 row is rejected, whose arrival is" if rows == 1 else f"{rows:,} rows are rejected, whose arrivals are"
    return str(Problem(name, f"{what} not believed", f"asynchealth sql @rejected_rows --state {shell(folder)}"))


def _read_otherwise(before: str, now: str) -> str:
    same_map = before.partition("+")[0] == now.partition("+")[0]
    return f"with {'other privacy' if same_map else 'another field map'} than before"


def _read_as(source: Source, used: int, rejects: Sequence[pl.DataFrame]) -> str:
    refused = sum(map(len, rejects))
    most = f", {refused:,} rejected ({_most(rejects)})" if refused else ""
    return f"{source.name}: {source.format} → {source.stream}, {used:,} events{most}"


def _nothing_used(records: int, rejects: Sequence[pl.DataFrame]) -> str:
    if not rejects:
        return "holds no event"
    return f"none of its {records:,} records could be used; {_most(rejects)}"


def _most(rejects: Sequence[pl.DataFrame]) -> str:
    """What was wrong most often."""
    kinds = pl.concat(rejects).group_by("field", "reason").len().sort("len", "field", "reason", descending=True)
    where, reason, many = kinds.row(0)
    return f"{many:,} time{'' if many == 1 else 's'}: {where + ': ' if where else ''}{reason}"
