"""Small states enter; what must leave is a report that never takes "no data" for "no problem"."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shlex
from collections import Counter
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from streams.cli import app
from streams.problems import Problem
from streams.report.morning.clocks import against
from streams.report.morning.screen import accounting
from streams.report.morning.section import FEW, first_of
from tests.cases import T0, Case, partitions
from tests.cases.pipeline import _rows as of_partitions
from tests.cases.pipeline import _stepped
from tests.streams.report.states import of_case, of_rows

HEADINGS = ("CLOCK SKEW", "RETRY STORMS", "RACE CONDITIONS", "TIMEOUT BUDGET", "IDEMPOTENCY")


def screen(state: Path, *args: str) -> str:
    result = CliRunner().invoke(app, [*args, "--state", str(state)])
    assert result.exit_code == 0, result.exception
    return result.output


def test_every_row_that_was_read_is_somewhere_in_the_sum() -> None:
    fates = {"used": 1, "late": 2, "implausible": 3, "rejected": 4, "repeated": 5, "stray": 6, "parked": 7}
    said = accounting({"read": 36, **fates, "tombstones": 8})
    assert said == (
        "36 read = 1 used + 2 late + 3 implausible + 4 rejected + 5 repeated + 6 stray + 7 parked + 8 empty"
    )
    assert accounting({"read": 1, **dict.fromkeys(fates, 0), "used": 1, "tombstones": 0}) == "1 read = 1 used"


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
    assert "unknown (no retry_count or payload_hash in any source)" in lines["RETRY STORMS"]
    assert "unknown (no heartbeats or calls logged by both sides in any source)" in lines["CLOCK SKEW"]
    assert "unknown (no write_log in any source)" in lines["RACE CONDITIONS"]


def test_the_same_for_machines(tmp_path: Path) -> None:
    told = json.loads(screen(of_rows(tmp_path, requests=calls()), "report", "--json"))
    assert {s["state"] for s in told["sections"].values()} == {"unknown"}
    assert all(s["why"] for s in told["sections"].values())


def test_a_list_without_findings_names_who_was_blind_instead_of_all_clear(tmp_path: Path) -> None:
    shown = screen(of_rows(tmp_path, requests=calls()), "findings")
    assert shown.startswith("0 findings")
    assert "Cannot say: " in shown and "retry_storm (no retry_count or payload_hash in any source)" in shown
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
        row["arrival"] = (T0 + timedelta(minutes=25)).isoformat()
    state = of_rows(tmp_path, requests=sorted(rows, key=lambda r: r["arrival"]))
    shown = screen(state, "report")
    assert re.search(r"\d+(\.\d)?% of the rows arrived too late", shown)
    (command,) = re.findall(r"asynchealth (doctor --state \S+)", shown)
    told = CliRunner().invoke(app, command.split()).output
    (command,) = re.findall(r"asynchealth (rebuild --lateness \S+ --state \S+)", told)
    assert CliRunner().invoke(app, command.split()).exit_code == 0
    assert "arrived too late" not in screen(state, "report")


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


def beats(of_n0: dict[str, Any], n: int = 3000) -> list[dict[str, Any]]:
    """Ten nodes beat every 2 s; `of_n0` is added to a few of the first one's."""
    rows = []
    for i in range(n):
        at = T0 + timedelta(seconds=i / 5)
        row = {"node_id": f"n{i % 10}", "client_time": at, "server_time": at + timedelta(milliseconds=5)}
        odd = of_n0 if i in (1500, 1510, 1520) else {}
        rows.append(row | {"arrival": at + timedelta(milliseconds=100)} | odd)
    return rows


@pytest.mark.parametrize(("stamp", "node"), [("client_time", "n0"), ("server_time", "collector")])
def test_a_node_is_shown_with_the_rows_that_its_own_clock_stamped_wrong(stamp: str, node: str, tmp_path: Path) -> None:
    state = of_rows(tmp_path, heartbeats=beats({stamp: "2099-06-01T00:00:00Z"}))
    (found,) = [json.loads(x) for x in screen(state, "findings", "--json", "--node", node).splitlines()]
    assert (found["detector"], found["subject"], found["count"]) == ("impossible_timestamp", node, 3)
    assert "Counted: 3 rows" in screen(state, "explain", found["finding_id"])
    rows = list(csv.DictReader(io.StringIO(screen(state, "findings", found["finding_id"], "--csv"))))
    assert len(rows) == 3 and all(r[stamp].startswith("2099") for r in rows)


