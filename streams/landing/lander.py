"""What the live stages said enters, one database leaves: rows, tables and findings, each number once.

One transaction holds what is landed, the numbers it was and the positions behind them. So a kill at any point leaves
the one before or the one after, and what is read again after it is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import duckdb
import polars as pl

from detectors.detector import Detector
from detectors.events import INSTANT, SCHEMA, STREAMS
from detectors.table import Table
from detectors.windows import HOUR_US, LATENESS_US, SLICE_US
from streams.landing import lake, state
from streams.landing.lake import PART_ROWS, Part
from streams.live.apart import Apart
from streams.live.canary import CANARY
from streams.live.judge import PRODUCER, judged_with
from streams.live.numbered import Reader, Taken

SMALL_PARTS = 16  # of one stream and hour; then they become one
COMPARED = HOUR_US // SLICE_US  # of rows said again, the numbers whose copies are compared
DDL = """
CREATE TABLE positions (topic VARCHAR NOT NULL, "partition" BIGINT NOT NULL, "offset" BIGINT NOT NULL);
CREATE TABLE taken (
    "partition" BIGINT NOT NULL, producer VARCHAR NOT NULL, lo BIGINT NOT NULL, hi BIGINT NOT NULL,
    lost BOOLEAN NOT NULL);
CREATE TABLE landed (next_window BIGINT NOT NULL, judged BIGINT NOT NULL, copies BIGINT NOT NULL,
    unequal BIGINT NOT NULL);
