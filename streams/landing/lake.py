"""Placed chunks enter, Parquet parts leave: by stream and hour of arrival, never changed once they are written.

Which parts count is listed in the state's database; a part that no list names is left over from a killed run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import polars as pl

from detectors.events import LANDED
from detectors.windows import HOUR_US, coordinate, place

PART_ROWS = 250_000
LEFTOVER_S = 600  # replaced parts live this much longer, for readers who still have the old list


@dataclass(frozen=True)
class Part:
    """A file of one stream and hour; path is relative to the state folder; arrivals in µs."""

    stream: str
    path: str
    rows: int
    first_arrival: int
    last_arrival: int


@dataclass
class Writer:
    """Buffers placed rows by (stream, hour of arrival) and writes parts of about PART_ROWS."""

    state: Path
    parts: list[Part] = field(default_factory=list)
    _waiting: dict[tuple[str, int], list[pl.DataFrame]] = field(default_factory=dict)
    _rows: dict[tuple[str, int], int] = field(default_factory=dict)

    def add(self, stream: str, rows: pl.DataFrame) -> None:
        hours = (rows["arrival"].cast(pl.Int64) // HOUR_US).alias("hour")
        if not len(rows):
            return
        if hours.min() == hours.max():
            self._hold(stream, int(hours[0]), rows)
            return
        for (hour,), group in rows.with_columns(hours).partition_by("hour", as_dict=True, maintain_order=True).items():
            self._hold(stream, int(hour), group.drop("hour"))

    def _hold(self, stream: str, hour: int, rows: pl.DataFrame) -> None:
        key = (stream, hour)
        self._waiting.setdefault(key, []).append(rows)
        self._rows[key] = self._rows.get(key, 0) + len(rows)
        if self._rows[key] >= PART_ROWS:
            self._write(key)

    def close(self) -> list[Part]:
        for key in sorted(self._waiting):
            self._write(key)
        return self.parts

    def _write(self, key: tuple[str, int]) -> None:
        stream, hour = key
        rows = pl.concat(self._waiting.pop(key)).select(list(LANDED[stream]))
        del self._rows[key]
        self.parts.append(write_part(self.state, stream, hour, rows))


def write_part(state: Path, stream: str, hour: int, rows: pl.DataFrame) -> Part:
    """One part, whole or not at all: readers only learn of it from the list."""
    name = time.strftime("%Y-%m-%dT%H", time.gmtime(hour * 3600))
    path = Path("lake") / stream / f"{name}-{uuid4().hex[:12]}.parquet"
    whole = state / path
    whole.parent.mkdir(parents=True, exist_ok=True)
    rows.write_parquet(whole, compression="lz4", row_group_size=PART_ROWS, statistics=False)
    arrival = rows["arrival"].cast(pl.Int64)
    return Part(stream, str(path), len(rows), int(arrival.min()), int(arrival.max()))  # type: ignore[arg-type]


def read(state: Path, part: Part, columns: Sequence[str]) -> pl.DataFrame:
    return pl.read_parquet(state / part.path, columns=list(columns), glob=False)


def relabel(state: Path, part: Part, lateness_us: int) -> Part:
    """The same rows with their fate by another lateness, as a new part."""
    rows = pl.read_parquet(state / part.path, glob=False)
    again = rows["fate"] == "repeated"
    fate = pl.when(again).then(pl.lit("repeated")).otherwise("fate").alias("fate")
    placed = place(rows, part.stream, lateness_us).with_columns(fate)
    return write_part(state, part.stream, part.first_arrival // HOUR_US, placed.select(list(LANDED[part.stream])))


def mark_repeats(state: Path, parts: Sequence[Part]) -> list[Part]:
    """Of rows with one event_id the one with the smallest (arrival, coordinates) stays, the rest are repeated."""
    ids = []
    for i, part in enumerate(parts):
        rows = read(state, part, ["event_id", "arrival", "partition", "offset", "sub"]).with_row_index("row")
        coord = coordinate(part.stream).alias("coord")
        known = rows.filter(pl.col("event_id").is_not_null()).select("event_id", "arrival", coord, "row")
        if len(known):
            ids.append(known.with_columns(part=pl.lit(i), stream=pl.lit(part.stream)))
    if not ids:
        return list(parts)
    ordered = pl.concat(ids).sort("stream", "event_id", "arrival", "coord")
    extra = ordered.filter(~pl.struct("stream", "event_id").is_first_distinct()).select("part", "row")
    marked = list(parts)
    for (i,), rows in extra.partition_by("part", as_dict=True).items():
        part = parts[int(i)]
        frame = pl.read_parquet(state / part.path, glob=False).with_row_index("row")
        fate = (
            pl.when(pl.col("row").is_in(rows["row"].implode())).then(pl.lit("repeated")).otherwise("fate").alias("fate")
        )
        changed = frame.with_columns(fate).select(list(LANDED[part.stream]))
        if not changed["fate"].equals(frame["fate"]):
            marked[int(i)] = write_part(state, part.stream, part.first_arrival // HOUR_US, changed)
    return marked


def sweep(state: Path, listed: Iterable[str]) -> None:
    """Removes parts that no list names and that are too old for a reader to still have them open."""
    wanted, now = set(listed), time.time()
    for path in (state / "lake").rglob("*.parquet"):
        if str(path.relative_to(state)) not in wanted and now - path.stat().st_mtime > LEFTOVER_S:
            path.unlink()
