"""Texts of a sample at one path enter, what they look like leaves: how many, which, and the times that they can be."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

import polars as pl

from detectors.events import INSTANT
from streams.sources.fieldmap import Rule
from streams.sources.mapping import held_in, value_of
from streams.sources.words import Unit

UNITS: tuple[Unit, ...] = ("s", "ms", "us", "ns")
FIRST, LAST = datetime(2000, 1, 1), datetime(2100, 1, 1)  # a number outside these years is no time
SHOWN = 32  # characters of a value
FORMATS = {  # texts of times that need a format, and whether it says the zone
    "%d/%b/%Y:%H:%M:%S %z": True,
    "%a, %d %b %Y %H:%M:%S GMT": True,
    "%a, %d %b %Y %H:%M:%S %z": True,
    "%Y-%m-%d %H:%M:%S%.f %z": True,
    "%Y%m%dT%H%M%SZ": True,
    "%Y-%m-%d %H:%M:%S,%3f": False,
    "%Y/%m/%d %H:%M:%S%.f": False,
    "%d.%m.%Y %H:%M:%S%.f": False,
    "%d/%m/%Y %H:%M:%S%.f": False,
    "%m/%d/%Y %H:%M:%S%.f": False,
    "%a %b %e %H:%M:%S %Y": False,
    "%d %b %Y %H:%M:%S%.f": False,
}


@dataclass(frozen=True)
class Column:
    """What a sample holds at one path: its texts, without those that say nothing."""

    path: str
    texts: pl.Series

    @cached_property
    def values(self) -> list[str]:
        return self.texts.drop_nulls().to_list()

    @cached_property
    def counts(self) -> Counter[str]:
        return Counter(self.values)

    @property
    def share(self) -> str:
        """Of the rows that have it."""
        part = "all" if len(self.values) == len(self.texts) else f"{len(self.values):,} of"
        return f"in {part} {len(self.texts):,} rows"

    @cached_property
    def times(self) -> Times | None:
        """How most of its values can be read as times."""
        return _times(self) if self.values else None

    def times_of(self, most: float) -> Times | None:
        """The same, if that is this share of its values or more."""
        return self.times if self.times and self.times.read >= most * len(self.values) else None

    def all_match(self, pattern: re.Pattern[str]) -> bool:
        return all(map(pattern.fullmatch, self.counts))

    def some(self, most: int = 3) -> str:
        """Its most frequent values."""
        rest = ["…"] if len(self.counts) > most else []
        return ", ".join([*(_short(value) for value, _ in self.counts.most_common(most)), *rest])

    def counted(self, most: int = 8) -> str:
        """The same, each with how often it is seen."""
        rest = len(self.counts) - most
        shown = ", ".join(f"{_short(value)} ({n:,})" for value, n in self.counts.most_common(most))
        return "seen: " + shown + (f" and {rest:,} others" if rest > 0 else "")


def _short(value: str) -> str:
    return value if len(value) <= SHOWN else value[:SHOWN] + "…"


@dataclass(frozen=True)
class Choice:
    """Rules for a field, why they were chosen, and what only a person can tell."""

    path: str
    rules: list[Rule]
    why: list[str]
    todo: list[str] = field(default_factory=list)


class Times(NamedTuple):
    """How a column is read as times: by which rule, how many of its values, from when to when."""

    rule: Rule
    read: int
    first: datetime
    last: datetime
    others: list[str]  # formats that read the same texts as other times


def _attempts(path: str) -> Iterator[Rule]:
    yield from (Rule(source=path, unit=unit) for unit in UNITS)
    yield Rule(source=path)
    yield Rule(source=path, zone="UTC")
    yield from (Rule(source=path, format=f, zone="" if "%z" in f else "UTC") for f in FORMATS)


def _times(column: Column) -> Times | None:
    """By the first of the rules that read most of its values as times of our years."""
    if not any(sum(map(str.isdigit, v)) >= 6 for v in column.values[:20]):
        return None
    rules = [*_attempts(column.path)]
    texts = column.texts.drop_nulls().to_frame(held_in(column.path))
    read = texts.select(value_of(rule, "timestamp", INSTANT).alias(str(i)) for i, rule in enumerate(rules))
    read = read.select(
        pl.when(pl.all().dt.replace_time_zone(None).is_between(FIRST, LAST, closed="left")).then(pl.all())
    )
    counts = [read[str(i)].count() for i in range(len(rules))]
    best = counts.index(max(counts))
    if not counts[best]:
        return None
    times: Any = read[str(best)]
    whole = [i for i, n in enumerate(counts) if n == counts[best] and rules[best].format and rules[i].format]
    others = [rules[i].format for i in whole if i != best and not read[str(i)].equals(times)]
    return Times(rules[best], counts[best], times.min(), times.max(), others)
