"""One finding enters, its proof leaves: what, by which rows, over which threshold by how much, and what to do now."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from string import ascii_lowercase
from typing import Any

import duckdb

from streams.landing.state import spell
from streams.report.corrected import MS, STAMPS, apart, began, called_first, ended, legend, marked, shown
from streams.report.evidence import Row, arrivals, beside, evidence, fetch, in_space, proven_by, rows_at, text, uses
from streams.report.found import Found, Invoke, Span, is_time, judged_with, removed_before
from streams.report.incidents import explained
from streams.report.order import attempt, effects, told, writes
from streams.report.sentences import ahead, amount, count, duration, milliseconds, sentence, share, stamp


def explain(
    con: duckdb.DuckDBPyConnection, f: Found, every: Sequence[Found], span: Span, invoke: Invoke, whole: bool
) -> Iterator[str]:
    """The lines of the screen."""
    kind = f"{f.detector}: {f.kind.replace('_', ' ')}" if f.kind else f.detector
    yield f"{f.level.upper()} {f.certainty}  {kind}  {f.name}  {_between(f, span)}"
    yield sentence(f) + over(f)
    if used := judged_with(con, [f]):
        yield f"Judged with {', '.join(used)}"
    gone = removed_before(con)
    if gone and f.onset < gone[0]:
        yield f"Rows before {gone[0]:%Y-%m-%d %H:%M} UTC were removed by {gone[1]}: below is what is left."
    told = f.detector == "duplicate_key" and f.kind in ("applied_twice", "other_payload", "concurrent")
    yield from _stories(con, f, every, span, invoke, whole) if told else _rows(con, f, invoke)
    yield from explained(con, f, every, invoke)
    yield f"Do now: {invoke(f'runbook {f.detector}')}"


def _between(f: Found, span: Span) -> str:
    return f"{span.between(f)} UTC" if is_time(f.onset) else span.between(f)


def over(f: Found) -> str:
    """How far over its threshold."""
    if f.threshold == 0:
        return ""
    if f.unit == "ratio":
        return f", {100 * (f.peak - f.threshold):.1f} percentage points over"
    return f", {amount(f, round(f.peak - f.threshold, 1))} over"


# ---- what is proven by many rows -------------------------------------------------------------------------------------


def _rows(con: duckdb.DuckDBPyConnection, f: Found, invoke: Invoke) -> Iterator[str]:
    if f.facts:
        yield "At its peak: " + " · ".join(fact(n, v) for n, v in f.facts.items())
    made_of = evidence(con, f)
    number = made_of.rows(con)
    counted = number == f.count
    yield f"{'Counted' if counted else 'Looked at'}: {count(number, 'row')}, by"
    yield from (f"  {line}" for line in invoke(f"sql {quoted(made_of.query)}").splitlines())
    rows = marked(con, proven_by(con, f, made_of))
    if rows:
        yield "Some of them:" if counted and number > len(rows) else "Proven by:"
        two = f.detector == "concurrent_writers"
        yield from listed(rows, letters=two)
        yield from writes(rows) if two else ()
    yield f"All as CSV: {invoke(f'findings {f.short} --csv')}"


def quoted(query: str) -> str:
    """For a shell, in double quotes where nothing in it means something else there."""
    return shlex.quote(query) if re.search(r'["$`\\!]', query) else f'"{query}"'


SHARES = {"share", "goodput", "same_base"}


def fact(name: str, value: Any) -> str:
    """One fact in words; the end of its name is its unit."""
    whole = name.replace("_", " ")
    words, _, unit = whole.rpartition(" ")
    match value:
        case None:
            return f"{whole}: unknown"
        case bool():
            return f"{whole}: {'yes' if value else 'no'}"
        case int() | float() if words and unit in UNITS:
            return f"{words}: {UNITS[unit](value)}"
        case float() if name in SHARES:
            return f"{whole}: {share(value)}"
        case int() | float():
            return f"{whole}: {value:,.4g}" if isinstance(value, float) else f"{whole}: {value:,}"
        case list():
            each = map(UNITS[unit], value) if unit in UNITS else map(str, value)
            return f"{words if unit in UNITS else whole}: {', '.join(each)}"
        case _:
            return f"{whole}: {value}"


UNITS: dict[str, Callable[[float], str]] = {
    "ms": lambda value: f"{value:,.1f} ms".replace(".0 ", " "),
    "s": duration,
    "pct": lambda value: f"{value:g}%",
}


# ---- rows as a table -------------------------------------------------------------------------------------------------

Column = tuple[str, Callable[[Row], str]]


def _plain(name: str) -> Callable[[Row], str]:
    return lambda row: "-" if row[name] is None else str(row[name])


def time_of(name: str) -> Callable[[Row], str]:
    return lambda row: stamp(row[name])


def _applied(row: Row) -> str:
    return {True: "yes", False: "no", None: "-"}[row["applied"]]


def _lasted(row: Row) -> str:
    return "-" if row["duration_ms"] is None else milliseconds(row["duration_ms"])


def _entity(row: Row) -> str:
    return f"{row['entity_type']}/{row['entity_id']}" if row["entity_type"] else "-"


def _knew(row: Row) -> str:
    clock = row["vector_clock"]
    return ",".join(f"{n}:{c}" for n, c in clock.items()) if clock else "-"


def _apart(row: Row) -> str:
    return f"{(row['server_time'] - row['client_time']) / timedelta(milliseconds=1):+,.0f} ms"


COLUMNS: dict[str, list[Column]] = {
    "requests": [
        ("START raw", time_of("timestamp")),
        ("DURATION", _lasted),
        ("SIDE", _plain("side")),
        ("NODE", _plain("node_id")),
        ("TRY", _plain("retry_count")),
        ("STATUS", _plain("status")),
        ("CACHE", _plain("cache")),
        ("APPLIED", _applied),
    ],
    "heartbeats": [
        ("SENT raw", time_of("client_time")),
        ("RECEIVED", time_of("server_time")),
        ("RECEIVED-SENT", _apart),
        ("NODE", _plain("node_id")),
        ("OBSERVER", _plain("observer")),
    ],
    "write_log": [
        ("TIME raw", time_of("timestamp")),
        ("NODE", _plain("node_id")),
        ("ENTITY", _entity),
        ("VERSION", _plain("version")),
        ("BASE", _plain("base_version")),
        ("KNEW", _knew),
    ],
    "signals": [("TIME raw", time_of("timestamp")), ("SUBJECT", _plain("subject")), ("NAME", _plain("name"))],
}
NUMERIC = {"DURATION", "TRY", "RECEIVED-SENT", "VERSION", "BASE"}


def listed(rows: Sequence[Row], letters: bool = False) -> Iterator[str]:
    """Rows of each stream under their own headings, arrival and record last."""
    for stream in dict.fromkeys(r["stream"] for r in rows):
        mine = [r for r in rows if r["stream"] == stream]
        first, *rest = COLUMNS[stream]
        told = [("CORRECTED", shown)] if stream in STAMPS else []
        columns = [first, *told, *rest, ("ARRIVED", time_of("arrival")), ("RECORD", _plain("record"))]
        cells = [[name for name, _ in columns], *([show(r) for _, show in columns] for r in mine)]
        widths = [max(len(c[i]) for c in cells) for i in range(len(columns))]
        for number, line in enumerate(cells):
            mark = f"{ascii_lowercase[number - 1] if number else ' '}  " if letters else "  "
            padded = (
                c.rjust(w) if n in NUMERIC else c.ljust(w) for c, w, (n, _) in zip(line, widths, columns, strict=True)
            )
            yield (mark + "  ".join(padded)).rstrip()
    if any(r["stream"] in STAMPS for r in rows):
        yield legend(rows)


# ---- keys that were used twice ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Use:
    """A key's later use and the earlier one that it has to do with; attempts are request_id#retry_count."""

    key: str
    record: str
    earlier: str
    certain: bool
    attempts: tuple[str, ...]


