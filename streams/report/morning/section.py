"""A filter and findings enter, the answer of one section leaves: its state, its words and its numbers.

Where a detector was blind or had nothing to look at, the answer is unknown and why, never ok.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from detectors.finding import SHADOW
from detectors.windows import NEVER, us_of
from streams.report.evidence import During, instant, text
from streams.report.found import SHOWN_LEVELS, Filter, Found, Sight, Span
from streams.report.reach import Reach, reach

BADGE = {"page": "🚨 PAGE", "warn": "⚠️ WARN", SHADOW: "shadow", "ok": "OK", "unknown": "unknown"}
FEW = 5  # are shown of many alike; a page always is
Head = tuple[str, str, str]  # name, icon, title


@dataclass(frozen=True)
class Section:
    """One heading with its verdict, the lines under it as (label, text), and its numbers for machines."""

    name: str
    icon: str
    title: str
    state: str
    value: str
    lines: Sequence[tuple[str, str]] = ()
    findings: Sequence[Found] = ()
    numbers: dict[str, Any] = field(default_factory=dict)
    action: str = ""
    more: Mapping[str, int] = field(default_factory=dict)  # findings that the lines leave out, by detector
    shown_by: str = ""  # the command that shows what else they leave out
    runbook: str = ""  # of the detector whose steps come before the action


@dataclass(frozen=True)
class Source:
    """Where a section gets its answer: the file, the findings asked for, who was blind, and the filter.

    only_numbers: nobody reads the lines under its headline.
    """

    con: duckdb.DuckDBPyConnection
    span: Span
    found: Sequence[Found]
    sight: dict[str, Sight]
    wanted: Filter
    only_numbers: bool = False
    _reach: dict[str, Reach | None] = field(default_factory=dict)

    def reach(self, detector: str) -> Reach | None:
        """Which subjects it could judge; looked up once, by whoever asks first."""
        if detector not in self._reach:
            self._reach[detector] = reach(self.con, detector, self.wanted)
        return self._reach[detector]

    def of(self, detector: str) -> list[Found]:
        return [f for f in self.found if f.detector == detector]

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        return self.con.execute(sql).fetchall()

    def one(self, sql: str) -> tuple[Any, ...]:
        return self.ask(sql)[0]

    def blind(self, detector: str) -> str:
        sight = self.sight.get(detector)
        if sight is None:
            return f"{detector} did not run"
        return sight.why if sight.blind else ""

    def not_kept(self, *kept: str) -> str:
        """What the filter asks for that findings can answer and measured tables, which add rows up, cannot."""
        asked = {"node": self.wanted.node, "key": self.wanted.key, "trace": self.wanted.trace}
        names = ", ".join(n for n, v in asked.items() if v and n not in kept)
        return f"not kept by {names}" if names else ""

    def time(self, at: str = "window_start") -> str:
        """The time asked for as SQL."""
        parts = [f"{at} >= {instant(self.wanted.since)}"] if self.wanted.since else []
        parts += [f"{at} < {instant(self.wanted.until)}"] if self.wanted.until else []
        return " AND ".join(parts) or "true"

    @property
    def arrived(self) -> During:
        """The time asked for, for who reads the lake."""
        since, until = self.wanted.since, self.wanted.until
        return (us_of(since) if since else 0, us_of(until) if until else NEVER) if since or until else None

    def where(self) -> str:
        """The filter as SQL over a table with window_start and service_name."""
        service = f"service_name = {text(self.wanted.service)} AND " if self.wanted.service else ""
        return service + self.time()

    def nothing(self, what: str) -> str:
        """no retry_count of service search in this time."""
        time = " in this time" if self.wanted.since or self.wanted.until else ""
        return f"no {what} {self.wanted.subject or 'in any source'}{time}"

    def not_judged(self, detector: str) -> list[tuple[str, str]]:
        """The line that says of whom an answer does not speak."""
        reach = None if self.only_numbers else self.reach(detector)
        return [("Not judged:", reach.words)] if reach and reach.short else []


def first_of(found: Sequence[Found]) -> tuple[list[Found], Counter[str]]:
    """Every page, and the first few others of each detector and kind; of each detector how many more there are."""
    shown, seen, more = [], Counter[tuple[str, str]](), Counter[str]()
    for f in found:
        seen[f.detector, f.kind] += f.level != "page"
        if f.level == "page" or seen[f.detector, f.kind] <= FEW:
            shown.append(f)
        else:
            more[f.detector] += 1
    return shown, more


def level(found: Sequence[Found]) -> str:
    return next(level for level in SHOWN_LEVELS if any(f.level == level for f in found))


def unknown(head: Head, why: str, lines: Sequence[tuple[str, str]] = (), found: Sequence[Found] = ()) -> Section:
    return Section(*head, "unknown", f"unknown ({why})", lines, found, {"why": why})


def of_service(s: Source, *columns: str) -> str:
    asked = [f"{c} = {text(s.wanted.service)}" for c in columns if s.wanted.service]
    return f"({' OR '.join(asked)})" if asked else "true"
