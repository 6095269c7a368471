"""A file and the recordings whose first event is its own enter; how much of it one of them holds already leaves.

Bytes prove that a file was read before, or has grown (see files.read_before). Where they do not, what its records say
is compared with what landed, so a backup that broke off halfway, a Parquet file that was written again with more rows
and the same rows in another format count nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

from detectors.events import SCHEMA, Decoded, fields
from streams.landing.lake import Writer
from streams.live.canary import theirs
from streams.sources.arrivals import UNBELIEVED
from streams.sources.decode import Reading, chunks
from streams.sources.files import File, Known, Recording

PLACE = ("offset", "sub")
Says = npt.NDArray[np.uint64]  # of each record what its rows say, as a hash


class Alike(NamedTuple):
    """A recording whose first records, `shared` in number, say what those of a file say.

    records: the file's, as many as were looked at. whole: of these, without a last line that has no end.
    """

    known: Known
    shared: int
    records: int
    whole: int

    @property
    def holds_all(self) -> bool:
        return self.shared >= self.whole and self.records <= self.known.records

    @property
    def is_shorter(self) -> bool:
        return self.whole < self.known.records

    @property
    def has_grown(self) -> bool:
        """Whether all of the recording is what the file begins with."""
        return self.shared == self.known.records


def head(stream: str, events: pl.DataFrame) -> str:
    """What the first event says, as a hash that stays the same over versions of libraries; none where there is none."""
    first = theirs(stream, events).bottom_k(1, by=PLACE)
    if first.is_empty():
        return ""
    row = first.row(0, named=True)
    says = {f.name: row[f.name] for f in fields(stream) if f.name != "arrival" and row[f.name] != f.default}
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode([*map(row.get, PLACE), says]))


def alike(
    file: File, reading: Reading, known: Sequence[Known], landed: Writer, rejects: Sequence[pl.DataFrame]
) -> Alike | None:
    """Of known recordings the one that holds all of the file, else the longest that it begins with, else the one that
    shares most with it."""
    before = [_Landed(k, landed, rejects) for k in known]
    recording, records = Recording(file), 0
    for count, decoded in chunks(recording, reading):
        if all(one.shared < records for one in before):
            break
        for one in before:
            one.compare(reading.stream, decoded, records, count)
        records += count
    found = [Alike(one.known, one.shared, records, records - recording.torn) for one in before if one.shared]
    return max(found, key=lambda a: (a.holds_all, a.has_grown, a.shared), default=None)


class _Landed:
    """What a recording said, eight bytes a record, and how many records of a file said the same so far.

    An event that became a reject because of the arrivals around it may say anything: of what it said nothing is left.
    """

    def __init__(self, known: Known, landed: Writer, rejects: Iterable[pl.DataFrame]) -> None:
        stream = known.stream
        bad = [f.filter(stream=stream, partition=known.partition).select(*PLACE, "reason") for f in rejects]
        slips = pl.col("reason").is_in(UNBELIEVED)
        self.known, self.shared = known, 0
        self._slips = pl.concat(f.filter(slips).select(PLACE) for f in bad) if bad else None
        events = (_said(stream, f) for f in landed.rows_of(stream, known.partition))
        self._says = _by_record(chain(events, (_refused(f.filter(~slips)) for f in bad)), 0, known.records)

    def compare(self, stream: str, decoded: Decoded, begin: int, count: int) -> None:
        if self.shared < begin:
            return
        said = _said(stream, decoded.events)
        if self._slips is not None:
            said = said.join(self._slips, on=PLACE, how="anti")
        mine = _by_record([said, _refused(decoded.rejects)], begin, count)
        theirs = self._says[begin : begin + count]
        differ = np.flatnonzero(mine[: len(theirs)] != theirs)
        self.shared = begin + (int(differ[0]) if len(differ) else len(theirs))


def _said(stream: str, events: pl.DataFrame) -> pl.DataFrame:
    """What events say, as a hash; their arrival is left out, since it depends on the rows before."""
    says = pl.struct("sub", *(n for n in SCHEMA[stream] if n != "arrival"))
    return theirs(stream, events).select(*PLACE, says=says.hash())


def _refused(rejects: pl.DataFrame) -> pl.DataFrame:
    """Of a reject only its place: formats have words of their own for what is wrong."""
    return rejects.select(*PLACE, says=pl.struct("sub", reject=True).hash())


def _by_record(rows: Iterable[pl.DataFrame], begin: int, count: int) -> Says:
    """In any order, as the lake has them."""
    says = np.zeros(count, np.uint64)
    for some in rows:
        mine = some.filter(pl.col("offset").is_between(begin, begin + count, closed="left"))
        np.add.at(says, mine["offset"].to_numpy() - begin, mine["says"].to_numpy())
    return says
