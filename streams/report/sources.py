"""Landed rows enter, what each source is like leaves: the fields it fills, its delay, gaps, stamps and sampling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import duckdb

from detectors.events import SCHEMA, STREAMS, fields
from detectors.windows import DAY_US, HOUR_US, LATENESS_US, MINUTE_US, SECOND_US
from streams.coverage import MAPPED, OWN, format_of
from streams.report.evidence import ENDED

ALWAYS = {"environment", "tenant", "weight"}  # where a source names none, the schema's default
STEP_US = 100_000  # delays are told to a tenth of a second
GAP = timedelta(minutes=5)
ZONE_US = 15 * MINUTE_US  # all zones differ by multiples of this
NEAR_ZONE_US = 2 * MINUTE_US
ENOUGH = 0.001  # of a source's rows may be late
LATENESSES_US = (
    *(LATENESS_US, MINUTE_US, 2 * MINUTE_US, 5 * MINUTE_US, 10 * MINUTE_US, 30 * MINUTE_US),
    *(HOUR_US, 2 * HOUR_US, 6 * HOUR_US, 12 * HOUR_US, DAY_US, 7 * DAY_US),
)
STAMP = {"heartbeats": "client_time"}  # else timestamp: what the sender's clock said

FILLED = """
SELECT source, count(*), max(weight), count(*) FILTER (weight > 1), count(*) FILTER (told),
       CASE WHEN bool_and(epoch_us({stamp}) % 1000000 = 0) THEN 's'
            WHEN bool_and(epoch_us({stamp}) % 1000 = 0) THEN 'ms' ELSE 'us' END,
       min(arrival), max(arrival), {counts}
FROM {stream} GROUP BY source ORDER BY source
"""
DELAYS = """
SELECT source, fate = 'implausible',
       ceil((epoch_us(arrival) - epoch_us({ended})) / {step})::BIGINT AS steps, count(*)
FROM {stream} WHERE told GROUP BY ALL ORDER BY ALL
"""
GAPS = """
WITH minutes AS (
    SELECT stream, source, minute FROM accounting
    WHERE minute < $end AND read > rejected + tombstones GROUP BY ALL),
next AS (
    SELECT *, minute + INTERVAL 1 MINUTE AS since,
           coalesce(lead(minute) OVER (PARTITION BY stream, source ORDER BY minute), $end) AS until
    FROM minutes)
