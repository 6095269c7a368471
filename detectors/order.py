"""Events enter, which of two came first leaves: before, after, concurrent or unknown, certain or possible, and why.

Asked in this order:
1. vector clocks, where both have one: concurrent means that neither knew of the other, whatever the time;
2. numbers of one scope: lines of one writer, in the order in which it wrote them;
3. cause and effect in one attempt: called, begun, done, returned;
4. corrected times of one reference: bars that do not touch. Bars that overlap, one of them earlier at both ends, make
   it possible.
What is certain is carried on: if a came before b, and b before c, then a before c, though nothing links these two.
Where certain reasons contradict each other, a stamp or a number is wrong: unknown, unless vector clocks tell.
Source: L. Lamport, "Time, clocks, and the ordering of events in a distributed system", CACM 1978; C. Fidge 1988 and
F. Mattern 1989 for vector clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

CALLED, BEGAN, DONE, RETURNED = range(4)  # stages of an attempt: start and end on the client's side are the outer ones

Relation = Literal["before", "after", "concurrent", "unknown"]
Certainty = Literal["certain", "possible"]
TURNED: dict[Relation, Relation] = {"before": "after", "after": "before"}


class Event(msgspec.Struct, frozen=True):
    """One moment. seq numbers the lines of a scope, so it belongs to the moment at which its line was written; a client
    that gave up never got an answer, so its end is no stage of the attempt."""

    earliest_us: int | None = None
    latest_us: int | None = None
    reference: str | None = None  # whose clock the bar is told by
    vector_clock: Mapping[str, int] | None = None
    scope: str = ""
    seq: int | None = None
    attempt: str | None = None
    stage: int | None = None


class Order(NamedTuple):
    relation: Relation
    certainty: Certainty = "certain"
    why: str = ""

    def turned(self) -> Order:
        return self._replace(relation=TURNED.get(self.relation, self.relation))


OPEN = Order("unknown", "possible", "nothing tells")
CONTRADICTION = Order("unknown", "possible", "certain reasons contradict each other")


def order(a: Event, b: Event) -> Order:
    """What a is to b, by these two alone."""
    return Orders([a, b]).between(0, 1)


class Orders:
    """Among some events; a few hundred at a time, since all that follows from all is worked out."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.proven = np.array([[_before(a, b) is not None for b in events] for a in events], dtype=np.bool_)
        self.before = _closed(self.proven.reshape(len(events), len(events)))

    def between(self, i: int, j: int) -> Order:
        """What event i is to event j."""
        a, b = self.events[i], self.events[j]
        if i == j:
            return Order("unknown", "possible", "one and the same")
        if a.vector_clock and b.vector_clock:
            return _by_knowledge(a.vector_clock, b.vector_clock)
        if self.before[i, j] and self.before[j, i]:
            return CONTRADICTION
        if self.before[i, j]:
            return Order("before", "certain", _before(a, b) or "by what lies between")
        if self.before[j, i]:
            return self.between(j, i).turned()
        return _by_overlap(a, b)


def _closed(links: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Warshall's transitive closure."""
    closed = links.copy()
    for k in range(len(closed)):
        closed |= closed[:, k : k + 1] & closed[k]
    return closed


def _before(a: Event, b: Event) -> str | None:
    """Why a certainly came before b; None if nothing says so."""
    if a.vector_clock and b.vector_clock and _by_knowledge(a.vector_clock, b.vector_clock).relation == "before":
        return "vector clocks"
    if a.seq is not None and b.seq is not None and a.scope == b.scope and a.seq < b.seq:
        return "numbers of one writer"
    if a.attempt and a.attempt == b.attempt and a.stage is not None and b.stage is not None and a.stage < b.stage:
        return "cause and effect in one call"
    if _comparable(a, b) and a.latest_us is not None and b.earliest_us is not None and a.latest_us < b.earliest_us:
        return "corrected times"
    return None


def _by_knowledge(a: Mapping[str, int], b: Mapping[str, int]) -> Order:
    nodes = a.keys() | b.keys()
    a_knew = all(a.get(n, 0) >= b.get(n, 0) for n in nodes)
    b_knew = all(a.get(n, 0) <= b.get(n, 0) for n in nodes)
    if a_knew and b_knew:
        return Order("unknown", "possible", "equal vector clocks")
    relation: Relation = "after" if a_knew else "before" if b_knew else "concurrent"
    return Order(relation, "certain", "vector clocks")


def _comparable(a: Event, b: Event) -> bool:
    return a.reference is not None and a.reference == b.reference


def _by_overlap(a: Event, b: Event) -> Order:
    ends = (a.earliest_us, a.latest_us, b.earliest_us, b.latest_us)
    if not _comparable(a, b) or None in ends:
        return OPEN
    first, last = _compare(a.earliest_us, b.earliest_us), _compare(a.latest_us, b.latest_us)
    if first * last < 0 or first + last == 0:
        return Order("unknown", "possible", "bars overlap")
    return Order("before" if first + last < 0 else "after", "possible", "bars overlap")


def _compare(a: int | None, b: int | None) -> int:
    return 0 if a is None or b is None else (a > b) - (a < b)