def uses_of(con: duckdb.DuckDBPyConnection, f: Found) -> list[Use]:
    sql = f"SELECT idempotency_key, coord, earlier, certain, attempt, earlier_attempt FROM keys WHERE {uses(f)}"
    rows = con.execute(f"{sql} ORDER BY window_start, coord").fetchall()
    return [Use(k, spell(c), spell(e), sure, tuple(a for a in attempts if a)) for k, c, e, sure, *attempts in rows]


def _stories(
    con: duckdb.DuckDBPyConnection, f: Found, every: Sequence[Found], span: Span, invoke: Invoke, whole: bool
) -> Iterator[str]:
    skewed = {s.subject: s for s in every if s.detector == "clock_skew" and s.onset < f.last and s.last > f.onset}
    found = uses_of(con, f)
    if not found:
        yield "The keys are no longer there."
        return
    for use in found if whole else found[:1]:
        rows = lines_of(con, f, use)
        yield f"{'Key' if whole else 'One of them'}, proven by {count(len(rows), 'event')}:"
        back = max(span.start, f.onset - timedelta(days=1))
        begins = ", where the data begins" if back == span.start else ""
        yield f"key {use.key}   {_payloads(rows)}   earlier uses searched: back to {span.clock(back)}{begins}"
        yield from listed(rows, letters=True)
        yield from story(rows)
        yield from _clocks(rows, skewed)
    if f.kind == "applied_twice" and f.facts["overlapping"]:
        yield "Would not fire if: the key were reserved before the work, not stored after it"
    if len(found) > 1 and not whole:
        yield f"The others: {invoke(f'explain {f.short} --all')}"
    yield f"All {len(found)} as CSV: {invoke(f'findings {f.short} --csv')}"


