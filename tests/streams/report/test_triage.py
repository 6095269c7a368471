"""Small states enter, paths through the charts leave: every leaf is reached, and what is not known is never "no"."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import polars as pl
import pytest
from typer.testing import CliRunner

from detectors.detector import Entry, catalog
from detectors.engine import FINDING
from streams.catalog import runbook_of
from streams.cli import app
from streams.landing import state
from streams.problems import Problem
from streams.report.found import all_findings
from streams.report.triage.chart import Chart, chart_of, charts
from streams.report.triage.walk import NOBODY, walk
from streams.report.triage.walk import Path as Walked
from tests.cases import T0
from tests.cases.duplicate_key import fires_every_warning
from tests.streams.report.states import of_case

Golden = Callable[[str, str], None]
Facts = dict[str, Any]


def finding(detector: str, subject: str, kind: str = "", facts: Facts | None = None, **more: Any) -> pl.DataFrame:
    """One row as judge gives it, ten minutes long."""
    usual = {"finding_id": f"{detector}-{subject}-{kind}", "detector": detector, "version": 1, "config": "c"}
    usual |= {"kind": kind, "subject_kind": "node", "subject": subject, "environment": "", "tenant": ""}
    usual |= {"level": "page", "certainty": "certain", "onset": T0, "last": T0 + timedelta(minutes=10), "value": 1.0}
    usual |= {"peak": 1.0, "peak_at": T0, "unit": "", "threshold": 0.0, "count": 1, "proof": []}
    usual |= {"facts": json.dumps(facts or {}), **more}
    return pl.DataFrame({n: [usual.get(n)] for n in FINDING}, schema=FINDING)


def skewed(node: str, low: float, high: float, **more: Any) -> pl.DataFrame:
    return finding("clock_skew", node, "", {"lower_ms": low, "upper_ms": high, "assumes_delay": False}, **more)


def key(**more: Any) -> dict[str, Any]:
    """A later use of a key, as the table `keys` has it."""
    usual = {"window": 0, "environment": "", "tenant": "", "service_name": "payment", "line": "server", "number": 1}
    usual |= {"verdict": "applied_twice", "cache": "miss", "stored": 1, "gap_us": 5_000_000, "overlapping": False}
    return usual | {"window": int(T0.timestamp() * 1e6), **more}


@dataclass(frozen=True)
class Tiny:
    """What a state holds that a chart asks for."""

    findings: list[pl.DataFrame] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    blind: dict[str, list[str]] = field(default_factory=dict)
    without: str = ""  # a detector that is not there
    services: dict[str, str] = field(default_factory=dict)


NAMES = [*catalog(), "clock_drift"]
CLOCK = {"environment": "", "tenant": "", "window": int(T0.timestamp() * 1e6), "facts": [1_000]}
BOTH_WAYS = {"clocks": [CLOCK | {"src": "n1", "dst": "n2"}, CLOCK | {"src": "n2", "dst": "n1"}]}
ONE_WAY = {"clocks": [CLOCK | {"src": "n1", "dst": "n2"}]}
CALLED = {"environment": "", "tenant": "", "window": CLOCK["window"], "attempts": 9}
CALLS = {"calls": [CALLED | {"caller": "a", "service_name": "b"}, CALLED | {"caller": "b", "service_name": "c"}]}
TWICE = finding("duplicate_key", "payment", "applied_twice", {"key": "k"})
COARSE = finding("duplicate_key", "payment", "other_payload", {"key": "k"})
UNKEYED = finding("duplicate_key", "payment", "missing")
BACK = finding("impossible_timestamp", "n1", "back")
CASCADE = finding("timeout_cascade", "a", "timed_out", {"longest": "b->c"}, subject_kind="service")
LATE = [finding("timeout_ratio", e, subject_kind="edge") for e in ("a->b", "b->c")]

CASES: dict[str, tuple[str, str, Tiny]] = {  # chart, leaf, state
    "a clock far ahead": ("timestamps", "sync", Tiny([skewed("n1", 600, 900)], BOTH_WAYS)),
    "a clock far behind": ("timestamps", "sync", Tiny([skewed("n1", -900, -600)], BOTH_WAYS)),
    "a clock that may be far off": ("timestamps", "ask_node", Tiny([skewed("n1", 120, 1120)], BOTH_WAYS)),
    "a clock that drifts": (
        "timestamps",
        "ntp",
        Tiny([skewed("n1", 120, 130), finding("clock_drift", "n1", "drift", peak=3.0)], BOTH_WAYS),
    ),
    "a clock that is right": ("timestamps", "app", Tiny([BACK], BOTH_WAYS)),
    "another node's clock": ("timestamps", "app", Tiny([BACK, skewed("n2", 600, 900, level="warn")], BOTH_WAYS)),
    "nobody to compare with": ("timestamps", "ask_node", Tiny([BACK])),
    "heard one way only": ("timestamps", "ask_node", Tiny([BACK], ONE_WAY)),
    "wrong by more than one way hides": (
        "timestamps",
        "app",
        Tiny([finding("impossible_timestamp", "n1", "ahead")], ONE_WAY),
    ),
    "a clock that may drift unseen": ("timestamps", "ask_node", Tiny([skewed("n1", 120, 130)], ONE_WAY)),
    "no detector of drift": ("timestamps", "ask_node", Tiny([BACK], BOTH_WAYS, without="clock_drift")),
    "drift is blind": ("timestamps", "ask_node", Tiny([BACK], BOTH_WAYS, {"clock_drift": ["arrival"]})),
    "retries without a key": ("duplicates", "missing", Tiny([UNKEYED])),
    "another payload": ("duplicates", "coarse", Tiny([COARSE], {"keys": [key(verdict="other_payload")]})),
    "the first still runs": ("duplicates", "reserve", Tiny([TWICE], {"keys": [key(overlapping=True)]})),
    "rested longer than the TTL": ("duplicates", "raise_ttl", Tiny([TWICE], {"keys": [key(gap_us=90_000_000_000)]})),
    "missed within the TTL": ("duplicates", "forgot", Tiny([TWICE], {"keys": [key(), key(), key(cache="hit")]})),
    "a hit, and done again": ("duplicates", "logic", Tiny([TWICE], {"keys": [key(cache="hit")]})),
    "nobody logs the cache": ("duplicates", "log_cache", Tiny([TWICE], {"keys": [key(cache=None)]})),
    "its uses have left": ("duplicates", "log_cache", Tiny([TWICE])),
    "nobody logs keys": ("duplicates", "log_keys", Tiny(blind={"duplicate_key": ["idempotency_key"]})),
    "nothing twice": ("duplicates", "nothing", Tiny()),
    "a slow database below": ("timeouts", "database", Tiny(LATE, CALLS, services={"c": "database"})),
    "a slow third party below": ("timeouts", "external", Tiny(LATE, CALLS, services={"c": "external"})),
    "a slow service below": ("timeouts", "internal", Tiny(LATE, CALLS, services={"c": "internal", "b": "external"})),
    "a trace tells": ("timeouts", "database", Tiny([CASCADE], CALLS, services={"c": "database"})),
    "nobody said what is below": ("timeouts", "name_it", Tiny(LATE, CALLS, services={"b": "internal"})),
    "nothing times out": ("timeouts", "calm", Tiny(tables=CALLS)),
    "nobody logs requests": ("timeouts", "log_requests", Tiny()),
    "a chart that is not there": ("rest", "runbook", Tiny([finding("ordering", "n1")])),
}


def land(con: duckdb.DuckDBPyConnection, tiny: Tiny) -> None:
    """As replay lands it."""
    if tiny.findings:
        state.land_findings(con, "findings", pl.concat(tiny.findings))
    for name, rows in tiny.tables.items():
        state.land_table(con, name, pl.DataFrame(rows, infer_schema_length=None))
    seen = [(n, tiny.blind.get(n, [])) for n in dict.fromkeys(NAMES) if n != tiny.without]
    con.executemany("INSERT INTO detectors VALUES (?, 1, 'runs', ?, [])", seen)
    con.execute("INSERT INTO coverage VALUES ('requests', 'payload_hash', 1, 1)")


@contextmanager
def landed(tiny: Tiny) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as con:
        state.prepare(con)
        state.make(con)
        land(con, tiny)
        yield con


@pytest.fixture(scope="module")
def paths() -> dict[str, Walked]:
    """Where each case leads."""
    found = {}
    for name, (chart, _, tiny) in CASES.items():
        with landed(tiny) as con:
            every = all_findings(con)
            mine = next((f for f in every if chart_of(f.detector) == chart), None)
            found[name] = walk(con, chart, mine, every, tiny.services)
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_state_leads_to_its_leaf(name: str, paths: dict[str, Walked]) -> None:
    path = paths[name]
    assert (path.name, path.leaf_name) == CASES[name][:2], path.data
    assert all(s.says for s in path.steps), "no answer without the number behind it"
    commands = [t.format_map(path.known) for t in (*path.leaf.do, *path.leaf.verify)]
    if path.finding:
        assert not {n for n in NOBODY.values() if any(f" {n}" in c for c in commands)}, "it can't be typed"


def test_every_leaf_has_a_state_that_leads_to_it() -> None:
    leaves = {(name, leaf) for name, chart in charts().items() for leaf in chart.leaves}
    assert len(leaves) > 15
    assert leaves == {(chart, leaf) for chart, leaf, _ in CASES.values()}


def test_every_question_is_answered_by_some_state_and_unknown_in_others(paths: dict[str, Walked]) -> None:
    steps = [s for path in paths.values() for s in path.steps]
    questions = {q.asks for chart in charts().values() for q in chart.questions.values()}
    assert {s.asks for s in steps if s.answer != "unknown"} == questions
    unknown = {s.asks for s in steps if s.answer == "unknown"}
    assert unknown >= {"Skew > 500 ms?", "Drift rate > 1 ms/min?", "Key found?", "In cache?", "Which service?"}


# --- every finding kind


def kinds_of(entry: Entry) -> set[str]:
    """Words that a detector's module could use as a kind: its literals, those of its thresholds, and none."""
    told = {t.kind for t in entry.detector.thresholds}
    for node in ast.walk(ast.parse(inspect.getsource(entry.module))):
        match node:
            case ast.Call(func=ast.Attribute(attr="lit"), args=[ast.Constant(value=str(word))]):
                told.add(word)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Tuple(elts=words)) if name.isupper():
                told |= {w.value for w in words if isinstance(w, ast.Constant) and isinstance(w.value, str)}
    return told | {""}