def both_sides(n: int = 600) -> list[dict[str, Any]]:
    """Calls that both sides logged; the server's clock is 3 s behind, and nobody sends heartbeats."""
    rows = []
    for i in range(n):
        at = T0 + timedelta(seconds=i, milliseconds=1)
        both = {"service_name": "mail", "caller": "order", "status": "ok", "retry_count": 0, "request_id": f"r{i}"}
        arrival = at + timedelta(seconds=1)
        client = {"side": "client", "node_id": "order-1", "timestamp": at, "duration_ms": 50.5}
        behind = at - timedelta(seconds=3) + timedelta(milliseconds=10, microseconds=1)
        server = {"side": "server", "node_id": "mail-1", "timestamp": behind, "duration_ms": 20.5}
        rows += [{**both, **client, "arrival": arrival}, {**both, **server, "arrival": arrival}]
    return rows


def test_a_clock_that_only_calls_tell_of_is_shown_with_both_lines_of_them(tmp_path: Path) -> None:
    state = of_rows(tmp_path, requests=both_sides())
    (whole,) = [json.loads(x) for x in screen(state, "findings", "--json").splitlines()]
    assert whole["detector"] == "clock_skew"
    shown = screen(state, "report", "--node", whole["subject"])
    assert "CLOCK SKEW:" in shown and "(🚨 PAGE)" in shown
    told = screen(state, "explain", whole["finding_id"])
    assert "Looked at: 600 rows" in told and "FROM requests WHERE node_id" in told
    assert len(re.findall(r"client +order-1", told)) == len(re.findall(r"server +mail-1", told)) > 0


@pytest.mark.parametrize("asked", ["--node", "--key", "--trace"])
def test_what_is_judged_as_a_whole_is_not_said_to_be_well_of_a_part(asked: str, demo_state: Path) -> None:
    """The fleet has a finding in every section: filtered away it leaves no OK behind."""
    whole = json.loads(screen(demo_state, "report", "--json"))["sections"]
    assert len(whole) == 5 and all(s["findings"] for s in whole.values())
    part = json.loads(screen(demo_state, "report", "--json", asked, "nobody"))["sections"]
    assert {s["state"] for s in part.values()} == {"unknown"}


def test_of_a_service_that_nobody_called_nothing_is_known(demo_state: Path) -> None:
    part = json.loads(screen(demo_state, "report", "--json", "--service", "nobody"))["sections"]
    assert {s["state"] for s in part.values()} == {"unknown"}


def test_before_the_data_begins_nothing_is_known(demo_state: Path) -> None:
    part = json.loads(screen(demo_state, "report", "--json", "--until", "2026-01-25"))["sections"]
    assert {s["state"] for s in part.values()} == {"unknown"}


def test_too_few_calls_are_unknown_and_why_however_bad_they_are(tmp_path: Path) -> None:
    """49 calls a minute for twenty minutes, and all time out: one more a minute and it would page."""
    rows = []
    for i in range(49 * 20):
        at = T0 + timedelta(seconds=i * 60 / 49)
        row = {"service_name": "dead", "caller": "gw", "node_id": "g", "status": "timeout", "timeout_ms": 1000}
        rows.append({**row, "timestamp": at, "arrival": at + timedelta(seconds=1.1), "duration_ms": 1000})
    state = of_rows(tmp_path, requests=rows)
    shown = screen(state, "report")
    assert "TIMEOUT BUDGET:     unknown (at most 49 calls with a timeout a minute, 100 needed)" in shown
    (why,) = re.findall(r"Timed out: +980 of 980 at gw->dead   \((.+)\)", shown)
    assert why == "too few to judge: at most 49 calls a minute, 50 needed"
    listed = screen(state, "findings")
    assert "timeout_ratio of gw->dead (at most 49 calls a minute, 50 needed)" in listed
    assert "timeout_budget of dead (at most 49 calls with a timeout a minute, 100 needed)" in listed
    assert "What could be judged is under every threshold" in listed


