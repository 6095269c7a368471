"""The lake enters, tables and findings leave: reduce, match and judge over the parts in the order of arrival."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import duckdb
import polars as pl

from detectors.detector import Detector, Settings
from detectors.engine import (
    INSTANT,
    Each,
    Hole,
    Judged,
    JudgeState,
    MatchState,
    Partials,
    finding,
    findings,
    judge,
    match,
    open_findings,
    reduce,
)
from detectors.events import COORDINATES, PLACED, SCHEMA, STREAMS
from detectors.table import Meet, Table
from detectors.windows import MINUTE_US, NEVER, STRAY, WINDOW_US, event_time, final_before, place
from streams.landing import lake, state
from streams.landing.horizon import Segments
from streams.landing.lake import Part
from streams.progress import Progress
from streams.settings import fingerprint

BATCH_ROWS = 200_000  # the engine advances when so many wait, or so long a time: each has a cost of its own
BATCH_US = 5 * MINUTE_US
CLOSED_AT_ONCE = 2  # tables: it takes the longest of all steps
JUDGED_ROWS = 1_000_000  # of tables that are judged at once, or so long a time: each time detectors look back
JUDGED_US = 30 * MINUTE_US
LOOKED_BACK_ON = 8  # times as many rows at most; of a fleet of a million nodes they are most of what is in memory
R = TypeVar("R")
COUNTED = ("used", "late", "implausible", "repeated")


class Final(NamedTuple):
    """Tables of the windows lo ≤ w < to; heard_us: arrivals are known up to here. rows: that were read for them."""

    tables: dict[str, pl.DataFrame]
    lo: int
    to: int
    heard_us: int
    rows: int


@dataclass
class Analysis:
    """One run of the engine over the lake. What becomes final is landed at once; accounting counts every row read.

    Of windows since ≤ w < until, where the lake does not hold all rows of the others. heard_us: arrivals are known up
    to here; else to the last one. land: where a table goes, with the first window that is not final after it.
    told, holes: what the rows do not tell, since it is about those that are lost.
    """

    folder: Path
    detectors: Sequence[Detector]
    settings: Settings
    lateness_us: int
    con: duckdb.DuckDBPyConnection
    progress: Progress
    since: int = 0
    until: int = NEVER
    heard_us: int | None = None
    land: Callable[[dict[str, pl.DataFrame], int], None] | None = None
    told: Partials = field(default_factory=dict)
    holes: Sequence[Hole] = ()
    judged: JudgeState = field(default_factory=JudgeState)
    closed: dict[str, dict[str, Any]] = field(default_factory=dict)
    accounting: list[pl.DataFrame] = field(default_factory=list)

    def run(self, parts: Sequence[Part]) -> None:
        """Each step is taken by a thread of its own, one ahead of the next step; this one lands."""
        tables = list({t.name: t for d in self.detectors for t in d.tables}.values())
        ordered = sorted(parts, key=lambda p: (p.first_arrival, p.stream, p.path))
        done = 0
        with _horizon(self.folder) as horizon, ThreadPoolExecutor(CLOSED_AT_ONCE) as closing:
            reduced = ahead(self._reduced(tables, ordered))
            closed = ahead(self._final(tables, ordered, reduced, horizon, closing.map))
            for final, judged in ahead(self._judged(closed)):
                (self.land or self._land_tables)(final.tables, final.to)
                self._land_changes(judged)
                done += final.rows
                self.progress.add(final.rows, done)
        self._land_findings()

    def _land_tables(self, tables: dict[str, pl.DataFrame], _: int) -> None:
        for name, frame in tables.items():
            state.land_table(self.con, name, frame)

    def _reduced(self, tables: Sequence[Table], ordered: Sequence[Part]) -> Iterator[tuple[int, Partials]]:
        """Of each part its latest event time, and its partial tables."""
        columns = {s: _needed(tables, s) for s in STREAMS}
        for part in ordered:
            rows = self._rows(part, columns[part.stream])
            yield _latest(rows), reduce(tables, part.stream, rows)

    def _final(
        self,
        tables: Sequence[Table],
        ordered: Sequence[Part],
        reduced: Iterable[tuple[int, Partials]],
        horizon: Segments,
        each: Each,
    ) -> Iterator[Final]:
        """The tables of windows that became final, many windows at once."""
        last = max((p.last_arrival for p in ordered), default=0)
        heard = last if self.heard_us is None else self.heard_us
        matched, waiting, rows, unsaid, last_row = MatchState(open=self.told), list[Partials](), 0, 0, 0
        for part, later, (latest, partials) in zip(ordered, [*ordered, None][1:], reduced, strict=True):
            last_row = max(last_row, latest)
            waiting.append(partials)
            rows, unsaid = rows + part.rows, unsaid + part.rows
            end = (max(last, last_row) // WINDOW_US + 1) * WINDOW_US if self.until == NEVER else self.until
            to = min(final_before(later.first_arrival, self.lateness_us), self.until) if later else end
            if later and matched.next is not None and rows < BATCH_ROWS and to - matched.next < BATCH_US:
                continue
            before = matched.next
            final, matched = match(tables, matched, _let_go(waiting), to, horizon, each=each)
            rows = 0
            if matched.next is not None and matched.next != before:
                if self.since:
                    final = {n: f.filter(pl.col("window") >= self.since) for n, f in final.items()}
                starts = [int(f["window"].min()) for f in final.values() if len(f)]  # type: ignore[arg-type]
                lo = max(self.since, before if before is not None else min(starts, default=to))
                yield Final(final, min(lo, to), to, min(heard, to + self.lateness_us), unsaid)
                unsaid = 0

    def _judged(self, final: Iterable[Final]) -> Iterator[tuple[Final, Judged]]:
        for f in joined(final, lambda: sum(map(len, self.judged.history.values()))):
            given = (f.tables, f.lo, f.to, f.heard_us, self.settings, self.holes)
            judged, self.judged = judge(self.detectors, self.judged, *given)
            yield f, judged

    def _rows(self, part: Part, columns: list[str]) -> pl.DataFrame:
        raw = lake.read(self.folder, part, columns)
        again, stray = raw["fate"] == "repeated", raw["fate"] == STRAY
        rows = place(raw, part.stream, self.lateness_us)
        rows = rows.with_columns(fate=pl.when(stray).then(pl.lit(STRAY)).otherwise("fate"))
        fate = pl.when(again).then(pl.lit("repeated")).otherwise("fate")
        minute = pl.when(pl.col("told").is_not_null()).then(pl.col("arrival").dt.truncate("1m")).alias("minute")
        counts = rows.select("partition", minute, pl.lit(1).alias("read"), *((fate == f).alias(f) for f in COUNTED))
        counted = counts.group_by("partition", "minute").agg(pl.col("read", *COUNTED).sum().cast(pl.Int64))
        self.accounting.append(counted.with_columns(stream=pl.lit(part.stream)))
        return rows.filter(~again) if again.any() else rows

    def _land_changes(self, judged: Judged) -> None:
        config = fingerprint(self.settings)
        rows: list[tuple[int, dict[str, Any]]] = []
        for d in self.detectors:
            for change in judged.changes.get(d.name, []):
                rows.append((change.window, finding(d, config, change.key, change.episode)))
        self.closed.update({row["finding_id"]: row for _, row in rows})
        at = pl.Series("final_at", [w for w, _ in rows], dtype=pl.Int64).cast(INSTANT)
        state.land_findings(self.con, "finding_changes", findings([r for _, r in rows]).with_columns(at))

    def _land_findings(self) -> None:
        config = fingerprint(self.settings)
        rows = dict(self.closed)
        rows |= {r["finding_id"]: r for r in open_findings(self.detectors, config, self.judged.episodes)}
        state.land_findings(self.con, "findings", findings(list(rows.values())).sort("onset", "finding_id"))


def _let_go(waiting: list[Partials]) -> Iterator[Partials]:
    """Each once, and no longer held here: a batch is most of what is in memory."""
    while waiting:
        yield waiting.pop(0)


def joined(final: Iterable[Final], past_rows: Callable[[], int]) -> Iterator[Final]:
    """Neighbours as one, until they are long, or large beside the past that is looked back on when they are judged."""
    waiting, rows = list[Final](), 0
    for f in final:
        waiting.append(f)
        rows += sum(map(len, f.tables.values()))
        if f.to - waiting[0].lo >= JUDGED_US or rows >= max(JUDGED_ROWS, past_rows() // LOOKED_BACK_ON):
            yield _one(waiting)
            waiting, rows = [], 0
    if waiting:
        yield _one(waiting)


def _one(some: Sequence[Final]) -> Final:
    names = dict.fromkeys(n for f in some for n in f.tables)
    tables = {n: pl.concat([f.tables[n] for f in some if n in f.tables]) for n in names}
    return Final(tables, some[0].lo, some[-1].to, some[-1].heard_us, sum(f.rows for f in some))


def ahead(steps: Iterator[R]) -> Iterator[R]:
    """The same steps, each taken while the one before is still in use."""
    with ThreadPoolExecutor(1) as thread:
        step = thread.submit(next, steps, None)
        while (taken := step.result()) is not None:
            step = thread.submit(next, steps, None)
            yield taken


def _latest(rows: pl.DataFrame) -> int:
    return int(rows["t"].max()) if len(rows) else 0  # type: ignore[arg-type]


@contextmanager
def _horizon(folder: Path) -> Iterator[Segments]:
    place = folder / "horizon"
    shutil.rmtree(place, ignore_errors=True)
    try:
        yield Segments(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _needed(tables: Iterable[Table], stream: str) -> list[str]:
    """The columns that the tables read of a stream, and those that place a row."""
    wanted = {*COORDINATES, *PLACED, "arrival", "environment", "tenant", "weight"} - {"source", "topic"}
    wanted |= set(event_time(stream).meta.root_names())
    for table in tables:
        for source in table.sources:
            if source.stream != stream:
                continue
            wanted |= set(source.where.meta.root_names())
            wanted |= {n for e in source.project.values() for n in e.meta.root_names()}
            names = {*table.key} if not isinstance(source, Meet) else {*source.on, *source.carry}
            if table.columns and not isinstance(source, Meet):
                wanted |= {n for c in table.columns.values() for n in c.first().meta.root_names()}
            wanted |= names - set(source.project)
    return [n for n in (*SCHEMA[stream], *COORDINATES, *PLACED) if n in wanted]
