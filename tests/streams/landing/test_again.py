"""A live state's tables, partly in the lake, judged again: what its workers found, and what its screens say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from detectors.detector import Settings
from streams.again import Landed, lateness_of
from streams.catalog import all_detectors
from streams.cli import app
from streams.landing.state import open_readable

pytestmark = pytest.mark.xdist_group("lander")  # they share one recording


def test_a_live_states_tables_give_what_its_workers_found(live: Path) -> None:
    con = open_readable(live)
    found = Landed(con, all_detectors(), lateness_of(con)).found(Settings())
    landed = con.sql("SELECT finding_id, level, onset, last, resolved, peak FROM findings").pl()
    con.close()
    assert len(landed)
    assert found.select(landed.columns).sort("finding_id").equals(landed.sort("finding_id"))


def test_its_doctor_proposes_no_rebuild_with_another_lateness(live: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--state", str(live)], catch_exceptions=False)
    assert result.exit_code == 0 and "own events" in result.output and "rebuild --lateness" not in result.output
    rows = CliRunner().invoke(app, ["why-not", "--json", "--state", str(live)], catch_exceptions=False).output
    assert any(json.loads(line)["state"] == "fired" for line in rows.splitlines())
