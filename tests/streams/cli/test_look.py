"""Command lines enter, screens leave: every screen of the demo as a golden file, and every way to ask wrongly."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

from streams.catalog import catalog
from streams.cli import app, main
from streams.landing.state import SCHEMA_VERSION
from streams.problems import Exit, Problem
from streams.report import library
from streams.sources.files import READABLE
from tests.streams.tape import COMMAND, ROOT

Golden = Callable[[str, str], None]


@dataclass(frozen=True)
class Screen:
    """asynchealth as a person calls it in the demo's folder."""

    state: Path

    def __call__(self, *args: str, stdin: str = "") -> str:
        result = CliRunner().invoke(app, [*args, "--state", str(self.state)], input=stdin, catch_exceptions=True)
        if isinstance(result.exception, Problem):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output.replace(str(self.state), "demo-state")

    def ids(self, detector: str) -> list[str]:
        rows = [json.loads(line) for line in self("findings", "--json").splitlines()]
        return [r["finding_id"] for r in rows if r["detector"] == detector]


@pytest.fixture
def screen(demo_state: Path) -> Screen:
    return Screen(demo_state)


# --- the demo's screens


def test_the_morning_report_is_the_golden_one(screen: Screen, golden: Golden) -> None:
    golden("report.txt", screen("report"))
    golden("report_ascii.txt", screen("report", "--ascii"))


def test_the_morning_report_for_machines_is_the_golden_one(screen: Screen, golden: Golden) -> None:
    golden("report.json", json.dumps(json.loads(screen("report", "--json")), indent=2) + "\n")


def test_the_list_of_findings_is_the_golden_one(screen: Screen, golden: Golden) -> None:
    golden("findings.txt", screen("findings"))


@pytest.mark.parametrize("detector", ["duplicate_key", "retry_storm", "clock_skew", "concurrent_writers"])
def test_an_explanation_is_the_golden_one(detector: str, screen: Screen, golden: Golden) -> None:
    golden(f"explain_{detector}.txt", screen("explain", screen.ids(detector)[0]))


def test_the_shipped_questions_are_listed_as_in_the_golden_file(screen: Screen, golden: Golden) -> None:
    golden("sql_list.txt", screen("sql", "--list"))


def test_every_screen_can_be_plain_ascii(screen: Screen) -> None:
    fancy = screen("report")
    assert not fancy.isascii()
    for command in (["report"], ["findings"], ["explain", screen.ids("duplicate_key")[0]], ["sql", "FROM findings"]):
        assert screen(*command, "--ascii").isascii(), command


def test_every_hint_names_the_state_and_can_be_typed(screen: Screen) -> None:
    hints = re.findall(r"asynchealth (?:findings|explain|sql|rebuild)\b.*?--state (\S+)", screen("report"))
    assert hints == ["demo-state"] * 3
    for word in ("report", "findings"):
        for hint in re.findall(r"asynchealth (explain \S+) --state", screen(word)):
            assert screen(*hint.split())


BARE = re.compile(r"(?<![\w./-])asynchealth [a-z]")


def test_every_hint_names_the_program_as_it_was_called_and_the_state(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["./bin/asynchealth"])
    nobody = ["findings", "--node", "nobody"]
    shown = {" ".join(c): screen(*c) for c in (["report"], ["findings"], nobody, ["sql", "--list"], ["detectors"])}
    shown |= {f"explain {d}": screen("explain", screen.ids(d)[0]) for d in ("clock_skew", "duplicate_key")}
    shown |= {f"runbook {name}": screen("runbook", name) for name in catalog()}
    for command, text in shown.items():
        assert "./bin/asynchealth " in text, f"{command} has no hint"
        assert not BARE.search(text), command
        hints = [line for line in text.splitlines() if "./bin/asynchealth " in line]
        assert all("--state demo-state" in line for line in hints), command


def test_a_name_that_no_row_has_is_told_with_what_it_may_mean(screen: Screen) -> None:
    for command in (["findings"], ["why-not", "timeout_ratio"]):
        said = " ".join(screen(*command, "--service", "paymnet").split())
        assert "service paymnet (no row names it; is it payment?)" in said, command
        assert "no row names" not in screen(*command, "--service", "payment"), command
    _, why, then = screen("findings", "--node", "nobody").splitlines()
    assert why == "Cannot say: node nobody (no row names it)"
    assert then == "All findings: asynchealth findings --state demo-state"


