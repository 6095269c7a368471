"""Columns of a log that nobody described enter, a draft of its field map leaves: what each field may be, and why.

A field is chosen by its name and by what it holds: a rule is tried on the sample by the code that will read the whole
log, and one of a field that is not required is only in the draft if it refuses nothing. What a person has to decide, or
to check since names and values can't tell it, is a todo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import polars as pl

from detectors.events import INSTANT, SCHEMA, STREAMS, Decoded, Field, fields
from streams.sources.choices import BY_VALUE, choice_of
from streams.sources.columns import Choice, Column
from streams.sources.fieldmap import FieldMap, Given, Rule
from streams.sources.mapping import about_of, held_in, mapped
from streams.sources.shapes import Shape
from streams.sources.together import add_from_others
from streams.sources.words import NOTHING, Match, matched

TELLING = {  # fields that only a record of this stream has, and how much each says
    "requests": dict.fromkeys(SCHEMA["requests"].keys() - SCHEMA["write_log"].keys() | {"service_name"}, 1),
    "write_log": dict.fromkeys(SCHEMA["write_log"].keys() - SCHEMA["requests"].keys(), 1),
    "heartbeats": {"client_time": 2, "server_time": 2, "observer": 1, "reply_sent": 1, "reply_received": 1},
    "signals": {"subject": 2, "kind": 2, "name": 2},
}
ONE_OF = {"write_log": {"entity_id", "version", "base_version", "vector_clock"}}  # without one of them it is none


@dataclass(frozen=True)
class Draft:
    """A field map to be checked by a person.

    missing: required fields that nothing looks like. doubts: why a path was not taken though it is named so. tried:
    what the map makes of the sample; None where it is not whole.
    """

    stream: str
    shape: Shape
    nothing: list[str]
    columns: dict[str, Column]
    choices: dict[str, Choice]
    missing: list[str]
    doubts: dict[str, str]
    tried: Decoded | None = None

    @property
    def map(self) -> FieldMap:
        named: dict[str, Given] = {name: [*choice.rules] for name, choice in self.choices.items()}
        stream: Any = self.stream
        given = FieldMap(stream=stream, nothing=self.nothing, fields=named)
        read = self.shape
        return msgspec.structs.replace(given, format=read.format, members=read.members, line=read.line)

    @property
    def score(self) -> int:
        """How much in it tells of its stream."""
        if not self.choices.keys() & ONE_OF.get(self.stream, self.choices.keys()):
            return 0
        return sum(much for name, much in TELLING[self.stream].items() if name in self.choices)

    @property
    def unused(self) -> list[Column]:
        taken = {p for c in self.choices.values() for r in c.rules for p in [*r.paths, r.parent]}
        return [c for path, c in self.columns.items() if path not in taken and c.values]

    @property
    def usable(self) -> bool:
        """Whether it makes any row of the sample."""
        return self.tried is not None and len(self.tried.events) > 0


def infer(sample: pl.DataFrame, paths: Sequence[str], shape: Shape) -> Draft:
    """sample: the columns of these paths, as mapping.columns_of gives them."""
    seen = {v for p in paths for v in sample[held_in(p)].unique().to_list()}
    nothing = [word for word in NOTHING if word in seen]
    said = about_of(FieldMap(stream="requests", fields={p: p for p in paths}, nothing=nothing), sample)
    columns = {p: Column(p, said[held_in(p)]) for p in paths}
    drafts = [_Search(stream, columns, said).draft(shape, nothing) for stream in STREAMS]
    eligible = [d for d in drafts if d.stream in ("requests", "write_log") or len(d.missing) == 0]
    best = max(eligible, key=lambda d: (d.score, not d.missing))
    return best if best.missing else replace(best, tried=mapped(best.map, about_of(best.map, sample)))


class _Search:
    """Of one stream the fields that have a column, the required ones first."""

    def __init__(self, stream: str, columns: Mapping[str, Column], sample: pl.DataFrame) -> None:
        self.stream, self.every, self.sample = stream, columns, sample
        self.columns = {p: c for p, c in columns.items() if c.values}
        self.choices: dict[str, Choice] = {}
        self.doubts: dict[str, str] = {}

    def draft(self, shape: Shape, nothing: list[str]) -> Draft:
        known = fields(self.stream)
        for one in sorted(known, key=lambda f: not f.required):
            self._look_for(one)
        add_from_others(self.stream, self.choices, self.columns)
        missing = [f.name for f in known if f.required and f.name not in self.choices]
        order = {f.name: self.choices[f.name] for f in known if f.name in self.choices}
        return Draft(self.stream, shape, nothing, {**self.every}, order, missing, self.doubts)

    def _look_for(self, one: Field) -> None:
        taken = {c.path for c in self.choices.values()}
        named = ((matched(one.name, path), c) for path, c in self.columns.items() if path not in taken)
        for match, column in sorted(((m, c) for m, c in named if m), key=lambda pair: pair[0].rank):
            found = self._judged(one, column, match)
            if isinstance(found, Choice):
                self.choices[one.name] = found
                return
            self.doubts.setdefault(column.path, f"named as {one.name} is, but {found}")
        if by_value := BY_VALUE.get(one.name):
            free = (c for path, c in self.columns.items() if path not in taken)
            if told := next(filter(None, map(by_value, free)), None):
                self.choices[one.name] = told

    def _judged(self, one: Field, column: Column, match: Match) -> Choice | str:
        """The choice, or what is wrong with it."""
        found = choice_of(one, column, match)
        if isinstance(found, str) or (one.required and one.dtype == INSTANT):
            return found
        wrong = self._refused(one, found.rules)
        return wrong or replace(found, why=[f"named as {one.name} is", *found.why])

    def _refused(self, one: Field, rules: list[Rule]) -> str:
        """What the code that will read the log says of a rule, tried on the rows that have a value."""
        others: dict[str, Any] = {
            f.name: Rule(value="2026-01-01T00:00:00Z" if f.dtype == INSTANT else (*f.values, "x")[0])
            for f in fields(self.stream)
            if f.required
        }
        given = FieldMap(stream=self.stream, fields={**others, one.name: [*rules]})  # type: ignore[arg-type]
        rows = self.sample.filter(pl.any_horizontal(pl.col(held_in(p)).is_not_null() for r in rules for p in r.paths))
        rejects = mapped(given, rows).rejects
        if rejects.is_empty():
            return ""
        reason, raw = rejects.row(0, named=True)["reason"], rejects.row(0, named=True)["raw"]
        return f"{len(rejects):,} of {len(rows):,} values are not ({reason}): {raw}"