def _clocks(rows: Sequence[Row], skewed: Mapping[str, Found]) -> Iterator[str]:
    """What was corrected, and why; and what could not be."""
    names = dict(zip((r["record"] for r in rows), ascii_lowercase, strict=False))
    for node in sorted({r["node_id"] for r in rows} & set(skewed)):
        clock, mine = skewed[node], [r for r in rows if r["node_id"] == node]
        off = f"{node} is {'ahead' if ahead(clock) else 'behind'} by {clock.peak:,.0f} ms or more ({clock.short})"
        if any(r["bar"].best is None for r in mine):
            yield f"Mind the clock of {node}: {off}, and how much more is open, so the order of its lines may be, too."
            continue
        ends = (
            f"{names[r['record']]} began between {stamp(r['bar'].earliest)} and {stamp(r['bar'].latest)}" for r in mine
        )
        yield f"Corrected: {off}; {', '.join(ends)}"


def lines_of(con: duckdb.DuckDBPyConnection, f: Found, use: Use) -> list[Row]:
    """The two uses and the client's lines of the same attempts."""
    mine = {r["record"]: r for r in rows_at(con, [use.record, use.earlier], arrivals(con, f))}
    attempts = ", ".join(text(a) for a in use.attempts) or "NULL"
    where = (
        f"{in_space(f)} AND idempotency_key = {text(use.key)} AND service_name = {text(f.subject)} AND side = 'client' "
        f"AND request_id || '#' || retry_count IN ({attempts})"
    )
    lines = fetch(con, "requests", where, limit=8, during=beside(mine.values()))
    if len(lines) < len(use.attempts):
        lines = fetch(con, "requests", where, limit=8)
    mine |= {r["record"]: r for r in lines}
    return sorted(_in_one_call(marked(con, list(mine.values()))), key=lambda r: (began(r), r["record"]))


def _in_one_call(rows: Sequence[Row]) -> list[Row]:
    """Bars of the two lines of an attempt, as narrow as that makes them."""
    found = {r["record"]: r for r in rows}
    for client in (r for r in rows if r["side"] == "client"):
        for server in (r for r in rows if r["side"] != "client" and attempt(r) == attempt(client)):
            pair = called_first(found[client["record"]], found[server["record"]])
            found |= {r["record"]: r for r in pair}
    return list(found.values())


def _payloads(rows: Sequence[Row]) -> str:
    seen = {r["payload_hash"] for r in rows if r["payload_hash"] is not None}
    words = {0: "payload not logged", 1: "same payload in both"}
    return words.get(len(seen), "different payloads")


def story(rows: Sequence[Row]) -> Iterator[str]:
    """What happened when, by corrected times: who gave up, what a look-up found, which effect came first."""
    names = dict(zip((r["record"] for r in rows), ascii_lowercase, strict=False))
    servers = [r for r in rows if r["side"] != "client"]
    happened: list[tuple[datetime, str]] = []
    for r in rows:
        if r["side"] == "client" and r["status"] == "timeout":
            same = [s for s in servers if attempt(s) == attempt(r) and ended(s) > ended(r)]
            still = f"; {names[same[0]['record']]} is still running" if same else ""
            happened.append((ended(r), f"{names[r['record']]} gives up after {_lasted(r)}{still}"))
    for r in servers[1:]:
        if r["cache"]:
            ran = [s for s in servers if s is not r and began(s) <= began(r) < ended(s)]
            why = f", because {names[ran[0]['record']]} has not finished" if ran and r["cache"] == "miss" else ""
            happened.append((began(r), f"{names[r['record']]} looks the key up: {r['cache']}{why}"))
    made = sorted((r for r in servers if r["applied"]), key=ended)
    for number, r in enumerate(made):
        later = _later(made[0], r) if number else ""
        ordinal = ("first", "second")[number] if number < 2 else f"{number + 1}th"
        happened.append((ended(r), f"{names[r['record']]} applied ({ordinal} effect){later}"))
    for at, what in sorted(happened, key=lambda t: t[0]):
        yield f"{stamp(at)}  {what}"
    for a, b in pairwise(made):
        yield told(f"{names[a['record']]}'s effect", f"{names[b['record']]}'s", effects(a, b, rows))


def _later(first: Row, second: Row) -> str:
    """How much later an effect was than the first, with its error."""
    by, known = _ms(ended(second) - ended(first)), apart(first, second)
    if known is None:
        return f", {milliseconds(by)} later by the clocks of {first['node_id']} and {second['node_id']}"
    return f", {milliseconds(by)} ± {math.ceil(known / MS)} ms later"


def _ms(span: timedelta) -> float:
    return round(span / MS)
