"""The records of one source partition enter, messages under slice numbers leave: partial tables, rows, rejects, counts.

A slice is the records whose arrival lies in one interval of 2 s, a function of the log alone. It can be said once a
record of a later slice is there, or the brokers' clock promises that none will come. What is not said yet is read again
after a restart, from the offset and the two numbers that `point` gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import polars as pl

from detectors.engine import INSTANT, UNEXPECTED, key_hash, reduce
from detectors.events import LANDED, REJECTS
from detectors.table import Meet, Table
from detectors.tables.accounts import ACCOUNTS, DELETED, PARKED
from detectors.windows import FATES, LATENESS_US, SLICE_US, STRAY, coordinate, place_lazy
from streams.landing.lake import EVENT_ID
from streams.live import canary
from streams.live.canary import CANARY
from streams.live.numbered import Frames, Head, Kind, messages, pack
from streams.sources import decode
from streams.sources.decode import Reading

Ints = npt.NDArray[np.int64]
EVENTS = -1  # the queue of rows, rejects and counts; the others are numbered from 0
UNREAD = ("repeated", canary.FATE)  # the fates of rows that no table of a detector reads
APART = (STRAY, *UNREAD)
COUNTS = ("messages", "tombstones", "undecodable", "parked", "events", "rejected", *APART, *FATES)


class Poisoned(Exception):
    """The records of one slice can't be measured, however often they are read again."""

    def __init__(self, number: int, first: int, last: int, error: BaseException, private: bool = False) -> None:
        """private: what the error says may quote what nobody may keep."""
        self.number, self.first, self.last = number, first, last
        said = "" if private else f": {str(error).partition(chr(10))[0][:REASON_KEPT]}"
        self.reason = type(error).__name__ + said
        super().__init__(f"offsets {first} to {last}: {self.reason}")


REASON_KEPT = 300  # characters
NOTHING = pl.DataFrame()


@dataclass(frozen=True)
class Point:
    """Where a successor begins: an offset, the next slice to say, the partition's clock before that offset, and the
    promise that from the offset promised_at on no record lies in a slice before `promised`.

    failed: the slice that could not be measured, and how many times.
    """

    offset: int
    next: int = 0
    clock_us: int = 0
    promised: int = 0
    promised_at: int = 0
    failed: int = 0
    times: int = 0

    @property
    def metadata(self) -> str:
        return f"{self.next} {self.clock_us} {self.promised} {self.promised_at} {self.failed} {self.times}"

    @classmethod
    def of(cls, offset: int, metadata: str) -> Point:
        return cls(offset, *map(int, metadata.split())) if metadata else cls(offset)


@dataclass(frozen=True)
class Out:
    """One message: for which queue, its key and its value."""

    queue: int
    key: bytes
    value: bytes


@dataclass(frozen=True)
class Timed:
    """Records as they were fetched, with what the log alone says of them."""

    offset: Ints
    slice: Ints
    before_us: Ints  # the partition's clock before each record
    clock_us: Ints  # and after it
    arrived_us: Ints
    stamp_us: Ints
    values: Sequence[bytes | None]

    def cut(self, lo: int, hi: int) -> Timed:
        some = slice(lo, hi)
        clocks = (self.before_us[some], self.clock_us[some], self.arrived_us[some], self.stamp_us[some])
        return Timed(self.offset[some], self.slice[some], *clocks, self.values[some])

    def by_slice(self) -> Iterator[Timed]:
        """Slices never go back along a log."""
        edges = [0, *(np.flatnonzero(np.diff(self.slice)) + 1).tolist(), len(self.slice)]
        yield from (self.cut(lo, hi) for lo, hi in pairwise(edges))


@dataclass
class Pending:
    """Records that belong to slices not said yet, in the order of the log."""

    offset: Ints
    slice: Ints
    before_us: Ints  # the partition's clock before each record
    tombstone: npt.NDArray[np.bool_]
    rows: pl.DataFrame  # placed, with their slice
    rejects: pl.DataFrame  # with their slice

    def since(self, number: int) -> Pending:
        keep, later = self.slice >= number, pl.col("slice") >= number
        return Pending(
            self.offset[keep],
            self.slice[keep],
            self.before_us[keep],
            self.tombstone[keep],
            self.rows.filter(later),
            self.rejects.filter(later),
        )


