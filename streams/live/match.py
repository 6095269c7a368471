"""Slices of one queue enter, tables of final windows leave: what the partial tables of all source partitions add up to.

A window is final when every source partition has said its slices up to the window's end and the lateness. After a
restart the messages that a later window still needs are read again: a window's own slices, and those of the rows that
its rows may meet within the hour. What they may meet beyond stands in the topic of keys (remember.py).

A window that a lost slice could have had rows of is said as lost, with the streams that it lacks. So is one where a
table could not be merged, with that table's name: the others go on; and one that would look back on windows of which
the topic of keys has nothing any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import polars as pl

from detectors.engine import IN_STATE_US, Horizon, MatchState, Partials, match
from detectors.table import Meet, Table
from detectors.tables.accounts import ACCOUNTS
from detectors.windows import AHEAD_US, LATENESS_US, SLICE_US, WINDOW_US
from streams.live.apart import Apart
from streams.live.canary import CANARY
from streams.live.numbered import Frames, Head, Kind, Ranges, Reader, by_window, messages
from streams.live.numbered import pack as packed
from streams.live.reduce import Out
from streams.live.remember import Told, place_of, spans_us
from streams.live.step import Step

TABLES, KEYS = 0, 1  # the topics of what a queue says


@dataclass
class Matcher(Step):
    """One queue. next: the window (its index) not said yet; tables that meet reach back from it.

    forgotten: windows before it that the horizon should have rows of, and has not.
    """

    number_us: ClassVar[int] = SLICE_US
    queue: int
    sources: Sequence[str]
    tables: Sequence[Table]
    horizon: Horizon
    position: int = 0
    next: int = 0
    lateness_us: int = LATENESS_US
    forgotten: Ranges = field(default_factory=Ranges)
    reader: Reader = field(init=False)
    state: MatchState = field(init=False)
    apart: Apart = field(default_factory=Apart)

    def __post_init__(self) -> None:
        self.told = Told(self.horizon)
        meets = [s.back_us for t in self.tables for s in t.sources if isinstance(s, Meet)]
        self.back_us = max((back_us for back_us in meets if back_us <= IN_STATE_US), default=0)
        self.reader = Reader(self.sources, floor=self._needed())
        self.measured = (*self.tables, CANARY)
        self.state = MatchState(self.next * WINDOW_US if self.next else None)
        self._after: tuple[int, MatchState] | None = None

    def _needed(self) -> int:
        """The first slice that a window from `next` on can still need: late by nothing, ahead by at most AHEAD_US."""
        return max(0, self.next * WINDOW_US - self.back_us - AHEAD_US) // SLICE_US

    def _partition(self, producer: str) -> tuple[str, int]:
        stream, _, partition = producer.partition("/")
        return stream, int(partition)

    def say(self) -> tuple[int, list[Out]]:
        """(the first window that is not final, the messages for those before it); done() makes it so."""
        frontier = self.reader.upto(self._needed())
        to = max(self.next, (frontier * SLICE_US - self.lateness_us) // WINDOW_US)
        if to == self.next:
            return to, []
        news = [partials(t.frames) for t in self.reader.below(frontier)]
        failed: dict[str, BaseException] = {}
        final, state = match(self.measured, self.state, news, to * WINDOW_US, self.told, failed.__setitem__)
        self._after = to, state
        for name, error in failed.items():
            self.apart.raised("table", name, error)
        if ACCOUNTS in self.tables and len(copies := self.differing(to)):
            mine = [final[ACCOUNTS.name]] if ACCOUNTS.name in final else []
            final[ACCOUNTS.name] = ACCOUNTS.merge(pl.concat([*mine, copies]))
        lacking = tuple(sorted(failed))
        kept = self._messages(KEYS, by_window(self.told.take()), to, lacking)
        return to, [*self._messages(TABLES, by_window(final), to, lacking), *kept]

    def _messages(self, topic: int, bodies: dict[int, Frames], to: int, failed: tuple[str, ...]) -> Iterator[Out]:
        """A message for each window with rows, and for each range of windows that lack the same."""
        lacking = self._lacking(to)
        edges = {self.next, to, *(edge for r in lacking.values() for edge in r.inside(self.next, to))}
        ends = sorted((edges | {w + 1 for w in bodies}) - {self.next})
        for lo, hi in zip([self.next, *ends], ends, strict=False):
            of = (*failed, *sorted(s for s, r in lacking.items() if r.overlaps(lo, hi)))
            kind: Kind = "lost" if of else "rows" if hi - 1 in bodies else "empty"
            head = Head(producer=str(self.queue), lo=lo, hi=hi, kind=kind, of=of)
            yield from (Out(topic, *m) for m in messages(head, packed(bodies.get(hi - 1, {}))))

    def _lacking(self, to: int) -> dict[str, Ranges]:
        """By stream the windows before `to` that lost slices could have had rows of; by table those that look back on
        forgotten ones."""
        found: dict[str, Ranges] = {}
        for producer, lost in self.reader.lost.items():
            for first, end in lost.ranges:
                lo = (first * SLICE_US - self.lateness_us) // WINDOW_US
                hi = (end * SLICE_US + AHEAD_US) // WINDOW_US + 1
                found.setdefault(producer.partition("/")[0], Ranges()).add(max(lo, self.next), min(hi, to))
        for (table, _), back_us in spans_us(self.tables).items():
            for first, end in self.forgotten.ranges:
                lo, hi = max(first + 1, self.next), min(end + back_us // WINDOW_US, to)
                found.setdefault(table, Ranges()).add(lo, hi)
        return found


def partials(frames: Frames) -> Partials:
    return {place_of(name): frame for name, frame in frames.items()}