def test_a_message_names_the_program_as_it_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for args, hint in (
        (["report"], "Next: ./bin/asynchealth replay PATH… --state asynchealth-state"),
        (["runbook", "nothing"], "Next: ./bin/asynchealth detectors"),
        (["sql"], 'Next: ./bin/asynchealth sql "SELECT * FROM findings", or ./bin/asynchealth sql --list'),
    ):
        monkeypatch.setattr(sys, "argv", ["./bin/asynchealth", *args])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code
        assert capsys.readouterr().err.splitlines()[-1] == hint


# --- lists and filters


def test_findings_for_machines_are_one_object_a_line_with_the_names_of_the_columns(screen: Screen) -> None:
    rows = [json.loads(line) for line in screen("findings", "--json").splitlines()]
    assert len(rows) >= 8
    columns = json.loads(screen("sql", "SELECT * FROM findings LIMIT 1", "--json"))
    assert all(list(r) == [*columns, "incident", "explained_by"] for r in rows)
    assert all(isinstance(r["facts"], dict) for r in rows)


def test_the_list_behind_a_doubled_key_has_every_key_with_both_effects(screen: Screen) -> None:
    (finding,) = screen.ids("duplicate_key")
    rows = list(csv.DictReader(io.StringIO(screen("findings", finding, "--csv"))))
    assert len(rows) == len({r["idempotency_key"] for r in rows}) == 23
    for row in rows[:3]:
        both = [
            f"({p}, {o})" for p, o in re.findall(r"requests/(\d+):(\d+)", row["record"] + " " + row["earlier_record"])
        ]
        query = (
            f"""SELECT idempotency_key, applied FROM requests WHERE ("partition", "offset") IN ({", ".join(both)})"""
        )
        seen = [json.loads(line) for line in screen("sql", query, "--json").splitlines()]
        assert seen == [{"idempotency_key": row["idempotency_key"], "applied": True}] * 2


def test_the_list_behind_a_storm_has_as_many_rows_as_the_finding_counts(screen: Screen) -> None:
    (finding,) = [json.loads(x) for x in screen("findings", "--json").splitlines() if '"retry_storm"' in x]
    rows = list(csv.DictReader(io.StringIO(screen("findings", finding["finding_id"], "--csv"))))
    assert len(rows) == finding["count"] > 1000
    assert all(int(r["retry_count"]) > 0 for r in rows)


def test_the_query_that_explain_shows_can_be_pasted_and_gives_the_rows_it_counts(screen: Screen) -> None:
    shown = screen("explain", screen.ids("timeout_ratio")[0])
    (counted,) = re.findall(r"Counted: ([\d,]+) rows", shown)
    (query,) = re.findall(r'asynchealth sql "(.+?)" --state', shown, re.DOTALL)
    assert len(screen("sql", query, "--csv").splitlines()) - 1 == int(counted.replace(",", "")) > 1000


def test_a_filter_keeps_what_has_to_do_with_the_thing(screen: Screen) -> None:
    def detectors(*args: str) -> set[str]:
        return {json.loads(line)["detector"] for line in screen("findings", "--json", *args).splitlines()}

    every = detectors()
    (key, *_) = json.loads(screen("sql", "@keys_applied_twice", "--json").splitlines()[0]).values()
    assert "duplicate_key" in detectors("--key", key) and "clock_skew" not in detectors("--key", key)
    assert detectors("--node", "search-2") >= {"clock_skew"} and "retry_storm" not in detectors("--node", "search-2")
    assert detectors("--service", "order") >= {"concurrent_writers"}
    assert "duplicate_key" not in detectors("--service", "order")
    assert "retry_storm" not in detectors("--since", "08:40") and "retry_storm" in detectors("--until", "08:40")
    assert "retry_storm" not in detectors("--since", "20m") and "clock_skew" in detectors("--since", "20m")
    assert detectors("--since", "08:00", "--until", "09:00") == every
    assert detectors("--trace", "no-such-trace") == set()


def test_a_filtered_screen_says_what_it_is_limited_to(screen: Screen) -> None:
    assert "(only service search)" in screen("findings", "--service", "search")
    assert "(only service search)" in screen("report", "--service", "search")


# --- SQL


