"""A state's readable file enters, the morning report leaves: first as data (`gather`), then as lines (`rendered`).

Each section says page, warn, ok or unknown: where a detector was blind or had nothing to look at, the answer is
unknown and why, never ok.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import duckdb

from detectors.catalog.timeout_ratio import timeout_ratio
from detectors.clocks import MAJORITY
from detectors.finding import SHADOW
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
from streams.report.found import (
    NO_TIME,
    NO_TIMES,
    SHOWN_LEVELS,
    Filter,
    Found,
    Invoke,
    Sight,
    Span,
    by_level,
    is_time,
    judged_with,
    named,
    removed_before,
)
from streams.report.reach import NO_OBSERVER, NOT_COMPARED, Reach, clocks_seen, compared, reaches, setting
from streams.report.sentences import ahead, count, impossible, sentence, share

RULE = "━" * 43
COLLECTOR = "collector"  # whom heartbeats name as their observer where they name nobody
MUCH_LATE = 0.10
BADGE = {"page": "🚨 PAGE", "warn": "⚠️ WARN", SHADOW: "shadow", "ok": "OK", "unknown": "unknown"}


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
    runbook: str = ""  # of the detector whose steps come before the action


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
            "from": self.span.start if is_time(self.span.last) else None,
            "until": self.span.end if is_time(self.span.last) else None,
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


@dataclass(frozen=True)
class Source:
    """Where a section gets its answer: the file, the findings asked for, who was blind, and the filter."""

    con: duckdb.DuckDBPyConnection
    span: Span
    found: Sequence[Found]
    sight: dict[str, Sight]
    wanted: Filter
    reach: dict[str, Reach]

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
        reach = self.reach.get(detector)
        return [("Not judged:", reach.words)] if reach and reach.short else []


def gather(
    con: duckdb.DuckDBPyConnection, every: Sequence[Found], span: Span, sight: dict[str, Sight], wanted: Filter
) -> Report:
    """All that the report says, before it is said."""
    source = Source(con, span, about(con, every, wanted), sight, wanted, reaches(con, wanted))
    sections = [_clocks(source), _storms(source), _races(source), _budget(source), _keys(source)]
    shown = {f.finding_id for s in sections for f in s.findings}
    levels = by_level(source.found)
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


def _level(found: Sequence[Found]) -> str:
    return next(level for level in SHOWN_LEVELS if any(f.level == level for f in found))


Head = tuple[str, str, str]  # name, icon, title


def _unknown(head: Head, why: str, lines: Sequence[tuple[str, str]] = (), found: Sequence[Found] = ()) -> Section:
    return Section(*head, "unknown", f"unknown ({why})", lines, found, {"why": why})


# ---- clocks ----------------------------------------------------------------------------------------------------------


SLEWS_MS = 1000  # what is less a time daemon mends by itself, and no clock jumps
STEP = "sudo chronyc makestep   (old: ntpdate -b pool.ntp.org)"


def _clocks(s: Source) -> Section:
    found, stamps = s.of("clock_skew"), s.of("impossible_timestamp")
    lines = [("Impossible stamps:", f"{impossible(f)}, of {f.name} ({BADGE[f.level]})") for f in stamps]
    head = ("clock_skew", "⏰", "CLOCK SKEW")
    why = s.blind("clock_skew")
    why = why or ("" if found else s.not_kept("node"))
    seen = clocks_seen(s.con, _whose(s), s.time())
    why = why or ("" if found or seen.nodes else s.nothing("message that tells of a clock"))
    if why:
        return _unknown(head, why, lines, stamps)
    numbers: dict[str, Any] = {"nodes": seen.nodes, "affected": len({f.subject for f in found})}
    unsaid = [(f"{side}:", why) for side, why in seen.unsaid]
    if not found:
        sides = " or ".join({"Behind": "ahead", "Ahead": "behind"}[side] for side, _ in seen.unsaid) or "off"
        scope = f" {s.wanted.subject}" if s.wanted.subject else ""
        value = f"none of {count(seen.nodes, 'node')}{scope} {sides} by more than {seen.warn_ms:,.0f}ms"
        if unsaid:
            numbers |= {"why": "; ".join(f"{side} {words}" for side, words in unsaid)}
            return Section(*head, "unknown", value, [*unsaid, *lines], stamps, numbers)
        return Section(*head, "ok", f"{value} (OK)", lines, stamps, numbers)
    worst = max(found, key=lambda f: f.peak)
    clock = against(sorted({str(f.facts["reference"]) for f in found}))
    lines = [
        ("Affected nodes:", f"{numbers['affected']} of {seen.nodes}   (against {clock})"),
        *((f"- {f.name}:", f"{off_by(f)}, since {s.span.since(f)}{_ended(s.span, f)}") for f in found),
        *unsaid,
        *lines,
    ]
    action = STEP if worst.peak >= SLEWS_MS else f"below a second let chrony slew; else {STEP}"
    numbers |= {"max_skew_ms": worst.peak}
    every = [*found, *stamps]
    return Section(*head, _level(found), off_by(worst), lines, every, numbers, action, runbook="clock_skew")


def _whose(s: Source) -> str:
    """The filter as SQL over `node`. An observer that sends nothing is no node, unless it is asked for."""
    if s.wanted.node:
        return f"node = {text(s.wanted.node)}"
    served = f" AND {SERVED_BY.replace('node_id IN', 'node IN').format(text(s.wanted.service))}"
    return NO_OBSERVER + (served if s.wanted.service else "")


def against(references: Sequence[str]) -> str:
    """Whom clocks were compared with: the majority, the collector's clock, mail-1's clock."""
    named = {MAJORITY: "the majority", COLLECTOR: f"the {COLLECTOR}'s clock"}
    return " and ".join(named.get(r, f"{r}'s clock") for r in references)


def off_by(f: Found) -> str:
    """+847ms or more; a minus for a clock that is behind."""
    return f"{'+' if ahead(f) else '-'}{math.floor(f.peak):,}ms or more"


def _ended(span: Span, f: Found) -> str:
    return "" if span.is_open(f) else f" until {span.until(f)}"


# ---- retries ---------------------------------------------------------------------------------------------------------


def _storms(s: Source) -> Section:
    found = s.of("retry_storm")
    head = ("retry_storms", "🔄", "RETRY STORMS")
    if why := s.blind("retry_storm"):
        return _unknown(head, why)
    if not found:
        told = "(retry_count IS NOT NULL OR payload_hash IS NOT NULL)"
        said = f"{told} AND {_of_service(s, 'service_name', 'caller')} AND {s.time('arrival')}"
        logged = s.ask(f"SELECT 1 FROM requests WHERE {said} LIMIT 1")
        if why := s.not_kept() or ("" if logged else s.nothing("retry_count or payload_hash")):
            return _unknown(head, why)
        return Section(*head, "ok", "None detected ✅", numbers={"storms": 0})
    edges = {f.subject for f in found}
    timeouts = [f for f in s.of("timeout_ratio") if f.subject in edges]
    lines, storms = [], []
    for f in found:
        totals = _totals(s, f)
        storms.append({"edge": f.subject, "peak_per_min": f.peak, "at": f.peak_at, **totals})
        peak = f"{f.peak:,.0f}/min at {s.span.clock(f.peak_at)}, {f.facts['share']:.0%} of attempts"
        lines.append((f"- {f.name}:", f"{peak}, {_load(f)}"))
        late = f"{totals['timeouts']:,} of {totals['attempts']:,} attempts timed out"
        percent = f"({totals['timeouts'] / totals['attempts']:.0%})" if totals["attempts"] else ""
        lines.append((f"- {s.span.between(f)}:", f"{count(totals['retries'], 'retry', 'retries')}; {late} {percent}"))
    every = [*found, *timeouts]
    return Section(*head, _level(found), str(len(found)), lines, every, {"storms": storms}, "Backoff multiplier 2→3")


def _of_service(s: Source, *columns: str) -> str:
    asked = [f"{c} = {text(s.wanted.service)}" for c in columns if s.wanted.service]
    return f"({' OR '.join(asked)})" if asked else "true"


def _load(f: Found) -> str:
    """By how much retries multiply what is wanted; without any first attempt there is nothing to multiply."""
    load = f.facts["load"]
    return "no first attempts" if load is None else f"load x{load:.2f}"


def _totals(s: Source, f: Found) -> dict[str, int]:
    """Retries, timeouts and attempts of an edge over its whole episode."""
    edge = f"{in_space(f)} AND {of_edge(f)}"
    side = one_side(s.con, f"{edge} AND arrival >= {instant(f.onset)}")
    sums = ", ".join(f"coalesce(sum({n}), 0)::BIGINT" for n in ("retries", "timeouts", "attempts"))
    row = s.one(f"SELECT {sums} FROM calls WHERE {edge} AND {side} AND {in_episode(f)}")
    totals = dict(zip(("retries", "timeouts", "attempts"), row, strict=True))
    if f.facts.get("guessed"):
        told = f"SELECT coalesce(sum(weight), 0)::BIGINT FROM repeats WHERE {edge} AND {side} AND {in_episode(f)}"
        totals["retries"] += s.one(told)[0]
    return totals


# ---- writes ----------------------------------------------------------------------------------------------------------


def _races(s: Source) -> Section:
    found = s.of("concurrent_writers")
    head = ("race_conditions", "🔀", "RACE CONDITIONS")
    if why := s.blind("concurrent_writers"):
        return _unknown(head, why)
    if not found:
        served = f" OR {SERVED_BY.format(text(s.wanted.service))}" if s.wanted.service else ""
        asked = f"({_of_service(s, 'service_name')}{served}) AND {s.time('arrival')}"
        why = s.not_kept() or ("" if compared(s.con) else NOT_COMPARED)
        if why := why or ("" if compared(s.con, asked) else s.nothing("comparable write")):
            return _unknown(head, why)
        return Section(*head, "ok", "None detected ✅", numbers={"incidents": 0})
    lines = [(f"- {f.name}:", f"{count(f.peak, 'conflict')}/hour") for f in found]
    conflicts = {f.subject: f.peak for f in found}
    numbers = {"incidents": len(found), "conflicts_per_hour": conflicts}
    incidents = count(len(found), "incident")
    return Section(*head, _level(found), incidents, lines, found, numbers, "Review optimistic lock")


# ---- timeouts --------------------------------------------------------------------------------------------------------

P99 = """
WITH sided AS (
    SELECT *, side IS DISTINCT FROM 'server' AS client,
           bool_or(side IS DISTINCT FROM 'server') OVER (PARTITION BY environment, tenant, service_name) AS has_client
    FROM durations WHERE {where}),
