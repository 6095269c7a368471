"""Fleets with known clocks enter; what must leave is the tightest bounds with the truth inside, or a culprit."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise, permutations
from random import Random
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from detectors.clocks import MAJORITY, OPEN, Bounds, Witness, bounds, intervals

MS, SECOND = 1_000, 1_000_000


class Message(NamedTuple):
    src: int
    dst: int
    fact_us: int
    age_us: int = 0


class Fleet(NamedTuple):
    """True offsets, and the facts of messages that took their time."""

    offsets: list[int]
    messages: list[Message]

    def named(self) -> list[str]:
        return [f"node-{i}" for i in range(len(self.offsets))]


def fact(offsets: list[int], src: int, dst: int, delay_us: int) -> Message:
    return Message(src, dst, offsets[dst] - offsets[src] + delay_us)


def solve(fleet: Fleet, max_drift_ppm: int = 0, resolution_us: int = 0) -> Bounds:
    """The four smallest facts of each pair and age, as the table of clocks keeps them."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for message in fleet.messages:
        groups.setdefault((message.src, message.dst, message.age_us), []).append(message.fact_us)
    facts = [(sorted(group) + [OPEN] * 4)[:4] for group in groups.values()]
    src, dst, age = (np.array([key[i] for key in groups], dtype=np.int64) for i in range(3))
    facts_us = np.array(facts, dtype=np.int64).reshape(-1, 4)
    return bounds(fleet.named(), src, dst, facts_us, age, max_drift_ppm=max_drift_ppm, resolution_us=resolution_us)


@dataclass(frozen=True)
class Interval:
    """What is known of one node's clock."""

    node: str
    lower_us: int | None
    upper_us: int | None
    reference: str
    assumes_delay: bool = False
    moved: bool = False
    witnesses: tuple[Witness, ...] = ()
    least_us: int = field(default=0, compare=False)  # both follow from the bounds
    ahead: bool = field(default=False, compare=False)


def told(of: Bounds) -> list[Interval]:
    known = intervals(of)
    lower, upper = ([None if us == OPEN else us for us in side.tolist()] for side in (known.lower_us, known.upper_us))
    return [
        Interval(
            node=name,
            lower_us=lower[i],
            upper_us=upper[i],
            reference=MAJORITY if known.by_majority[i] else of.nodes[of.observer[i]],
            assumes_delay=bool(known.assumes_delay[i]),
            moved=bool(of.moved[i]),
            witnesses=tuple(w for w in of.witnesses if name in (w.src, w.dst)),
            least_us=int(known.least_us[i]),
            ahead=bool(known.ahead[i]),
        )
        for i, name in enumerate(of.nodes)
    ]


def judged(fleet: Fleet) -> dict[str, Interval]:
    return {interval.node: interval for interval in told(solve(fleet))}


def matrix(of: Bounds) -> list[list[int]]:
    """between() of every pair: the most that the column's clock is ahead of the row's."""
    size = len(of.nodes)
    grid = np.indices((size, size)).reshape(2, -1)
    return [[int(x) for x in row] for row in of.between(grid[0], grid[1]).reshape(size, size)]


def assert_truth_inside(far: list[list[int]], offsets: list[int], nodes: list[int] | None = None) -> None:
    among = range(len(offsets)) if nodes is None else nodes
    assert all(offsets[b] - offsets[a] <= far[a][b] for a in among for b in among)


offsets_us = st.integers(-10 * SECOND, 10 * SECOND)
delays_us = st.integers(0, 50 * MS)


@st.composite
def fleets(draw: st.DrawFn, min_nodes: int = 2, max_nodes: int = 6) -> Fleet:
    """Any links at all: stars, chains, islands, one-way and two-way."""
    offsets = draw(st.lists(offsets_us, min_size=min_nodes, max_size=max_nodes))
    pairs = list(permutations(range(len(offsets)), 2))
    linked = draw(st.lists(st.tuples(st.sampled_from(pairs), delays_us), min_size=1, max_size=30))
    return Fleet(offsets, [fact(offsets, a, b, delay) for (a, b), delay in linked])


