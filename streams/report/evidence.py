"""A finding enters; the landed rows behind it leave: as a query that anyone can paste, and as rows by coordinate."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb

from detectors.events import SCHEMA
from detectors.subjects import ARROW, SLASH, names
from detectors.tables.stamps import Y2001_US, Y2100_US
from detectors.windows import AHEAD_US, DAY_US, GAP_US, HOUR_US, OFFSET_BITS, OLD_US, SECOND_US, STRAY, SUB_BITS, us_of
from streams.again import lateness_of
from streams.catalog import catalog
from streams.landing.state import arrived, spell
from streams.report.found import Filter, Found, is_time
from streams.report.sentences import ahead

Row = dict[str, Any]
During = tuple[int, int] | None  # arrivals in µs; None: whenever

ENDED = {  # event time: when the line could first be written
    "requests": "timestamp + to_milliseconds(coalesce(duration_ms, 0))",
    "write_log": "coalesce(finished, timestamp)",
    "heartbeats": "server_time",
    "signals": "timestamp",
}
STREAM = {"entity": "write_log", "edge": "requests", "service": "requests", "node": "heartbeats", "fleet": "requests"}
NAMED_BY = {
    "edge": {"caller", "service_name"},
    "service": {"service_name"},
    "node": {"node_id"},
    "entity": {"entity_type", "entity_id"},
}  # what a stream must have so that a subject's rows can be told from the others
SERVING = """
CREATE TEMP TABLE IF NOT EXISTS serving AS
SELECT DISTINCT service_name, node_id FROM requests WHERE side IS DISTINCT FROM 'client'
"""


@dataclass(frozen=True)
class Evidence:
    """The rows of one stream that make up a finding, and when they arrived; None where there are no times."""

    stream: str
    where: str
    arrived: During = None

    @property
    def query(self) -> str:
        return f"SELECT * FROM {self.stream} WHERE {self.where} ORDER BY timestamp"

    def rows(self, con: duckdb.DuckDBPyConnection) -> int:
        return int(con.execute(f"SELECT count(*) {self.source(con)}").fetchall()[0][0])

    def source(self, con: duckdb.DuckDBPyConnection) -> str:
        """FROM and WHERE, with which no part is opened in vain."""
        return f"FROM {lake(con, self.stream, self.arrived)} WHERE {self.where}"


def lake(con: duckdb.DuckDBPyConnection, stream: str, during: During) -> str:
    """The stream, to stand behind FROM."""
    return f"{arrived(con, stream, *during)} AS {stream}" if during else stream


def text(value: str) -> str:
    """A string literal of SQL."""
    return "'" + value.replace("'", "''") + "'"


def instant(at: datetime) -> str:
    return f"TIMESTAMPTZ '{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}Z'".replace(".000000", "")


def evidence(con: duckdb.DuckDBPyConnection, f: Found) -> Evidence:
    """Of which subject, what counts, and when: the rows a finding was made from."""
    stream = f.proof[0].split("/")[0] if f.proof and not _beats(con, f) else _usual(f)
    space = [f"{n} = {text(v)}" for n, v in _space(f) if v]
    counts = COUNTS[f.detector](f) if f.detector in COUNTS else []
    time = _time(stream, f)
    told = NAMED_BY.get(f.subject_kind, set()) <= SCHEMA[stream].keys()
    parts = [*(_subject(con, f, stream, time) if told else []), *counts, *space]
    return Evidence(stream, " AND ".join([*parts, time]), arrivals(con, f))


def arrivals(con: duckdb.DuckDBPyConnection, f: Found) -> During:
    """When its rows came: what is used is stamped at most so far ahead, and was waited for no longer than that."""
    if not is_time(f.onset):
        return None
    return us_of(f.onset) - AHEAD_US, us_of(f.last) + lateness_of(con)


def _beats(con: duckdb.DuckDBPyConnection, f: Found) -> bool:
    """Whether heartbeats tell of the clock: calls may, too, but a heartbeat shows it at a glance."""
    if f.detector != "clock_skew":
        return False
    where = " AND ".join([_by_node(f, "heartbeats"), _time("heartbeats", f)])
    return Evidence("heartbeats", where, arrivals(con, f)).rows(con) > 0


def _usual(f: Found) -> str:
    """The stream that tells of such subjects, if the detector reads it at all."""
    usual = STREAM.get(f.subject_kind, f.subject.split("/")[0])
    known = catalog().get(f.detector)
    read = known.detector.reads.streams if known else {usual}
    return usual if usual in read else min(read)


def _space(f: Found) -> list[tuple[str, str]]:
    return [("environment", f.environment), ("tenant", f.tenant)]


def in_space(f: Found) -> str:
    """Environment and tenant prefix every key."""
    return " AND ".join(f"{n} = {text(v)}" for n, v in _space(f))


def _time(stream: str, f: Found) -> str:
    if not is_time(f.onset):
        return "told IS NULL"
    known = catalog().get(f.detector)
    clock, apart = f"CASE fate WHEN 'used' THEN {ENDED[stream]} ELSE arrival END", [STRAY, "late"]
    if known and known.detector.reads.clock == "arrival":
        clock, apart = "arrival", [] if known.detector.reads.strays else [STRAY]
    measured = "".join(f"fate <> {text(fate)} AND " for fate in apart)
    # BETWEEN, so that a long expression stands there once; the end itself is outside
    end = f.last - timedelta(microseconds=1)
    return f"{measured}{clock} BETWEEN {instant(f.onset)} AND {instant(end)}"


def _subject(con: duckdb.DuckDBPyConnection, f: Found, stream: str, time: str) -> list[str]:
    match f.subject_kind:
        case "edge":
            edge = of_edge(f)
            return [edge, one_side(con, Evidence(stream, f"{edge} AND {time}", arrivals(con, f)))]
        case "service" if f.detector == "timeout_cascade":
            return [f"trace_id IN (SELECT trace_id FROM traces WHERE {of_root(f)})"]
        case "service":
            return [f"service_name = {text(f.subject)}"]
        case "node":
            return [_by_node(f, stream)]
        case "entity":
            kind, number = names(f.subject, SLASH)
            return [f"entity_type = {text(kind or '')}", f"entity_id = {text(number)}"]
        case "partition":
            number = f.subject.rpartition("/")[2]
            return [f'"partition" = {int(number)}'] if number.isdecimal() else []
        case _:
            return []


def _by_node(f: Found, stream: str) -> str:
    """The rows that the node's clock stamped: a heartbeat has two clocks, and the subject may be the observer."""
    node = text(f.subject)
    stamps = (
        STAMPS[stream] if f.detector in ("clock_skew", "clock_drift", "impossible_timestamp") else STAMPS[stream][:1]
    )
    wrong = f.detector == "impossible_timestamp" and f.kind != "back"
    either = [f"{who} = {node}" + (f" AND {_off(f.kind, stamp)}" if wrong else "") for who, stamp in stamps]
    return either[0] if len(either) == 1 else f"({' OR '.join(either)})"


