"""Measured tables enter, what detectors could not judge for want of rows leaves: too few is unknown, not well.

A subject counts as judged where at least half of its rows came while there were as many as the detector needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches

import duckdb

from detectors.catalog import clock_skew, heartbeat_loss, idempotency_cache, timeout_budget, timeout_ratio
from detectors.clocks import MAX_ONE_WAY_DELAY_US
from detectors.subjects import EDGE
from detectors.windows import EPOCH, HOUR_US, MINUTE_US, WINDOW_US
from streams.landing.state import has
from streams.report.evidence import During, instant, lake, text
from streams.report.found import Filter, Sight, named
from streams.report.sentences import count


@dataclass(frozen=True)
class Volume:
    """Whether a subject's rows mostly came while there were enough to judge; else the most in the detector's span."""

    subject: str
    enough: bool
    most: int
    needed: int


@dataclass(frozen=True)
class Reach:
    """Which subjects a detector could judge. `unit` is what it counts, in the span it counts it in.

    needed: of those that have no number of their own.
    """

    detector: str
    things: str
    unit: str
    needed: int
    volumes: Sequence[Volume]

    @property
    def short(self) -> list[Volume]:
        return [v for v in self.volumes if not v.enough]

    @property
    def none(self) -> bool:
        return len(self.short) == len(self.volumes)

    @property
    def why(self) -> str:
        """49 calls a minute, 50 needed."""
        return self.why_of(*self.short)

    def why_of(self, *short: Volume) -> str:
        """Of these alone; of none, where there is no subject."""
        most, needed = max((v.most for v in short), default=0), sorted({v.needed for v in short} or {self.needed})
        least = " to ".join(f"{n:,}" for n in dict.fromkeys([needed[0], needed[-1]]))
        if all(v.most < v.needed for v in short):
            return f"{'at most ' if most else ''}{most:,} {self.unit}, {least} needed"
        return f"mostly fewer than {least} {self.unit}"

    @property
    def words(self) -> str:
        """gw->dead (at most 49 calls a minute, 50 needed), or 4 of 11 edges (…)."""
        short = self.short
        one = len(short) == 1
        return f"{short[0].subject if one else f'{len(short)} of {len(self.volumes)} {self.things}'} ({self.why})"


@dataclass(frozen=True)
class Measure:
    """What a detector counts before it judges: rows (SPACE, subject, window_start, preferred, n) of a table."""

    table: str
    rows: str
    things: str
    unit: str
    needed: int
    over_us: int


MEASURES = {
    "timeout_ratio": Measure(
        "calls",
        f"SELECT environment, tenant, {EDGE} AS subject, window_start, "
        "side IS DISTINCT FROM 'server' AS preferred, rows AS n, [caller, service_name] AS services FROM calls",
        "edges",
        "calls a minute",
        timeout_ratio.MIN_VOLUME,
        MINUTE_US,
    ),
    "timeout_budget": Measure(
        "durations",
        "SELECT environment, tenant, service_name AS subject, window_start, "
        "side IS DISTINCT FROM 'server' AS preferred, rows AS n, [service_name] AS services FROM durations",
        "services",
        "calls with a timeout a minute",
        timeout_budget.MIN_VOLUME,
        MINUTE_US,
    ),
    "idempotency_cache": Measure(
        "keys",
        "SELECT environment, tenant, service_name AS subject, window_start, line = 'server' AS preferred, 1 AS n, "
        "[service_name] AS services FROM keys WHERE cache IN ('hit', 'miss') AND stored > 0",
        "services",
        f"look-ups of known keys in {idempotency_cache.OVER_US // MINUTE_US} minutes",
        idempotency_cache.LEAST_LOOKUPS,
        idempotency_cache.OVER_US,
    ),
    "heartbeat_loss": Measure(
        "beats",
        "SELECT environment, tenant, node_id AS subject, window_start, true AS preferred, "
        "least(told, 1) AS n, NULL::VARCHAR[] AS services FROM beats",
        "nodes",
        "heartbeats with a recorded arrival an hour",
        heartbeat_loss.GAPS_NEEDED + 1,
        HOUR_US,
    ),
}

VOLUMES = """
WITH summed AS MATERIALIZED (
    SELECT environment, tenant, subject, preferred, epoch_us(window_start) AS us, {needed} AS needed,
           sum(n)::BIGINT AS n
    FROM ({rows}) WHERE {asked} GROUP BY ALL),
