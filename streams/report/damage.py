"""Findings enter, the damage list leaves: every effect that was made twice, both attempts, and the proving rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from typing import Any

import duckdb

from streams.report.corrected import MS, apart, ended, marked
from streams.report.evidence import Row, arrivals, beside, fetch, in_space, rows_at, uses
from streams.report.explain import uses_of
from streams.report.found import Found
from streams.report.order import attempt, effects

DOUBLED = "applied_twice"


@dataclass(frozen=True)
class Damage:
    """One effect that was made twice; the fields are the columns of the CSV.

    Times are corrected ones; error_ms: by how much the time between the two may be wrong, None where nothing tells.
    order: whether the first is certain or possible to be that, or unknown.
    client_records: the callers' lines of both attempts.
    """

    service_name: str
    idempotency_key: str
    certain: bool
    first_applied: datetime
    first_attempt: str
    first_node: str
    first_record: str
    second_applied: datetime
    second_attempt: str
    second_node: str
    second_record: str
    error_ms: float | None
    order: str
    client_records: str

    @property
    def cells(self) -> tuple[Any, ...]:
        return astuple(self)


COLUMNS = tuple(f.name for f in fields(Damage))


def damage(con: duckdb.DuckDBPyConnection, found: Sequence[Found]) -> list[Damage]:
    """In the order in which they were found; the effect that came first stands first, by corrected times."""
    doubled = [f for f in found if f.detector == "duplicate_key" and f.kind == DOUBLED]
    return [d for f in doubled for d in _of(con, f)]


def _of(con: duckdb.DuckDBPyConnection, f: Found) -> list[Damage]:
    some = uses_of(con, f)
    records = [r for u in some for r in (u.record, u.earlier)]
    rows = {r["record"]: r for r in marked(con, rows_at(con, records, arrivals(con, f)))}
    mine = f"idempotency_key IN (SELECT idempotency_key FROM keys WHERE {uses(f)})"
    of_clients, most = f"{in_space(f)} AND {mine} AND side = 'client'", len(some) * 100
    clients = _by_attempt(fetch(con, "requests", of_clients, limit=most, during=beside(rows.values())))
    if not _by_attempt(rows.values()).keys() <= clients.keys():
        clients = _by_attempt(fetch(con, "requests", of_clients, limit=most))
    listed = []
    for u in some:
        if not {u.record, u.earlier} <= rows.keys():
            continue  # the rows have left the lake; the finding's count still has it
        first, second = sorted((rows[u.record], rows[u.earlier]), key=lambda r: (ended(r), r["record"]))
        told = [c for r in (first, second) for c in clients.get((u.key, attempt(r)), [])]
        listed.append(_damage(f, u.key, u.certain, first, second, told))
    return listed


def _by_attempt(rows: Iterable[Row]) -> dict[tuple[str, str], list[str]]:
    """Records by key and attempt."""
    found: dict[tuple[str, str], list[str]] = {}
    for r in rows:
        found.setdefault((r["idempotency_key"], attempt(r)), []).append(r["record"])
    return found


def _damage(f: Found, key: str, certain: bool, first: Row, second: Row, clients: Sequence[str]) -> Damage:
    ends = ((ended(r), attempt(r), r["node_id"], r["record"]) for r in (first, second))
    error = apart(first, second)
    error_ms = None if error is None else round(error / MS, 3)
    known = effects(first, second)
    order = known.certainty if known.relation == "before" else "unknown"
    return Damage(f.subject, key, certain, *next(ends), *next(ends), error_ms, order, " ".join(clients))