STAMPS = {
    "requests": [("node_id", ENDED["requests"])],
    "write_log": [("node_id", ENDED["write_log"])],
    "heartbeats": [("node_id", "client_time"), ("observer", "server_time")],
    "signals": [],
}


def _off(kind: str, stamp: str) -> str:
    """A stamp that can't be true, as the table `stamps` names it."""
    ahead = f"{stamp} > arrival + to_seconds({AHEAD_US // SECOND_US})"
    days = f"CASE WHEN told THEN {OLD_US // DAY_US} ELSE {GAP_US // DAY_US} END"
    old = f"{stamp} < arrival - to_days({days})"
    dated = f"epoch_us({stamp}) BETWEEN {Y2001_US} AND {Y2100_US - 1}"
    match kind:
        case "epoch":
            return f"({ahead} OR {old}) AND NOT {dated}"
        case "ahead":
            return f"{ahead} AND {dated}"
        case _:
            return f"{old} AND {dated}"


def served_by(con: duckdb.DuckDBPyConnection, service: str, node: str = "node_id") -> str:
    """That a node answers for a service. All rows are looked through for it, once in a connection."""
    con.execute(SERVING)
    return f"{node} IN (SELECT node_id FROM serving WHERE service_name = {text(service)})"


def of_edge(f: Found) -> str:
    """The rows of an edge, of either side."""
    caller, service = names(f.subject, ARROW)
    calling = "caller IS NULL" if caller is None else f"caller = {text(caller)}"
    return f"{calling} AND service_name = {text(service)}"


def one_side(con: duckdb.DuckDBPyConnection, lines: Evidence) -> str:
    """Client lines count; server lines where there are no client lines: never both."""
    client = "side IS DISTINCT FROM 'server'"
    found = con.execute(f"SELECT 1 {lines.source(con)} AND {client} LIMIT 1").fetchall()
    return client if found else "side = 'server'"


