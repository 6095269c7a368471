"""Hostile and honest SQL enters; what must leave is a refusal or an answer, and never a changed file.

Every attack is first let loose on a copy of the state over an ordinary connection, to show that it is one.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams.report import sql

HOUR = "lake/requests/2026-03-08T06.parquet"
COPY = "COPY (SELECT 666) TO '{part}' (FORMAT csv, USE_TMP_FILE false)"
COPY_DB = COPY.replace("{part}", "{db}")
PLAYBOOK = {
    "clock skew": """
-- 1. Max Clock Skew
SELECT\x20
    MAX(ABS(EXTRACT(EPOCH FROM (server_time - client_time)))) as max_skew_ms,
    COUNT(CASE WHEN ABS(EXTRACT(EPOCH FROM (server_time - client_time))) > 100 THEN 1 END) as nodes_over_100ms
FROM heartbeats\x20
WHERE timestamp > NOW() - INTERVAL '5 minutes';
""",
    "timeout-retry loops": """
-- 2. Timeout-Retry Loops
SELECT\x20
    service_name,
    COUNT(*) as timeout_retries,
    AVG(retry_count) as avg_retries,
    MAX(retry_count) as max_retries
FROM requests
WHERE status = 'timeout'\x20
    AND retry_count > 0
    AND timestamp > NOW() - INTERVAL '24 hours'
GROUP BY service_name
ORDER BY timeout_retries DESC;
""",
    "concurrent writes": """
-- 3. Concurrent Write Conflicts
SELECT\x20
    entity_type,
    entity_id,
    COUNT(DISTINCT node_id) as concurrent_writers,
    COUNT(*) as write_attempts
FROM write_log
WHERE timestamp > NOW() - INTERVAL '1 hour'
GROUP BY entity_type, entity_id
HAVING COUNT(DISTINCT node_id) > 1
ORDER BY concurrent_writers DESC
LIMIT 10;
""",
    "card": """  SELECT * FROM requests                 \x20
  WHERE idempotency_key = 'XXX';          """,
}


def make_state(state: Path) -> None:
    """A small state folder; one recent timed-out retry, one skewed heartbeat, one entity with two writers."""
    parts = {
        HOUR: "SELECT now() - to_minutes(n) AS timestamp, 'payment' AS service_name, 'timeout' AS status, "
        "n::INTEGER AS retry_count, 'XXX' AS idempotency_key FROM range(3) t(n)",
        "lake/heartbeats/a.parquet": "SELECT now() AS timestamp, 'n1' AS node_id, now() AS server_time, "
        "now() - INTERVAL '200 seconds' AS client_time",
        "lake/write_log/a.parquet": "SELECT now() AS timestamp, 'order' AS entity_type, '42' AS entity_id, "
        "'n' || n AS node_id FROM range(2) t(n)",
    }
    with duckdb.connect(str(make_folder(state) / sql.DATABASE)) as con:
        for path, select in parts.items():
            make_folder((state / path).parent)
            con.execute(f"COPY ({select}) TO '{state / path}'")
        con.execute("CREATE TABLE findings AS SELECT 'dk-3f9a' AS finding_id, 'page' AS level")
        # As a state that was moved has it: only the TEMP view knows where the parts are now.
        con.execute("CREATE TABLE gone AS SELECT 1 AS a; CREATE VIEW requests AS SELECT * FROM gone; DROP TABLE gone")


def make_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def parts_of(state: Path) -> list[Path]:
    return sorted((state / "lake").rglob("*.parquet"))


def opened(state: Path) -> duckdb.DuckDBPyConnection:
    views = {part.parent.name: f"SELECT * FROM read_parquet(['{part}'])" for part in parts_of(state)}
    signals = "SELECT NULL::TIMESTAMPTZ AS timestamp, NULL::VARCHAR AS subject WHERE false"
    return sql.open_shut_in(state, {**views, "signals": signals}, parts_of(state))


def files_under(*folders: Path) -> dict[str, str]:
    """Every file and its hash, read by another process: to open a file that DuckDB holds would drop its lock."""
    found = subprocess.run(
        ["find", *map(str, folders), "-type", "f", "-exec", "sha256sum", "{}", "+"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {path: digest for digest, path in (line.split(maxsplit=1) for line in found.stdout.splitlines())}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tmp_path with state/, an empty current directory cwd/ and an empty home/: all a statement could write to."""
    make_state(tmp_path / "state")
    monkeypatch.chdir(make_folder(tmp_path / "cwd"))
    monkeypatch.setenv("HOME", str(make_folder(tmp_path / "home")))
    return tmp_path


