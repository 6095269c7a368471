"""A case enters, its tables and findings leave: by one pass, or sliced, spread, shuffled, stopped and resumed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from detectors.detector import Detector, catalog
from detectors.engine import (
    JudgeState,
    MatchState,
    Partials,
    Place,
    finding,
    findings,
    judge,
    match,
    reduce,
)
from detectors.finding import Episodes
from detectors.table import Table
from detectors.windows import (
    LATENESS_US,
    SLICE_US,
    WINDOW_US,
    event_time,
    final_before,
    place,
    running_arrival,
    stand_in_arrival,
)
from tests.cases import Case


class Memory:
    """The horizon in memory."""

    def __init__(self) -> None:
        self.kept: dict[Place, pl.DataFrame] = {}

    def seen(self, place: Place, hashes: pl.Series, since: int) -> pl.DataFrame | None:
        rows = self.kept.get(place)
        return None if rows is None else rows.filter(pl.col("window") >= since, pl.col("hash").is_in(hashes.implode()))

    def keep(self, place: Place, rows: pl.DataFrame, before: int) -> None:
        old = self.kept.get(place)
        both = rows if old is None else pl.concat([old, rows])
        self.kept[place] = both.filter(pl.col("window") >= before)


Log = dict[str, list[pl.DataFrame]]  # placed rows by stream and partition


def placed(case: Case, *, arrivals: bool = True, lateness_us: int = LATENESS_US) -> Log:
    log: Log = {}
    for stream, parts in case.streams.items():
        log[stream] = []
        for p, part in enumerate(parts):
            told = arrivals and not part["arrival"].null_count()
            if told:
                arrived = running_arrival(part["arrival"])
            else:
                arrived = stand_in_arrival(part.select(event_time(stream).alias("t")).to_series())
            frame = part.with_columns(
                arrival=arrived.cast(pl.Datetime("us", "UTC")),
                told=pl.lit(told),
                stepped_us=(arrived - part["arrival"].cast(pl.Int64)) if told else pl.lit(0, dtype=pl.Int64),
                partition=pl.lit(p, dtype=pl.Int64),
                offset=pl.int_range(len(part), dtype=pl.Int64),
                sub=pl.lit(0, dtype=pl.Int64),
            )
            log[stream].append(place(frame, stream, lateness_us))
    return log


@dataclass
class Result:
    tables: dict[str, pl.DataFrame]
    findings: pl.DataFrame

    def fired(self) -> set[tuple[str, str, str, str]]:
        return set(self.findings.select("detector", "subject", "kind", "level").iter_rows())


class Run:
    """Folds partials in any order; can be stopped, thrown away and resumed from what a restart may know."""

    def __init__(self, tables: Sequence[Table], detectors: Sequence[Detector], case: Case, heard_us: int) -> None:
        self.tables, self.detectors, self.case, self.heard_us = tables, detectors, case, heard_us
        self.matched, self.judged, self.horizon = MatchState(), JudgeState(), Memory()
        self.out: dict[str, list[pl.DataFrame]] = {}
        self.closed: dict[str, dict[str, object]] = {}

    def advance(self, news: Sequence[Partials], to: int) -> None:
        before = self.matched.next
        final, self.matched = match(self.tables, self.matched, news, to, self.horizon)
        if self.matched.next is None or self.matched.next == before:
            return
        starts = [int(f["window"].min()) for f in final.values() if len(f)]  # type: ignore[arg-type]
        lo = before if before is not None else min(starts, default=to)
        for name, frame in final.items():
            self.out.setdefault(name, []).append(frame)
        told, self.judged = judge(
            self.detectors, self.judged, final, lo, to, min(self.heard_us, to + LATENESS_US), self.case.settings
        )
        for d in self.detectors:
            for change in told.changes.get(d.name, []):
                row = finding(d, "", change.key, change.episode)
                self.closed[str(row["finding_id"])] = row

    def result(self) -> Result:
        rows = dict(self.closed)
        for d in self.detectors:
            for key, episode in self.judged.episodes.get(d.name, Episodes()).open.items():
                row = finding(d, "", key, episode)
                rows[str(row["finding_id"])] = row
        tables = {
            t.name: t.merge(pl.concat(self.out[t.name]))
            if t.columns is None
            else pl.concat(self.out[t.name]).sort(t.full_key)
            for t in self.tables
            if t.name in self.out
        }
        return Result(tables, findings(list(rows.values())).sort("finding_id"))


def everything() -> tuple[list[Table], list[Detector]]:
    detectors = [e.detector for e in catalog().values()]
    return list({t.name: t for d in detectors for t in d.tables}.values()), detectors


def ends(log: Log) -> tuple[int, int]:
    """(heard until, the first window after all rows)."""
    heard = max(int(f["arrived"].max()) for fs in log.values() for f in fs if len(f))  # type: ignore[arg-type]
    last = max(int(f["t"].max()) for fs in log.values() for f in fs if len(f))  # type: ignore[arg-type]
    return heard, (max(heard, last) // WINDOW_US + 1) * WINDOW_US


def one_pass(case: Case, log: Log | None = None) -> Result:
    log = log or placed(case)
    tables, detectors = everything()
    heard, to = ends(log)
    run = Run(tables, detectors, case, heard)
    news = [reduce(tables, stream, pl.concat(parts)) for stream, parts in log.items() if parts]
    run.advance(news, to)
    return run.result()


def slices(part: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    for (number,), rows in part.group_by(pl.col("arrived") // SLICE_US, maintain_order=True):
        yield int(number), rows  # type: ignore[call-overload]


def sliced(case: Case, seed: int, log: Log | None = None) -> Result:
    """Slice by slice, shuffled and cut at random inside a slice, the frontier advancing as slices complete."""
    log = log or placed(case)
    dice = random.Random(seed)
    tables, detectors = everything()
    heard, to = ends(log)
    run = Run(tables, detectors, case, heard)
    by_number: dict[int, list[tuple[str, pl.DataFrame]]] = {}
    for stream, parts in log.items():
        for part in parts:
            for number, rows in slices(part):
                by_number.setdefault(number, []).append((stream, rows))
    news: list[Partials] = []
    for number in sorted(by_number):
        pieces = by_number[number]
        dice.shuffle(pieces)
        for stream, rows in pieces:
            mixed = rows.sample(fraction=1.0, shuffle=True, seed=dice.randrange(2**31))
            cut = dice.randrange(len(mixed) + 1)
            news += [reduce(tables, stream, part) for part in (mixed[:cut], mixed[cut:]) if len(part)]
        if dice.random() < 0.2:
            dice.shuffle(news)
            run.advance(news, final_before((number + 1) * SLICE_US, LATENESS_US))
            news = []
    run.advance(news, to)
    return run.result()
