"""A state's readable file enters, the morning report leaves as data: `screen` and `pages` make it lines and pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import duckdb

from detectors.catalog.timeout_ratio import timeout_ratio
from detectors.clocks import MAJORITY
from streams.landing.state import has
from streams.outcome import TOTALS
from streams.report.evidence import (
    SERVED_BY,
    about,
    evidence,
    in_episode,
    in_space,
    instant,
    of_edge,
    one_side,
    text,
    uses,
)
from streams.report.explain import quoted
from streams.report.found import Filter, Found, Invoke, Sight, Span, judged_with, named, removed_before
from streams.report.morning.budget import budget
from streams.report.morning.clocks import clocks
from streams.report.morning.keys import keys
from streams.report.morning.races import races
from streams.report.morning.section import BADGE, Head, Section, Source, level, of_service, unknown
from streams.report.morning.storms import storms
from streams.report.reach import NO_OBSERVER, NOT_COMPARED, Reach, clocks_seen, compared, reaches, setting
from streams.report.sentences import ahead, count, impossible, sentence, share


@dataclass(frozen=True)
class Report:
    """The morning report as data."""

    span: Span
    wanted: Filter
    levels: dict[str, int]
    sections: list[Section]
    totals: dict[str, int]
    other: list[Found]
    first_page: Found | None
    doubled_key: str
    used: Sequence[str] = ()  # settings that are not the default
    removed: tuple[datetime, str] | None = None

    @property
    def data(self) -> dict[str, Any]:
        """What `--json` shows."""
        return {
            "from": self.span.start,
            "until": self.span.end,
            "only": self.wanted.words or None,
            "findings": self.levels,
            "sections": {
                s.name: {"state": s.state, **s.numbers, "findings": [f.finding_id for f in s.findings]}
                for s in self.sections
            },
            "other": [f.finding_id for f in self.other],
            "accounting": self.totals,
            "judged_with": list(self.used),
            "rows_since": self.removed[0] if self.removed else None,
        }


def gather(
    con: duckdb.DuckDBPyConnection, every: Sequence[Found], span: Span, sight: dict[str, Sight], wanted: Filter
) -> Report:
    """All that the report says, before it is said."""
    source = Source(con, span, about(con, every, wanted), sight, wanted, reaches(con, wanted))
    sections = [clocks(source), storms(source), races(source), budget(source), keys(source)]
    shown = {f.finding_id for s in sections for f in s.findings}
    levels = {level: sum(f.level == level for f in source.found) for level in ("page", "warn")}
    twice = [f for f in source.found if f.detector == "duplicate_key" and f.kind == "applied_twice"]
    doubled = source.ask(f"SELECT idempotency_key FROM keys WHERE {uses(twice[0])} LIMIT 1") if twice else []
    totals = con.sql(TOTALS).pl().row(0, named=True)
    return Report(
        span,
        wanted,
        levels,
        sections,
        totals,
        [f for f in source.found if f.finding_id not in shown],
        next(iter([*twice, *source.found]), None),
        doubled[0][0] if doubled else "",
        judged_with(con, source.found),
        removed_before(con),
    )
