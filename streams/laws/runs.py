"""A case enters, its tables and findings leave: by one pass, or sliced, spread, repeated, stopped and resumed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec
import polars as pl

from detectors.detector import Detector
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
from detectors.events import COORDINATES, PLACED, REJECTS, SCHEMA, Decoded
from detectors.finding import Episode, Episodes, Key
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
from streams.laws.case import Case
from streams.sources.arrivals import Arrivals

Log = dict[str, list[pl.DataFrame]]  # placed rows by stream and partition


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


def placed(case: Case, *, arrivals: bool = True, lateness_us: int = LATENESS_US, read_us: int | None = None) -> Log:
    """Rows with offsets from 1 on, so that a row can be put before the first without moving a coordinate.

    read_us: when they are read as files are, without those whose arrival is not believed.
    """
    log: Log = {}
    for stream, parts in case.streams.items():
        columns = [*SCHEMA[stream], *COORDINATES, *PLACED]
        log[stream] = []
        for p, raw in enumerate(parts):
            told = arrivals and raw["arrival"].null_count() == 0
            part = _numbered(raw)
            if told and read_us is not None:
                part = _believed(part, stream, read_us)
            if told:
                arrived = running_arrival(part["arrival"])
            else:
                arrived = stand_in_arrival(part.select(event_time(stream).alias("t")).to_series())
            frame = part.with_columns(
                arrival=arrived.cast(pl.Datetime("us", "UTC")),
                told=pl.lit(told),
                stepped_us=(arrived - part["arrival"].cast(pl.Int64)) if told else pl.lit(0, dtype=pl.Int64),
                source=pl.lit(f"{stream}-{p}"),
                topic=pl.lit(stream),
                partition=pl.lit(p, dtype=pl.Int64),
            )
            fate = pl.lit("")  # place decides
            log[stream].append(place(frame.with_columns(fate=fate).select(columns), stream, lateness_us))
    return log


def _numbered(part: pl.DataFrame) -> pl.DataFrame:
    offset = part["offset"] if "offset" in part.columns else pl.int_range(1, len(part) + 1, eager=True)
    return part.with_columns(offset=offset.cast(pl.Int64), sub=pl.lit(0, dtype=pl.Int64))


def _believed(part: pl.DataFrame, stream: str, read_us: int) -> pl.DataFrame:
    chunk = (len(part), Decoded(part, pl.DataFrame(schema=REJECTS)))
    ((_, sifted),) = Arrivals(stream, read_us, None).believed(iter([chunk]))
    return sifted.events


@dataclass
class Result:
    tables: dict[str, pl.DataFrame]
    findings: pl.DataFrame

    def fired(self, detector: str) -> frozenset[tuple[str, str, str]]:
        mine = self.findings.filter(pl.col("detector") == detector)
        return frozenset(mine.select("subject", "kind", "level").iter_rows())

    def differs(self, other: Result) -> list[str]:
        """The names of the tables that are not equal, and "findings"."""
        names = sorted({*self.tables, *other.tables})
        differing = [
            n
            for n in names
            if n not in self.tables or n not in other.tables or not self.tables[n].equals(other.tables[n])
        ]
        return differing + ([] if self.findings.equals(other.findings) else ["findings"])


@dataclass
class Run:
    """Folds partials; `killed` gives a new run that knows only what a restart may know."""

    tables: Sequence[Table]
    detectors: Sequence[Detector]
    case: Case
    heard_us: int
    matched: MatchState = field(default_factory=MatchState)
    judged: JudgeState = field(default_factory=JudgeState)
    horizon: Memory = field(default_factory=Memory)
    out: dict[str, list[pl.DataFrame]] = field(default_factory=dict)
    closed: dict[str, dict[str, object]] = field(default_factory=dict)

    def advance(self, news: Sequence[Partials], to: int) -> None:
        before = self.matched.next
        final, self.matched = match(self.tables, self.matched, news, to, self.horizon)
        if self.matched.next is None or self.matched.next == before:
            return
        starts = [int(f["window"].min()) for f in final.values() if len(f)]  # type: ignore[arg-type]
        lo = before if before is not None else min(starts, default=to)
        for name, frame in final.items():
            self.out.setdefault(name, []).append(frame)
        heard = min(self.heard_us, to + LATENESS_US)
        told, self.judged = judge(self.detectors, self.judged, final, lo, to, heard, self.case.settings)
        for d in self.detectors:
            for change in told.changes.get(d.name, []):
                row = finding(d, "", change.key, change.episode)
                self.closed[str(row["finding_id"])] = row

    def killed(self) -> Run:
        """match keeps its next window and its horizon, judge its open episodes; the rest is read again."""
        history = {n: pl.concat(frames) for n, frames in self.out.items()}
        episodes = {n: _through_json(e) for n, e in self.judged.episodes.items()}
        matched = MatchState(self.matched.next)
        judged = JudgeState(history, episodes)
        return Run(
            self.tables, self.detectors, self.case, self.heard_us, matched, judged, self.horizon, self.out, self.closed
        )

    def result(self) -> Result:
        rows = dict(self.closed)
        for d in self.detectors:
            for key, episode in self.judged.episodes.get(d.name, Episodes()).open.items():
                row = finding(d, "", key, episode)
                rows[str(row["finding_id"])] = row
        tables = {
            t.name: pl.concat(self.out[t.name]).sort(t.full_key if t.columns else [*t.full_key, "coord"])
            for t in self.tables
            if t.name in self.out
        }
        return Result(tables, findings(list(rows.values())).sort("finding_id"))


class _Saved(msgspec.Struct):
    open: list[tuple[Key, Episode]]
    ended: list[tuple[Key, int]]


def _through_json(episodes: Episodes) -> Episodes:
    text = msgspec.json.encode(_Saved(list(episodes.open.items()), list(episodes.ended.items())))
    saved = msgspec.json.decode(text, type=_Saved)
    return Episodes(dict(saved.open), dict(saved.ended))


def tables_of(detectors: Iterable[Detector]) -> list[Table]:
    return list({t.name: t for d in detectors for t in d.tables}.values())


def ends(log: Log) -> tuple[int, int]:
    """(heard until, the first window after all rows)."""
    heard = max(int(f["arrived"].max()) for fs in log.values() for f in fs if len(f))  # type: ignore[arg-type]
    last = max(int(f["t"].max()) for fs in log.values() for f in fs if len(f))  # type: ignore[arg-type]
    return heard, (max(heard, last) // WINDOW_US + 1) * WINDOW_US


def begin(case: Case, detectors: Sequence[Detector], log: Log) -> tuple[Run, int]:
    heard, to = ends(log)
    return Run(tables_of(detectors), detectors, case, heard), to


def one_pass(case: Case, detectors: Sequence[Detector], log: Log | None = None) -> Result:
    log = log or placed(case)
    run, to = begin(case, detectors, log)
    news = [reduce(run.tables, stream, pl.concat(parts)) for stream, parts in log.items() if parts]
    run.advance(news, to)
    return run.result()


def slices(part: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    for (number,), rows in part.group_by(pl.col("arrived") // SLICE_US, maintain_order=True):
        yield int(number), rows


def batches(rows: pl.DataFrame, dice: random.Random) -> Iterator[pl.DataFrame]:
    """Rows of one stream in any order, whole or cut into two or three."""
    mixed = rows.sample(fraction=1.0, shuffle=True, seed=dice.randrange(2**31))
    cuts = sorted(dice.randrange(len(mixed)) for _ in range(dice.randrange(3)))
    for begin, end in pairwise([0, *cuts, len(mixed)]):
        if begin < end:
            yield mixed[begin:end]


def sliced(case: Case, detectors: Sequence[Detector], seed: int, log: Log | None = None, often: float = 0.2) -> Result:
    """Slice by slice; between two closings rows in any order, over any number of producers, in any batches."""
    log = log or placed(case)
    dice = random.Random(seed)
    run, to = begin(case, detectors, log)
    by_number: dict[int, dict[str, list[pl.DataFrame]]] = {}
    for stream, parts in log.items():
        for part in parts:
            for number, rows in slices(part):
                by_number.setdefault(number, {}).setdefault(stream, []).append(rows)
    since: dict[str, list[pl.DataFrame]] = {}
    for number in sorted(by_number):
        for stream, some in by_number[number].items():
            since.setdefault(stream, []).extend(some)
        if dice.random() < often or number == max(by_number):
            news = [reduce(run.tables, s, b) for s, some in since.items() for b in batches(pl.concat(some), dice)]
            dice.shuffle(news)
            run.advance(news, final_before((number + 1) * SLICE_US, LATENESS_US))
            since = {}
    run.advance([], to)
    return run.result()


def partials_of(tables: Sequence[Table], stream: str, part: pl.DataFrame) -> list[tuple[int, Partials]]:
    """Of each slice of a partition, all measured at once as a worker does."""
    rows = part.with_columns(slice=pl.col("arrived") // SLICE_US)
    said: dict[int, Partials] = {n: {} for n in rows["slice"].unique(maintain_order=True)}
    for of, frame in reduce(tables, stream, rows, ("slice",)).items():
        for (number,), mine in frame.partition_by("slice", as_dict=True, include_key=False).items():
            said[number][of] = mine
    return list(said.items())


Message = tuple[tuple[str, int], int, Partials]  # producer, number, rows


def restarted(case: Case, detectors: Sequence[Detector], seed: int, log: Log | None = None) -> tuple[Result, int, int]:
    """Messages in any order between producers, some twice; killed at random: (result, kills, repeats dropped)."""
    log = log or placed(case)
    dice = random.Random(seed)
    run, to = begin(case, detectors, log)
    messages: dict[tuple[str, int], list[Message]] = {}
    for stream, parts in log.items():
        for p, part in enumerate(parts):
            messages[stream, p] = [((stream, p), *said) for said in partials_of(run.tables, stream, part)]
    end = 1 + max(m[-1][1] for m in messages.values() if m)
    at = dict.fromkeys(messages, 0)
    taken: dict[tuple[tuple[str, int], int], Partials] = {}
    waiting: list[Partials] = []
    kills = repeats = 0
    while any(at[p] < len(m) for p, m in messages.items()):
        producer = dice.choice([p for p, m in messages.items() if at[p] < len(m)])
        for _, number, partials in messages[producer][at[producer] : at[producer] + dice.randrange(1, 20)]:
            at[producer] += 1
            if (producer, number) in taken:
                repeats += 1
                continue
            taken[producer, number] = partials
            waiting.append(partials)
        if dice.random() < 0.3:
            at[producer] = max(0, at[producer] - dice.randrange(10))  # not committed: comes again
        frontier = min(m[at[p]][1] if at[p] < len(m) else end for p, m in messages.items())
        run.advance(waiting, final_before(frontier * SLICE_US, LATENESS_US))
        waiting = []
        if kills < 6 and run.matched.next is not None and dice.random() < 0.05:
            kills += 1
            run = run.killed()
            waiting = list(taken.values())  # what was read since the oldest row that a window still needs
            dice.shuffle(waiting)
    run.advance(waiting, to)
    return run.result(), kills, repeats
