"""A detector as a shadow: it finds the same, live and replayed, under a level of its own; no count and no exit code."""

from __future__ import annotations

import json
import random
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from detectors.detector import Settings, catalog
from streams import catalog as own
from streams.catalog import all_detectors
from streams.cli import app
from streams.problems import Problem
from streams.replay import rebuild, replay
from streams.settings import load
from streams.tune import with_shadow
from tests.cases import cases
from tests.streams.live.chain import Chain, until
from tests.streams.tape import contents, lines, storm

SHADOW = '[shadow]\ndetectors = ["retry_storm"]\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a state in which there is one finding."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requests.jsonl").write_bytes(lines(storm()))
    done = replay(["requests.jsonl"], tmp_path / "state", Settings())
    assert done.levels == {"page": 1}
    return tmp_path


def shade(folder: Path) -> None:
    """In a process of its own a command reads the file once."""
    (folder / "asynchealth.toml").write_text(SHADOW)
    own._catalog.cache_clear()


def said(*command: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*command, "--state", "state"])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def test_it_finds_the_same_and_counts_as_nothing(here: Path) -> None:
    said("findings", "--fail-on", "warn", code=1)
    before = contents(here / "state")
    shade(here)
    done = rebuild(here / "state", load(all_detectors()))
    assert done.levels == {"shadow": 1}
    after = contents(here / "state")
    assert after["findings"]["level"].to_list() == ["shadow"]
    assert after["findings"].drop("level").equals(before["findings"].drop("level"))
    assert after["finding_changes"].drop("level").equals(before["finding_changes"].drop("level"))
    assert "0 findings: 0 page, 0 warn (and 1 of shadows)" in said("rebuild", "--fail-on", "warn")
    listed = said("findings", "--fail-on", "warn")
    assert "0 page, 0 warn, 1 shadow" in listed and "SHADOW" in listed
    report = said("report", "--fail-on", "warn")
    assert "0 page, 0 warn, 1 shadow" in report and "(shadow)" in report and "PAGE" not in report
    assert json.loads(said("report", "--json"))["findings"] == {"page": 0, "warn": 0, "shadow": 1}
    assert "SHADOW certain  retry_storm" in said("explain", "rs-")
    assert "retry_storm (a shadow: nobody is told)" in said("why-not", "retry_storm")
    assert "SHADOW: nobody is told" in said("detectors")


def test_live_it_finds_what_it_finds_in_files() -> None:
    every = [c for d, _, c in cases("fires_") if d == "retry_storm"]
    case = min(every, key=lambda c: sum(len(p) for parts in c.streams.values() for p in parts))
    shipped = catalog()["retry_storm"].detector
    plain, shadow = (
        Chain(case, "", random.Random(1), steps=(200,), own=[replace(shipped, shadow=s)]).run(0, until(case)).findings
        for s in (False, True)
    )
    assert len(plain) and set(plain["level"]) <= {"page", "warn"} and set(shadow["level"]) == {"shadow"}
    assert shadow.drop("level").equals(plain.drop("level"))


def test_tune_writes_the_change_that_makes_one(here: Path) -> None:
    shown = said("tune", "retry_storm", "--shadow")
    assert "1 page, 0 warn with the thresholds as they are" in shown
    assert '+detectors = ["retry_storm"]' in shown and "+[shadow]" in shown and "rebuild" in shown
    shade(here)
    assert "It is a shadow already" in said("tune", "retry_storm", "--shadow")
    with pytest.raises(Problem, match="one of the two"):
        CliRunner().invoke(
            app, ["tune", "retry_storm", "--shadow", "--set", "retry_storm.warn_per_min=9"], catch_exceptions=False
        )


@pytest.mark.parametrize(
    "before",
    [
        "",
        "[thresholds]\nretry_storm.warn_per_min = 150\n",
        '[shadow]\ndetectors = ["clock_skew"]\n[lake]\nkeep_days = 3\n',
        "[shadow]\n",
        'detectors = ["./own"]\n\n[shadow]\ndetectors = []  # none yet\n',
    ],
)
def test_a_file_with_one_more_shadow_says_that_and_nothing_else(before: str) -> None:
    after = with_shadow(before, "retry_storm")
    tree = tomllib.loads(before)
    names = [*tree.get("shadow", {}).get("detectors", []), "retry_storm"]
    assert after is not None and tomllib.loads(after) == tree | {"shadow": {"detectors": names}}


@pytest.mark.parametrize("before", ['[shadow]\ndetectors = [\n  "clock_skew",\n]\n', "shadow = { detectors = [] }\n"])
def test_a_file_that_says_it_in_other_words_is_left_alone(before: str) -> None:
    assert with_shadow(before, "retry_storm") is None


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ('[shadow]\ndetectors = ["retry"]\n', "shadow.detectors: 'retry': no such detector"),
        ('[shadow]\ndetectors = "retry_storm"\n', "not a table with a list of detectors"),
        ("[shadow]\nnames = []\n", "not a table with a list of detectors"),
        ("shadow = true\n", "not a table with a list of detectors"),
    ],
)
def test_a_slip_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toml: str, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asynchealth.toml").write_text(toml)
    with pytest.raises(Problem) as refused:
        all_detectors()
    assert says in str(refused.value)