def _doubled(f: Found) -> list[str]:
    if f.kind == "missing":
        return ["idempotency_key IS NULL", "retry_count > 0"]
    if f.kind == "after_ttl":
        return [f"idempotency_key = {text(f.facts['key'])}"]
    return [f"idempotency_key IN (SELECT idempotency_key FROM keys WHERE {uses(f)})"]


def _repeated(f: Found) -> list[str]:
    """Retries that were counted; where they were told from equal calls, those of the table `repeats`, too."""
    if not f.facts.get("guessed"):
        return ["retry_count > 0"]
    place = f"requests.partition * {1 << OFFSET_BITS + SUB_BITS} + requests.offset * {1 << SUB_BITS} + sub"
    return [f"(retry_count > 0 OR {place} IN (SELECT coord FROM repeats WHERE {in_space(f)} AND {in_episode(f)}))"]


def uses(f: Found) -> str:
    """The rows of the table `keys` that earned a key its verdict, each key once."""
    return (
        f"{in_space(f)} AND service_name = {text(f.subject)} AND verdict = {text(f.kind)} AND number = 1 "
        f"AND {in_episode(f)}"
    )


def of_root(f: Found) -> str:
    """The rows of the table `traces` that a cascade was made from."""
    budget = f.facts["budget_ms"]
    kind = f"timeouts = 0 AND elapsed_us > {budget * 1000:.0f}" if f.kind == "over_budget" else "timeouts > 0"
    return f"{in_space(f)} AND root = {text(f.subject)} AND {kind} AND {in_episode(f)}"


def in_episode(f: Found) -> str:
    """The windows of a table in which the finding was made."""
    return f"window_start >= {instant(f.onset)} AND window_start < {instant(f.last)}"


COUNTS: dict[str, Callable[[Found], list[str]]] = {
    "retry_storm": _repeated,
    "timeout_ratio": lambda _: ["status = 'timeout'"],
    "timeout_cascade": lambda f: [
        "parent_span_id IS NULL" if f.kind == "over_budget" else "status = 'timeout'",
    ],
    "timeout_budget": lambda _: ["timeout_ms IS NOT NULL", "health_check IS DISTINCT FROM true"],
    "duplicate_key": _doubled,
    "idempotency_cache": lambda _: ["cache = 'miss'"],
}


# ---- rows by coordinate ---------------------------------------------------------------------------------------------

COORDINATE = re.compile(r"(\w+)/(\d+):(\d+)(?:\.(\d+))?")


def proven_by(con: duckdb.DuckDBPyConnection, f: Found, made_of: Evidence) -> list[Row]:
    """The rows at a finding's coordinates; for a clock the heartbeats that bound it best, or both lines of attempts."""
    if f.detector != "clock_skew":
        return rows_at(con, f.proof, made_of.arrived)
    if made_of.stream == "heartbeats":
        sent = f"CASE WHEN node_id = {text(f.subject)} THEN 1 ELSE -1 END"
        apart = f"{sent} * (epoch_us(server_time) - epoch_us(client_time))"
        order = f"{apart}{'' if ahead(f) else ' DESC'}"
        return fetch(con, made_of.stream, made_of.where, order, 4, made_of.arrived)
    lines = {r["record"]: r for half in rows_at(con, f.proof[:PAIRS], made_of.arrived) for r in _attempt(con, f, half)}
    return list(lines.values())


PAIRS = 4  # of lines, on a screen


def _attempt(con: duckdb.DuckDBPyConnection, f: Found, half: Row) -> list[Row]:
    """Both lines of the attempt that one of them tells of."""
    span = half["span_id"] if half["side"] == "client" else half["parent_span_id"]
    if half["trace_id"] and span:
        same = f"trace_id = {text(half['trace_id'])} AND {text(span)} IN (span_id, parent_span_id)"
    else:
        number = half["retry_count"] or 0
        same = f"request_id = {text(half['request_id'] or '')} AND coalesce(retry_count, 0) = {number}"
    return _sought(con, "requests", f"{in_space(f)} AND {same}", 2, beside([half]))


def beside(rows: Iterable[Row]) -> During:
    """When the other lines of the same attempts should have arrived."""
    at = [us_of(r["arrival"]) for r in rows]
    return (min(at) - HOUR_US, max(at) + HOUR_US) if at else None


