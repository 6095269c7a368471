"""Rows that meet over many hours enter, those whose hash is asked for leave: sorted hashes on disk, mapped not read.

A day of keys does not fit in memory, and hardly any of them is ever used again. The rows of each closed batch become
one Arrow file, as they came. An index says where each 64-bit hash has its rows; indexes of like size are merged, so
that a look-up searches a few long ones rather than one for every batch, and reads only the rows that are found.
The folder is the whole state, so another process continues where one ended.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from detectors.engine import Place
from detectors.table import together
from detectors.windows import NEVER

Index = npt.NDArray[np.uint64]  # hashes in ascending order, and below each its batch and its row
ROW_BITS = 32
MERGED_ROWS = 2**22  # a merge holds both indexes in memory


@dataclass(frozen=True)
class Batch:
    """A file of rows; the windows that it covers stand in its name, so that it need not be opened to be passed over."""

    path: Path
    number: int
    first: int
    last: int

    @classmethod
    def of(cls, path: Path) -> Batch:
        number, first, last = path.stem.split("_")
        return cls(path, int(number), int(first), int(last))

    def take(self, rows: Index) -> pl.DataFrame:
        with pa.memory_map(str(self.path)) as source:
            taken = pl.from_arrow(pa.ipc.open_file(source).read_all().take(pa.array(rows)))
            assert isinstance(taken, pl.DataFrame)
            return taken


@dataclass(frozen=True)
class Segments:
    """The horizon of all tables in one folder."""

    folder: Path

    def seen(self, place: Place, hashes: pl.Series, since: int) -> pl.DataFrame | None:
        home, needles = self._home(place), hashes.unique().sort().to_numpy()
        batches = {b.number: b for b in _batches(home) if b.last >= since}
        where = np.sort(np.concatenate([_find(_load(p), needles) for p in _indexes(home)] or [np.empty(0, np.uint64)]))
        numbers, starts = np.unique(where >> ROW_BITS, return_index=True)
        rows = np.split(where % 2**ROW_BITS, starts[1:])
        found = [batches[n].take(r) for n, r in zip(numbers.tolist(), rows, strict=False) if n in batches]
        return pl.concat(found).filter(pl.col("window") >= since) if found else None

    def keep(self, place: Place, rows: pl.DataFrame, before: int) -> None:
        home = self._home(place)
        if len(rows):
            home.mkdir(parents=True, exist_ok=True)
            _write(home, rows)
        useful = []
        for batch in _batches(home):
            if batch.last < before:
                batch.path.unlink()
            else:
                useful.append(batch.number)
        for path in _indexes(home):
            if _span(path)[1] < min(useful, default=NEVER):
                path.unlink()

    def _home(self, place: Place) -> Path:
        name, source = place
        return self.folder / f"{name}-{source}"


def _batches(home: Path) -> list[Batch]:
    return [Batch.of(p) for p in home.glob("*.arrow")]


def _span(path: Path) -> tuple[int, int]:
    """The first and the last batch of an index."""
    first, last = path.stem.split("_")
    return int(first), int(last)


def _indexes(home: Path) -> list[Path]:
    """By their batches; one that lies within another was merged into it by a process that was killed since."""
    kept: list[Path] = []
    for path in sorted(home.glob("*.npy"), key=lambda p: (_span(p)[0], -_span(p)[1])):
        if not kept or _span(path)[1] > _span(kept[-1])[1]:
            kept.append(path)
    return kept


def _load(path: Path) -> Index:
    index: Index = np.load(path, mmap_mode="r")
    return index


def _find(index: Index, needles: Index) -> Index:
    """Batch and row of each hash that is among the needles, which are sorted and distinct."""
    hashes, where = index
    start = np.searchsorted(hashes, needles, side="left")
    found = hashes[np.minimum(start, len(hashes) - 1)] == needles
    start, end = start[found], np.searchsorted(hashes, needles[found], side="right")
    length = end - start
    before = np.cumsum(length) - length
    hits: Index = where[np.repeat(start - before, length) + np.arange(length.sum())]
    return hits


def _write(home: Path, rows: pl.DataFrame) -> None:
    """Whole or not at all: a file counts once it has its name, and rows once an index has them."""
    used = [*(b.number for b in _batches(home)), *(_span(p)[1] for p in _indexes(home))]
    number = max(used, default=-1) + 1
    windows = rows["window"].to_numpy()
    path = home / f"{number}_{windows.min()}_{windows.max()}.arrow"
    aside = path.with_suffix(".writing")
    # one record batch, and strings in the layout that Arrow can take single rows of
    rows.write_ipc(aside, record_batch_size=len(rows), compat_level=pl.CompatLevel.oldest())
    os.replace(aside, path)
    hashes = rows["hash"].to_numpy()
    order = together(hashes)[0].astype(np.uint64)
    index = np.stack([hashes[order], np.uint64(number << ROW_BITS) + order])
    first, merged = number, []
    for older in reversed(_indexes(home)):
        theirs = _load(older)
        if not theirs.shape[1] <= index.shape[1] <= MERGED_ROWS:
            break
        index, first = _merge(theirs, index), _span(older)[0]
        merged.append(older)
    whole = home / f"{first}_{number}.npy"
    with aside.open("wb") as file:
        np.save(file, index)
    os.replace(aside, whole)
    for older in merged:
        older.unlink()


def _merge(a: Index, b: Index) -> Index:
    both: Index = np.concatenate([a, b], axis=1)
    order = both[0].argsort(kind="stable")  # of two runs in order it is a merge
    for column in both:
        column[:] = column[order]
    return both
