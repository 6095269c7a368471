"""A file enters, its first events leave as columns of texts by path: all that a field map could name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import polars as pl

from streams.problems import Exit, Problem
from streams.settings import private
from streams.sources.decode import first_lines, refuse_binary
from streams.sources.files import File, Recording
from streams.sources.formats import Cells, NotOne, Paths, Unfold, Unfolded, of_file, of_json, of_text, paths_of, quoted
from streams.sources.infer import Draft, infer
from streams.sources.mapping import column_text, columns_of
from streams.sources.shapes import Kind, Shape, nearest, shape_of
from streams.sources.words import matched

EVENTS = 5_000
READ = 0.5  # of the records must be of the format that the first of them look like
LOOKED_AT, LISTS, LISTS_DEEP = 10, 5, 3  # documents, lists of objects in them, and how far down


class Sample(NamedTuple):
    """The first events of a file.

    columns: as mapping.columns_of gives them for these paths.
    unread: how many records are not of its format. whole: whether it holds no more events.
    """

    columns: pl.DataFrame
    paths: list[str]
    shape: Shape
    unread: int
    whole: bool


def drafted(file: File) -> tuple[Sample, Draft]:
    """A draft of its map; where the records make no row and hold lists of objects, of the first list that does."""
    first = None
    for sample in _samples(file):
        draft = infer(sample.columns, sample.paths, sample.shape)
        first = first or (sample, draft)
        if draft.usable:
            return sample, draft
    assert first, "a file that gives no sample is a problem"
    return first


def _samples(file: File) -> Iterator[Sample]:
    if file.format == "parquet":
        yield _of_parquet(file)
        return
    first = first_lines(file)
    refuse_binary(file)
    if text := shape_of([*islice(_records(file, "text"), EVENTS)]):
        yield _columns(_read(file, of_text(text.line), "text"), text)
        return
    if cells := Cells.of(first[0]):
        yield _columns(_read(file, cells.unfold, "csv"), Shape("csv"))
        return
    found = _read(file, of_json(), "json")
    yield _columns(found, Shape())
    for members in _lists(found.events):
        yield _columns(_read(file, of_json(members), "json"), Shape(members=members))


def _read(file: File, unfold: Unfold, format_: Kind) -> Unfolded:
    """The first events, or a problem where most records are of another format."""
    records = [*islice(_records(file, format_), EVENTS + 1)]
    _, found = of_file(unfold, records)
    if not found.events or len(found.bad) > (1 - READ) * len(records):
        _, _, reason, _, raw = found.bad[0] if found.bad else (0, 0, "no record holds an event", "", "")
        kind = "JSON, and its first line is no header of CSV" if format_ == "json" else "CSV"
        most = f"{len(found.bad):,} of its first {len(records):,} records are no {kind} ({reason})"
        text = nearest([*islice(_records(file, "text"), EVENTS)])
        shown = f": {raw[:60]}" if private() is None else ""
        raise Problem(file.name, f"{most}; {text}{shown}" if found.bad else reason, TEXT, Exit.NOTHING)
    if not any(isinstance(e, dict) for e in found.events):
        raise Problem(file.name, "its records are no objects, so no field has a name", TEXT, Exit.NOTHING)
    return found


TEXT = """for lines of text write a map with format = "text" and line = '(?P<name>…) …', a regular expression"""


def _records(file: File, format_: Kind) -> Iterator[bytes]:
    lines = Recording(file).lines()
    records = (record for block in (quoted(lines) if format_ == "csv" else lines) for record in block)
    return islice(records, 1 if format_ == "csv" else 0, None)


def _columns(found: Unfolded, shape: Shape) -> Sample:
    """Of the events that are objects."""
    kept = [i for i, event in enumerate(found.events[:EVENTS]) if isinstance(event, dict)]
    events = Unfolded([found.events[i] for i in kept], [found.offsets[i] for i in kept], [found.subs[i] for i in kept])
    paths, whole = paths_of(events.events, _is_one_value), len(found.events) <= EVENTS
    return Sample(columns_of(Paths(paths), events), paths, shape, len(found.bad), whole)


def _is_one_value(path: str) -> bool:
    return matched("vector_clock", path) is not None


def _lists(events: Sequence[Any]) -> list[str]:
    """Where the first documents hold lists of objects."""

    def inside(value: Any, path: str, depth: int) -> Iterator[str]:
        if isinstance(value, list) and any(isinstance(one, dict) for one in value):
            yield path
        elif isinstance(value, dict) and depth < LISTS_DEEP:
            for key, other in value.items():
                yield from inside(other, f"{path}.{key}" if path else key, depth + 1)

    every = Counter(path for event in events[:LOOKED_AT] for path in inside(event, "", 0))
    reached = {p for e in events[:LOOKED_AT] for p, value in Paths(every).of(e).items() if isinstance(value, list)}
    return [*islice((path for path, _ in every.most_common() if path in reached), LISTS)]


def _of_parquet(file: File) -> Sample:
    from streams.sources.parquet import opened

    table = opened(Recording(file))
    paths = [path for name, kind in table.shape.items() for path in _inside(name, kind)]
    found, reason = list[pl.DataFrame](), "holds no rows"
    try:
        for frame in table.frames(table.shape.names()):
            found.append(frame)
            if sum(map(len, found)) > EVENTS:
                break
    except NotOne as error:
        reason = f"damaged: {error}"
    if not found:
        raise Problem(file.name, reason, "leave it out, or wait until it has some", Exit.NOTHING)
    some = pl.concat(found).head(EVENTS + 1).select(column_text(p, table.shape) for p in paths)
    numbered = some.head(EVENTS).with_columns(offset=pl.int_range(pl.len(), dtype=pl.Int64), sub=pl.lit(0, pl.Int64))
    return Sample(numbered, paths, Shape(), 0, len(some) <= EVENTS)


def _inside(path: str, kind: Any) -> Iterator[str]:
    if not isinstance(kind, pl.Struct) or _is_one_value(path):
        yield path
        return
    for field in kind.fields:
        yield from _inside(f"{path}.{field.name}", field.dtype)
