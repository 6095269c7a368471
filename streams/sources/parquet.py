"""A Parquet file enters, frames of its columns leave, row group after row group: as many as there are before damage.

It is read by pyarrow, which refuses what is damaged. polars' own reader asks for the memory that a damaged page says it
needs, 2^61 bytes say, and that ends the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from streams.problems import Exit, Problem
from streams.sources.files import Recording
from streams.sources.formats import NotOne

TOGETHER = 200_000  # rows
T = TypeVar("T")


class Table:
    """A file's shape, and its rows."""

    def __init__(self, source: BinaryIO) -> None:
        self.file = _step(lambda: pq.ParquetFile(source, coerce_int96_timestamp_unit="us"))  # in ns 9999 would be 1816
        self.shape = _step(lambda: _frame(self.file.schema_arrow.empty_table()).schema)

    @property
    def rows(self) -> int:
        """As many as it says that it has."""
        return int(self.file.metadata.num_rows)

    def frames(self, columns: Sequence[str], skip: int = 0) -> Iterator[pl.DataFrame]:
        """Of these columns, from row number `skip` on; NotOne where no more can be read."""
        row = 0
        for group in range(self.file.num_row_groups):
            end = row + self.file.metadata.row_group(group).num_rows
            for frame in self._group(group, columns) if end > skip else ():
                if len(fresh := frame[max(0, skip - row) :]):
                    yield fresh
                row += len(frame)
            if skip < end != row:
                raise NotOne(f"{end - row:,} rows are missing in row group {group}")
            row = end

    def _group(self, number: int, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """A frame without columns would have no rows."""
        wanted = [*columns] or self.shape.names()[:1]
        batches = _step(lambda: self.file.iter_batches(TOGETHER, row_groups=[number], columns=wanted))
        while (batch := _step(lambda: next(batches, None))) is not None:
            yield _step(lambda: _frame(batch))


def opened(recording: Recording) -> Table:
    try:
        return Table(recording.open_whole())
    except NotOne as error:
        reason = f"not a whole Parquet file: {error}"
        raise Problem(recording.file.name, reason, "write it again, or leave it out", Exit.NOTHING) from None


def _frame(rows: pa.Table | pa.RecordBatch) -> pl.DataFrame:
    """polars trusts what it is given; texts that are none would be let through."""
    rows.validate(full=True)
    kinds = [_type(f.type) for f in rows.schema]
    if kinds != rows.schema.types:
        rows = rows.cast(pa.schema(zip(rows.schema.names, kinds, strict=True)))
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _type(kind: pa.DataType) -> pa.DataType:
    """What polars can hold. A map is a list of its pairs, for of a key that comes twice polars' own keeps one value."""
    if pa.types.is_map(kind):
        return pa.list_(pa.struct([("key", _type(kind.key_type)), ("value", _type(kind.item_type))]))
    if pa.types.is_struct(kind):
        parts = [(f.name, _type(f.type)) for f in kind]
        return kind if all(f.type == part for f, (_, part) in zip(kind, parts, strict=True)) else pa.struct(parts)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_type(kind.value_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _type(kind.value_type)
        return kind if inner == kind.value_type else pa.list_(inner)
    return pa.string() if pa.types.is_decimal256(kind) else kind


def _step(do: Callable[[], T]) -> T:
    """What is raised at damage has many names."""
    try:
        return do()
    except (Exception, pl.exceptions.PanicException) as error:
        raise NotOne((str(error) or "it ends too early").splitlines()[0]) from error
