"""A query's answer enters; a table for eyes, CSV or one JSON object a line leaves."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from streams.problems import Exit, Problem

if TYPE_CHECKING:
    import pyarrow as pa

ON_SCREEN = 200  # rows; more than that is a file, not an answer to read
NUMBERS = (int, float)
Form = Literal["table", "csv", "json"]
ENCODER = msgspec.json.Encoder(enc_hook=str, decimal_format="number")


def lines(answer: pa.Table, form: Form) -> Iterator[str]:
    """CSV with a head, or JSON; every row, every value exact."""
    if form == "csv":
        yield from comma_separated(answer.column_names, _rows(answer))
        return
    names = _distinct(answer.column_names)
    for row in _rows(answer):
        yield ENCODER.encode(dict(zip(names, row, strict=True))).decode()


def comma_separated(names: Sequence[str], rows: Iterator[Sequence[Any]]) -> Iterator[str]:
    yield _line(names)
    for row in rows:
        yield _line([_exact(v) for v in row])


def _rows(answer: pa.Table) -> Iterator[Sequence[Any]]:
    """By position: two columns of an answer may have one name."""
    for batch in answer.to_batches():
        columns = [_values(name, c) for name, c in zip(batch.schema.names, batch.columns, strict=True)]
        yield from zip(*columns, strict=True)


def _values(name: str, column: pa.Array) -> list[Any]:
    try:
        return [_plain(v, column.type) for v in column.to_pylist()]
    except OverflowError as error:
        reason = f"column {name} has a time before the year 1, after 9999, or infinite"
        raise Problem("sql", reason, f"ask for it as text: CAST({name} AS VARCHAR)", Exit.USAGE) from error


def _distinct(names: Sequence[str]) -> list[str]:
    """a, a_2, a_3: an object can hold a name but once."""
    taken: list[str] = []
    for name in names:
        others = (f"{name}_{i}" for i in count(2))
        taken.append(name if name not in taken else next(n for n in others if n not in taken and n not in names))
    return taken


def _plain(value: Any, kind: pa.DataType) -> Any:
    """Maps, which Arrow gives as pairs, as objects; a key that is no text is written as JSON."""
    from pyarrow import types

    if value is None or not types.is_nested(kind):
        return value
    if types.is_map(kind):
        pairs = [(k if isinstance(k, str) else _json(_plain(k, kind.key_type)), v) for k, v in value]
        return {k: _plain(v, kind.item_type) for k, v in pairs}
    if types.is_struct(kind):
        return {f.name: _plain(value[f.name], f.type) for f in kind}
    return [_plain(v, kind.value_type) for v in value]


def _json(value: Any) -> str:
    return ENCODER.encode(value).decode()


def _line(cells: Sequence[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(cells)  # it quotes what its line end is made of
    return out.getvalue().removesuffix("\r\n")


def _exact(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return _json(value) if isinstance(value, list | dict) else value


def table(answer: pa.Table, ascii_only: bool) -> Iterator[str]:
    """For eyes: the first rows, and how many there are."""
    yield from grid(answer.column_names, [*_rows(answer.slice(0, ON_SCREEN))], ascii_only)
    total = answer.num_rows
    more = f" (the first {ON_SCREEN}; all: --csv)" if total > ON_SCREEN else ""
    yield f"{total:,} row{'' if total == 1 else 's'}{more}"


def grid(names: Sequence[str], rows: Sequence[Sequence[Any]], ascii_only: bool) -> Iterator[str]:
    """Rows under the names of their columns."""
    from rich.box import ASCII, SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=ASCII if ascii_only else SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(names):
        numeric = any(isinstance(r[i], NUMBERS) and not isinstance(r[i], bool) for r in rows)
        drawn.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*(_cell(v) for v in row))
    out = io.StringIO()
    Console(file=out, width=10_000, markup=False, highlight=False, color_system=None).print(drawn)
    yield from (line.rstrip() for line in out.getvalue().splitlines() if line.strip())


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case datetime():
            text = f"{value:%Y-%m-%d %H:%M:%S.%f}"
            return text.removesuffix("000").removesuffix(".000")
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
        case list() | dict():
            return _json(value)
        case _:
            return str(value)
