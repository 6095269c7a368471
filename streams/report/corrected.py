"""Landed stamps enter; when it truly was leaves, with error bars, from the landed table `clocks`.

The reference is that of the hours that the stamps lie in, so that one event has one bar on every screen of that hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import duckdb
import polars as pl
from polars import col

from detectors.clocks import MAJORITY, MAX_DRIFT_PPM
from detectors.corrected import MARGIN_US, Reference, corrected, intervals_at, not_before, reference
from detectors.corrected import SHAPE as INTERVALS
from detectors.facts import facts_of, names_of
from detectors.table import SPACE
from detectors.tables.clocks import NEAR_US
from detectors.windows import HOUR_US, MINUTE_US, WINDOW_US, time_of, us_of
from streams.landing.state import has
from streams.report.evidence import Row, instant
from streams.report.sentences import stamp

MS = timedelta(milliseconds=1)
CLOCKS = 'epoch_us(window_start) AS "window", src, dst, facts, lag, proof'
TABLE: dict[str, Any] = {"window": pl.Int64, "src": pl.String, "dst": pl.String, "facts": pl.List(pl.Int64)}
TABLE |= {"lag": pl.Int64, "proof": pl.Int64}
SHAPE = dict.fromkeys((*SPACE, "node"), pl.String) | dict.fromkeys(("at_us", "arrived_us"), pl.Int64)
NOTHING = {"earliest_us": pl.Int64, "latest_us": pl.Int64, "reference": pl.String}


@dataclass(frozen=True)
class Bar:
    """When it truly was, on the reference's clock; None is an open side, no reference means that nothing is known."""

    earliest: datetime | None = None
    latest: datetime | None = None
    reference: str | None = None

    @classmethod
    def of(cls, earliest_us: int | None, latest_us: int | None, reference: str | None) -> Bar:
        return cls(_instant(earliest_us), _instant(latest_us), reference)

    @property
    def ends_us(self) -> tuple[int | None, int | None]:
        return (
            None if self.earliest is None else us_of(self.earliest),
            None if self.latest is None else us_of(self.latest),
        )

    @property
    def best(self) -> datetime | None:
        """The middle, where both ends are known."""
        return None if self.earliest is None or self.latest is None else self.earliest + self.half

    @property
    def half(self) -> timedelta:
        return timedelta() if self.earliest is None or self.latest is None else (self.latest - self.earliest) / 2

    def holds(self, at: datetime) -> bool:
        return (self.earliest is None or self.earliest <= at) and (self.latest is None or at <= self.latest)


STAMPS = {"requests": "timestamp", "heartbeats": "client_time", "write_log": "timestamp"}  # by the clock of node_id
NARROW = timedelta(milliseconds=10)  # half of a bar that makes no difference to who reads it


def marked(con: duckdb.DuckDBPyConnection, rows: Sequence[Row], before: datetime | None = None) -> list[Row]:
    """Landed rows of any stream, each with its `bar`, by what was measured in windows before a time, else by all."""
    nodes = [r for r in rows if r["stream"] in STAMPS]
    stamps = [(*(r[n] for n in SPACE), r["node_id"], us_of(raw(r)), us_of(r["arrival"])) for r in nodes]
    told = with_bars(con, pl.DataFrame(stamps, schema=SHAPE, orient="row"), before).select(*NOTHING).rows()
    bars = {r["record"]: Bar.of(*ends) for r, ends in zip(nodes, told, strict=True)}
    return [r | {"bar": bars.get(r["record"], Bar())} for r in rows]


def raw(row: Row) -> datetime:
    at: datetime = row[STAMPS.get(row["stream"], "timestamp")]
    return at


def began(row: Row) -> datetime:
    """The best guess: the raw time, unless it lies outside its bar."""
    bar = row["bar"]
    return raw(row) if bar.best is None or bar.holds(raw(row)) else bar.best


def ended(row: Row) -> datetime:
    """Of a call the best guess of when it was over."""
    return began(row) + timedelta(milliseconds=row["duration_ms"] or 0)


def called_first(client: Row, server: Row) -> tuple[Row, Row]:
    """The two lines of one attempt: a server can't begin before it was called."""
    a, b = client["bar"], server["bar"]
    if a.reference is None or a.reference != b.reference:
        return client, server
    cause, effect = not_before(a.ends_us, b.ends_us)
    return client | {"bar": Bar.of(*cause, a.reference)}, server | {"bar": Bar.of(*effect, b.reference)}


def shown(row: Row) -> str:
    """08:19:07.106 ± 5 ms; same, where the raw time is as good."""
    bar, at = row["bar"], raw(row)
    if bar.reference is None:
        return "unknown"
    if bar.best is not None:
        if bar.holds(at) and bar.half <= NARROW:
            return "same"
        return f"{stamp(bar.best)} ± {_whole_ms(bar.half)} ms"
    if bar.holds(at):
        return "same or earlier" if bar.earliest is None else "same or later"
    return f"≤ {stamp(bar.latest)}" if bar.earliest is None else f"≥ {stamp(bar.earliest)}"


