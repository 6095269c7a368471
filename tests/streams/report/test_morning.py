"""Small states enter; what must leave is a report that never takes "no data" for "no problem"."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from streams.cli import app
from streams.report.morning import against
from tests.cases import T0
from tests.streams.report.states import of_rows

HEADINGS = ("CLOCK SKEW", "RETRY STORMS", "RACE CONDITIONS", "TIMEOUT BUDGET", "IDEMPOTENCY")


def screen(state: Path, *args: str) -> str:
    result = CliRunner().invoke(app, [*args, "--state", str(state)])
    assert result.exit_code == 0, result.exception
    return result.output


def calls(n: int = 600, **more: Any) -> list[dict[str, Any]]:
    """Calls of half a second apart, all well."""
    return [
        {
            "timestamp": (T0 + timedelta(seconds=i / 2)).isoformat(),
            "arrival": (T0 + timedelta(seconds=i / 2 + 1)).isoformat(),
            "service_name": "payment",
            "caller": "gateway",
            "node_id": f"gateway-{i % 3}",
            "status": "ok",
            **more,
        }
        for i in range(n)
    ]


def test_what_nobody_logged_is_unknown_and_why_and_never_ok(tmp_path: Path) -> None:
    shown = screen(of_rows(tmp_path, requests=calls()), "report")
    lines = {h: line for h in HEADINGS for line in shown.splitlines() if h in line}
    assert set(lines) == set(HEADINGS)
    for heading, line in lines.items():
        assert re.search(r"unknown \(.+\)", line), line
        assert "OK" not in line and "✅" not in line and "None" not in line, heading
    assert "unknown (no retry_count in any source)" in lines["RETRY STORMS"]
    assert "unknown (no heartbeats in any source)" in lines["CLOCK SKEW"]
    assert "unknown (no write_log in any source)" in lines["RACE CONDITIONS"]


def test_the_same_for_machines(tmp_path: Path) -> None:
    told = json.loads(screen(of_rows(tmp_path, requests=calls()), "report", "--json"))
    assert {s["state"] for s in told["sections"].values()} == {"unknown"}
    assert all(s["why"] for s in told["sections"].values())


def test_a_list_without_findings_names_who_was_blind_instead_of_all_clear(tmp_path: Path) -> None:
    shown = screen(of_rows(tmp_path, requests=calls()), "findings")
    assert shown.startswith("0 findings")
    assert "Cannot say: " in shown and "retry_storm (no retry_count in any source)" in shown
    assert "clear" not in shown.lower() and "nothing is over" not in shown.lower()


def test_what_was_logged_and_is_well_is_said_to_be_well_with_its_number(tmp_path: Path) -> None:
    rows = calls(retry_count=0, duration_ms=780.0, timeout_ms=1000.0)
    shown = screen(of_rows(tmp_path, requests=rows), "report")
    assert "RETRY STORMS:       None detected ✅" in shown
    assert "78% utilized (OK)" in shown and "0.2 seconds  (payment, the tightest" in shown


def test_the_size_of_the_cache_is_told_where_a_gauge_reports_it(tmp_path: Path) -> None:
    at = {"timestamp": T0.isoformat(), "arrival": T0.isoformat(), "subject": "payment", "kind": "gauge"}
    gauges = [
        {**at, "name": "idempotency_cache_bytes", "value": 2.3e9},
        {**at, "name": "idempotency_cache_max_bytes", "value": 4.0e9},
    ]
    state = of_rows(tmp_path, requests=calls(), signals=gauges)
    assert "Cache size:         2.3/4.0 GB" in screen(state, "report")
    assert "cache size" not in screen(state, "findings")


def test_many_late_rows_are_said_with_the_command_that_brings_them_in(tmp_path: Path) -> None:
    rows = calls()
    for row in rows[100:300]:
        row["arrival"] = (T0 + timedelta(minutes=10)).isoformat()
    shown = screen(of_rows(tmp_path, requests=sorted(rows, key=lambda r: r["arrival"])), "report")
    assert re.search(r"\d+(\.\d)?% of the rows arrived too late", shown)
    (command,) = re.findall(r"asynchealth (rebuild --lateness 10m --state \S+)", shown)
    assert CliRunner().invoke(app, command.split()).exit_code == 0


def test_two_tenants_with_one_name_are_told_apart(tmp_path: Path) -> None:
    def storm(tenant: str, retried: int) -> list[dict[str, Any]]:
        every = [calls(2400, tenant=tenant, retry_count=0), calls(retried, tenant=tenant, retry_count=1)]
        return [row for rows in every for row in rows]

    rows = [*storm("blue", 1200), *storm("red", 1500), *calls(tenant="green", retry_count=0)]
    state = of_rows(tmp_path, requests=sorted(rows, key=lambda r: r["arrival"]))
    listed = [json.loads(x) for x in screen(state, "findings", "--json").splitlines()]
    storms = {f["tenant"]: f for f in listed if f["detector"] == "retry_storm"}
    assert set(storms) == {"blue", "red"}
    shown = screen(state, "report")
    assert "gateway->payment [blue]" in shown and "gateway->payment [red]" in shown
    for tenant, f in storms.items():
        behind = list(csv.DictReader(io.StringIO(screen(state, "findings", f["finding_id"], "--csv"))))
        assert len(behind) == f["count"] > 100 and {r["tenant"] for r in behind} == {tenant}
        assert f"{f['count']:,} retries; " in shown


def test_a_storm_at_whose_peak_nothing_is_a_first_attempt_can_be_read(tmp_path: Path) -> None:
    rows = [row | {"retry_count": int(i > 300)} for i, row in enumerate(calls(1200))]
    state = of_rows(tmp_path, requests=rows)
    shown = screen(state, "report")
    assert re.search(r"- gateway->payment: 120/min at 08:\d\d, 100% of attempts, no first attempts", shown), shown
    told = json.loads(screen(state, "report", "--json"))
    assert told["sections"]["retry_storms"]["state"] == "warn"


@pytest.mark.parametrize("stamp", ["2099-12-31T00:00:00Z", "2099-01-01T00:00:00Z", "2099-06-30T12:00:00Z"])
def test_an_impossible_stamp_is_named_by_its_own_year(stamp: str, tmp_path: Path) -> None:
    odd = [{**row, "timestamp": stamp, "node_id": "odd"} for row in calls(200)[150:153]]
    rows = sorted([*calls(), *odd], key=lambda r: r["arrival"])
    shown = screen(of_rows(tmp_path, requests=rows), "report")
    assert "Impossible stamps:  3 rows dated 2099, of odd" in shown


@pytest.mark.parametrize(
    ("references", "words"),
    [
        (["collector"], "the collector's clock"),
        (["mail-1"], "mail-1's clock"),
        (["majority"], "the majority"),
        (["collector", "mail-1"], "the collector's clock and mail-1's clock"),
    ],
)
def test_whom_a_clock_was_compared_with_is_named_as_people_say_it(references: list[str], words: str) -> None:
    assert against(references) == words


def test_few_late_rows_are_only_counted(demo_state: Path) -> None:
    shown = screen(demo_state, "report")
    assert re.search(r"read = .* \+ \d+ late", shown) and "arrived too late" not in shown


def test_the_parts_of_the_accounting_add_up(demo_state: Path) -> None:
    (line,) = [x for x in screen(demo_state, "report").splitlines() if " read = " in x]
    whole, *parts = [int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", line)]
    assert len(parts) >= 4 and whole == sum(parts)


@pytest.mark.parametrize("heading", HEADINGS)
def test_every_section_of_the_demo_has_its_heading_once(heading: str, demo_state: Path) -> None:
    assert screen(demo_state, "report").count(heading) == 1
