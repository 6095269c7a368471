"""Rows that later windows may meet for a day leave as messages, a successor's horizon gets them from there.

Without them a queue's new owner would have to merge the slices of a whole day again. A message of the topic of keys
says what one window added, under the window's number, so that copies are equal by construction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from detectors.engine import IN_STATE_US, Horizon, Place
from detectors.table import Meet, Table
from detectors.windows import WINDOW_US
from streams.live.numbered import Frames, Ranges, Reader


def spans_us(tables: Sequence[Table]) -> Mapping[Place, int]:
    """How far back each source looks whose rows the horizon keeps."""
    meets = {(t.name, i): s.back_us for t in tables for i, s in enumerate(t.sources) if isinstance(s, Meet)}
    return {place: back_us for place, back_us in meets.items() if back_us > IN_STATE_US}


@dataclass
class Told:
    """A horizon that also says what it was given."""

    horizon: Horizon
    given: dict[Place, pl.DataFrame] = field(default_factory=dict)

    def seen(self, place: Place, hashes: pl.Series, since: int) -> pl.DataFrame | None:
        return self.horizon.seen(place, hashes, since)

    def keep(self, place: Place, rows: pl.DataFrame, before: int) -> None:
        self.given[place] = rows
        self.horizon.keep(place, rows, before)

    def take(self) -> Frames:
        """What it was given since it was asked last, as messages name it."""
        given, self.given = self.given, {}
        return {place_name(place): rows for place, rows in given.items()}


def place_name(place: Place) -> str:
    name, source = place
    return f"{name}/{source}"


def place_of(name: str) -> Place:
    table, _, source = name.rpartition("/")
    return table, int(source)


@dataclass
class Recall:
    """The horizon of a queue as it stood before the window `next`: feed it the whole log of the queue's keys."""

    queue: int
    next: int
    tables: Sequence[Table]
    horizon: Horizon
    reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        self.spans_us = spans_us(self.tables)
        self.first = max(0, self.next - max(self.spans_us.values(), default=0) // WINDOW_US)
        self.reader = Reader([str(self.queue)], floor=self.first)

    def feed(self, messages: Iterable[tuple[int, bytes | None, bytes | None]]) -> None:
        """Offset, key and value of each."""
        for offset, key, value in messages:
            self.reader.take(offset, key, value)
        kept: dict[Place, list[pl.DataFrame]] = {}
        for taken in self.reader.below(self.next):  # what lies behind was said and not committed: it is said again
            for name, rows in taken.frames.items():
                kept.setdefault(place_of(name), []).append(rows)
        for place, parts in kept.items():
            if place in self.spans_us:
                self.horizon.keep(place, pl.concat(parts), self.next * WINDOW_US - self.spans_us[place])

    def forgotten(self) -> Ranges:
        """Once all is read: the windows of which there is nothing, and which later ones may still look back on."""
        (cover,) = self.reader.cover.values()
        return Ranges(cover.missing(self.first, self.next))
