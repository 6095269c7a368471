"""Tables enter, assessments leave: what is concluded, for every subject and window, fired or not.

A detector says what it saw; thresholds are declared here and compared by the engine alone. `trailing` and `ratio` are
the two shapes that most detectors have.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any, Literal

import numpy as np
import polars as pl

from detectors.subjects import OF_SERVICE, edge, service
from detectors.table import SPACE, Ints, Table, coded
from detectors.windows import MINUTE_US, WINDOW_US, windows

Level = Literal["warn", "page", "both", "open"]

ASSESSMENT: dict[str, pl.DataType] = {
    "window": pl.Int64(),  # from this window on, until the subject's next assessment
    **dict.fromkeys(SPACE, pl.String()),
    "kind": pl.String(),  # the verdict, where a detector has several; else empty
    "subject": pl.String(),
    "value": pl.Float64(),
    "certain": pl.Boolean(),
    "unknown": pl.Boolean(),  # no data: neither extends an episode nor resolves it
    "first": pl.Int64(),  # window of the first row that contributes to the value
    "total": pl.Int64(),  # how many contribute to the value
    "fresh": pl.Int64(),  # how many of them in this very window
    "proof": pl.List(pl.Int64),  # coordinates
}
PROOF_KEPT = 8
SHORT_SHARE = 0.05  # of a detector's past


@dataclass(frozen=True)
class Threshold:
    """Reached when column `of` is strictly above it. A level needs all its kind's thresholds and those of `both`.

    Those of `open` must be reached for an episode to open, too, and need not be while it lasts.
    """

    name: str
    level: Level
    default: float
    unit: str
    low: float
    high: float
    of: str = "value"
    kind: str = ""  # if set, it is for assessments of this kind only
    facts: tuple[str, ...] = ()  # those that only its kind has


SubjectKind = Literal["node", "edge", "service", "entity", "fleet", "partition"]


@dataclass(frozen=True)
class Settings:
    """What logs cannot say: numbers by "detector.threshold", also for one service alone, services' TTLs, …"""

    values: Mapping[str, float] = field(default_factory=dict)
    per_service: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    ttl_us: Mapping[str, int] = field(default_factory=dict)

    def get(self, detector: str, name: str, default: float) -> float:
        return self.values.get(f"{detector}.{name}", default)

    def threshold(self, detector: str, threshold: Threshold, subject_kind: SubjectKind) -> pl.Expr:
        """The threshold for each subject."""
        return self.number(detector, threshold.name, threshold.default, subject_kind)

    def number(self, detector: str, name: str, default: float, subject_kind: SubjectKind) -> pl.Expr:
        """What is set for each subject: for the service that it belongs to, else for all."""
        key = f"{detector}.{name}"
        general = pl.lit(float(self.values.get(key, default)))
        own = {s: float(v[key]) for s, v in self.per_service.items() if key in v}
        if not own or subject_kind not in OF_SERVICE:
            return general
        return pl.coalesce(service(subject_kind).replace_strict(own, default=None, return_dtype=pl.Float64), general)


@dataclass(frozen=True)
class View:
    """What a detector judges: windows lo ≤ w < to, and what it reads of them and of its past.

    heard_us: arrivals are known up to here; what is silent after it is not silence.
    """

    rows: pl.DataFrame
    also: Mapping[str, pl.DataFrame]
    lo: int
    to: int
    heard_us: int
    settings: Settings