def legend(rows: Sequence[Row]) -> str:
    """Whose clock the column is told by, and what `same` hides."""
    clocks = sorted({r["bar"].reference for r in rows if r["bar"].reference})
    if not clocks:
        return "CORRECTED: unknown, nothing links these clocks to others"
    whose = " or ".join("the majority's clock" if c == MAJORITY else f"the clock of {c}" for c in clocks)
    same = max((r["bar"].half for r in rows if shown(r) == "same"), default=None)
    return f"CORRECTED: by {whose}" + (f"; same: to ± {_whole_ms(same)} ms" if same is not None else "")


def apart(first: Row, second: Row) -> timedelta | None:
    """By how much the time between the two may be wrong; None where it can't be said."""
    a, b = first["bar"], second["bar"]
    return None if a.best is None or b.best is None or a.reference != b.reference else a.half + b.half


def _whole_ms(span: timedelta) -> int:
    """Rounded up, and what `stamp` cuts off a time."""
    return -(-span // MS) + 1


def with_bars(con: duckdb.DuckDBPyConnection, stamps: pl.DataFrame, before: datetime | None = None) -> pl.DataFrame:
    """SHAPE enters, in any order, with whatever columns more; earliest_us, latest_us and reference are added."""
    numbered = stamps.with_row_index("number")
    fleets = numbered.partition_by(SPACE, as_dict=True).items()
    parts = [_of_fleet(con, some, space, before) for space, own in fleets for some in _stretches(own)]
    if not parts:
        return stamps.with_columns(pl.lit(None, dtype=t).alias(n) for n, t in NOTHING.items())
    return pl.concat(parts).sort("number").drop("number")


def _stretches(stamps: pl.DataFrame) -> list[pl.DataFrame]:
    """Those that arrived within an hour of each other together: nobody asks for the months between them."""
    ordered = stamps.sort("arrived_us")
    number = (ordered["arrived_us"].diff() > HOUR_US).fill_null(False).cast(pl.Int64).cum_sum().alias("stretch")
    return ordered.with_columns(number).partition_by("stretch", include_key=False)


def _of_fleet(
    con: duckdb.DuckDBPyConnection, stamps: pl.DataFrame, space: tuple[Any, ...], before: datetime | None
) -> pl.DataFrame:
    known = intervals(con, space, _windows(stamps), stamps["node"].unique().to_list(), before)
    return corrected(stamps, known, _max_drift_ppm(con))


def intervals(
    con: duckdb.DuckDBPyConnection,
    space: tuple[Any, ...],
    windows: Sequence[int],
    nodes: Sequence[str] = (),
    before: datetime | None = None,
) -> pl.DataFrame:
    """INTERVALS: what is known of the nodes' clocks, or of all clocks of the fleet, in each of the windows."""
    names, of = reference_of(con, space, windows[0], windows[-1], before)
    if not len(names):
        return pl.DataFrame(schema=INTERVALS)
    rows = _read(con, CLOCKS, space, windows[0] - MINUTE_US, windows[-1] + WINDOW_US, before)
    return intervals_at(facts_of(rows, names), names, of, nodes or names.to_list(), windows, _max_drift_ppm(con))


def _windows(stamps: pl.DataFrame) -> list[int]:
    """The windows that the events may lie in: those around their arrivals, and around stamps that are near them."""
    near = (col("at_us") - col("arrived_us")).abs() <= NEAR_US
    about = stamps.select(pl.concat([col("arrived_us"), col("at_us").filter(near)]).alias("us")).to_series()
    first = about.unique() // WINDOW_US * WINDOW_US
    reach = range(-MARGIN_US - WINDOW_US, MARGIN_US + 2 * WINDOW_US, WINDOW_US)
    return sorted({int(w) + d for w in first.unique() for d in reach})


def reference_of(
    con: duckdb.DuckDBPyConnection, space: tuple[Any, ...], first: int, last: int, before: datetime | None = None
) -> tuple[pl.Series, Reference]:
    """(names, reference) of the fleet's clocks in the hours from one window to another."""
    since, until = first // HOUR_US * HOUR_US, last // HOUR_US * HOUR_US + HOUR_US
    pairs = _read(con, "DISTINCT src, dst", space, since, until, before)
    names = names_of(pairs)
    return names, reference(pairs, names) if len(names) else Reference.nobody()


def _read(
    con: duckdb.DuckDBPyConnection,
    columns: str,
    space: tuple[Any, ...],
    since: int,
    until: int,
    before: datetime | None,
) -> pl.DataFrame:
    if not has(con, "clocks"):
        return pl.DataFrame(schema=TABLE)
    until = until if before is None else min(until, us_of(before))
    first, end = (instant(time_of(us)) for us in (since, until))
    where = f"environment = ? AND tenant = ? AND window_start >= {first} AND window_start < {end}"
    found = con.execute(f"SELECT {columns} FROM clocks WHERE {where}", list(space))
    shape = {d[0]: TABLE[d[0]] for d in found.description or ()}
    return pl.DataFrame(found.fetchall(), schema=shape, orient="row")


def _max_drift_ppm(con: duckdb.DuckDBPyConnection) -> int:
    """What the state was judged with: the largest of what was set."""
    said = con.execute("SELECT value FROM settings WHERE name = 'clock_skew.max_drift_ppm'").fetchall()
    return max((int(float(value)) for (value,) in said), default=MAX_DRIFT_PPM)


def _instant(us: int | None) -> datetime | None:
    return None if us is None else time_of(us)
