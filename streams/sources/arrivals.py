"""Chunks of a recording enter; they leave without the events whose arrival can't be true, which are rejects.

An arrival moves its partition's clock, and the clock never goes back: one wrong value would make all later rows late or
impossible. So a value is not believed that lies more than a day beyond both its row's event time and all arrivals
before it, where the arrivals after it come back from there or there are none; nor is a first one a day before its row's
event time, where all later ones lie a day beyond it. A broker's append times need no belief: this is for files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import polars as pl

from detectors.events import Decoded
from detectors.windows import DAY_US, NEVER, event_time

LOOKED_AT = 1_000  # events after one that tell whether its arrival was a slip
SLIP = "more than a day off both its row's event time and the arrivals around it"

Chunks = Iterator[tuple[int, Decoded]]
Held = deque[tuple[int, Decoded]]


def believed(chunks: Chunks, stream: str, clock_us: int | None) -> Chunks:
    """clock_us: where the recording's arrivals stood before these chunks; None where there are none yet."""
    held: Held = deque()
    for chunk in chunks:
        held.append(chunk)
        while sum(len(decoded.events) for _, decoded in held) - len(held[0][1].events) >= LOOKED_AT:
            count, decoded, clock_us = _sifted(held, stream, clock_us)
            yield count, decoded
    while held:
        count, decoded, clock_us = _sifted(held, stream, clock_us)
        yield count, decoded


def _sifted(held: Held, stream: str, clock_us: int | None) -> tuple[int, Decoded, int | None]:
    """The first chunk without its slips, and where the clock stands after it."""
    count, decoded = held.popleft()
    events = decoded.events
    arrival = events["arrival"].cast(pl.Int64)
    slips = _slips(arrival, events.select(t=event_time(stream))["t"], held, clock_us)
    if slips:
        bad = pl.int_range(len(events), eager=True).is_in(slips)
        raw = pl.col("arrival").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
        wrong = events.filter(bad).select("offset", "sub", reason=pl.lit(SLIP), field=pl.lit("arrival"), raw=raw)
        rejects = pl.concat([decoded.rejects, wrong])
        decoded, arrival = replace(decoded, events=events.filter(~bad), rejects=rejects), arrival.filter(~bad)
    last = arrival.max() if clock_us is None else max(clock_us, arrival.max() or clock_us)
    return count, decoded, last  # type: ignore[return-value]


def _slips(arrival: pl.Series, event: pl.Series, held: Held, clock_us: int | None) -> list[int]:
    """Positions of the events whose arrival is not believed, in their order."""
    off = (arrival - event).abs() > DAY_US
    if not off.any():
        return []
    after = [decoded.events["arrival"].cast(pl.Int64).head(LOOKED_AT) for _, decoded in held]
    coming = pl.concat([arrival, *after]).reverse().rolling_min(LOOKED_AT, min_samples=1).reverse().shift(-1)
    steady = pl.select(pl.when(~off).then(arrival)).to_series().cum_max().fill_null(strategy="forward").shift()
    columns = {"at": range(len(off)), "us": arrival, "t": event, "coming": coming.head(len(off)), "steady": steady}
    clock, slips = -NEVER if clock_us is None else clock_us, list[int]()
    for at, us, t, lowest, known in pl.DataFrame(columns).filter(off).iter_rows():
        before = clock if known is None else max(clock, known)
        begins = before == -NEVER
        leaves = us > max(t, before) + DAY_US and (not begins if lowest is None else lowest < us - DAY_US)
        starts_low = begins and us < t - DAY_US and lowest is not None and lowest > us + DAY_US
        if leaves or starts_low:
            slips.append(at)
        else:
            clock = max(before, us)
    return slips
