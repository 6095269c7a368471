"""Idempotency: the cache, and keys that did not protect: a source enters, the section leaves."""

from __future__ import annotations

from typing import Any

import duckdb

from streams.landing.state import has
from streams.report.found import Found
from streams.report.morning.section import BADGE, Section, Source, first_of, level
from streams.report.sentences import count, sentence

REPEATS = """
SELECT count(*) FILTER (cache = 'hit'), count(*) FILTER (cache IN ('hit', 'miss'))
FROM keys WHERE line = 'server' AND stored > 0 AND {where}
"""
CACHE_BYTES = """
SELECT arg_max(value, timestamp) FILTER (name = 'idempotency_cache_bytes'),
       arg_max(value, timestamp) FILTER (name = 'idempotency_cache_max_bytes')
FROM signals WHERE kind = 'gauge' AND name IN ('idempotency_cache_bytes', 'idempotency_cache_max_bytes')
"""


def keys(s: Source) -> Section:
    found = s.of("idempotency_cache")
    doubled = s.of("duplicate_key")
    head = ("idempotency", "🎯", "IDEMPOTENCY")
    size = "" if s.only_numbers else cache_size(s.con)
    shown, more = first_of([*found, *doubled])
    lines = [(_doubled_label(f), f"{_doubled(f)} ({BADGE[f.level]})") for f in shown if f.detector == "duplicate_key"]
    lines.append(("Cache size:", size or "unknown (no source reports it)"))
    numbers: dict[str, Any] = {"keys": {f.kind: f.count for f in doubled}, "cache_size": size}
    hits, lookups = s.one(REPEATS.format(where=s.where())) if has(s.con, "keys") else (0, 0)
    why = s.blind("idempotency_cache") or s.not_kept()
    why = why or ("" if lookups else "no look-up of a known key was logged")
    reach = None if found else s.reach("idempotency_cache")
    if not why and reach and reach.none:
        why = reach.why
        lines.insert(0, ("Cache hits:", f"{hits:,} of {lookups:,} repeats"))
    if why and not found:
        return Section(*head, "unknown", f"unknown ({why})", lines, doubled, numbers | {"why": why}, more=more)
    numbers |= {"hits": hits, "lookups": lookups}
    numbers |= {"hit_pct": 100 * hits / lookups} if lookups else {}
    verdict = level(found) if found else "ok"
    caches = (f for f in shown if f.detector == "idempotency_cache")
    of_whom = [(f"- {f.name}:", f"{sentence(f)}, {s.span.between(f)}") for f in caches]
    lines = [*of_whom, *s.not_judged("idempotency_cache"), *lines]
    rate = f"{count(len(found), 'cache')} forgot keys"
    if lookups:
        rate = f"{hits / lookups:.0%} cache hit ({BADGE[verdict]})   {hits:,} of {lookups:,} repeats"
    every = [*found, *doubled]
    return Section(*head, level(every) if every else "ok", rate, lines, every, numbers, more=more)


def _doubled_label(f: Found) -> str:
    return "Without a key:" if f.kind == "missing" else f"{f.kind.replace('_', ' ').capitalize()}:"


def _doubled(f: Found) -> str:
    what = count(f.count, "retry", "retries") if f.kind == "missing" else count(f.count, "key")
    return f"{what} at {f.name}"


def cache_size(con: duckdb.DuckDBPyConnection) -> str:
    """From gauges idempotency_cache_bytes and idempotency_cache_max_bytes, where somebody sends them."""
    used, most = con.execute(CACHE_BYTES).fetchall()[0]
    if used is None:
        return ""
    return f"{used / 1e9:.1f} GB" if most is None else f"{used / 1e9:.1f}/{most / 1e9:.1f} GB"
