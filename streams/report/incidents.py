"""A state enters, its incidents leave: what caused what and why, what was ruled out, what people said, whom to call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import duckdb

from detectors.subjects import ARROW, OF_SERVICE, SLASH, names
from streams.inventory import Inventory
from streams.problems import Problem, few
from streams.report.evidence import in_space, instant, text
from streams.report.found import OPEN, UNKNOWN, Found, Invoke, Span, shortest
from streams.report.sentences import count, sentence
from streams.said import PREFIX, Word

BEFORE = timedelta(minutes=30)  # a change so long before an onset may have to do with it


@dataclass(frozen=True)
class Incident:
    """One incident, in the names of its columns; short is the shortest unique prefix of its id."""

    incident_id: str
    short: str
    state: str
    level: str
    onset: datetime
    last: datetime
    resolved: datetime | None
    findings: list[dict[str, str]]
    chain: list[dict[str, Any]]
    merged_into: str

    @property
    def columns(self) -> dict[str, Any]:
        return {n: getattr(self, n) for n in self.__dataclass_fields__ if n != "short"}


ALL = """
SELECT incidents.* REPLACE (greatest(last, seen) AS last)
FROM incidents LEFT JOIN (
    SELECT incident_id, max(last) AS seen FROM incident_findings JOIN findings USING (finding_id) GROUP BY ALL
) USING (incident_id)
ORDER BY state = 'merged', level, onset, incident_id
"""


def all_incidents(con: duckdb.DuckDBPyConnection) -> list[Incident]:
    """Pages before warnings, then in the order in which they began; those that went into others at the end.

    `last` is that of its findings now; the table has it as of the incident's last change.
    """
    rows = con.execute(ALL)
    columns = [d[0] for d in rows.description or ()]
    every = [dict(zip(columns, row, strict=True)) for row in rows.fetchall()]
    short = shortest([r["incident_id"] for r in every])
    return [Incident(short=short[r["incident_id"]], **r) for r in every]


def incident_of(every: Sequence[Incident], prefix: str, listing: str) -> Incident:
    """The incident whose id begins so, or the one that it went into."""
    hits = [i for i in every if i.incident_id.startswith(prefix)]
    if len(hits) != 1:
        reason = f"{len(hits)} incidents have ids that begin so" if hits else "no incident has an id that begins so"
        raise Problem(prefix, reason, listing)
    (hit,) = hits
    return incident_of(every, hit.merged_into, listing) if hit.merged_into else hit


@dataclass(frozen=True)
class Book:
    """What the screens of incidents choose from."""

    con: duckdb.DuckDBPyConnection
    findings: dict[str, Found]
    words: Sequence[Word]
    inventory: Inventory
    span: Span
    invoke: Invoke
    now: datetime  # by the clock of who reads: a silence is a promise to them, however old the data is

    def of(self, i: Incident) -> list[Found]:
        """Causes first; what was judged again may have lost some."""
        return [self.findings[f["finding_id"]] for f in i.findings if f["finding_id"] in self.findings]

    def about(self, i: Incident) -> list[Word]:
        """An incident's own words, and silences of its detectors."""
        mine = self.of(i)
        named = {i.incident_id, *(f.detector for f in mine)}
        return [w for w in self.words if w.about == i.incident_id or (w.what == "silence" and w.about in named)]

    def contacts(self, i: Incident) -> list[str]:
        return contacts(self.of(i), self.inventory)

    def between(self, i: Incident) -> tuple[str, str]:
        mine = self.of(i)
        ends, last = {self.span.until(f) for f in mine}, self.span.until(max(mine, key=lambda f: f.last))
        return self.span.clock(min(f.onset for f in mine)), next((e for e in (OPEN, UNKNOWN) if e in ends), last)

    def state(self, i: Incident) -> str:
        """One that closed since nothing more was heard of it is not known to be over."""
        return UNKNOWN if i.resolved and any(f.lost for f in self.of(i)) else i.state


def contacts(mine: Sequence[Found], inventory: Inventory) -> list[str]:
    """Whom to call for findings, causes first."""
    return [str(c) for c in inventory.contacts((services(mine) or [""])[0], mine[0].detector)]


# ---- the list --------------------------------------------------------------------------------------------------------

HEADS = ("ID", "LEVEL", "STATE", "FROM", "TO", "FINDINGS", "BEGAN WITH", "SUBJECT")


