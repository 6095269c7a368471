"""A person's SQL and a state folder enter, a table of answers leaves; no query can write, or read anything beyond it.

It takes two locks, for either alone can be opened. `open_shut_in` gives a connection that reads the database file and
the listed lake parts, and whose settings are locked; yet `COPY … TO` a lake part would still destroy that part through
it (and with DuckDB 2.0.0 the database file). So `check` lets through only what DuckDB's own parser calls a single
reading statement.
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

DATABASE = "asynchealth.duckdb"
MEMORY_LIMIT = "1GB"
ANSWER_LIMIT_BYTES = 512 * 1024 * 1024  # the answer lies outside DuckDB's own memory limit
BATCH_ROWS = 100_000

READING_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
TABLE_FUNCTIONS = re.compile(
    r"range|generate_series|repeat|unnest|json_(each|tree)"
    r"|duckdb_(columns|constraints|functions|schemas|tables|types|views)"
)
# As scalars: what writes a log or a sequence, binds SQL given as text, or looks outside the state folder.
SCALAR_FUNCTIONS_REFUSED = re.compile(
    r"write_log|nextval|currval|setval|getenv|glob|query|query_table|which_secret|sniff_csv"
    r"|json_(execute_serialized_sql|serialize_plan)|(read|parquet)_.*|.*_scan"
)
SCHEMAS = frozenset({"", "main", "temp", "system", "information_schema", "pg_catalog", Path(DATABASE).stem})
READING_WORDS = ("SELECT", "FROM", "WITH", "VALUES", "DESCRIBE", "SUMMARIZE", "SHOW", "EXPLAIN")
INSTEAD = {
    "COPY": "To keep an answer, send the output to a file.",
    "EXPORT": "To keep an answer, send the output to a file.",
    "CREATE": "To name a step, write WITH step AS (SELECT …) SELECT … FROM step.",
    "PRAGMA": "To see a table's columns, write DESCRIBE table.",
    "PIVOT": "Name the values: PIVOT table ON column IN ('a', 'b') USING COUNT(*).",
}

_SPACE = r"(?>\s+|--[^\n]*|/\*(?>.*?\*/))*+"
_EXPLAIN = re.compile(rf"{_SPACE}EXPLAIN\b({_SPACE}ANALYZE\b)?", re.IGNORECASE | re.DOTALL)
_FIRST_WORD = re.compile(rf"{_SPACE}(\w+)", re.DOTALL)


class Refused(Exception):
    """The query was not run, or DuckDB could not run it; the text says why and what to type instead."""


class Missing(Refused):
    """There is no such table; `table` is the name that was asked for."""

    def __init__(self, table: str, message: str) -> None:
        super().__init__(message)
        self.table = table


class TooLong(Exception):
    """The query was stopped at its time limit."""


class TooLarge(Exception):
    """The query was stopped because its answer outgrew the memory set aside for it."""


def open_shut_in(state: Path, views: Mapping[str, str], parts: Sequence[Path]) -> duckdb.DuckDBPyConnection:
    """The locked connection. `views` maps a name to the SELECT behind it, which may read `parts` and no other file.

    The order matters: a view is bound while files may still be opened, and the last statement locks those before it.
    In one process DuckDB shares an open file, locked settings and all: close this before opening the file again there.
    The views belong to this connection and are not seen by its cursors.
    """
    file = state / DATABASE
    if not file.is_file():
        raise FileNotFoundError(f"No {DATABASE} in {state}. Make one: asynchealth replay PATH --state {state}")
    con = duckdb.connect(str(file), read_only=True)
    try:
        con.execute("SET TimeZone = 'UTC'")
        for name, select in views.items():
            con.execute(f"CREATE TEMP VIEW {_quoted(name)} AS {select}")
        con.execute("SET allowed_paths = ?", [[str(part.absolute()) for part in parts]])
        con.execute("SET temp_directory = ''")
        con.execute("SET memory_limit = ?", [MEMORY_LIMIT])
        con.execute("SET autoinstall_known_extensions = false")
        con.execute("SET autoload_known_extensions = false")
        con.execute("SET enable_external_access = false")
        con.execute("SET lock_configuration = true")
    except duckdb.Error:
        con.close()
        raise
    return con


def check(query: str) -> str:
    """The statement to run, or Refused. It is built anew, so that what runs is exactly what was looked at.

    EXPLAIN does not appear in the parse tree DuckDB gives: it is taken off, the rest is checked, and it is put back.
    """
    explain = _EXPLAIN.match(query)
    statement = query[explain.end() :] if explain else query
    for node in _nodes(_parsed(statement)):
        _check_node(node)
    if not explain:
        return statement
    explained = f"EXPLAIN ANALYZE {statement}" if explain.group(1) else f"EXPLAIN {statement}"
    try:
        _scratch().extract_statements(explained)
    except duckdb.ParserException as error:
        raise Refused(str(error)) from error
    return explained


def run(con: duckdb.DuckDBPyConnection, query: str, limit_s: float) -> pa.Table:
    """The whole answer, after `check`. Raises Refused, TooLong or TooLarge; the connection stays usable."""
    statement = check(query)
    try:
        with _stopped_after(con, limit_s):
            return _fetched(con.sql(statement))
    except duckdb.CatalogException as error:
        missing = re.search(r"Table with name (\S+) does not exist", str(error))
        if not missing:
            raise Refused(str(error)) from error
        here = f"{_without_guess(str(error))}\nTables here: {', '.join(_tables(con))}"
        raise Missing(missing[1], here) from error
    except (duckdb.Error, OSError) as error:  # the latter out of a reader of Arrow, with the same words
        raise Refused(str(error)) from error


def _parsed(statement: str) -> dict[str, Any]:
    """DuckDB's parse tree of one reading statement."""
    if "\0" in statement or not _encodes(statement):
        raise Refused("The query has a character that is no text (NUL, or bytes that are not UTF-8): retype it.")
    found = _scratch().execute("SELECT json_serialize_sql(?)", [statement]).fetchone()
    assert found is not None
    try:
        tree: dict[str, Any] = json.loads(found[0])
    except RecursionError as error:
        raise Refused("The query is nested too deeply: split it into steps, WITH step AS (SELECT …).") from error
    if tree["error"]:
        raise Refused(_why_not(statement, tree))
    match len(tree["statements"]):
        case 1:
            return tree
        case 0:
            raise Refused("Nothing to run. Type a query, such as SELECT * FROM findings")
        case count:
            raise Refused(f"{count} statements were given, and one is run at a time: give them one by one.")