def test_of_many_edges_that_time_out_it_is_said_how_many_more_and_what_shows_them(tmp_path: Path) -> None:
    few = [{"service_name": f"dead-{n}", "status": "timeout", "timeout_ms": 1000} for n in range(5)]
    state = of_rows(tmp_path, requests=[row | few[i % 5] for i, row in enumerate(calls())])
    shown = screen(state, "report")
    assert shown.count("Timed out: ") == 3
    (more,) = re.findall(r"And more: +(.+)\n +All: +asynchealth (sql @timeouts_by_edge --state \S+)\n", shown)
    assert more[0] == "2 edges"
    assert all(f"gateway->dead-{n}" in CliRunner().invoke(app, more[1].split()).output for n in range(5))


def test_few_calls_of_edges_with_odd_names_are_counted_each_by_its_own_name(tmp_path: Path) -> None:
    """30 calls a minute from each caller: one that nobody told, one whose name is `?`, one with an arrow in it."""
    callers = [{}, {"caller": "?"}, {"caller": "a->b"}]
    few = [{"service_name": "dead", "status": "timeout", "timeout_ms": 1000, **c} for c in callers]
    bare = [{n: v for n, v in row.items() if n != "caller"} for row in calls()]
    state = of_rows(tmp_path, requests=[row | few[i % 3] for i, row in enumerate(bare) if i % 4])
    shown = screen(state, "report")
    for edge in ("?->dead", r"\?->dead", r"a-\>b->dead"):
        assert f"Timed out:          150 of 150 at {edge}   (too few to judge: at most 30 calls a" in shown
    listed = screen(state, "why-not", "timeout_ratio")
    assert listed.count("unknown: at most 30 calls a minute, 50 needed") == 3


def test_a_minimum_that_was_set_is_the_one_that_counts(tmp_path: Path) -> None:
    state = of_rows(tmp_path, requests=calls(duration_ms=780.0, timeout_ms=1000.0))
    assert "78% utilized (OK)" in screen(state, "report")
    screen(state, "rebuild", "--set", "timeout_budget.min_volume=150")
    assert "unknown (at most 120 calls with a timeout a minute, 150 needed)" in screen(state, "report")


