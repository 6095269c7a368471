"""A state's readable file enters; what every screen needs of it leaves: findings, the span of the data, who was blind.

Findings are data here. `sentences` makes their words; the screens choose among them with one Filter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import msgspec

from detectors.events import STREAMS
from detectors.finding import QUIET_US, SHADOW
from detectors.windows import ORDERED_US, time_of
from streams.problems import Problem, few
from streams.settings import span_us

MINUTE = timedelta(minutes=1)
Invoke = Callable[[str], str]  # writes a command as it can be typed here: with its --state
FIRST_TIME = time_of(ORDERED_US)
NO_TIME, NO_TIMES = "no time", "no times, only the order of the records"
OPEN, UNKNOWN = "open", "unknown"  # ends
SHOWN_LEVELS = ("page", "warn", SHADOW)
ORDER = "level, onset, detector, subject, finding_id"  # 'page' < 'warn'
LEAST_ID = 4  # characters after the dash


def named(subject: str, space: str) -> str:
    """A subject as screens show it, with environment and tenant (or one of them) where there are any."""
    return f"{subject} [{space}]" if space else subject


@dataclass(frozen=True)
class Found:
    """One finding, in the names of its columns; short is the shortest unique prefix of its id."""

    finding_id: str
    short: str
    detector: str
    version: int
    config: str
    kind: str
    subject_kind: str
    subject: str
    environment: str
    tenant: str
    level: str
    certainty: str
    onset: datetime
    last: datetime
    resolved: datetime | None
    lost: bool
    value: float
    peak: float
    peak_at: datetime
    unit: str
    threshold: float
    count: int
    facts: dict[str, Any]
    proof: list[str]
    incident: str = ""
    explained_by: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The subject as screens show it, with environment and tenant where there are any."""
        return named(self.subject, "/".join(n for n in (self.environment, self.tenant) if n))

    @property
    def columns(self) -> dict[str, Any]:
        """What `--json` shows: the columns of the table `findings`, facts as an object, and what explains it."""
        return {n: getattr(self, n) for n in self.__dataclass_fields__ if n != "short"}


def is_time(at: datetime) -> bool:
    """Whether it is one, and not the number of a record of which only the order is known."""
    return at >= FIRST_TIME


@dataclass(frozen=True)
class Span:
    """From the first to the last arrival. Screens show times of day, and the date too where there are several.

    Where only the order of records is known they show no times.
    """

    first: datetime
    last: datetime

    @property
    def start(self) -> datetime:
        return self.first.replace(second=0, microsecond=0)

    @property
    def end(self) -> datetime:
        whole = self.last.replace(second=0, microsecond=0)
        return whole if whole == self.last else whole + MINUTE

    @property
    def days(self) -> str:
        """All of it, with the date."""
        if not is_time(self.last):
            return NO_TIMES
        last = f"{self.end:%H:%M}" if self.start.date() == self.end.date() else f"{self.end:%Y-%m-%d %H:%M}"
        return f"{self.start:%Y-%m-%d %H:%M} - {last} UTC"

    def clock(self, at: datetime) -> str:
        if not is_time(at):
            return NO_TIME
        one_day = self.start.date() == (self.end - MINUTE).date()
        return f"{at:%H:%M}" if one_day else f"{at:%m-%d %H:%M}"

    def is_open(self, f: Found) -> bool:
        """Silence lasts without a row that adds to it, and is at its worst when it was last judged."""
        return f.resolved is None and max(f.last, f.peak_at) >= self.last - timedelta(microseconds=QUIET_US)

    def until(self, f: Found) -> str:
        """OPEN, UNKNOWN where nothing more was heard of it, or the last minute that contributed."""
        if not is_time(f.last):
            return NO_TIME
        if self.is_open(f):
            return OPEN
        return UNKNOWN if f.lost else self.clock(f.last - timedelta(microseconds=1))

    def between(self, f: Found) -> str:
        return f"{self.clock(f.onset)} - {self.until(f)}" if is_time(f.onset) else NO_TIME

    def since(self, f: Found) -> str:
        """An onset in the data's first minute may be older than the data."""
        return self.clock(f.onset) + (" or before" if f.onset < self.start + MINUTE else "")


@dataclass(frozen=True)
class Sight:
    """Whether a detector could see, and the fields it would need."""

    detector: str
    missing: tuple[str, ...]

    @property
    def blind(self) -> bool:
        return bool(self.missing)

    @property
    def why(self) -> str:
        return f"no {', '.join(self.missing)} in any source"


def shortest(ids: Sequence[str]) -> dict[str, str]:
    """For each id its shortest prefix that no other has, with at least LEAST_ID characters after the dash."""
    ordered = sorted(set(ids))
    short = {}
    for before, own, after in zip(["", *ordered], ordered, [*ordered[1:], ""], strict=False):
        shared = max(_shared(before, own), _shared(own, after))
        short[own] = own[: max(shared + 1, own.find("-") + 1 + LEAST_ID)]
    return short


