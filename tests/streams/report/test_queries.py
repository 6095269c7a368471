"""The operators' own queries enter word for word; what must leave is an answer from our database."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from streams.catalog import catalog, runbook_of
from streams.cli import app
from streams.problems import Problem
from streams.report.library import queries
from tests.cases import T0, cases, retry_storm
from tests.streams.report.states import of_case, of_rows
from tests.streams.report.test_morning import calls
from tests.streams.report.test_sql_shut_in import PLAYBOOK

COLUMNS = {
    "clock skew": ["max_skew_ms", "nodes_over_100ms"],
    "timeout-retry loops": ["service_name", "timeout_retries", "avg_retries", "max_retries"],
    "concurrent writes": ["entity_type", "entity_id", "concurrent_writers", "write_attempts"],
}


def asked(state: Path, query: str) -> tuple[list[str], list[list[Any]]]:
    run = CliRunner().invoke(app, ["sql", query, "--csv", "--state", str(state)])
    assert run.exit_code == 0, run.exception
    head, *_ = run.output.splitlines()
    rows = CliRunner().invoke(app, ["sql", query, "--json", "--state", str(state)]).output.splitlines()
    return head.split(","), [list(json.loads(r).values()) for r in rows]


@pytest.mark.parametrize("name", COLUMNS)
def test_the_playbooks_queries_run_word_for_word_on_a_replayed_state(name: str, demo_state: Path) -> None:
    columns, _ = asked(demo_state, PLAYBOOK[name].strip())
    assert columns == COLUMNS[name]


QUERIES = [
    (name, query)
    for name, entry in catalog().items()
    for query in re.findall(r'`asynchealth sql "(.+?)"(?: --csv)?`', runbook_of(entry).read_text(), re.DOTALL)
]


@pytest.mark.parametrize(("name", "query"), QUERIES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(QUERIES)])
def test_every_query_of_a_runbook_runs_as_it_stands(name: str, query: str, demo_state: Path) -> None:
    """What a person fills in is in capitals; a time can't be anything."""
    columns, _ = asked(demo_state, query.replace('\\"', '"').replace("'SINCE'", "'2026-01-26 08:10'"))
    assert columns


WHEN = re.compile(
    r"(timestamp|arrival|window_start|minute) >=? ('SINCE'|\(SELECT (max|min)\()|ORDER BY timestamp DESC LIMIT"
)
WHATEVER_ITS_TIME = {
    "idempotency_key = 'KEY'": "a key's earlier use may lie a day back",
    "trace_id = 'T'": "a trace is short",
    "FROM write_log WHERE node_id = 'N'": "the records of `ordering` may have no time",
    "FROM rejects": "what can't be read has no time",
    "FROM findings": "each is said with its time",
    "FROM accounting": "all that was read is what it counts",
}
SHIPPED = [(q.name, q.text) for q in queries().values()]


@pytest.mark.parametrize(("name", "query"), [*QUERIES, *SHIPPED])
def test_a_query_names_its_time_or_the_one_thing_that_it_is_about(name: str, query: str) -> None:
    assert WHEN.search(query) or any(what in query for what in WHATEVER_ITS_TIME), name


def test_each_exception_is_needed() -> None:
    timeless = [q for _, q in [*QUERIES, *SHIPPED] if not WHEN.search(q)]
    assert all(any(what in q for q in timeless) for what in WHATEVER_ITS_TIME)


@pytest.mark.parametrize("name", [n for n, q in SHIPPED if "FROM rejects" not in q and "FROM accounting" not in q])
def test_a_shipped_query_tells_two_tenants_with_equal_names_apart(name: str, demo_state: Path) -> None:
    """Of accounting and rejects there is one for all: a source may hold several."""
    columns, rows = asked(demo_state, f"@{name}")
    assert columns[-2:] == ["environment", "tenant"] and rows


def test_edges_of_one_name_are_each_tenants_own(tmp_path: Path) -> None:
    rows = [*calls(100, tenant="blue", status="timeout"), *calls(50, tenant="red")]
    state = of_rows(tmp_path, requests=sorted(rows, key=lambda r: r["arrival"]))
    columns, told = asked(state, "@timeouts_by_edge")
    picked = [[row[columns.index(n)] for n in ("tenant", "edge", "attempts", "timeouts")] for row in told]
    assert picked == [["blue", "gateway->payment", 100, 100], ["red", "gateway->payment", 50, 0]]


@pytest.mark.parametrize(
    ("query", "why"),
    [
        (
            "SELECT if(i = 250000, 'x', '1')::INT FROM range(300000) t(i)",
            "Could not convert string 'x'",
        ),  # in mid-answer
        ("SELECT 'infinity'::TIMESTAMPTZ AS never", r"column never has a time .+\nNext: .+CAST\(never AS VARCHAR\)"),
    ],
)
@pytest.mark.parametrize("form", [[], ["--csv"], ["--json"]])
def test_an_answer_that_breaks_off_says_why(query: str, why: str, form: list[str], demo_state: Path) -> None:
    run = CliRunner().invoke(app, ["sql", query, *form, "--state", str(demo_state)])
    assert isinstance(run.exception, Problem) and re.search(why, str(run.exception))


def test_findings_whose_ids_begin_alike_are_told_apart_by_tenant(tmp_path: Path) -> None:
    rows = [*calls(200, tenant="blue", status="timeout"), *calls(200, tenant="red", status="timeout")]
    state = of_rows(tmp_path, requests=sorted(rows, key=lambda r: r["arrival"]))
    with pytest.raises(Problem, match=r"gateway->payment \[(blue|red)\]\), .+ gateway->payment \[(blue|red)\]\)"):
        CliRunner().invoke(app, ["explain", "tr", "--state", str(state)], catch_exceptions=False)


