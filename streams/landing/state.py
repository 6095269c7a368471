"""The state folder: its lock, its readable file `asynchealth.duckdb`, and how a new one takes its place.

A new file is built aside and switched with one rename, so a reader or a kill at any moment meets the old state or the
new one, never a half.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from detectors.detector import Detector, Settings
from detectors.engine import FINDING
from detectors.events import LANDED, STREAMS, fields
from detectors.incidents import INCIDENT, change, fold
from detectors.windows import EPOCH, parse_coordinate
from streams.coverage import OWN, Filled, Seen, format_of, seen
from streams.landing.lake import Part, damaged
from streams.problems import Exit, Problem, disk_full, shell
from streams.settings import fingerprint
from streams.sources.files import READABLE, Known

SCHEMA_VERSION = 7
RECENT = "recent"  # the schema of what a lander has not moved to the lake yet
HIDDEN = {"rejects": " EXCLUDE (arrival)"}
LANDING = "landing.duckdb"  # what a lander writes, where a state is fed live
ONE_RUN = "one-run"  # marks a state of `up`, whose broker is gone with its process
STATEMENT_ROWS = 100  # in one INSERT: with one row in each they cost ten times as much
BROKER = "broker"  # where a lander that runs here reads, and the prefix of its topics
BUILD_MEMORY = "512MB"  # what DuckDB may keep of a file that it builds

DDL = f"""
CREATE TABLE meta (schema_version INTEGER NOT NULL);
INSERT INTO meta VALUES ({SCHEMA_VERSION});
CREATE TABLE lake_parts (
    stream VARCHAR NOT NULL, path VARCHAR NOT NULL, rows BIGINT NOT NULL,
    first_arrival BIGINT NOT NULL, last_arrival BIGINT NOT NULL);
CREATE TABLE recordings (
    stream VARCHAR NOT NULL, name VARCHAR NOT NULL, length BIGINT NOT NULL, digest VARCHAR NOT NULL,
    records BIGINT NOT NULL, "partition" BIGINT NOT NULL, tombstones BIGINT NOT NULL, clock BIGINT,
    head VARCHAR NOT NULL, arrival VARCHAR NOT NULL, read_by VARCHAR NOT NULL);
CREATE TABLE rejects (
    stream VARCHAR NOT NULL, source VARCHAR NOT NULL, "partition" BIGINT NOT NULL, "offset" BIGINT NOT NULL,
    sub BIGINT NOT NULL, reason VARCHAR NOT NULL, field VARCHAR NOT NULL, raw VARCHAR);
CREATE TABLE accounting (
    stream VARCHAR NOT NULL, source VARCHAR NOT NULL, "partition" BIGINT NOT NULL, minute TIMESTAMPTZ,
    read BIGINT NOT NULL, used BIGINT NOT NULL, late BIGINT NOT NULL, implausible BIGINT NOT NULL,
    rejected BIGINT NOT NULL, repeated BIGINT NOT NULL, tombstones BIGINT NOT NULL, stray BIGINT NOT NULL DEFAULT 0,
    parked BIGINT NOT NULL DEFAULT 0);
CREATE TABLE coverage (stream VARCHAR NOT NULL, field VARCHAR NOT NULL, rows BIGINT NOT NULL, filled BIGINT NOT NULL);
CREATE TABLE detectors (
    name VARCHAR NOT NULL, version BIGINT NOT NULL, state VARCHAR NOT NULL, missing VARCHAR[] NOT NULL,
    blinded_by VARCHAR[] NOT NULL);
CREATE TABLE lost (what VARCHAR NOT NULL, since TIMESTAMPTZ NOT NULL, until TIMESTAMPTZ NOT NULL);
CREATE TABLE settings (config VARCHAR NOT NULL, name VARCHAR NOT NULL, value VARCHAR NOT NULL);
CREATE TABLE judged_with (since TIMESTAMPTZ NOT NULL, config VARCHAR NOT NULL);
CREATE TABLE removed (why VARCHAR NOT NULL, before TIMESTAMPTZ NOT NULL, rows BIGINT NOT NULL);
CREATE TABLE runs (
    started TIMESTAMPTZ NOT NULL, ended TIMESTAMPTZ NOT NULL, command VARCHAR NOT NULL, lateness_us BIGINT NOT NULL,
    version VARCHAR NOT NULL, notes VARCHAR[] NOT NULL);