summed AS (
    SELECT environment, tenant, service_name, used_pct, sum(calls) AS calls, max(timeout_us) AS timeout_us
    FROM sided WHERE client = has_client GROUP BY ALL),
counted AS (
    SELECT *, sum(calls) OVER (whole ORDER BY used_pct) AS below, sum(calls) OVER whole AS attempts,
           max(timeout_us) OVER whole AS longest_us
    FROM summed WINDOW whole AS (PARTITION BY environment, tenant, service_name))
SELECT service_name, concat_ws('/', nullif(environment, ''), nullif(tenant, '')), min(used_pct) AS pct,
       max(longest_us) / 1e6 AS timeout_s
FROM counted WHERE below * 100 >= attempts * 99
GROUP BY environment, tenant, service_name ORDER BY pct DESC, service_name
"""


def _budget(s: Source) -> Section:
    found = s.of("timeout_budget")
    head = ("timeout_budget", "⏱️", "TIMEOUT BUDGET")
    if why := s.blind("timeout_budget"):
        return _unknown(head, why)
    if found:
        worst = max(found, key=lambda f: (f.level == "page", f.peak))
        timeout_s, before = _timeout_s(s, worst), worst.facts["before_pct"]
        headroom_s = max(0.0, worst.facts["headroom_ms"] / 1000)
        numbers = {"service": worst.subject, "used_pct": worst.peak, "headroom_s": headroom_s}
        if timeout_s is None:
            lines = [("Headroom:", f"{headroom_s:.1f} seconds  ({worst.subject}; its rows are no longer there)")]
            return Section(*head, _level(found), f"{worst.peak:.0f}% utilized", lines, found, numbers)
        past = ""
        if before is not None:
            past = f"; before {s.span.clock(worst.onset)}: {before:.0f}%, {timeout_s * (1 - before / 100):.1f}s"
        p99 = f"({worst.subject}: p99 {timeout_s * worst.peak / 100:.1f}s of {timeout_s:.1f}s{past})"
        lines = [("Headroom:", f"{headroom_s:.1f} seconds  {p99}"), *s.not_judged("timeout_budget"), *_timed_out(s)]
        return Section(*head, _level(found), f"{worst.peak:.0f}% utilized", lines, found, numbers)
    reach = s.reach.get("timeout_budget")
    why = s.not_kept() or ("" if reach and reach.volumes else s.nothing("call with a timeout"))
    if why or not reach or reach.none:
        return _unknown(head, why or (reach.why if reach else ""), [] if s.not_kept() else _timed_out(s))
    judged = {v.subject for v in reach.volumes if v.enough}
    rows = s.ask(P99.format(where=s.where()))
    service, pct, timeout_s = next((who, *n) for name, space, *n in rows if (who := named(name, space)) in judged)
    headroom_s = max(0.0, timeout_s * (1 - pct / 100))
    lines = [("Headroom:", f"{headroom_s:.1f} seconds  ({service}, the tightest: p99 of {timeout_s:.1f}s)")]
    lines += [*s.not_judged("timeout_budget"), *_timed_out(s)]
    numbers = {"service": service, "used_pct": pct, "headroom_s": headroom_s}
    return Section(*head, "ok", f"{pct:.0f}% utilized (OK)", lines, numbers=numbers)


TIMED_OUT = """
WITH sided AS (
    SELECT *, coalesce(caller, '?') || '->' || service_name AS edge, side IS DISTINCT FROM 'server' AS client,
           bool_or(side IS DISTINCT FROM 'server') OVER (PARTITION BY environment, tenant, caller, service_name)
               AS has_client
    FROM calls WHERE {where})
