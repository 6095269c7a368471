"""Slices of one queue enter, tables of final windows leave: what the partial tables of all source partitions add up to.

A window is final when every source partition has said its slices up to the window's end and the lateness. After a
restart the messages that a later window still needs are read again: a window's own slices, and those of the rows that
its rows may meet within the hour. What they may meet beyond stands in the topic of keys (remember.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from detectors.engine import IN_STATE_US, Horizon, MatchState, Partials, match
from detectors.table import Meet, Table
from detectors.windows import AHEAD_US, LATENESS_US, SLICE_US, WINDOW_US
from streams.live.numbered import Frames, Head, Kind, Reader, messages
from streams.live.numbered import pack as packed
from streams.live.reduce import Out
from streams.live.remember import Told, place_of
from streams.live.step import Step

TABLES, KEYS = 0, 1  # the topics of what a queue says


@dataclass
class Matcher(Step):
    """One queue. next: the window (its index) not said yet; tables that meet reach back from it."""

    queue: int
    sources: Sequence[str]
    tables: Sequence[Table]
    horizon: Horizon
    position: int = 0
    next: int = 0
    lateness_us: int = LATENESS_US
    reader: Reader = field(init=False)
    state: MatchState = field(init=False)

    def __post_init__(self) -> None:
        self.told = Told(self.horizon)
        meets = [s.back_us for t in self.tables for s in t.sources if isinstance(s, Meet)]
        self.back_us = max((back_us for back_us in meets if back_us <= IN_STATE_US), default=0)
        self.reader = Reader(self.sources, floor=self._needed())
        self.state = MatchState(self.next * WINDOW_US if self.next else None)
        self._after: tuple[int, MatchState] | None = None

    def _needed(self) -> int:
        """The first slice that a window from `next` on can still need: late by nothing, ahead by at most AHEAD_US."""
        return max(0, self.next * WINDOW_US - self.back_us - AHEAD_US) // SLICE_US

    def say(self) -> tuple[int, list[Out]]:
        """(the first window that is not final, the messages for those before it); done() makes it so."""
        frontier = self.reader.upto(self._needed())
        to = max(self.next, (frontier * SLICE_US - self.lateness_us) // WINDOW_US)
        if to == self.next:
            return to, []
        news = [partials(t.frames) for t in self.reader.below(frontier)]
        final, state = match(self.tables, self.state, news, to * WINDOW_US, self.told)
        self._after = to, state
        return to, [*self._messages(TABLES, to, final), *self._messages(KEYS, to, self.told.take())]

    def _messages(self, topic: int, to: int, frames: Frames) -> Iterator[Out]:
        lo = self.next
        for window, rows in _by_window(frames):
            yield from self._message(topic, lo, window + 1, "rows", packed(rows))
            lo = window + 1
        if lo < to:
            yield from self._message(topic, lo, to, "empty")

    def _message(self, topic: int, lo: int, hi: int, kind: Kind, body: bytes = b"") -> list[Out]:
        own = self._own_slices(lo, hi)
        head = Head(producer=str(self.queue), lo=lo, hi=hi, kind="lost" if self.reader.is_lost(*own) else kind)
        return [Out(topic, *m) for m in messages(head, body)]

    def _own_slices(self, lo: int, hi: int) -> tuple[int, int]:
        """The slices that can hold rows of windows lo ≤ w < hi."""
        return (lo * WINDOW_US - AHEAD_US) // SLICE_US, (hi * WINDOW_US + self.lateness_us) // SLICE_US + 1


def partials(frames: Frames) -> Partials:
    return {place_of(name): frame for name, frame in frames.items()}


def _by_window(final: Frames) -> list[tuple[int, Frames]]:
    """Window indexes in order, each with the rows of its tables."""
    found: dict[int, Frames] = {}
    for name, frame in final.items():
        for (window,), rows in frame.partition_by("window", as_dict=True, maintain_order=True).items():
            found.setdefault(int(window) // WINDOW_US, {})[name] = rows
    return sorted(found.items())