spans AS (
    SELECT environment, tenant, subject, preferred, needed, us // {over_us} AS span, sum(n) AS n
    FROM summed GROUP BY ALL),
seen AS MATERIALIZED (
    SELECT environment, tenant, subject, preferred, needed, 2 * sum(if(n >= needed, n, 0)) >= sum(n) AS surely
    FROM spans GROUP BY environment, tenant, subject, preferred, needed
    QUALIFY preferred = bool_or(preferred) OVER (PARTITION BY environment, tenant, subject)),
lately AS (
    SELECT *, sum(n) OVER (PARTITION BY environment, tenant, subject ORDER BY us
                           RANGE BETWEEN {before_us} PRECEDING AND CURRENT ROW) AS n_lately
    FROM summed SEMI JOIN (FROM seen WHERE NOT surely) USING (environment, tenant, subject, preferred)),
reached AS (
    SELECT *, max(n_lately) OVER (PARTITION BY environment, tenant, subject ORDER BY us
                                  RANGE BETWEEN CURRENT ROW AND {before_us} FOLLOWING) AS n_reached
    FROM lately)
SELECT subject, concat_ws('/', nullif(environment, ''), nullif(tenant, '')) AS space, true, 0, needed
FROM seen WHERE surely
UNION ALL
SELECT subject, concat_ws('/', nullif(environment, ''), nullif(tenant, '')),
       2 * sum(if(n_reached >= needed, n, 0)) >= sum(n), max(n_lately)::BIGINT, needed
FROM reached GROUP BY environment, tenant, subject, needed ORDER BY ALL
"""


def reaches(con: duckdb.DuckDBPyConnection, wanted: Filter) -> dict[str, Reach]:
    """Of each detector that needs a number of rows, where there are any; of the service and the time asked for."""
    return {d: r for d in MEASURES if (r := reach(con, d, wanted))}


IN_FORCE = """
SELECT name, value FROM settings
WHERE config = (SELECT config FROM judged_with WHERE since < $until OR $until IS NULL ORDER BY since DESC LIMIT 1)
"""


def in_force(con: duckdb.DuckDBPyConnection, until: datetime | None = None) -> dict[str, str]:
    """What was set, and what for, when the last window before then was judged; defaults are not among them."""
    return dict(con.execute(IN_FORCE, {"until": until}).fetchall())


def setting(con: duckdb.DuckDBPyConnection, name: str, default: float, until: datetime | None = None) -> float:
    """For all services that have none of their own."""
    return float(in_force(con, until).get(name, default))


def setting_sql(
    con: duckdb.DuckDBPyConnection, name: str, default: float, service: str, until: datetime | None = None
) -> str:
    """The same as SQL, and what is set for a service alone. service: an expression."""
    own = in_force(con, until)
    of = rf"services\.(.*)\.{re.escape(name)}"
    cases = [f"WHEN {text(m[1])} THEN {float(v)}" for n, v in own.items() if (m := re.fullmatch(of, n))]
    general = f"{float(own.get(name, default))}"
    return f"CASE {service} {' '.join(cases)} ELSE {general} END" if cases else general


def reach(con: duckdb.DuckDBPyConnection, detector: str, wanted: Filter) -> Reach | None:
    """None of a detector that needs no number of rows, or that has none at all."""
    measure = MEASURES.get(detector)
    if not measure or not has(con, measure.table):
        return None
    asked = f"{detector}.min_volume", measure.needed
    needed = setting_sql(con, *asked, "services[-1]", wanted.until)
    general = int(setting(con, *asked, wanted.until))
    return Reach(detector, measure.things, measure.unit, general, _volumes(con, measure, needed, wanted))


def _volumes(con: duckdb.DuckDBPyConnection, measure: Measure, needed: str, wanted: Filter) -> list[Volume]:
    """A whole span with enough rows is enough for all of them: only subjects that lack these are looked at closely."""
    asked = [f"list_contains(services, {text(wanted.service)})"] if wanted.service and measure.table != "beats" else []
    asked += [f"window_start >= {instant(wanted.since)}"] if wanted.since else []
    asked += [f"window_start < {instant(wanted.until)}"] if wanted.until else []
    sql = VOLUMES.format(
        rows=measure.rows,
        asked=" AND ".join(asked) or "true",
        over_us=measure.over_us,
        before_us=measure.over_us - WINDOW_US,
        needed=f"({needed})::BIGINT",
    )
    return [Volume(named(subject, space), *seen) for subject, space, *seen in con.execute(sql).fetchall()]


# ---- clocks ----------------------------------------------------------------------------------------------------------

CLOCKS = """
WITH pairs AS MATERIALIZED (SELECT DISTINCT environment, tenant, src, dst FROM clocks WHERE {time}),
heard AS (
    SELECT environment, tenant, src AS node, true AS sent, false AS received FROM pairs
    UNION ALL SELECT environment, tenant, dst, false, true FROM pairs)
