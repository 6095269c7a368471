"""Simulated systems with a known order enter; what is called certain must be so, and hold together."""

from __future__ import annotations

from itertools import combinations, permutations
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.order import BEGAN, CALLED, DONE, RETURNED, Event, Order, Orders, order

maybe = st.none() | st.integers(0, 6)
vector_clocks = st.none() | st.dictionaries(st.sampled_from("abc"), st.integers(1, 3), min_size=1)
anything = st.builds(
    Event,
    earliest_us=maybe,
    latest_us=maybe,
    reference=st.sampled_from([None, "majority", "collector"]),
    vector_clock=vector_clocks,
    scope=st.sampled_from("xy"),
    seq=maybe,
    attempt=st.sampled_from([None, "r#0", "r#1"]),
    stage=st.none() | st.sampled_from([CALLED, BEGAN, DONE, RETURNED]),
)  # contradictions and all


class World(NamedTuple):
    """Events in their true order, each with its true time."""

    events: list[Event]
    times: list[int]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Nodes that write to each other: knowledge, numbers, attempts and bars are as they truly were."""
    knows: dict[str, dict[str, int]] = {n: {} for n in "abc"}
    told: dict[str, int] = {}
    open_calls: list[str] = []
    events, times, now = [], [], 0
    for number in range(draw(st.integers(2, 9))):
        now += draw(st.integers(1, 9))
        node = draw(st.sampled_from("abc"))
        if heard := draw(st.none() | st.sampled_from("abc")):
            knows[node] = {n: max(knows[node].get(n, 0), knows[heard].get(n, 0)) for n in knows[node] | knows[heard]}
        knows[node] = knows[node] | {node: knows[node].get(node, 0) + 1}
        told[node] = told.get(node, 0) + 1
        attempt, stage = None, None
        goes_on, calls = draw(st.booleans()), draw(st.booleans())
        if open_calls and goes_on:
            attempt, stage = open_calls.pop(), draw(st.sampled_from([BEGAN, DONE, RETURNED]))
        elif calls:
            attempt, stage = f"r{number}", CALLED
            open_calls.append(attempt)
        before, after = draw(st.none() | st.integers(0, 12)), draw(st.none() | st.integers(0, 12))
        events.append(
            Event(
                earliest_us=None if before is None else now - before,
                latest_us=None if after is None else now + after,
                reference=draw(st.sampled_from([None, "majority", "majority", "collector"])),
                vector_clock=dict(knows[node]) if draw(st.booleans()) else None,
                scope=node,
                seq=told[node] if draw(st.booleans()) else None,
                attempt=attempt,
                stage=stage,
            )
        )
        times.append(now)
    return World(events, times)


def test_what_is_certain_is_the_true_order_and_every_reason_was_needed() -> None:
    reasons: set[str] = set()

    @settings(max_examples=100, deadline=None)
    @given(worlds())
    def law(world: World) -> None:
        among = Orders(world.events)
        for i, j in combinations(range(len(world.events)), 2):  # i truly came before j
            said = among.between(i, j)
            assert said.relation != "after" or said.certainty == "possible"
            if said.certainty == "certain":
                reasons.add(said.why)

    law()
    some = {"vector clocks", "numbers of one writer", "cause and effect in one call", "corrected times"}
    assert reasons == some | {"by what lies between"}


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_certain_is_transitive_unless_vector_clocks_say_that_neither_knew(world: World) -> None:
    among, n = Orders(world.events), len(world.events)
    certain = {(i, j) for i, j in permutations(range(n), 2) if among.between(i, j)[:2] == ("before", "certain")}
    for i, j in certain:
        for k in range(n):
            if (j, k) in certain:
                said = among.between(i, k)
                assert said.certainty == "certain"
                assert said.relation == "before" or (said.relation, said.why) == ("concurrent", "vector clocks")


@settings(max_examples=100, deadline=None)
@given(st.lists(anything, min_size=2, max_size=6))
def test_it_is_antisymmetric_whatever_the_data(events: list[Event]) -> None:
    among = Orders(events)
    for i, j in permutations(range(len(events)), 2):
        assert among.between(i, j) == among.between(j, i).turned()


@settings(max_examples=100, deadline=None)
@given(st.lists(anything, min_size=2, max_size=6))
def test_vector_clocks_are_never_contradicted_whatever_the_data(events: list[Event]) -> None:
    among = Orders(events)
    for i, j in permutations(range(len(events)), 2):
        a, b = events[i].vector_clock, events[j].vector_clock
        if not a or not b:
            continue
        some_less = any(a.get(n, 0) < b.get(n, 0) for n in "abc")
        some_more = any(a.get(n, 0) > b.get(n, 0) for n in "abc")
        want = {(True, False): "before", (False, True): "after", (True, True): "concurrent", (False, False): "unknown"}
        assert among.between(i, j).relation == want[some_less, some_more]


def bar(earliest: int | None, latest: int | None, reference: str = "majority") -> Event:
    return Event(earliest_us=earliest, latest_us=latest, reference=reference)


def test_bars_are_compared_only_on_one_clock_and_only_where_they_are_closed() -> None:
    """|--a--|      |--c--|
    .    |--b--|
    """
    a, b, c = bar(0, 5), bar(3, 8), bar(10, 15)
    assert order(a, c) == Order("before", "certain", "corrected times")
    assert order(a, b) == Order("before", "possible", "bars overlap")
    assert order(bar(0, 9), b).relation == "unknown"
    assert order(a, bar(10, 15, "collector")).relation == "unknown"
    assert order(bar(None, 5), c).relation == "before"
    assert order(bar(None, 11), c).relation == "unknown"
    assert order(bar(None, None), c).relation == "unknown"


def test_certain_reasons_that_contradict_each_other_tell_nothing() -> None:
    first = Event(scope="x", seq=1, earliest_us=10, latest_us=12, reference="majority")
    second = Event(scope="x", seq=2, earliest_us=1, latest_us=2, reference="majority")
    assert order(first, second).why == "certain reasons contradict each other"
    assert order(first, second).relation == "unknown"
