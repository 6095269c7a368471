"""The three stages over the protocol: the same tables and findings as in one pass, however they are cut and killed."""

from __future__ import annotations

import random

import pytest

from tests.cases import Case, cases
from tests.harness import one_pass
from tests.streams.live.chain import Chain, until

FIRING = [pytest.param(d, c, id=f"{d}-{n}") for d, n, c in cases("fires_")]


@pytest.mark.parametrize(("detector", "case"), FIRING)
def test_any_steps_any_queues_and_any_kills_are_one_pass(detector: str, case: Case) -> None:
    expected = one_pass(case, only=detector)
    assert expected.fired(detector) == case.expect
    chain = Chain(case, detector, random.Random(1))
    result = chain.run(0.2, until(case))
    assert chain.kills > 0 and chain.said_twice > 0
    assert result.differs(expected) == []
