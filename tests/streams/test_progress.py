"""Progress: what a terminal shows of rate and time left, that it comes to its end, and that nobody else sees any."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from detectors.detector import Settings
from streams import progress
from streams.progress import Progress
from streams.replay import replay
from tests.streams.tape import lines, storm, write
from tests.streams.test_replay import parquet


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def shown(terminal: Terminal) -> str:
    return terminal.getvalue().rpartition("\x1b[K")[2]


def test_rate_and_time_left_are_those_of_the_work_so_far(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Two files of 1,000 bytes, then rows of which nobody knows how many there are."""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    bar = Progress()
    bar.begin("reading", 2_000)
    with bar.part(1_000):
        clock.now = 2.0
        bar.add(500, 400)
        assert shown(terminal) == "reading: 500 events, 250/s, 8 s left"
    with bar.part(1_000):
        clock.now = 400.0
        bar.add(100, 0)
        assert shown(terminal) == "reading: 600 events, 2/s, 7 min left"
    bar.begin("judging")
    assert shown(terminal) == "judging: 0 events"
    clock.now = 410.0
    bar.add(20_000, 20_000)
    assert shown(terminal) == "judging: 20,000 events, 2,000/s"
    bar.end()
    assert shown(terminal) == ""


def test_where_there_is_no_terminal_nothing_is_said(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(sys, "stderr", quiet := io.StringIO())
    bar = Progress()
    bar.begin("reading", 10)
    clock.now = 9.0
    bar.add(5, 5)
    bar.end()
    assert quiet.getvalue() == ""


class Noted(Progress):
    """(what, its size, how far it is) at each moment at which it could be shown."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[str, int, int]] = []

    def _show(self, now: float) -> None:
        self.noted.append((self._what, self._size, self._reached))


@pytest.mark.parametrize("form", ["requests.jsonl", "requests.jsonl.gz", "requests.jsonl.zst", "requests.parquet"])
def test_reading_is_measured_in_bytes_and_judging_in_rows_up_to_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    events = storm(2_000)
    one = write(tmp_path / form, parquet(events) if form.endswith("parquet") else lines(events))
    other = write(tmp_path / "requests-other.jsonl", lines(events[7:57]))
    bar = Noted()
    replay([str(one), str(other)], tmp_path / "state", Settings(), progress=bar)
    bytes_, rows = one.stat().st_size + other.stat().st_size, 2_050
    reading = [(size, at) for what, size, at in bar.noted if what == "reading"]
    assert {size for size, _ in reading} == {bytes_}
    assert [at for _, at in reading] == [0, one.stat().st_size, bytes_]
    assert [(size, at) for what, size, at in bar.noted if what == "judging"] == [(rows, 0), (rows, rows)]