def test_a_minimum_of_one_service_is_what_its_calls_are_held_against(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has 30 calls a minute, as the other has, and 30 are enough for it: no screen says that they are too few."""
    few = [{"service_name": "own", "status": "timeout"}, {"service_name": "other"}]
    state = of_rows(tmp_path, requests=[row | few[i % 2] for i, row in enumerate(calls()) if i % 4 < 2])
    monkeypatch.chdir(tmp_path)
    Path("asynchealth.toml").write_text("services.own.thresholds = { timeout_ratio.min_volume = 20 }")
    screen(state, "rebuild")
    listed = screen(state, "why-not", "timeout_ratio")
    assert "PAGE" in screen(state, "findings", "--service", "own")
    assert "unknown: at most 30 calls a minute, 50 needed" in listed and "20 needed" not in listed
    assert "at gateway->own" not in screen(state, "report")


def test_a_service_with_too_few_calls_does_not_hide_behind_one_with_many(tmp_path: Path) -> None:
    slow = calls(60, service_name="slow", duration_ms=990.0, timeout_ms=1000.0)
    busy = calls(duration_ms=500.0, timeout_ms=1000.0)
    shown = screen(of_rows(tmp_path, requests=sorted([*slow, *busy], key=lambda r: r["arrival"])), "report")
    assert "50% utilized (OK)" in shown and "(payment, the tightest" in shown
    assert "Not judged:         slow (at most 60 calls with a timeout a minute, 100 needed)" in shown


def test_too_few_look_ups_are_no_cache_that_is_well(tmp_path: Path) -> None:
    """49 look-ups of known keys in five minutes, and every one misses."""
    rows = [
        {**row, "side": "server", "idempotency_key": f"k{i // 2}", "cache": "miss", "applied": False}
        for i, row in enumerate(calls(98))
    ]
    shown = screen(of_rows(tmp_path, requests=rows), "report")
    assert "IDEMPOTENCY:        unknown (at most 49 look-ups of known keys in 5 minutes, 50 needed)" in shown
    assert "Cache hits:         0 of 49 repeats" in shown


def test_a_node_behind_is_unknown_where_heartbeats_go_one_way_only(tmp_path: Path) -> None:
    rows = beats({})
    for row in rows[3::10]:
        row["client_time"] -= timedelta(milliseconds=900)
    state = of_rows(tmp_path, heartbeats=rows)
    shown = screen(state, "report")
    assert "CLOCK SKEW:         none of 10 nodes ahead by more than 100ms\n" in shown
    assert "Behind:             unknown up to 1,100ms for 10 nodes of 10, heard one way only" in shown
    assert json.loads(screen(state, "report", "--json"))["sections"]["clock_skew"]["state"] == "unknown"
    assert "clock_skew behind (up to 1,100ms for 10 nodes of 10, heard one way only)" in screen(state, "findings")


def test_clocks_that_are_heard_both_ways_are_well(tmp_path: Path) -> None:
    rows = beats({})
    for row in rows:
        row["reply_sent"] = row["server_time"] + timedelta(milliseconds=1)
        row["reply_received"] = row["client_time"] + timedelta(milliseconds=11)
    state = of_rows(tmp_path, heartbeats=rows)
    assert "CLOCK SKEW:         none of 10 nodes off by more than 100ms (OK)" in screen(state, "report")
    assert "none of 1 node of node n3 off by more than 100ms (OK)" in screen(state, "report", "--node", "n3")
    assert "clock_skew" not in screen(state, "findings")


def test_writes_that_tell_nothing_to_compare_are_not_said_to_be_free_of_conflict(tmp_path: Path) -> None:
    at = {"entity_type": "order", "entity_id": "cart"}
    rows = [
        {**at, "timestamp": T0 + timedelta(seconds=i), "arrival": T0 + timedelta(seconds=i), "node_id": f"n{i % 2}"}
        for i in range(60)
    ]
    state = of_rows(tmp_path, write_log=rows)
    assert "RACE CONDITIONS:    unknown (no write tells what it knew: vector_clock" in screen(state, "report")
    assert "concurrent_writers (no write tells what it knew" in screen(state, "findings")


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


OF_MANY = st.tuples(st.sampled_from(["page", "warn", "shadow"]), st.sampled_from("ab"), st.sampled_from(["", "k"]))


@given(st.lists(OF_MANY, max_size=40))
def test_of_many_alike_the_first_are_shown_and_every_page(many: list[tuple[str, str, str]]) -> None:
    found: Any = [SimpleNamespace(level=level, detector=d, kind=k) for level, d, k in sorted(many)]
    shown, more = first_of(found)
    ids = {id(f) for f in shown}
    left = [f for f in found if id(f) not in ids]
    assert shown == [f for f in found if id(f) in ids], "in their order"
    assert Counter(f.detector for f in left) == more
    for d, k in {(f.detector, f.kind) for f in found}:
        warned = [f for f in found if (f.detector, f.kind) == (d, k) and f.level != "page"]
        assert [f for f in warned if id(f) in ids] == warned[:FEW]
    assert all(f.level != "page" for f in left)


def test_findings_alike_are_a_few_lines_of_the_report_and_all_of_the_list(tmp_path: Path) -> None:
    parts = partitions("requests", of_partitions(0), 8)
    state = of_case(tmp_path, Case({"requests": [_stepped(part, 50, 60, 60.0) for part in parts]}))
    told = screen(state, "report").splitlines()
    assert sum("append time stepped back" in line for line in told) == FEW
    (more,) = [line for line in told if "And 3 more:" in line]
    command = shlex.split(more.partition(":")[2])
    assert command[-2:] == ["--state", str(state)]
    listed = screen(state, *command[1:-2])
    assert listed.startswith("8 findings") and "(only detector pipeline)" in listed
    assert more.split(":")[1].strip() in html.unescape(screen(state, "report", "--format", "html"))
    none = screen(state, "findings", "--detector", "clock_skew")
    assert none.startswith("0 findings") and "clock_skew (" in none and "timeout_ratio" not in none
    with pytest.raises(Problem, match="--detector typo: no such detector"):
        CliRunner().invoke(app, ["findings", "--detector", "typo", "--state", str(state)], catch_exceptions=False)