def _shared(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


EXPLAINED = "SELECT effect, list(cause ORDER BY cause) FROM causes WHERE NOT ruled_out GROUP BY effect"


def all_findings(con: duckdb.DuckDBPyConnection) -> list[Found]:
    """Pages, warnings, then those of shadows, each in the order in which they began."""
    return found_in(con, f"FROM findings ORDER BY level = '{SHADOW}', {ORDER}")


def found_in(con: duckdb.DuckDBPyConnection, sql: str) -> list[Found]:
    """The rows of a query that has the columns of `findings`."""
    rows = con.execute(sql)
    names = [d[0] for d in rows.description or ()]
    every = [dict(zip(names, row, strict=True)) for row in rows.fetchall()]
    short = shortest([r["finding_id"] for r in every])
    home = dict(con.execute("SELECT finding_id, incident_id FROM incident_findings").fetchall())
    explained = dict(con.execute(EXPLAINED).fetchall())
    for row in every:
        row["facts"] = msgspec.json.decode(row["facts"]) or {}
        row["incident"] = home.get(row["finding_id"], "")
        row["explained_by"] = explained.get(row["finding_id"], [])
    return [Found(short=short[r["finding_id"]], **r) for r in every]


def by_level(found: Sequence[Found]) -> dict[str, int]:
    """How many pages and warnings, and of what nobody is told where there is any."""
    numbers = {level: sum(f.level == level for f in found) for level in SHOWN_LEVELS}
    return {level: n for level, n in numbers.items() if n or level != SHADOW}


def one_of(every: Sequence[Found], prefix: str, listing: str) -> Found:
    """The finding whose id begins so; `listing` is the command that shows all."""
    hits = [f for f in every if f.finding_id.startswith(prefix)]
    if len(hits) == 1:
        return hits[0]
    if not hits:
        raise Problem(prefix, "no finding has an id that begins so", listing)
    those = few([f"{f.short} ({f.detector} {f.name})" for f in hits], 8)
    raise Problem(prefix, f"{len(hits)} findings have ids that begin so: {those}", listing)


def span_of(con: duckdb.DuckDBPyConnection, filled_by: str) -> Span:
    """`filled_by` is the command that brings rows in."""
    of_rows = [list(STREAMS)]
    rows = "FROM lake_parts WHERE stream IN (SELECT unnest(?))"
    timed = f"coalesce(min(first_arrival) FILTER (last_arrival >= {ORDERED_US}), min(first_arrival))"
    row = con.execute(f"SELECT {timed}, max(last_arrival) {rows}", of_rows).fetchall()[0]
    if row[0] is None:  # or all of them have left the lake
        row = con.execute("SELECT epoch_us(min(onset)), epoch_us(max(last)) FROM findings").fetchall()[0]
    if row[0] is None:
        raise Problem("the state", "holds no rows, so nothing can be said", filled_by)
    return Span(time_of(row[0]), time_of(row[1]))


def removed_before(con: duckdb.DuckDBPyConnection) -> tuple[datetime, str] | None:
    """Rows that arrived before this left the state, and which setting of [lake] made them; None where all are there."""
    found = con.execute("SELECT before, why FROM removed ORDER BY before DESC, why LIMIT 1").fetchall()
    return (found[0][0], found[0][1]) if found else None


def judged_with(con: duckdb.DuckDBPyConnection, found: Iterable[Found]) -> list[str]:
    """Of what these were judged with, all that is not the default: retry_storm.warn_per_min = 150."""
    asked = {(f.config, f.detector) for f in found}
    rows = con.execute("SELECT config, name, value FROM settings ORDER BY name, value").fetchall()
    told = [f"{n} = {v}" for config, n, v in rows if any(c == config and _is_of(n, d) for c, d in asked)]
    return list(dict.fromkeys(told))


def _is_of(name: str, detector: str) -> bool:
    """timeout_budget.warn_pct, services.payment.timeout_budget.warn_pct; a service's TTL is for who looks at keys."""
    of = name.split(".")[-2]
    return of == detector or (name.endswith(".idempotency_ttl") and detector in ("duplicate_key", "idempotency_cache"))


def sight_of(con: duckdb.DuckDBPyConnection) -> dict[str, Sight]:
    rows = con.execute("SELECT name, missing FROM detectors ORDER BY name").fetchall()
    return {name: Sight(name, tuple(missing)) for name, missing in rows}


def when(text: str, span: Span) -> datetime:
    """A moment as people type it: 08:15 on the data's last day, an RFC 3339 time, or 2h before the end of the data."""
    if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", text):
        hour, minute, *rest = (int(n) for n in text.split(":"))
        if hour < 24 and minute < 60 and all(s < 60 for s in rest):
            day = (span.end - MINUTE).replace(hour=hour, minute=minute, second=rest[0] if rest else 0)
            return day
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        try:
            return span.end - timedelta(microseconds=span_us(text))
        except Problem:
            raise Problem(text, "not a time", "write 08:15, 2026-01-26T08:15Z, or 2h (before the end)") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Filter:
    """What a screen is to be about; an empty field asks for nothing."""

    since: datetime | None = None
    until: datetime | None = None
    service: str = ""
    node: str = ""
    key: str = ""
    trace: str = ""
    detector: str = ""

    @property
    def subject(self) -> str:
        """ "of service payment, key pay-1", or nothing."""
        said = self._named()
        return f"of {', '.join(said)}" if said else ""

    def _named(self) -> list[str]:
        named = ("detector", "service", "node", "key", "trace")
        return [f"{n} {v}" for n in named if (v := getattr(self, n))]

    @property
    def words(self) -> str:
        """ "only service payment, key pay-1", or nothing."""
        said = self._named()
        said += [f"since {self.since:%Y-%m-%d %H:%M}"] if self.since else []
        said += [f"until {self.until:%Y-%m-%d %H:%M}"] if self.until else []
        return f"only {', '.join(said)}" if said else ""

    def in_time(self, every: Iterable[Found]) -> list[Found]:
        """Those whose episode overlaps the time asked for."""
        return [
            f for f in every if not (self.since and f.last <= self.since) and not (self.until and f.onset >= self.until)
        ]
