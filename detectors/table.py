"""Placed rows enter, tables leave: what is measured, as a function of the *set* of rows.

A table's columns either add up (Sum, Low, High, Lowest), and then their merge is derived here and never written, or
rows meet under a key, and a `match` function says what each later member has to do with the earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import polars_hash  # noqa: F401  (registers the nchash namespace: a hash that never changes between versions)

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
    weight, window, `group` (the number of the key) and `now` (True in the windows asked for), and gives rows with a
    window and the table's columns; it must look from a row of window w no further back than the window w - back_us.
    matters: the carried column that holds for some row of each key that has anything to say, where few have.
    """

    on: tuple[str, ...]
    carry: tuple[str, ...] = ()
    matters: str = ""
    back_us: int = 0
    match: Match

    @property
    def kept(self) -> list[str]:
        return [*SPACE, *self.on, *self.carry, "t", "coord", "weight", "window"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """clock: event (used and implausible rows, by event time) or arrival (all rows, by arrival). Windows of 10 s.

    by_order: whether it also reads rows that have no time, of which only the order is known. strays: and those that
    landed in a slice that was complete already.
    """

    name: str
    clock: str = "event"
    by_order: bool = False
    strays: bool = False
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
        timed = rows if self.by_order else rows.filter(pl.col("told").is_not_null())
        kept = timed if self.clock == "arrival" else timed.filter(pl.col("fate") != "late")
        return kept.filter(source.where).with_columns(window=window_of(clock), **source.project)

    def first(self, rows: pl.LazyFrame, by: Sequence[str] = ()) -> pl.LazyFrame:
        assert self.columns is not None
        grouped = rows.group_by([*self.full_key, *by]).agg(**{n: c.first() for n, c in self.columns.items()})
        return grouped.with_columns(**{n: c.last(n) for n, c in self.columns.items()})

    def merge(self, partials: pl.DataFrame) -> pl.DataFrame:
        """Partial tables of any batches, slices and producers to the table: sorted by its full key."""
        names = [n for n in self.full_key if partials.schema[n] == pl.String]
        whole = coded(partials, names)
        if self.columns is None:
            return whole.sort([*self.full_key, "coord"]).with_columns(pl.col(names).cast(pl.String))
        several = whole.select(pl.struct(self.full_key).is_duplicated()).to_series()
        if several.any():
            again = {n: c.again(n) for n, c in self.columns.items()}
            grouped = whole.filter(several).group_by(self.full_key).agg(**again)
            added = grouped.with_columns(**{n: c.last(n) for n, c in self.columns.items()}).select(whole.columns)
            whole = pl.concat([whole.filter(~several), added])
        return whole.sort(self.full_key).with_columns(pl.col(names).cast(pl.String))


def company(rows: pl.DataFrame, on: tuple[str, ...], lo: int, to: int, matters: str = "") -> pl.DataFrame:
    """The rows before the window `to` of keys that several of them have, one in a window from lo on: key by key, each
    in its order.

    matters: a column that must hold for one of them, too.
    `group` numbers the keys, `now` marks the windows from lo on. The hash of the key brings equals together, because
    integers are quick to sort; where keys share one, `on` decides.
    """
    window = rows["window"].to_numpy()
    ready, now = np.flatnonzero(window < to), window >= lo
    at, group = together(rows["hash"].to_numpy()[ready])
    at = ready[at]
    some = (np.bincount(group) > 1) & (np.bincount(group, now[at]) > 0)
    if matters:
        some &= np.bincount(group, rows[matters].to_numpy()[at]) > 0
    wanted = some[group]
    at, group, key = at[wanted], group[wanted], [*SPACE, *on]
    at = at[_in_order(group, *(rows[n].to_numpy()[at] for n in ("window", "t", "coord")))]
    met = rows[at].with_columns(group=pl.Series(group), now=pl.Series(now[at]))
    same = pl.col("group") == pl.col("group").shift()
    if met.select((same & pl.any_horizontal(pl.col(n).ne_missing(pl.col(n).shift()) for n in key)).any()).item():
        met = met.filter(pl.len().over(key) > 1).sort("hash", *key, "window", "t", "coord")
        met = met.with_columns(group=pl.struct(key).rle_id().cast(pl.Int64))
    return met.drop("hash")


def together(hashes: npt.NDArray[np.uint64]) -> tuple[Ints, Ints]:
    """Positions that bring equal hashes together, and the number of each one's group.

    A position takes the place of a hash's last bits: so one sort of integers orders both.
    """
    bits = np.uint64(len(hashes).bit_length())
    tagged = pl.Series(hashes >> bits << bits | np.arange(len(hashes), dtype=np.uint64)).sort().to_numpy()
    at = (tagged & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    if (_changes(hashes[at]) & ~_changes(tagged >> bits)).any():  # two hashes that differ in the last bits only
        at = np.argsort(hashes, kind="stable")
    return at, np.cumsum(_changes(hashes[at]))


def _changes(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where a value is not the one before it."""
    return np.concatenate([np.zeros(len(values[:1]), bool), values[1:] != values[:-1]])


def _in_order(group: Ints, *by: Ints) -> Ints:
    """Positions that sort by (group, *by). Few groups are out of order, and most of those are of two."""
    later = np.zeros(max(len(group) - 1, 0), bool)
    for values in reversed(by):
        later = (values[:-1] > values[1:]) | ((values[:-1] == values[1:]) & later)
    wrong = np.flatnonzero(later & (group[:-1] == group[1:]))
    at, size = np.arange(len(group)), np.bincount(group)
    two = wrong[size[group[wrong]] == 2]
    at[two] += 1
    at[two + 1] -= 1
    mixed = np.zeros(len(size), bool)
    mixed[group[wrong]] = True
    more = np.flatnonzero((mixed & (size > 2))[group])
    at[more] = more[np.lexsort([values[more] for values in (*reversed(by), group)])]
    return at


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


def meeting(rows: pl.DataFrame, back_us: int) -> Meeting:
    """Who meets whom: earlier rows of the same key, no more than back_us before in windows."""
    group, index = rows["group"].to_numpy(), rows["window"].to_numpy() // WINDOW_US
    at = np.arange(len(rows), dtype=np.int64)
    begins = np.flatnonzero(np.diff(group, prepend=-1))
    start = np.repeat(begins, np.diff(begins, append=len(rows)))
    if not len(rows) or index.max() - index.min() <= windows(back_us):
        return Meeting(group, start, at)
    index -= index.min()
    place = group * (int(index.max()) + windows(back_us) + 2) + index
    return Meeting(group, np.maximum(np.searchsorted(place, place - windows(back_us)), start), at)


def hashed(text: pl.Expr) -> pl.Expr:
    """xxh3 over a text, the same on every machine and in every version; null for none."""
    number: pl.Expr = text.nchash.xxh3_64()  # type: ignore[attr-defined]
    return number


def coded(rows: pl.DataFrame, names: Iterable[str]) -> pl.DataFrame:
    """The same rows with texts as numbers that sort as they do: quicker to compare, to group and to sort."""
    return rows.with_columns(pl.col(n).cast(pl.Enum(rows[n].unique().drop_nulls().sort())) for n in names)