def test_every_finding_of_every_detector_reaches_a_leaf() -> None:
    kinds = {name: kinds_of(entry) for name, entry in catalog().items()}
    assert {"applied_twice", "after_ttl", "missing"} <= kinds["duplicate_key"]
    assert {"ahead", "old", "epoch", "back"} <= kinds["impossible_timestamp"]
    assert {"append_back", "late_share"} <= kinds["pipeline"]
    rows = [
        finding(name, "s", kind, subject_kind=catalog()[name].detector.subject_kind)
        for name, some in kinds.items()
        for kind in sorted(some)
    ]
    with landed(Tiny(rows)) as con:
        every = all_findings(con)
        assert len(every) == len(rows)
        leaves = {(f.detector, f.kind): walk(con, chart_of(f.detector), f, every, {}) for f in every}
    for (name, kind), path in leaves.items():
        assert path.leaf.do, (name, kind)
        assert path.name != "rest" or runbook_of(catalog()[name]).exists()


def test_a_detector_of_ones_own_reaches_its_runbook() -> None:
    assert chart_of("my_own_detector") == "rest"


# --- the charts as data


def test_the_charts_have_no_slip() -> None:
    assert {name: list(chart.slips()) for name, chart in charts().items()} == {name: [] for name in charts()}


def broken(change: Callable[[dict[str, Any]], object]) -> list[str]:
    tree = msgspec.to_builtins(charts()["timestamps"])
    change(tree)
    return list(msgspec.convert(tree, Chart).slips())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["leaves"].pop("sync"), "skew leads to sync, which is not there"),
        (lambda t: t["begin"].update(x="y"), "x begins at y, which is not there"),
        (lambda t: t["questions"]["drift"]["unknown"].update(to="skew"), "skew is asked again after drift"),
        (lambda t: t["leaves"].update(alone=t["leaves"]["sync"]), "nothing leads to alone"),
    ],
)
def test_a_slip_in_a_chart_is_seen(change: Callable[[dict[str, Any]], object], said: str) -> None:
    assert said in broken(change)


