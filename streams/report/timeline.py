"""A state enters, and what a person saw beside it; one list in the order of time leaves: findings, signals, rows, gaps.

Nothing is on it that was not there to be read at `as_of`: a finding as it stood when its windows were final, a row
that had arrived, a silence as long as it had lasted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

import duckdb

from detectors.subjects import ARROW, names
from detectors.windows import WINDOW_US
from streams.again import lateness_of
from streams.report.corrected import began, marked, raw, shown
from streams.report.described import described
from streams.report.evidence import Row, about, evidence, fetch, in_space, instant, proven_by, text
from streams.report.found import Filter, Found, Span, all_findings, found_in, is_time
from streams.report.sentences import amount, duration, sentence
from streams.report.sources import silences
from streams.said import SPOKEN, Word

What = Literal["finding", "signal", "event", "note", "silence"]
SIGNALS_MOST = 100_000


@dataclass(frozen=True)
class Entry:
    """One line. at: by the clock of who wrote it, and until when it lasted; readable: when it was there to be read.

    evidence: records (requests/0:83702), ids of findings, or the line of a file of notes.
    """

    at: datetime
    what: What
    subject: str
    words: str
    evidence: tuple[str, ...]
    until: datetime | None = None
    level: str = ""
    detector: str = ""
    finding: str = ""
    node: str = ""
    readable: datetime | None = None
    corrected: str = ""  # of a row: its time by the reference's clock, in words; earliest and latest are its ends
    earliest: datetime | None = None
    latest: datetime | None = None
    placed: datetime | None = None  # where it stands, if that is not at `at`


@dataclass(frozen=True)
class Timeline:
    """entries: earliest first. found: the findings they tell of, as they stood at as_of."""

    entries: tuple[Entry, ...]
    found: tuple[Found, ...]
    as_of: datetime | None


def timeline(
    con: duckdb.DuckDBPyConnection,
    span: Span,
    wanted: Filter,
    chosen: Sequence[str] = (),
    notes: Iterable[Entry] = (),
    as_of: datetime | None = None,
) -> Timeline:
    """chosen: ids of the findings it is to be about; else of all that the filter lets through."""
    every = [f for f in _known(con, as_of) if not chosen or f.finding_id in chosen]
    found = about(con, every, wanted)
    told = [e for f in found for e in _told(con, f, as_of)]
    about_all = not chosen and wanted == Filter(wanted.since, wanted.until)
    told += _signals(con, "true" if about_all else _concerning(found, wanted), wanted)
    told += _rows(con, found, wanted, as_of)
    told += _silences(con, span, as_of)
    told += notes
    seen = [e for e in told if as_of is None or (e.readable is not None and e.readable <= as_of)]
    inside = [e for e in seen if is_time(e.at) and _overlaps(e, wanted)]
    ordered = sorted(inside, key=lambda e: (e.placed or e.at, ORDER.index(e.what), e.subject, e.words, e.evidence))
    return Timeline(tuple(ordered), tuple(found), as_of)


ORDER: tuple[What, ...] = ("silence", "signal", "note", "event", "finding")


def _overlaps(e: Entry, wanted: Filter) -> bool:
    begins = e.placed or e.at
    ends = e.until or begins
    return not (wanted.since and ends < wanted.since) and not (wanted.until and begins >= wanted.until)


# ---- findings -------------------------------------------------------------------------------------------------------


def _final_after(con: duckdb.DuckDBPyConnection) -> timedelta:
    """So long after its begin a window is over, and so is the wait for its rows."""
    return timedelta(microseconds=WINDOW_US + lateness_of(con))


def readable_sql(con: duckdb.DuckDBPyConnection) -> str:
    """When a change of a finding could be read, as SQL over `finding_changes`.

    What resolves does so with the window before `final_at`.
    """
    window = f"CASE WHEN resolved IS NULL THEN {WINDOW_US} ELSE 0 END"
    return f"final_at + to_microseconds({lateness_of(con)} + {window})"


def _known(con: duckdb.DuckDBPyConnection, as_of: datetime | None) -> list[Found]:
    if as_of is None:
        return all_findings(con)
    newest = "row_number() OVER (PARTITION BY finding_id ORDER BY final_at DESC, level)"
    known = f"SELECT * FROM finding_changes WHERE {readable_sql(con)} <= {instant(as_of)} QUALIFY {newest} = 1"
    return found_in(con, f"SELECT * EXCLUDE (final_at) FROM ({known})")


def _told(con: duckdb.DuckDBPyConnection, f: Found, as_of: datetime | None) -> Iterator[Entry]:
    """Begins, gets worse, was worst, is over: each as it stood then."""
    states = [s for s in _states(con, f) if as_of is None or s.readable <= as_of]
    name = f"{f.short} {f.detector}"
    for state, final_at, readable in states:
        if state.resolved is not None:
            words = f"{name}: {'nothing more was heard of it, unknown from here on' if state.lost else 'over'}"
            yield _entry(state, state.last, words, readable, level="")
        elif state is states[0].state:
            yield _entry(state, state.onset, f"{name} begins: {sentence(state)}", readable, until=f.last)
        else:
            yield _entry(state, final_at, f"{name} is worse: {sentence(state)}", readable)
    if f.peak_at not in {s.state.peak_at for s in states if s.state.resolved is None}:
        readable = f.peak_at + _final_after(con)
        yield _entry(f, f.peak_at, f"{name} is at its worst: {amount(f, round(f.peak, 1))}", readable)


def _entry(f: Found, at: datetime, words: str, readable: datetime, **more: Any) -> Entry:
    node = f.subject if f.subject_kind == "node" else ""
    mine: dict[str, Any] = {"detector": f.detector, "finding": f.finding_id, "level": f.level, "node": node}
    return Entry(at, "finding", f.name, words, tuple(f.proof), readable=readable, **(mine | more))


class State(NamedTuple):
    """A finding as it stood, the window with which that was final, and when it could be read."""

    state: Found
    final_at: datetime
    readable: datetime


def _states(con: duckdb.DuckDBPyConnection, f: Found) -> list[State]:
    mine = f"FROM finding_changes WHERE finding_id = {text(f.finding_id)} ORDER BY final_at, level DESC"
    beside = con.execute(f"SELECT final_at, {readable_sql(con)} {mine}").fetchall()
    states = found_in(con, f"SELECT * EXCLUDE (final_at) {mine}")
    return [State(replace(s, short=f.short), *when) for s, when in zip(states, beside, strict=True)]


# ---- what happened around them --------------------------------------------------------------------------------------


def _concerning(found: Sequence[Found], wanted: Filter) -> str:
    """Signals of the services, nodes and entities that the findings are about, in their environments and tenants."""
    ours = {f"{in_space(f)} AND ({_of(n)})" for f in found for n in _named(f)}
    asked = {_of(n) for n in (wanted.service, wanted.node) if n}
    return " OR ".join(f"({one})" for one in sorted(ours | asked)) or "false"


def _named(f: Found) -> set[str]:
    edges = names(f.subject, ARROW) if f.subject_kind == "edge" else ()
    return {f.subject, *(n for n in edges if n)}


def _signals(con: duckdb.DuckDBPyConnection, whose: str, wanted: Filter) -> Iterator[Entry]:
    """Deploys, failovers, what operators did; gauges are measurements, no events."""
    since = [f"timestamp >= {instant(wanted.since)}"] if wanted.since else []
    until = [f"timestamp < {instant(wanted.until)}"] if wanted.until else []
    where = " AND ".join(["kind <> 'gauge'", f"NOT ({SPOKEN})", f"({whose})", *since, *until])
    for row in fetch(con, "signals", where, limit=SIGNALS_MOST):
        subject, words = described(row)
        yield Entry(row["timestamp"], "signal", subject, words, (row["record"],), readable=row["arrival"])


def spoken(words: Iterable[Word]) -> Iterator[Entry]:
    """What people said of incidents, and were told of them, by the time at which it was said."""
    for w in words:
        yield Entry(w.at, "note", w.about, f"{w.words}{f': {w.note}' if w.note else ''}", ("signals",), readable=w.at)


def _of(name: str) -> str:
    """Signals of a service, and of its nodes."""
    return f"subject = {text(name)} OR starts_with(subject, {text(name + '-')})"


def _rows(
    con: duckdb.DuckDBPyConnection, found: Sequence[Found], wanted: Filter, as_of: datetime | None
) -> Iterator[Entry]:
    """The rows that prove the findings; and of one key or trace, all there are. They stand at their corrected times."""
    rows: dict[str, Row] = {}
    for f in found:
        rows |= {r["record"]: r for r in proven_by(con, f, evidence(con, f))}
    for column, value in (("idempotency_key", wanted.key), ("trace_id", wanted.trace)):
        if value:
            rows |= {r["record"]: r for r in fetch(con, "requests", f"{column} = {text(value)}")}
    final = None if as_of is None else as_of - _final_after(con)
    for r in marked(con, list(rows.values()), final):
        subject, words = described(r)
        at, placed = raw(r), began(r)
        if r["fate"] == "implausible":
            words, placed = f"{words}; its stamp can't be true, it stands where it arrived", r["arrival"]
        yield Entry(
            at, "event", subject, words, (r["record"],), node=r.get("node_id") or "", readable=r["arrival"],
            corrected=shown(r), earliest=r["bar"].earliest, latest=r["bar"].latest, placed=placed,
        )  # fmt: skip


def _silences(con: duckdb.DuckDBPyConnection, span: Span, as_of: datetime | None) -> Iterator[Entry]:
    """Stretches in which a source said nothing: what happened then is not on this list."""
    end = as_of.replace(second=0, microsecond=0) if as_of else span.end
    for (stream, source), gaps in silences(con, min(end, span.end)).items():
        for gap in gaps:
            lasted = duration((gap.until - gap.since).total_seconds())
            words = f"nothing was logged for {lasted}: what happened then can't be seen"
            yield Entry(gap.since, "silence", source, words, (stream,), gap.until, readable=gap.until)
