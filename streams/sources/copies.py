"""A file and the recordings with its first record enter; the one that holds all of the file already leaves.

A longer copy is known by its bytes (see files.read_before). Of a shorter one the bytes prove nothing, so its events and
rejects are compared with those that landed, record by record: what a backup that broke off halfway holds was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import polars as pl

from detectors.events import SCHEMA
from streams.landing.lake import Writer
from streams.live.canary import theirs
from streams.sources.decode import Reading, chunks
from streams.sources.files import File, Known, Recording, head

PLACE = ("offset", "sub")


def longer(
    file: File, reading: Reading, known: Sequence[Known], landed: Writer, rejects: Sequence[pl.DataFrame]
) -> Known | None:
    """The recording that begins with all of the file's records; a last line that has no end is none."""
    first = head(file)
    if not (alike := [k for k in known if first and k.head == first and k.by == reading.by]):
        return None
    stream, recording, records = reading.stream, Recording(file), 0
    events, refused = [], []
    for count, decoded in chunks(recording, reading):
        events.append(_said(stream, decoded.events))
        refused.append(decoded.rejects)
        records += count
    whole = records - recording.torn
    for one in alike:
        rows = (_said(stream, f) for f in landed.rows_of(stream, one.partition))
        bad = [f.filter(stream=stream, partition=one.partition) for f in rejects]
        if whole <= one.records and _same(events, rows, whole) and _same(refused, bad, whole):
            return one
    return None


def _said(stream: str, events: pl.DataFrame) -> pl.DataFrame:
    """What an event says, as a hash; its arrival is left out, since it depends on the rows before."""
    says = pl.struct(n for n in SCHEMA[stream] if n != "arrival")
    return theirs(stream, events).select(*PLACE, reason=says.hash().cast(pl.String))


def _same(mine: Iterable[pl.DataFrame], theirs: Iterable[pl.DataFrame], before: int) -> bool:
    return _ordered(mine, before).equals(_ordered(theirs, before))


def _ordered(frames: Iterable[pl.DataFrame], before: int) -> pl.DataFrame:
    nothing = pl.DataFrame(schema={"offset": pl.Int64, "sub": pl.Int64, "reason": pl.String})
    some = [f.select(nothing.columns).filter(pl.col("offset") < before) for f in frames]
    return pl.concat([nothing, *some]).sort(PLACE)