def test_every_shipped_query_answers_its_question(screen: Screen) -> None:
    every = library.queries()
    assert len(every) >= 8
    for name, query in every.items():
        assert query.question.endswith("?"), name
        assert "1 row" in (answer := screen("sql", f"@{name}")) or " rows" in answer
    first = json.loads(screen("sql", "@max_clock_skew", "--json"))
    assert 847 <= first["max_ahead_ms"] < 850 and first["nodes_ahead_over_100ms"] == 2 and first["nodes"] == 47


def test_a_query_may_come_from_standard_input(screen: Screen) -> None:
    assert screen("sql", "-", "--csv", stdin="SELECT 1 AS a, NULL AS b, 'x,y' AS c") == 'a,b,c\n1,,"x,y"\n'


@pytest.mark.parametrize("query", ["-- how many?\nSELECT 1 AS a", "--1. Max Skew\nSELECT 1 AS a", "-- one line"])
def test_a_query_may_begin_with_a_comment(query: str, screen: Screen) -> None:
    if "\n" in query:
        assert screen("sql", query, "--csv") == "a\n1\n"
        assert screen("sql", "--csv", query) == "a\n1\n"
    else:
        with pytest.raises(Problem, match="Nothing to run"):
            screen("sql", query)


def test_what_is_no_option_is_still_no_query(demo_state: Path) -> None:
    result = CliRunner().invoke(app, ["sql", "--no-such-option", "--state", str(demo_state)])
    assert result.exit_code == Exit.USAGE and "No such option" in result.output


def test_an_answer_of_many_rows_ends_with_their_number(screen: Screen) -> None:
    shown = screen("sql", "SELECT range AS n FROM range(1000)").splitlines()
    assert shown[-1] == "1,000 rows (the first 200; all: --csv)" and len(shown) == 203
    assert len(screen("sql", "SELECT range AS n FROM range(1000)", "--json").splitlines()) == 1000


def test_nested_and_odd_values_are_json(screen: Screen) -> None:
    query = "SELECT [1, 2] AS l, MAP {'a': 1} AS m, 1.50::DECIMAL(5, 2) AS d, DATE '2026-01-26' AS t, 1e400 AS i"
    assert json.loads(screen("sql", query, "--json")) == {
        "l": [1, 2], "m": {"a": 1}, "d": 1.5, "t": "2026-01-26", "i": None,
    }  # fmt: skip


def test_columns_of_one_name_are_all_there(screen: Screen) -> None:
    answer = screen("sql", "SELECT 1 AS a, 2 AS a, 3 AS a_2, 4 AS a", "--json")
    assert json.loads(answer) == {"a": 1, "a_3": 2, "a_2": 3, "a_4": 4}


def test_a_map_may_have_any_keys(screen: Screen) -> None:
    query = "SELECT MAP {[1]: 1} AS lists, MAP {2: [MAP {3: 4}]} AS nested, NULL::MAP(INT, INT) AS nothing"
    assert json.loads(screen("sql", query, "--json")) == {
        "lists": {"[1]": 1}, "nested": {"2": [{"3": 4}]}, "nothing": None,
    }  # fmt: skip
    assert '{"[1]":1}' in screen("sql", query)


@pytest.mark.parametrize("command", ["report", "findings"])
def test_a_command_can_fail_on_what_it_shows(command: str, demo_state: Path) -> None:
    def code(*args: str) -> int:
        return CliRunner().invoke(app, [command, *args, "--state", str(demo_state)]).exit_code

    assert code() == 0 and code("--fail-on", "page") == 1 and code("--fail-on", "warn") == 1
    assert code("--fail-on", "page", "--service", "nobody") == 0


def test_figures_that_are_not_kept_by_key_are_unknown_rather_than_the_fleets(screen: Screen) -> None:
    shown = screen("report", "--key", "nobody")
    assert "TIMEOUT BUDGET:     unknown (not kept by key)" in shown
    assert "IDEMPOTENCY:        unknown (not kept by key)" in shown
    assert "CLOCK SKEW:         unknown (not kept by key)" in shown  # of the fleet's 47 two are off


def test_csv_and_json_are_exact_where_a_screen_shows_control_characters(screen: Screen) -> None:
    query = "SELECT 'a' || chr(10) || chr(9) || chr(155) || chr(27) || chr(13) AS text"
    assert json.loads(screen("sql", query, "--json")) == {"text": "a\n\t\x9b\x1b\r"}
    assert list(csv.reader(io.StringIO(screen("sql", query, "--csv"), newline="")))[1] == ["a\n\t\x9b\x1b\r"]
    assert "\x1b" not in screen("sql", query)


