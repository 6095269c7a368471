"""A state that is fed live enters, the same leaves with its rows judged again: after a change of detector or threshold.

Rows, rejects and counts stay, and so do the numbers that were taken: a lander goes on where the last one ended. Tables
and findings are made anew for the windows of which all rows are in the lake; what was landed of later ones stays, and
so does what was found before the first row that is left. What of the log was lost stays lost; what only the windows
lacked is measured now. It is made aside and switched with one rename.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import duckdb
import polars as pl

from detectors.detector import Settings
from detectors.engine import Hole, Partials
from detectors.events import STREAMS
from detectors.table import SPACE
from detectors.tables.accounts import ACCOUNTS, DELETED, DIFFERING, PARKED
from detectors.windows import AHEAD_US, HOUR_US, LATENESS_US, SLICE_US, WINDOW_US, time_of
from streams.analysis import Analysis
from streams.catalog import all_detectors
from streams.landing import lake, state, tables
from streams.landing.lake import Part
from streams.landing.publish import publish
from streams.live import differing
from streams.live.connect import Connection
from streams.live.judge import SLICES
from streams.outcome import Outcome, outcome
from streams.problems import Exit, Problem, shell
from streams.progress import Progress
from streams.settings import rows_of

MEASURED = """
UPDATE lost SET since = greatest(since, $until) WHERE since >= $since AND NOT list_contains($streams, what)
"""
CLOSED = "SELECT min(hi) FROM (SELECT min_by(hi, lo) AS hi FROM taken WHERE NOT lost GROUP BY producer)"


def rejudge(folder: Path, settings: Settings, command: str, started: datetime, bar: Progress) -> Outcome:
    end, again = "kill -INT {owner}", ", then the lander again"
    if (folder / state.ONE_RUN).exists():  # its lander is started again by up
        end, again = "Ctrl-C in the terminal of asynchealth up", ""
    then = f"{end}, then asynchealth rebuild --state {shell(folder)}{again}"
    with state.locked(folder, then):
        with lake.undone(folder, state.LANDING), _aside(folder) as con:
            done = Again(folder, con, settings, bar).run()
            run = (started, datetime.now(UTC), command, LATENESS_US, version("asynchealth"), list[str]())
            state.land_rows(con, "runs", [run])
        with duckdb.connect(str(folder / state.LANDING)) as con:
            publish(con, folder / state.LANDING)
    bar.end()
    return done


@contextmanager
def _aside(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A copy of the lander's database, which takes its place when the block ends without an error."""
    landing = folder / state.LANDING
    aside = landing.with_name(f"{state.LANDING}.building")
    with duckdb.connect(str(landing)) as con:
        found = state.version_of(con)
        if found != state.SCHEMA_VERSION:
            reason = f"has schema {found}, this asynchealth reads {state.SCHEMA_VERSION}"
            raise Problem(str(folder), reason, f"{_land(folder)} --state NEW", Exit.STATE)
        con.execute("CHECKPOINT")
    shutil.copy(landing, aside)
    try:
        with duckdb.connect(str(aside)) as con:
            state.prepare(con)
            yield con
            con.execute("CHECKPOINT")
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, landing)
    finally:
        for left in (aside, aside.with_name(f"{aside.name}.wal")):
            left.unlink(missing_ok=True)
        shutil.rmtree(aside.with_name(f"{aside.name}.tmp"), ignore_errors=True)


def _land(folder: Path) -> str:
    """The command of the lander that writes there."""
    broker, prefix = state.fed_from(folder)
    return f"asynchealth land {Connection(broker=broker).options(prefix)}"


