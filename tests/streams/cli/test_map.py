"""asynchealth map as people type it: a draft that can be kept as it is, what a map makes of a log, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from streams.cli import app
from streams.problems import Exit, Problem
from streams.sources.fieldmap import load
from tests.streams.tape import accounting, asynchealth

Golden = Callable[[str, str], None]
T0 = 1_769_428_800_000  # 2026-01-26 12:00 UTC


def calls(path: Path) -> Path:
    """A log as a service of somebody else writes it, with one line that is broken and one value that is odd."""
    codes = (200, 200, 204, 503, 404, 504)
    events = [
        {
            "ts": T0 + i * 1_500,
            "kubernetes": {"labels": {"app": "checkout"}, "pod": f"checkout-6d4cf56db6-x2x4{'ab'[i % 2]}"},
            "http": {"status_code": codes[i % 6], "path": f"/cart/{i}"},
            "latencyMs": 12.5 + i,
            "attempt": 1 + (i % 5 == 4),
            "traceID": f"{i // 2:032x}",
            "idem_key": f"k-{i}" if i % 3 else "-",
            "client": "gateway",
            "authorization": "Bearer hunter2",
        }
        for i in range(12)
    ]
    lines = [json.dumps(e) for e in events]
    lines[7:7] = ['{"ts": 17694']
    path.write_text("\n".join(lines) + "\n")
    return path


def run(*args: str | Path) -> Result:
    result = CliRunner().invoke(app, ["map", *map(str, args)], catch_exceptions=True)
    if isinstance(result.exception, Problem):
        raise result.exception
    return result


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return calls(tmp_path / "calls.jsonl").relative_to(tmp_path)


def test_a_draft_is_the_golden_one_and_a_map_at_once(log: Path, golden: Golden) -> None:
    drafted = run("--infer", log)
    golden("map_draft.toml", drafted.stdout)
    assert drafted.exit_code == Exit.FINE and drafted.stderr == "Next: asynchealth map --check MAP.toml calls.jsonl\n"
    Path("my.toml").write_text(drafted.stdout)
    assert load(Path("my.toml")).stream == "requests"


MAP = """stream = "requests"
[fields]
timestamp = { from = "ts", unit = "ms" }
service_name = "kubernetes.labels.app"
node_id = "kubernetes.pod"
status = { from = "http.status_code", values = { "504" = "timeout", "503" = "rejected", "2.." = "ok", ".*" = "error" } }
duration_ms = "latencyMs"
retry_count = "http.path"
region = "cloud.region"
"""


def test_what_a_map_makes_of_a_log_is_the_golden_screen(log: Path, golden: Golden) -> None:
    Path("my.toml").write_text(MAP.replace('retry_count = "http.path"\n', ""))
    shown = run("--check", "my.toml", log)
    golden("map_check.txt", shown.stdout)
    assert shown.exit_code == Exit.FINE
    assert run("--check", "my.toml", log, "--ascii").stdout.isascii()


def test_a_map_by_which_no_row_is_usable_ends_with_its_rejects_and_exit_code_three(log: Path, golden: Golden) -> None:
    Path("my.toml").write_text(MAP)
    shown = run("--check", "my.toml", log)
    golden("map_check_none.txt", shown.stdout)
    assert shown.exit_code == Exit.NOTHING


def test_for_machines_it_is_one_object_with_all_rejects(log: Path) -> None:
    Path("my.toml").write_text(MAP)
    shown = run("--check", "my.toml", log, "--json")
    said = json.loads(shown.stdout)
    assert shown.exit_code == Exit.NOTHING
    assert (said["read"], said["usable"], said["rejected"], said["empty"], said["rows"]) == (13, 0, 13, 0, [])
    assert said["rejects"][0] == {
        "line": 1, "field": "retry_count", "path": "http.path", "reason": "expected integer", "raw": "/cart/0",
    }  # fmt: skip
    Path("my.toml").write_text(MAP.replace('retry_count = "http.path"\n', ""))
    rows = json.loads(run("--check", "my.toml", log, "--json").stdout)["rows"]
    assert len(rows) == 10 and rows[0]["timestamp"] == "2026-01-26T12:00:00Z" and rows[3]["status"] == "rejected"


def test_draft_check_and_replay_follow_on_each_other(tmp_path: Path) -> None:
    calls(tmp_path / "calls.jsonl")
    drafted = asynchealth("map", "--infer", "calls.jsonl", cwd=tmp_path)
    (tmp_path / "my.toml").write_bytes(drafted.stdout)
    checked = asynchealth("map", "--check", "my.toml", "calls.jsonl", cwd=tmp_path)
    hint = checked.stdout.decode().splitlines()[-1]
    assert hint.endswith(" replay calls.jsonl --map my.toml"), checked
    asynchealth("replay", "calls.jsonl", "--map", "my.toml", "--state", "state", cwd=tmp_path)
    assert accounting(tmp_path / "state") == {"read": 13, "used": 12, "rejected": 1}


def test_a_draft_that_is_not_whole_is_printed_and_says_so_by_its_exit_code(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("service,status\npay,200\npay,503\n")
    drafted = run("--infer", path)
    assert drafted.exit_code == Exit.NOTHING and 'service_name = "service"' in drafted.stdout
    assert drafted.stderr.startswith(f"{path}: no field looks like timestamp, which requests need: see TODO\nNext: ")


def test_a_format_that_is_known_needs_no_draft_and_gets_its_own_map(tmp_path: Path) -> None:
    path = tmp_path / "access.json"
    path.write_text('{"time_iso8601": "2026-01-26T12:00:01+00:00", "request_time": "1.0", "status": "504"}\n')
    drafted = run("--infer", path)
    (tmp_path / "my.toml").write_text(drafted.stdout)
    assert drafted.exit_code == Exit.FINE and "access.json is nginx by its fields" in drafted.stdout.splitlines()[0]
    assert load(tmp_path / "my.toml").has and f"replay {path}, or " in drafted.stderr


@pytest.mark.parametrize(
    ("args", "said", "code"),
    [
        (["--infer", "gone.log"], "gone.log: no such file or folder\nNext: ls .", Exit.NOTHING),
        (["--infer", "empty.log"], "empty.log: empty\nNext: ", Exit.NOTHING),
        (
            ["--infer", "binary.log"],
            "binary.log: binary: it holds no lines of text\nNext: file binary.log",
            Exit.NOTHING,
        ),
        (["--infer", "text.log"], "text.log: 1 of its first 1 records are no JSON, and its first line", Exit.NOTHING),
        (["--check", "my.toml", "gone.log"], "gone.log: no such file or folder\nNext: ls .", Exit.NOTHING),
        (["--check", "my.toml", "binary.log"], "binary.log: binary: it holds no lines of text\nNext: ", Exit.NOTHING),
        (["--check", "gone.toml", "calls.jsonl"], "gone.toml: not readable: No such file or directory", Exit.USAGE),
        (["--check", "gone.toml", "calls.jsonl"], "Next: asynchealth map --infer LOG > MAP.toml", Exit.USAGE),
        (["--check", "odd.toml", "calls.jsonl"], "odd.toml: Object contains unknown field `colour`", Exit.USAGE),
        (["--check", "my.toml"], "Next: asynchealth map --check my.toml SAMPLE", Exit.USAGE),
        (["--infer", "calls.jsonl", "--json"], "--json: a draft is TOML", Exit.USAGE),
        (["calls.jsonl"], "map: either --infer SAMPLE, or --check MAP SAMPLE", Exit.USAGE),
        ([], "Next: asynchealth map --infer SAMPLE > MAP.toml", Exit.USAGE),
    ],
)
def test_what_cannot_be_done_is_said_with_what_to_type(log: Path, args: list[str], said: str, code: Exit) -> None:
    Path("my.toml").write_text(MAP)
    Path("odd.toml").write_text('colour = "red"\n' + MAP)
    Path("empty.log").touch()
    Path("binary.log").write_bytes(b"\x7fELF\x02\x01\x00\n")
    Path("text.log").write_text("12:00 pay is slow\n")
    with pytest.raises(Problem) as problem:
        run(*args)
    assert said in str(problem.value) and problem.value.code == code


def test_an_empty_log_has_no_usable_row(log: Path) -> None:
    Path("my.toml").write_text(MAP)
    Path("empty.log").touch()
    shown = run("--check", "my.toml", "empty.log")
    assert shown.exit_code == Exit.NOTHING and "0 read = 0 usable + 0 rejected\nNext: change my.toml" in shown.stdout


def test_an_avro_container_is_named_as_what_it_is_and_drafts_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.avro").write_bytes(b"Obj\x01 and more")
    done = asynchealth("map", "--infer", tmp_path / "x.avro")
    assert done.returncode == Exit.NOTHING and not done.stdout
    said = done.stderr.decode()
    assert said.startswith(f"{tmp_path / 'x.avro'}: an Avro container: drafts are of JSON, CSV and Parquet\nNext: ")
