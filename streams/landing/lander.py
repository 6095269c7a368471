"""What the live stages said enters, one database leaves: rows, tables and findings, each number once.

One transaction holds what is landed, the numbers it was and the positions behind them. So a kill at any point leaves
the one before or the one after, and what is read again after it is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import duckdb
import polars as pl

from detectors.detector import Detector
from detectors.events import INSTANT, STREAMS
from detectors.table import Table
from detectors.windows import DAY_US, HOUR_US, LATENESS_US, NEVER, SLICE_US, WINDOW_US, time_of
from streams.coverage import filled_fields
from streams.landing import lake, state, tables
from streams.landing.lake import Part
from streams.live.apart import Apart
from streams.live.canary import CANARY
from streams.live.judge import PRODUCER, judged_with
from streams.live.numbered import Frames, Ranges, Reader, Taken
from streams.settings import Limits

COMPARED = HOUR_US // SLICE_US  # of rows said again, the numbers whose copies are compared
DDL = f"""
CREATE TABLE positions (topic VARCHAR NOT NULL, "partition" BIGINT NOT NULL, "offset" BIGINT NOT NULL);
CREATE TABLE taken (
    "partition" BIGINT NOT NULL, producer VARCHAR NOT NULL, lo BIGINT NOT NULL, hi BIGINT NOT NULL,
    lost BOOLEAN NOT NULL);
CREATE TABLE landed (next_window BIGINT NOT NULL, judged BIGINT NOT NULL, copies BIGINT NOT NULL,
    unequal BIGINT NOT NULL, rebuilt BIGINT NOT NULL, ends_us BIGINT NOT NULL);