def listing(every: Sequence[Incident], book: Book) -> Iterator[str]:
    """Two lines an incident, and whom it concerns."""
    shown = [i for i in every if i.state != "merged" and book.of(i)]
    levels = ", ".join(f"{sum(i.level == level for i in shown)} {level}" for level in ("page", "warn"))
    unresolved = sum(i.resolved is None for i in shown)
    yield f"{count(len(shown), 'incident')} of {count(len(book.findings), 'finding')}: {levels}; {unresolved} open."
    if not shown:
        yield f"Nothing is over a threshold. Next: {book.invoke('report')}"
        return
    rows = [_cells(i, book) for i in shown]
    widths = [max(len(r[n]) for r in (HEADS, *rows)) for n in range(len(HEADS))]
    for i, row in zip([None, *shown], (HEADS, *rows), strict=True):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if i:
            yield f"{'':{widths[0]}}  {_then(book.of(i))}"
            yield f"{'':{widths[0]}}  {'; '.join([f'Call {book.contacts(i)[0]}', *_acknowledged(i, book)])}"
    yield from _of_none(every, book)
    then = book.invoke(f"incident show {shown[0].short}")
    yield f"An incident is what belongs together by cause and time.  Next: {then}"


def _of_none(every: Sequence[Incident], book: Book) -> Iterator[str]:
    """Acknowledgements of incidents that went into others, or are called otherwise since rows were judged again."""
    into = {i.incident_id: i.merged_into for i in every}
    for w in book.words:
        if w.what == "ack" and (other := into.get(w.about, "none")):
            then = f"went into {other}" if w.about in into else "is not here since the rows were judged again"
            yield f"{w.about} {then}. {_spoken(w)}"


def _cells(i: Incident, book: Book) -> tuple[str, ...]:
    first = book.of(i)[0]
    state = "silenced" if _silenced(i, book) else book.state(i)
    return i.short, i.level.upper(), state, *book.between(i), str(len(book.of(i))), first.detector, first.name


def _then(mine: Sequence[Found]) -> str:
    rest = [f"{f.detector} {f.name}" for f in mine[1:]]
    return sentence(mine[0]) + (f", then {', '.join(rest)}" if rest else "")


def _silenced(i: Incident, book: Book) -> bool:
    names = {i.incident_id, *(f.detector for f in book.of(i)[:1])}
    return any(w.silences(names, book.now) for w in book.about(i))


def _acknowledged(i: Incident, book: Book) -> list[str]:
    last = [w for w in book.about(i) if w.what == "ack"][-1:]
    return [f"acknowledged{f' by {w.by}' if w.by else ''}" for w in last]


# ---- one -------------------------------------------------------------------------------------------------------------


def show(i: Incident, book: Book) -> Iterator[str]:
    """The lines of the screen: the chain as a tree, what was ruled out, what people said, whom to call."""
    mine = book.of(i)
    begin, end = book.between(i)
    yield f"{i.level.upper()} {book.state(i)}  {i.incident_id}  {begin} - {end} UTC  {count(len(mine), 'finding')}"
    under = tree(i.chain, mine)
    for f in mine:
        if f.finding_id not in {c for some in under.values() for c, _ in some}:
            yield from _branch(f.finding_id, "", 0, under, book)
            yield f"   Explained by: {unknown(book.con, f)}"
    for e in (e for e in i.chain if e["ruled_out"] and e["effect"] in book.findings):
        yield f"Not the cause of {_name(e['effect'], book.findings)}: {ruled_out(e, book.findings)}"
    for w in book.about(i):
        yield _spoken(w)
    yield from (f"Call: {c}" for c in book.contacts(i))
    yield f"Do now: {book.invoke(f'runbook {mine[0].detector}')}"
    then = "" if _acknowledged(i, book) else f" | {book.invoke(f'incident ack {i.short} --by NAME')}"
    yield f"Next: {book.invoke(f'explain {mine[-1].short}')}{then}"


Under = dict[str, list[tuple[str, str]]]


def tree(chain: Sequence[Mapping[str, Any]], mine: Sequence[Found]) -> Under:
    """Of each finding what it explains and why; of several causes the last one of the chain counts."""
    place = {f.finding_id: n for n, f in enumerate(mine)}
    best: dict[str, Mapping[str, Any]] = {}
    for e in chain:
        if not e["ruled_out"] and e["effect"] in place and e["cause"] in place:
            known = best.setdefault(e["effect"], e)
            best[e["effect"]] = e if place[e["cause"]] > place[known["cause"]] else known
    under: Under = {}
    for f in mine:
        if f.finding_id in best:
            why = best[f.finding_id]
            under.setdefault(why["cause"], []).append((f.finding_id, why["reason"]))
    return under


