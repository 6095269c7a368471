"""The three stages over the protocol: the same tables and findings as in one pass, however they are cut and killed."""

from __future__ import annotations

import random

import pytest

from streams.live.numbered import Ranges, Reader
from streams.live.reduce import Point, Reducer
from streams.live.remember import Recall
from tests.cases import Case, cases
from tests.harness import one_pass
from tests.streams.live.chain import Chain, until

FIRING = [pytest.param(d, c, id=f"{d}-{n}") for d, n, c in cases("fires_")]


@pytest.mark.parametrize(("detector", "case"), FIRING)
def test_any_steps_any_queues_and_any_kills_are_one_pass(detector: str, case: Case) -> None:
    expected = one_pass(case, only=detector)
    assert expected.fired(detector) == case.expect
    chain = Chain(case, detector, random.Random(2))
    result = chain.run(0.2, until(case))
    assert chain.kills > 0 and chain.said_twice > 0
    assert result.differs(expected) == []


def broken(patch: pytest.MonkeyPatch, mutant: str) -> None:
    match mutant:
        case "a number is acted upon when one producer has said it":
            patch.setattr(Reader, "upto", lambda self, n: max(c.upto(n) for c in self.cover.values()))
        case "a successor reads on where its predecessor had read to":
            patch.setattr(Reader, "restart", lambda self, position: position)
        case "records that were read count as said":
            patch.setattr(Reducer, "saved", lambda self: Point(self.position, self.next, self.clock_us))
        case "a queue's successor remembers nothing":
            patch.setattr(Recall, "feed", lambda self, messages: None)
            patch.setattr(Recall, "forgotten", lambda self: Ranges())
        case _:
            raise ValueError(mutant)


@pytest.mark.parametrize(
    ("mutant", "detector", "name"),
    [
        ("a number is acted upon when one producer has said it", "retry_storm", "fires_small_storm"),
        ("a successor reads on where its predecessor had read to", "retry_storm", "fires_small_storm"),
        ("records that were read count as said", "retry_storm", "fires_small_storm"),
        ("a queue's successor remembers nothing", "duplicate_key", "fires_possibly_applied_twice"),
    ],
)
def test_a_broken_protocol_is_noticed(mutant: str, detector: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run above, which is one pass where nothing is broken."""
    case = next(c for d, n, c in cases("fires_") if (d, n) == (detector, name))
    expected = one_pass(case, only=detector)
    broken(monkeypatch, mutant)
    try:
        differs = Chain(case, detector, random.Random(2)).run(0.2, until(case)).differs(expected)
    except AssertionError:
        return  # copies that say something else, or a table that never came
    assert differs != []
