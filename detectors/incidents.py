"""Changes of findings enter in the order of final windows, incidents leave: findings joined by cause and time.

A fold, one final window after the other, so how changes are batched does not matter, nor where a successor goes on. A
finding joins the incident of what explains it or of what it explains, or of the same subject's finding before it. An
incident's id is that of the finding it began with and never changes. Where two turn out to be one, the older id stays,
and of the younger it is said into which it went. What shadows find is in none, since nobody is told of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Any

import msgspec
import polars as pl
import xxhash

from detectors.causes import Cause, Finding, between, depths, direct
from detectors.detector import Settings
from detectors.events import INSTANT
from detectors.finding import LEVELS, SHADOW
from detectors.windows import MINUTE_US, WINDOW_US

AGAIN_US = 30 * MINUTE_US  # so long after its end an incident is remembered, and opens again where it goes on
MOST = 64  # findings that an incident lists, beside those that are open: a sick clock may last for weeks

INCIDENT: dict[str, Any] = {
    "incident_id": pl.String,
    "state": pl.String,  # open, reopened, resolved, or merged
    "level": pl.String,
    "onset": INSTANT,
    "last": INSTANT,
    "resolved": INSTANT,
    "findings": pl.List(pl.Struct({"finding_id": pl.String, "role": pl.String})),  # causes first
    "chain": pl.List(
        pl.Struct({"effect": pl.String, "cause": pl.String, "reason": pl.String, "ruled_out": pl.Boolean})
    ),
    "merged_into": pl.String,
}


@dataclass(frozen=True)
class Change:
    """What a finding was when a window was final. number: that window's; at: from when on it was so, in µs."""

    number: int
    at: int
    finding: Finding


@dataclass(frozen=True)
class Incident:
    """began: the number of the window with which it was first told; causes: all edges, also those round a corner.

    findings: without those that ended long ago, where there are too many; onset and level are of all.
    """

    incident_id: str
    began: int
    onset: int
    level: str
    findings: tuple[Finding, ...]
    causes: tuple[Cause, ...] = ()
    closed: bool = False  # it was resolved before

    @property
    def resolved(self) -> int | None:
        """When the last of its findings was; None while one is open."""
        ends = [f.resolved for f in self.findings]
        return None if None in ends else max(e for e in ends if e is not None)


Memory = tuple[Incident, ...]  # of incidents that are open or were so lately, by id


