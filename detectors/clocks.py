"""Facts about pairs of clocks enter, an interval for every node's clock leaves: who is ahead or behind, for certain.

A message from clock a to clock b gives a *fact* in µs:

    fact = receive stamp (b's clock) - send stamp (a's clock) = (offset_b - offset_a) + delay,  delay ≥ 0

so offset_b - offset_a ≤ fact, and a is ahead of b by at least -fact. These inequalities add up along any path; the
tightest bound on a pair is the shortest path over the smallest facts, and no method can do better without assumptions
about delays. Source: B. Patt-Shamir and S. Rajsbaum, "A theory of clock synchronization", STOC 1994.

Clocks drift and stamps are cut off: a fact used Δt later is worth fact + max_drift × Δt + resolution.

A cycle of facts that sums to less than zero is a contradiction: a stamp on it is wrong, or a clock on it moved. The
explanation that gives up the least is taken (see `_explain`); what it gives up is in no bound.

Distances are float64 inside, exact for integers below 2^53 µs (285 years), and int64 outside.

scipy is imported where it is used: screens that only read a constant here need not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

OPEN = 2**60  # no fact, no bound: two of them still fit an int64
MAX_DRIFT_PPM = 200
MAX_ONE_WAY_DELAY_US = 1_000_000
MAJORITY = "majority"


class Witness(msgspec.Struct, frozen=True):
    """The one message that contradicts all others: its stamps are wrong by more than any delay explains."""

    src: str
    dst: str
    fact_us: int


class Intervals(NamedTuple):
    """By how much each node's clock is ahead of its reference, in µs (negative: behind), in the order of the nodes."""

    lower_us: Ints  # OPEN: no bound
    upper_us: Ints
    by_majority: Bools  # else it is compared with one node, its observer
    assumes_delay: Bools  # the upper side (and only it) rests on max_one_way_delay_us

    @property
    def least_us(self) -> Ints:
        """The smallest distance from the reference that the facts allow."""
        lower, upper = (np.where(us < OPEN, us, 0) for us in (self.lower_us, self.upper_us))
        return np.maximum(np.maximum(lower, -upper), 0)

    @property
    def ahead(self) -> Bools:
        return (self.lower_us < OPEN) & (self.lower_us > 0)


class Messages(NamedTuple):
    """One entry per fact, sorted by (dst, src, weight)."""

    src: Ints
    dst: Ints
    weight_us: Ints  # the fact, widened by drift and resolution
    fact_us: Ints

    def only(self, keep: Bools | Ints) -> Messages:
        return Messages(*(column[keep] for column in self))

    def lowest_at(self) -> Ints:
        """Where the tightest message of each ordered pair is."""
        other = (self.dst[1:] != self.dst[:-1]) | (self.src[1:] != self.src[:-1])
        return np.concatenate([np.arange(len(self.src[:1])), 1 + np.flatnonzero(other)])

    def lowest(self) -> Messages:
        return self.only(self.lowest_at())


class Bounds(NamedTuple):
    """Shortest distances between all clocks. A node with a single neighbour (a *leaf*: any sender of heartbeats to one
    collector) is kept as two numbers beside its neighbour's row, so that a star of thousands needs no matrix."""

    nodes: Sequence[str]
    core: Floats  # between the nodes that are not leaves
    row: Ints  # of each node: its row in the core, or its neighbour's
    out_us: Floats  # from a leaf to its neighbour; 0 for the others
    back_us: Floats  # and from there to the leaf
    component: Ints  # nodes linked by facts, in whatever direction
    observer: Ints  # of each node: the one that most others of its component report to
    moved: Bools
    witnesses: tuple[Witness, ...]

    def between(self, src: Ints, dst: Ints) -> Ints:
        """offset_dst - offset_src is at most this many µs, pair by pair (indices into nodes); OPEN: no bound."""
        far = self.out_us[src] + self.core[self.row[src], self.row[dst]] + self.back_us[dst]
        return _whole(np.where(src == dst, 0.0, far))

    def against_majority(self) -> tuple[Ints, Ints]:
        """(lower, upper) of each node: the largest x such that it is ≥ x ahead of more than half of the other nodes of
        its component, the smallest x such that it is ≤ x ahead of more than half. OPEN where there is none."""
        ahead = _nearer_half(self.core, self.row, self.out_us, self.back_us, self.component)
        behind = _nearer_half(self.core.T, self.row, self.back_us, self.out_us, self.component)
        return np.where(ahead < OPEN, -ahead, OPEN), behind