@dataclass(frozen=True, kw_only=True)
class Detector:
    """assess gives ASSESSMENT columns (what it leaves out gets its default); other columns become facts."""

    name: str
    reads: Table
    assess: Callable[[View], pl.DataFrame]
    subject_kind: SubjectKind
    thresholds: tuple[Threshold, ...]
    unit: str
    also: tuple[Table, ...] = ()
    past_us: int = 0
    numbers: tuple[str, ...] = ()  # what can be set beside thresholds
    needs: tuple[str, ...] = ()  # fields without which it is blind, "a or b" where one of them will do
    lacks: tuple[tuple[str, str], ...] = ()  # fields without which it sees less, and what is so then
    nothing_without: tuple[str, ...] = ()  # what no source has where what it reads has no row at all: it is blind then
    unknown_when: str = "it had nothing to go by"  # when its assessments are unknown, for people
    irreversible: bool = False  # pages also on what is only possible: a double charge can't be waited out
    reach_us: int | None = None  # of a hole in what it reads, if that is short beside its past; else past_us
    over_loss: Literal["unknown", "fires", "told"] = "unknown"  # fires: what is lost only takes away; told: it is of us
    version: int = 1
    shadow: bool = False  # what it finds is landed under a level of its own, and nobody is told

    @cached_property
    def initials(self) -> str:
        words = self.name.split("_")
        return words[0][0] + words[1][0] if len(words) > 1 else self.name[:2]

    def unit_of(self, kind: str) -> str:
        """Of the values of this kind: that of its own threshold of values, if it has one."""
        own = (t.unit for t in self.thresholds if t.kind == kind and kind and t.of == "value")
        return next(own, self.unit)

    def facts_of(self, kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Without those that only other kinds have: of this one they are not unknown."""
        others = {n for t in self.thresholds if t.kind != kind for n in t.facts}
        own = {n for t in self.thresholds if t.kind == kind for n in t.facts}
        return {n: v for n, v in facts.items() if n in own or n not in others}

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        return (self.reads, *self.also)

    @cached_property
    def by_order(self) -> bool:
        """Whether the order of records is all that it needs."""
        return all(t.by_order for t in self.tables)

    @cached_property
    def blinded_by(self) -> frozenset[str]:
        """The streams and tables whose loss makes it blind."""
        if self.over_loss == "told":
            return frozenset()
        return frozenset({s.stream for t in self.tables for s in t.sources} | {t.name for t in self.tables})

    def reach(self, hole_us: int) -> int:
        """How long after a hole it is blind: a short one matters little in a long past that is compared with."""
        short = self.reach_us is not None and hole_us < SHORT_SHARE * self.past_us
        return -(-(self.reach_us if short and self.reach_us is not None else self.past_us) // WINDOW_US) * WINDOW_US


@dataclass(frozen=True)
class Entry:
    """One detector of the catalog with the module that explains it and its runbook's file name."""

    detector: Detector
    module: ModuleType

    @property
    def doc(self) -> str:
        return self.module.__doc__ or ""

    @property
    def shipped(self) -> bool:
        return self.module.__name__.startswith("detectors.catalog.")


def catalog() -> dict[str, Entry]:
    """The shipped detectors by name: the file name is the detector's id. `streams.catalog` adds users' own."""
    package = importlib.import_module("detectors.catalog")
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    modules = {n: importlib.import_module(f"detectors.catalog.{n}") for n in names}
    return {n: Entry(getattr(m, n), m) for n, m in modules.items()}


def complete(assessed: pl.DataFrame) -> pl.DataFrame:
    """All ASSESSMENT columns: those that the detector left out get their default."""
    defaults: dict[str, Any] = {"kind": "", "certain": True, "unknown": False, "total": 1, "fresh": 1}
    missing = [
        (pl.col("window") if n == "first" else pl.lit(defaults.get(n, "" if n in SPACE else None))).cast(t).alias(n)
        for n, t in ASSESSMENT.items()
        if n not in assessed.columns
    ]
    return assessed.with_columns(missing).with_columns(pl.col(n).cast(t) for n, t in ASSESSMENT.items())


def pack(judged: pl.DataFrame) -> pl.DataFrame:
    """Columns outside ASSESSMENT become one struct, `facts`."""
    own = [*ASSESSMENT, "level", "opens", "threshold"]
    extra = [n for n in judged.columns if n not in own]
    facts = pl.struct(extra) if extra else pl.lit(None, dtype=pl.Null)
    return judged.select(*own, facts.alias("facts"))


LOOKBACK_US = 10 * MINUTE_US


def one_side(rows: pl.DataFrame, judged: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
    """What is judged of client lines, and of server lines at windows when a subject had no client line for LOOKBACK_US.

    Never both, though a client that waits writes its line long after the server's. A line that does not name its side
    counts as a client's. rows has `subject`; judged gives assessments of the lines of one side.
    """
    key = [*SPACE, "subject"]
    server = pl.col("side").eq_missing(pl.lit("server"))
    clients = rows.filter(~server)
    seen = clients.select(*key, "window", seen="window").unique().sort("window")
    alone = (
        judged(rows.filter(server))
        .sort("window")
        .join_asof(seen, on="window", by=key, strategy="backward", check_sortedness=False)
        .filter(pl.col("seen").is_null() | (pl.col("window") - pl.col("seen") >= LOOKBACK_US))
    )
    return pl.concat([judged(clients), alone.drop("seen")])


def trailing(
    view: View,
    rows: pl.DataFrame,
    subject: pl.Expr,
    sums: tuple[str, ...],
    of: str,
    over_us: int,
    past_us: int = 0,
) -> pl.DataFrame:
    """Sums over the last over_us, at every window where they change: what is between two rows holds in between.

    rows has window, SPACE, the columns `sums` and perhaps `proof`; several rows of one subject and window are added.
    `of` names the sum that contributes: it gives first, total, fresh and proof. Also `before_<sum>`: the sums over the
    past_us before this window less over_us, for detectors that compare a subject with its own past.
    """
    key = [*SPACE, "subject"]
    proof = [pl.col("proof").min()] if "proof" in rows.columns else []
    per_window = (
        coded(rows.with_columns(subject=subject.cast(pl.String)), key)
        .group_by([*key, "window"])
        .agg(*[pl.col(n).sum() for n in sums], *proof)
        .sort([*key, "window"])
        .with_columns(pl.col(key).cast(pl.String))
    )
    if per_window.is_empty():
        return _empty(key, sums, rows)
    group = per_window.select(pl.struct(key).rle_id().cast(pl.Int64)).to_series().to_numpy()
    names = per_window.select(key).unique(maintain_order=True)
    base = min(int(per_window["window"].min()), view.lo) // WINDOW_US  # type: ignore[arg-type]
    index = per_window["window"].to_numpy() // WINDOW_US - base
    n, lo, to = windows(over_us), view.lo // WINDOW_US - base, view.to // WINDOW_US - base
    span = max(int(index.max()), to) + n + 2
    changes = np.unique(np.concatenate([group * span + index, group * span + index + n]))
    inside = (changes % span >= lo) & (changes % span < to)
    at, of_group = changes[inside] % span, changes[inside] // span
    place = group * span + index
    hi = np.searchsorted(place, of_group * span + at, side="right")
    low = np.searchsorted(place, of_group * span + np.maximum(at - n + 1, 0), side="left")
    before = np.searchsorted(place, of_group * span + np.maximum(at - windows(past_us) + 1, 0), side="left")
    before = np.minimum(before, low)
    columns: dict[str, Any] = {"window": (at + base) * WINDOW_US}
    for name in sums:
        total = np.concatenate([[0], np.cumsum(per_window[name].to_numpy())])
        columns[name] = total[hi] - total[low]
        columns[f"before_{name}"] = total[low] - total[before]
    amounts = per_window[of].to_numpy()
    first = _next_where(amounts > 0)[low]
    found = first < hi
    own = (hi > 0) & (place[np.maximum(hi - 1, 0)] == of_group * span + at)
    columns["first"] = np.where(found, (index[np.minimum(first, len(index) - 1)] + base) * WINDOW_US, columns["window"])
    columns["total"] = columns[of]
    columns["fresh"] = np.where(own, amounts[np.maximum(hi - 1, 0)], 0)
    out = names[of_group].with_columns(**{k: pl.Series(v) for k, v in columns.items()})
    if proof:
        witness = per_window["proof"].gather(np.minimum(first, len(index) - 1))
        out = out.with_columns(proof=pl.when(pl.Series(found)).then(witness).cast(pl.Int64))
        out = out.with_columns(proof=pl.concat_list("proof").list.drop_nulls())
    return out


def _empty(key: list[str], sums: tuple[str, ...], rows: pl.DataFrame) -> pl.DataFrame:
    numbers = ["window", *(n for s in sums for n in (s, f"before_{s}")), "first", "total", "fresh"]
    shape: dict[str, Any] = {**dict.fromkeys(key, pl.String), **dict.fromkeys(numbers, pl.Int64)}
    return pl.DataFrame(schema=shape | ({"proof": pl.List(pl.Int64)} if "proof" in rows.columns else {}))


def _next_where(holds: np.typing.NDArray[np.bool_]) -> Ints:
    """For each position (and one past the end) the next position at or after it where it holds, else the length."""
    n = len(holds)
    mine = np.where(holds, np.arange(n, dtype=np.int64), n)
    return np.concatenate([np.minimum.accumulate(mine[::-1])[::-1], [n]])


def ratio(
    name: str,
    table: Table,
    *,
    of: str,
    by: str,
    subject: tuple[str, ...],
    over_us: int,
    min_volume: int,
    warn: float,
    page: float,
    needs: tuple[str, ...] = (),
    lacks: tuple[tuple[str, str], ...] = (),
) -> Detector:
    """A share of one sum in another over a trailing span; below min_volume it is unknown, not fine."""

    kind: SubjectKind = "edge" if len(subject) == 2 else "service"

    def assess(view: View) -> pl.DataFrame:
        who = edge(*subject) if len(subject) == 2 else pl.col(subject[0])
        rows = view.rows.with_columns(subject=who, proof=pl.col(f"{of}_proof"))
        least = view.settings.number(name, "min_volume", min_volume, kind)
        return (
            one_side(rows, lambda some: trailing(view, some, pl.col("subject"), (of, by, "rows"), of, over_us))
            .with_columns(value=pl.col(of) / pl.col(by), unknown=pl.col("rows") < least)
            .with_columns(pl.col("value").fill_nan(0.0))
            .drop("rows", "before_rows", f"before_{of}", f"before_{by}")
        )

    return Detector(
        name=name,
        reads=table,
        assess=assess,
        subject_kind=kind,
        thresholds=(
            Threshold("warn_ratio", "warn", warn, "ratio", 0, 1),
            Threshold("page_ratio", "page", page, "ratio", 0, 1),
        ),
        unit="ratio",
        past_us=over_us + LOOKBACK_US,
        numbers=("min_volume",),
        needs=needs,
        lacks=lacks,
        unknown_when=f"fewer than {name}.min_volume lines in its last {over_us // MINUTE_US} min",
    )
