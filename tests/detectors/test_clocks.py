"""Clocks with known offsets exchange messages; what detectors.clocks says of them must be true, tight and stable."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, permutations
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from detectors.clocks import INF, MAJORITY, Facts, Interval, Ints, Witness, bounds, intervals

SECOND_US = 1_000_000
HOUR_US = 3_600 * SECOND_US
DRIFT_PPM = 200

Message = tuple[int, int, int, int]  # src, dst, fact, age


def facts(messages: list[Message]) -> Facts:
    src, dst, fact, age = np.array(messages, np.int64).reshape(-1, 4).T
    return Facts(src, dst, fact, age)


def widened(message: Message) -> int:
    return message[2] + -(-message[3] * DRIFT_PPM // 10**6) + 1


@dataclass
class Fleet:
    offsets: list[int]
    links: list[tuple[int, int]]
    messages: list[Message]

    @property
    def nodes(self) -> int:
        return len(self.offsets)

    @property
    def names(self) -> list[str]:
        return [f"node-{i}" for i in range(self.nodes)]

    def truth(self) -> Ints:
        """offset_b − offset_a at [a, b]."""
        return np.array([[b - a for b in self.offsets] for a in self.offsets])

    def step(self, node: int, by_us: int) -> list[Message]:
        """The same messages once more, after the clock of the node moved."""
        moved = {node: by_us}
        return [(a, b, fact + moved.get(b, 0) - moved.get(a, 0), age) for a, b, fact, age in self.messages]


DELAY = st.integers(0, SECOND_US)


@st.composite
def fleets(draw: st.DrawFn, nodes: int = 6, two_way: bool = False, drifts: bool = True) -> Fleet:
    """True offsets now, and messages whose clocks stood up to 100 ppm × age elsewhere when they were stamped.

    two_way: a connected fleet with two to four messages in each direction of each link.
    """
    offsets = draw(st.lists(st.integers(-HOUR_US, HOUR_US), min_size=2, max_size=nodes))
    count = len(offsets)
    if two_way:
        tree = [(draw(st.integers(0, i - 1)), i) for i in range(1, count)]
        pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
        some = sorted({*tree, *draw(st.lists(st.sampled_from(pairs), max_size=6))})
        links = some + [(b, a) for a, b in some]
        repeat = 2
    else:
        pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
        links = draw(st.lists(st.sampled_from(pairs), max_size=20, unique=True))
        repeat = 1
    messages = []
    for a, b in links:
        for delay in draw(st.lists(DELAY, min_size=repeat, max_size=4)):
            age = draw(st.integers(0, 60 * SECOND_US)) if drifts else 0
            reach = age * DRIFT_PPM // 2 // 10**6
            apart = draw(st.integers(-reach, reach)) - draw(st.integers(-reach, reach))
            messages.append((a, b, offsets[b] - offsets[a] + apart + delay, age))
    return Fleet(offsets, links, messages)


anything = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(-9, 9), st.integers(0, 10_000)), max_size=40
)


def shortest(nodes: int, messages: list[Message]) -> Ints:
    """By going along every path that visits no node twice."""
    weight = {(a, b): INF for a in range(nodes) for b in range(nodes)}
    for m in messages:
        weight[m[:2]] = min(weight[m[:2]], widened(m))
    dist = np.full((nodes, nodes), INF)
    np.fill_diagonal(dist, 0)
    for length in range(2, nodes + 1):
        for path in permutations(range(nodes), length):
            steps = [weight[step] for step in pairwise(path)]
            if INF not in steps:
                dist[path[0], path[-1]] = min(dist[path[0], path[-1]], sum(steps))
    return dist


# --- bounds on pairs ---


@given(fleets())
def test_the_true_difference_of_every_two_clocks_lies_within_its_bounds(fleet: Fleet) -> None:
    known = bounds(fleet.nodes, facts(fleet.messages))
    assert (fleet.truth() <= known.dist_us).all()
    assert (fleet.truth() >= -known.dist_us.T).all()
    assert not known.witnesses
    assert not known.moved.any()


@given(fleets(nodes=5))
def test_bounds_are_the_shortest_of_all_paths(fleet: Fleet) -> None:
    known = bounds(fleet.nodes, facts(fleet.messages))
    assert known.dist_us.dtype == np.int64
    assert (known.dist_us == shortest(fleet.nodes, fleet.messages)).all()


@given(fleets(), st.data())
def test_more_facts_only_narrow_the_bounds(fleet: Fleet, data: st.DataObject) -> None:
    fewer = [m for m in fleet.messages if data.draw(st.booleans())]
    assert (bounds(fleet.nodes, facts(fleet.messages)).dist_us <= bounds(fleet.nodes, facts(fewer)).dist_us).all()


@given(fleets(two_way=True), DELAY, st.data())
def test_more_facts_only_narrow_the_intervals_of_a_fleet_that_has_a_majority(
    fleet: Fleet, delay: int, data: st.DataObject
) -> None:
    assume(fleet.nodes > 2)
    a, b = data.draw(st.permutations(range(fleet.nodes)))[:2]
    more = (a, b, fleet.offsets[b] - fleet.offsets[a] + delay, 0)
    before, _ = intervals(fleet.names, facts(fleet.messages))
    after, _ = intervals(fleet.names, facts([*fleet.messages, more]))
    for old, new in zip(before, after, strict=True):
        assert old.reference == new.reference == MAJORITY
        assert old.lower_us is not None and new.lower_us is not None and old.lower_us <= new.lower_us
        assert old.upper_us is not None and new.upper_us is not None and old.upper_us >= new.upper_us


@given(fleets(), st.data())
def test_the_numbering_of_the_clocks_does_not_matter(fleet: Fleet, data: st.DataObject) -> None:
    new = data.draw(st.permutations(range(fleet.nodes)))
    renamed = [(new[a], new[b], fact, age) for a, b, fact, age in fleet.messages]
    dist = bounds(fleet.nodes, facts(renamed)).dist_us
    assert (dist[np.ix_(new, new)] == bounds(fleet.nodes, facts(fleet.messages)).dist_us).all()


def test_a_fact_is_widened_by_the_drift_since_then_and_by_the_resolution_of_its_stamps() -> None:
    known = bounds(2, Facts(np.array([0]), np.array([1]), np.array([500]), np.array([10_001]), 1_000))
    assert known.dist_us[0, 1] == 500 + 3 + 1_000  # 10.001 ms × 200 ppm = 2.0002 µs
    assert known.dist_us[1, 0] == INF


def test_facts_that_would_not_add_up_exactly_are_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        bounds(3, facts([(0, 1, 2**52, 0)]))


# --- contradictions ---


@given(anything, st.randoms(use_true_random=False))
def test_any_facts_whatever_end_in_bounds_that_agree_with_each_other(messages: list[Message], random: Random) -> None:
    known = bounds(5, facts(messages))
    dist = known.dist_us
    assert (np.diag(dist) == 0).all()
    for a, b, c in permutations(range(5), 3):
        assert INF in (dist[a, b], dist[b, c]) or dist[a, c] <= dist[a, b] + dist[b, c]
        assert INF in (dist[a, b], dist[b, a]) or dist[a, b] + dist[b, a] >= 0

    shuffled = random.sample(messages, len(messages))
    again = bounds(5, facts(shuffled))
    assert (again.dist_us == dist).all()
    assert (again.moved == known.moved).all()
    assert again.witnesses == known.witnesses
    names = ["a", "b", "c", "d", "e"]
    assert intervals(names, facts(shuffled)) == intervals(names, facts(messages))


@given(anything)
def test_something_is_wrong_exactly_if_a_cycle_is_negative(messages: list[Message]) -> None:
    compared = [m for m in messages if m[0] != m[1]]
    dist = shortest(5, compared)
    cycles = [dist[b, a] + widened(m) for m in compared for a, b in [m[:2]] if dist[b, a] < INF]
    known = bounds(5, facts(messages))
    assert (min(cycles, default=0) < 0) == (bool(known.witnesses) or bool(known.moved.any()))


@given(fleets(two_way=True), st.data())
def test_one_message_received_an_hour_too_early_is_the_witness(fleet: Fleet, data: st.DataObject) -> None:
    which = data.draw(st.integers(0, len(fleet.messages) - 1))
    a, b, fact, age = fleet.messages[which]
    wrong = (a, b, fact - HOUR_US, age)
    known = bounds(fleet.nodes, facts([*fleet.messages[:which], wrong, *fleet.messages[which + 1 :]]))
    assert known.witnesses == (Witness(*wrong[:3]),)
    assert not known.moved.any()
    rest = fleet.messages[:which] + fleet.messages[which + 1 :]
    assert (known.dist_us == bounds(fleet.nodes, facts(rest)).dist_us).all()


@given(fleets(two_way=True), st.data())
def test_several_wrong_messages_on_different_links_are_all_witnesses(fleet: Fleet, data: st.DataObject) -> None:
    assume(fleet.nodes > 2)
    links = [link for link in fleet.links if link[0] < link[1]]
    chosen = data.draw(st.lists(st.sampled_from(links), min_size=2, max_size=2, unique=True))
    messages, wrong = list(fleet.messages), []
    for link in chosen:
        which = next(i for i, m in enumerate(messages) if m[:2] == link)
        messages[which] = (*link, messages[which][2] - HOUR_US, messages[which][3])
        wrong.append(Witness(*messages[which][:3]))
    known = bounds(fleet.nodes, facts(messages))
    assert known.witnesses == tuple(sorted(wrong, key=lambda w: (w.src, w.dst)))
    assert not known.moved.any()
    assert (fleet.truth() <= known.dist_us).all()


def test_where_either_of_two_messages_may_be_wrong_neither_is_used() -> None:
    known = bounds(2, facts([(0, 1, -HOUR_US, 0), (1, 0, 5, 0)]))
    assert known.witnesses == (Witness(0, 1, -HOUR_US), Witness(1, 0, 5))
    assert known.dist_us[0, 1] == known.dist_us[1, 0] == INF


def test_a_third_clock_tells_which_of_two_messages_is_wrong() -> None:
    around = [(a, b, 5, 0) for a, b in permutations(range(3), 2)]
    known = bounds(3, facts([*around[1:], (0, 1, -HOUR_US, 0)]))
    assert known.witnesses == (Witness(0, 1, -HOUR_US),)


@given(fleets(two_way=True), st.data(), st.sampled_from([-HOUR_US, HOUR_US]))
def test_a_clock_that_steps_has_moved_and_the_bounds_of_the_others_stay_true(
    fleet: Fleet, data: st.DataObject, by_us: int
) -> None:
    assume(fleet.nodes > 2)
    node = data.draw(st.integers(0, fleet.nodes - 1))
    messages = fleet.messages + fleet.step(node, by_us)
    known = bounds(fleet.nodes, facts(messages))
    assert np.flatnonzero(known.moved).tolist() == [node]
    others = np.arange(fleet.nodes) != node
    assert (fleet.truth() <= known.dist_us)[np.ix_(others, others)].all()
    assert (bounds(fleet.nodes, facts([m for m in messages if node not in m[:2]])).dist_us == known.dist_us).all()
    judged, _ = intervals(fleet.names, facts(messages))
    assert judged[node] == Interval(fleet.names[node], None, None, None, False, True)


def test_of_two_clocks_alone_that_contradict_each_other_both_may_have_moved() -> None:
    before = [(0, 1, 5, 0), (0, 1, 6, 0), (1, 0, 5, 0), (1, 0, 6, 0)]
    after = [(a, b, fact + (HOUR_US if b else -HOUR_US), age) for a, b, fact, age in before]
    known = bounds(2, facts(before + after))
    assert known.moved.all()
    assert not known.witnesses


def test_two_stepped_clocks_around_one_collector_leave_the_collector_and_the_others_alone() -> None:
    star = Fleet([0] * 6, [], [(a, b, 5 + k, 0) for k in range(2) for i in range(1, 6) for a, b in ((0, i), (i, 0))])
    messages = star.messages + star.step(2, HOUR_US) + star.step(4, -HOUR_US)
    known = bounds(6, facts(messages))
    assert np.flatnonzero(known.moved).tolist() == [2, 4]


def test_a_contradiction_that_only_three_clocks_together_show_is_seen() -> None:
    ring = [(0, 1, -20, 0), (1, 2, 5, 0), (2, 0, 5, 0)]
    known = bounds(3, facts(ring))
    assert known.witnesses == tuple(Witness(a, b, fact) for a, b, fact, _ in ring)
    twice = bounds(3, facts(ring + ring))
    assert twice.moved.all()
    assert (twice.dist_us[~np.eye(3, dtype=bool)] == INF).all()


# --- against the majority, or the observer ---


@given(fleets(two_way=True))
def test_a_majority_is_more_than_half_of_the_others(fleet: Fleet) -> None:
    assume(fleet.nodes > 2)
    dist = bounds(fleet.nodes, facts(fleet.messages)).dist_us.tolist()
    for node, interval in enumerate(intervals(fleet.names, facts(fleet.messages))[0]):
        others = [j for j in range(fleet.nodes) if j != node]
        least = [-dist[node][j] for j in others]
        most = [dist[j][node] for j in others]
        assert interval.lower_us == max(x for x in least if sum(y >= x for y in least) > len(others) / 2)
        assert interval.upper_us == min(x for x in most if sum(y <= x for y in most) > len(others) / 2)
        assert interval.reference == MAJORITY
        assert type(interval.lower_us) is type(interval.upper_us) is type(interval.least_us) is int


def one_way(delays_and_offsets: dict[str, int]) -> tuple[list[str], Facts]:
    """Every node sends one message to the collector, whose clock is right."""
    names = sorted([*delays_and_offsets, "collector"])
    to = names.index("collector")
    return names, facts([(names.index(n), to, fact, 0) for n, fact in delays_and_offsets.items()])


def test_a_clock_ahead_of_its_only_observer_is_so_for_certain() -> None:
    judged, _ = intervals(*one_way({"payment-1": 3_000, "payment-2": 3_000 - 847_000}))
    collector, fine, ahead = judged
    assert ahead.least_us == 847_000 - 3_000 - 1
    assert ahead.ahead
    assert (ahead.lower_us, ahead.reference) == (843_999, "collector")
    assert not fine.ahead and fine.least_us == 0
    assert collector == Interval("collector", 0, 0, "collector", False, False)


def test_a_clock_behind_its_only_observer_is_so_only_if_delays_have_a_limit() -> None:
    behind = intervals(*one_way({"payment-1": 3_000, "payment-2": 1_500_000}))[0][2]
    assert (behind.lower_us, behind.upper_us) == (-1_500_001, -499_999)
    assert behind.assumes_delay
    assert not behind.ahead
    assert behind.least_us == 499_999
    patient = intervals(*one_way({"payment-1": 3_000, "payment-2": 1_500_000}), max_one_way_delay_us=2 * SECOND_US)[0][
        2
    ]
    assert patient.least_us == 0


def test_an_assumption_that_the_facts_refute_is_not_made() -> None:
    slow = [(0, 1, 5, 0), (0, 2, 9 * SECOND_US, 0), (1, 2, 5, 0)]  # 0 -> 2 took nine seconds: 0 -> 1 -> 2 shows it
    judged, _ = intervals(["a", "b", "c"], facts(slow))
    assert judged[0] == Interval("a", -12, None, "c", False, False)
    assert judged[1].assumes_delay


def test_where_something_comes_back_from_the_observer_no_delay_is_assumed() -> None:
    judged, _ = intervals(["a", "b"], facts([(0, 1, 1_500, 0), (1, 0, 2_500, 0)]))
    assert judged[0] == Interval("a", 0, 0, "a", False, False)  # both send to one: the first by name is the reference
    assert judged[1] == Interval("b", -2_501, 1_501, "a", False, False)


def test_a_clock_that_the_majority_bounds_needs_no_assumption_though_the_observer_never_answers() -> None:
    mesh = [(a, b, 5, 0) for a, b in permutations(range(3), 2)]
    judged, _ = intervals(["a", "b", "c", "z"], facts([*mesh, *((i, 3, 5, 0) for i in range(3))]))
    assert judged[0] == Interval("a", -6, 6, MAJORITY, False, False)
    assert judged[3] == Interval("z", 0, 0, "z", False, False)


def test_the_observer_is_the_clock_that_most_others_send_to() -> None:
    judged, _ = intervals(["a", "b", "c", "d"], facts([(0, 2, 5, 0), (1, 2, 5, 0), (3, 2, 5, 0), (1, 0, 5, 0)]))
    assert {interval.reference for interval in judged} == {"c"}


def test_clocks_that_no_message_links_are_not_compared() -> None:
    names = ["a", "b", "c", "d", "e"]
    judged, _ = intervals(names, facts([(0, 1, -HOUR_US, 0), (2, 3, 5, 0), (4, 4, -7, 0)]))
    assert [interval.reference for interval in judged] == ["b", "b", "d", "d", None]
    assert judged[4] == Interval("e", None, None, None, False, False)
    assert judged[0].least_us == HOUR_US - 1


def test_a_fleet_without_messages_has_open_intervals_and_an_empty_one_has_none() -> None:
    assert intervals(["a"], facts([])) == ([Interval("a", None, None, None, False, False)], ())
    assert intervals([], facts([])) == ([], ())


def test_names_that_are_not_sorted_are_refused_since_ties_go_to_the_first() -> None:
    with pytest.raises(ValueError, match="sorted"):
        intervals(["b", "a"], facts([]))
