"""Fleets with known clocks enter; the bars that leave hold the truth, and no tighter ones could."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from detectors.clocks import MAJORITY, OPEN
from detectors.corrected import against, corrected, intervals_at, not_before, reference
from detectors.facts import facts_of, names_of, throughout
from detectors.windows import SECOND_US, WINDOW_US

MS = 1_000
T0 = 1_769_414_400 * SECOND_US
SPAN_S = 120
TABLE: dict[str, Any] = {
    "window": pl.Int64,
    "src": pl.String,
    "dst": pl.String,
    "facts": pl.List(pl.Int64),
    "lag": pl.Int64,
    "proof": pl.Int64,
}


class Message(NamedTuple):
    src: int
    dst: int
    sent_us: int  # true times, from T0
    took_us: int
    lag_us: int  # from its receipt until its row arrives


class Fleet(NamedTuple):
    base_us: list[int]
    drift_ppm: list[int]
    step_us: int = 0  # of node 0
    step_at_us: int = 0

    def shown(self, node: int, t: int) -> int:
        """What its clock shows at a true time."""
        step = self.step_us if node == 0 and t >= self.step_at_us else 0
        return T0 + t + self.base_us[node] + t * self.drift_ppm[node] // 1_000_000 + step

    def rows(self, messages: list[Message]) -> pl.DataFrame:
        """The table clocks, as a loop would fill it."""
        groups: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        for m in messages:
            arrived = T0 + m.sent_us + m.took_us + m.lag_us
            sent, received = self.shown(m.src, m.sent_us), self.shown(m.dst, m.sent_us + m.took_us)
            key = (arrived // WINDOW_US * WINDOW_US, m.src, m.dst)
            groups.setdefault(key, []).append((received - sent, arrived - min(received, sent)))
        rows = [
            (w, f"n{a}", f"n{b}", sorted(f for f, _ in some)[:4], max(lag for _, lag in some), 0)
            for (w, a, b), some in groups.items()
        ]
        return pl.DataFrame(rows, schema=TABLE, orient="row")


nodes = st.integers(0, 4)
messages = st.builds(
    Message,
    nodes,
    nodes,
    st.integers(0, SPAN_S * SECOND_US),
    st.integers(0, 50 * MS),
    st.integers(0, 20 * SECOND_US),
).filter(lambda m: m.src != m.dst)
fleets = st.builds(
    Fleet,
    st.lists(st.integers(-2 * SECOND_US, 2 * SECOND_US), min_size=5, max_size=5),
    st.lists(st.integers(-80, 80), min_size=5, max_size=5),
    step_us=st.just(0),
    step_at_us=st.just(0),
)


def bars_of(fleet: Fleet, sent: list[Message], events: list[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """events: (node, true time, arrival). Each with its bar and what the clock of its reference truly showed."""
    rows = fleet.rows(sent)
    names = names_of(rows)
    pairs = rows.select("src", "dst").unique()
    of = reference(pairs, names)
    windows = list(range(T0, T0 + (SPAN_S + 60) * SECOND_US, WINDOW_US))
    known = intervals_at(facts_of(rows, names), names, of, names.to_list(), windows)
    stamps = pl.DataFrame(
        {"node": [f"n{n}" for n, _, _ in events], "at_us": [fleet.shown(n, t) for n, t, _ in events],
         "arrived_us": [T0 + a for _, _, a in events]}
    )  # fmt: skip
    found = corrected(stamps, known).to_dicts()
    members = [int(names[int(i)][1:]) for i in of.majority]
    for row, (_, t, _) in zip(found, events, strict=True):
        shown = sorted(fleet.shown(m, t) for m in members)[(len(members) - 1) // 2 :]
        row["shown"] = shown[0] if row["reference"] == MAJORITY else fleet.shown(int((row["reference"] or "n0")[1:]), t)
    return found


def inside(row: dict[str, Any]) -> bool:
    early, late = row["earliest_us"], row["latest_us"]
    return (early is None or early <= row["shown"]) and (late is None or row["shown"] <= late)


events = st.tuples(nodes, st.integers(0, SPAN_S * SECOND_US), st.integers(0, 50 * SECOND_US))


def test_the_truth_lies_inside_every_bar_of_clocks_that_drift() -> None:
    references: set[str | None] = set()

    @settings(deadline=None, max_examples=80)
    @given(fleets, st.lists(messages, min_size=2, max_size=40), st.lists(events, min_size=1, max_size=8))
    def law(fleet: Fleet, sent: list[Message], some: list[tuple[int, int, int]]) -> None:
        found = bars_of(fleet, sent, [(n, t, t + lag) for n, t, lag in some])
        assert [row for row in found if not inside(row)] == []
        references.update(row["reference"] for row in found)

    law()
    assert {MAJORITY, None} < references  # and a single node's clock


def talk(among: list[tuple[int, int]], every_us: int = SECOND_US) -> list[Message]:
    ways = [way for a, b in among for way in ((a, b), (b, a))]
    return [Message(a, b, t, 300, SECOND_US // 2) for t in range(0, SPAN_S * SECOND_US, every_us) for a, b in ways]


def test_around_a_step_the_bars_hold_both_what_was_before_and_after() -> None:
    """n0 steps by 847 ms in the middle of a window: an event close by may lie on either side."""
    fleet = Fleet([0, 900, -700, 1_500, 0], [10, -10, 0, 5, -5], step_us=847 * MS, step_at_us=65 * SECOND_US)
    events = [(0, t, t + SECOND_US // 2) for t in range(0, SPAN_S * SECOND_US, SECOND_US // 4)]
    found = bars_of(fleet, talk([(0, 1), (0, 2), (1, 2), (2, 3), (3, 4)]), events)
    assert all(inside(row) for row in found)
    widths = [row["latest_us"] - row["earliest_us"] for row in found]
    assert max(widths[:150]) < 20 * MS and max(widths[-100:]) < 20 * MS
    assert max(widths) > 847 * MS


def test_where_only_one_way_is_known_one_side_is_open_and_nothing_is_assumed() -> None:
    one_way = [Message(n, 0, t, 300, 0) for n in (1, 2) for t in range(0, SPAN_S * SECOND_US, SECOND_US)]
    fleet = Fleet([0, 847 * MS, 0, 0, 0], [0] * 5)
    then = 50 * SECOND_US
    ahead, collector = bars_of(fleet, one_way, [(node, then, then + SECOND_US) for node in (1, 0)])
    assert ahead["reference"] == collector["reference"] == "n0"
    assert ahead["earliest_us"] is None
    assert T0 + then <= ahead["latest_us"] < T0 + then + 5 * MS
    assert collector["earliest_us"] == collector["latest_us"] == T0 + then


def test_a_stamp_that_no_window_agrees_with_has_no_bar() -> None:
    found = bars_of(Fleet([0] * 5, [0] * 5), talk([(0, 1), (1, 2), (0, 2)]), [(0, 50 * SECOND_US, 51 * SECOND_US)])
    assert found[0]["reference"] == MAJORITY
    fleet = Fleet([26_663 * 86_400 * SECOND_US, 0, 0, 0, 0], [0] * 5)
    rows = Fleet([0] * 5, [0] * 5).rows(talk([(0, 1), (1, 2), (0, 2)]))
    names = names_of(rows)
    of = reference(rows.select("src", "dst").unique(), names)
    known = intervals_at(facts_of(rows, names), names, of, names.to_list(), [T0 + 5 * WINDOW_US])
    stamp = pl.DataFrame({"node": ["n0"], "at_us": [fleet.shown(0, 0)], "arrived_us": [T0 + 50 * SECOND_US]})
    assert corrected(stamp, known).select("earliest_us", "latest_us", "reference").row(0) == (None, None, None)


# ---- brute force -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(-3, 3), min_size=3, max_size=5),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2)), min_size=4, max_size=12),
)
def test_bounds_against_the_median_are_those_of_all_clocks_that_fit_the_facts(
    offsets: list[int], links: list[tuple[int, int, int]]
) -> None:
    """Every assignment of whole offsets to the clocks is tried: the least and the largest distance from the median."""
    size = len(offsets)
    facts: dict[tuple[int, int], int] = {}
    for a, b, delay in links:
        if a % size != b % size:
            key = (a % size, b % size)
            facts[key] = min(facts.get(key, OPEN), offsets[key[1]] - offsets[key[0]] + delay)
    assume(facts)
    rows = pl.DataFrame([(T0, f"n{a}", f"n{b}", [fact], 0, 0) for (a, b), fact in facts.items()], TABLE, orient="row")
    names = names_of(rows)
    of = reference(rows.select("src", "dst"), names)
    members = [int(names[int(i)][1:]) for i in of.majority]
    assume(3 <= len(members) <= 4)
    moment = throughout(facts_of(rows, names), names, T0, max_drift_ppm=0)
    reach = sum(max(f, 0) + 1 for f in facts.values()) + 3
    allowed = {(a, b): f + 1 for (a, b), f in facts.items()}  # a stamp's resolution is 1 µs
    for node in members:
        others = [m for m in members if m != node]
        grid = np.array(list(product(range(-min(reach, 14), min(reach, 14) + 1), repeat=len(others))))
        of_clock = {node: np.zeros(len(grid), int)} | {m: grid[:, i] for i, m in enumerate(others)}
        fits = np.ones(len(grid), bool)
        for (a, b), most in allowed.items():
            if a in of_clock and b in of_clock:
                fits &= of_clock[b] - of_clock[a] <= most
        every = np.stack([of_clock[m][fits] for m in members])
        assume(np.abs(every).max() < min(reach, 14))
        median = np.sort(every, axis=0)[(len(members) - 1) // 2]
        place = names.to_list().index(f"n{node}")
        assert against(moment, place, of) == (int(-median.max()), int(-median.min()))


# ---- causes ----------------------------------------------------------------------------------------------------------


slack = st.none() | st.integers(0, 20)
Bar = tuple[int | None, int | None]


@given(slack, slack, slack, slack, st.integers(-20, 20), st.integers(0, 20))
def test_what_one_call_proves_narrows_the_bars_and_keeps_the_truth(
    a0: int | None, a1: int | None, b0: int | None, b1: int | None, cause: int, wait: int
) -> None:
    def about(t: int, before: int | None, after: int | None) -> Bar:
        return None if before is None else t - before, None if after is None else t + after

    def holds(bar: Bar, t: int) -> bool:
        return (bar[0] is None or bar[0] <= t) and (bar[1] is None or t <= bar[1])

    effect = cause + wait
    first, then = about(cause, a0, a1), about(effect, b0, b1)
    a, b = not_before(first, then)
    assert holds(a, cause) and holds(b, effect)
    assert a[0] == first[0] and b[1] == then[1]
    assert b[0] is None or a[0] is None or b[0] >= a[0]
    assert a[1] is None or b[1] is None or a[1] <= b[1]
