"""Which fields are filled enters; what each detector can see of it leaves: it runs, sees less, or is blind, and why.

What would unlock it stands with the formats, in `streams/sources/shipped/*.toml`: the line of nginx's, Envoy's or
OpenTelemetry's configuration that logs the field.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from detectors.detector import Detector
from detectors.events import SCHEMA
from streams.sources.fieldmap import shipped

Filled = Mapping[tuple[str, str], Sequence[int]]  # (stream, field) to rows, filled
OWN = "own events"  # written with the names of the schema
MAPPED = "a map of your own"


def filled_fields(stream: str, rows: pl.DataFrame) -> Iterator[tuple[str, int, int]]:
    """(field, rows, how many fill it) of landed rows; an arrival that event time stands in for is none, nor is a time
    that is a record's number."""
    told = pl.when("told").then("arrival").alias("arrival")
    timed = pl.when(pl.col("told").is_not_null()).then("timestamp").alias("timestamp")
    known = rows.with_columns(told, timed).select(list(SCHEMA[stream]))
    for field, nulls in known.null_count().row(0, named=True).items():
        yield field, len(rows), len(rows) - nulls


@dataclass(frozen=True)
class Seen:
    """What a detector can see. missing: what it is blind without; lacks: fields that would show more, and what is so
    without them; streams: where they are looked for."""

    detector: str
    streams: tuple[str, ...]
    missing: tuple[str, ...] = ()
    lacks: tuple[tuple[str, str], ...] = ()

    @property
    def state(self) -> str:
        return "blind" if self.missing else "degraded" if self.lacks else "runs"

    @property
    def wanted(self) -> list[str]:
        """Fields that would change it, "a or b" where one of them will do."""
        return [*self.missing] if self.missing else [field for field, _ in self.lacks]


def seen(detector: Detector, filled: Filled, measured: Callable[[str], bool] = lambda table: True) -> Seen:
    """Of these fields. measured: whether a table has any row."""
    streams = tuple(sorted(detector.reads.streams))
    there = [s for s in streams if any(n for (of, _), (n, _) in filled.items() if of == s)]

    def has(field: str) -> bool:
        return any(filled.get((s, n), (0, 0))[1] for s in there for n in field.split(" or "))

    timed = not there or any(filled.get((s, "timestamp"), (0, 1))[1] for s in there)
    needs = detector.needs if timed or detector.by_order else ("timestamp", *detector.needs)
    missing = tuple(n for n in needs if not has(n)) if there else streams
    if not missing and detector.nothing_without and not measured(detector.reads.name):
        missing = detector.nothing_without
    return Seen(detector.name, streams, missing, tuple(lack for lack in detector.lacks if not has(lack[0])))


# ---- what would unlock it -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unlock:
    """How a field gets logged: the line of a format's configuration. Where the format is one's own there is none."""

    field: str
    format: str
    line: str

    @property
    def words(self) -> str:
        return f"with {self.format}: {self.line}"


def format_of(read_by: str) -> str:
    """What a recording was read as, from the digest of its map; see decode.Reading.by."""
    digest, _, _ = read_by.partition("+")
    return {m.digest: m.name for m in shipped()}.get(digest, MAPPED) if digest else OWN


def unlocks(every: Sequence[Seen], formats: Mapping[str, Collection[str]]) -> list[Unlock]:
    """For each field that is wanted, of each format that is in use in its stream, one line, in their order."""
    found = {}
    for one in every:
        used = dict.fromkeys(f for s in one.streams for f in sorted(formats.get(s, ())))
        for wanted in one.wanted:
            for form in used:
                if unlock := _unlock(wanted, form):
                    found[unlock.field, form] = unlock
    return [*found.values()]


def _unlock(wanted: str, form: str) -> Unlock | None:
    """By the first of its alternatives that the format can log."""
    fields = [f for f in wanted.split(" or ") if any(f in shape for shape in SCHEMA.values())]
    if form in (OWN, MAPPED):
        return Unlock(fields[0], form, "") if fields else None
    lines = {m.name: m.unlock for m in shipped()}.get(form, {})
    return next((Unlock(f, form, lines[f]) for f in fields if f in lines), None)
