"""What is left of the timeouts: a source enters, the section leaves."""

from __future__ import annotations

from dataclasses import replace

from detectors.catalog.timeout_ratio import timeout_ratio
from detectors.subjects import EDGE
from streams.report.evidence import in_episode, in_space, text
from streams.report.found import Found, named
from streams.report.morning.section import Section, Source, level, unknown
from streams.report.reach import setting_sql
from streams.report.sentences import count

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


def budget(s: Source) -> Section:
    whole = _budget(s)
    return replace(whole, shown_by="sql @timeouts_by_edge") if any(n == MORE for n, _ in whole.lines) else whole


def _budget(s: Source) -> Section:
    found = s.of("timeout_budget")
    head = ("timeout_budget", "⏱️", "TIMEOUT BUDGET")
    if why := s.blind("timeout_budget"):
        return unknown(head, why, [*_hop(s), *_timed_out(s)])
    if found:
        worst = max(found, key=lambda f: (f.level == "page", f.peak))
        timeout_s, before = _timeout_s(s, worst), worst.facts["before_pct"]
        headroom_s = max(0.0, worst.facts["headroom_ms"] / 1000)
        numbers = {"service": worst.subject, "used_pct": worst.peak, "headroom_s": headroom_s}
        if timeout_s is None:
            lines = [("Headroom:", f"{headroom_s:.1f} seconds  ({worst.subject}; its rows are no longer there)")]
            return Section(*head, level(found), f"{worst.peak:.0f}% utilized", lines, found, numbers)
        past = ""
        if before is not None:
            past = f"; before {s.span.clock(worst.onset)}: {before:.0f}%, {timeout_s * (1 - before / 100):.1f}s"
        p99 = f"({worst.subject}: p99 {timeout_s * worst.peak / 100:.1f}s of {timeout_s:.1f}s{past})"
        lines = [("Headroom:", f"{headroom_s:.1f} seconds  {p99}"), *_around(s)]
        behind = [*found, *s.of("timeout_cascade")]
        return Section(*head, level(behind), f"{worst.peak:.0f}% utilized", lines, behind, numbers)
    reach = s.reach("timeout_budget")
    why = s.not_kept() or ("" if reach and reach.volumes else s.nothing("call with a timeout"))
    if why or not reach or reach.none:
        return unknown(head, why or (reach.why if reach else ""), [] if s.not_kept() else [*_hop(s), *_timed_out(s)])
    judged = {v.subject for v in reach.volumes if v.enough}
    rows = s.ask(P99.format(where=s.where()))
    service, pct, timeout_s = next((who, *n) for name, space, *n in rows if (who := named(name, space)) in judged)
    headroom_s = max(0.0, timeout_s * (1 - pct / 100))
    lines = [("Headroom:", f"{headroom_s:.1f} seconds  ({service}, the tightest: p99 of {timeout_s:.1f}s)")]
    lines += _around(s)
    numbers = {"service": service, "used_pct": pct, "headroom_s": headroom_s}
    return Section(*head, "ok", f"{pct:.0f}% utilized (OK)", lines, numbers=numbers)


TIMED_OUT = """
WITH sided AS (
    SELECT *, {name} AS edge, side IS DISTINCT FROM 'server' AS client,
           bool_or(side IS DISTINCT FROM 'server') OVER (PARTITION BY environment, tenant, caller, service_name)
               AS has_client
    FROM calls WHERE {where})
SELECT edge, concat_ws('/', nullif(environment, ''), nullif(tenant, '')), sum(timeouts)::BIGINT AS timeouts,
       sum(attempts)::BIGINT AS attempts
FROM sided WHERE client = has_client GROUP BY environment, tenant, edge, service_name
HAVING timeouts > {ratio} * attempts ORDER BY timeouts DESC, edge
"""
NAMED = 3  # edges
MORE = "And more:"


def _around(s: Source) -> list[tuple[str, str]]:
    return [*_hop(s), *s.not_judged("timeout_budget"), *_timed_out(s)]


def _hop(s: Source) -> list[tuple[str, str]]:
    """What used up the time of the traces of the worst cascade."""
    named = [f for f in s.of("timeout_cascade") if f.facts["longest"]]
    if not named:
        return []
    worst = max(named, key=lambda f: (f.level == "page", f.certainty == "certain", f.peak))
    spent = f"{worst.facts['elapsed_ms'] / 1000:.1f}s of a trace"
    return [
        ("Longest hop:", f"{worst.facts['longest']}, {spent}   (of {worst.subject}, {s.span.clock(worst.peak_at)})")
    ]


def _timed_out(s: Source) -> list[tuple[str, str]]:
    """Edges that time out and have too few calls to be judged: no finding, and yet not well."""
    if s.only_numbers or s.not_kept() or not (reach := s.reach("timeout_ratio")):
        return []
    warn = timeout_ratio.thresholds[0]
    short = {v.subject: reach.why_of(v) for v in reach.short}
    ratio = setting_sql(s.con, f"timeout_ratio.{warn.name}", warn.default, "service_name", s.wanted.until)
    rows = s.ask(TIMED_OUT.format(name=EDGE, where=s.where(), ratio=ratio))
    lines = [
        ("Timed out:", f"{timeouts:,} of {attempts:,} at {edge}   (too few to judge: {short[edge]})")
        for name, space, timeouts, attempts in rows
        if (edge := named(name, space)) in short
    ]
    return lines[:NAMED] + ([(MORE, count(len(lines) - NAMED, "edge"))] if len(lines) > NAMED else [])


def _timeout_s(s: Source, f: Found) -> float | None:
    """None where its windows have left."""
    mine = f"{in_space(f)} AND service_name = {text(f.subject)} AND {in_episode(f)}"
    longest = s.one(f"SELECT max(timeout_us) FROM durations WHERE {mine}")[0]
    return None if longest is None else float(longest) / 1e6
