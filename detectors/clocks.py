"""Facts of messages between clocks enter, an interval for every clock leaves: how far it is off, and against what.

A message from a to b gives the fact  receive − send = (offset_b − offset_a) + delay,  delay ≥ 0, and so
offset_b − offset_a ≤ fact. Such bounds add up along a path, so that the tightest bound on every pair of clocks is a
shortest path over the smallest facts; it cannot be improved upon without assumptions on delays.
Source: B. Patt-Shamir and S. Rajsbaum, "A theory of clock synchronization", STOC 1994.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

INF = 2**60  # no bound; three of them still add up within 64 bits
EXACT = 2**53  # scipy's shortest paths run over doubles, which hold every integer below this
MAJORITY = "majority"


@dataclass(frozen=True)
class Facts:
    """One element per message, in any order: from node src to node dst (indices), receive − send, how long ago."""

    src: Ints
    dst: Ints
    fact_us: Ints
    age_us: Ints
    resolution_us: Ints | int = 1  # of the coarser of the two stamps


@dataclass(frozen=True)
class Witness:
    """A message that contradicts the others, and was left out."""

    src: int
    dst: int
    fact_us: int


@dataclass(frozen=True)
class Bounds:
    """dist_us[a, b] ≥ offset_b − offset_a, INF where nothing is known; −dist_us[b, a] bounds it from below."""

    dist_us: Ints
    moved: Flags
    witnesses: tuple[Witness, ...]
    pairs: Facts  # the tightest fact of every ordered pair that the bounds rest on
    slack_us: Ints  # by how much each of them was widened


@dataclass(frozen=True)
class Interval:
    """lower ≤ offset of the node − offset of the reference ≤ upper, in µs; None where open."""

    node: str
    lower_us: int | None
    upper_us: int | None
    reference: str | None  # "majority", or the observer that is taken to be right; None: no other clock to compare with
    assumes_delay: bool  # the upper bound rests on max_one_way_delay_us; the lower one never does
    moved: bool  # it contradicts itself: a step or a drift within the facts

    @property
    def least_us(self) -> int:
        """By how much the clock is off at the least; 0 if it may be right."""
        return max(self.lower_us or 0, -(self.upper_us or 0), 0)

    @property
    def ahead(self) -> bool:
        return self.lower_us is not None and self.lower_us > 0


class _Graph:
    """Facts by ordered pair, pairs sorted by (dst, src), the facts of a pair from the tightest on."""

    def __init__(self, nodes: int, facts: Facts, max_drift_ppm: int) -> None:
        slack = -(-facts.age_us * max_drift_ppm // 1_000_000) + facts.resolution_us  # the drift is rounded up
        wide = facts.fact_us + slack
        order = np.lexsort((facts.age_us, slack, wide, facts.src, facts.dst))
        order = order[facts.src[order] != facts.dst[order]]  # a message to oneself compares no two clocks
        self.nodes = nodes
        self.fact, self.slack, self.age, self.wide = (x[order] for x in (facts.fact_us, slack, facts.age_us, wide))
        key = facts.dst[order] * nodes + facts.src[order]
        self.key, first, count = np.unique(key, return_index=True, return_counts=True)
        self.first, self.end = first.astype(np.int64), (first + count).astype(np.int64)
        self.dst, self.src = self.key // nodes, self.key % nodes
        self.into, self.heads = np.unique(self.dst, return_index=True)
        if len(wide) and int(np.abs(wide).max()) * 2 * nodes > EXACT // 2:
            raise ValueError("facts too large to add up exactly")

    @cached_property
    def reverse(self) -> Ints:
        """The pair of the other direction, −1 where there is none."""
        mirrored = self.src * self.nodes + self.dst
        found = np.searchsorted(self.key, mirrored).clip(max=len(self.key) - 1)
        return np.where(self.key[found] == mirrored, found, -1)

    def weights(self, at: Ints) -> Ints:
        """The tightest fact of each pair that is left, INF where none is."""
        return np.where(at < self.end, self.wide[at.clip(max=len(self.wide) - 1)], INF)

    def round_trip(self, weights: Ints) -> Ints:
        """There and back. Negative: the two clocks contradict each other."""
        back = np.where(self.reverse >= 0, weights[self.reverse], INF)
        return np.where((weights < INF) & (back < INF), weights + back, INF)


def bounds(nodes: int, facts: Facts, *, max_drift_ppm: int = 200) -> Bounds:
    """Bounds on every pair of clocks 0 … nodes − 1, from facts that were made to agree.

    A fact used Δt away is widened by max_drift × Δt, rounded up, and by the resolution of its stamps.
    A negative cycle means that a clock on it moved or that a stamp is wrong. If leaving out one message clears it
    (everywhere, or else between the clocks on the cycle), that message is a witness; where several would do, any of
    them may be wrong and none is used. Otherwise the clock on the cycle that contradicts the largest share of its
    partners has moved and loses all its facts; clocks that tie have moved, and lose those between them.
    """
    graph = _Graph(nodes, facts, max_drift_ppm)
    at, moved, witnesses = graph.first.copy(), np.zeros(nodes, bool), []
    while True:
        weights = graph.weights(at)
        potential, cycle = _relax(graph, weights)
        if not len(cycle):
            break
        if len(wrong := _wrong_messages(graph, at, cycle)):
            witnesses += [Witness(int(graph.src[e]), int(graph.dst[e]), int(graph.fact[at[e]])) for e in wrong]
            at[wrong] += 1
        else:
            blamed, pairs = _moved(graph, weights, cycle)
            moved |= blamed
            at[pairs] = graph.end[pairs]
    left = np.flatnonzero(at < graph.end)
    src, dst, tightest = graph.src[left], graph.dst[left], at[left]
    return Bounds(
        _distances(nodes, src, dst, weights[left], potential),
        moved,
        tuple(sorted(witnesses, key=lambda w: (w.src, w.dst, w.fact_us))),
        Facts(src, dst, graph.fact[tightest], graph.age[tightest]),
        graph.slack[tightest],
    )


def _relax(graph: _Graph, weights: Ints) -> tuple[Ints, Ints]:
    """(potential, pairs of a negative cycle, empty if there is none): Bellman-Ford, every clock starting at 0.

    potential[src] + weight ≥ potential[dst] for every pair, unless there is a cycle. The worst contradiction of two
    clocks comes before any longer one. A cycle among the predecessors is always negative, and is looked for in every
    round, so that it is found long before the last one.
    Source: B. Cherkassky and A. Goldberg, "Negative-cycle detection algorithms", Math. Programming 85 (1999).
    """
    potential, via = np.zeros(graph.nodes, np.int64), np.full(graph.nodes, -1)
    if not len(weights):
        return potential, via[:0]
    trip = graph.round_trip(weights)
    if trip[worst := trip.argmin()] < 0:
        return potential, np.array([worst, graph.reverse[worst]])
    while True:
        reach = potential[graph.src] + weights
        lowest = potential.copy()
        lowest[graph.into] = np.minimum(lowest[graph.into], np.minimum.reduceat(reach, graph.heads))
        if (lowest == potential).all():
            return potential, via[:0]
        improves = np.flatnonzero((reach == lowest[graph.dst]) & (reach < potential[graph.dst]))[::-1]
        via[graph.dst[improves]] = improves  # of equals the first pair, as the last one assigned
        potential = lowest
        if len(cycle := _predecessor_cycle(graph.src, via)):
            return potential, cycle


def _predecessor_cycle(src: Ints, via: Ints) -> Ints:
    """The pairs of a cycle among the predecessors src[via], empty if every chain of them ends."""
    ancestor = np.where(via >= 0, src[via], np.arange(len(via)))
    for _ in range(len(via).bit_length()):
        ancestor = ancestor[ancestor]
    endless = ancestor[via[ancestor] >= 0]
    if not len(endless):
        return via[:0]
    cycle = [via[endless.min()]]
    while src[cycle[-1]] != endless.min():
        cycle.append(via[src[cycle[-1]]])
    return np.array(cycle)


def _wrong_messages(graph: _Graph, at: Ints, cycle: Ints) -> Ints:
    """The pairs of the cycle whose tightest message, left out alone, clears every contradiction, or else this one."""
    on = np.isin(np.arange(graph.nodes), graph.src[cycle])
    inside = on[graph.src] & on[graph.dst]
    for scope in (np.ones_like(inside), inside):
        clears = []
        for pair in np.sort(cycle):
            without = graph.weights(at + (np.arange(len(at)) == pair))
            if not len(_relax(graph, np.where(scope, without, INF))[1]):
                clears.append(pair)
        if clears:
            return np.array(clears)
    return cycle[:0]


def _moved(graph: _Graph, weights: Ints, cycle: Ints) -> tuple[Flags, Flags]:
    """(clocks that moved, pairs that say nothing any more)."""
    trip = graph.round_trip(weights)
    partners = np.bincount(graph.src[trip < INF], minlength=graph.nodes)
    contradicted = np.bincount(graph.src[trip < 0], minlength=graph.nodes)
    on = np.isin(np.arange(graph.nodes), graph.src[cycle])
    share = np.where(on, contradicted / partners.clip(min=1), -1)
    most = share == share.max()
    moved = most & (contradicted == contradicted[most].max())
    silenced = moved[graph.src] | moved[graph.dst]
    if moved.sum() > 1:
        silenced &= on[graph.src] & on[graph.dst]
    return moved, silenced


def _distances(nodes: int, src: Ints, dst: Ints, weights: Ints, potential: Ints) -> Ints:
    """Shortest paths between all pairs: Johnson's reweighting and Dijkstra, exact as all sums stay below 2^53.

    A clock with a single partner is on no path between others: it is left out, and added to what its partner knows.
    """
    low, high = np.minimum(src, dst), np.maximum(src, dst)
    links = np.unique(low * nodes + high)
    ends = np.concatenate([links // nodes, links % nodes])
    degree = np.bincount(ends, minlength=nodes)
    leaf = degree == 1
    leaf[low[leaf[low] & leaf[high]]] = False  # of two clocks that have only each other one stays
    anchor, leave, enter = np.arange(nodes), np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
    leave[leaf] = enter[leaf] = INF
    outward, inward = leaf[src], leaf[dst]
    anchor[src[outward]], leave[src[outward]] = dst[outward], weights[outward]
    anchor[dst[inward]], enter[dst[inward]] = src[inward], weights[inward]

    core = np.flatnonzero(~leaf)
    place = np.zeros(nodes, np.int64)
    place[core] = np.arange(len(core))
    kept = ~(outward | inward)
    a, b = src[kept], dst[kept]
    lengths = (weights[kept] + potential[a] - potential[b]).astype(np.float64)
    paths = dijkstra(csr_array((lengths, (place[a], place[b])), shape=(len(core), len(core))))
    between = np.full(paths.shape, INF)
    known = np.isfinite(paths)
    between[known] = (paths - potential[core][:, None] + potential[core])[known].astype(np.int64)

    hub = place[anchor]
    dist = between[np.ix_(hub, hub)]
    dist += leave[:, None]
    dist += enter
    dist[dist > INF // 2] = INF
    np.fill_diagonal(dist, 0)
    return dist


def intervals(
    names: Sequence[str], facts: Facts, *, max_drift_ppm: int = 200, max_one_way_delay_us: int = 1_000_000
) -> tuple[list[Interval], tuple[Witness, ...]]:
    """An interval for every name (sorted: ties go to the first), and the messages that were left out.

    The majority is more than half of the other clocks that messages link to this one, of at least two: the lower bound
    is the largest x such that the clock is ≥ x ahead of so many, the upper one the smallest x such that it is ≤ x
    ahead of so many. Where one of the two is open, the reference is the observer, the clock that most others send to:
    −dist(node→observer) ≤ offset ≤ dist(observer→node). Where nothing comes back from the observer, the node's
    tightest message to it is assumed to have taken at most max_one_way_delay_us: offset ≤ max_one_way_delay − fact.
    """
    if sorted(set(names)) != list(names):
        raise ValueError("names must be sorted and distinct")
    nodes = len(names)
    known = bounds(nodes, facts, max_drift_ppm=max_drift_ppm)
    lower, upper = np.full(nodes, -INF), np.full(nodes, INF)
    reference, assumes = np.full(nodes, -1), np.zeros(nodes, bool)
    heard = np.bincount(known.pairs.dst, minlength=nodes)
    for members in _components(nodes, known.pairs):
        observer = members[heard[members].argmax()]
        low, high, assumed = _against_observer(known, members, observer, max_one_way_delay_us)
        least, most = _against_majority(known.dist_us[np.ix_(members, members)])
        both = (least > -INF) & (most < INF)
        lower[members], upper[members] = np.where(both, least, low), np.where(both, most, high)
        reference[members], assumes[members] = np.where(both, nodes, observer), assumed & ~both
    called = [*names, MAJORITY, None]  # the last is reference −1
    columns = (x.tolist() for x in (lower, upper, reference, assumes, known.moved))
    return [
        Interval(name, None if low == -INF else low, None if high == INF else high, called[by], assumed, moved)
        for name, low, high, by, assumed, moved in zip(names, *columns, strict=True)
    ], known.witnesses


def _components(nodes: int, pairs: Facts) -> list[Ints]:
    """The clocks that messages link, whatever their direction: each group of two or more, in ascending order."""
    links = csr_array((np.ones(len(pairs.src)), (pairs.src, pairs.dst)), shape=(nodes, nodes))
    label = connected_components(links, connection="weak")[1] if nodes else np.empty(0, int)
    groups = np.split(np.argsort(label, kind="stable"), np.cumsum(np.bincount(label))[:-1])
    return [group for group in groups if len(group) > 1]


def _against_majority(dist_us: Ints) -> tuple[Ints, Ints]:
    """(lower, upper) of each clock of one component: the q-th smallest distances from it and to it, q > half."""
    others = len(dist_us) - 1
    if others < 2:
        return np.full(len(dist_us), -INF), np.full(len(dist_us), INF)
    apart = dist_us.copy()
    np.fill_diagonal(apart, INF)
    last = others // 2  # counted from 0
    return -np.partition(apart, last, axis=1)[:, last], np.partition(apart, last, axis=0)[last]


def _against_observer(
    known: Bounds, members: Ints, observer: int, max_one_way_delay_us: int
) -> tuple[Ints, Ints, Flags]:
    """(lower, upper, whether upper assumes that delay) of each clock of one component."""
    lower, upper = -known.dist_us[members, observer], known.dist_us[observer, members]
    sent = known.pairs.dst == observer
    within = np.full(len(known.moved), INF)
    within[known.pairs.src[sent]] = max_one_way_delay_us + (known.slack_us - known.pairs.fact_us)[sent]
    within = within[members]
    assumes = (upper == INF) & (within < INF) & (within >= lower)  # below lower: the facts refute the assumption
    return lower, np.where(assumes, within, upper), assumes