INSERT INTO landed VALUES (0, 0, 0, 0, 0, {NEVER});
CREATE SCHEMA {state.RECENT};
CREATE TABLE {state.RECENT}.rejects AS FROM rejects;
DROP TABLE rejects;
"""
GB = 10**9
COUNTED = ("used", "late", "implausible", "stray", "repeated")
UNPLACED = ("rejected", "tombstones", "parked")  # they have no arrival of their own
NUMBERS = ("read", *COUNTED, *UNPLACED)
SUMS = ", ".join(f"sum({n})::BIGINT AS {n}" for n in NUMBERS)
DAY = "date_trunc('day', minute)"
BY_DAY = (  # of days whose rows left the lake
    f"""CREATE OR REPLACE TEMP TABLE days AS
        SELECT stream, source, "partition", {DAY} AS minute, {SUMS} FROM accounting
        WHERE minute < date_trunc('day', $1) GROUP BY ALL""",
    "DELETE FROM accounting WHERE minute < date_trunc('day', $1)",
)


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
        self.run: datetime | None = None  # when it landed first
        self.moved = 0  # tables of hours before it are in the lake
        self._restore()

    def _of(self, partition: int) -> list[str]:
        """The producers whose rows go through a partition."""
        return [p for p in self.producers if int(p.rpartition("/")[2]) % self.queues == partition]

    def _make(self) -> None:
        with transaction(self.con):
            state.make(self.con)
            self.con.execute(DDL)
            state.add_views(self.con, self.folder, [])

    def _restore(self) -> None:
        for topic, partition, offset in self.con.execute("FROM positions").fetchall():
            self.positions[Place(topic, partition)] = offset
        for partition, producer, lo, hi, lost in self.con.execute("FROM taken").fetchall():
            self.readers[Place("events", partition)].restore(producer, lo, hi, lost)
        (numbers,) = self.con.execute("FROM landed").fetchall()
        self.window, self.judged, self.copies, self.unequal, self.rebuilt, self.ends_us = numbers
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
        changes, judge = self._findings()
        lost = {what: ranges.between(self.window, to) for what, ranges in windows.lost_of.items()}
        windows.forget(to)
        fresh = self._write(rows)
        with transaction(self.con):
            self._land_rows(rows, fresh)
            self._land_tables(tables)
            self._land_lost(lost)
            if judge:
                self._land_findings(changes, judge)
            self._land_numbers(to)
        self.window = to
        return bool(rows or tables or changes or judge)

    def _findings(self) -> tuple[list[Taken], Frames | None]:
        """Changes up to judge's last state, and that state; None where it was landed before.

        A state can be in the log before a change that it follows, where a broker ended between the two.
        """
        reader = self.readers[Place("findings", 0)]
        known = reader.upto(self.judged or reader.first() or 0)
        if reader.state is None or not self.judged < reader.state.number <= known:
            return [], None
        self.judged, frames = reader.state.number, reader.state.frames
        self._compare(judged_with(frames["episodes"]))
        changes = reader.below(self.judged)
        reader.forget(self.judged)
        return changes, frames

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
        rejects: dict[int, list[pl.DataFrame]] = {}
        for t in rows:
            if "rejects" in t.frames:
                rejects.setdefault(t.number * SLICE_US // HOUR_US, []).append(rejected(t))
        return parts + [lake.write_part(self.folder, "rejects", h, pl.concat(some)) for h, some in rejects.items()]

    def _land_rows(self, rows: Sequence[Taken], fresh: Sequence[Part]) -> None:
        state.land_rows(self.con, "lake_parts", fresh)
        self.parts += fresh
        for stream in STREAMS:
            mine = [t for t in rows if _stream(t) == stream]
            frames = [t.frames["rows"] for t in mine if "rows" in t.frames]
            if frames:
                self._land_coverage(stream, pl.concat(frames))
                self.rows[stream] += sum(map(len, frames))
        if counts := counted(rows):
            keys = ["stream", "source", "partition", "minute"]
            summed = pl.concat(counts).group_by(keys).agg(pl.col(NUMBERS).sum()).sort(keys)
            self._add("accounting", keys, NUMBERS, summed)

    def _land_coverage(self, stream: str, rows: pl.DataFrame) -> None:
        filled = [(stream, *count) for count in filled_fields(stream, rows)]
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
            state.land_table(self.con, name, self.tables[name].merge(pl.concat(some)), state.RECENT)

    def _land_lost(self, lost: Mapping[str, Sequence[tuple[int, int]]]) -> None:
        """The windows in which something was not there to be measured: each stretch is one row, however it was said."""
        for what in sorted(w for w, ranges in lost.items() if ranges):
            known = "SELECT epoch_us(since), epoch_us(until) FROM lost WHERE what = ?"
            whole = Ranges([(since, until) for since, until in self.con.execute(known, [what]).fetchall()])
            for lo, hi in lost[what]:
                whole.add(lo * WINDOW_US, hi * WINDOW_US)
            self.con.execute("DELETE FROM lost WHERE what = ?", [what])
            state.land_rows(self.con, "lost", [(what, time_of(lo), time_of(hi)) for lo, hi in whole.ranges])

    def _land_findings(self, changes: Sequence[Taken], judge: Frames) -> None:
        told = [t.frames["changes"] for t in changes if "changes" in t.frames]
        for frame in told:
            state.land_findings(self.con, "finding_changes", frame)
        for taken in changes:
            if "incidents" in taken.frames:
                state.land_frame(self.con, "incident_changes", taken.frames["incidents"])
        last = [f.drop("final_at") for f in told] + ([judge["open"]] if "open" in judge else [])
        if last:
            rows = pl.concat(last).unique("finding_id", keep="last", maintain_order=True)
            self.con.executemany("DELETE FROM findings WHERE finding_id = ?", [[i] for i in rows["finding_id"]])
            state.land_findings(self.con, "findings", rows)
            if self.rebuilt:
                self.con.register("news", rows.drop("proof").to_arrow())
                state.only_one(self.con, "news")
                self.con.unregister("news")
        if "ends" in judge:
            self.ends_us = judge["ends"].item()
        if judge:  # an empty frame does not travel
            own = judge["settings"].rows() if "settings" in judge else []
            state.land_settings(self.con, own, time_of(self.judged * WINDOW_US))

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
        state.land_rows(self.con, "landed", [(to, self.judged, *counts, self.rebuilt, self.ends_us)])
        self._land_run(datetime.now(UTC))

    def _land_run(self, now: datetime) -> None:
        """A line for each process that has landed something."""
        if self.run is None:
            self.run = now
            run = (now, now, self.command, LATENESS_US, version("asynchealth"), list[str]())
            state.land_rows(self.con, "runs", [run])
        self.con.execute("UPDATE runs SET ended = ? WHERE started = ?", [now, self.run])

    def _restart(self, place: Place) -> int:
        return self.readers[place].restart(self.positions[place])

    # ---- before it is published ----

    def tidy(self) -> None:
        """Young tables and few parts: whole hours of tables go to the lake, and of its parts some become one.

        Views name the parts that count, and each detector says what it sees.
        """
        old = (self.window * WINDOW_US - tables.YOUNG_US) // HOUR_US
        fresh = tables.written(self.con, self.folder, old) if old > self.moved else []
        if gone := lake.to_join(self.parts, self.closed_us):
            fresh.append(lake.joined(self.folder, gone))
        covered = {(s, f): [n, filled] for s, f, n, filled in self.con.execute("FROM coverage").fetchall()}
        with self._listing(gone, fresh):
            if old > self.moved:
                tables.forget(self.con, old)
            self.con.execute("DELETE FROM detectors")
            state.land_sight(self.con, self.judging, covered)
        self.moved = old

    @property
    def closed_us(self) -> int:
        """What arrived before this is landed, in every partition."""
        covers = [c for p, r in self.readers.items() if p.topic == "events" for c in r.cover.values()]
        return min(c.upto(c.ranges[0][0]) if c.ranges else 0 for c in covers) * SLICE_US

    @contextmanager
    def _listing(self, gone: Sequence[Part], fresh: Sequence[Part]) -> Iterator[None]:
        """One transaction, with which parts leave the list and others come."""
        lake.replaced(self.folder, gone)
        paths = {p.path for p in gone}
        parts = [p for p in self.parts if p.path not in paths] + list(fresh)
        with transaction(self.con):
            yield
            self.con.execute("DELETE FROM lake_parts WHERE path IN (SELECT unnest(?))", [list(paths)])
            state.land_rows(self.con, "lake_parts", fresh)
            state.add_views(self.con, self.folder, parts)
        self.parts = parts

    # ---- what may stay ----

    def shrink(self, limits: Limits) -> list[str]:
        """Hours beyond the limits leave the lake, rows and tables alike; findings stay. Says what room was made."""
        said = []
        if limits.max_gb is not None and (bytes_of := lake.sizes(self.folder, self.parts)):
            rows = self._remove("max_gb", lake.first_that_fits(bytes_of, limits.max_gb * GB))
            if rows:
                before = f"{self._removed('max_gb'):%Y-%m-%d %H:%M} UTC"
                said.append(f"rows before {before} were removed, by max_gb = {limits.max_gb:g}: {rows:,} rows")
        self._remove("keep_days", int(self.closed_us - limits.keep_days * DAY_US) // HOUR_US)
        return said

    def _removed(self, why: str) -> datetime:
        at: datetime = self.con.execute("SELECT before FROM removed WHERE why = ?", [why]).fetchall()[0][0]
        return at

    def _remove(self, why: str, first_hour: int) -> int:
        """The hours before it, but none that still gets rows; how many rows left."""
        hour = min(first_hour, self.closed_us // HOUR_US)
        gone = [p for p in self.parts if p.first_arrival // HOUR_US < hour]
        rows = sum(p.rows for p in gone if p.stream in STREAMS)
        if not gone:
            return 0
        before = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=hour * HOUR_US)
        with self._listing(gone, []):
            known = self.con.execute("SELECT rows FROM removed WHERE why = ?", [why]).fetchall()
            self.con.execute("DELETE FROM removed WHERE why = ?", [why])
            state.land_rows(self.con, "removed", [(why, before, rows + sum(n for (n,) in known))])
            for statement in (*BY_DAY, "DELETE FROM lost WHERE until <= $1"):
                self.con.execute(statement, [before])
            self.con.execute("INSERT INTO accounting BY NAME FROM days")
        return rows


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


def rejected(taken: Taken) -> pl.DataFrame:
    """Rejects as they land; they have no arrival of their own, so that of their slice says when they leave."""
    stream, _, partition = taken.producer.partition("/")
    who = [pl.lit(stream).alias("stream"), pl.lit(stream).alias("source")]
    number = pl.lit(int(partition), dtype=pl.Int64).alias("partition")
    at = pl.lit(taken.number * SLICE_US).cast(INSTANT).alias("arrival")
    return taken.frames["rejects"].with_columns(*who, number, at)


def _stream(taken: Taken) -> str:
    return taken.producer.partition("/")[0]


def counted(taken: Iterable[Taken]) -> list[pl.DataFrame]:
    """Rows by partition and minute of arrival; what was rejected, empty or set aside has no minute, nor has its line.

    A partition's slices are counted together: each frame has a cost of its own, and a slice often has only a few rows.
    """
    by_producer: dict[str, list[Frames]] = {}
    for t in taken:
        by_producer.setdefault(t.producer, []).append(t.frames)
    return [frame for producer, said in by_producer.items() for frame in _counted(producer, said)]


def _counted(producer: str, said: Sequence[Frames]) -> Iterator[pl.DataFrame]:
    stream, _, partition = producer.partition("/")
    who = [pl.lit(stream).alias("stream"), pl.lit(stream).alias("source")]
    number = pl.lit(int(partition), dtype=pl.Int64).alias("partition")
    frames = []
    if rows := [f["rows"].select("arrival", "fate") for f in said if "rows" in f]:
        minute = pl.col("arrival").dt.truncate("1m").alias("minute")
        fates = [(pl.col("fate") == f).sum().cast(pl.Int64).alias(f) for f in COUNTED]
        frames.append(pl.concat(rows).group_by(minute).agg(pl.len().cast(pl.Int64).alias("read"), *fates))
    if accounting := [f["accounting"].select(UNPLACED) for f in said if "accounting" in f]:
        lost = pl.concat(accounting).sum()
        both = lost.select(
            pl.lit(None, dtype=INSTANT).alias("minute"), pl.sum_horizontal(pl.all()).alias("read"), pl.all()
        )
        frames.append(both.filter(pl.col("read") > 0))
    columns = ["stream", "source", "partition", "minute", *NUMBERS]
    for f in frames:
        if len(f):
            zeros = [pl.lit(0, pl.Int64).alias(n) for n in NUMBERS if n not in f.columns]
            yield f.with_columns(*zeros, *who, number).select(columns)