def _branch(finding: str, reason: str, depth: int, under: Under, book: Book) -> Iterator[str]:
    f, margin = book.findings[finding], "   " * depth
    why = f"   since {reason}" if reason else ""
    yield f"{margin}{'└ ' if depth else ''}{f.short}  {f.detector}  {f.name}  {f.level}, {book.span.between(f)}{why}"
    yield f"{margin}   {sentence(f)}"
    for effect, because in under.get(finding, ()):
        yield from _branch(effect, because, depth + 1, under, book)


def _spoken(w: Word) -> str:
    about = f" ({w.about})" if not w.about.startswith("in-") else ""
    said = f"{w.words[0].upper()}{w.words[1:]}"
    return f"{said} at {w.at:%Y-%m-%d %H:%M} UTC{about}{f': {w.note}' if w.note else ''}"


# ---- of one finding --------------------------------------------------------------------------------------------------


def explained(con: duckdb.DuckDBPyConnection, f: Found, every: Sequence[Found], invoke: Invoke) -> Iterator[str]:
    """The chain that leads to it back to its root, what was ruled out, and the incident that it is in."""
    known = {o.finding_id: o for o in every}
    chain, at = [], f
    while some := [known[c] for c in at.explained_by if c in known]:
        at, *others = sorted(some, key=lambda o: o.onset, reverse=True)
        also = f" (and {', '.join(_name(o.finding_id, known) for o in others)})" if others else ""
        chain.append(_name(at.finding_id, known) + also)
    root = unknown(con, at)
    yield f"Explained by: {' ← '.join([*chain, f'cause {root}' if chain else root])}"
    sql = "SELECT effect, cause, reason FROM causes WHERE ruled_out AND effect = ? ORDER BY cause"
    for effect, cause, reason in con.execute(sql, [f.finding_id]).fetchall():
        if cause in known:
            yield f"Not the cause: {ruled_out({'effect': effect, 'cause': cause, 'reason': reason}, known)}"
    mine = [o for o in every if o.incident and o.incident == f.incident]
    if len(mine) > 1:
        short = shortest([o.incident for o in every if o.incident])[f.incident]
        yield f"One of {len(mine)} findings of an incident: {invoke(f'incident show {short}')}"


def ruled_out(edge: dict[str, Any], known: dict[str, Found]) -> str:
    return f"{known[edge['cause']].short} ({edge['reason']})"


def _name(finding_id: str, known: dict[str, Found]) -> str:
    return f"{known[finding_id].short} {known[finding_id].detector}"


def unknown(con: duckdb.DuckDBPyConnection, root: Found) -> str:
    """What is known of the cause of a finding that no other explains: changes that came shortly before it, if any."""
    changes = f"FROM signals WHERE kind = 'change' AND NOT starts_with(name, '{PREFIX}')"
    if not con.execute(f"SELECT 1 {changes} LIMIT 1").fetchall():
        return "unknown (no deploys or changes in the data)"
    of = _concerned(root)
    subjects = ", ".join(text(n) for n in of)
    near = f"timestamp BETWEEN {instant(root.onset - BEFORE)} AND {instant(root.onset)}"
    sql = f"SELECT timestamp, name, text {changes} AND {in_space(root)} AND subject IN ({subjects}) AND {near}"
    found = con.execute(f"{sql} ORDER BY timestamp DESC, name").fetchall()
    if not found:
        return f"unknown (no change of {' or '.join(of)} in the data of the {BEFORE.seconds // 60} minutes before)"
    told = few([f"{name}{f' {what}' if what else ''} at {at:%H:%M:%S}" for at, name, what in found], 3)
    return f"unknown; preceded by {told} (possible)"


def _concerned(root: Found) -> list[str]:
    """Whose changes may have to do with it: a node is told to be of a service by its name alone."""
    match root.subject_kind:
        case "node":
            return [n for n in (root.subject, root.subject.rpartition("-")[0]) if n]
        case "entity":
            return [names(root.subject, SLASH)[0] or root.subject]
        case _:
            return services([root]) or [root.subject]


def services(mine: Sequence[Found]) -> list[str]:
    """Those that they are about: themselves, or those called."""
    kinds = {f.subject: f.subject_kind for f in mine if f.subject_kind in OF_SERVICE}
    return [names(s, ARROW)[1] if kind == "edge" else s for s, kind in kinds.items()]
