"""The records of one source partition enter, messages under slice numbers leave: partial tables, rows, rejects, counts.

A slice is the records whose arrival lies in one interval of 2 s, a function of the log alone. It can be said once a
record of a later slice is there, or the brokers' clock promises that none will come. What is not said yet is read again
after a restart, from the offset and the two numbers that `point` gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from detectors.engine import INSTANT, key_hash, reduce
from detectors.events import LANDED, REJECTS, decode_json
from detectors.table import Meet, Table
from detectors.windows import FATES, LATENESS_US, SLICE_US, place
from streams.live.numbered import Frames, Head, Kind, messages, pack

Ints = npt.NDArray[np.int64]
EVENTS = -1  # the queue of rows, rejects and counts; the others are numbered from 0
COUNTS = ("messages", "tombstones", "undecodable", "events", "rejected", "stray", *FATES)


@dataclass(frozen=True)
class Point:
    """Where a successor begins: an offset, the next slice to say, the partition's clock before that offset, and the
    promise that from the offset promised_at on no record lies in a slice before `promised`."""

    offset: int
    next: int = 0
    clock_us: int = 0
    promised: int = 0
    promised_at: int = 0

    @property
    def metadata(self) -> str:
        return f"{self.next} {self.clock_us} {self.promised} {self.promised_at}"

    @classmethod
    def of(cls, offset: int, metadata: str) -> Point:
        return cls(offset, *map(int, metadata.split())) if metadata else cls(offset)


@dataclass(frozen=True)
class Out:
    """One message: for which queue, its key and its value."""

    queue: int
    key: bytes
    value: bytes


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
    lateness_us: int = LATENESS_US
    position: int = field(init=False)
    next: int = field(init=False)
    clock_us: int = field(init=False)  # the largest append time; promises are not in it
    promised: int = field(init=False)
    promised_at: int = field(init=False)
    pending: list[Pending] = field(default_factory=list)
    lost_until: int | None = None  # slices below it may have lost records
    counted: dict[str, int] = field(default_factory=dict)  # COUNTS of what was said last

    def __post_init__(self) -> None:
        self.position = max(self.point.offset, self.log_start, 0)
        self.next, self.clock_us = self.point.next, self.point.clock_us
        self.promised, self.promised_at = self.point.promised, self.point.promised_at
        self._gap = self.log_start > max(self.point.offset, 0)
        self._landed = list(LANDED[self.stream])

    @property
    def producer(self) -> str:
        return f"{self.stream}/{self.partition}"

    def feed(self, offsets: Sequence[int], stamps_us: Sequence[int], values: Sequence[bytes | None]) -> None:
        """Records in the order of the log; those below our position were fed before."""
        fresh = next((i for i, o in enumerate(offsets) if o >= self.position), len(offsets))
        if fresh == len(offsets):
            return
        offset, stamp = np.array(offsets[fresh:], np.int64), np.array(stamps_us[fresh:], np.int64)
        some = values[fresh:]
        self.position = int(offset[-1]) + 1
        clock = np.maximum(np.maximum.accumulate(stamp), self.clock_us)
        complete = np.maximum(np.where(offset >= self.promised_at, self.promised, 0), self.next)
        arrived = np.maximum(clock, complete * SLICE_US)
        before = np.concatenate([[self.clock_us], clock[:-1]])
        self.clock_us = int(clock[-1])
        if self._gap and self.lost_until is None:
            self.lost_until = int(arrived[0]) // SLICE_US + 1
        decoded = decode_json(self.stream, [b"null" if v is None else v for v in some])
        number = pl.Series("slice", arrived // SLICE_US)
        at = pl.DataFrame(
            {
                "at": np.arange(len(offset)),
                "record": offset,
                "slice": number,
                "arrival": arrived,
                "stepped_us": arrived - stamp,
                "stray": clock < arrived,  # it was promised that none would come
            }
        )
        rows = self._placed(decoded.events.rename({"offset": "at"}).drop("arrival").join(at, on="at", how="left"))
        rejects = decoded.rejects.rename({"offset": "at"}).join(at.select("at", "record", "slice"), on="at", how="left")
        rejects = rejects.drop("at").rename({"record": "offset"}).select(*REJECTS, "slice")
        empty = np.array([v is None or v.strip() == b"null" for v in some])
        self.pending.append(Pending(offset, number.to_numpy(), before, empty, rows, rejects))

    def _placed(self, events: pl.DataFrame) -> pl.DataFrame:
        named = events.drop("at").rename({"record": "offset"})
        rows = named.with_columns(
            arrival=pl.col("arrival").cast(INSTANT),
            told=pl.lit(True),
            source=pl.lit(self.stream),
            topic=pl.lit(self.stream),
            partition=pl.lit(self.partition, dtype=pl.Int64),
        )
        fate = pl.when("stray").then(pl.lit("stray")).otherwise("fate").alias("fate")
        return place(rows, self.stream, self.lateness_us).with_columns(fate).drop("stray")

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

    def say(self, to: int) -> list[Out]:
        """The messages for slices next ≤ n < to, for every queue and for EVENTS.

        Of slices that may have lost records only EVENTS gets what there is: half a slice would be a wrong table.
        """
        lost = self._lost_below(to)
        out: list[Out] = []
        begin = dict.fromkeys([*range(self.queues), EVENTS], self.next)

        def complete(queue: int, upto: int) -> None:
            for kind, end in (("lost", min(lost, upto)), ("empty", upto)):
                if begin[queue] < end:
                    out.extend(self._message(queue, begin[queue], end, kind))  # type: ignore[arg-type]
                    begin[queue] = end

        self.counted = dict.fromkeys(COUNTS, 0)
        for number, bodies in self._bodies(lost, to):
            for name, n in bodies[EVENTS]["accounting"].row(0, named=True).items():
                self.counted[name] += n
            for queue, frames in bodies.items():
                if begin[queue] < lost <= number:
                    complete(queue, lost)
                kind: Kind = "lost" if number < lost else "rows"
                out += self._message(queue, begin[queue], number + 1, kind, pack(frames))
                begin[queue] = number + 1
        for queue in begin:
            complete(queue, to)
        return out

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

    def _bodies(self, lost: int, to: int) -> Iterator[tuple[int, dict[int, Frames]]]:
        """Of each slice before `to` that has a record, what every queue gets; before `lost` only EVENTS gets any."""
        mine = [p for p in self.pending if p.slice.size and p.slice[0] < to]
        if not mine:
            return
        before = pl.col("slice") < to
        rows, rejects = (pl.concat([getattr(p, n) for p in mine]).filter(before) for n in ("rows", "rejects"))
        messages = pl.DataFrame(
            {n: np.concatenate([getattr(p, n) for p in mine]) for n in ("slice", "tombstone")}
        ).filter(before)
        told = {n: _by_slice(f) for n, f in (("rows", rows), ("rejects", rejects))}
        none = {"rows": rows.drop("slice").clear(), "rejects": rejects.drop("slice").clear()}
        spread = self._spread(rows.filter(pl.col("slice") >= lost))
        for number, counts in _by_slice(counted(messages, rows, rejects)).items():
            said = {n: frames.get(number, none[n]) for n, frames in told.items()}
            events = {"rows": said["rows"].select(self._landed), "rejects": said["rejects"], "accounting": counts}
            yield number, {**spread.get(number, {}), EVENTS: events}

    def _spread(self, rows: pl.DataFrame) -> dict[int, dict[int, Frames]]:
        """Partial tables by slice and by the queue of their key, in an order that depends on nothing but them."""
        spread: dict[int, dict[int, Frames]] = {}
        partials = reduce(self.tables, self.stream, rows.filter(pl.col("fate") != "stray"), ("slice",))
        by_name = {t.name: t for t in self.tables}
        for (name, i), frame in partials.items():
            table = by_name[name]
            meets = isinstance(table.sources[i], Meet)
            order = ["coord"] if meets else table.full_key
            hashed = pl.col("hash") if meets else key_hash(table.key)
            placed = frame.sort("slice", *order).with_columns(queue=hashed % self.queues)
            parts = placed.partition_by("slice", "queue", as_dict=True, maintain_order=True, include_key=False)
            for (number, queue), part in parts.items():
                spread.setdefault(number, {}).setdefault(int(queue), {})[f"{name}/{i}"] = part
        return spread

    def done(self, to: int) -> None:
        """All messages of slices before `to` are acknowledged."""
        self.next = to
        self.pending = [p for p in (p.since(to) for p in self.pending) if p.slice.size]
        if self.lost_until is not None and to >= self.lost_until:
            self._gap, self.lost_until = False, None

    def saved(self) -> Point | None:
        """Where a successor begins; None while a loss is not said, since a successor would not see it."""
        if self._gap:
            return None
        if not self.pending:
            return Point(self.position, self.next, self.clock_us, self.promised, self.promised_at)
        first = self.pending[0]
        return Point(int(first.offset[0]), self.next, int(first.before_us[0]), self.promised, self.promised_at)


def _by_slice(frame: pl.DataFrame) -> dict[int, pl.DataFrame]:
    parts = frame.partition_by("slice", as_dict=True, maintain_order=True, include_key=False)
    return {number: part for (number,), part in parts.items()}


def counted(messages: pl.DataFrame, rows: pl.DataFrame, rejects: pl.DataFrame) -> pl.DataFrame:
    """By slice: messages = with events + tombstones + undecodable; events = those by fate + rejected."""
    fates = [(pl.col("fate") == fate).sum().alias(fate) for fate in ("stray", *FATES)]
    whole = rejects.filter(pl.col("sub") == 0).join(rows, on="offset", how="anti")
    found = (
        messages.group_by("slice").agg(messages=pl.len(), tombstones=pl.col("tombstone").sum()),
        rows.group_by("slice").agg(*fates, good=pl.len()),
        rejects.group_by("slice").agg(rejected=pl.len()),
        whole.group_by("slice").agg(undecodable=pl.col("offset").n_unique()),
    )
    every = found[0]
    for some in found[1:]:
        every = every.join(some, on="slice", how="left")
    every = every.fill_null(0).with_columns(events=pl.col("good") + pl.col("rejected")).sort("slice")
    return every.select("slice", pl.col(COUNTS).cast(pl.Int64))
