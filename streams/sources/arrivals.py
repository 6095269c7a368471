"""Chunks of a recording enter; they leave without the events whose arrival can't be true, which are rejects.

An arrival moves its partition's clock, and the clock never goes back: one wrong value would make all later rows late or
impossible. A broker's append times need no belief: this is for files. Not believed are:
- an arrival more than a day after the recording is read;
- a leap of more than LEAP_US over all before it from which the log comes back: of the next LOOKED_AT rows, up to the
  last that lies where the clock stood, 20 do for each that stays up there. Before a first row no clock stood: there
  those rows must not fall, as they do where the newest comes first;
- a leap of which the row's own event time knows nothing, in the last rows: ten at most, with 20 before for each, where
  no other leap is near;
- one a day or more beyond both its row's event time and all before it, where any after it come back or there are none;
  and a first one a day before its row's event time, where all later ones lie a day beyond it.
All else is kept: a gap, a backlog, clocks of several collectors, days in any order, and last rows whose event times
agree, which are those after a gap or nobody knows. What is kept moves the clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from detectors.events import Decoded
from detectors.table import Ints
from detectors.windows import AHEAD_US, DAY_US, LATENESS_US, NEVER, event_time

LOOKED_AT = 1_000  # events after one that tell whether its arrival was a slip
LEAP_US = LATENESS_US + AHEAD_US  # what a file's order may be off by
BACK = 20  # rows that speak against one
FEW = 10  # rows at the end

FUTURE = "more than a day after it was read"
SLIP = "more than a day off both its row's event time and the arrivals around it"
LEAP = "far beyond the arrivals before and after it, which it would make late"
LAST = "far beyond the arrivals before it and its row's event time, with hardly a row after it"
UNBELIEVED = (FUTURE, SLIP, LEAP, LAST)

Chunks = Iterator[tuple[int, Decoded]]
Held = deque[tuple[int, Decoded]]


@dataclass
class Arrivals:
    """Those of one recording. now_us: when it is read. clock_us: where they stood before; None: there were none.

    undecided: in its last LOOKED_AT rows is a leap, or its begin, of which later rows may tell something else.
    leapt: one of these was believed. rejected: rows.
    """

    stream: str
    now_us: int
    clock_us: int | None
    undecided: bool = False
    leapt: bool = False
    rejected: int = 0

    def believed(self, chunks: Chunks) -> Chunks:
        held: Held = deque()
        for chunk in chunks:
            held.append(chunk)
            while sum(len(decoded.events) for _, decoded in held) - len(held[0][1].events) >= LOOKED_AT:
                yield self._sifted(held)
        while held:
            yield self._sifted(held)

    def _sifted(self, held: Held) -> tuple[int, Decoded]:
        """The first chunk without what is not believed of it."""
        count, decoded = held.popleft()
        events = decoded.events
        arrival = events["arrival"].cast(pl.Int64)
        doubts = self._doubts(arrival, events.select(event_time(self.stream).alias("t"))["t"], events["offset"], held)
        if doubts:
            reasons = pl.DataFrame(doubts, schema={"at": pl.UInt32, "reason": pl.String}, orient="row")
            raw = pl.col("arrival").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
            wrong = events[reasons["at"]].select("offset", "sub", reasons["reason"], field=pl.lit("arrival"), raw=raw)
            good = ~pl.int_range(len(events), dtype=pl.UInt32, eager=True).is_in(reasons["at"].implode())
            decoded = replace(decoded, events=events.filter(good), rejects=pl.concat([decoded.rejects, wrong]))
            arrival = arrival.filter(good)
            self.rejected += len(doubts)
        if arrival.count():
            last = int(arrival.max())  # type: ignore[arg-type]
            self.clock_us = last if self.clock_us is None else max(self.clock_us, last)
        return count, decoded

    def _doubts(self, arrival: pl.Series, event: pl.Series, offset: pl.Series, held: Held) -> list[tuple[int, str]]:
        """(place in the chunk, reason) of what is not believed. Only rows are looked at that could be among it."""
        after = [decoded.events["arrival"].cast(pl.Int64).head(LOOKED_AT) for _, decoded in held]
        whole = pl.concat([arrival, *after])
        coming = whole.reverse().rolling_min(LOOKED_AT, min_samples=1).reverse().shift(-1).head(len(arrival))
        at = pl.int_range(len(arrival), eager=True)
        far = (arrival > self.now_us + DAY_US) | (arrival < event - DAY_US)
        look = arrival.is_not_null() & (
            far | (coming < arrival - LEAP_US).fill_null(False) | (at >= len(whole) - LOOKED_AT)
        )
        if not look.any():
            return []
        steady = pl.select(pl.when(~look).then(arrival)).to_series().cum_max().fill_null(strategy="forward").shift()
        columns = {"at": at, "us": arrival, "t": event, "offset": offset, "steady": steady}
        clock, doubts = -NEVER if self.clock_us is None else self.clock_us, list[tuple[int, str]]()
        us_of = whole.fill_null(-NEVER).to_numpy()
        for place, us, t, number, known in pl.DataFrame(columns).filter(look).iter_rows():
            before = clock if known is None else max(clock, known)
            later = us_of[place + 1 : place + 1 + LOOKED_AT]
            if reason := self._doubt(us, t, number, before, later):
                doubts.append((place, reason))
            else:
                clock = max(before, us)
        return doubts

    def _doubt(self, us: int, t: int, number: int, before: int, later: Ints) -> str:
        """Why this arrival is not believed, or nothing. number: of its record."""
        if us > self.now_us + DAY_US:
            return FUTURE
        begins = before == -NEVER
        if not begins and us <= before + LEAP_US:
            return ""
        ends = len(later) < LOOKED_AT
        self.undecided |= ends
        later = later[later > -NEVER]
        if _day_off(us, t, before, later):
            return SLIP
        if _comes_back(us, before, later):
            return LEAP
        stay = 1 + int((later >= us - LEAP_US).sum())
        few = stay <= FEW and number >= BACK * stay
        if ends and not begins and not self.leapt and few and abs(us - t) > LEAP_US:
            return LAST
        self.leapt |= ends and not begins
        return ""


def _day_off(us: int, t: int, before: int, later: Ints) -> bool:
    begins = before == -NEVER
    if us < t - DAY_US and begins:
        return bool(len(later) and later.min() > us + DAY_US)
    return us > max(t, before) + DAY_US and bool(later.min() < us - DAY_US if len(later) else not begins)


def _comes_back(us: int, before: int, later: Ints) -> bool:
    """Whether the log goes on from where it stood before this arrival."""
    back = (later >= before - LEAP_US) & (later < us - LEAP_US)
    if not back.any():
        return False
    until = later[: int(np.flatnonzero(back)[-1])]
    stay = 1 + int((until >= us - LEAP_US).sum())
    return bool(back.sum() >= BACK * stay) and (before > -NEVER or _rises(later[back]))


def _rises(us: Ints) -> bool:
    """A file that begins with the newest row falls."""
    half = len(us) // 2
    return bool(np.median(us[half:]) >= np.median(us[:half]) - LEAP_US)