def test_where_only_servers_log_their_lines_tell_what_timed_out(tmp_path: Path) -> None:
    again = {"status": "timeout", "retry_count": 1}
    rows = [*calls(60, side="server", **again), *calls(40, side="server", service_name="cart", **again)]
    rows += calls(30, side="client", service_name="cart", **again)
    state = of_rows(tmp_path, requests=sorted(rows, key=lambda r: r["arrival"]))
    _, edges = asked(state, "@timeouts_by_edge")
    assert [row[:3] for row in edges] == [["gateway->cart", 30, 30], ["gateway->payment", 60, 60]]
    _, services = asked(state, "@timeout_retry_loops")
    assert [row[:2] for row in services] == [["payment", 60], ["cart", 30]]


def test_the_edges_that_the_report_sends_for_are_all_there(tmp_path: Path) -> None:
    rows = [r for n in range(25) for r in calls(10, service_name=f"dead-{n}", status="timeout")]
    _, edges = asked(of_rows(tmp_path, requests=sorted(rows, key=lambda r: r["arrival"])), "@timeouts_by_edge")
    assert len(edges) == 25


@pytest.mark.parametrize(("name", "query"), SHIPPED)
def test_no_shipped_query_cuts_its_answer_short_without_a_word(name: str, query: str) -> None:
    """The screen shows the first rows and says how many there are."""
    assert not re.search(r"\bLIMIT\b", query), name


def heartbeats(offset: timedelta) -> list[dict[str, Any]]:
    """Two hours of fifteen nodes; n03's clock is off by `offset` in the second hour."""
    rows = []
    for i in range(7200):
        at = T0 + timedelta(seconds=i)
        off = offset if i % 15 == 3 and i > 3600 else timedelta(0)
        beat = {"node_id": f"n{i % 15:02}", "client_time": at + off, "server_time": at + timedelta(milliseconds=5)}
        rows.append(beat | {"arrival": at + timedelta(milliseconds=100)})
    return rows


@pytest.mark.parametrize(("offset", "ms"), [(timedelta(seconds=-3), 3005), (timedelta(seconds=3), -2995)])
def test_the_first_query_about_a_clock_shows_the_node_ahead_or_behind(
    offset: timedelta, ms: int, tmp_path: Path
) -> None:
    query = next(q for name, q in QUERIES if name == "clock_skew")
    _, rows = asked(of_rows(tmp_path, heartbeats=heartbeats(offset)), query)
    assert rows[0] == ["n03", "collector", ms, 5] and len(rows) == 10


def test_the_look_ups_of_a_cache_are_those_around_its_finding(tmp_path: Path) -> None:
    (case,) = [c for d, n, c in cases("fires_") if (d, n) == ("idempotency_cache", "fires_emptied")]
    state = of_case(tmp_path, case)
    _, found = asked(
        state, "SELECT subject, min(onset) FROM findings WHERE detector = 'idempotency_cache' GROUP BY ALL"
    )
    ((service, onset),) = found
    query = next(q for name, q in QUERIES if name == "idempotency_cache").replace("'S'", f"'{service}'")
    columns, rows = asked(state, query)
    assert columns == ["window_start", "misses", "lookups"] and rows
    first = datetime.fromisoformat(rows[0][0])
    assert datetime.fromisoformat(onset) - timedelta(minutes=10) < first < datetime.fromisoformat(onset)


@pytest.mark.parametrize("name", COLUMNS)
def test_at_the_time_of_the_data_the_playbooks_queries_find_what_is_there(name: str, demo_state: Path) -> None:
    """NOW() is long after the recorded hour: with the end of the data in its place the same text has answers."""
    query = PLAYBOOK[name]
    assert "NOW()" in query
    _, rows = asked(demo_state, query.replace("NOW()", "TIMESTAMPTZ '2026-01-26 09:00:00Z'"))
    assert rows
    if name == "concurrent writes":
        assert all(row[2] > 1 for row in rows)
    if name == "timeout-retry loops":
        assert rows[0][0] == "payment"


def test_the_cards_query_gives_every_line_of_the_key(demo_state: Path) -> None:
    _, ((key, *_), *_) = asked(demo_state, "@keys_applied_twice")
    assert "XXX" in PLAYBOOK["card"]
    columns, rows = asked(demo_state, PLAYBOOK["card"].replace("XXX", str(key)))
    assert {"timestamp", "idempotency_key", "applied"} <= set(columns)
    assert len(rows) >= 4


@pytest.mark.parametrize("asked", ["@keys_applied_twice", "SELECT count(*) FROM KEYS"])
def test_a_table_into_which_nothing_was_measured_is_told_from_one_that_there_is_not(asked: str, tmp_path: Path) -> None:
    state = of_case(tmp_path, retry_storm.fires_small_storm())
    with pytest.raises(Problem, match=r"(?i)^table keys: nothing was measured .*\nNext: \S+ doctor --state \S+$"):
        CliRunner().invoke(app, ["sql", asked, "--state", str(state)], catch_exceptions=False)
    with pytest.raises(Problem, match="Tables here: accounting"):
        CliRunner().invoke(app, ["sql", "FROM nothing", "--state", str(state)], catch_exceptions=False)
