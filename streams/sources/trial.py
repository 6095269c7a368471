"""A file and a field map enter, what the map makes of it leaves: its first rows, all rejects with their lines, sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatch
from typing import Any

import polars as pl

from detectors.events import INSTANT, SCHEMA
from streams.privacy import Privacy
from streams.sources.decode import Reading, chunks, lines_of
from streams.sources.fieldmap import FieldMap
from streams.sources.files import File, Recording

ROWS = 10
REJECT = {"line": pl.Int64, "field": pl.String, "path": pl.String, "reason": pl.String, "raw": pl.String}


@dataclass(frozen=True)
class Trial:
    """rows: the first. rejects: all, see REJECT; the line is that of the record, of Parquet the row. filled: by field
    of the map how many rows have a value. times: of the first field that is one, from when to when. notes: what else a
    replay of this file with this map would meet."""

    rows: pl.DataFrame
    rejects: pl.DataFrame
    read: int
    usable: int
    empty: int
    filled: dict[str, int]
    times: tuple[datetime, datetime] | None
    notes: list[str]

    @property
    def counts(self) -> dict[str, int]:
        return {"read": self.read, "usable": self.usable, "rejected": len(self.rejects), "empty": self.empty}


def tried(file: File, given: FieldMap, hidden: Privacy | None = None) -> Trial:
    named, recording = [n for n in given.rules if not (given.ordered and n == "timestamp")], Recording(file)
    rows = pl.DataFrame(schema={n: SCHEMA[given.stream][n] for n in named})
    rejects, read, empty, spans = [], 0, 0, list[datetime]()
    filled = dict.fromkeys(named, 0)
    time = next((n for n, kind in SCHEMA[given.stream].items() if kind == INSTANT and n in named), None)
    usable = 0
    for count, decoded in chunks(recording, Reading(given.stream, given, hidden)):
        some = decoded.events.select(named)
        read, empty, usable = read + count, empty + decoded.tombstones, usable + len(some)
        rows = rows if len(rows) >= ROWS else pl.concat([rows, some.head(ROWS - len(rows))])
        filled = {n: filled[n] + some[n].count() for n in named}
        rejects.append(decoded.rejects)
        spans += _ends(some[time]) if time else []
    times = (min(spans), max(spans)) if spans else None
    every = _with_lines(file, given, rejects)
    return Trial(rows, every, read, usable, empty, filled, times, [*_notes(file, given, recording)])


def _ends(times: Any) -> list[datetime]:
    return [times.min(), times.max()] if len(times) else []


def _with_lines(file: File, given: FieldMap, rejects: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """A reject names its field as `field (from path)`."""
    if not (every := [f for f in rejects if len(f)]):
        return pl.DataFrame(schema=REJECT)
    whole = pl.concat(every).sort("offset", "sub", maintain_order=True)
    numbers = whole["offset"].to_list()
    lines = {n: n + 1 for n in numbers} if file.format in ("parquet", "avro") else lines_of(file, given, {*numbers})
    parts = whole["field"].str.extract_groups(r"^(?<field>.*?)(?: \(from (?<path>.*)\))?$").struct.unnest()
    return whole.select(
        pl.Series("line", [lines.get(n) for n in numbers], dtype=pl.Int64),
        parts["field"],
        parts["path"].fill_null(""),
        "reason",
        "raw",
    )


def _notes(file: File, given: FieldMap, recording: Recording) -> Iterator[str]:
    if recording.broken:
        yield f"{recording.broken}; all records before were read"
    if not fnmatch(file.name, given.files):
        yield f'the map is for files = "{given.files}": a replay reads {file.name} without it'