SELECT stream, source, since, until FROM next WHERE until - since >= $least ORDER BY ALL
"""


REJECTS = """
SELECT stream, source, field, reason, count(*) AS n FROM rejects GROUP BY ALL ORDER BY n DESC, field, reason
"""


@dataclass(frozen=True)
class Delay:
    """By how much rows come after their event time, in µs: quantiles, and how many at each multiple of STEP_US.

    Stamps that can't be true have no delay, but may tell of a zone: offset_us is the median with them.
    """

    rows: int
    median_us: int
    p99_us: int
    p999_us: int
    most_us: int
    offset_us: int
    steps: Mapping[int, int]

    @classmethod
    def of(cls, counts: Sequence[tuple[bool, int, int]]) -> Delay | None:
        """counts: whether implausible, how many steps, of how many rows; in the order of the steps."""
        steps = {s: n for implausible, s, n in counts if not implausible}
        every: dict[int, int] = {}
        for _, s, n in sorted(counts, key=lambda c: c[1]):
            every[s] = every.get(s, 0) + n
        if not every:
            return None
        at = {q: STEP_US * _quantile(steps or every, q) for q in (0.5, 0.99, 0.999, 1.0)}
        return cls(sum(steps.values()), at[0.5], at[0.99], at[0.999], at[1.0], STEP_US * _quantile(every, 0.5), steps)

    def later_than(self, us: int) -> int:
        return sum(n for s, n in self.steps.items() if s * STEP_US > us)

    @property
    def zone_us(self) -> int:
        """How far the stamps lie behind their arrival (ahead if negative) where that looks like a zone, else 0."""
        nearest = round(self.offset_us / ZONE_US) * ZONE_US
        return nearest if abs(self.offset_us - nearest) <= NEAR_ZONE_US else 0


def _quantile(steps: Mapping[int, int], share: float) -> int:
    """The smallest step that this share of the rows does not exceed."""
    needed, upto = share * sum(steps.values()), 0
    for step, many in steps.items():
        upto += many
        if upto >= needed:
            return step
    return max(steps)


@dataclass(frozen=True)
class Gap:
    since: datetime
    until: datetime


@dataclass(frozen=True)
class Source:
    """One recording or topic. filled: of each field how many rows fill it; unit: to what its stamps are told."""

    stream: str
    name: str
    format: str
    rows: int
    filled: dict[str, int]
    max_weight: int
    sampled: int
    unit: str
    first: datetime
    last: datetime
    delay: Delay | None
    gaps: tuple[Gap, ...]
    rejected: int
    rejected_most: str

    @property
    def covered(self) -> dict[tuple[str, str], tuple[int, int]]:
        """As the coverage of a state that held only this."""
        return {(self.stream, f): (self.rows, n) for f, n in self.filled.items()}

    @property
    def optional(self) -> dict[str, float]:
        """Shares of the rows that fill what a stream need not have."""
        required = {f.name for f in fields(self.stream) if f.required}
        return {f: n / self.rows for f, n in self.filled.items() if n and f not in required | ALWAYS}


def sources(con: duckdb.DuckDBPyConnection, end: datetime) -> list[Source]:
    """end: of the data; a source that ended long before has a gap there."""
    formats = {
        (s, n): format_of(by) for s, n, by in con.execute("SELECT stream, name, read_by FROM recordings").fetchall()
    }
    gaps = silences(con, end)
    rejects = _rejects(con)
    return [
        Source(
            stream=stream,
            name=name,
            format=formats.get((stream, name), MAPPED if formats else OWN),
            delay=delay,
            gaps=tuple(gaps.get((stream, name), ())),
            rejected=rejects.get((stream, name), (0, ""))[0],
            rejected_most=rejects.get((stream, name), (0, ""))[1],
            **measured,
        )
        for stream in STREAMS
        for name, measured, delay in _of_stream(con, stream)
    ]


def silences(con: duckdb.DuckDBPyConnection, end: datetime) -> dict[tuple[str, str], list[Gap]]:
    """Of each source (stream, name) the stretches before `end`, a whole minute, in which it said nothing."""
    gaps: dict[tuple[str, str], list[Gap]] = {}
    for stream, source, since, until in con.execute(GAPS, {"end": end, "least": GAP}).fetchall():
        gaps.setdefault((stream, source), []).append(Gap(since, until))
    return gaps


def _of_stream(con: duckdb.DuckDBPyConnection, stream: str) -> Iterator[tuple[str, dict[str, Any], Delay | None]]:
    names = [n for n in SCHEMA[stream] if n != "arrival"]
    timed = {"timestamp": " FILTER (told IS NOT NULL)"}  # else it is a record's number
    counts = ", ".join(f'count("{n}"){timed.get(n, "")}' for n in names)
    rows = con.execute(FILLED.format(stream=stream, stamp=STAMP.get(stream, "timestamp"), counts=counts)).fetchall()
    delays: dict[str, list[tuple[bool, int, int]]] = {}
    for source, *count in con.execute(DELAYS.format(stream=stream, ended=ENDED[stream], step=STEP_US)).fetchall():
        delays.setdefault(source, []).append((count[0], count[1], count[2]))
    for source, many, weight, sampled, told, unit, first, last, *filled in rows:
        measured = {
            "rows": many,
            "filled": {**dict(zip(names, filled, strict=True)), "arrival": told},
            "max_weight": weight,
            "sampled": sampled,
            "unit": unit,
            "first": first,
            "last": last,
        }
        yield source, measured, Delay.of(delays.get(source, []))


def _rejects(con: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], tuple[int, str]]:
    """Of each source how many, and what was wrong most often."""
    kinds = (
        "SELECT stream, source, field, reason, count(*) AS n FROM rejects GROUP BY ALL ORDER BY n DESC, field, reason"
    )
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for stream, source, field, reason, many in con.execute(kinds).fetchall():
        before, most = found.get((stream, source), (0, f"{field}: {reason}" if field else reason))
        found[stream, source] = (before + many, most)
    return found


def lateness_us(every: Sequence[Source]) -> int | None:
    """The least of LATENESSES_US with which hardly any row of any source is late; None where no arrival tells."""
    delays = [s.delay for s in every if s.delay and s.delay.rows]
    if not delays:
        return None
    enough = (us for us in LATENESSES_US if all(d.later_than(us) <= ENOUGH * d.rows for d in delays))
    return next(enough, LATENESSES_US[-1])


def grouped(every: Sequence[Source]) -> list[list[Source]]:
    """Sources of one stream and format that fill the same fields: rotated files are one."""
    groups: dict[Any, list[Source]] = {}
    for s in every:
        groups.setdefault((s.stream, s.format, frozenset(f for f, n in s.filled.items() if n)), []).append(s)
    return [*groups.values()]


def span_words(us: int) -> str:
    """As --lateness takes it: 90s, 2m, 1h, 7d."""
    for unit, name in ((DAY_US, "d"), (HOUR_US, "h"), (MINUTE_US, "m")):
        if us % unit == 0:
            return f"{us // unit}{name}"
    return f"{us / SECOND_US:g}s"
