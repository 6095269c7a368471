"""Landed tables enter, what detectors say of them leaves: judged again by the same functions, and nothing is written.

For how near the rest came to its thresholds, and for what other thresholds would have found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import duckdb
import polars as pl

from detectors.detector import Detector, Settings
from detectors.engine import JudgeState, finding, findings, judge, near_misses, open_findings
from detectors.events import STREAMS
from detectors.finding import joined
from detectors.table import Table
from detectors.windows import DAY_US, HOUR_US, LATENESS_US, ORDERED_US, WINDOW_US
from streams.settings import fingerprint, rows_of

SPAN_US = 2 * HOUR_US  # of windows that are in memory at once, with the past that detectors look back on
LAST = "SELECT max(last_arrival) FROM lake_parts WHERE stream IN (SELECT unnest(?))"


@dataclass(frozen=True)
class Landed:
    """The measured tables of a state. folder and lander decide nothing: what counts is what was measured."""

    con: duckdb.DuckDBPyConnection
    detectors: Sequence[Detector]
    lateness_us: int

    @cached_property
    def tables(self) -> list[Table]:
        every = {t.name: t for d in self.detectors for t in d.tables}
        there = {n for (n,) in self.con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        return [t for n, t in every.items() if n in there]

    @cached_property
    def span(self) -> tuple[int, int]:
        """Windows lo ≤ w < to that were judged; of nothing an empty one."""
        ends = [self._ends(t.name) for t in self.tables]
        some = [(a, b) for a, b in ends if a is not None and b is not None]
        if not some:
            return 0, 0
        return min(a for a, _ in some), max(self.judged_to, *(b + WINDOW_US for _, b in some))

    def _ends(self, table: str) -> tuple[int | None, int | None]:
        sql = f'SELECT epoch_us(min(window_start)), epoch_us(max(window_start)) FROM "{table}"'
        first, last = self.con.execute(sql).fetchall()[0]
        return first, last

    def _around(self, us: int) -> tuple[int, int]:
        """The last window before a time, and the first from then on."""
        at = "epoch_us(window_start)"
        sql = f'SELECT max({at}) FILTER ({at} < {us}), min({at}) FILTER ({at} >= {us}) FROM "{{}}"'
        ends = [self.con.execute(sql.format(t.name)).fetchall()[0] for t in self.tables]
        return max(a or 0 for a, _ in ends), min(self.span[1] if b is None else b for _, b in ends)

    @cached_property
    def days(self) -> float:
        """How much time was judged, at least one day."""
        return max(1.0, sum(to - lo for lo, to, _ in self.steps(*self.span)) / DAY_US)

    @cached_property
    def heard_us(self) -> int:
        """Arrivals are known up to here."""
        last: int | None = self.con.execute(LAST, [list(STREAMS)]).fetchall()[0][0]
        return last or 0

    @cached_property
    def judged_to(self) -> int:
        """The end of the last window that was judged: of files the last arrival's, else where the lander stands."""
        if self.con.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'landed'").fetchall():
            ((judged,),) = self.con.execute("SELECT least(next_window, judged) FROM landed").fetchall()
            return int(judged or 0) * WINDOW_US
        return (self.heard_us // WINDOW_US + 1) * WINDOW_US

    def read(self, tables: Sequence[Table], lo: int, to: int) -> dict[str, pl.DataFrame]:
        """The windows lo ≤ w < to, as the engine made them."""
        inside = f"epoch_us(window_start) >= {lo} AND epoch_us(window_start) < {to}"
        sql = 'SELECT epoch_us(window_start) AS "window", * EXCLUDE (window_start) FROM "{}" WHERE ' + inside
        return {t.name: t.merge(self.con.sql(sql.format(t.name)).pl()) for t in tables}

    def steps(self, lo: int, to: int) -> Iterator[tuple[int, int, int]]:
        """(lo, to, heard_us) of each span that is judged at once; of rows without a time in spans of their own."""
        if lo < ORDERED_US < to:
            last, first = self._around(ORDERED_US)
            yield from self.steps(lo, min(last + SPAN_US, ORDERED_US))
            lo = max(lo, first)
        for begin in range(lo, to, SPAN_US):
            end = min(begin + SPAN_US, to)
            yield begin, end, min(self.heard_us, end + self.lateness_us)

    def near(self, settings: Settings, since: int | None = None, until: int | None = None) -> dict[str, pl.DataFrame]:
        """Of each detector how near its subjects came, in windows that begin within: see `one_a_subject`."""
        first, last = self.span
        lo = first if since is None else max(first, -(-since // WINDOW_US) * WINDOW_US)
        to = last if until is None else min(last, -(-until // WINDOW_US) * WINDOW_US)
        found: dict[str, list[pl.DataFrame]] = {d.name: [] for d in self.detectors}
        past = max((d.past_us for d in self.detectors), default=0)
        for begin, end, heard in self.steps(lo, to):
            tables = self.read(self.tables, begin - past, end)
            for d in self.detectors:
                near = near_misses(d, tables, begin, end, heard, settings)
                found[d.name] += [] if near is None else [near]
        return {name: joined(parts) for name, parts in found.items() if parts}

    def found(self, settings: Settings) -> pl.DataFrame:
        """The findings that these settings give, of all that was measured: rows of FINDING."""
        config, state, rows = fingerprint(settings), JudgeState(), dict[str, Mapping[str, Any]]()
        for begin, end, heard in self.steps(*self.span):
            judged, state = judge(
                self.detectors, state, self.read(self.tables, begin, end), begin, end, heard, settings
            )
            for d in self.detectors:
                changed = (finding(d, config, c.key, c.episode) for c in judged.changes.get(d.name, []))
                rows |= {row["finding_id"]: row for row in changed}
        rows |= {row["finding_id"]: row for row in open_findings(self.detectors, config, state.episodes)}
        return findings([*rows.values()]).sort("onset", "finding_id")


def lateness_of(con: duckdb.DuckDBPyConnection) -> int:
    """What the state was judged with."""
    runs = con.execute("SELECT lateness_us FROM runs ORDER BY started DESC LIMIT 1").fetchall()
    return int(runs[0][0]) if runs else LATENESS_US


def other_than(con: duckdb.DuckDBPyConnection, settings: Settings) -> str:
    """What people should know where these are not the settings that the state's findings were made with."""
    sql = "SELECT config FROM settings UNION SELECT config FROM findings"
    used = {config for (config,) in con.execute(sql).fetchall()} or {fingerprint(Settings())}
    if fingerprint(settings) in used:
        return ""
    own = ", ".join(f"{name} = {value}" for _, name, value in rows_of(settings)) or "the defaults"
    return f"Judged with other settings than the findings were: {own}"
