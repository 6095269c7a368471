"""Placed chunks enter, Parquet parts leave: by stream and hour of arrival, never changed once they are written.

Which parts count is listed in the state's database; a part that no list names is left over from a killed run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import polars as pl

from detectors.events import LANDED
from detectors.windows import HOUR_US, coordinate, place
from streams.problems import Exit, Problem, shell
from streams.sources.files import READABLE

if TYPE_CHECKING:
    import pyarrow as pa

PART_ROWS = 100_000
MERGED_ROWS = 1_000_000  # a part that was merged; a reader of one holds it in memory
SMALL_PARTS = 16  # of one stream and an hour that still gets rows; then they become one
DISTINCT = {  # nearly every row has another value: a dictionary of them costs and saves nothing
    *("timestamp", "client_time", "server_time", "started", "finished", "arrival", "duration_ms", "offset", "seq"),
    *("request_id", "trace_id", "span_id", "parent_span_id", "idempotency_key", "event_id"),
}
LEFTOVER_S = 600  # replaced parts live this much longer, for readers who still have the old list


@dataclass(frozen=True)
class Part:
    """A file of one stream and hour; path is relative to the state folder; arrivals in µs."""

    stream: str
    path: str
    rows: int
    first_arrival: int
    last_arrival: int


@dataclass
class Writer(AbstractContextManager["Writer"]):
    """Buffers placed rows by (stream, hour of arrival) and adds parts of about PART_ROWS to those there are.

    One part is written while the next one fills; what goes wrong with it is raised by the next call.
    """

    state: Path
    parts: list[Part] = field(default_factory=list)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _writing: Future[Part] | None = None
    _waiting: dict[tuple[str, int], list[pl.DataFrame]] = field(default_factory=dict)
    _rows: dict[tuple[str, int], int] = field(default_factory=dict)

    def __exit__(self, *_: object) -> None:
        """Leaves nobody writing, whatever happened."""
        self._thread.shutdown()

    def add(self, stream: str, rows: pl.DataFrame) -> None:
        hours = (rows["arrival"].cast(pl.Int64) // HOUR_US).alias("hour")
        if not len(rows):
            return
        if hours.min() == hours.max():
            self._hold(stream, int(hours[0]), rows)
            return
        for (hour,), group in rows.with_columns(hours).partition_by("hour", as_dict=True, maintain_order=True).items():
            self._hold(stream, int(hour), group.drop("hour"))

    def _hold(self, stream: str, hour: int, rows: pl.DataFrame) -> None:
        key = (stream, hour)
        self._waiting.setdefault(key, []).append(rows)
        self._rows[key] = self._rows.get(key, 0) + len(rows)
        if self._rows[key] >= PART_ROWS:
            self._write(key)

    def rows_of(self, stream: str, partition: int) -> Iterator[pl.DataFrame]:
        """All rows of a partition, landed or about to."""
        self._wait()
        waiting = [f for (of, _), frames in self._waiting.items() if of == stream for f in frames]
        mine = pl.col("partition") == partition
        yield from (f.filter(mine) for f in waiting)
        yield from (read(self.state, p).filter(mine) for p in self.parts if p.stream == stream)

    def take_back(self, stream: str, partition: int) -> list[pl.DataFrame]:
        """The rows of a partition, which count no more: the same recording comes again, longer."""
        self._wait()
        removed = []
        mine = pl.col("partition") == partition
        for key in [k for k in self._waiting if k[0] == stream]:
            frames = self._waiting[key]
            removed += [f.filter(mine) for f in frames]
            self._waiting[key] = [f.filter(~mine) for f in frames]
            self._rows[key] = sum(map(len, self._waiting[key]))
        kept = []
        for part in self.parts:
            rest, gone = _without(self.state, part, mine) if part.stream == stream else (part, None)
            kept += [rest] if rest else []
            removed += [gone] if gone is not None else []
        self.parts = kept
        return removed

    def close(self) -> list[Part]:
        for key in sorted(self._waiting):
            self._write(key)
        self._wait()
        return self.parts

    def _write(self, key: tuple[str, int]) -> None:
        stream, hour = key
        rows = pl.concat(self._waiting.pop(key)).select(list(LANDED[stream]))
        del self._rows[key]
        self._wait()
        if len(rows):
            self._writing = self._thread.submit(write_part, self.state, stream, hour, rows)

    def _wait(self) -> None:
        if self._writing:
            self.parts.append(self._writing.result())
            self._writing = None


def write_part(state: Path, stream: str, hour: int, rows: pl.DataFrame) -> Part:
    """One part, whole or not at all: readers only learn of it from the list."""
    import pyarrow.parquet as pq

    path = new_path(state, stream, hour)
    whole = state / path
    repeating = [n for n in rows.columns if n not in DISTINCT]
    with _whole_or_gone(whole), whole.open("wb") as out:
        pq.write_table(rows.to_arrow(), out, use_dictionary=repeating, **FORMAT)
    arrival = rows["arrival"].cast(pl.Int64)
    return Part(stream, str(path), len(rows), int(arrival.min()), int(arrival.max()))  # type: ignore[arg-type]


FORMAT: Mapping[str, Any] = {"compression": "lz4", "write_statistics": False, "store_schema": False}


def new_path(state: Path, stream: str, hour: int) -> Path:
    """Where a part may be written, from the state folder on."""
    name = time.strftime("%Y-%m-%dT%H", time.gmtime(hour * 3600))
    path = Path("lake") / stream / f"{name}-{uuid4().hex[:12]}.parquet"
    (state / path).parent.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def _whole_or_gone(path: Path) -> Iterator[None]:
    """Half a file on a full disk would only make it fuller."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def read(state: Path, part: Part, columns: list[str] | None = None) -> pl.DataFrame:
    try:
        return pl.read_parquet(state / part.path, columns=columns, glob=False)
    except (OSError, pl.exceptions.ComputeError) as error:
        raise damaged(state, error) from None


