"""The operators' own queries enter word for word; what must leave is an answer from our database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from streams.cli import app
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