def _why_not(statement: str, tree: Mapping[str, Any]) -> str:
    """Why DuckDB's parser gave no tree: broken syntax, or a statement that does more than read."""
    if tree["error_type"] == "parser":
        try:
            _scratch().extract_statements(statement)  # parses only; its message shows the line and the place
        except duckdb.ParserException as error:
            return str(error)
    first = _FIRST_WORD.match(statement)
    word = first.group(1).upper() if first else ""
    if word in READING_WORDS:
        reason = "Only one statement, and only one that reads, can be run."
        instead = INSTEAD["PIVOT"] if re.search(r"\bpivot\b", statement, re.IGNORECASE) else ""
    else:
        reason = f"{word} cannot be run here: this SQL only reads. Start with {', '.join(READING_WORDS)}."
        instead = INSTEAD.get(word, "")
    return f"{reason} {instead}".rstrip()


def _nodes(tree: object) -> Iterator[dict[str, Any]]:
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            yield node
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)


def _check_node(node: Mapping[str, Any]) -> None:
    kind = node.get("type")
    if isinstance(kind, str) and kind.endswith("_NODE") and kind not in READING_NODES:
        verb = kind.split("_")[0]
        reason = f"{verb} cannot be run here, not inside WITH either: this SQL only reads."
        raise Refused(f"{reason} {INSTEAD.get(verb, '')}".rstrip())
    if kind in ("BASE_TABLE", "SHOW_REF"):
        _check_table(node)
    if kind == "TABLE_FUNCTION":
        name = node["function"]["function_name"]  # in lower case, however it was typed
        if not TABLE_FUNCTIONS.fullmatch(name):
            raise Refused(f"{name}() cannot be read from here: only this state's tables can. SHOW TABLES lists them.")
    elif SCALAR_FUNCTIONS_REFUSED.fullmatch(node.get("function_name", "")):
        raise Refused(f"{node['function_name']}() cannot be called here: this SQL reads this state's tables only.")


def _check_table(node: Mapping[str, Any]) -> None:
    """Refuses what DuckDB would take for a file, and it tries the whole dotted name: `a.parquet` or `"a.parquet"`."""
    *schemas, name = node["qualified_name"]["path"] or [""]  # DESCRIBE and SUMMARIZE hold their table as a node inside
    if re.search(r"[./\\*?:~]", name) or not SCHEMAS.issuperset(schema.lower() for schema in schemas):
        dotted = ".".join([*schemas, name])
        raise Refused(
            f"{dotted} is not a table of this state, and files cannot be read here. SHOW TABLES lists the tables; "
            "`replay PATH` takes in a file."
        )


@contextmanager
def _stopped_after(con: duckdb.DuckDBPyConnection, limit_s: float) -> Iterator[None]:
    """Interrupts what runs on `con` from limit_s on, until the block ends; what ends by it was too long.

    More than once, since an interrupt that comes before the query has begun to run may be forgotten.
    """
    done, over = threading.Event(), threading.Event()

    def watch() -> None:
        if not done.wait(limit_s):
            over.set()
            while not done.wait(0.1):
                con.interrupt()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    except (duckdb.InterruptException, OSError) as error:  # the latter out of a reader of Arrow, with the same words
        if not over.is_set() or "interrupt" not in str(error).lower():
            raise
        raise TooLong(
            f"Stopped after {limit_s:g} s. Read less: a shorter time range in WHERE, fewer columns, or LIMIT."
        ) from error
    finally:
        done.set()
        watcher.join()


def _fetched(answer: duckdb.DuckDBPyRelation) -> pa.Table:
    with answer.to_arrow_reader(BATCH_ROWS) as reader:
        batches, size_bytes = [], 0
        for batch in reader:
            batches.append(batch)
            size_bytes += batch.nbytes
            if size_bytes > ANSWER_LIMIT_BYTES:
                raise TooLarge(
                    f"Stopped: the answer is larger than {ANSWER_LIMIT_BYTES // 1024**2} MB. Ask for less: "
                    "fewer columns, GROUP BY, or LIMIT 1000."
                )
        return pa.Table.from_batches(batches, reader.schema)


@cache
def _scratch_database() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"enable_external_access": False, "lock_configuration": True})


def _scratch() -> duckdb.DuckDBPyConnection:
    """Where queries are parsed and nothing else: an empty database in memory that may open no file."""
    return _scratch_database().cursor()


def _tables(con: duckdb.DuckDBPyConnection) -> list[str]:
    rows = con.execute("SELECT DISTINCT table_name FROM information_schema.tables ORDER BY ALL").fetchall()
    return [name for (name,) in rows]


def _without_guess(message: str) -> str:
    """DuckDB's guess at the name meant is often a system table, and the list of tables says it better."""
    return re.sub(r"\nDid you mean .*", "", message)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