def test_a_terminal_that_knows_no_emoji_gets_plain_ascii(demo_state: Path) -> None:
    command = [sys.executable, "-m", "streams.cli", "report", "--state", str(demo_state)]
    run = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "latin-1"}, capture_output=True, check=True)
    assert run.stdout.isascii() and b"CLOCK SKEW" in run.stdout


# --- asking wrongly


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["explain", "xx-1234"], "no finding has an id that begins so"),
        (["explain", "c"], "findings have ids that begin so: cw-"),
        (["findings", "--since", "noon"], "not a time"),
        (["findings", "--since", "25:00"], "not a time"),
        (["findings", "--json", "--csv"], "one of the two"),
        (["report", "--since", "08:30", "--until", "08:10"], "ends at 2026-01-26 08:10, before it begins"),
        (["sql"], "no query"),
        (["sql", "@nothing"], "no such query; there are concurrent_write_conflicts"),
        (["sql", "DROP TABLE findings"], "this SQL only reads"),
        (["sql", "SELECT * FROM requests, requests AS r, requests AS s", "--limit", "100ms"], "Stopped after 0.1 s"),
    ],
)
def test_a_wrong_question_is_answered_with_what_to_type(args: list[str], said: str, screen: Screen) -> None:
    with pytest.raises(Problem) as problem:
        screen(*args)
    assert said in str(problem.value)


def test_a_folder_without_a_state_is_named_with_the_command_that_makes_one(tmp_path: Path) -> None:
    for args in (["report"], ["findings"], ["explain", "dk"], ["sql", "FROM findings"]):
        with pytest.raises(Problem, match=r"no asynchealth state here\nNext: asynchealth replay") as problem:
            Screen(tmp_path)(*args)
        assert problem.value.code == Exit.NOTHING


def test_a_state_of_another_schema_is_refused_with_the_way_out(demo_state: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_state, tmp_path / "old")
    with duckdb.connect(str(tmp_path / "old" / "asynchealth.duckdb")) as con:
        con.execute("UPDATE meta SET schema_version = 1")
    for args in (["report"], ["findings"], ["sql", "FROM findings"], ["rebuild"]):
        with pytest.raises(Problem, match=rf"has schema 1, this asynchealth reads {SCHEMA_VERSION}\nNext: .* --fresh"):
            Screen(tmp_path / "old")(*args)


# --- detectors and runbooks


def test_detectors_of_a_state_say_how_many_could_see(screen: Screen) -> None:
    assert re.search(r"\d+ ran, 0 blind", screen("detectors"))
    assert CliRunner().invoke(app, ["detectors"]).exit_code == 0


def test_every_explained_finding_leads_to_a_runbook(screen: Screen) -> None:
    findings = [json.loads(line) for line in screen("findings", "--json").splitlines()]
    assert findings
    for f in findings:
        (name,) = re.findall(
            r"^Do now: asynchealth runbook (\w+) --state demo-state$", screen("explain", f["finding_id"]), re.MULTILINE
        )
        assert CliRunner().invoke(app, ["runbook", name]).exit_code == 0, name


EARLY = ("report", "report --format html", "report --since 10m", "findings", "incident list", "triage", "timeline")


def test_rows_of_which_nothing_was_measured_yet_stop_no_screen(storm_state: Path) -> None:
    """As in the first file that a lander publishes: its windows are not final."""
    con = duckdb.connect(str(storm_state / READABLE))
    measured = {t.name for e in catalog().values() for t in e.detector.tables}
    dropped = [t for (t,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall() if t in measured]
    assert "calls" in dropped
    found = [t for (t,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall() if "incident" in t]
    for table in dropped:
        con.execute(f'DROP TABLE "{table}"')
    for table in ("findings", "finding_changes", *found):
        con.execute(f'DELETE FROM "{table}"')
    con.close()
    early = Screen(storm_state)
    assert all(early(*words.split()) for words in EARLY)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_who_reads_only_the_first_lines_is_no_failure(unbuffered: str, tmp_path: Path) -> None:
    """1 would say that it had found something."""
    environment = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    command = subprocess.Popen(
        [*COMMAND, "card"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment
    )
    assert command.stdout and command.stderr
    command.stdout.close()
    assert (command.stderr.read(), command.wait()) == (b"", Exit.FINE)