@st.composite
def meshes(draw: st.DrawFn, min_nodes: int, per_pair: int) -> Fleet:
    """Everyone talks to everyone."""
    offsets = draw(st.lists(offsets_us, min_size=min_nodes, max_size=6))
    delay = st.lists(delays_us, min_size=per_pair, max_size=per_pair)
    pairs = permutations(range(len(offsets)), 2)
    return Fleet(offsets, [fact(offsets, a, b, d) for a, b in pairs for d in draw(delay)])


def paths(src: int, dst: int, size: int) -> Iterator[tuple[int, ...]]:
    others = [node for node in range(size) if node not in (src, dst)]
    for count in range(len(others) + 1):
        for between in permutations(others, count):
            yield (src, *between, dst)


def by_enumeration(fleet: Fleet) -> list[list[int]]:
    """The definition: the least sum over all paths."""
    size, least = len(fleet.offsets), dict[tuple[int, int], int]()
    for message in fleet.messages:
        key = (message.src, message.dst)
        least[key] = min(message.fact_us, least.get(key, OPEN))

    def length(path: tuple[int, ...]) -> int:
        steps = [least.get(step, OPEN) for step in pairwise(path)]
        return OPEN if OPEN in steps else sum(steps)

    return [[0 if a == b else min(map(length, paths(a, b, size))) for b in range(size)] for a in range(size)]


def star(offsets: list[int], to_hub_us: int | None, from_hub_us: int | None) -> Fleet:
    """Node 0 is the hub."""
    leaves = range(1, len(offsets))
    to_hub = [] if to_hub_us is None else [fact(offsets, i, 0, to_hub_us + i) for i in leaves for _ in range(4)]
    from_hub = [] if from_hub_us is None else [fact(offsets, 0, i, from_hub_us + i) for i in leaves for _ in range(4)]
    return Fleet(offsets, to_hub + from_hub)


# ---- bounds ------------------------------------------------------------------------------------------------------


@given(fleets())
def test_bounds_are_the_shortest_paths_over_the_facts(fleet: Fleet) -> None:
    assert matrix(solve(fleet)) == by_enumeration(fleet)


@pytest.mark.parametrize("to_hub_us, from_hub_us", [(7, 9), (7, None), (None, 9)])
def test_bounds_in_a_star_are_the_shortest_paths_too(to_hub_us: int | None, from_hub_us: int | None) -> None:
    fleet = star([0, 500, -300, 20, 90, 1000], to_hub_us, from_hub_us)
    solved = solve(fleet)
    assert solved.core.shape == (1, 1)
    assert matrix(solved) == by_enumeration(fleet)


