"""Placed rows enter, final tables and findings leave: reduce, match and judge, which replay and live both run.

    rows -> reduce -> partials -> match -> tables of final windows -> judge -> changes of findings

All three are functions of their arguments; what is kept between calls is their state, which the caller holds. Nothing
depends on how rows are batched, sliced or spread over producers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec
import polars as pl
import polars.selectors as cs

from detectors.detector import ASSESSMENT, Detector, Settings, View
from detectors.finding import (
    Change,
    Episode,
    Episodes,
    Key,
    finding_id,
    fold,
    levels,
    named,
    nearness,
    one_a_subject,
)
from detectors.table import SPACE, Meet, Rows, Table, company, hashed
from detectors.windows import HOUR_US, STRAY

Place = tuple[str, int]  # a table's name and which of its sources
Partials = dict[Place, pl.DataFrame]
UNEXPECTED = (Exception, pl.exceptions.PanicException)  # polars panics, and that is no Exception
Failed = Callable[[str, BaseException], None]  # the name of a table or a detector, and what it raised
Closed = tuple[pl.DataFrame | None, Partials]  # a table's rows, and what later ones still need of its sources
Close = Callable[[Table], Closed]
Each = Callable[[Close, Sequence[Table]], Iterable[Closed]]  # map, or one with threads
IN_STATE_US = HOUR_US  # rows that meet over a longer span are kept by the horizon, outside memory


class Horizon(Protocol):
    """Keeps rows that meet over many hours; where it keeps them decides no answer."""

    def seen(self, place: Place, hashes: pl.Series, since: int) -> pl.DataFrame | None:
        """Rows kept in windows ≥ since whose hash is among the given ones (and perhaps a few more)."""
        ...

    def keep(self, place: Place, rows: pl.DataFrame, before: int) -> None:
        """Keeps rows; what lies in windows before `before` is of no use any more."""
        ...


# ---- reduce ---------------------------------------------------------------------------------------------------------


def reduce(tables: Iterable[Table], stream: str, rows: pl.DataFrame, by: Sequence[str] = ()) -> Partials:
    """One batch of placed rows of one stream to partial tables, and to the rows that have others to meet.

    by: columns of the rows that keep apart what would else be added up.
    """
    stray = rows["fate"] == STRAY
    measured = rows.filter(~stray) if stray.any() else rows
    plans: dict[Place, pl.LazyFrame] = {}
    for table in tables:
        for i, source in enumerate(table.sources):
            if source.stream != stream:
                continue
            chosen = table.select(source, (rows if table.strays else measured).lazy())
            if isinstance(source, Meet):
                plans[table.name, i] = chosen.select(*source.kept, *by, hash=key_hash(source.on))
            else:
                plans[table.name, i] = table.first(chosen, by)
    frames = pl.collect_all(list(plans.values()))
    return {place: frame for place, frame in zip(plans, frames, strict=True) if len(frame)}


def key_hash(names: Sequence[str]) -> pl.Expr:
    """Of a key; environment and tenant prefix it."""
    return hashed(pl.concat_str([pl.col(n).cast(pl.String).fill_null("") for n in (*SPACE, *names)], separator="\0"))


# ---- match ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MatchState:
    """Partials of windows that are not final, and the rows that later ones can still meet."""

    next: int | None = None  # the first window that is not final
    open: Mapping[Place, pl.DataFrame] = field(default_factory=dict)


def match(
    tables: Sequence[Table],
    state: MatchState,
    news: Iterable[Partials],
    to: int,
    horizon: Horizon,
    failed: Failed | None = None,
    each: Each = map,
) -> tuple[dict[str, pl.DataFrame], MatchState]:
    """Adds partials and closes the windows before `to`: (tables of the windows next ≤ w < to, state).

    failed: told of a table that raises, which then has no rows in these windows; else it ends the whole. each: closes
    the tables, which know nothing of each other.
    """
    heap = _heap(state, news)
    lo = state.next if state.next is not None else _earliest(heap, to)
    if to <= lo:
        return {}, MatchState(state.next, _joined(heap))
    own = {t.name: {p: heap.pop(p) for p in [*heap] if p[0] == t.name} for t in tables}

    def close(table: Table) -> Closed:
        mine = _joined(own.pop(table.name))
        try:
            return _closed(table, mine, lo, to, horizon)
        except UNEXPECTED as error:
            if failed is None:
                raise
            failed(table.name, error)
            return None, {p: f.filter(pl.col("window") >= to) for p, f in mine.items()}

    final: dict[str, pl.DataFrame] = {}
    kept: Partials = {}
    for table, (rows, rest) in zip(tables, each(close, tables), strict=True):
        kept |= rest
        if rows is not None:
            final[table.name] = rows
    return final, MatchState(to, {p: f for p, f in kept.items() if len(f)})


def _closed(table: Table, pending: Partials, lo: int, to: int, horizon: Horizon) -> Closed:
    """One table of the windows lo ≤ w < to."""
    parts, kept = [], {}
    for i, source in enumerate(table.sources):
        place = (table.name, i)
        if place not in pending:
            continue
        found, kept[place] = _close(table, source, place, pending[place], lo, to, horizon)
        if found is not None and len(found):
            parts.append(found)
    return (table.merge(pl.concat(parts)) if parts else None), kept


def _heap(state: MatchState, news: Iterable[Partials]) -> dict[Place, list[pl.DataFrame]]:
    """All that is not final."""
    heap: dict[Place, list[pl.DataFrame]] = {p: [f] for p, f in state.open.items()}
    for partials in news:
        for place, frame in partials.items():
            heap.setdefault(place, []).append(frame)
    return heap


def _joined(heap: dict[Place, list[pl.DataFrame]]) -> Partials:
    """Each place in one piece; what it is made of is let go of, as it is most of the memory."""
    return {p: pl.concat(heap.pop(p), rechunk=True) for p in [*heap]}


def _earliest(heap: Mapping[Place, Sequence[pl.DataFrame]], to: int) -> int:
    return min((int(f["window"].min()) for some in heap.values() for f in some if len(f)), default=to)  # type: ignore[arg-type]


def _close(
    table: Table, source: Rows, place: Place, pending: pl.DataFrame, lo: int, to: int, horizon: Horizon
) -> tuple[pl.DataFrame | None, pl.DataFrame]:
    ready = pl.col("window") < to
    if not isinstance(source, Meet):
        # after a restart partials of windows that were said before come again
        return pending.filter(ready, pl.col("window") >= lo), pending.filter(~ready)
    if source.back_us <= IN_STATE_US:
        later = pending.filter(pl.col("window") >= to - source.back_us)
        return _meet(table, source, pending, lo, to), later
    now = pending.filter(ready, pl.col("window") >= lo)  # the horizon has what was said before
    earlier = horizon.seen(place, now["hash"], lo - source.back_us)
    horizon.keep(place, now, to - source.back_us)
    now = now if earlier is None else pl.concat([earlier, now], rechunk=True)
    return _meet(table, source, now, lo, to), pending.filter(~ready)


def _meet(table: Table, source: Meet, rows: pl.DataFrame, lo: int, to: int) -> pl.DataFrame | None:
    some = company(rows, source.on, lo, to, source.matters)
    if not len(some):
        return None
    met = source.match(some)
    if table.columns is None:
        return met.drop("group", strict=False)
    return table.first(met.lazy()).collect().with_columns(cs.enum().cast(pl.String))


# ---- judge ----------------------------------------------------------------------------------------------------------


JUDGED = {**ASSESSMENT, "level": pl.Int64(), "opens": pl.Boolean(), "threshold": pl.Float64(), "facts": pl.Null()}
NOTHING = pl.DataFrame(schema=JUDGED)


@dataclass(frozen=True)
class JudgeState:
    """The tables' last hour, as far as detectors look back, and the open episodes of each detector."""

    history: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    episodes: Mapping[str, Episodes] = field(default_factory=dict)