@pytest.fixture
def con(world: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with opened(world / "state") as con:
        yield con


def filled_in(statement: str, state: Path) -> str:
    paths = {"{db}": state / sql.DATABASE, "{part}": state / HOUR, "{state}": state}
    for name, path in paths.items():
        statement = statement.replace(name, str(path))
    return statement


def unprotected(state: Path, statement: str) -> None:
    """The statement over an ordinary connection that only opened the file for reading."""
    with duckdb.connect(str(state / sql.DATABASE), read_only=True) as con:
        con.execute(filled_in(statement, state))


def locked_settings_only(state: Path, statement: str) -> None:
    with opened(state) as con:
        con.execute(filled_in(statement, state))


# --- statements that write through settings alone, or would if nothing were locked

DESTROYS_THROUGH_LOCKED_SETTINGS = [
    COPY,
    f"EXPLAIN ANALYZE {COPY}",
    f"explain/* */analyze {COPY}",
    f"PREPARE p AS {COPY}; EXECUTE p",
    f"WITH a AS ({COPY}) SELECT 1",
    f"WITH a AS ({COPY}) SELECT * FROM a",
    f"SELECT 1; {COPY}",
    f"{COPY}; SELECT 1",
    f"SELECT 1 /* ; */ ; /* -- */ {COPY} -- SELECT",
    f"/* /* */ SELECT 1 -- */ {COPY}",
    f"\ufeff{COPY}",
    f"\u00a0{COPY.replace(' ', chr(0xA0))}",
]

WRITES_WHEN_UNPROTECTED = [
    "EXPORT DATABASE '{state}/dump'",
    "EXPORT DATABASE 'dump'",
    "COPY findings TO '{state}/lake/new.parquet'",
    "COPY (FROM findings) TO 'new.csv'",
    "COPY findings TO '{state}/split' (FORMAT parquet, PARTITION_BY (level))",
    "ATTACH 'other.duckdb' AS other (READ_WRITE)",
    "ATTACH 'other.duckdb' AS other (READ_WRITE); CREATE TABLE other.t AS FROM findings",
    "CREATE PERSISTENT SECRET s (TYPE http, BEARER_TOKEN 'x')",
    "CALL enable_logging(level = 'trace', storage = 'file', storage_path = 'logs'); SELECT write_log('x')",
]


@pytest.mark.parametrize("statement", DESTROYS_THROUGH_LOCKED_SETTINGS)
def test_what_destroys_files_through_locked_settings_is_refused(
    statement: str, world: Path, con: duckdb.DuckDBPyConnection
) -> None:
    victim = shutil.copytree(world / "state", world / "victim")
    before = files_under(victim)
    locked_settings_only(victim, statement)
    assert files_under(victim) != before, "no attack: it destroys nothing even without the check"

    assert_refused_and_harmless(statement, world, con)


@pytest.mark.parametrize("statement", WRITES_WHEN_UNPROTECTED)
def test_what_writes_on_an_ordinary_connection_is_refused_and_blocked_by_the_settings_too(
    statement: str, world: Path, con: duckdb.DuckDBPyConnection
) -> None:
    victim = shutil.copytree(world / "state", world / "victim")
    before = files_under(world)
    unprotected(victim, statement)
    assert files_under(world) != before, "no attack: it writes nothing even on an ordinary connection"

    assert_refused_and_harmless(statement, world, con)
    before = files_under(world)
    with pytest.raises(duckdb.Error):
        con.execute(filled_in(statement, world / "state"))
    assert files_under(world) == before


def assert_refused_and_harmless(statement: str, world: Path, con: duckdb.DuckDBPyConnection) -> None:
    before = files_under(world)
    assert str(world / "state" / sql.DATABASE) in before and str(world / "state" / HOUR) in before
    with pytest.raises(sql.Refused) as refusal:
        sql.check(filled_in(statement, world / "state"))
    assert len(str(refusal.value)) > 20
    with pytest.raises(sql.Refused):
        sql.run(con, filled_in(statement, world / "state"), 10)
    assert files_under(world) == before
    assert sql.run(con, "FROM findings", 10).num_rows == 1


def test_a_copy_that_only_duckdb_sees_behind_a_nested_comment_is_not_run(
    world: Path, con: duckdb.DuckDBPyConnection
) -> None:
    trick = f"/* /* */ EXPLAIN SELECT 1 -- */ {COPY}"
    victim = shutil.copytree(world / "state", world / "victim")
    before = files_under(victim)
    locked_settings_only(victim, trick)
    assert files_under(victim) != before, "no attack: it destroys nothing even without the check"

    before = files_under(world)
    answer = sql.run(con, filled_in(trick, world / "state"), 10)
    assert answer.column_names == ["explain_key", "explain_value"]
    assert files_under(world) == before


@pytest.mark.parametrize("statement", [COPY_DB, f"EXPLAIN ANALYZE {COPY_DB}", f"WITH a AS ({COPY_DB}) SELECT 1"])
def test_a_copy_onto_the_database_file_is_refused_by_the_check_and_by_duckdb_itself(
    statement: str, world: Path, con: duckdb.DuckDBPyConnection
) -> None:
    """DuckDB 2.0.0 let it destroy the file; since 2.0.1 it refuses, and the check does not lean on that."""
    assert_refused_and_harmless(statement, world, con)
    before = files_under(world)
    with pytest.raises(duckdb.Error):
        con.execute(filled_in(statement, world / "state"))
    assert files_under(world) == before


# --- statements that change, load, or look outside

# Today DuckDB itself allows a COPY only in the outermost WITH; the check does not lean on that.
COPY_DEEP_INSIDE = [
    f"FROM (WITH a AS ({COPY}) SELECT 1)",
    f"WITH b AS (WITH a AS ({COPY}) SELECT 1 AS x) FROM b",
    f"SELECT 1 UNION ALL (WITH a AS ({COPY}) SELECT 1)",
    f"SELECT (WITH a AS ({COPY}) SELECT 1)",
    f"SELECT 1 FROM findings JOIN (WITH a AS ({COPY}) SELECT 1 AS x) t ON true",
    f"SUMMARIZE WITH a AS ({COPY}) SELECT 1 AS x",
    f"SELECT * FROM (PIVOT (WITH a AS ({COPY}) SELECT 1 AS x) ON x IN (1) USING count(*))",
    f"SELECT 1 ORDER BY (WITH a AS ({COPY}) SELECT 1)",
]

REFUSED = [
    "ATTACH ':memory:' AS m", "ATTACH 'https://example.com/x.duckdb'", "ATTACH OR REPLACE '{db}' AS asynchealth",
    "DETACH asynchealth", "USE temp", "USE asynchealth.main",
    "INSTALL httpfs", "FORCE INSTALL httpfs FROM community", "LOAD httpfs", "LOAD '/tmp/x.duckdb_extension'",
    "UPDATE EXTENSIONS",
    "SET enable_external_access = true", "SET lock_configuration = false", "SET GLOBAL memory_limit = '1TB'",
    "SET SESSION TimeZone = 'Asia/Tokyo'", "SET VARIABLE x = 1", "RESET lock_configuration", "RESET VARIABLE x",
    "SET temp_directory = '{state}/spill'", "SET allowed_directories = ['/']", "SET search_path = 'temp'",
    "PRAGMA enable_profiling", "SET profiling_output = '{state}/profile.json'",
    "CALL enable_profiling(format = 'json', save_location = '{state}/profile.json')",
    "PRAGMA table_info('findings')", "PRAGMA import_database('{state}')", "PRAGMA version",
    "CHECKPOINT", "FORCE CHECKPOINT", "CHECKPOINT asynchealth", "VACUUM", "VACUUM ANALYZE findings", "ANALYZE",
    "CREATE TABLE t AS SELECT 1", "CREATE OR REPLACE TABLE findings AS SELECT 1", "CREATE TEMP TABLE t (a INT)",
    "CREATE VIEW v AS SELECT 1", "CREATE OR REPLACE TEMP VIEW requests AS SELECT 1", "CREATE MACRO f(x) AS x",
    "CREATE TEMP MACRO now() AS 1", "CREATE SECRET s (TYPE http)", "CREATE SEQUENCE s", "CREATE TEMP SEQUENCE s",
    "CREATE SCHEMA s", "CREATE TYPE mood AS ENUM ('a')", "CREATE INDEX i ON findings (level)",
    "ALTER TABLE findings ADD COLUMN x INT", "ALTER VIEW requests RENAME TO r", "DROP TABLE findings",
    "DROP VIEW requests", "COMMENT ON TABLE findings IS 'x'",
    "INSERT INTO findings VALUES ('a', 'b')", "INSERT OR REPLACE INTO findings VALUES ('a', 'b')",
    "UPDATE findings SET level = 'warn'", "DELETE FROM findings", "TRUNCATE findings",
    "MERGE INTO findings USING findings AS f ON true WHEN MATCHED THEN DELETE",
    "COPY findings FROM '{part}'", "COPY FROM DATABASE asynchealth TO temp", "IMPORT DATABASE '{state}'",
    "WITH a AS (INSERT INTO findings VALUES ('a', 'b') RETURNING *) FROM a",
    "WITH a AS (DELETE FROM findings RETURNING *) FROM a",
    "WITH a AS (UPDATE findings SET level = 'warn' RETURNING *) FROM a",
    "FROM (WITH b AS (WITH a AS (DELETE FROM findings RETURNING *) FROM a) FROM b)",
    "DESCRIBE WITH a AS (DELETE FROM findings RETURNING *) FROM a",
    "CALL range(3)", "CALL enable_logging()", "CALL force_checkpoint()",
    "BEGIN", "COMMIT", "ROLLBACK", "BEGIN; DROP TABLE findings; COMMIT",
    "PREPARE p AS SELECT 1", "EXECUTE p", "DEALLOCATE p", "EXPLAIN DELETE FROM findings",
    "EXPLAIN ANALYZE INSERT INTO findings VALUES ('a', 'b')",
    "SELECT 1; SELECT 2", "SELECT 1; DROP TABLE findings", "SELECT 1;;DETACH asynchealth",
    "FROM read_csv('/etc/passwd')", "FROM read_csv_auto('/etc/passwd')", "FROM READ_CSV('/etc/passwd')",
    "FROM system.main.read_csv('/etc/passwd')", "FROM sniff_csv('/etc/passwd')", "FROM read_text('/etc/passwd')",
    "FROM read_blob('{db}')", "FROM read_duckdb('{db}')", "FROM read_json('/etc/passwd')",
    "FROM read_parquet('{part}')",
    "FROM parquet_scan('{part}')", "FROM parquet_metadata('{part}')", "FROM parquet_schema('{part}')",
    "FROM glob('/*')", "FROM '/etc/passwd'", 'FROM "/etc/passwd"', "FROM '{part}'", "FROM 'x.parquet'",
    "FROM x.parquet",
    'FROM "/tmp/x".csv', "FROM 'https://example.com/x.parquet'", "FROM 's3://bucket/x'", "DESCRIBE 'x.csv'",
    "SUMMARIZE '{part}'", "SHOW 'x.csv'", "SELECT (SELECT count(*) FROM '/etc/passwd')",
    "PIVOT 'x.csv' ON a IN (1) USING count(*)", "FROM findings POSITIONAL JOIN 'x.csv'",
    "FROM findings, LATERAL (FROM read_text('/etc/passwd'))",
    "FROM query('COPY (SELECT 1) TO ''x.csv''')", "FROM query('SELECT 1')", "FROM query_table('findings')",
    "FROM query_table(['/etc/passwd'])", "FROM histogram('/etc/passwd', a)",
    "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "PRAGMA json_execute_serialized_sql('{}')", "SELECT json_execute_serialized_sql('{}')",
    "SELECT json_serialize_plan('FROM findings')",
    "FROM duckdb_secrets()", "FROM which_secret('s3://x', 's3')", "FROM duckdb_logs()", "FROM duckdb_settings()",
    "FROM seq_scan('findings')", "FROM arrow_scan(1, 2, 3)", "FROM pandas_scan(1)", "FROM checkpoint()",
    "FROM enable_logging()", "FROM truncate_duckdb_logs()", "FROM pragma_storage_info('findings')",
    "SELECT write_log('x')", "SELECT count(*) FROM findings WHERE write_log('x') IS NULL",
    "SELECT system.main.WRITE_LOG('x')",
    "SELECT 'x'.write_log()",
    "SELECT \"Write_LOG\"('x')", "FROM \"Read_CSV\"('/etc/passwd')",
    "SELECT list_transform(['x'], lambda x: write_log(x))",
    "SELECT [write_log(x) FOR x IN ['a']]",
    "SELECT sum(1) FILTER (write_log('x') IS NULL) FROM findings", "SELECT 1 ORDER BY write_log('x')",
    "SELECT 1 LIMIT (SELECT nextval('s'))", "SELECT nextval('s')", "SELECT setval('s', 1)",
    "SELECT getenv('HOME')", "SELECT read_text('/etc/passwd')", "SELECT glob('/*')",
]  # fmt: skip

NOT_EVEN_SQL = [
    "", ";", "-- nothing", "/* open", "SELECT", "\uff23\uff2f\uff30\uff39 (SELECT 1) TO 'x'",
    "SEL\u200bECT 1", "SELECT 1\0",
    "SELECT '\udcff'", f"WITH RECURSIVE a AS ({COPY}) SELECT 1",
    f"SELECT 1;\0{COPY}", "EXPLAIN EXPLAIN SELECT 1", "WITH a AS (ATTACH 'x') SELECT 1",
    "WITH a AS (MERGE INTO t USING u ON true) SELECT 1",
    "SELECT * FROM (DELETE FROM findings RETURNING *)", "SELECT 1 INTO t", "EXPLAIN", "EXPLAIN (ANALYZE) SELECT 1",
    "SELECT " + "(" * 5_000 + "1" + ")" * 5_000, "SELECT " + "abs(" * 900 + "1" + ")" * 900,
    "/* a */ " * 500 + "COPY",
]  # fmt: skip


@pytest.mark.parametrize("statement", [*COPY_DEEP_INSIDE, *REFUSED])
def test_a_statement_that_changes_loads_or_looks_outside_is_refused(statement: str, world: Path) -> None:
    assert duckdb.extract_statements(filled_in(statement, world / "state")), "no attack: DuckDB cannot parse it"
    with opened(world / "state") as con:
        assert_refused_and_harmless(statement, world, con)


@pytest.mark.parametrize("text", NOT_EVEN_SQL)
def test_what_is_no_sql_is_refused_with_a_reason(text: str, world: Path, con: duckdb.DuckDBPyConnection) -> None:
    assert_refused_and_harmless(text, world, con)


# --- the locked connection by itself

BLOCKED_BY_SETTINGS = [
    "SET lock_configuration = false", "RESET lock_configuration",
    "SET allowed_directories = ['/']", "SET allowed_paths = ['/etc/passwd']", "SET TimeZone = 'Asia/Tokyo'",
    "SET memory_limit = '64GB'", "SET temp_directory = '/tmp'", "SET autoload_known_extensions = true",
    "SET python_enable_replacements = true", "CREATE TABLE t AS SELECT 1", "INSERT INTO findings VALUES ('a', 'b')",
    "DROP TABLE findings", "FROM read_csv('/etc/passwd')", "FROM read_text('/etc/passwd')", "FROM glob('/*')",
    "COPY (SELECT 1) TO '/dev/null'",
]  # fmt: skip


@pytest.mark.parametrize("statement", BLOCKED_BY_SETTINGS)
def test_without_the_check_the_locked_connection_still_blocks(
    statement: str, world: Path, con: duckdb.DuckDBPyConnection
) -> None:
    victim = shutil.copytree(world / "state", world / "victim")
    with duckdb.connect(str(victim / sql.DATABASE)) as ordinary:
        ordinary.execute(statement)  # raises if the statement does not work where nothing is locked

    before = files_under(world)
    with pytest.raises(duckdb.Error):
        con.execute(statement)
    assert files_under(world) == before


def test_a_query_that_needs_more_memory_fails_instead_of_writing_temporary_files(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = "SELECT count(*) FROM (SELECT r, md5(r::VARCHAR) h FROM range(2_000_000) t(r) ORDER BY h LIMIT 1_900_000)"
    with duckdb.connect(config={"memory_limit": "40MB", "threads": 2, "temp_directory": str(world / "spill")}) as con:
        assert con.execute(query).fetchone() == (1_900_000,), "an ordinary connection spills and succeeds"

    monkeypatch.setattr(sql, "MEMORY_LIMIT", "40MB")
    before = files_under(world / "state", world / "cwd", world / "home")
    with opened(world / "state") as con, pytest.raises(sql.Refused, match="Out of Memory"):
        sql.run(con, query, 60)
    assert files_under(world / "state", world / "cwd", world / "home") == before


def test_a_name_in_our_own_program_is_no_table(con: duckdb.DuckDBPyConnection) -> None:
    with duckdb.connect() as ordinary:
        secret = ordinary.sql("SELECT 1 AS a").to_arrow_table()
        assert ordinary.execute("FROM secret").fetchall() == [(1,)], "an ordinary connection finds the variable"
    with pytest.raises(duckdb.CatalogException, match="secret does not exist"):
        con.sql("FROM secret")
    assert secret.num_rows == 1


# --- what people do type

ALLOWED = [
    "FROM findings", "TABLE findings", "VALUES (1), (2)", "SELECT * FROM asynchealth.main.findings", "SHOW TABLES",
    "SHOW ALL TABLES", "SHOW requests", "DESCRIBE", "DESCRIBE requests", "DESC findings", "SUMMARIZE requests",
    "SUMMARIZE SELECT retry_count FROM requests", "EXPLAIN FROM requests", "explain analyze SELECT * FROM requests;",
    "-- why slow?\nEXPLAIN /* really */ ANALYZE FROM requests -- end", "SELECT * FROM requests; -- done",
    "FROM duckdb_tables()", "FROM information_schema.columns", "SELECT view_name FROM duckdb_views()",
    "FROM range(3)", "SELECT unnest([1, 2])", "SELECT * FROM unnest([1, 2])", "FROM json_each('{\"a\": 1}')",
    "WITH a AS (FROM requests), b AS (FROM a) SELECT count(*) FROM b",
    "WITH RECURSIVE r AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM r WHERE i < 5) FROM r",
    "SELECT row_number() OVER (ORDER BY timestamp) FROM requests", "PIVOT requests ON status IN ('ok') USING count(*)",
    "FROM requests SELECT time_bucket(INTERVAL '10 s', timestamp) AS w, count(*) GROUP BY ALL",
    "FROM heartbeats h ASOF JOIN requests r ON h.timestamp >= r.timestamp",
    "SELECT 'COPY x TO y; DROP TABLE findings' AS text",
    "FROM requests UNION ALL BY NAME FROM signals", "SELECT /* ; DROP TABLE findings */ 1",
]  # fmt: skip


@pytest.mark.parametrize("query", ALLOWED)
def test_what_people_type_to_read_is_answered(query: str, world: Path, con: duckdb.DuckDBPyConnection) -> None:
    before = files_under(world)
    assert sql.run(con, query, 10).num_rows > 0
    assert files_under(world) == before


@pytest.mark.parametrize("query", PLAYBOOK.values(), ids=PLAYBOOK.keys())
def test_the_playbooks_queries_run_word_for_word(query: str, con: duckdb.DuckDBPyConnection) -> None:
    rows = sql.run(con, query, 10).to_pylist()
    assert rows == con.sql(query).to_arrow_table().to_pylist() and rows


def test_the_playbooks_answers_are_right(con: duckdb.DuckDBPyConnection) -> None:
    assert sql.run(con, PLAYBOOK["clock skew"], 10).to_pylist() == [{"max_skew_ms": 200.0, "nodes_over_100ms": 1}]
    assert sql.run(con, PLAYBOOK["timeout-retry loops"], 10).to_pylist() == [
        {"service_name": "payment", "timeout_retries": 2, "avg_retries": 1.5, "max_retries": 2}
    ]
    assert sql.run(con, PLAYBOOK["concurrent writes"], 10).column("concurrent_writers").to_pylist() == [2]
    assert sql.run(con, PLAYBOOK["card"], 10).num_rows == 3


def test_an_empty_stream_is_a_typed_empty_table(con: duckdb.DuckDBPyConnection) -> None:
    answer = sql.run(con, "FROM signals", 10)
    assert answer.num_rows == 0 and answer.column_names == ["timestamp", "subject"]


def test_an_answer_larger_than_one_batch_arrives_whole_and_leaves_the_connection_free(
    con: duckdb.DuckDBPyConnection,
) -> None:
    rows = 3 * sql.BATCH_ROWS + 1
    answer = sql.run(con, f"SELECT range AS n FROM range({rows})", 60)
    assert answer.column("n").to_pylist() == list(range(rows))
    assert sql.run(con, "FROM findings", 10).num_rows == 1


@given(text=st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_any_text_is_either_one_reading_statement_or_refused(text: str) -> None:
    try:
        statement = sql.check(text)
    except sql.Refused as refusal:
        assert str(refusal)
    else:
        (only,) = duckdb.extract_statements(statement)
        assert only.type in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)


PIECES = ["/*", "*/", "--", "\n", "\r", " ", ";", "(", ")", "EXPLAIN ", "ANALYZE ", "SELECT 1 ", "WITH a AS ", COPY]


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=12))
@example(pieces=["EXPLAIN ", ";", "SELECT 1 "])
@example(pieces=["/*", " ", "/*", "*/", "EXPLAIN ", "SELECT 1 ", "--", "*/", COPY])
def test_no_game_with_comments_and_explain_gets_a_copy_past_the_check(pieces: list[str]) -> None:
    try:
        statement = sql.check("".join(pieces))
    except sql.Refused:
        return
    (only,) = duckdb.extract_statements(statement)
    assert only.type in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)


