"""Placed rows enter, tables leave: what is measured, as a function of the *set* of rows.

A table's columns either add up (Sum, Low, High, Lowest), and then their merge is derived here and never written, or
rows meet under a key, and a `match` function says what each later member has to do with the earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from detectors.windows import WINDOW_US, window_of, windows

SPACE = ("environment", "tenant")  # prefix every key
WEIGHT = pl.col("weight")
Ints = npt.NDArray[np.int64]


class Column(Protocol):
    """A column that adds up: `first` over a group's rows, `again` over its partial tables, `last` over their result."""

    def first(self) -> pl.Expr: ...
    def again(self, name: str) -> pl.Expr: ...
    def last(self, name: str) -> pl.Expr: ...


class Plain:
    """What is whole once a group is aggregated."""

    def last(self, name: str) -> pl.Expr:
        return pl.col(name)


@dataclass(frozen=True)
class Sum(Plain):
    """The sum of an integer, or the number of rows where a condition holds; a row counts `weight` times."""

    of: pl.Expr = field(default_factory=lambda: pl.lit(True))
    weighted: bool = True

    def first(self) -> pl.Expr:
        amount = self.of.cast(pl.Int64)
        return (amount * WEIGHT if self.weighted else pl.when(WEIGHT > 0).then(amount)).sum()

    def again(self, name: str) -> pl.Expr:
        return pl.col(name).sum()


@dataclass(frozen=True)
class Low(Plain):
    """The smallest value."""

    of: pl.Expr

    def first(self) -> pl.Expr:
        return self.of.min()

    def again(self, name: str) -> pl.Expr:
        return pl.col(name).min()


@dataclass(frozen=True)
class High(Plain):
    """The largest value."""

    of: pl.Expr

    def first(self) -> pl.Expr:
        return self.of.max()

    def again(self, name: str) -> pl.Expr:
        return pl.col(name).max()


@dataclass(frozen=True)
class Lowest:
    """The n smallest values in ascending order, as a list. Lists are cut afterwards: far quicker than in the groups."""

    n: int
    of: pl.Expr

    def first(self) -> pl.Expr:
        return self.of

    def again(self, name: str) -> pl.Expr:
        return pl.col(name).list.explode()

    def last(self, name: str) -> pl.Expr:
        return pl.col(name).list.drop_nulls().list.sort().list.head(self.n)


Match = Callable[[pl.DataFrame], pl.DataFrame]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one stream. `project` gives columns that the stream does not have under that name."""

    stream: str
    where: pl.Expr = field(default_factory=lambda: pl.lit(True))
    project: dict[str, pl.Expr] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Meet(Rows):
    """Rows that meet under the key `on`; `match` sees them and those of `back_us` before, where there is company.

    match(rows) gets rows key by key, each sorted by (window, t, coord), with the columns SPACE, on, carry, t, coord,
    weight, window and `now` (True in the windows asked for), and gives rows with a window and the table's columns; it
    must look from a row of window w no further back than the window w - back_us.
    """

    on: tuple[str, ...]
    carry: tuple[str, ...] = ()
    back_us: int = 0
    match: Match

    @property
    def kept(self) -> list[str]:
        return [*SPACE, *self.on, *self.carry, "t", "coord", "weight", "window"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """clock: event (used and implausible rows, by event time) or arrival (all rows, by arrival). Windows of 10 s."""

    name: str
    clock: str = "event"
    key: tuple[str, ...]
    columns: dict[str, Column] | None = None
    sources: tuple[Rows, ...]

    @property
    def streams(self) -> set[str]:
        return {s.stream for s in self.sources}

    @property
    def back_us(self) -> int:
        return max((s.back_us for s in self.sources if isinstance(s, Meet)), default=0)

    @property
    def full_key(self) -> list[str]:
        return ["window", *SPACE, *self.key]

    def select(self, source: Rows, rows: pl.LazyFrame) -> pl.LazyFrame:
        """The rows of one source that this table is about, with their window."""
        clock = pl.col("t") if self.clock == "event" else pl.col("arrived")
        kept = rows if self.clock == "arrival" else rows.filter(pl.col("fate") != "late")
        return kept.filter(source.where).with_columns(window=window_of(clock), **source.project)

    def first(self, rows: pl.LazyFrame, by: Sequence[str] = ()) -> pl.LazyFrame:
        assert self.columns is not None
        grouped = rows.group_by([*self.full_key, *by]).agg(**{n: c.first() for n, c in self.columns.items()})
        return grouped.with_columns(**{n: c.last(n) for n, c in self.columns.items()})

    def merge(self, partials: pl.DataFrame) -> pl.DataFrame:
        """Partial tables of any batches, slices and producers to the table: sorted by its full key."""
        if self.columns is None:
            return partials.sort([*self.full_key, "coord"])
        grouped = partials.group_by(self.full_key).agg(**{n: c.again(n) for n, c in self.columns.items()})
        return grouped.with_columns(**{n: c.last(n) for n, c in self.columns.items()}).sort(self.full_key)


def company(rows: pl.DataFrame, on: tuple[str, ...]) -> pl.DataFrame:
    """Only the rows whose key somebody else has too: key by key, each in the order (window, t, coord).

    The hash of the key brings equals together, because integers are quick to sort; where keys share one, `on` decides.
    """
    key = [*SPACE, *on]
    some = rows.filter(pl.col("hash").is_duplicated()).sort("hash", "window", "t", "coord")
    runs = some.select(hashes=pl.col("hash").rle_id(), keys=pl.struct(key).rle_id())
    if not runs["hashes"].equals(runs["keys"].rename("hashes")):
        some = some.filter(pl.len().over(key) > 1).sort("hash", *key, "window", "t", "coord")
    return some.drop("hash")


@dataclass(frozen=True)
class Meeting:
    """For rows as `match` gets them: row i's partners are the rows first[i] .. i-1 (positions)."""

    group: Ints
    first: Ints
    at: Ints

    @property
    def has(self) -> npt.NDArray[np.bool_]:
        return self.first < self.at

    def before(self, values: Ints) -> Ints:
        """The sum of values over each row's partners."""
        total: Ints = np.concatenate([[0], np.cumsum(values)])
        return total[self.at] - total[self.first]

    def last(self, holds: npt.NDArray[np.bool_]) -> Ints:
        """The position of the latest partner for which it holds, or -1."""
        mine = np.where(holds, self.at, -1)
        seen = np.concatenate([[-1], np.maximum.accumulate(mine)[:-1]]) if len(mine) else mine
        return np.where(seen >= self.first, seen, -1)


def meeting(rows: pl.DataFrame, on: tuple[str, ...], back_us: int) -> Meeting:
    """Who meets whom: earlier rows of the same key, no more than back_us before in windows."""
    group = rows.select(pl.struct(*SPACE, *on).rle_id().cast(pl.Int64)).to_series().to_numpy()
    index = rows["window"].to_numpy() // WINDOW_US
    at = np.arange(len(rows), dtype=np.int64)
    span = int(index.max()) + windows(back_us) + 2 if len(rows) else 1
    place = group * span + index
    start = np.searchsorted(group, group, side="left")
    first = np.searchsorted(place, place - windows(back_us), side="left")
    return Meeting(group, np.maximum(first, start), at)