def damaged(state: Path, error: Exception) -> Problem:
    reason = f"the state is damaged: {str(error).splitlines()[0]}"
    return Problem(str(state), reason, f"asynchealth replay PATH… --fresh --state {shell(state)}", Exit.STATE)


def _without(state: Path, part: Part, gone: pl.Expr) -> tuple[Part | None, pl.DataFrame | None]:
    """The part without some rows, as a new part, and those rows; None where there are none."""
    rows = read(state, part)
    removed, rest = rows.filter(gone), rows.filter(~gone)
    if not len(removed):
        return part, None
    return (write_part(state, part.stream, part.first_arrival // HOUR_US, rest) if len(rest) else None), removed


def to_join(parts: Iterable[Part], closed_us: int) -> list[Part]:
    """Parts of one stream and hour that should be one; none where all are as they should be.

    Of an hour that gets no more rows, all; of one that does, where they are many and small. No more than MERGED_ROWS.
    """
    hours: dict[tuple[str, int], list[Part]] = {}
    for part in sorted(parts, key=lambda p: (p.first_arrival, p.path)):
        hours.setdefault((part.stream, part.first_arrival // HOUR_US), []).append(part)
    for (_, hour), some in hours.items():
        closed = (hour + 1) * HOUR_US <= closed_us
        most, least = (MERGED_ROWS, 2) if closed else (PART_ROWS, SMALL_PARTS)
        chosen: list[Part] = []
        for part in (p for p in some if p.rows < most):
            if sum(p.rows for p in chosen) + part.rows > MERGED_ROWS:
                if len(chosen) >= least:
                    break
                chosen = []
            chosen.append(part)
        if len(chosen) >= least:
            return chosen
    return []


def joined(state: Path, parts: Sequence[Part]) -> Part:
    """Parts of one stream and hour as one, a piece after the other: memory holds one piece."""
    import pyarrow.parquet as pq

    first = min(p.first_arrival for p in parts)
    path = new_path(state, parts[0].stream, first // HOUR_US)
    whole = state / path
    with _whole_or_gone(whole), whole.open("wb") as out:
        pieces = _pieces(state, parts)
        piece = next(pieces)
        repeating = [n for n in piece.column_names if n not in DISTINCT]
        with pq.ParquetWriter(out, piece.schema, use_dictionary=repeating, **FORMAT) as writer:
            writer.write_table(piece)
            for piece in pieces:
                writer.write_table(piece)
    return Part(parts[0].stream, str(path), sum(p.rows for p in parts), first, max(p.last_arrival for p in parts))


def _pieces(state: Path, parts: Sequence[Part]) -> Iterator[pa.Table]:
    waiting: list[pl.DataFrame] = []
    for part in parts:
        waiting.append(read(state, part))
        if sum(map(len, waiting)) >= PART_ROWS:
            yield pl.concat(waiting).to_arrow()
            waiting = []
    if waiting:
        yield pl.concat(waiting).to_arrow()


def relabel(state: Path, part: Part, lateness_us: int) -> Part:
    """The same rows with their fate by another lateness, as a new part."""
    rows = read(state, part)
    again = rows["fate"] == "repeated"
    return _with_fates(state, part, rows, again, lateness_us)


def _with_fates(state: Path, part: Part, rows: pl.DataFrame, again: pl.Series, lateness_us: int) -> Part:
    fate = pl.when(again).then(pl.lit("repeated")).otherwise("fate").alias("fate")
    placed = place(rows, part.stream, lateness_us).with_columns(fate).select(list(LANDED[part.stream]))
    return write_part(state, part.stream, part.first_arrival // HOUR_US, placed)


def mark_repeats(state: Path, parts: Sequence[Part], lateness_us: int) -> list[Part]:
    """Of rows with one event_id the one with the smallest (arrival, coordinates) stays, the rest are repeated."""
    ids = []
    for i, part in enumerate(parts):
        if not read(state, part, ["event_id"])["event_id"].count():
            continue
        rows = read(state, part, ["environment", "tenant", "event_id", "arrival", "partition", "offset", "sub", "fate"])
        known = rows.with_row_index("row").filter(pl.col("event_id") != "")
        who = [pl.lit(i).alias("part"), pl.lit(part.stream).alias("stream"), coordinate(part.stream).alias("coord")]
        ids.append(known.select(*EVENT_ID, "arrival", "row", *who, was=pl.col("fate") == "repeated"))
    if not ids:
        return list(parts)
    ordered = pl.concat(ids).sort("stream", *EVENT_ID, "arrival", "coord")
    again = ordered.with_columns(again=~pl.struct("stream", *EVENT_ID).is_first_distinct())
    marked = list(parts)
    for i in again.filter(pl.col("again") != pl.col("was"))["part"].unique().sort():
        rows = read(state, parts[i])
        repeats = again.filter(pl.col("part") == i, pl.col("again"))["row"]
        mine = pl.int_range(len(rows), eager=True).is_in(repeats.implode())
        marked[i] = _with_fates(state, parts[i], rows, mine, lateness_us)
    return marked


EVENT_ID = ("environment", "tenant", "event_id")


@contextmanager
def undone(state: Path, switched: str = READABLE) -> Iterator[None]:
    """Takes back the parts of a run that failed before the switch, so that a full disk is no fuller than before."""
    readable = state / switched
    before, file = set((state / "lake").rglob("*.parquet")), _identity(readable)
    try:
        yield
    except BaseException:
        if _identity(readable) == file:
            for path in set((state / "lake").rglob("*.parquet")) - before:
                path.unlink()
        raise


def _identity(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def replaced(state: Path, parts: Iterable[Part]) -> None:
    """These are about to leave the list: from now on it counts how long a reader may still have them open."""
    for part in parts:
        os.utime(state / part.path)


def sweep(state: Path, listed: Iterable[str]) -> None:
    """Removes parts that no list names and that are too old for a reader to still have them open."""
    wanted, now = set(listed), time.time()
    for path in (state / "lake").rglob("*.parquet"):
        if str(path.relative_to(state)) not in wanted and now - path.stat().st_mtime > LEFTOVER_S:
            path.unlink()


# ---- what may stay --------------------------------------------------------------------------------------------------


def sizes(state: Path, parts: Iterable[Part]) -> dict[int, int]:
    """Bytes of each hour."""
    found: dict[int, int] = {}
    for part in parts:
        hour = part.first_arrival // HOUR_US
        found[hour] = found.get(hour, 0) + (state / part.path).stat().st_size
    return found


def first_that_fits(bytes_of: Mapping[int, int], most: float) -> int:
    """The first hour from which on the lake is no larger than that; at least the newest stays."""
    newest, room, first = max(bytes_of), most, max(bytes_of)
    for hour in sorted(bytes_of, reverse=True):
        room -= bytes_of[hour]
        if room < 0 and hour < newest:
            break
        first = hour
    return first