class Hole(NamedTuple):
    """Windows lo ≤ w < hi (µs) that lack what was lost: a stream, or a table."""

    lo: int
    hi: int
    of: str


@dataclass(frozen=True)
class Judged:
    """changes: by detector, in window order. What they rest on is let go at once: it is the most of it all."""

    changes: dict[str, list[Change]]


def judge(
    detectors: Sequence[Detector],
    state: JudgeState,
    tables: Mapping[str, pl.DataFrame],
    lo: int,
    to: int,
    heard_us: int,
    settings: Settings,
    holes: Sequence[Hole] = (),
    failed: Failed | None = None,
) -> tuple[Judged, JudgeState]:
    """Folds the final windows lo ≤ w < to into the open episodes.

    What a detector would say of a hole, and of the windows after it that look back on it, is unknown. So is what one
    that raises would say, where `failed` is told of it; else it ends the whole.
    """
    history = {
        n: pl.concat([f for f in (state.history.get(n), tables.get(n)) if f is not None])
        for n in {*state.history, *tables}
    }
    changes, episodes = {}, dict(state.episodes)
    for detector in detectors:
        before = episodes.get(detector.name, Episodes())
        blind = [(h.lo, h.hi + detector.reach(h.hi - h.lo)) for h in holes if h.of in detector.blinded_by]
        try:
            judged = _assessed(detector, history, lo, to, heard_us, settings)
        except UNEXPECTED as error:
            if failed is None:
                raise
            failed(detector.name, error)
            judged, blind = NOTHING, [*blind, (lo, to)]
        fires = detector.over_loss == "fires"
        episodes[detector.name], changes[detector.name] = fold(before, judged, lo, to, blind, fires)
    needed = {t.name: 0 for d in detectors for t in d.tables}
    for d in detectors:
        for t in d.tables:
            needed[t.name] = max(needed[t.name], d.past_us)
    kept = {n: f.filter(pl.col("window") >= to - needed[n]) for n, f in history.items() if needed.get(n)}
    return Judged(changes), JudgeState(kept, episodes)