"""


INCIDENT_VIEWS = {
    "incidents": """SELECT * EXCLUDE (final_at) FROM incident_changes
        QUALIFY row_number() OVER (PARTITION BY incident_id ORDER BY final_at DESC) = 1""",
    "incident_findings": """SELECT f.finding_id, incident_id, f.role
        FROM (SELECT unnest(findings) AS f, incident_id, final_at FROM incident_changes)
        QUALIFY row_number() OVER (PARTITION BY f.finding_id ORDER BY final_at DESC) = 1""",
    "causes": """SELECT e.effect, e.cause, e.reason, e.ruled_out
        FROM (SELECT unnest(chain) AS e, final_at FROM incident_changes)
        QUALIFY rank() OVER (PARTITION BY e.effect ORDER BY final_at DESC) = 1""",
}


def ddl(name: str, columns: Mapping[str, Any], first: str = "") -> str:
    return f"CREATE TABLE {name} ({first}{', '.join(f'{chr(34)}{n}{chr(34)} {_kind(t)}' for n, t in columns.items())})"


def _kind(dtype: Any) -> str:
    kinds: dict[Any, str] = {pl.String: "VARCHAR", pl.Int64: "BIGINT", pl.Float64: "DOUBLE", pl.Boolean: "BOOLEAN"}
    kinds |= {pl.Datetime("us", "UTC"): "TIMESTAMPTZ", pl.List(pl.Int64): "VARCHAR[]"}
    match dtype:
        case pl.List(inner=pl.Struct(fields=parts)):
            return f"STRUCT({', '.join(f'{p.name} {_kind(p.dtype)}' for p in parts)})[]"
        case _:
            return kinds[dtype]


def spell(coord: int) -> str:
    """A coordinate as people read it: requests/0:83702, with .2 behind it for the third event of a message."""
    stream, partition, offset, sub = parse_coordinate(coord)
    return f"{stream}/{partition}:{offset}" + (f".{sub}" if sub else "")


@contextmanager
def locked(state: Path, then: str = "ps -p {owner}") -> Iterator[None]:
    """Only one process changes a state folder at a time; readers are never kept out. then: the next command."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        handle = (state / "lock").open("a+b", buffering=0)
    except OSError as error:
        then = f"df -h {shell(state.parent)}" if disk_full(error) else f"ls -ld {shell(state)}"
        raise Problem(str(state), f"can't be written: {error.strerror}", then, Exit.STATE) from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().decode() or "unknown"
            reason = f"locked by another asynchealth (process {owner})"
            raise Problem(str(state), reason, then.format(owner=owner), Exit.STATE) from None
        handle.truncate(0)
        handle.write(str(os.getpid()).encode())
        yield


def fed_from(state: Path) -> tuple[str, str]:
    """The broker and the prefix of the lander that writes here, or did last; empty where none does."""
    if not (state / BROKER).exists():
        return "", ""
    broker, prefix = (state / BROKER).read_text().splitlines()
    return broker, prefix


def begin_anew(state: Path) -> None:
    """Removes what `up` left here, since its broker is gone; what came otherwise is never touched."""
    with locked(state):
        mark = state / ONE_RUN
        if not mark.exists() and ((state / READABLE).exists() or (state / LANDING).exists()):
            reason = "holds what was replayed, or landed from a Kafka; up begins anew at each start"
            raise Problem(str(state), reason, "asynchealth up --state NEW", Exit.STATE)
        mark.touch()
        for path in (READABLE, LANDING, f"{LANDING}.wal"):
            (state / path).unlink(missing_ok=True)
        if (state / "lake").exists():
            shutil.rmtree(state / "lake")