def rows_at(con: duckdb.DuckDBPyConnection, records: Sequence[str], during: During = None) -> list[Row]:
    """The landed rows at these coordinates, in the order of their time, each with its `record`.

    during: when most of them arrived, where that is known.
    """
    found = []
    for stream in SCHEMA:
        places = [m.groups() for r in records if (m := COORDINATE.fullmatch(r)) and m[1] == stream]
        if places:
            listed = ", ".join(f"({int(p)}, {int(o)}, {int(s or 0)})" for _, p, o, s in places)
            offsets = ", ".join(o for _, _, o, _ in places)
            where = f'"offset" IN ({offsets}) AND ("partition", "offset", sub) IN ({listed})'
            found += _sought(con, stream, where, len(set(places)), during)
    return found


def _sought(con: duckdb.DuckDBPyConnection, stream: str, where: str, rows: int, during: During) -> list[Row]:
    """So many rows that should have arrived in this time; elsewhere is only looked if they did not."""
    near = fetch(con, stream, where, limit=rows, during=during)
    return near if len(near) == rows or during is None else fetch(con, stream, where, limit=rows)


def fetch(
    con: duckdb.DuckDBPyConnection,
    stream: str,
    where: str,
    order: str = "timestamp",
    limit: int = 1000,
    during: During = None,
) -> list[Row]:
    """Landed rows as dicts, with `stream` and `record`, earliest first unless ordered otherwise."""
    whole = f'{order}, "partition", "offset", sub LIMIT {limit}'
    result = con.execute(f"SELECT * FROM {lake(con, stream, during)} WHERE {where} ORDER BY {whole}")
    names = [d[0] for d in result.description or ()]
    rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    for row in rows:
        sub = f".{row['sub']}" if row["sub"] else ""
        row |= {"stream": stream, "record": f"{stream}/{row['partition']}:{row['offset']}{sub}"}
    return rows


# ---- the list behind a finding --------------------------------------------------------------------------------------


def behind(con: duckdb.DuckDBPyConnection, f: Found) -> tuple[list[str], list[list[Any]]]:
    """(columns, rows): every doubled key with its two effects; else the landed rows."""
    if f.detector == "duplicate_key" and f.kind in ("applied_twice", "other_payload", "concurrent"):
        columns = ["idempotency_key", "record", "earlier_record", "attempt", "earlier_attempt", "certain"]
        sql = "SELECT idempotency_key, coord, earlier, attempt, earlier_attempt, certain FROM keys"
        found = con.execute(f"{sql} WHERE {uses(f)} ORDER BY window_start, coord").fetchall()
        return columns, [[k, spell(c), spell(e), *rest] for k, c, e, *rest in found]
    result = con.execute(f"SELECT * {evidence(con, f).source(con)} ORDER BY timestamp")
    return [d[0] for d in result.description or ()], [list(row) for row in result.fetchall()]


# ---- what a filter lets through -------------------------------------------------------------------------------------


def about(con: duckdb.DuckDBPyConnection, every: Sequence[Found], wanted: Filter) -> list[Found]:
    """Findings in the time and of the detector asked for that are about the service and node asked for, or have a row
    of them, and of the key and trace asked for."""
    mine = (f for f in wanted.in_time(every) if wanted.detector in ("", f.detector))
    return [f for f in mine if _has(con, f, wanted)]


def _named(f: Found, what: str) -> set[str]:
    """The service or node that a finding is about: it stays, whatever its rows say."""
    if f.subject_kind == "edge" and what == "service":
        return set(f.subject.split("->", 1))
    return {f.subject} if f.subject_kind == what else set()


def _has(con: duckdb.DuckDBPyConnection, f: Found, wanted: Filter) -> bool:
    if not (wanted.service or wanted.node or wanted.key or wanted.trace):
        return True  # without a look at rows
    mine = evidence(con, f)
    shape = SCHEMA[mine.stream]
    asked = []
    if wanted.service and wanted.service not in _named(f, "service"):
        service = text(wanted.service)
        named = [f"{n} = {service}" for n in ("service_name", "caller") if n in shape]
        asked.append(" OR ".join(named) or served_by(con, wanted.service))
    if wanted.node and wanted.node not in _named(f, "node"):
        named = [f"{n} = {text(wanted.node)}" for n in ("node_id", "peer_node", "observer") if n in shape]
        asked.append(" OR ".join(named) or "false")
    for column, value in (("idempotency_key", wanted.key), ("trace_id", wanted.trace)):
        if value:
            asked.append(f"{column} = {text(value)}" if column in shape else "false")
    if not asked:
        return True
    where = " AND ".join([mine.source(con), *(f"({a})" for a in asked)])
    return bool(con.execute(f"SELECT 1 {where} LIMIT 1").fetchall())