# --- limits and messages


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM range(100_000_000_000)",
        "SELECT sum(a.range + b.range) FROM range(1_000_000) a, range(10_000_000) b",
        "WITH RECURSIVE r AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM r) SELECT count(*) FROM r",
        "EXPLAIN ANALYZE SELECT count(*) FROM range(100_000_000_000)",
        "SELECT sleep_ms(3_600_000)",
    ],
)
def test_a_runaway_query_is_stopped_and_the_connection_stays_usable(query: str, con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(sql.TooLong, match=r"Stopped after 0\.2 s"):
        sql.run(con, query, 0.2)
    assert sql.run(con, "FROM findings", 10).num_rows == 1


def test_an_answer_that_outgrows_memory_is_stopped(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = f"SELECT range AS n FROM range({2 * sql.BATCH_ROWS})"
    assert sql.run(con, query, 60).num_rows == 2 * sql.BATCH_ROWS
    monkeypatch.setattr(sql, "ANSWER_LIMIT_BYTES", sql.BATCH_ROWS)
    with pytest.raises(sql.TooLarge, match="LIMIT"):
        sql.run(con, query, 60)
    assert sql.run(con, "FROM findings", 10).num_rows == 1


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (
            "SELECT * FROM request",
            "Table with name request does not exist!\nTables here: findings, heartbeats, requests",
        ),
        ("SELECT * FROM\n findings WHER level", "LINE 2:  findings WHER level"),
        ("SELECT nivel FROM findings", 'Candidate bindings: "level"'),
        ("COPY findings TO 'x.csv'", "COPY cannot be run here: this SQL only reads."),
        ("WITH a AS (DELETE FROM findings RETURNING *) FROM a", "DELETE cannot be run here, not inside WITH either"),
        ("PRAGMA table_info('findings')", "DESCRIBE table"),
        ("CREATE TABLE t AS SELECT 1", "WITH step AS"),
        ("PIVOT findings ON level USING count(*)", "PIVOT table ON column IN"),
        ("SELECT * FROM (PIVOT findings ON level USING count(*))", "PIVOT table ON column IN"),
        ("FROM 'x.parquet'", "x.parquet is not a table of this state"),
        ("FROM read_csv('x.csv')", "read_csv() cannot be read from here"),
        ("SELECT write_log('x')", "write_log() cannot be called here"),
        ("SELECT 1; SELECT 2; SELECT 3", "3 statements were given, and one is run at a time"),
        ("", "Type a query, such as SELECT * FROM findings"),
    ],
)
def test_a_refusal_names_the_thing_the_reason_and_what_to_type(
    query: str, said: str, con: duckdb.DuckDBPyConnection
) -> None:
    with pytest.raises(sql.Refused) as refusal:
        sql.run(con, query, 10)
    assert said in str(refusal.value)