def open_readable(state: Path) -> duckdb.DuckDBPyConnection:
    """The readable file, read-only, in UTC, with views on the rows where the file is now."""
    path = state / READABLE
    if not path.exists():
        then = f"asynchealth replay PATH… --state {shell(state)}"
        raise Problem(str(state), "no asynchealth state here", then, Exit.NOTHING)
    try:
        con = duckdb.connect(str(path), read_only=True)
    except duckdb.Error as error:
        raise unopened(path, error) from None
    with ExitStack() as unusable:
        unusable.callback(con.close)
        _prepare(con, state)
        unusable.pop_all()
    return con


def unopened(path: Path, error: duckdb.Error) -> Problem:
    """One that somebody has open is whole: to put it aside would lose what it holds."""
    reason = str(error).splitlines()[0]
    held = "lock on file" in reason
    return Problem(
        str(path), reason, f"fuser {shell(path)}" if held else f"mv {shell(path)} {shell(path)}.bad", Exit.STATE
    )


def _prepare(con: duckdb.DuckDBPyConnection, state: Path) -> None:
    try:
        con.execute("SET TimeZone='UTC'")
        version = version_of(con)
        if version != SCHEMA_VERSION:
            reason = f"has schema {version}, this asynchealth reads {SCHEMA_VERSION}"
            raise Problem(str(state), reason, f"asynchealth replay PATH… --fresh --state {shell(state)}", Exit.STATE)
        for name, sql in view_sql(state, parts_of(con)).items():
            con.execute(f'CREATE TEMP VIEW "{name}" AS {sql}')
    except duckdb.Error as error:
        raise damaged(state, error) from None


def version_of(con: duckdb.DuckDBPyConnection) -> int | None:
    """None of an empty database."""
    if not con.execute("SELECT 1 FROM duckdb_tables() LIMIT 1").fetchall():
        return None
    return int(con.execute("SELECT schema_version FROM meta").fetchall()[0][0])


def parts_of(con: duckdb.DuckDBPyConnection) -> list[Part]:
    return [Part(*row) for row in con.execute("SELECT * FROM lake_parts ORDER BY ALL").fetchall()]


def known_of(con: duckdb.DuckDBPyConnection) -> list[Known]:
    return [Known(*row) for row in con.execute("SELECT * FROM recordings ORDER BY ALL").fetchall()]


def paths(state: Path, parts: Sequence[Part]) -> list[Path]:
    """From the root on; there may be thousands."""
    folder = state.resolve()
    return [folder / p.path for p in parts]


def view_sql(state: Path, parts: Sequence[Part]) -> dict[str, str]:
    """A SELECT for each stream over its parts, and for what a lander keeps partly in the lake.

    A stream without rows is an empty view with the same columns.
    """
    files: dict[str, list[str]] = {stream: [] for stream in STREAMS}
    for part, path in zip(parts, paths(state, parts), strict=True):
        files.setdefault(part.stream, []).append(str(path).replace("'", "''"))
    views = {}
    for name, some in files.items():
        listed = ", ".join(f"'{p}'" for p in some)
        lake = f"read_parquet([{listed}])"
        if name not in STREAMS:
            views[name] = f"{_recent_sql(name)} UNION ALL BY NAME SELECT *{HIDDEN.get(name, '')} FROM {lake}"
        elif some:
            clock = " REPLACE (map_from_entries(vector_clock) AS vector_clock)" if name == "write_log" else ""
            views[name] = f"SELECT *{clock} FROM {lake} WHERE fate <> 'repeated'"
        else:
            kinds: dict[pl.DataType, str] = {pl.String(): "VARCHAR", pl.Int64(): "BIGINT", pl.Boolean(): "BOOLEAN"}
            ddl = {f.name: f.ddl for f in fields(name)}
            columns = ", ".join(f'NULL::{ddl.get(n) or kinds[t]} AS "{n}"' for n, t in LANDED[name].items())
            views[name] = f"SELECT {columns} WHERE false"
    return views


def arrived(con: duckdb.DuckDBPyConnection, stream: str, first_us: int, last_us: int) -> str:
    """The stream as SQL that opens no part but those with an arrival in this time: there may be thousands of others."""
    at = con.execute("SELECT path FROM duckdb_databases() WHERE database_name = current_database()").fetchall()[0][0]
    sql = "SELECT * FROM lake_parts WHERE stream = ? AND first_arrival <= ? AND last_arrival >= ? ORDER BY ALL"
    parts = [Part(*row) for row in con.execute(sql, [stream, last_us, first_us]).fetchall()]
    return f"({view_sql(Path(at).parent, parts)[stream]})"