SELECT edge, concat_ws('/', nullif(environment, ''), nullif(tenant, '')), sum(timeouts)::BIGINT AS timeouts,
       sum(attempts)::BIGINT AS attempts
FROM sided WHERE client = has_client GROUP BY environment, tenant, edge
HAVING timeouts > {ratio} * attempts ORDER BY timeouts DESC, edge
"""
NAMED = 3  # edges


def _timed_out(s: Source) -> list[tuple[str, str]]:
    """Edges that time out and have too few calls to be judged: no finding, and yet not well."""
    reach, warn = s.reach.get("timeout_ratio"), timeout_ratio.thresholds[0]
    if not reach or s.not_kept():
        return []
    short = {v.subject for v in reach.short}
    ratio = setting(s.con, f"timeout_ratio.{warn.name}", warn.default)
    rows = s.ask(TIMED_OUT.format(where=s.where(), ratio=ratio))
    few = f"too few to judge, {reach.needed:,} {reach.unit} needed"
    return [
        ("Timed out:", f"{timeouts:,} of {attempts:,} at {edge}   ({few})")
        for name, space, timeouts, attempts in rows
        if (edge := named(name, space)) in short
    ][:NAMED]


def _timeout_s(s: Source, f: Found) -> float | None:
    """None where its rows left the lake."""
    made_of = evidence(s.con, f)
    longest = s.one(f"SELECT max(timeout_ms) FROM {made_of.stream} WHERE {made_of.where}")[0]
    return None if longest is None else float(longest) / 1000


# ---- keys ------------------------------------------------------------------------------------------------------------

REPEATS = """
SELECT count(*) FILTER (cache = 'hit'), count(*) FILTER (cache IN ('hit', 'miss'))
FROM keys WHERE line = 'server' AND stored > 0 AND {where}
"""
CACHE_BYTES = """
SELECT value FROM signals WHERE kind = 'gauge' AND name = ? ORDER BY timestamp DESC LIMIT 1
"""


def _keys(s: Source) -> Section:
    found = s.of("idempotency_cache")
    doubled = s.of("duplicate_key")
    head = ("idempotency", "🎯", "IDEMPOTENCY")
    size = cache_size(s.con)
    lines = [(_doubled_label(f), f"{_doubled(f)} ({BADGE[f.level]})") for f in doubled]
    lines.append(("Cache size:", size or "unknown (no source reports it)"))
    numbers: dict[str, Any] = {"keys": {f.kind: f.count for f in doubled}, "cache_size": size}
    hits, lookups = s.one(REPEATS.format(where=s.where())) if has(s.con, "keys") else (0, 0)
    why = s.blind("idempotency_cache") or s.not_kept()
    why = why or ("" if lookups else "no look-up of a known key was logged")
    reach = s.reach.get("idempotency_cache")
    if not why and reach and reach.none and not found:
        why = reach.why
        lines.insert(0, ("Cache hits:", f"{hits:,} of {lookups:,} repeats"))
    if why and not found:
        return Section(*head, "unknown", f"unknown ({why})", lines, doubled, numbers | {"why": why})
    numbers |= {"hits": hits, "lookups": lookups}
    verdict = _level(found) if found else "ok"
    of_whom = [(f"- {f.name}:", f"{sentence(f)}, {s.span.between(f)}") for f in found]
    lines = [*of_whom, *s.not_judged("idempotency_cache"), *lines]
    rate = f"{count(len(found), 'cache')} forgot keys"
    if lookups:
        rate = f"{hits / lookups:.0%} cache hit ({BADGE[verdict]})   {hits:,} of {lookups:,} repeats"
    every = [*found, *doubled]
    return Section(*head, _level(every) if every else "ok", rate, lines, every, numbers)


def _doubled_label(f: Found) -> str:
    return "Without a key:" if f.kind == "missing" else f"{f.kind.replace('_', ' ').capitalize()}:"


def _doubled(f: Found) -> str:
    what = count(f.count, "retry", "retries") if f.kind == "missing" else count(f.count, "key")
    return f"{what} at {f.name}"


def cache_size(con: duckdb.DuckDBPyConnection) -> str:
    """From gauges idempotency_cache_bytes and idempotency_cache_max_bytes, where somebody sends them."""
    used, most = (con.execute(CACHE_BYTES, [f"idempotency_cache_{n}"]).fetchall() for n in ("bytes", "max_bytes"))
    if not used:
        return ""
    return f"{used[0][0] / 1e9:.1f}/{most[0][0] / 1e9:.1f} GB" if most else f"{used[0][0] / 1e9:.1f} GB"


# ---- the screen ------------------------------------------------------------------------------------------------------


def rendered(report: Report, invoke: Invoke) -> Iterator[str]:
    """The lines of the screen; `invoke` writes a command as it can be typed here."""
    span, levels = report.span, report.levels
    timed = is_time(span.last)
    yield f"🌅 ASYNC HEALTH REPORT - {f'{span.end:%Y-%m-%d %H:%M} UTC' if timed else NO_TIMES}"
    yield RULE
    scope = f"   ({report.wanted.words})" if report.wanted.words else ""
    days = f"{span.clock(span.start)} - {span.clock(span.end)} UTC" if timed else NO_TIME
    yield _line("Window:", f"{days}, {', '.join(f'{n} {level}' for level, n in levels.items())}{scope}")
    for s in report.sections:
        badge = f" ({BADGE[s.state]})" if s.state in SHOWN_LEVELS and "cache hit" not in s.value else ""
        yield f"{s.icon} {s.title + ':':<20}{s.value}{badge}"
        yield from (_line(*line) for line in s.lines)
        if s.runbook:
            yield _line("See first:", f"{invoke(f'runbook {s.runbook}')}   (does it hold a lease?)")
        if s.action:
            yield _line("Action:", s.action)
    if report.other:
        yield f"🔎 {'ALSO:':<20}{count(len(report.other), 'finding')} ({BADGE[_level(report.other)]})"
        for f in report.other:
            yield _line(f"- {f.name}:", f"{f.detector}, {sentence(f)}, {span.between(f)}")
    yield RULE
    yield from _footer(report, invoke)


def _line(label: str, words: str) -> str:
    """Values stand in one column; a label too long for it keeps a space."""
    return f"   {label:<19} {words}"


def accounting(totals: dict[str, int]) -> str:
    """306,679 read = 306,620 used + 35 late + …: every row is somewhere."""
    names = ("used", "late", "implausible", "rejected", "repeated", "stray", "parked")
    parts = [f"{totals[n]:,} {n}" for n in names if totals[n] or n == "used"]
    empty = f" + {totals['tombstones']:,} empty" if totals["tombstones"] else ""
    return f"{totals['read']:,} read = {' + '.join(parts)}{empty}"


def _footer(report: Report, invoke: Invoke) -> Iterator[str]:
    totals = report.totals
    yield f"   {accounting(totals)}"
    if report.removed:
        before, why = report.removed
        yield f"   Rows before {before:%Y-%m-%d %H:%M} UTC were removed by {why}; what was found in them stays."
    if report.used:
        yield f"   Judged with {', '.join(report.used)}"
    if totals["late"] > MUCH_LATE * max(1, totals["read"]):
        part = share(totals["late"] / totals["read"])
        yield f"   {part} of the rows arrived too late to be judged. Bring them in: {invoke('rebuild --lateness 10m')}"
    first = f" | {invoke(f'explain {report.first_page.short}')}" if report.first_page else ""
    yield f"Next: {invoke('findings')}{first}"
    if report.doubled_key:
        query = f"SELECT * FROM requests WHERE idempotency_key = {text(report.doubled_key)}"
        yield f"      {invoke(f'sql {quoted(query)}')}"