def change(row: Mapping[str, Any], at: int) -> Change:
    """Of a row of FINDING with times in µs. What is resolved at the begin of a window was so with the one before."""
    known = {f: row[f] for f in Finding.__dataclass_fields__ if f != "facts"}
    f = Finding(**known, facts=msgspec.json.decode(row["facts"]) or {})
    return Change(at // WINDOW_US - (f.resolved is not None), at, f)


def fold(
    memory: Memory, changes: Iterable[Change], settings: Settings
) -> tuple[Memory, list[tuple[int, pl.DataFrame]]]:
    """(what to remember, rows of INCIDENT with final_at by the number of the window with which they were so)."""
    told = (c for c in changes if c.finding.level != SHADOW)
    ordered = sorted(told, key=lambda c: (c.number, c.at, c.finding.finding_id, LEVELS.index(c.finding.level)))
    said = []
    for number, some in groupby(ordered, key=lambda c: c.number):
        memory, rows = _step(memory, number, list(some), settings)
        if rows:
            said.append((number, _frame(rows)))
    return memory, said


def _step(
    memory: Memory, number: int, changes: Sequence[Change], settings: Settings
) -> tuple[Memory, list[dict[str, Any]]]:
    """One final window."""
    since = number * WINDOW_US - AGAIN_US
    before = {i.incident_id: i for i in memory if i.resolved is None or i.resolved >= since}
    changed = {c.finding.finding_id: c.finding for c in changes}
    home = {f.finding_id: i.incident_id for i in before.values() for f in i.findings}
    known = {f.finding_id: f for i in before.values() for f in i.findings} | changed
    every = [known[i] for i in sorted(known)]
    edges = list(between([changed[i] for i in sorted(changed)], every, settings))
    joins = [(e.effect, e.cause) for e in edges if not e.ruled_out]
    joins += _again(changed.values(), every)
    after, rows = dict(before), list[dict[str, Any]]()
    for group in _groups(changed, home, joins):
        merged = [before[i] for i in sorted({home[f] for f in group if f in home})]
        for i in merged:
            after.pop(i.incident_id)
        now = _joined(merged, [known[f] for f in group], edges, number)
        at = max(c.at for c in changes if c.finding.finding_id in group)
        after[now.incident_id] = now
        was = next((i for i in merged if i.incident_id == now.incident_id), None)
        if was is None or was != now:
            rows.append(_row(now, at))
        rows += [_merged(i, at, now.incident_id) for i in merged if i.incident_id != now.incident_id]
    return tuple(after[i] for i in sorted(after)), rows


WHO = attrgetter("detector", "kind", "subject_kind", "subject", "environment", "tenant")
BEGAN = attrgetter("onset", "finding_id")


def _again(changed: Iterable[Finding], known: Iterable[Finding]) -> Iterator[tuple[str, str]]:
    """Pairs of findings that are the same trouble, which came back."""
    same: dict[Any, list[Finding]] = {}
    for f in known:
        same.setdefault(WHO(f), []).append(f)
    for f in changed:
        for other in same[WHO(f)]:
            first, second = sorted((f, other), key=BEGAN)
            if f != other and first.resolved is not None and second.onset <= first.resolved + AGAIN_US:
                yield first.finding_id, second.finding_id


def _groups(changed: Iterable[str], home: Mapping[str, str], joins: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Findings that belong together, with all of the incidents that they are in; only groups in which one changed."""
    of: dict[str, set[str]] = {}
    for finding, incident in home.items():
        of.setdefault(incident, set()).add(finding)
    group = {f: of[home[f]] if f in home else {f} for f in {*home, *changed}}
    for a, b in joins:
        if group[a] is not group[b]:
            both = group[a] | group[b]
            group.update(dict.fromkeys(both, both))
    found = {id(group[f]): sorted(group[f]) for f in changed}
    return sorted(found.values())


def _joined(merged: Sequence[Incident], findings: Sequence[Finding], edges: Iterable[Cause], number: int) -> Incident:
    """All of them as one: the oldest incident, or a new one that is named after the first of its root causes."""
    mine = {f.finding_id for f in findings}
    causes = {(c.effect, c.cause): c for i in merged for c in i.causes}
    for e in edges:
        old = causes.get((e.effect, e.cause))
        if e.effect in mine and (old is None or old.ruled_out):  # what was once explained stays so
            causes[e.effect, e.cause] = e
    kept = _kept(findings)
    there = {f.finding_id for f in kept}
    told = tuple(c for _, c in sorted(causes.items()) if c.effect in there and (c.ruled_out or c.cause in there))
    onset = min([i.onset for i in merged] + [f.onset for f in findings])
    level = max([i.level for i in merged] + [f.level for f in findings], key=LEVELS.index)
    if merged:
        oldest = min(merged, key=lambda i: (i.began, i.incident_id))
        closed = oldest.closed or oldest.resolved is not None
        return replace(oldest, onset=onset, level=level, findings=kept, causes=told, closed=closed)
    depth = depths(there, told)
    first = min(kept, key=lambda f: (depth[f.finding_id], f.onset, f.finding_id))
    return Incident(id_of(first.finding_id), number, onset, level, kept, told)


def id_of(finding_id: str) -> str:
    """Of the incident that began with it."""
    return f"in-{xxhash.xxh3_64_hexdigest(finding_id.encode())}"


def _kept(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Those that are open, and of the others those that ended last."""
    over = sorted((f for f in findings if f.resolved is not None), key=attrgetter("resolved", "finding_id"))
    gone = {f.finding_id for f in over[: max(0, len(findings) - MOST)]}
    return tuple(f for f in findings if f.finding_id not in gone)


# ---- rows -----------------------------------------------------------------------------------------------------------


def _row(i: Incident, at: int) -> dict[str, Any]:
    chain = direct(i.causes)
    depth = depths((f.finding_id for f in i.findings), chain)
    ordered = sorted(i.findings, key=lambda f: (depth[f.finding_id], f.onset, f.finding_id))
    causing = {c.cause for c in chain if not c.ruled_out}
    return {
        "incident_id": i.incident_id,
        "state": _state(i),
        "level": i.level,
        "onset": i.onset,
        "last": max(f.last for f in i.findings),
        "resolved": i.resolved,
        "findings": [
            {"finding_id": f.finding_id, "role": _role(depth[f.finding_id] > 0, f.finding_id in causing)}
            for f in ordered
        ],
        "chain": [asdict(c) for c in chain],
        "merged_into": "",
        "final_at": at,
    }


def _state(i: Incident) -> str:
    return "resolved" if i.resolved is not None else "reopened" if i.closed else "open"


def _role(explained: bool, causing: bool) -> str:
    match explained, causing:
        case False, True:
            return "root cause"
        case True, True:
            return "link"
        case True, False:
            return "effect"
        case _:
            return "unexplained"


def _merged(i: Incident, at: int, into: str) -> dict[str, Any]:
    return {**_row(i, at), "state": "merged", "findings": [], "chain": [], "merged_into": into}


def _frame(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    shape = INCIDENT | {"final_at": INSTANT}
    return pl.DataFrame(sorted(rows, key=lambda r: str(r["incident_id"])), schema=shape, orient="row")


# ---- what is new in them --------------------------------------------------------------------------------------------

OPEN = ("open", "reopened")
NEWS = INCIDENT | {"final_at": INSTANT, "was": pl.String}  # the level at which it was open before; else empty


def news(memory: Memory, said: Iterable[tuple[int, pl.DataFrame]]) -> Iterator[tuple[int, pl.DataFrame]]:
    """Of what a fold said after this memory the rows with another level or state than before.

    One that is open at a level for what went into it, and was open at it, is no news.
    """
    known = {i.incident_id: (_state(i), i.level) for i in memory}
    for number, rows in said:
        told = list(_news(known, rows.to_dicts()))
        if told:
            yield number, pl.DataFrame(told, schema=NEWS, orient="row")


def _news(known: dict[str, tuple[str, str]], rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    ended = ("resolved", "")
    merged = {(r["merged_into"], _open_at(known.get(r["incident_id"], ended))) for r in rows if r["merged_into"]}
    for r in rows:
        id_ = r["incident_id"]
        before, now = known.get(id_, ended), (r["state"], r["level"])
        known[id_] = now
        over = not _open_at(before) and not _open_at(now)
        if before != now and not over and (id_, _open_at(now) or None) not in merged:
            yield {**r, "was": _open_at(before)}


def _open_at(known: tuple[str, str]) -> str:
    """The level at which it is open, if it is."""
    state, level = known
    return level if state in OPEN else ""


def row_of(i: Incident) -> dict[str, Any]:
    """As it stands, as a row of INCIDENT."""
    return {n: v for n, v in _row(i, 0).items() if n in INCIDENT}


# ---- for a successor ------------------------------------------------------------------------------------------------


def encoded(memory: Memory) -> bytes:
    return msgspec.json.encode(memory)


def decoded(saved: bytes) -> Memory:
    return msgspec.json.decode(saved, type=Memory)
