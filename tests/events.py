"""Random events of every stream, as hypothesis draws them: as values, as JSON, and as typed columns."""

from __future__ import annotations

from typing import Any

import msgspec
import polars as pl
from hypothesis import strategies as st

from detectors.events import CLOCK, EARLIEST_US, INSTANT, LATEST_US, MAX_INT, Field, fields

Row = dict[str, Any]  # field to value; times are µs since 1970
texts = st.text(max_size=8)
counts = st.integers(0, MAX_INT)


def values(field: Field) -> st.SearchStrategy[Any]:
    if field.values:
        return st.sampled_from(field.values)
    if field.dtype == INSTANT:
        return st.integers(EARLIEST_US, LATEST_US)
    if field.dtype == CLOCK:
        return st.dictionaries(texts, counts, max_size=4)
    if field.dtype == pl.Boolean:
        return st.booleans()
    if field.dtype == pl.Int64:
        return st.integers(int(field.ge or 0), MAX_INT if field.le is None else int(field.le))
    if field.dtype == pl.Float64:
        low, high = (field.ge, field.le) if field.le is not None else (-1e300, 1e300)
        return st.floats(low, high, allow_nan=False)
    return texts


def rows(stream: str) -> st.SearchStrategy[list[Row]]:
    required = {f.name: values(f) for f in fields(stream) if f.required}
    optional = {f.name: values(f) for f in fields(stream) if not f.required}
    return st.lists(st.fixed_dictionaries(required, optional=optional), min_size=1, max_size=5)


def rfc3339(us: int) -> str:
    return str(pl.select(pl.lit(us).cast(INSTANT).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")).item())


def as_json(stream: str, row: Row) -> bytes:
    times = {f.name for f in fields(stream) if f.dtype == INSTANT}
    return msgspec.json.encode({n: rfc3339(v) if n in times else v for n, v in row.items()})


def as_columns(stream: str, some: list[Row]) -> pl.DataFrame:
    """Typed columns as a Parquet file holds them, with offset and sub; maps in the order they were drawn."""
    columns = {}
    for f in fields(stream):
        cells = [row.get(f.name) for row in some]
        if f.dtype == CLOCK:
            cells = [None if c is None else [{"key": k, "value": v} for k, v in c.items()] for c in cells]
        if f.dtype == INSTANT:
            columns[f.name] = pl.Series(f.name, cells, dtype=pl.Int64).cast(INSTANT)
        else:
            columns[f.name] = pl.Series(f.name, cells, dtype=f.dtype)
    numbers = pl.int_range(len(some), dtype=pl.Int64, eager=True)
    return pl.DataFrame(columns).with_columns(offset=numbers, sub=pl.lit(0, dtype=pl.Int64))