def test_every_question_has_a_query_whose_first_line_is_its_question() -> None:
    asked = [q for chart in charts().values() for q in chart.questions.values()]
    assert asked
    assert all(q.sql.startswith("-- ") and q.sql.splitlines()[0].endswith("?") for q in asked)


# --- the screen


def test_a_name_in_a_log_can_run_nothing_in_the_shell_that_a_command_is_pasted_into(tmp_path: Path) -> None:
    evil = "n1; rm -rf ~"
    with state.build(tmp_path) as con:
        land(con, Tiny([skewed(evil, 600, 900)], {"clocks": [CLOCK | {"src": evil, "dst": "n2"}]}))
    shown = screen(tmp_path, "triage", "clock")
    assert "ssh 'n1; rm -rf ~' sudo chronyc makestep" in shown


def test_the_service_of_a_hop_is_the_whole_of_its_name(tmp_path: Path) -> None:
    with state.build(tmp_path) as con:
        late = finding(
            "timeout_ratio", "a-\\>b->pay\nment->2", "", {"timeouts": 9, "attempts": 10}, subject_kind="edge"
        )
        land(con, Tiny([late]))
    assert "Longest hop?    pay\\nment->2: a-\\>b->pay\\nment->2 " in screen(tmp_path, "triage", "timeouts")


