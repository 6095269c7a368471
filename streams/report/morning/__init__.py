"""A state's readable file enters, the morning report leaves as data: `screen` and `pages` make it lines and pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import duckdb

from streams.outcome import totals_of
from streams.report.evidence import about, uses
from streams.report.found import Filter, Found, Sight, Span, by_level, is_time, judged_with, removed_before
from streams.report.morning.budget import budget
from streams.report.morning.clocks import clocks
from streams.report.morning.day import Before, data, day_before
from streams.report.morning.keys import keys
from streams.report.morning.races import races
from streams.report.morning.section import Section, Source
from streams.report.morning.storms import storms
from streams.report.reach import lost


@dataclass(frozen=True)
class Report:
    """The morning report as data."""

    span: Span
    wanted: Filter
    levels: dict[str, int]
    sections: list[Section]
    before: Before
    totals: dict[str, int]
    other: list[Found]
    first_page: Found | None
    doubled_key: str
    used: Sequence[str] = ()  # settings that are not the default
    removed: tuple[datetime, str] | None = None
    lost: Sequence[str] = ()  # detectors, and when something that they read was not there

    @property
    def data(self) -> dict[str, Any]:
        """What `--json` shows."""
        then = self.before.span
        return {
            "from": self.span.start if is_time(self.span.last) else None,
            "until": self.span.end if is_time(self.span.last) else None,
            "only": self.wanted.words or None,
            "findings": self.levels,
            "day_before": {
                "from": then and then.start,
                "until": then and then.end,
                "why": self.before.why or None,
                "findings": self.before.levels or None,
            },
            "sections": {s.name: self._told(s) for s in self.sections},
            "other": [f.finding_id for f in self.other],
            "accounting": self.totals,
            "judged_with": list(self.used),
            "rows_since": self.removed[0] if self.removed else None,
            "cannot_say": list(self.lost),
        }

    def _told(self, s: Section) -> dict[str, Any]:
        change = data(self.before, s)
        return {"state": s.state, **s.numbers, "findings": [f.finding_id for f in s.findings], "change": change}


def gather(
    con: duckdb.DuckDBPyConnection, every: Sequence[Found], span: Span, sight: dict[str, Sight], wanted: Filter
) -> Report:
    """All that the report says, before it is said."""
    source = Source(con, span, about(con, every, wanted), sight, wanted)
    sections = _sections(source)
    shown = {f.finding_id for s in sections for f in s.findings}
    twice = [f for f in source.found if f.detector == "duplicate_key" and f.kind == "applied_twice"]
    doubled = source.ask(f"SELECT idempotency_key FROM keys WHERE {uses(twice[0])} LIMIT 1") if twice else []
    totals = totals_of(con)
    return Report(
        span,
        wanted,
        by_level(source.found),
        sections,
        _before(source, every),
        totals,
        [f for f in source.found if f.finding_id not in shown],
        next(iter([*twice, *source.found]), None),
        doubled[0][0] if doubled else "",
        judged_with(con, source.found),
        removed_before(con),
        [*lost(con, wanted)],
    )


def _sections(source: Source) -> list[Section]:
    return [clocks(source), storms(source), races(source), budget(source), keys(source)]


def _before(today: Source, every: Sequence[Found]) -> Before:
    """The same sections of the same time, the day before."""
    wanted, why = day_before(today.span, today.wanted)
    if wanted is None or wanted.since is None or wanted.until is None:
        return Before(why)
    found = about(today.con, every, wanted)
    source = Source(today.con, today.span, found, today.sight, wanted, only_numbers=True)
    return Before("", Span(wanted.since, wanted.until), by_level(found), _sections(source))