@given(
    st.lists(st.tuples(offsets_us, st.integers(-100, 100)), min_size=2, max_size=6),
    st.sampled_from([1, MS, SECOND]),
    st.data(),
)
def test_the_truth_lies_inside_although_clocks_drift_and_stamps_are_cut_off(
    clocks: list[tuple[int, int]], resolution_us: int, data: st.DataObject
) -> None:
    pairs = list(permutations(range(len(clocks)), 2))
    sent = st.tuples(st.sampled_from(pairs), delays_us, st.integers(0, 3600), st.integers(0, 10**9))
    messages = []
    for (a, b), delay, seconds_ago, at in data.draw(st.lists(sent, min_size=1, max_size=30)):
        then = [offset - drift_ppm * seconds_ago for offset, drift_ppm in clocks]
        send, receive = ((at + us) // resolution_us * resolution_us for us in (then[a], then[b] + delay))
        messages.append(Message(a, b, receive - send, seconds_ago * SECOND))
    now = [offset for offset, _ in clocks]
    solved = solve(Fleet(now, messages), max_drift_ppm=200, resolution_us=resolution_us)
    assert not solved.moved.any() and not solved.witnesses
    assert_truth_inside(matrix(solved), now)


@given(fleets(), st.data())
def test_more_facts_only_narrow(fleet: Fleet, data: st.DataObject) -> None:
    fewer = data.draw(st.integers(0, len(fleet.messages)))
    some = matrix(solve(fleet._replace(messages=fleet.messages[:fewer])))
    assert (np.array(matrix(solve(fleet))) <= np.array(some)).all()


@given(fleets(), st.randoms(use_true_random=False))
def test_names_do_not_matter_to_bounds(fleet: Fleet, random: Random) -> None:
    new = list(range(len(fleet.offsets)))
    random.shuffle(new)
    renamed = Fleet(
        [fleet.offsets[new.index(i)] for i in range(len(new))],
        [message._replace(src=new[message.src], dst=new[message.dst]) for message in fleet.messages],
    )
    far, far_renamed = matrix(solve(fleet)), matrix(solve(renamed))
    assert [[far_renamed[new[a]][new[b]] for b in range(len(new))] for a in range(len(new))] == far


def test_a_fact_is_widened_by_drift_rounded_up_and_by_the_resolution() -> None:
    fleet = Fleet([0, 0], [Message(0, 1, 100, age_us=10_001)])
    assert matrix(solve(fleet, max_drift_ppm=200, resolution_us=7))[0][1] == 100 + 3 + 7


def test_no_facts_no_bounds() -> None:
    assert told(solve(Fleet([], []))) == []
    assert matrix(solve(Fleet([5, 6], []))) == [[0, OPEN], [OPEN, 0]]


# ---- intervals ---------------------------------------------------------------------------------------------------


def members(fleet: Fleet, node: int) -> set[int]:
    reached, new = {node}, {node}
    while new:
        new = {b for m in fleet.messages for a, b in ((m.src, m.dst), (m.dst, m.src)) if a in reached} - reached
        reached |= new
    return reached


@given(
    st.one_of(
        fleets(),
        meshes(min_nodes=3, per_pair=1),
        st.builds(star, st.lists(offsets_us, min_size=3, max_size=6), delays_us, delays_us),
    )
)
def test_a_bound_against_the_majority_is_one_against_more_than_half_of_the_others(fleet: Fleet) -> None:
    far = by_enumeration(fleet)
    lower, upper = solve(fleet).against_majority()
    for node in range(len(fleet.offsets)):
        others = members(fleet, node) - {node}
        at_least = [-far[node][other] for other in others if far[node][other] < OPEN]
        at_most = [far[other][node] for other in others if far[other][node] < OPEN]
        ahead = [x for x in at_least if 2 * sum(y >= x for y in at_least) > len(others)]
        behind = [x for x in at_most if 2 * sum(y <= x for y in at_most) > len(others)]
        assert lower[node] == max(ahead, default=OPEN)
        assert upper[node] == min(behind, default=OPEN)


@given(meshes(min_nodes=3, per_pair=2))
def test_the_true_middle_of_the_others_lies_inside_the_interval(fleet: Fleet) -> None:
    for node, interval in enumerate(judged(fleet).values()):
        ahead = sorted(fleet.offsets[node] - other for i, other in enumerate(fleet.offsets) if i != node)
        assert interval.reference == MAJORITY and not interval.assumes_delay
        assert interval.lower_us is not None and interval.upper_us is not None
        assert interval.lower_us <= ahead[(len(ahead) - 1) // 2] <= ahead[len(ahead) // 2] <= interval.upper_us


def test_one_wrong_clock_does_not_bend_the_others() -> None:
    found = judged(star([0, 0, 0, 0, 847 * MS], to_hub_us=4 * MS, from_hub_us=4 * MS))
    assert [name for name, interval in found.items() if interval.least_us > 100 * MS] == ["node-4"]
    assert found["node-4"].ahead and 830 * MS < found["node-4"].least_us <= 847 * MS


def test_with_one_way_heartbeats_ahead_is_certain_and_behind_rests_on_the_longest_delay() -> None:
    found = judged(star([0, 847 * MS, -3 * SECOND, 0], to_hub_us=0, from_hub_us=None))
    assert found["node-0"] == Interval("node-0", 0, 0, "node-0")
    assert found["node-1"] == Interval("node-1", 847 * MS - 1, 1847 * MS - 1, "node-0", assumes_delay=True)
    assert found["node-2"] == Interval("node-2", -3 * SECOND - 2, -2 * SECOND - 2, "node-0", assumes_delay=True)
    assert [found[name].least_us for name in sorted(found)] == [0, 847 * MS - 1, 2 * SECOND + 2, 0]
    assert [found[name].ahead for name in sorted(found)] == [False, True, False, False]


def test_an_answer_from_the_observer_makes_the_assumption_needless() -> None:
    offsets = [0, 0, 0, 0, -500]
    one_way = star(offsets, to_hub_us=100, from_hub_us=None)
    answered = judged(one_way._replace(messages=[*one_way.messages, fact(offsets, 0, 4, 60)]))
    assert answered["node-4"] == Interval("node-4", -604, -440, "node-0")
    assert answered["node-3"].assumes_delay


def test_two_nodes_are_no_majority() -> None:
    found = judged(Fleet([0, 900], [fact([0, 900], 0, 1, 5), fact([0, 900], 1, 0, 5)]))
    assert found == {"node-0": Interval("node-0", 0, 0, "node-0"), "node-1": Interval("node-1", 895, 905, "node-0")}


def test_islands_have_references_of_their_own() -> None:
    offsets = [0, 10, 20, 30]
    found = judged(Fleet(offsets, [fact(offsets, 0, 1, 1), fact(offsets, 3, 2, 1)]))
    assert [found[name].reference for name in sorted(found)] == ["node-1", "node-1", "node-2", "node-2"]


# ---- contradictions ----------------------------------------------------------------------------------------------


@given(st.one_of(meshes(min_nodes=3, per_pair=1), meshes(min_nodes=2, per_pair=3)), st.integers(1, 3600), st.data())
def test_a_corrupted_message_is_the_witness_and_is_used_in_no_bound(
    fleet: Fleet, seconds: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(fleet.messages) - 1))
    good = fleet.messages[at]
    bad = good._replace(fact_us=good.fact_us - seconds * SECOND)
    rest = fleet.messages[:at] + fleet.messages[at + 1 :]
    solved, without = solve(fleet._replace(messages=[*rest, bad])), solve(fleet._replace(messages=rest))
    witness = Witness(f"node-{bad.src}", f"node-{bad.dst}", bad.fact_us)
    assert solved.witnesses == (witness,) and not solved.moved.any()
    assert matrix(solved) == matrix(without)
    assert [interval.node for interval in told(solved) if interval.witnesses == (witness,)] == sorted(
        [witness.src, witness.dst]
    )


def stepped(offsets: list[int], nodes: dict[int, int], links: list[tuple[int, int]]) -> Fleet:
    """Two messages each way on every link before some clocks step, and two after."""
    after = [offset + nodes.get(i, 0) for i, offset in enumerate(offsets)]
    both_ways = [pair for a, b in links for pair in ((a, b), (b, a))]
    return Fleet(after, [fact(o, a, b, 5 * MS + i) for o in (offsets, after) for a, b in both_ways for i in range(2)])


steps_us = st.one_of(st.integers(SECOND, 3600 * SECOND), st.integers(-3600 * SECOND, -SECOND))


@given(st.lists(offsets_us, min_size=3, max_size=6), steps_us, st.data())
def test_a_clock_that_stepped_is_named_and_the_bounds_of_the_others_stay_true(
    offsets: list[int], step_us: int, data: st.DataObject
) -> None:
    node = data.draw(st.integers(0, len(offsets) - 1))
    mesh = [(a, b) for a in range(len(offsets)) for b in range(a)]
    fleet = stepped(offsets, {node: step_us}, mesh)
    found = judged(fleet)
    assert [i for i, interval in enumerate(found.values()) if interval.moved] == [node]
    assert found[f"node-{node}"].lower_us in (None, 0) and found[f"node-{node}"].upper_us in (None, 0)
    others = [i for i in range(len(offsets)) if i != node]
    far = matrix(solve(fleet))
    assert_truth_inside(far, fleet.offsets, others)
    assert all(far[a][b] < OPEN for a in others for b in others)


@pytest.mark.parametrize("moved", [[0], [2], [1, 4], [1, 2, 3]])
def test_in_a_star_the_clocks_that_stepped_are_named_and_the_hub_only_when_it_did(moved: list[int]) -> None:
    fleet = stepped([0] * 8, {node: SECOND * (node + 1) for node in moved}, [(0, leaf) for leaf in range(1, 8)])
    assert [i for i, interval in enumerate(judged(fleet).values()) if interval.moved] == moved


def test_a_hub_that_stepped_is_named_although_one_node_has_not_been_heard_since() -> None:
    fleet = stepped([0] * 8, {0: SECOND}, [(0, leaf) for leaf in range(1, 8)])
    heard_before = [fact([0] * 8, a, b, 5 * MS) for a, b in ((0, 7), (7, 0))]
    others = [message for message in fleet.messages if 7 not in (message.src, message.dst)]
    found = judged(Fleet(fleet.offsets, others + heard_before))
    assert [i for i, interval in enumerate(found.values()) if interval.moved] == [0]


def test_a_clock_that_stepped_just_now_is_named_and_not_each_of_its_new_messages() -> None:
    before = [fact([0] * 5, a, b, 5 * MS) for a, b in permutations(range(5), 2) for _ in range(3)]
    since = [fact([0, 0, SECOND, 0, 0], a, b, 5 * MS) for a, b in permutations(range(5), 2)]
    solved = solve(Fleet([0, 0, SECOND, 0, 0], before + since))
    assert solved.moved.tolist() == [False, False, True, False, False] and not solved.witnesses


def test_a_message_to_oneself_compares_no_clocks() -> None:
    solved = solve(Fleet([0, 0], [Message(0, 0, -SECOND), Message(0, 1, 3)]))
    assert not solved.moved.any() and not solved.witnesses
    assert matrix(solved) == [[0, 3], [OPEN, 0]]


def test_of_two_messages_that_say_the_same_the_witness_does_not_depend_on_their_order() -> None:
    honest = star([0] * 3, to_hub_us=MS, from_hub_us=MS)
    twins = [Message(1, 0, -9 * SECOND), Message(1, 0, -9 * SECOND - 200, age_us=SECOND)]
    found = [
        solve(Fleet([0] * 3, [*honest.messages, *order]), max_drift_ppm=200).witnesses for order in permutations(twins)
    ]
    assert found[0] == found[1]


def test_two_corrupted_messages_are_two_witnesses() -> None:
    honest = star([0] * 6, to_hub_us=MS, from_hub_us=MS)
    bad = [Message(1, 0, -9 * SECOND), Message(0, 4, -8 * SECOND)]
    solved = solve(honest._replace(messages=honest.messages + bad))
    assert solved.witnesses == (Witness("node-0", "node-4", -8 * SECOND), Witness("node-1", "node-0", -9 * SECOND))
    assert not solved.moved.any()
    assert matrix(solved) == matrix(solve(honest))


def test_where_the_clocks_of_a_cycle_cannot_be_told_apart_all_are_named() -> None:
    ring = [Message(0, 1, 10), Message(1, 2, 10), Message(2, 0, -1000), Message(3, 0, 7)]
    solved = solve(Fleet([0] * 4, ring))
    assert solved.moved.tolist() == [True, True, True, False] and not solved.witnesses
    assert matrix(solved)[3] == [7, OPEN, OPEN, 0]


any_messages = st.lists(
    st.builds(Message, st.integers(0, 5), st.integers(0, 5), st.integers(-100, 100), st.sampled_from([0, SECOND])),
    min_size=1,
    max_size=60,
)


@given(any_messages, st.randoms(use_true_random=False))
def test_whatever_the_facts_say_bounds_contradict_each_other_nowhere_and_order_does_not_matter(
    messages: list[Message], random: Random
) -> None:
    solved = solve(Fleet([0] * 6, messages), max_drift_ppm=20)
    far = matrix(solved)
    assert all(far[a][b] + far[b][a] >= 0 for a in range(6) for b in range(6))
    for interval in told(solved):
        assert interval.lower_us is None or interval.upper_us is None or interval.lower_us <= interval.upper_us
    shuffled = list(messages)
    random.shuffle(shuffled)
    assume(shuffled != messages)
    assert told(solve(Fleet([0] * 6, shuffled), max_drift_ppm=20)) == told(solved)
