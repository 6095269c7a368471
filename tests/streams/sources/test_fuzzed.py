"""Broken records of every format; `make fuzz` tries a million of them. What once broke a rule is a case for ever."""

from __future__ import annotations

import random

import pytest

from streams.sources.fieldmap import shipped
from tests.fuzz import BATCH, check, kept, run, run_files, targets

TARGETS = {t.name: t for t in targets()}
INPUTS = 2 * BATCH


def test_every_shipped_format_is_tried() -> None:
    assert {m.name for m in shipped()} < TARGETS.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_broken_records_are_accounted_and_cost_no_others(name: str) -> None:
    said = run(TARGETS[name], INPUTS, random.Random(name))
    assert said["inputs"] == INPUTS
    assert said["used"] > 0 and said["refused"] > INPUTS // 20, "what is broken must be seen to be broken"


@pytest.mark.parametrize(("name", "record"), kept(), ids=lambda v: v if isinstance(v, str) else None)
def test_what_once_broke_a_rule_does_not(name: str, record: bytes) -> None:
    assert check(TARGETS[name], [record], [TARGETS[name].samples[0]])["inputs"] == 1


def test_broken_files_give_rows_or_a_reason() -> None:
    said = run_files(100, random.Random(1))
    assert said["inputs"] == 100 and said["refused"] + said["damaged"] > 0
