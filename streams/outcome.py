"""A state's database enters, what a run did leaves, for the screen."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from streams.coverage import Seen
from streams.landing.state import formats_of

TOTALS = """
SELECT coalesce(sum(read), 0)::BIGINT AS read, coalesce(sum(used), 0)::BIGINT AS used,
       coalesce(sum(late), 0)::BIGINT AS late, coalesce(sum(implausible), 0)::BIGINT AS implausible,
       coalesce(sum(rejected), 0)::BIGINT AS rejected, coalesce(sum(repeated), 0)::BIGINT AS repeated,
       coalesce(sum(tombstones), 0)::BIGINT AS tombstones, coalesce(sum(stray), 0)::BIGINT AS stray,
       coalesce(sum(parked), 0)::BIGINT AS parked
FROM accounting
"""


@dataclass(frozen=True)
class Outcome:
    """How many rows became what, how many findings there are of each level, what was noted, what detectors can see."""

    totals: dict[str, int]
    levels: dict[str, int]
    notes: list[str]
    seen: list[Seen]
    formats: dict[str, set[str]]


def totals_of(con: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """What became of the rows, all together."""
    found = con.execute(TOTALS)
    return dict(zip((d[0] for d in found.description or ()), found.fetchall()[0], strict=True))


def outcome(con: duckdb.DuckDBPyConnection, notes: list[str], seen: list[Seen]) -> Outcome:
    levels = dict(con.execute("SELECT level, count(*) FROM findings GROUP BY level").fetchall())
    return Outcome(totals_of(con), levels, notes, seen, formats_of(con))