def test_a_folder_without_a_database_is_named_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"asynchealth\.duckdb.*asynchealth replay PATH"):
        sql.open_shut_in(tmp_path, {}, [])
    assert not list(tmp_path.iterdir())


# --- time zones

ACROSS_DST = """
SELECT epoch(TIMESTAMPTZ '2026-03-08 18:00:00+00' - TIMESTAMPTZ '2026-03-07 18:00:00+00') AS day_s,
       epoch_us(TIMESTAMPTZ '2026-03-08 18:00:00+00' - INTERVAL '1 day') AS day_before_us,
       (TIMESTAMPTZ '2026-03-08 03:00:00+00')::DATE::VARCHAR AS date,
       extract(hour FROM TIMESTAMPTZ '2026-03-08 18:00:00+00') AS hour,
       (SELECT count(*) FROM ages WHERE timestamp > NOW() - INTERVAL '24 hours') AS newer_by_interval,
       (SELECT count(*) FROM ages WHERE timestamp::TIMESTAMP > NOW()::TIMESTAMP - INTERVAL '24 hours') AS newer_naive
"""
AGES = "SELECT now() - to_minutes(m) AS timestamp FROM (VALUES (0), (23 * 60), (25 * 60)) t(m)"
IN_A_ZONE = """
import sys
from pathlib import Path
import duckdb
from streams.report import sql
state, query, ages = sys.argv[1:]
with duckdb.connect() as con:
    con.execute(f"CREATE VIEW ages AS {ages}")
    print(con.sql(query).to_arrow_table().to_pylist())
with sql.open_shut_in(Path(state), {"ages": ages}, []) as con:
    print(sql.run(con, query, 60).to_pylist())
"""


def test_answers_are_the_same_in_every_time_zone(world: Path) -> None:
    ordinary, shut_in = [], []
    for zone in ("UTC", "Asia/Tokyo", "America/New_York"):
        said = subprocess.run(
            [sys.executable, "-c", IN_A_ZONE, str(world / "state"), ACROSS_DST, AGES],
            env={**os.environ, "TZ": zone, "PYTHONPATH": str(Path(sql.__file__).parents[2])},
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
        ordinary.append(said[0])
        shut_in.append(said[1])
    assert len(set(ordinary)) == 3, "an ordinary connection answers differently in each zone"
    assert len(set(shut_in)) == 1 and "'day_s': 86400.0" in shut_in[0]
    assert "'newer_by_interval': 2, 'newer_naive': 2" in shut_in[0]
