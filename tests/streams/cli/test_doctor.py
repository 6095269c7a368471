"""What can't be seen, and why not: the demo's screens as golden files, and a first replay of nginx's log."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from streams.cli import app
from streams.installed import clashes, versions
from streams.problems import Problem
from tests.streams.report.states import of_rows
from tests.streams.tape import T0, asynchealth, lines, request, storm

Golden = Callable[[str, str], None]
WORDS = re.compile(r"\b(slice|fate|frontier|match)(e?[sd])?\b", re.IGNORECASE)  # that are for the code alone


def shown(state: Path, *args: str) -> str:
    result = CliRunner().invoke(app, [*args, "--state", str(state)], catch_exceptions=True)
    if isinstance(result.exception, Problem):
        raise result.exception
    assert result.exit_code == 0, result.output
    assert not WORDS.search(result.output)
    return result.output.replace(str(state), "demo-state")


def without_versions(text: str) -> str:
    """They change with every lock."""
    return re.sub(r"^VERSIONS .*?(?=^NAMES)", "", text, flags=re.MULTILINE | re.DOTALL)


def told(state: Path, *args: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in shown(state, *args, "--json").splitlines()]


# --- the demo's screens


def test_the_doctors_screen_is_the_golden_one(demo_state: Path, golden: Golden) -> None:
    golden("doctor.txt", without_versions(shown(demo_state, "doctor")))


def test_why_not_is_the_golden_one(demo_state: Path, golden: Golden) -> None:
    golden("why_not.txt", shown(demo_state, "why-not"))
    golden("why_not_retry_storm.txt", shown(demo_state, "why-not", "retry_storm"))


def test_both_can_be_plain_ascii(demo_state: Path) -> None:
    for command in (["doctor"], ["why-not"]):
        assert shown(demo_state, *command, "--ascii").isascii(), command


def test_every_hint_of_theirs_names_the_state_and_can_be_typed(demo_state: Path) -> None:
    hints = re.findall(r"asynchealth (why-not.*?) --state", shown(demo_state, "doctor") + shown(demo_state, "why-not"))
    assert len(hints) > 5
    for hint in dict.fromkeys(hints):
        assert shown(demo_state, *hint.split())


# --- the first replay of somebody's own logs


def access(n: int = 900) -> bytes:
    """nginx in front of two services, one of which answers late at times."""
    at = [datetime.fromtimestamp(T0 + i / 2, UTC).isoformat() for i in range(n)]
    every = [
        {
            "time_iso8601": at[i],
            "status": 504 if i % 40 == 0 else 200,
            "request_time": 2.0 if i % 40 == 0 else 0.05,
            "remote_addr": "10.0.0.1",
            "proxy_host": "cart:80" if i % 3 else "user:80",
            "hostname": "edge-1",
        }
        for i in range(n)
    ]
    return lines(every)


@pytest.fixture
def nginx(tmp_path: Path) -> Path:
    (tmp_path / "access.json").write_bytes(access())
    return tmp_path


def test_the_first_replay_of_nginx_says_what_is_blind_and_the_line_that_unlocks_it(nginx: Path, golden: Golden) -> None:
    done = asynchealth("replay", "access.json", "--state", "state", cwd=nginx)
    assert done.returncode == 0, done.stderr
    golden("replay_nginx.txt", done.stdout.decode())


def test_each_line_that_unlocks_does_unlock_what_it_says(nginx: Path) -> None:
    """The log written as the lines say: the same detectors are not blind any more."""
    events = [json.loads(line) for line in access().splitlines()]
    more = {"key": "k", "upstream_cache_status": "HIT", "retry": "0", "http_x_timeout_ms": "2000"}
    more |= {"otel_trace_id": "t", "otel_span_id": "s", "otel_parent_id": "p"}
    before = asynchealth("replay", "access.json", "--state", "before", cwd=nginx).stdout.decode()
    for field in more:
        assert f'"{field}":"$' in before
    (nginx / "access.json").write_bytes(lines([{**e, **more} for e in events]))
    after = asynchealth("replay", "access.json", "--state", "after", cwd=nginx).stdout.decode()
    assert "unlock" not in after
    for detector in ("duplicate_key", "idempotency_cache", "retry_storm", "timeout_budget", "timeout_cascade"):
        assert detector in before and detector not in after


# --- coverage, by source


def test_a_detector_may_run_in_one_source_and_be_blind_in_another(tmp_path: Path) -> None:
    (tmp_path / "access.json").write_bytes(access())
    rows = [{**row, "request_id": f"r{i}"} for i, row in enumerate(storm(400))]
    (tmp_path / "requests.jsonl").write_bytes(lines(rows))
    asynchealth("replay", "access.json", "requests.jsonl", "--state", "state", cwd=tmp_path)
    (found,) = told(tmp_path / "state", "doctor")
    by_source = {s["source"]: s["detectors"] for s in found["sources"]}
    assert by_source["access.json"]["retry_storm"] == {"state": "blind", "wanted": ["retry_count or payload_hash"]}
    assert by_source["requests.jsonl"]["retry_storm"]["state"] == "runs"
    (whole,) = [d for d in found["detectors"] if d["detector"] == "retry_storm"]
    assert whole["state"] == "runs"
    text = shown(tmp_path / "state", "doctor")
    assert re.search(r"^retry_storm +runs +requests.jsonl$", text, re.MULTILINE)
    assert re.search(r"^ +blind +access.json: no retry_count or payload_hash$", text, re.MULTILINE)
    assert 'with nginx: log_format … "retry":"$http_x_retry_count"' in text


def test_rotated_files_that_fill_the_same_fields_are_one_line(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"requests-{i}.jsonl").write_bytes(lines([request(i * 100 + k) for k in range(100)]))
    asynchealth("replay", ".", "--state", "state", cwd=tmp_path)
    assert "requests-0.jsonl and 3 more (own events → requests, 400 rows)" in shown(tmp_path / "state", "doctor")


# --- delay, gaps, stamps, sampling


def delayed(share: float, by_s: float, n: int = 4000) -> list[dict[str, Any]]:
    every = round(1 / share)
    rows = [request(i, duration_ms=0) for i in range(n)]
    return sorted(
        ({**r, "arrival": r["timestamp"] + (by_s if i % every == 0 else 1)} for i, r in enumerate(rows)),
        key=lambda r: r["arrival"],
    )


@pytest.mark.parametrize(
    ("by_s", "proposed_s"), [(10, 30), (30, 30), (30.2, 60), (59, 60), (61, 120), (200, 300), (4_000, 7_200)]
)
def test_the_lateness_proposed_is_the_least_that_hardly_any_row_exceeds(
    by_s: float, proposed_s: float, tmp_path: Path
) -> None:
    state = of_rows(tmp_path, requests=delayed(0.01, by_s))
    (found,) = told(state, "doctor")
    assert found["proposed_lateness_s"] == proposed_s and found["lateness_s"] == 30
    (source,) = found["sources"]
    assert source["delay"]["median_s"] == 1 and source["delay"]["most_s"] == by_s
    assert source["delay"]["late"] == (40 if by_s > 30 else 0)
    hint = re.findall(r"rebuild --lateness (\S+) --state", shown(state, "doctor"))
    assert bool(hint) == (proposed_s != 30)


def test_one_row_in_two_thousand_that_is_late_changes_no_lateness(tmp_path: Path) -> None:
    """What comes after them shows that they were late: of two last rows nobody knows."""
    after = [request(i, timestamp=T0 + 900 + i, arrival=T0 + 901 + i) for i in range(100)]
    (found,) = told(of_rows(tmp_path, requests=[*delayed(1 / 2000, 300), *after]), "doctor")
    assert found["proposed_lateness_s"] == 30 and found["sources"][0]["delay"]["late"] == 2


def test_without_arrivals_delay_is_unknown_and_not_none(tmp_path: Path) -> None:
    rows = [{k: v for k, v in r.items() if k != "arrival"} for r in storm(400)]
    state = of_rows(tmp_path, requests=rows)
    assert "DELAY   unknown: no source records when its rows arrived" in shown(state, "doctor")
    (found,) = told(state, "doctor")
    assert found["sources"][0]["delay"] is None and found["proposed_lateness_s"] is None
    blind = {d["detector"]: d["missing"] for d in found["detectors"] if d["state"] == "blind"}
    assert blind["pipeline"] == ["arrival"]


def test_a_gap_in_arrivals_and_a_source_that_ends_early_are_named(tmp_path: Path) -> None:
    minutes = [m for m in range(40) if not 10 <= m < 22]
    some = [request(0, timestamp=T0 + 60 * m, arrival=T0 + 60 * m + 1) for m in minutes]
    times = range(T0, T0 + 600, 10)
    beats = [{"node_id": "a", "client_time": t, "server_time": t, "arrival": t} for t in times]
    state = of_rows(tmp_path, requests=some, heartbeats=beats)
    text = shown(state, "doctor")
    assert "requests-0.jsonl: nothing for 12 min, 08:10 - 08:22" in text
    assert "heartbeats-0.jsonl: nothing for 29 min, 08:10 to the end of the data" in text


def test_stamps_of_another_zone_are_told_with_what_to_write_into_the_map(tmp_path: Path) -> None:
    rows = [request(i, timestamp=T0 + i - 4 * 3600, arrival=T0 + i + 1) for i in range(400)]
    text = shown(of_rows(tmp_path, requests=rows), "doctor")
    assert 'requests-0.jsonl: 4 h behind their arrival. Local times? In its map: zone = "-04:00"' in text
    assert "to 1 s: requests-0.jsonl" in text


@pytest.mark.parametrize("behind_s", [0, 300, 1200])
def test_stamps_that_are_merely_late_are_of_no_other_zone(behind_s: int, tmp_path: Path) -> None:
    rows = [request(i, timestamp=T0 + i - behind_s, arrival=T0 + i + 1) for i in range(400)]
    assert "Local times?" not in shown(of_rows(tmp_path, requests=rows), "doctor")


def test_sampling_is_told_with_what_it_makes_unknown(tmp_path: Path) -> None:
    rows = [request(i, weight=10 if i % 4 == 0 else 1) for i in range(400)]
    assert "requests-0.jsonl: 25% of its rows stand for others, up to 10 each" in shown(
        of_rows(tmp_path, requests=rows), "doctor"
    )


# --- versions and names


def test_versions_are_those_of_what_is_installed() -> None:
    found = versions()
    assert {"python", "asynchealth", "polars", "duckdb", "pyarrow", "faust-streaming"} <= found.keys()
    assert all(re.match(r"\d", v) for v in found.values())


def test_another_package_with_a_module_of_our_name_is_named(tmp_path: Path) -> None:
    assert clashes() == []
    assert clashes({"streams": ["asynchealth", "streams"], "other": ["x"]}, []) == [("streams", "streams")]
    (tmp_path / "detectors").mkdir()
    assert clashes({}, [str(tmp_path)]) == []  # a folder of data is no package
    (tmp_path / "detectors" / "__init__.py").write_text("")
    assert clashes({}, [str(tmp_path)]) == [("detectors", str(tmp_path / "detectors" / "__init__.py"))]


# --- why not


def test_filters_keep_what_has_to_do_with_a_service_or_a_node(demo_state: Path) -> None:
    def subjects(*args: str) -> set[tuple[str, str]]:
        return {(r["detector"], r["subject"]) for r in told(demo_state, "why-not", *args) if "subject" in r}

    every, payment, node = subjects(), subjects("--service", "payment"), subjects("--node", "payment-3")
    assert payment < every and node < every
    assert {("retry_storm", "gateway->payment"), ("timeout_budget", "payment"), ("clock_skew", "payment-3")} <= payment
    assert ("timeout_budget", "search") not in payment and ("clock_skew", "search-2") not in payment
    assert {("clock_skew", "payment-3"), ("timeout_budget", "payment"), ("retry_storm", "payment->ledger")} <= node
    assert ("clock_skew", "payment-1") not in node and ("retry_storm", "gateway->search") not in node
    assert ("concurrent_writers", "order/cart") in subjects("concurrent_writers", "--service", "order")
    assert subjects("--service", "nobody") == subjects("--node", "nobody") == set()
    assert {d for d, _ in subjects("retry_storm")} == {"retry_storm"}


def test_other_thresholds_are_tried_and_said_so(demo_state: Path) -> None:
    before = shown(demo_state, "why-not", "timeout_budget")
    assert re.search(r"gateway +88% of warn at 08:21 \(warn_pct: 70 of 80 % of timeout\)", before)
    after = shown(demo_state, "why-not", "timeout_budget", "--set", "timeout_budget.warn_pct=63")
    assert re.search(r"gateway +fired: warn with these settings \(not in the findings\)", after)
    assert "Judged with other settings than the findings were: timeout_budget.warn_pct = 63" in after
    assert "other settings" not in before


def test_a_time_asked_for_limits_what_is_told(demo_state: Path) -> None:
    late = told(demo_state, "why-not", "retry_storm", "--since", "08:40")
    assert late and all(r["state"] != "fired" and r["near"]["at"] >= "2026-01-26T08:40" for r in late)
    assert "2026-01-26 08:40 - 09:00 UTC" in shown(demo_state, "why-not", "retry_storm", "--since", "08:40")


def test_blind_and_unknown_are_said_with_why_and_are_never_near(nginx: Path) -> None:
    asynchealth("replay", "access.json", "--state", "state", cwd=nginx)
    by = {r["detector"]: r for r in told(nginx / "state", "why-not")}
    assert by["retry_storm"] == {
        "detector": "retry_storm",
        "state": "blind",
        "why": "no retry_count or payload_hash in any source",
    }
    text = shown(nginx / "state", "why-not")
    assert "blind: no idempotency_key in any source. See: asynchealth doctor --state" in text
    assert re.search(r"10.0.0.1->user +unknown: at most \d+ calls a minute, 50 needed", text)


def test_a_detector_that_is_not_there_is_named(demo_state: Path) -> None:
    with pytest.raises(Problem, match="nothing: no such detector\nNext: asynchealth detectors"):
        shown(demo_state, "why-not", "nothing")
    with pytest.raises(Problem, match="no asynchealth state here"):
        shown(demo_state / "lake", "doctor")


@pytest.mark.parametrize("command", ["doctor", "why-not"])
def test_help_comes_at_once(command: str) -> None:
    begun = time.monotonic()
    done = asynchealth(command, "--help")
    took = time.monotonic() - begun
    assert done.returncode == 0 and b"--state" in done.stdout
    assert took < 5, "it imports what only the command itself needs"