INSERT INTO landed VALUES (0, 0, 0, 0);
"""
COUNTED = ("used", "late", "implausible", "stray", "repeated")
UNPLACED = ("rejected", "tombstones", "parked")  # they have no arrival of their own
NUMBERS = ("read", *COUNTED, *UNPLACED)


class Place(NamedTuple):
    """A partition of one of our topics."""

    topic: Literal["events", "tables", "findings"]
    partition: int


@dataclass
class Lander:
    """The only writer of a state that is fed live. producers: of rows, as many source partitions as there are.

    con: the database, with what a predecessor landed in it, or empty.
    """

    folder: Path
    con: duckdb.DuckDBPyConnection
    detectors: Sequence[Detector]
    producers: Sequence[str]
    queues: int
    command: str = ""
    positions: dict[Place, int] = field(init=False)
    readers: dict[Place, Reader] = field(init=False)
    parts: list[Part] = field(init=False)

    def __post_init__(self) -> None:
        if not self.con.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'landed'").fetchall():
            self._make()
        self.judging: Sequence[Detector] = self.detectors
        self.apart = Apart()
        self.tables: dict[str, Table] = {t.name: t for d in self.detectors for t in d.tables}
        queues = [str(q) for q in range(self.queues)]
        self.readers = {Place("events", q): Reader(self._of(q)) for q in range(self.queues)}
        self.readers |= {Place("tables", 0): Reader(queues), Place("findings", 0): Reader([PRODUCER])}
        self.positions = dict.fromkeys(self.readers, 0)
        self.rows = dict.fromkeys(STREAMS, 0)  # landed by this process
        self._restore()

    def _of(self, partition: int) -> list[str]:
        """The producers whose rows go through a partition."""
        return [p for p in self.producers if int(p.rpartition("/")[2]) % self.queues == partition]

    def _make(self) -> None:
        run = (datetime.now(UTC), datetime.now(UTC), self.command, LATENESS_US, version("asynchealth"), list[str]())
        with transaction(self.con):
            state.make(self.con)
            self.con.execute(DDL)
            state.add_views(self.con, self.folder, [])
            state.land_rows(self.con, "runs", [run])

    def _restore(self) -> None:
        for topic, partition, offset in self.con.execute("FROM positions").fetchall():
            self.positions[Place(topic, partition)] = offset
        for partition, producer, lo, hi, lost in self.con.execute("FROM taken").fetchall():
            self.readers[Place("events", partition)].restore(producer, lo, hi, lost)
        ((self.window, self.judged, self.copies, self.unequal),) = self.con.execute("FROM landed").fetchall()
        self.readers[Place("tables", 0)].floor = self.window
        self.readers[Place("findings", 0)].floor = self.judged
        self.parts = state.parts_of(self.con)

    # ---- taking ----

    def feed(self, place: Place, offset: int, key: bytes | None, value: bytes | None) -> None:
        if offset >= self.positions[place]:
            self.readers[place].take(offset, key, value)
            self.positions[place] = offset + 1

    # ---- landing ----

    def land(self) -> bool:
        """All that can be landed now, in one transaction; False where there was nothing."""
        rows = [t for place, r in self.readers.items() if place.topic == "events" for t in r.drain(COMPARED)]
        windows = self.readers[Place("tables", 0)]
        if not self.window:  # of a log whose begin was deleted, the first window that every queue tells of
            self.window = windows.first() or 0
        to = windows.upto(self.window)
        tables = windows.below(to)
        changes, open_ = self._findings()
        windows.forget(to)
        fresh = self._write(rows)
        with transaction(self.con):
            self._land_rows(rows, fresh)
            self._land_tables(tables)
            self._land_findings(changes, open_)
            self._land_numbers(to)
        self.window = to
        return bool(rows or tables or changes or open_ is not None)

    def _findings(self) -> tuple[list[Taken], pl.DataFrame | None]:
        """Changes up to judge's last state, and what is open by it; None where that was landed before."""
        reader = self.readers[Place("findings", 0)]
        if reader.state is None or reader.state.number <= self.judged:
            return [], None
        self.judged, frames = reader.state.number, reader.state.frames
        self._compare(judged_with(frames["episodes"]))
        changes = reader.below(self.judged)
        reader.forget(self.judged)
        return changes, frames.get("open", pl.DataFrame())

    def _compare(self, theirs: set[str]) -> None:
        """The detectors that the workers judge with, and ours: a detector that nobody runs sees nothing."""
        self.judging = [d for d in self.detectors if d.name in theirs]
        self.apart.tell("detector", theirs - {d.name for d in self.detectors}, "run by the workers, not by this lander")
        missed = {d.name for d in self.detectors} - theirs
        self.apart.tell("detector", missed, "known to this lander, not run by the workers: it finds nothing")

    def _write(self, rows: Sequence[Taken]) -> list[Part]:
        """New parts, which count once the list names them."""
        parts = []
        for stream in STREAMS:
            mine = [t.frames["rows"] for t in rows if _stream(t) == stream and "rows" in t.frames]
            if not mine:
                continue
            hour = (pl.col("arrival").cast(pl.Int64) // HOUR_US).alias("hour")
            whole = pl.concat(mine).with_columns(hour).partition_by("hour", as_dict=True, maintain_order=True)
            parts += [lake.write_part(self.folder, stream, int(h), some.drop("hour")) for (h,), some in whole.items()]
        return parts

    def _land_rows(self, rows: Sequence[Taken], fresh: Sequence[Part]) -> None:
        state.land_rows(self.con, "lake_parts", fresh)
        self.parts += fresh
        for stream in STREAMS:
            mine = [t for t in rows if _stream(t) == stream]
            frames = [t.frames["rows"] for t in mine if "rows" in t.frames]
            if frames:
                self._land_coverage(stream, pl.concat(frames))
                self.rows[stream] += sum(map(len, frames))
        for t in rows:
            if "rejects" in t.frames:
                stream, _, partition = t.producer.partition("/")
                who = [pl.lit(stream).alias("stream"), pl.lit(stream).alias("source")]
                number = pl.lit(int(partition), dtype=pl.Int64).alias("partition")
                state.land_frame(self.con, "rejects", t.frames["rejects"].with_columns(*who, number))
        counts = [c for t in rows for c in counted(t)]
        if counts:
            keys = ["stream", "source", "partition", "minute"]
            summed = pl.concat(counts).group_by(keys).agg(pl.col(NUMBERS).sum()).sort(keys)
            self._add("accounting", keys, NUMBERS, summed)

    def _land_coverage(self, stream: str, rows: pl.DataFrame) -> None:
        nulls = rows.select(list(SCHEMA[stream])).null_count().row(0, named=True)
        filled = [(stream, name, len(rows), len(rows) - n) for name, n in nulls.items()]
        frame = pl.DataFrame(filled, schema=["stream", "field", "rows", "filled"], orient="row")
        self._add("coverage", ["stream", "field"], ["rows", "filled"], frame)

    def _add(self, table: str, keys: Sequence[str], numbers: Sequence[str], frame: pl.DataFrame) -> None:
        """Adds to the numbers that a table has under a key; of each key the frame has one row."""
        self.con.register("frame", frame.to_arrow())
        same = " AND ".join(f't."{k}" IS NOT DISTINCT FROM f."{k}"' for k in keys)
        sums = ", ".join(f'"{n}" = t."{n}" + f."{n}"' for n in numbers)
        self.con.execute(f"UPDATE {table} t SET {sums} FROM frame f WHERE {same}")
        self.con.execute(
            f"INSERT INTO {table} BY NAME SELECT * FROM frame f WHERE NOT EXISTS (FROM {table} t WHERE {same})"
        )
        self.con.unregister("frame")

    def _land_tables(self, windows: Sequence[Taken]) -> None:
        """A window's rows come from every queue; where they have one key, they are one row."""
        frames: dict[str, list[pl.DataFrame]] = {}
        for taken in windows:
            for name, rows in taken.frames.items():
                frames.setdefault(name, []).append(rows)
        unknown = frames.keys() - self.tables.keys() - {CANARY.name}
        self.apart.tell("table", unknown, "measured by the workers, not landed: no detector here reads it")
        for name in sorted(frames.keys() & self.tables.keys()):
            some = frames[name]
            state.land_table(self.con, name, self.tables[name].merge(pl.concat(some)))

    def _land_findings(self, changes: Sequence[Taken], open_: pl.DataFrame | None) -> None:
        if open_ is None:
            return
        told = [t.frames["changes"] for t in changes if "changes" in t.frames]
        for frame in told:
            state.land_findings(self.con, "finding_changes", frame)
        last = [f.drop("final_at") for f in told] + ([open_] if len(open_) else [])
        if last:
            rows = pl.concat(last).unique("finding_id", keep="last", maintain_order=True)
            self.con.executemany("DELETE FROM findings WHERE finding_id = ?", [[i] for i in rows["finding_id"]])
            state.land_findings(self.con, "findings", rows)

    def _land_numbers(self, to: int) -> None:
        for name in ("positions", "taken", "landed"):
            self.con.execute(f"DELETE FROM {name}")
        state.land_rows(self.con, "positions", [(*p, self._restart(p)) for p in self.readers])
        taken = [
            (place.partition, producer, lo, hi, lost)
            for place, reader in self.readers.items()
            if place.topic == "events"  # of the others the numbers are those before next_window and judged
            for lost, said in ((False, reader.cover), (True, reader.lost))
            for producer, ranges in said.items()
            for lo, hi in ranges.ranges
        ]
        state.land_rows(self.con, "taken", taken)
        counts = [sum(getattr(r, n) for r in self.readers.values()) for n in ("copies", "unequal")]
        counts = [self.copies + counts[0], self.unequal + counts[1]]
        state.land_rows(self.con, "landed", [(to, self.judged, *counts)])
        self.con.execute("UPDATE runs SET ended = ?", [datetime.now(UTC)])

    def _restart(self, place: Place) -> int:
        return self.readers[place].restart(self.positions[place])

    # ---- before it is published ----

    def tidy(self) -> None:
        """Many small parts of an hour become one, views name those that count, and each detector says what it sees."""
        small: dict[tuple[str, int], list[Part]] = {}
        for part in self.parts:
            if part.rows < PART_ROWS:
                small.setdefault((part.stream, part.first_arrival // HOUR_US), []).append(part)
        merged = {key: some for key, some in small.items() if len(some) >= SMALL_PARTS}
        fresh = [lake.joined(self.folder, some) for some in merged.values()]
        gone = {p.path for some in merged.values() for p in some}
        parts = [p for p in self.parts if p.path not in gone] + fresh
        covered = {(s, f): [n, filled] for s, f, n, filled in self.con.execute("FROM coverage").fetchall()}
        with transaction(self.con):
            for table in ("lake_parts", "detectors"):
                self.con.execute(f"DELETE FROM {table}")
            state.land_rows(self.con, "lake_parts", parts)
            state.land_sight(self.con, self.judging, covered)
            state.add_views(self.con, self.folder, parts)
        self.parts = parts


@contextmanager
def transaction(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """All of the block or nothing of it."""
    con.execute("BEGIN")
    try:
        yield
        con.execute("COMMIT")
    except BaseException:
        with suppress(duckdb.Error):  # a commit that failed has been rolled back, and its reason is what counts
            con.execute("ROLLBACK")
        raise


def _stream(taken: Taken) -> str:
    return taken.producer.partition("/")[0]


def counted(taken: Taken) -> list[pl.DataFrame]:
    """Rows by minute of arrival; what was rejected, empty or set aside has none, so its line has no minute."""
    stream, _, partition = taken.producer.partition("/")
    who = [pl.lit(stream).alias("stream"), pl.lit(stream).alias("source")]
    number = pl.lit(int(partition), dtype=pl.Int64).alias("partition")
    frames = []
    if "rows" in taken.frames:
        minute = pl.col("arrival").dt.truncate("1m").alias("minute")
        fates = [(pl.col("fate") == f).sum().cast(pl.Int64).alias(f) for f in COUNTED]
        frames.append(taken.frames["rows"].group_by(minute).agg(pl.len().cast(pl.Int64).alias("read"), *fates))
    if "accounting" in taken.frames:
        lost = taken.frames["accounting"].select(UNPLACED).sum()
        both = lost.select(
            pl.lit(None, dtype=INSTANT).alias("minute"), pl.sum_horizontal(pl.all()).alias("read"), pl.all()
        )
        frames.append(both.filter(pl.col("read") > 0))
    every = [f.with_columns(pl.lit(0, pl.Int64).alias(n) for n in NUMBERS if n not in f.columns) for f in frames]
    columns = ["stream", "source", "partition", "minute", *NUMBERS]
    return [f.with_columns(*who, number).select(columns) for f in every if len(f)]
