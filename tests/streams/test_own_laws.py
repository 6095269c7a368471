"""Users' detectors with their cases enter `detectors check`; each law that is broken must be named, with its case."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from streams.problems import Exit
from tests.streams.tape import asynchealth
from tests.streams.test_catalog import CASES, PYTHON, place

LAWS = 6


def checked(folder: Path, cases: str | None, *more: str, python: str = PYTHON) -> tuple[int, str]:
    """Exit code and all that the command said."""
    place(folder, refusals=python)
    if cases is not None:
        (folder / "detectors" / "cases").mkdir()
        (folder / "detectors" / "cases" / "refusals.py").write_text(cases)
    done = asynchealth("detectors", "check", *more, cwd=folder)
    return done.returncode, (done.stdout + done.stderr).decode()


def test_the_documents_example_obeys_every_law(tmp_path: Path) -> None:
    code, said = checked(tmp_path, CASES)
    assert said.splitlines()[0] == "refusals"
    assert len(re.findall("^    holds   ", said, re.MULTILINE)) == LAWS, said
    assert code == Exit.FINE


NO_PAST = "\nfrom dataclasses import replace\nrefusals = replace(refusals, past_us=0)\n"
COUNTS_CALLS = """
from dataclasses import replace
CALLS, honest = [], refusals.assess
def assess(view):
    CALLS.append(view.lo)
    return honest(view).with_columns(value=col("value") * (1 + len(CALLS) / 1e6))
refusals = replace(refusals, assess=assess)
"""


@pytest.mark.parametrize("slip", [NO_PAST, COUNTS_CALLS], ids=["looks back further than it says", "remembers"])
def test_what_live_would_answer_otherwise_is_named(slip: str, tmp_path: Path) -> None:
    code, said = checked(tmp_path, CASES, "refusals", python=PYTHON + slip)
    assert re.search(r"BROKEN  slices, batches.*\n +fires_one_in_three: findings differ \(seed \d\)", said), said
    assert code == Exit.FOUND


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"page")', '"warn")', r"BROKEN  it fires.*\n +fires_one_in_three: expected .*warn.* found .*page"),
        (', frozenset({("gateway->payment", "", "page")})', "", r"BROKEN  it fires.*\n.*it expects nothing"),
        ("calls(100)", "calls(3)", r"BROKEN  it is quiet.*\n +quiet_one_in_a_hundred: found .*gateway->payment"),
        ('"requests", calls(3)', '"requests", calls(3), 1', r"BROKEN  its cases are large enough.*\n.*: 1 partitions"),
        ('"requests", calls(100)', '"requests", calls(100)[:0]', r"BROKEN  it is quiet.*\n.*it has no rows"),
    ],
)  # fmt: skip
def test_cases_that_prove_nothing_or_say_otherwise_are_named(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in CASES
    code, told = checked(tmp_path, CASES.replace(old, new, 1))
    assert re.search(said, told), told
    assert code == Exit.FOUND


@pytest.mark.parametrize(
    ("cases", "more", "said"),
    [
        (None, (), r"refusals.py: no cases .*/detectors/cases/refusals.py\nNext: docs/detectors.md"),
        ("import nothing_of_this_name", (), r"cases/refusals.py, line 1: does not import: ModuleNotFoundError"),
        (CASES.replace("def quiet_", "def loud_"), (), r"cases/refusals.py: no case quiet_"),
        (CASES, ("retry_storm",), r"retry_storm: no detector of your own\nNext: asynchealth detectors"),
    ],
)
def test_what_can_not_be_tried_is_said(cases: str | None, more: tuple[str, ...], said: str, tmp_path: Path) -> None:
    code, told = checked(tmp_path, cases, *more)
    assert re.search(said, told), told
    assert code == Exit.USAGE
