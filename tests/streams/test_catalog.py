"""Users' own detectors enter; what must leave is a finding on every screen, and a message for every slip."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from detectors.detector import catalog as shipped
from detectors.engine import FINDING
from streams.catalog import TAKEN, all_detectors, catalog, runbook_of
from streams.cli import app
from streams.landing import lander, state
from streams.problems import Exit, Problem
from streams.settings import load
from tests.streams.tape import COMMAND, ROOT, asynchealth, beats, lines, storm

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "docs" / "detectors.md").read_text(), re.DOTALL | re.MULTILINE)
TOML, PYTHON, MARKDOWN, CASES = (text for kind, text in BLOCKS if kind in ("toml", "python", "markdown"))


def place(folder: Path, **files: str) -> Path:
    """asynchealth.toml with a folder of detectors: the file that names it."""
    (folder / "detectors").mkdir()
    (folder / "asynchealth.toml").write_text(TOML)
    for name, text in files.items():
        (folder / "detectors" / f"{name}.py").write_text(text)
        (folder / "detectors" / f"{name}.md").write_text(MARKDOWN)
    return folder / "asynchealth.toml"


def refused(path: Path) -> str:
    """The whole message; it names a next step."""
    with pytest.raises(Problem, match=r"\nNext: \S") as problem:
        catalog(path)
    assert problem.value.code == Exit.USAGE
    return str(problem.value)


def said(folder: Path, *arguments: str) -> str:
    """By a command in a folder, where it must end well."""
    done = asynchealth(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def said_by_itself(folder: Path, *arguments: str, **more: str) -> str:
    """The same by a process of its own, with more folders to import from."""
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *more.values()]), "PATH": os.environ["PATH"]}
    done = subprocess.run([*COMMAND, *arguments], cwd=folder, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def recording(folder: Path) -> Path:
    """From 08:03:20 to 08:05 every third call is refused."""
    rows = [r | {"status": "rejected" if 4000 <= i < 6000 and i % 3 == 0 else "ok"} for i, r in enumerate(storm())]
    (folder / "requests.jsonl").write_bytes(lines(rows))
    return folder / "requests.jsonl"


# ---- where a shipped one is, theirs is too ----------


def everywhere(folder: Path, asked: Callable[..., str]) -> None:
    """The finding of `refusals` on every screen."""
    recording(folder)
    assert "2 findings: 2 page, 0 warn" in asked(folder, "replay", "requests.jsonl")
    rows = [json.loads(line) for line in asked(folder, "findings", "--json").splitlines()]
    (mine,) = [r for r in rows if r["detector"] == "refusals"]
    assert (mine["subject"], mine["level"], mine["certainty"]) == ("gateway->payment", "page", "certain")
    assert re.search(r"PAGE +certain .* refusals +gateway->payment", asked(folder, "findings"))
    assert "gateway->payment: refusals, 33.3% at 08:04 (page: 20%)" in asked(folder, "report")
    told = asked(folder, "explain", mine["finding_id"])
    assert "rejected" in told and "Do now: asynchealth runbook refusals" in told
    assert asked(folder, "runbook", "refusals").strip() == MARKDOWN.strip()
    listed = asked(folder, "detectors")
    assert "Share of attempts of an edge that the callee refused" in listed and "refusals.page_ratio = 0.2" in listed
    answer = asked(folder, "sql", "SELECT sum(refused) AS refused FROM answers", "--csv")
    assert answer.split() == ["refused", "666"]
    again = asked(folder, "rebuild", "--set", "refusals.page_ratio=0.9")
    assert "2 findings: 1 page, 1 warn" in again


def test_the_documents_example_is_on_every_screen(tmp_path: Path) -> None:
    place(tmp_path, refusals=PYTHON)
    everywhere(tmp_path, said)


ANY_SUBJECT = '''"""Rows per node, whatever that is called."""

from detectors.detector import Detector, Threshold
from detectors.table import SPACE, Rows, Sum, Table

NODES = Table(name="nodes", key=("node_id",), sources=(Rows(stream="{}"),), columns={{"n": Sum()}})
crowded = Detector(
    name="crowded",
    reads=NODES,
    assess=lambda view: view.rows.select("window", *SPACE, subject="node_id", value="n"),
    subject_kind="{}",
    thresholds=(Threshold("warn_rows", "warn", 5, "rows", 0, 1e9),),
    unit="rows",
)
'''


@pytest.mark.parametrize("stream", ["requests", "heartbeats"])
@pytest.mark.parametrize("kind", ["node", "edge", "service", "entity", "fleet", "partition"])
def test_a_finding_without_proof_about_any_subject_can_be_read(
    kind: str, stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place(tmp_path, crowded=ANY_SUBJECT.format(stream, kind))
    path.write_text('detectors = ["detectors"]')
    (tmp_path / f"{stream}.jsonl").write_bytes(lines(storm(400) if stream == "requests" else beats()))
    monkeypatch.chdir(tmp_path)

    def here(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.exception
        return done.output

    here("replay", f"{stream}.jsonl")
    assert "crowded" in here("report")
    rows = [json.loads(line) for line in here("findings", "--json").splitlines()]
    mine = [r["finding_id"] for r in rows if r["detector"] == "crowded"]
    told = here("explain", mine[0])
    assert f"SELECT * FROM {stream} WHERE" in told and "rows at 08:0" in told


def test_the_live_system_finds_the_same(tmp_path: Path) -> None:
    """Worker and lander are processes of their own: `up` on the broker inside."""
    place(tmp_path, refusals=PYTHON)
    recording(tmp_path)
    said(tmp_path, "replay", "requests.jsonl")
    said_by_itself(tmp_path, "up", "requests.jsonl", "--once", "--state", "live")
    found = [said(tmp_path, "findings", "--json", *where).splitlines() for where in ([], ["--state", "live"])]
    replayed, live = ({json.loads(line)["finding_id"]: json.loads(line) for line in some} for some in found)
    assert len(replayed) == 2
    assert live == replayed


def test_a_detector_of_an_installed_package_is_on_every_screen(tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "here"
    folder.mkdir()
    for made, text in {
        "ours/__init__.py": "",
        "ours/refusals.py": PYTHON,
        "ours/refusals.md": MARKDOWN,
        "ours-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: ours\nVersion: 1.0\n",
        "ours-1.0.dist-info/entry_points.txt": "[asynchealth.detectors]\nrefusals = ours.refusals\n",
    }.items():
        (site / made).parent.mkdir(parents=True, exist_ok=True)
        (site / made).write_text(text)
    everywhere(folder, functools.partial(said_by_itself, site=str(site)))


def test_thresholds_of_the_file_and_of_the_command_line_are_for_them_too(tmp_path: Path) -> None:
    path = place(tmp_path, refusals=PYTHON)
    detectors = all_detectors(path)
    assert load(detectors, path=path).values == {"refusals.warn_ratio": 0.02}
    assert load(detectors, ["refusals.page_ratio=0.5"], path=path).values["refusals.page_ratio"] == 0.5
    with pytest.raises(Problem, match="out of range"):
        load(detectors, ["refusals.page_ratio=5"], path=path)


def test_a_shipped_table_may_be_read_and_a_file_of_ones_own_imported(tmp_path: Path) -> None:
    head, limits, tail = PYTHON.partition("LIMITS =")
    first = head.partition("EDGE =")[0] + "from ._shared import ANSWERS, EDGE\n" + limits + tail
    second = first.replace("refusals", "refusals_of_all").replace("subject=EDGE", 'subject=("service_name",)')
    third = (ROOT / "detectors" / "catalog" / "timeout_ratio.py").read_text().replace("timeout_ratio", "slow_ones")
    path = place(tmp_path, _shared=head, refusals=first, refusals_of_all=second, slow_ones=third)
    found = catalog(path)
    assert list(found) == [*shipped(), "refusals", "refusals_of_all", "slow_ones"]
    assert found["refusals"].detector.reads is found["refusals_of_all"].detector.reads
    assert found["slow_ones"].detector.reads is shipped()["timeout_ratio"].detector.reads
    assert [n for n, e in found.items() if not e.shipped] == ["refusals", "refusals_of_all", "slow_ones"]


def test_without_a_file_there_are_the_shipped_ones_each_with_its_runbook(tmp_path: Path) -> None:
    found = catalog(tmp_path / "asynchealth.toml")
    assert len(found) >= 10
    assert found == shipped()
    assert all(runbook_of(e).is_file() for e in found.values())


def test_one_module_says_which_detectors_there_are() -> None:
    asked = {
        str(path.relative_to(ROOT / "streams"))
        for path in (ROOT / "streams").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "detectors.detector"
        if "catalog" in {a.name for a in node.names}
    }
    assert asked == {"catalog.py"}


def test_no_measured_table_can_have_the_name_of_a_table_of_the_state() -> None:
    made = set(re.findall(r"CREATE TABLE (\w+)", state.DDL + lander.DDL)) | {
        *("findings", "finding_changes", "incident_changes", *state.INCIDENT_VIEWS)
    }
    assert FINDING and len(made) > 10
    assert made < TAKEN
    assert not TAKEN & {t.name for e in shipped().values() for t in e.detector.tables}


# ---- slips ----------


SLIPS = [
    ('"status") == "rejected"', '"status") = "rejected"', r"refusals.py, line \d+: does not import: SyntaxError"),
    ("MINUTE_US\n\n", "MINUTES\n\n", r"refusals.py, line \d+: does not import: ImportError: cannot import name"),
    ('"min_volume": 50', '"min_volume": VOLUME', r"line \d+: does not import: NameError.*LIMITS = {"),
    ("REFUSED =", "raise SystemExit\nREFUSED =", r"line \d+: does not import: SystemExit"),
    ("refusals = ratio(", "dict(", r"does not import: TypeError"),
    ("refusals = ratio(", "dict\nratio(", r"refusals.py: no detector in it\nNext: refusals = Detector"),
    ("refusals = ratio(", "refused = ratio(", r"one word .*; file refusals, but refused \(name=\"refusals\"\)"),
    ('ratio("refusals"', 'ratio("refused"', r"file refusals, but refusals \(name=\"refused\"\)"),
    ('"""Share', 'TEXT = """Share', r"no docstring"),
    ('stream="requests"', 'stream="request"', r"answers reads request, which is no stream\nNext: one of requests"),
    ('needs=("status",)', 'needs=("state",)', r"it needs state, which is no field of requests"),
    ('col("status")', 'col("state")', r"refusals.py: fails on an empty table: ColumnNotFoundError: .*state"),
    ('of="refused"', 'of="refusals"', r"refusals.py: fails on an empty table: ColumnNotFoundError"),
    ('name="answers"', 'name="findings"', r"no measured table can be named 'findings'"),
    ('name="answers"', 'name="Our answers"', r"no measured table can be named 'Our answers'"),
    ('name="answers"', 'name="calls"', r"calls is another than the calls of .*catalog/\w+.py\nNext: import that"),
    ('"warn": 0.05', '"warn": 5', r"threshold warn_ratio = 5 is out of its own range \(0 to 1\)"),
]


@pytest.mark.parametrize(("old", "new", "said"), SLIPS)
def test_a_slip_is_named_with_its_file_and_what_to_do(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in PYTHON
    message = refused(place(tmp_path, refusals=PYTHON.replace(old, new, 1)))
    assert re.search(said, message), message
    assert str(tmp_path / "detectors" / "refusals.py") in message


@pytest.mark.parametrize(
    ("thresholds", "said"),
    [("()", "no threshold"), ('(Threshold("warn_many", "warn", 1, "", 0, 9),)', "threshold warn_many has no unit")],
)
def test_a_threshold_has_a_unit_and_there_is_one(thresholds: str, said: str, tmp_path: Path) -> None:
    imports = "from dataclasses import replace\nfrom detectors.detector import Threshold\n"
    changed = f"{imports}refusals = replace(refusals, thresholds={thresholds})\n"
    assert said in refused(place(tmp_path, refusals=PYTHON + changed))


def test_a_runbook_that_is_missing_is_asked_for_by_its_path(tmp_path: Path) -> None:
    path = place(tmp_path, refusals=PYTHON)
    page = tmp_path / "detectors" / "refusals.md"
    page.unlink()
    message = refused(path)
    assert "refusals.py: no runbook refusals.md beside it" in message
    assert f"Next: write into {page}" in message


def test_two_of_one_name_are_both_named(tmp_path: Path) -> None:
    path = place(tmp_path, refusals=PYTHON)
    path.write_text('detectors = ["detectors", "./detectors", "more"]')
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "refusals.py").write_text(PYTHON)
    (tmp_path / "more" / "refusals.md").write_text(MARKDOWN)
    one, other = tmp_path / "detectors" / "refusals.py", tmp_path / "more" / "refusals.py"
    assert f"{one} and {other}: both are named refusals" in refused(path)


def test_the_name_of_a_shipped_one_is_taken(tmp_path: Path) -> None:
    message = refused(place(tmp_path, retry_storm=PYTHON.replace("refusals", "retry_storm")))
    assert f"{tmp_path}/detectors/retry_storm.py: retry_storm is the name of a shipped detector" in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('detectors = ["nowhere"]', "asynchealth.toml: detectors: there is no folder"),
        ('detectors = "./detectors"', "detectors: not a list of folders"),
        ("detectors = [1]", "detectors: not a list of folders"),
        ('detectors = ["."]', "no detector in it, which would be NAME.py with NAME.md"),
    ],
)
def test_a_line_that_names_no_folder_of_detectors_is_refused(line: str, said: str, tmp_path: Path) -> None:
    path = place(tmp_path, refusals=PYTHON)
    path.write_text(line)
    assert said in refused(path)


def test_an_error_ends_a_command_without_a_traceback(tmp_path: Path) -> None:
    place(tmp_path, refusals="import nothing_of_this_name\n")
    for command in (["replay", "x"], ["detectors"], ["runbook", "refusals"], ["rebuild"], ["up"]):
        done = asynchealth(*command, cwd=tmp_path)
        assert done.returncode == Exit.USAGE, command
        first, then = done.stderr.decode().splitlines()
        assert first.startswith(f"{tmp_path}/detectors/refusals.py, line 1: does not import: ModuleNotFoundError")
        assert then.startswith("Next: mend it")
