"""Who falls behind says so with its direction, now and then, and says when that is over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from faust.types import TP

from detectors.detector import Settings
from detectors.windows import SECOND_US, SLICE_US
from streams.catalog import all_detectors
from streams.live.connect import Connection
from streams.live.pace import EACH_S, SLACK_S, Pace
from streams.live.reduce import Point, Reducer
from streams.live.transport import app
from streams.live.worker import Worker

START_S = 1_800_000_000
DUE_S = 50


def lines(behind_s: list[float]) -> list[tuple[int, str]]:
    """Second by second."""
    pace = Pace(DUE_S, "top")
    said = []
    for i, behind in enumerate(behind_s):
        now = (START_S + i) * SECOND_US
        if line := pace.line(now, now - int((DUE_S + behind) * SECOND_US)):
            said.append((i, line))
    return said


def test_nothing_is_said_while_it_keeps_pace() -> None:
    assert lines([*np.linspace(-5, SLACK_S, 100)]) == []


def test_a_moment_behind_is_not_told() -> None:
    assert lines([0, *[SLACK_S + 5] * (EACH_S - 1), 0, 0]) == []


def test_growing_then_shrinking_then_over() -> None:
    said = lines([*range(SLACK_S + 1, SLACK_S + 41), *range(SLACK_S + 41, -5, -1)])
    assert [i for i, _ in said][:3] == [EACH_S, 2 * EACH_S, 3 * EACH_S]
    assert said[0][1] == f"is behind by {SLACK_S + 1 + EACH_S} s and growing: top"
    assert "shrinking" in said[-2][1]
    assert said[-1][1] == "keeps pace again"
    assert [line for _, line in said].count("keeps pace again") == 1


def test_a_worker_tells_of_the_partition_that_is_furthest_behind(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nowhere = Connection(broker="127.0.0.1:9")
    worker = Worker(app("g", nowhere.broker, tmp_path), nowhere, 1, all_detectors(), Settings(), tmp_path, "p.")
    for partition, behind_s in ((0, 2), (1, 400)):
        stage = Reducer("requests", partition, worker.tables, 1, Point(0), 0, worker.readings["p.requests"])
        stage.next = (START_S - behind_s) * SECOND_US // SLICE_US
        worker.stages[TP("p.requests", partition)] = stage
    for after_s in (0, EACH_S):
        worker._paced((START_S + after_s) * SECOND_US)
    said = capfd.readouterr().err
    assert f"This worker is behind by {400 + EACH_S} s and growing" in said
    assert "asynchealth lag --broker 127.0.0.1:9 --prefix p." in said