@dataclass
class Again:
    """One run over the rows of a lander's database, which is changed in place.

    since and until, in µs: of the windows between, all rows are in the lake.
    """

    folder: Path
    con: duckdb.DuckDBPyConnection
    settings: Settings
    bar: Progress
    fresh: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        ((self.window, self.judged, self.ends_us),) = self.con.execute(
            "SELECT next_window, judged, ends_us FROM landed"
        ).fetchall()
        parts = state.parts_of(self.con)
        self.rows = [p for p in parts if p.stream in STREAMS]
        self.tables = [p for p in parts if p.stream not in STREAMS and p.stream not in state.HIDDEN]
        if not self.rows or not self.window:
            then = f"{_land(self.folder)} --state {shell(self.folder)}, beside a worker"
            raise Problem(str(self.folder), "holds no rows that were judged", then, Exit.NOTHING)
        ((closed,),) = self.con.execute(CLOSED).fetchall()
        landed = (closed * SLICE_US - LATENESS_US) // WINDOW_US
        self.until = min(self.window, self.judged, landed) * WINDOW_US
        ((gone,),) = self.con.execute("SELECT epoch_us(max(before)) FROM removed").fetchall()
        self.since = gone + AHEAD_US if gone else 0  # a row that was stamped ahead arrived before its window
        self.hour = 0

    def run(self) -> Outcome:
        detectors = all_detectors()
        heard = min(self.ends_us, self.until + LATENESS_US)
        analysis = Analysis(
            self.folder, detectors, self.settings, LATENESS_US, self.con, self.bar,
            self.since, self.until, heard, self._land, self._told(), self._holes(),
        )  # fmt: skip
        self.bar.begin("judging", sum(p.rows for p in self.rows))
        before = state.recent(self.con)
        state.add_views(self.con, self.folder, state.parts_of(self.con))
        self._keep_tables()
        self.con.execute("ALTER TABLE findings RENAME TO old_findings")
        self.con.execute("ALTER TABLE finding_changes RENAME TO old_changes")
        state.make_findings(self.con)
        analysis.run(self.rows)
        self._keep_findings()
        state.land_incidents(self.con, self.settings)
        self.con.execute("DELETE FROM judged_with WHERE since >= ?", [time_of(self.since)])
        state.land_settings(self.con, rows_of(self.settings), time_of(self.since))
        self.con.execute("UPDATE landed SET rebuilt = ?", [self.until // WINDOW_US])
        self.con.execute(MEASURED, {"since": time_of(self.since), "until": time_of(self.until), "streams": [*STREAMS]})
        self.con.execute("DELETE FROM lost WHERE since >= until")
        self.con.execute("DELETE FROM lake_parts WHERE path IN (SELECT unnest(?))", [[p.path for p in self.tables]])
        lake.replaced(self.folder, self.tables)
        state.land_rows(self.con, "lake_parts", self.fresh)
        for name in set(before) - set(state.recent(self.con)):
            self.con.execute(f'DROP VIEW "{name}"')  # a table is there from its first row on
        state.add_views(self.con, self.folder, state.parts_of(self.con))
        covered = {(s, f): [n, filled] for s, f, n, filled in self.con.execute("FROM coverage").fetchall()}
        self.con.execute("DELETE FROM detectors")
        return outcome(self.con, [], state.land_sight(self.con, detectors, covered))

    def _told(self) -> Partials:
        """What the accounts have of records that were lost and of copies that differ, which are no rows of the lake."""
        if not state.has(self.con, ACCOUNTS.name):
            return {}
        names = [*ACCOUNTS.key, *SPACE, PARKED, DELETED, DIFFERING, "lost_first", "lost_last"]
        window, columns = "epoch_us(window_start)", ", ".join(f'"{n}"' for n in names)
        within = f"{window} BETWEEN {self.since} AND {self.until - 1} AND {PARKED} + {DELETED} + {DIFFERING} > 0"
        told = self.con.sql(f'SELECT {window} AS "window", {columns} FROM accounts WHERE {within}').pl()
        return {(ACCOUNTS.name, 0): differing.completed(told)} if len(told) else {}

    def _holes(self) -> list[Hole]:
        """Where rows of a stream were lost."""
        lost = self.con.execute("SELECT epoch_us(since), epoch_us(until), what FROM lost ORDER BY ALL").fetchall()
        return [Hole(*row) for row in lost if row[2] in STREAMS]

    def _land(self, final: dict[str, pl.DataFrame], to: int) -> None:
        """As a lander does: of tables, whole hours that are not young go to the lake."""
        for name, frame in final.items():
            state.land_table(self.con, name, frame, state.RECENT)
        old = min(to, self.window * WINDOW_US - tables.YOUNG_US) // HOUR_US
        if old > self.hour:
            self.fresh += tables.written(self.con, self.folder, old)
            tables.forget(self.con, old)
            self.hour = old

    def _keep_tables(self) -> None:
        """What was landed of windows that are not measured again."""
        for name in state.recent(self.con):
            if name in state.HIDDEN:
                continue
            outside = f"epoch_us(window_start) < {self.since} OR epoch_us(window_start) >= {self.until}"
            self.con.execute(f'CREATE OR REPLACE TEMP TABLE kept AS FROM main."{name}" WHERE {outside}')
            self.con.execute(f'DROP TABLE {state.RECENT}."{name}"')
            if self.con.execute("SELECT 1 FROM kept LIMIT 1").fetchall():
                self.con.execute(f'CREATE TABLE {state.RECENT}."{name}" AS FROM kept')

    def _keep_findings(self) -> None:
        """What was found before the first row that is left, what was landed of later windows, and what no row tells of:
        windows that were said in two ways."""
        number = f"epoch_us(final_at) // {WINDOW_US} - (resolved IS NOT NULL)::INTEGER"
        later = f"SELECT finding_id FROM old_changes WHERE {number} >= {self.until // WINDOW_US}"
        is_open = f"resolved IS NULL AND {self.judged * WINDOW_US > self.until}"
        self.con.execute(
            f"CREATE OR REPLACE TEMP TABLE kept AS FROM old_findings "
            f"WHERE epoch_us(onset) < {self.since} OR finding_id IN ({later}) OR ({is_open}) "
            f"OR starts_with(subject, '{SLICES}/')"
        )
        for table, old in (("findings", "old_findings"), ("finding_changes", "old_changes")):
            self.con.execute(f"DELETE FROM {table} WHERE finding_id IN (SELECT finding_id FROM kept)")
            self.con.execute(f"INSERT INTO {table} FROM {old} WHERE finding_id IN (SELECT finding_id FROM kept)")
            self.con.execute(f"DROP TABLE {old}")
        state.only_one(self.con, "kept")
