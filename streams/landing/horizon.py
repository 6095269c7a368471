"""Rows that meet over many hours enter, those whose hash is asked for leave: sorted segments on disk, mapped not read.

A day of keys does not fit in memory, and hardly any of them is ever used again. Each closed batch becomes one Arrow
file: its rows as they came, and their 64-bit hashes sorted beside the rows' numbers. Looking up touches the hashes; of
the rows only those that are found. The folder is the whole state, so another process continues where one ended.
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

Hashes = npt.NDArray[np.uint64]
ROW = "row of hash"  # no table has a column of that name


@dataclass(frozen=True)
class Segment:
    """One file; the windows it covers stand in its name, so that it need not be opened to be passed over."""

    path: Path
    number: int
    first: int
    last: int

    @classmethod
    def of(cls, path: Path) -> Segment:
        number, first, last = path.stem.split("_")
        return cls(path, int(number), int(first), int(last))

    def find(self, needles: Hashes) -> pl.DataFrame:
        """The rows of the sorted, distinct needles."""
        with pa.memory_map(str(self.path)) as source:
            table = pa.ipc.open_file(source).read_all()
            hashes = table["hash"].chunk(0).to_numpy(zero_copy_only=True)
            start = np.searchsorted(hashes, needles, side="left")
            found = hashes[np.minimum(start, len(hashes) - 1)] == needles
            start, end = start[found], np.searchsorted(hashes, needles[found], side="right")
            at = _ranges(start, end)
            rows = table.drop_columns(["hash", ROW]).take(table[ROW].take(pa.array(at)))
            hits = pl.from_arrow(rows.append_column("hash", pa.array(hashes[at])))
            assert isinstance(hits, pl.DataFrame)
            return hits.select(n for n in table.column_names if n != ROW)


def _ranges(start: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """start[0] .. end[0]-1, start[1] .. end[1]-1, …"""
    length = end - start
    before = np.cumsum(length) - length
    return np.repeat(start - before, length) + np.arange(length.sum())


@dataclass(frozen=True)
class Segments:
    """The horizon of all tables in one folder."""

    folder: Path

    def seen(self, place: Place, hashes: pl.Series, since: int) -> pl.DataFrame | None:
        needles = hashes.unique().sort().to_numpy()
        found = [s.find(needles) for s in self._segments(place) if s.last >= since]
        return pl.concat(found).filter(pl.col("window") >= since) if found else None

    def keep(self, place: Place, rows: pl.DataFrame, before: int) -> None:
        segments = self._segments(place)
        if len(rows):
            self._write(place, segments[-1].number + 1 if segments else 0, rows)
        for segment in segments:
            if segment.last < before:
                segment.path.unlink()

    def _segments(self, place: Place) -> list[Segment]:
        return sorted((Segment.of(p) for p in self._home(place).glob("*.arrow")), key=lambda s: s.number)

    def _home(self, place: Place) -> Path:
        name, source = place
        return self.folder / f"{name}-{source}"

    def _write(self, place: Place, number: int, rows: pl.DataFrame) -> None:
        """Whole or not at all: a file counts once it has its name."""
        windows = rows["window"].to_numpy()
        path = self._home(place) / f"{number}_{windows.min()}_{windows.max()}.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        order = rows["hash"].arg_sort()
        segment = rows.with_columns(rows["hash"].gather(order), order.alias(ROW))
        aside = path.with_suffix(".writing")
        # one record batch, so that the hashes are one array; strings in the layout that can be taken from a mapped file
        segment.write_ipc(aside, record_batch_size=len(rows), compat_level=pl.CompatLevel.oldest())
        os.replace(aside, path)