@dataclass
class Reducer:
    """One source partition. log_start: where the log begins now; past the point, what lies between is lost."""

    stream: str
    partition: int
    tables: Sequence[Table]
    queues: int
    point: Point
    log_start: int = 0
    reading: Reading | None = None  # what its records are read as; none: our own schema
    lateness_us: int = LATENESS_US
    position: int = field(init=False)
    next: int = field(init=False)
    clock_us: int = field(init=False)  # the largest append time; promises are not in it
    promised: int = field(init=False)
    promised_at: int = field(init=False)
    pending: list[Pending] = field(default_factory=list)
    lost_until: int | None = None  # slices below it may have lost records
    failure: tuple[int, int] = field(init=False)  # see Point
    parked: dict[int, str] = field(default_factory=dict)  # slices that are set aside and not said yet, and why
    counted: dict[str, int] = field(default_factory=dict)  # COUNTS of what was said last

    def __post_init__(self) -> None:
        self.position = max(self.point.offset, self.log_start, 0)
        self.next, self.clock_us = self.point.next, self.point.clock_us
        self.promised, self.promised_at = self.point.promised, self.point.promised_at
        self.failure = self.point.failed, self.point.times
        self._gap = self.log_start > max(self.point.offset, 0)
        self._landed = list(LANDED[self.stream])
        self._accounts = [t for t in self.tables if t is ACCOUNTS]

    @property
    def producer(self) -> str:
        return f"{self.stream}/{self.partition}"

    def feed(self, offsets: Sequence[int], stamps_us: Sequence[int], values: Sequence[bytes | None]) -> None:
        """Records in the order of the log; those below our position were fed before.

        Where Poisoned is raised, what lies before that slice was taken.
        """
        fresh = next((i for i, o in enumerate(offsets) if o >= self.position), len(offsets))
        if fresh == len(offsets):
            return
        timed = self._timed(np.array(offsets[fresh:], np.int64), np.array(stamps_us[fresh:], np.int64), values[fresh:])
        if not (self.parked and self.parked.keys() & set(timed.slice.tolist())):
            try:
                self._take(timed)
                return
            except UNEXPECTED:  # raised again below, if it is the fault of one slice
                pass
        for part in timed.by_slice():
            number = int(part.slice[0])
            try:
                self._take(replace(part, values=[None] * len(part.offset)) if number in self.parked else part)
            except UNEXPECTED as error:
                raise self._poisoned(number, part.offset, error) from self._cause(error)

    def _timed(self, offset: Ints, stamp: Ints, values: Sequence[bytes | None]) -> Timed:
        clock = np.maximum(np.maximum.accumulate(stamp), self.clock_us)
        complete = np.maximum(np.where(offset >= self.promised_at, self.promised, 0), self.next)
        arrived = np.maximum(clock, complete * SLICE_US)
        before = np.concatenate([[self.clock_us], clock[:-1]])
        return Timed(offset, arrived // SLICE_US, before, clock, arrived, stamp, values)

    def _take(self, some: Timed) -> None:
        pending = self._decoded(some)
        self.pending.append(pending)
        self.position, self.clock_us = int(some.offset[-1]) + 1, int(some.clock_us[-1])
        if self._gap and self.lost_until is None:
            self.lost_until = int(some.slice[0]) + 1

    def _decoded(self, some: Timed) -> Pending:
        decoded = decode.messages(self.reading or Reading(self.stream), some.values)
        at = pl.DataFrame(
            {
                "at": np.arange(len(some.offset)),
                "record": some.offset,
                "slice": some.slice,
                "arrival": some.arrived_us,
                "stepped_us": some.arrived_us - some.stamp_us,
                "stray": some.clock_us < some.arrived_us,  # it was promised that none would come
            }
        )
        events, bad = (f.lazy().rename({"offset": "at"}) for f in (decoded.events, decoded.rejects))
        among = at.lazy()
        placed = self._placed(events.drop("arrival").join(among, on="at", how="left", maintain_order="left"))
        slices = among.select("at", "slice", offset="record")
        numbered = bad.join(slices, on="at", how="left", maintain_order="left").select(*REJECTS, "slice")
        rows, rejects = pl.collect_all([placed, numbered])  # at once: a query costs more than a thousand rows
        empty = decode.empty(decoded, len(some.values))
        return Pending(some.offset, some.slice, some.before_us, empty, rows, rejects)

    def _placed(self, events: pl.LazyFrame) -> pl.LazyFrame:
        named = events.drop("at").rename({"record": "offset"})
        rows = named.with_columns(
            arrival=pl.col("arrival").cast(INSTANT),
            told=pl.lit(True),
            source=pl.lit(self.stream),
            topic=pl.lit(self.stream),
            partition=pl.lit(self.partition, dtype=pl.Int64),
        )
        apart = pl.when("stray").then(pl.lit(STRAY)).when(canary.ours(self.stream)).then(pl.lit(canary.FATE))
        fate = apart.otherwise("fate").alias("fate")
        return place_lazy(rows, self.stream, self.lateness_us).with_columns(fate).drop("stray")

    def promise(self, us: int) -> None:
        """The log has been read to its end, and the brokers' clock was past this then: what is before it is complete.

        It must be committed before it is said: a successor that did not know would put a late record into a table.
        """
        if us // SLICE_US > self.promised:
            self.promised, self.promised_at = us // SLICE_US, self.position

    def closable(self) -> int:
        """The slices before this one can be said. A promise holds once all is read that was read when it was made."""
        promised = self.promised if self.position >= self.promised_at else 0
        return max(self.next, promised, self.clock_us // SLICE_US)

    # ---- slices that can't be measured ----

    def _poisoned(self, number: int, offsets: Ints, error: BaseException) -> Poisoned:
        return Poisoned(number, int(offsets.min()), int(offsets.max()), error, self._private)

    @property
    def _private(self) -> bool:
        return self.reading is not None and self.reading.private is not None

    def _cause(self, error: BaseException) -> BaseException | None:
        """What a traceback may tell of it."""
        return None if self._private else error

    def failed(self, poison: Poisoned) -> int:
        """How many times it was raised for this slice, over all who had this partition. Another slice begins anew."""
        before, times = self.failure
        self.failure = (poison.number, times + 1 if before == poison.number else 1)
        return self.failure[1]

    def park(self, poison: Poisoned) -> None:
        """The slice is said as lost: what it holds stays in the log."""
        self.parked[poison.number] = poison.reason
        rest = pl.col("slice") != poison.number
        self.pending = [replace(p, rows=p.rows.filter(rest), rejects=p.rejects.filter(rest)) for p in self.pending]

    # ---- saying ----

    def say(self, to: int) -> list[Out]:
        """The messages for slices next ≤ n < to, for every queue and for EVENTS.

        Of slices that may have lost records only EVENTS gets what there is: half a slice would be a wrong table.
        """
        lost = self._lost_below(to)
        said = self._bodies(lost, to)
        self.counted = dict.fromkeys(COUNTS, 0)
        for bodies in said.values():
            if EVENTS in bodies:
                for name, n in bodies[EVENTS]["accounting"].row(0, named=True).items():
                    self.counted[name] += n
        queues = (*range(self.queues), EVENTS)
        return [m for q in queues for m in self._of_queue(q, {n: b[q] for n, b in said.items() if q in b}, lost, to)]

    def _of_queue(self, queue: int, bodies: Mapping[int, Frames], lost: int, to: int) -> Iterator[Out]:
        """Ranges that end with a body, with a loss, or with the last slice."""
        at = self.next
        parked = {n for n in self.parked if lost <= n < to}
        for number in sorted({*bodies, *parked, *({lost - 1} if lost > at else ())}):
            if number in parked and at < number:  # what lies before it is whole
                yield from self._message(queue, at, number, "empty")
                at = number
            kind: Kind = "lost" if number < lost or number in parked else "rows"
            yield from self._message(queue, at, number + 1, kind, pack(bodies.get(number, {})))
            at = number + 1
        if at < to:
            yield from self._message(queue, at, to, "empty")

    def _lost_below(self, to: int) -> int:
        """Where the log was gone: the slices before this one. Without a record since, all that are promised."""
        if not self._gap:
            return self.next
        if self.lost_until is None:
            self.lost_until = to
        return max(self.next, min(self.lost_until, to))

    def _message(self, queue: int, lo: int, hi: int, kind: Kind, body: bytes = b"") -> list[Out]:
        head = Head(producer=self.producer, lo=lo, hi=hi, kind=kind)
        return [Out(queue, *m) for m in messages(head, body)]

    def _bodies(self, lost: int, to: int) -> dict[int, dict[int, Frames]]:
        """By slice, what every queue gets; of those before `lost` only EVENTS gets rows.

        All slices at once; where that raises, one by one, so that the one at fault is known.
        """
        try:
            return self._measured(lost, self.next, to)
        except UNEXPECTED:  # raised again below, if it is the fault of one slice
            every = {}
            for number in sorted({n for p in self.pending for n in p.slice.tolist() if n < to}):
                try:
                    every.update(self._measured(lost, number, number + 1))
                except UNEXPECTED as error:
                    offsets = np.concatenate([p.offset[p.slice == number] for p in self.pending])
                    raise self._poisoned(number, offsets, error) from self._cause(error)
            return {**self._spread(self._accounts, self._losses(lost, self.next, to)), **every}

    def _measured(self, lost: int, lo: int, hi: int) -> dict[int, dict[int, Frames]]:
        every = self._spread(self._accounts, self._losses(lost, lo, hi))
        mine = [p for p in self.pending if p.slice.size and p.slice[0] < hi and p.slice[-1] >= lo]
        if not mine:
            return every
        among = pl.col("slice").is_between(lo, hi - 1)
        rows, rejects = (pl.concat([getattr(p, n) for p in mine]).filter(among) for n in ("rows", "rejects"))
        rows = repeated(rows)
        messages = pl.DataFrame({n: np.concatenate([getattr(p, n) for p in mine]) for n in ("slice", "tombstone")})
        messages = messages.filter(among).with_columns(parked=pl.col("slice").is_in(list(self.parked)))
        whole = rows.filter(pl.col("slice") >= lost)
        of_detectors = self._spread(self.tables, whole.filter(~pl.col("fate").is_in(UNREAD)))
        of_canaries = self._spread([CANARY], whole.filter(pl.col("fate") == canary.FATE))
        for some in (of_detectors, of_canaries):
            for number, queues in some.items():
                for queue, frames in queues.items():
                    every.setdefault(number, {}).setdefault(queue, {}).update(frames)
        for number, frames in self._of_events(messages, rows, rejects).items():
            every.setdefault(number, {})[EVENTS] = frames
        return every

    def _of_events(self, messages: pl.DataFrame, rows: pl.DataFrame, rejects: pl.DataFrame) -> dict[int, Frames]:
        """Rows, rejects and counts of each slice that has a record."""
        counts = _by_slice(counted(messages, rows, rejects))
        told = _by_slice(rows.filter(pl.col("fate") != canary.FATE))
        bad = _by_slice(pl.concat([rejects, *map(self._set_aside, self.parked.keys() & counts.keys())]))
        none = rows.drop("slice").clear(), rejects.drop("slice").clear()
        return {
            n: {
                "rows": told.get(n, none[0]).select(self._landed),
                "rejects": bad.get(n, none[1]),
                "accounting": counts[n],
            }
            for n in counts
        }

    def _set_aside(self, number: int) -> pl.DataFrame:
        """What is said of a parked slice among the rejects: from which offset to which, and why."""
        offsets = np.concatenate([p.offset[p.slice == number] for p in self.pending])
        reason = f"set aside with all up to offset {offsets.max()}: {self.parked[number]}"
        said = {"offset": int(offsets.min()), "sub": 0, "reason": reason, "field": "", "raw": "", "slice": number}
        return pl.DataFrame([said], schema={**REJECTS, "slice": pl.Int64})

    def _losses(self, lost: int, lo: int, hi: int) -> pl.DataFrame:
        """Rows that stand for what is in no table, for the accounts: each record that was set aside, and the first and
        the last of those that the log had no more."""
        found: list[tuple[int, int, str, int]] = []  # slice, offset, fate, how many records it stands for
        for p in self.pending:
            at = np.flatnonzero(np.isin(p.slice, list(self.parked)) & (p.slice >= max(lo, lost)) & (p.slice < hi))
            found += [(int(p.slice[i]), int(p.offset[i]), PARKED, 1) for i in at]
        if self._gap and lost == self.lost_until and lo < lost <= hi:
            first, last = max(self.point.offset, 0), self.log_start - 1
            found.append((lost - 1, last, DELETED, 1))
            found += [(lost - 1, first, DELETED, last - first)] if first < last else []
        shape = {"slice": pl.Int64, "offset": pl.Int64, "fate": pl.String, "weight": pl.Int64}
        if not found:
            return NOTHING
        nothing = self._decoded(self._timed(*(np.array([], np.int64),) * 2, [])).rows
        arrived = pl.col("slice") * SLICE_US
        return pl.concat([nothing, pl.DataFrame(found, schema=shape, orient="row")], how="diagonal").with_columns(
            pl.lit("").alias("environment"),
            pl.lit("").alias("tenant"),
            pl.lit(self.partition, dtype=pl.Int64).alias("partition"),
            pl.lit(0, dtype=pl.Int64).alias("sub"),
            pl.lit(0, dtype=pl.Int64).alias("stepped_us"),
            told=pl.lit(True),
            arrived=arrived,
            t=arrived,
            coord=coordinate(self.stream),
        )

    def _spread(self, tables: Iterable[Table], rows: pl.DataFrame) -> dict[int, dict[int, Frames]]:
        """Partial tables by slice and by the queue of their key, in an order that depends on nothing but them."""
        spread: dict[int, dict[int, Frames]] = {}
        if rows.is_empty():
            return spread
        by_name = {t.name: t for t in tables}
        partials = reduce(by_name.values(), self.stream, rows, ("slice",))
        placed = pl.collect_all([self._queued(by_name[name], i, f) for (name, i), f in partials.items()])
        for (name, i), frame in zip(partials, placed, strict=True):
            parts = frame.partition_by("slice", "queue", as_dict=True, maintain_order=True, include_key=False)
            for (number, queue), part in parts.items():
                spread.setdefault(number, {}).setdefault(int(queue), {})[f"{name}/{i}"] = part
        return spread

    def _queued(self, table: Table, source: int, frame: pl.DataFrame) -> pl.LazyFrame:
        if not isinstance(table.sources[source], Meet):
            return frame.lazy().sort("slice", *table.full_key).with_columns(queue=key_hash(table.key) % self.queues)
        in_order = frame["slice"].is_sorted() and frame["coord"].is_sorted()  # as a log is
        ordered = frame.lazy() if in_order else frame.lazy().sort("slice", "coord")
        return ordered.with_columns(queue=pl.col("hash") % self.queues)

    def done(self, to: int) -> None:
        """All messages of slices before `to` are acknowledged."""
        self.next = to
        self.parked = {n: reason for n, reason in self.parked.items() if n >= to}
        self.failure = self.failure if self.failure[0] >= to else (0, 0)
        self.pending = [p for p in (p.since(to) for p in self.pending) if p.slice.size]
        if self.lost_until is not None and to >= self.lost_until:
            self._gap, self.lost_until = False, None

    def saved(self) -> Point | None:
        """Where a successor begins; None while a loss is not said, since a successor would not see it."""
        if self._gap:
            return None
        if not self.pending:
            return Point(self.position, self.next, self.clock_us, self.promised, self.promised_at, *self.failure)
        first, promise = self.pending[0], (self.promised, self.promised_at)
        return Point(int(first.offset[0]), self.next, int(first.before_us[0]), *promise, *self.failure)


def _by_slice(frame: pl.DataFrame) -> dict[int, pl.DataFrame]:
    parts = frame.partition_by("slice", as_dict=True, maintain_order=True, include_key=False)
    return {number: part for (number,), part in parts.items()}


def repeated(rows: pl.DataFrame) -> pl.DataFrame:
    """Of rows with one event_id the first stays, the rest are repeated: as far as one slice of one partition shows."""
    known = (pl.col("event_id") != "").fill_null(False)
    if not rows.select(known.any()).item():
        return rows
    again = known & ~pl.struct("slice", *EVENT_ID).is_first_distinct() & ~pl.col("fate").is_in(APART)
    return rows.with_columns(fate=pl.when(again).then(pl.lit("repeated")).otherwise("fate"))


def counted(messages: pl.DataFrame, rows: pl.DataFrame, rejects: pl.DataFrame) -> pl.DataFrame:
    """By slice: messages = with events + tombstones + undecodable + parked; events = those by fate + rejected."""
    fates = [(pl.col("fate") == fate).sum().alias(fate) for fate in (*APART, *FATES)]
    whole = rejects.filter(pl.col("sub") == 0).join(rows, on="offset", how="anti")
    parked, empty = pl.col("parked").sum(), (pl.col("tombstone") & ~pl.col("parked")).sum()
    found = (
        messages.group_by("slice").agg(messages=pl.len(), tombstones=empty, parked=parked),
        rows.group_by("slice").agg(*fates, good=pl.len()),
        rejects.group_by("slice").agg(rejected=pl.len()),
        whole.group_by("slice").agg(undecodable=pl.col("offset").n_unique()),
    )
    every = found[0]
    for some in found[1:]:
        every = every.join(some, on="slice", how="left")
    every = every.fill_null(0).with_columns(events=pl.col("good") + pl.col("rejected")).sort("slice")
    return every.select("slice", pl.col(COUNTS).cast(pl.Int64))