def bounds(
    nodes: Sequence[str],
    src: Ints,
    dst: Ints,
    facts_us: Ints,
    age_us: Ints,
    *,
    max_drift_ppm: int = MAX_DRIFT_PPM,
    resolution_us: int = 1,
) -> Bounds:
    """The tightest bounds on every pair of clocks that the facts allow.

    nodes: sorted names. src, dst: indices into them, one entry per ordered pair and age; a pair may come again with
    another age. facts_us: a row of the smallest facts for each, padded with OPEN. age_us: how long ago they held.
    """
    size = len(nodes)
    messages = _messages(src, dst, facts_us, age_us, max_drift_ppm, resolution_us)
    component = _components(messages, size)
    messages, wrong, moved = _consistent(messages, component)
    lowest = messages.lowest()
    potential, _ = _relax(lowest, size)
    incoming = np.bincount(lowest.dst, minlength=size)
    by_incoming = np.lexsort((-incoming, component))  # stable: equals stay sorted by name
    first = by_incoming[np.unique(component[by_incoming], return_index=True)[1]]
    core, row, out_us, back_us = _distances(lowest, potential)
    witnesses = tuple(Witness(nodes[s], nodes[d], fact) for s, d, fact in sorted(wrong))
    return Bounds(nodes, core, row, out_us, back_us, component, first[component], moved, witnesses)


def intervals(of: Bounds, *, max_one_way_delay_us: int = MAX_ONE_WAY_DELAY_US) -> Intervals:
    """One interval per node.

    Against the majority where both sides are bounded and there are at least two others. Else against the observer:
    [-dist(node → observer), dist(observer → node)]; if nothing comes back from the observer, the fastest way to it is
    taken to last no longer than max_one_way_delay_us: upper = max_one_way_delay_us - dist(node → observer).
    """
    node, population = np.arange(len(of.nodes)), np.bincount(of.component)[of.component]
    lower, upper = of.against_majority()
    by_majority = (lower < OPEN) & (upper < OPEN) & (population > 2)
    to_observer, from_observer = of.between(node, of.observer), of.between(of.observer, node)
    assumes = ~by_majority & (from_observer == OPEN) & (to_observer < OPEN)
    lower = np.where(by_majority, lower, np.where(to_observer < OPEN, -to_observer, OPEN))
    upper = np.where(by_majority, upper, np.where(assumes, max_one_way_delay_us - to_observer, from_observer))
    return Intervals(lower, upper, by_majority, assumes)


