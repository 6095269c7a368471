"""Three nodes that exchange heartbeats with replies: one clock runs fast or is set, or all run as clocks do."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.cases import Case, at, partitions

Row = dict[str, Any]


def beats(off_s: dict[str, Callable[[float], float]], seconds: int = 900, replies: bool = True) -> list[Row]:
    """Each node sends to the collector, which answers; off_s: by how much a clock is ahead at a true time."""
    dice, rows = random.Random(11), []
    right: Callable[[float], float] = lambda _: 0.0  # noqa: E731
    for i in range(0, seconds, 5):
        for n in range(3):
            node, sent = f"n{n}", i + n * 0.7
            there, back = (0.0003 + dice.expovariate(5000) for _ in range(2))
            mine, its = off_s.get(node, right), off_s.get("collector", right)
            received, answered = sent + there, sent + there + back
            row: Row = {
                "node_id": node,
                "client_time": at(sent + mine(sent)),
                "server_time": at(received + its(received)),
                "arrival": at(answered + 0.2),
            }
            if replies:
                reply = {"reply_sent": received + its(received), "reply_received": answered + mine(answered)}
                row |= {name: at(t) for name, t in reply.items()}
            rows.append(row)
    return rows


def _case(rows: list[Row], *expected: tuple[str, str, str]) -> Case:
    return Case({"heartbeats": partitions("heartbeats", rows)}, frozenset(expected))


def fires_a_clock_that_gains_and_one_that_was_set() -> Case:
    """3 ms a minute, 50 ppm; and 847 ms at once."""
    rows = beats({"n1": lambda t: t * 50e-6, "n2": lambda t: 0.847 if t >= 407 else 0.0})
    return _case(rows, ("n1", "drift", "warn"), ("n2", "step", "warn"))


def fires_a_clock_that_was_set_back() -> Case:
    return _case(beats({"n0": lambda t: -0.1 if t >= 431 else 0.0}, 700), ("n0", "step", "warn"))


def quiet_clocks_that_wander_as_clocks_do() -> Case:
    return _case(beats({"n0": lambda t: 0.4 + t * 10e-6, "n1": lambda t: -t * 5e-6}))


def quiet_heartbeats_without_replies() -> Case:
    """Bounds on one side only: a slope would be one of delays."""
    return _case(beats({"n1": lambda t: t * 50e-6}, replies=False))