def _recent_sql(name: str) -> str:
    return f'SELECT * FROM {RECENT}."{name}"'


def recent(con: duckdb.DuckDBPyConnection) -> list[str]:
    """What a lander keeps partly in its database and partly in the lake: tables of windows, and rejects."""
    found = con.execute("SELECT table_name FROM duckdb_tables() WHERE schema_name = ? ORDER BY ALL", [RECENT])
    return [name for (name,) in found.fetchall()]


@contextmanager
def build(state: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A new database aside; it becomes the readable file when the block ends without an error.

    Not one transaction: DuckDB holds what is not committed in memory, and nobody reads the file before it is whole.
    """
    aside = state / f"{READABLE}.building"
    _clear(state)
    con = duckdb.connect(str(aside))
    try:
        prepare(con)
        make(con)
        yield con
        con.execute("CHECKPOINT")
        con.close()
        with aside.open("rb") as f:
            os.fsync(f.fileno())
        os.replace(aside, state / READABLE)
    finally:
        con.close()
        _clear(state)


def prepare(con: duckdb.DuckDBPyConnection) -> None:
    """A connection that writes."""
    con.execute("SET TimeZone='UTC'")
    con.execute(f"SET memory_limit='{BUILD_MEMORY}'")


def make(con: duckdb.DuckDBPyConnection) -> None:
    """The tables of an empty database."""
    con.execute(DDL)
    make_findings(con)
    make_incidents(con)


def make_findings(con: duckdb.DuckDBPyConnection) -> None:
    con.execute(ddl("findings", FINDING))
    con.execute(ddl("finding_changes", FINDING, "final_at TIMESTAMPTZ, "))


def make_incidents(con: duckdb.DuckDBPyConnection) -> None:
    """Of an incident what it was, and views on what it is."""
    con.execute(ddl("incident_changes", INCIDENT, "final_at TIMESTAMPTZ, "))
    for name, sql in INCIDENT_VIEWS.items():
        con.execute(f"CREATE VIEW {name} AS {sql}")


def _clear(state: Path) -> None:
    """Removes a file that was begun and its companions: the log, and the folder that DuckDB spills to."""
    for old in state.glob(f"{READABLE}.building*"):
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()


def land_findings(con: duckdb.DuckDBPyConnection, table: str, rows: pl.DataFrame) -> None:
    proof = [[spell(c) for c in coords] for coords in rows["proof"]]
    land_frame(con, table, rows.with_columns(proof=pl.Series(proof, dtype=pl.List(pl.String))))


def land_incidents(con: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """All of them, out of how findings changed."""
    times = ", ".join(f"epoch_us({n}) AS {n}" for n in ("onset", "last", "resolved", "final_at"))
    rows = con.sql(f"SELECT * EXCLUDE (proof) REPLACE ({times}) FROM finding_changes").pl()
    _, said = fold((), (change(row, row["final_at"]) for row in rows.iter_rows(named=True)), settings)
    con.execute("DELETE FROM incident_changes")
    if said:
        land_frame(con, "incident_changes", pl.concat(frame for _, frame in said))


def only_one(con: duckdb.DuckDBPyConnection, news: str) -> None:
    """Of one subject no two findings overlap: those of `news`, which have landed, stay, and others of it go.

    They were judged again (`rebuild`) with other thresholds than the workers', and there began or ended elsewhere.
    """
    same = " AND ".join(f'o."{n}" = n."{n}"' for n in SUBJECT)
    overlap = "o.onset < n.last AND o.last > n.onset AND o.finding_id <> n.finding_id"
    con.execute(f"DELETE FROM findings o WHERE EXISTS (FROM {news} n WHERE {same} AND {overlap})")
    con.execute("DELETE FROM finding_changes WHERE finding_id NOT IN (SELECT finding_id FROM findings)")
    left = "SELECT incident_id FROM (SELECT incident_id, unnest(findings).finding_id AS f FROM incident_changes)"
    con.execute(
        f"DELETE FROM incident_changes WHERE incident_id NOT IN ({left} WHERE f IN (SELECT finding_id FROM findings))"
    )


SUBJECT = ("detector", "kind", "subject_kind", "subject", "environment", "tenant")


def land_table(con: duckdb.DuckDBPyConnection, name: str, rows: pl.DataFrame, schema: str = "main") -> None:
    """A table of windows; window_start is its window, coordinates stay integers (see the macro `record`)."""
    instant = pl.from_epoch("window", time_unit="us").dt.replace_time_zone("UTC").alias("window_start")
    frame = rows.select(instant, pl.exclude("window"))
    con.register("frame", frame.to_arrow())
    con.execute(f'CREATE TABLE IF NOT EXISTS {schema}."{name}" AS SELECT * FROM frame LIMIT 0')
    con.execute(f'INSERT INTO {schema}."{name}" BY NAME SELECT * FROM frame')
    con.unregister("frame")


def add_views(con: duckdb.DuckDBPyConnection, state: Path, parts: Sequence[Part]) -> None:
    """Views that anyone with `duckdb` sees; our own commands lay TEMP views from where the file is now over them."""
    for name, sql in ({n: _recent_sql(n) for n in recent(con)} | view_sql(state, parts)).items():
        con.execute(f'CREATE OR REPLACE VIEW "{name}" AS {sql}')


def land_rows(con: duckdb.DuckDBPyConnection, table: str, rows: Sequence[Any]) -> None:
    """Dataclasses or tuples in the order of the table's columns; many at once."""
    if not rows:
        return
    plain = [astuple(r) if hasattr(r, "__dataclass_fields__") else tuple(r) for r in rows]
    marks = f"({', '.join('?' * len(plain[0]))})"
    for at in range(0, len(plain), STATEMENT_ROWS):
        some = plain[at : at + STATEMENT_ROWS]
        con.execute(f"INSERT INTO {table} VALUES {', '.join([marks] * len(some))}", [*chain.from_iterable(some)])


def land_settings(con: duckdb.DuckDBPyConnection, rows: Sequence[tuple[str, ...]], since: datetime = EPOCH) -> None:
    """Fingerprint, name and value, of each fingerprint once; and that windows are judged with it from then on.

    No rows are the defaults; the first are those of all windows before, too.
    """
    known = {config for (config,) in con.execute("SELECT config FROM settings").fetchall()}
    land_rows(con, "settings", [r for r in rows if r[0] not in known])
    config = rows[0][0] if rows else fingerprint(Settings())
    last = con.execute("SELECT config FROM judged_with ORDER BY since DESC LIMIT 1").fetchall()
    if last != [(config,)]:
        land_rows(con, "judged_with", [(since if last else EPOCH, config)])


def land_sight(con: duckdb.DuckDBPyConnection, detectors: Sequence[Detector], covered: Filled) -> list[Seen]:
    """Which detectors run on the fields that are filled and the tables that were measured."""
    every = [seen(d, covered, lambda table: has(con, table)) for d in detectors]
    rows = [
        (s.detector, d.version, s.state, [*s.missing], sorted(d.blinded_by))
        for s, d in zip(every, detectors, strict=True)
    ]
    land_rows(con, "detectors", rows)
    return every


def has(con: duckdb.DuckDBPyConnection, table: str) -> bool:
    """Whether anything of the kind was measured: a table exists from its first row on."""
    return bool(con.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = ?", [table]).fetchall())


def formats_of(con: duckdb.DuckDBPyConnection) -> dict[str, set[str]]:
    """What each stream was read as; of what a lander takes our own events."""
    found: dict[str, set[str]] = {}
    for stream, read_by in con.execute("SELECT stream, read_by FROM recordings").fetchall():
        found.setdefault(stream, set()).add(format_of(read_by))
    return found or {stream: {OWN} for stream in STREAMS}


def land_frame(con: duckdb.DuckDBPyConnection, table: str, frame: pl.DataFrame) -> None:
    if len(frame):
        con.register("frame", frame.to_arrow())
        con.execute(f'INSERT INTO "{table}" BY NAME SELECT * FROM frame')
        con.unregister("frame")