def _messages(src: Ints, dst: Ints, facts_us: Ints, age_us: Ints, max_drift_ppm: int, resolution_us: int) -> Messages:
    width = facts_us.shape[1]
    src, dst, fact = np.repeat(src, width), np.repeat(dst, width), facts_us.ravel()
    drift = np.repeat(-(age_us * -max_drift_ppm // 1_000_000), width)  # rounded up
    messages = Messages(src, dst, fact + drift + resolution_us, fact).only((fact < OPEN) & (src != dst))
    keys = (messages.fact_us, messages.weight_us, messages.src, messages.dst)
    return messages if _sorted(keys) else messages.only(np.lexsort(keys))


def _sorted(keys: Sequence[Ints]) -> bool:
    """Whether they are in the order that np.lexsort would give."""
    after = np.ones(max(len(keys[0]) - 1, 0), bool)
    for key in keys:
        after = (key[1:] > key[:-1]) | ((key[1:] == key[:-1]) & after)
    return bool(after.all())


def _whole(far: Floats) -> Ints:
    return np.where(np.isfinite(far), far, OPEN).astype(np.int64)


def _components(messages: Messages, size: int) -> Ints:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    links = csr_array((np.ones(len(messages.src)), (messages.src, messages.dst)), shape=(size, size))
    return np.asarray(connected_components(links, directed=False)[1], dtype=np.int64)


# ---- contradictions ----------------------------------------------------------------------------------------------


def _relax(lowest: Messages, size: int) -> tuple[Ints, list[int]]:
    """Bellman and Ford from a source at distance 0 of every node: (distances, []), or a cycle that sums below zero.

    A loop among predecessors is such a cycle, and there is one after at most `size` rounds if there is any.
    """
    far, before = np.zeros(size, dtype=np.int64), np.full(size + 1, size)
    starts = np.flatnonzero(np.diff(lowest.dst, prepend=-1))
    heads, group = lowest.dst[starts], np.cumsum(np.diff(lowest.dst, prepend=-1) != 0) - 1
    while len(starts):
        reach = far[lowest.src] + lowest.weight_us
        best = np.minimum.reduceat(reach, starts)
        better = best < far[heads]
        if not better.any():
            break
        hit = np.flatnonzero(reach == best[group])[::-1]
        first = np.empty_like(starts)
        first[group[hit]] = hit  # the last assignment stays: the smallest sender among equals
        before[heads[better]] = lowest.src[first[better]]
        far[heads[better]] = best[better]
        loops = before
        for _ in range(size.bit_length()):
            loops = loops[loops]
        if loops.min() < size:
            cycle = [int(loops.min())]
            while (node := int(before[cycle[-1]])) != cycle[0]:
                cycle.append(node)
            return far, cycle[::-1]
    return far, []


def _round_trips(lowest: Messages, size: int) -> Ints:
    """Of each message, its weight and that of the tightest one in the other direction; ≥ OPEN / 2 if there is none."""
    key, reverse = lowest.dst * size + lowest.src, lowest.src * size + lowest.dst
    at = np.minimum(np.searchsorted(key, reverse), max(len(key) - 1, 0))
    return lowest.weight_us + np.where(key[at] == reverse, lowest.weight_us[at], OPEN)


def _cycle(lowest: Messages, size: int) -> list[int]:
    """A cycle that sums below zero: two nodes where there are such, since that is the easiest evidence to follow."""
    trips = _round_trips(lowest, size)
    if len(trips) and trips[worst := int(trips.argmin())] < 0:
        return [int(lowest.src[worst]), int(lowest.dst[worst])]
    return _relax(lowest, size)[1]


def _consistent(messages: Messages, component: Ints) -> tuple[Messages, list[tuple[int, int, int]], Bools]:
    """Messages without contradictions; the wrong ones that were taken out as (src, dst, fact); the nodes that moved."""
    wrong: list[tuple[int, int, int]] = []
    moved = np.zeros(len(component), dtype=np.bool_)
    while cycle := _cycle(messages.lowest(), len(component)):
        message, nodes = _explain(messages, cycle, component)
        if message is not None:
            wrong.append((int(messages.src[message]), int(messages.dst[message]), int(messages.fact_us[message])))
            messages = messages.only(np.arange(len(messages.src)) != message)
            continue
        moved[nodes] = True
        src_in, dst_in = np.isin(messages.src, nodes), np.isin(messages.dst, nodes)
        messages = messages.only(~(src_in | dst_in if len(nodes) == 1 else src_in & dst_in))
    return messages, wrong, moved


def _explain(messages: Messages, cycle: list[int], component: Ints) -> tuple[int | None, list[int]]:
    """The wrong message (its position), or else the nodes whose clocks moved. In this order:

    1. one message, if without it, and without no other one of the cycle, the whole component is free of contradiction;
    2. one clock, if it contradicts at least two of the nodes that it exchanges messages with, and more than half of
       them: the others vouch for each other, and one clock that moved is likelier than many;
    3. one message, as in 1, if the nodes of the cycle are then free of contradiction among themselves;
    4. the clock that contradicts the largest share; if it can't be told from another one, all clocks of the cycle.
    """
    suspect, most = _most_contradicted(messages, cycle, len(component))
    message = _sole(messages, cycle, component == component[cycle[0]])
    if message is None and not (suspect is not None and most):
        message = _sole(messages, cycle, np.isin(np.arange(len(component)), cycle))
    return message, cycle if suspect is None else [suspect]


def _most_contradicted(messages: Messages, cycle: list[int], size: int) -> tuple[int | None, bool]:
    """The node of the cycle that contradicts most of those it exchanges messages with, None if several do alike; and
    whether these are at least two, and more than half of them."""
    lowest = messages.lowest()
    trips = _round_trips(lowest, size)
    partners = np.bincount(lowest.dst[trips < OPEN // 2], minlength=size)
    contradicted = np.bincount(lowest.dst[trips < 0], minlength=size)
    most = (contradicted >= 2) & (2 * contradicted > partners)
    share = contradicted / np.maximum(partners, 1)
    *_, second, first = sorted((bool(most[i]), float(share[i]), int(contradicted[i]), i) for i in cycle)
    return None if first[:3] == second[:3] else first[3], first[0]


def _sole(messages: Messages, cycle: list[int], scope: Bools) -> int | None:
    """The one message of the cycle without which the nodes in scope are consistent; None if it is none or several."""
    lowest = messages.lowest_at()
    lowest = lowest[scope[messages.src[lowest]] & scope[messages.dst[lowest]]]
    follower = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    found: list[int] = []
    for src, dst in follower.items():
        at = int(np.flatnonzero((messages.src[lowest] == src) & (messages.dst[lowest] == dst))[0])
        if not _cycle(messages.only(_without(messages, lowest, at)), len(scope)):
            found.append(int(lowest[at]))
    return found[0] if len(found) == 1 else None


def _without(messages: Messages, lowest: Ints, at: int) -> Ints:
    """Where the tightest messages are if one of them is not: its pair's next one takes its place, if there is any."""
    this, rest = int(lowest[at]), lowest.copy()
    pairs = list(zip(messages.src[this : this + 2].tolist(), messages.dst[this : this + 2].tolist(), strict=True))
    if pairs != pairs[:1] * 2:
        return np.delete(rest, at)
    rest[at] = this + 1
    return rest


# ---- distances ---------------------------------------------------------------------------------------------------


def _distances(lowest: Messages, potential: Ints) -> tuple[Floats, Ints, Floats, Floats]:
    """(core, row, out_us, back_us) of Bounds: Johnson's algorithm over what is left without the leaves."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import dijkstra

    size, src, dst = len(potential), lowest.src, lowest.dst
    low, high = np.divmod(np.unique(np.minimum(src, dst) * size + np.maximum(src, dst)), max(size, 1))
    degree = np.bincount(low, minlength=size) + np.bincount(high, minlength=size)
    neighbour = np.arange(size)
    for leaf, hub in ((low, high), (high, low)):
        is_leaf = (degree[leaf] == 1) & (degree[hub] > 1)
        neighbour[leaf[is_leaf]] = hub[is_leaf]
    in_core = neighbour == np.arange(size)
    out_us, back_us = np.where(in_core, 0, np.inf), np.where(in_core, 0, np.inf)
    going, coming = neighbour[src] == dst, neighbour[dst] == src
    out_us[src[going]] = lowest.weight_us[going]
    back_us[dst[coming]] = lowest.weight_us[coming]
    position = np.cumsum(in_core) - 1
    inner, count = in_core[src] & in_core[dst], int(in_core.sum())
    reduced = (lowest.weight_us + potential[src] - potential[dst])[inner].astype(np.float64)  # ≥ 0, as Dijkstra needs
    links = csr_array((reduced, (position[src[inner]], position[dst[inner]])), shape=(count, count))
    height = potential[in_core]
    core = dijkstra(links) + (height[None, :] - height[:, None])
    return core, position[neighbour], out_us, back_us


def _nearer_half(core: Floats, row: Ints, out_us: Floats, back_us: Floats, component: Ints) -> Ints:
    """Of each node, the smallest distance within which more than half of the others of its component lie.

    A leaf sees all others as its neighbour does, out_us further away, so one sorted row serves them all: among k + 1
    distances from that row, the r-th smallest without the node's own is the r-th, or the next one if its own is not
    beyond that.
    """
    result = np.full(len(row), OPEN, dtype=np.int64)
    for label in np.flatnonzero(np.bincount(component) > 1):
        members = np.flatnonzero(component == label)
        rows, row_of = np.unique(row[members], return_inverse=True)
        far = core[np.ix_(rows, row[members])] + back_us[members]
        rank = (len(members) - 1) // 2
        sorted_far = np.partition(far, (rank, rank + 1), axis=1)[:, rank : rank + 2]
        own_is_nearer = far[row_of, np.arange(len(members))] <= sorted_far[row_of, 0]
        result[members] = _whole(sorted_far[row_of, own_is_nearer.astype(int)] + out_us[members])
    return result