def _assessed(
    detector: Detector, history: Mapping[str, pl.DataFrame], lo: int, to: int, heard_us: int, settings: Settings
) -> pl.DataFrame:
    seen = _said(detector, history, lo, to, heard_us, settings)
    return NOTHING if seen is None else levels(detector, seen, settings)


def near_misses(
    detector: Detector, tables: Mapping[str, pl.DataFrame], lo: int, to: int, heard_us: int, settings: Settings
) -> pl.DataFrame | None:
    """How near each subject came to its thresholds in the windows lo ≤ w < to; None where nothing was measured.

    tables: from the detector's past_us before lo on.
    """
    seen = _said(detector, tables, lo, to, heard_us, settings)
    return None if seen is None else one_a_subject(nearness(detector, seen, settings))


def _said(
    detector: Detector, history: Mapping[str, pl.DataFrame], lo: int, to: int, heard_us: int, settings: Settings
) -> pl.DataFrame | None:
    """What a detector says, before anything is compared."""
    if detector.reads.name not in history:
        return None
    since = pl.col("window") >= lo - detector.past_us
    rows = history[detector.reads.name].filter(since)
    also = {t.name: history[t.name].filter(since) for t in detector.also if t.name in history}
    return detector.assess(View(rows, also, lo, to, heard_us, settings))


# ---- findings -------------------------------------------------------------------------------------------------------

INSTANT = pl.Datetime("us", "UTC")
FINDING: dict[str, Any] = {
    "finding_id": pl.String,
    "detector": pl.String,
    "version": pl.Int64,
    "config": pl.String,
    "kind": pl.String,
    "subject_kind": pl.String,
    "subject": pl.String,
    "environment": pl.String,
    "tenant": pl.String,
    "level": pl.String,
    "certainty": pl.String,
    "onset": INSTANT,
    "last": INSTANT,
    "resolved": INSTANT,
    "lost": pl.Boolean,
    "value": pl.Float64,
    "peak": pl.Float64,
    "peak_at": INSTANT,
    "unit": pl.String,
    "threshold": pl.Float64,
    "count": pl.Int64,
    "facts": pl.String,
    "proof": pl.List(pl.Int64),
}


def finding(detector: Detector, config: str, key: Key, episode: Episode) -> dict[str, Any]:
    """An episode as a row of FINDING; proof holds coordinates in the stream of the detector's table.

    lost: nothing more was heard of it, in the end or so far.
    """
    environment, tenant, kind, subject = key
    return {
        "finding_id": finding_id(detector, key, episode.onset),
        "detector": detector.name,
        "version": detector.version,
        "config": config,
        "kind": kind,
        "subject_kind": detector.subject_kind,
        "subject": subject,
        "environment": environment,
        "tenant": tenant,
        "level": named(detector, episode.level),
        "certainty": "certain" if episode.certain else "possible",
        "onset": episode.onset,
        "last": episode.last,
        "resolved": episode.resolved,
        "lost": episode.lost or episode.unknown_since is not None,
        "value": episode.value,
        "peak": episode.peak,
        "peak_at": episode.peak_at,
        "unit": detector.unit_of(kind),
        "threshold": episode.threshold,
        "count": episode.count,
        "facts": msgspec.json.encode(detector.facts_of(kind, episode.facts), order="sorted").decode(),
        "proof": list(episode.proof),
    }


def open_findings(detectors: Iterable[Detector], config: str, episodes: Mapping[str, Episodes]) -> list[dict[str, Any]]:
    """The open episodes as rows of FINDING."""
    mine = [(d, episodes.get(d.name, Episodes())) for d in detectors]
    return [finding(d, config, key, episode) for d, e in mine for key, episode in e.open.items()]


def findings(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=FINDING, orient="row")
