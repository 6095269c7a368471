"""How near subjects came to their thresholds enters, the screen of why-not leaves: fired, near, or unknown and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import duckdb
import polars as pl

from detectors.detector import Detector
from detectors.subjects import ARROW, SLASH, names
from detectors.windows import time_of
from streams.report.found import NO_TIMES, Filter, Found, Invoke, Sight, Span, is_time, named
from streams.report.reach import cannot_say, reaches
from streams.report.sentences import count

LEVELS = ("", "warn", "page")
Who = tuple[str, str, str, str, str]  # detector, kind, subject, environment, tenant
SHOWN = 3  # subjects of each detector, where nobody asked for one
SHOWN_OF_ONE = 40
LOWER = 0.9  # of what was the nearest: a threshold that it would have reached
SERVED = """
SELECT node_id FROM requests WHERE service_name = $name AND side IS DISTINCT FROM 'client' UNION
SELECT node_id FROM requests WHERE caller = $name AND side IS NOT DISTINCT FROM 'client'
"""  # a service's nodes write server lines of its name, and client lines as the caller
OF_NODE = "SELECT DISTINCT caller, service_name FROM requests WHERE node_id = $name OR peer_node = $name"
OF_ENTITY = "SELECT DISTINCT entity_type, entity_id FROM write_log WHERE {} = $name"


@dataclass(frozen=True)
class Near:
    """The nearest that a subject came to the next level that it did not reach, or to the one it reached.

    by: the threshold furthest from being reached; near: amount / wanted, above 1 where it was; at: the window's start.
    None of all where nothing was known.
    """

    level: str
    near: float
    by: str
    amount: float
    wanted: float
    unit: str
    at: datetime
    certain: bool


@dataclass(frozen=True)
class Subject:
    """What is said of one: state is fired, near (which may be far), or unknown; finding: the id of what landed."""

    detector: str
    kind: str
    subject: str
    environment: str
    tenant: str
    state: str
    level: str
    finding: str
    short: str
    near: Near | None
    judged: int
    unknown: int
    why: str

    @property
    def name(self) -> str:
        who = named(self.subject, "/".join(n for n in (self.environment, self.tenant) if n))
        return f"{who} ({self.kind})" if self.kind else who

    @property
    def order(self) -> tuple[Any, ...]:
        """What fired first, then the nearest, then what is unknown."""
        near = self.near.near if self.near else 0.0
        return (("fired", "near", "unknown").index(self.state), -LEVELS.index(self.level), -near, self.name)


@dataclass(frozen=True)
class Answer:
    """Of each detector its subjects in order; blind: why it saw nothing; unsaid: what it could not judge."""

    detector: Detector
    subjects: Sequence[Subject]
    blind: str
    unsaid: Sequence[str]


def answers(
    con: duckdb.DuckDBPyConnection,
    detectors: Sequence[Detector],
    near: Mapping[str, pl.DataFrame],
    found: Sequence[Found],
    sight: Mapping[str, Sight],
    wanted: Filter,
) -> list[Answer]:
    """near: see `again.Landed.near`; found: what landed; sight: who was blind."""
    about = _About(con, wanted)
    known = wanted.in_time(found)
    why = {d: {v.subject: r.why_of(v) for v in r.short} for d, r in reaches(con, wanted).items()}
    unsaid = cannot_say(con, dict(sight), wanted)
    of_subject = {(f.detector, f.kind, f.subject, f.environment, f.tenant): f for f in sorted(known, key=_gravest)}
    given = []
    for d in detectors:
        rows = near[d.name].iter_rows(named=True) if d.name in near else []
        some = [_subject(d, r, of_subject, why.get(d.name, {})) for r in rows if about.is_asked(d, r["subject"])]
        blind = sight[d.name].why if d.name in sight and sight[d.name].blind else ""
        mine = [line for line in unsaid if line.startswith(f"{d.name} ") and not line.startswith(f"{d.name} of ")]
        given.append(Answer(d, sorted(some, key=lambda s: s.order), blind, mine))
    return given


def _gravest(f: Found) -> tuple[bool, datetime]:
    return f.level == "page", f.onset


def _subject(d: Detector, row: Mapping[str, Any], found: Mapping[Who, Found], why: Mapping[str, str]) -> Subject:
    key = (d.name, row["kind"], row["subject"], row["environment"], row["tenant"])
    landed = found.get(key)
    known = row["judged"] > row["unknown"]
    state = "fired" if row["best"] else "near" if known else "unknown"
    said = row["page" if row["best"] else "warn"] or row["warn"]
    reason = why.get(row["subject"], "") or d.unknown_when
    return Subject(
        *key,
        state=state,
        level=LEVELS[row["best"]],
        finding=landed.finding_id if landed else "",
        short=landed.short if landed else "",
        near=_near(d, "page" if row["best"] and row["page"] else "warn", said) if said else None,
        judged=row["judged"],
        unknown=row["unknown"],
        why=reason if row["unknown"] else "",
    )


def _near(d: Detector, level: str, said: Mapping[str, Any]) -> Near:
    unit = next(t.unit for t in d.thresholds if t.name == said["by"])
    at = time_of(said["window"])
    amount = said["amount"] if said["amount"] is not None else 0.0
    return Near(level, said["near"], said["by"], amount, said["wanted"], unit, at, said["certain"])


@dataclass(frozen=True)
class _About:
    """Which subjects have to do with the service and the node asked for."""

    con: duckdb.DuckDBPyConnection
    wanted: Filter
    told: dict[str, set[tuple[Any, ...]]] = field(default_factory=dict)

    def is_asked(self, d: Detector, subject: str) -> bool:
        service, node = self.wanted.service, self.wanted.node
        return (not service or self._of_service(d, subject, service)) and (not node or self._of_node(d, subject, node))

    def _of_service(self, d: Detector, subject: str, service: str) -> bool:
        match d.subject_kind:
            case "service":
                return subject == service
            case "edge":
                return service in names(subject, ARROW)
            case "entity":
                return names(subject, SLASH) in self._rows(OF_ENTITY.format("service_name"), service)
            case "node":
                return (subject,) in self._rows(SERVED, service)
        return False

    def _of_node(self, d: Detector, subject: str, node: str) -> bool:
        match d.subject_kind:
            case "node":
                return subject == node
            case "service":
                return any(subject == service for _, service in self._rows(OF_NODE, node))
            case "edge":
                return names(subject, ARROW) in self._rows(OF_NODE, node)
            case "entity":
                return names(subject, SLASH) in self._rows(OF_ENTITY.format("node_id"), node)
        return False

    def _rows(self, sql: str, name: str) -> set[tuple[Any, ...]]:
        if sql not in self.told:
            self.told[sql] = {*self.con.execute(sql, {"name": name}).fetchall()}
        return self.told[sql]


# ---- the screen -----------------------------------------------------------------------------------------------------


def screen(given: Sequence[Answer], span: Span, wanted: Filter, other: str, invoke: Invoke) -> Iterator[str]:
    """other: what differs from how the state was judged."""
    every = [s for a in given for s in a.subjects]
    since, until = wanted.since or span.start, wanted.until or span.end
    scope = f" ({wanted.subject[3:]})" if wanted.subject else ""
    said = f"{count(len(given), 'detector')}, {count(len({(s.detector, s.name) for s in every}), 'subject')}{scope}"
    days = f"{since:%Y-%m-%d %H:%M} - {span.clock(until)} UTC" if is_time(until) else NO_TIMES
    yield f"{said}, {days}, judged again from what was measured."
    if other:
        yield other
    limit = SHOWN if len(given) > 1 else SHOWN_OF_ONE
    for a in given:
        yield from _of_detector(a, limit, span, invoke)
    yield "% = the nearest it came, of the threshold that was furthest from being reached. Unknown is not well."
    yield f"Next: {_next(every, invoke)}"


def _of_detector(a: Answer, limit: int, span: Span, invoke: Invoke) -> Iterator[str]:
    shown = [s for s in a.subjects if s.state == "fired"]
    rest = [s for s in a.subjects if s.state != "fired"]
    shown += [s for s in rest if limit == SHOWN_OF_ONE or not s.near or s.near.near > 0][:limit]
    left = a.subjects[len(shown) :] if shown == a.subjects[: len(shown)] else [s for s in a.subjects if s not in shown]
    yield f"{a.detector.name}{' (a shadow: nobody is told)' if a.detector.shadow else ''}"
    if a.blind:
        yield f"  blind: {a.blind}. See: {invoke('doctor')}"
        return
    if not a.subjects:
        yield "  nothing to judge: no subject of the kind was measured there"
    width = min(40, max((len(s.name) for s in shown), default=0))
    for s in shown:
        yield f"  {s.name:<{width}}  {_said(s, span)}"
    if left:
        most = max((s.near.near for s in left if s.near), default=0.0)
        nearest = f"at most {_share(most)} of warn" if most > 0 else "nothing of the kind"
        unknown = sum(s.state == "unknown" for s in left)
        dark = f", {unknown} unknown" if unknown else ""
        more = f": {invoke(f'why-not {a.detector.name}')}" if limit == SHOWN else ""
        yield f"  and {count(len(left), 'more', 'more')}, {nearest}{dark}{more}"
    yield from (f"  cannot say: {line.removeprefix(a.detector.name).strip()}" for line in a.unsaid)
    if any(s.unknown and s.state != "unknown" for s in shown):
        yield f"  unknown = {a.detector.unknown_when}"


def _said(s: Subject, span: Span) -> str:
    if s.state == "unknown":
        return f"unknown: {s.why}"
    dark = f"; unknown {s.unknown:,} of {s.judged:,} times" if s.unknown else ""
    if s.state == "fired":
        which = f" {s.short}" if s.short else " with these settings (not in the findings)"
        then = f"; {_how_near(s.near, span)}" if s.near and s.level == "warn" and s.near.level == "page" else ""
        return f"fired: {s.level}{which}{then}{dark}"
    return f"{_how_near(s.near, span) if s.near else 'no threshold'}{dark}"


def _how_near(n: Near, span: Span) -> str:
    at = span.clock(n.at)
    if n.near > 1:  # over the numbers, and yet not of this level
        return f"over {n.level} at {at} ({_numbers(n)}), but only possible, so it warns"
    if n.near <= 0 and n.amount <= 0:
        return f"nothing of the kind ({n.level}: {_number(n.wanted) if n.wanted > 0 else 'any'} {n.unit})"
    return f"{_share(n.near)} of {n.level} at {at} ({_numbers(n)})"


def _share(near: float) -> str:
    return f"{near:.0%}" if near >= 0.01 else "under 1%"


def _numbers(n: Near) -> str:
    return f"{n.by}: {_number(n.amount)} of {_number(n.wanted)} {n.unit}"


def _number(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 and not math.isinf(x) else f"{x:.3g}"


def _next(every: Sequence[Subject], invoke: Invoke) -> str:
    """Of the nearest miss the threshold to try; else what is beside it."""
    misses = [s for s in every if s.state == "near" and s.near and 0 < s.near.near <= 1 and s.near.amount > 0]
    if not misses:
        return invoke("findings")
    nearest = max(misses, key=lambda s: s.near.near if s.near else 0.0)
    assert nearest.near
    lower = f"{nearest.detector}.{nearest.near.by}={nearest.near.amount * LOWER:.3g}"
    return invoke(f"why-not {nearest.detector} --set {lower}")


def data(given: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    """One object a line: a subject, or a detector that saw nothing."""
    for a in given:
        if a.blind or not a.subjects:
            yield {"detector": a.detector.name, "state": "blind" if a.blind else "nothing", "why": a.blind}
        for s in a.subjects if not a.blind else ():
            yield {
                **{n: getattr(s, n) for n in Subject.__dataclass_fields__ if n not in ("near", "short")},
                "near": s.near and {n: getattr(s.near, n) for n in Near.__dataclass_fields__},
            }
