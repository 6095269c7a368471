"""Judge by itself: after a silence of weeks it judges in pieces, and says of it what it would say at once."""

from __future__ import annotations

import polars as pl
import pytest

from detectors.detector import Settings, catalog
from detectors.windows import SECOND_US, WINDOW_US
from streams.live.judge import MOST_WINDOWS, Judge
from streams.live.match import Matcher
from streams.live.numbered import head_of, unpack
from streams.live.reduce import EVENTS, Out, Point, Reducer
from tests.harness import Memory
from tests.streams.tape import T0, lines, storm

WEEKS_S = 2_000_000
DETECTORS = [e.detector for e in catalog().values()]
TABLES = list({t.name: t for d in DETECTORS for t in d.tables}.values())


def windows(*until_s: int) -> list[Out]:
    """What match says of a storm of retries and then of silence, promised in these steps."""
    reducer = Reducer("requests", 0, TABLES, 1, Point(0))
    matcher = Matcher(0, ["requests/0"], TABLES, Memory())
    events = storm()
    reducer.feed(range(len(events)), [int(e["arrival"] * SECOND_US) for e in events], lines(events).splitlines())
    said: list[Out] = []
    for s in until_s:
        reducer.promise((T0 + s) * SECOND_US)
        to = reducer.closable()
        for out in (o for o in reducer.say(to) if o.queue != EVENTS):
            matcher.feed(matcher.position, out.key, out.value)
        reducer.done(to)
        _, some = matcher.say()
        said += some
        matcher.done()
    return said


def judged(said: list[Out]) -> tuple[list[int], pl.DataFrame]:
    """How many windows each piece had, and all changes."""
    judge = Judge(["0"], DETECTORS, Settings())
    for offset, out in enumerate(said):
        judge.feed(offset, out.key, out.value)
    pieces, changes = [], []
    while True:
        before = judge.next
        to, out_ = judge.say()
        if to == before:
            break
        pieces.append(to - (before or T0 * SECOND_US // WINDOW_US))
        changes += [unpack(o.value)["changes"] for o in out_ if head_of(o.key).kind == "rows"]
        judge.done()
    return pieces, pl.concat(changes)


def test_after_weeks_of_silence_it_judges_in_pieces_and_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    said = windows(500, WEEKS_S)
    pieces, found = judged(said)
    assert sum(pieces) * WINDOW_US >= (WEEKS_S - 60) * SECOND_US
    assert max(pieces) <= MOST_WINDOWS and len(pieces) > 40
    assert found["detector"].to_list()[0] == "retry_storm"
    monkeypatch.setattr("streams.live.judge.MOST_WINDOWS", WEEKS_S)
    whole, at_once = judged(said)
    assert len(whole) == 1
    assert at_once.equals(found)