SELECT count(*), count(*) FILTER (NOT received), count(*) FILTER (NOT sent)
FROM (SELECT node, bool_or(sent) AS sent, bool_or(received) AS received FROM heard WHERE {who} GROUP BY ALL)
"""
NO_OBSERVER = "node NOT IN (SELECT observer FROM heard EXCEPT SELECT node_id FROM heard)"  # who only hears


def no_observer(con: duckdb.DuckDBPyConnection, time: str = "true") -> str:
    """Of `node`: an observer that sends nothing in this time is none."""
    heard = f"(SELECT DISTINCT observer, node_id FROM beats WHERE {time})"
    return NO_OBSERVER.replace("heard", heard) if has(con, "beats") else "true"


WARN_MS = clock_skew.clock_skew.thresholds[0]


@dataclass(frozen=True)
class Clocks:
    """How many clocks were compared; only_sent: of whom nobody can say that they are behind, a way may be slow."""

    nodes: int
    only_sent: int
    only_received: int
    warn_ms: float
    delay_ms: float

    @property
    def unsaid(self) -> Iterator[tuple[str, str]]:
        """(side, why nothing is known of it)."""
        if self.only_sent:
            who = f"{count(self.only_sent, 'node')} of {self.nodes}"
            yield "Behind", f"unknown up to {self.delay_ms + self.warn_ms:,.0f}ms for {who}, heard one way only"
        if self.only_received:
            yield "Ahead", f"unknown for {count(self.only_received, 'node')} of {self.nodes}, that only hear"


def clocks_seen(con: duckdb.DuckDBPyConnection, who: str, time: str, until: datetime | None = None) -> Clocks:
    """who and time: the filter as SQL over node and window_start; until: where its time ends."""
    warn_ms = setting(con, f"clock_skew.{WARN_MS.name}", WARN_MS.default, until)
    delay_ms = setting(con, "clock_skew.max_one_way_delay_ms", MAX_ONE_WAY_DELAY_US / 1000, until)
    if not has(con, "clocks"):
        return Clocks(0, 0, 0, warn_ms, delay_ms)
    nodes, only_sent, only_received = con.execute(CLOCKS.format(who=who, time=time)).fetchall()[0]
    return Clocks(nodes, only_sent, only_received, warn_ms, delay_ms)


# ---- writes ----------------------------------------------------------------------------------------------------------

COMPARED = (
    "entity_type IS NOT NULL AND entity_id IS NOT NULL AND (vector_clock IS NOT NULL "
    "OR (version IS NOT NULL AND base_version IS NOT NULL) OR (started IS NOT NULL AND finished IS NOT NULL))"
)
NOT_COMPARED = "no write tells what it knew: vector_clock, version and base_version, or started and finished"


def filled(con: duckdb.DuckDBPyConnection, stream: str, *fields: str) -> bool:
    """Whether any row of a stream fills one of these fields."""
    sql = "SELECT coalesce(sum(filled), 0) > 0 FROM coverage WHERE stream = ? AND field IN (SELECT unnest(?))"
    return bool(con.execute(sql, [stream, fields]).fetchall()[0][0])


def compared(con: duckdb.DuckDBPyConnection, where: str = "true", during: During = None) -> bool:
    """Whether any write can be compared with another one. Rows are looked at only where fields say that it may be."""
    told = filled(con, "write_log", "vector_clock", "base_version", "finished")
    if not (told and filled(con, "write_log", "entity_id")):
        return False
    return bool(
        con.execute(f"SELECT 1 FROM {lake(con, 'write_log', during)} WHERE {COMPARED} AND {where} LIMIT 1").fetchall()
    )


# ---- all of it -------------------------------------------------------------------------------------------------------


NAMES = {
    "service": {"requests": ("service_name", "caller"), "write_log": ("service_name",)},
    "node": {"requests": ("node_id", "peer_node"), "heartbeats": ("node_id", "observer"), "write_log": ("node_id",)},
}


def in_no_row(con: duckdb.DuckDBPyConnection, wanted: Filter) -> Iterator[str]:
    """What was asked for and no row names, with what may have been meant: that nothing is found of it says nothing."""
    for what, name in (("service", wanted.service), ("node", wanted.node)):
        places = [f"SELECT {c} AS name FROM {view}" for view, columns in NAMES[what].items() for c in columns]
        every = " UNION ALL ".join(places)
        if name and not con.execute(f"SELECT 1 FROM ({every}) WHERE name = ? LIMIT 1", [name]).fetchone():
            known = [n for (n,) in con.execute(f"SELECT DISTINCT name FROM ({every}) WHERE name > ''").fetchall()]
            meant = ", ".join(get_close_matches(name, sorted(known)))
            yield f"{what} {name} (no row names it{f'; is it {meant}?' if meant else ''})"


def cannot_say(con: duckdb.DuckDBPyConnection, sight: dict[str, Sight], wanted: Filter) -> list[str]:
    """Detectors that could not judge, or not all: because they were blind, or for want of rows."""
    seeing = {s.detector for s in sight.values() if not s.blind}
    said = [f"{s.detector} ({s.why})" for s in sight.values() if s.blind]
    said += [f"{d} of {r.words}" for d, r in reaches(con, wanted).items() if d in seeing and r.short]
    if "clock_skew" in seeing:
        sides = clocks_seen(con, no_observer(con), "true", wanted.until).unsaid
        said += [f"clock_skew {side.lower()} ({why.removeprefix('unknown ')})" for side, why in sides]
    if "concurrent_writers" in seeing and not compared(con):
        said.append(f"concurrent_writers ({NOT_COMPARED})")
    return [*said, *lost(con, wanted)]


LOST = """
SELECT name, min(since), max(until), list(DISTINCT what ORDER BY what)
FROM (SELECT name, unnest(blinded_by) AS what FROM detectors WHERE state <> 'blind') JOIN lost USING (what)
WHERE until > $since AND since < $until GROUP BY name ORDER BY name
"""


def lost(con: duckdb.DuckDBPyConnection, wanted: Filter) -> Iterator[str]:
    """Of each detector when something that it reads was not there to be measured; what the lander read in two ways."""
    span = {"since": wanted.since or EPOCH, "until": wanted.until or datetime.max.replace(tzinfo=UTC)}
    for name, since, until, what in con.execute(LOST, span).fetchall():
        times = f"{since:%Y-%m-%d %H:%M:%S} and {until:%Y-%m-%d %H:%M:%S} UTC"
        yield f"{name} between {times} (of {' and '.join(what)} a part was lost)"
    unequal = con.execute("SELECT unequal FROM landed WHERE unequal > 0").fetchall() if has(con, "landed") else []
    for (n,) in unequal:
        yield f"which is right of {count(n, 'message')} that workers said in two ways (the first counts)"