def screen(folder: Path, *args: str) -> str:
    result = CliRunner().invoke(app, [*args, "--state", str(folder)])
    assert result.exit_code == 0, result.exception
    return result.output.replace(str(folder), "demo-state")


def test_the_charts_over_the_demo_are_the_golden_ones(demo_state: Path, golden: Golden) -> None:
    asked = ["", *charts()]
    shown = [
        f"$ asynchealth triage {a}".rstrip() + "\n" + screen(demo_state, "triage", *filter(None, [a])) for a in asked
    ]
    golden("triage.txt", "\n".join(shown))
    assert screen(demo_state, "triage", "--ascii").isascii()


def test_the_path_for_machines_names_the_query_and_the_numbers_behind_each_answer(demo_state: Path) -> None:
    told = json.loads(screen(demo_state, "triage", "duplicates", "--json"))
    assert told["leaf"] == "reserve" and [s["answer"] for s in told["path"]] == ["yes", "yes", "yes"]
    assert told["path"][2]["numbers"]["keys"] == 23


def test_what_a_service_is_stands_in_the_configuration(
    demo_state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unknown = screen(demo_state, "triage", "timeouts")
    (line,) = [x for x in unknown.splitlines() if "Add to asynchealth.toml: " in x]
    Path("asynchealth.toml").write_text(line.partition(": ")[2].partition("   (")[0])
    assert "Which service?  internal: payment is our own" in screen(demo_state, "triage", "timeouts")
    Path("asynchealth.toml").write_text('services.payment.kind = "cloud"')
    wrong = CliRunner().invoke(app, ["triage", "timeouts", "--state", str(demo_state)])
    assert "'cloud' is none of database, external, internal" in str(wrong.exception)


def test_the_leaf_says_whom_to_call_and_the_card_has_the_table(
    demo_state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    called = "\n  Call:   Data Platform @data-oncall (Data inconsistency)\n"
    assert screen(demo_state, "triage", "duplicates").endswith(called)
    assert "\n  Call:   Gateway @gateway-oncall (Timeout cascade)\n" in screen(demo_state, "triage", "timeouts")
    table = screen(demo_state, "card").partition("CALL:")[2].splitlines()[1:5]
    assert [re.split(" {2,}", line.strip("║ ")) for line in table] == [
        ["Clock skew", "Platform", "@platform-oncall"],
        ["Timeout cascade", "Gateway", "@gateway-oncall"],
        ["Data inconsistency", "Data Platform", "@data-oncall"],
        ["Unknown async issue", "Architecture", "@principal-oncall"],
    ]
    Path("asynchealth.toml").write_text(
        '[contacts."Timeout cascade"]\ncontact = "@edge"\n[services.payment]\nowner = "Pay"\ncontact = "@pay"\n'
    )
    told = json.loads(screen(demo_state, "triage", "timeouts", "--json"))
    assert told["contacts"] == ["Pay @pay (owner of payment)", "Gateway @edge (Timeout cascade)"]
    card = screen(demo_state, "card")
    assert re.search(r"║   Timeout cascade +Gateway +@edge +║", card) and re.search(r"payment +Pay +@pay +║", card)


def test_real_rows_lead_where_their_kind_says(tmp_path: Path) -> None:
    """The tables as replay measures them, not as a test lays them out."""
    with state.open_readable(of_case(tmp_path, fires_every_warning())) as con:
        every = all_findings(con)
        mine = [f for f in every if f.detector == "duplicate_key"]
        leaves = {f.kind: walk(con, "duplicates", f, every, {}).leaf_name for f in mine}
    wanted = {"other_payload": "coarse", "after_ttl": "raise_ttl", "concurrent": "reserve", "missing": "missing"}
    assert leaves == wanted


# --- the card


def test_the_card_is_the_golden_one_and_its_query_runs_word_for_word(
    demo_state: Path, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(demo_state.parent)
    shown = screen(Path(demo_state.name), "card")
    golden("card.txt", shown)
    box = [line for line in shown.splitlines() if line[0] in "╔║╠╚"]
    assert len({len(line) for line in box}) == 1, "the box has straight sides"
    assert screen(demo_state, "card", "--ascii").isascii()
    lines = [line.strip("║ ") for line in box]
    at = lines.index("SELECT * FROM requests")
    key_ = json.loads(screen(demo_state, "triage", "duplicates", "--json"))["path"][0]["numbers"]["key"]
    query = "\n".join(lines[at : at + 2])
    assert query == "SELECT * FROM requests\nWHERE idempotency_key = 'XXX';"
    assert "0 rows" in screen(demo_state, "sql", query)
    assert "4 rows" in screen(demo_state, "sql", query.replace("XXX", key_))


def test_the_card_names_the_finding_that_is_asked_for_open_or_not(demo_state: Path) -> None:
    with state.open_readable(demo_state) as con:
        found = all_findings(con)
    asked = {f.detector: f for f in reversed(found) if f.detector in ("retry_storm", "clock_skew")}
    for f in asked.values():
        name = rf"{f.level.upper()} {f.detector} {f.name}, .*"
        when = {"retry_storm": rf"Found: {name}, 08:17 - 08:24\n", "clock_skew": rf"Now: {name}, since 08:15\n"}
        said = screen(demo_state, "card", f.finding_id)
        assert re.search(rf"{when[f.detector]}Next: .*triage {f.short} ", said)
    with pytest.raises(Problem, match="no finding has an id that begins so"):
        CliRunner().invoke(app, ["card", "none", "--state", str(demo_state)], catch_exceptions=False)


def test_the_card_needs_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["card"])
    assert result.exit_code == 0 and "Now:" not in result.output and "chronyc makestep" in result.output
