"""Files and topics enter, a new state leaves: rows to the lake, the lake through the engine, one switch of the file.

`replay` reads what is new of each; `rebuild` judges the lake again. A kill at any moment leaves the old state or
the new one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from detectors.detector import Settings
from detectors.events import INSTANT, SCHEMA
from detectors.windows import LATENESS_US, us_of
from streams.analysis import Analysis
from streams.catalog import all_detectors
from streams.landing import lake, state
from streams.landing.lake import Part, Writer
from streams.outcome import Outcome, outcome
from streams.problems import Exit, Problem, disk_full, shell
from streams.progress import Progress
from streams.rejudge import rejudge
from streams.settings import rows_of
from streams.sources.fieldmap import FieldMap
from streams.sources.files import READABLE, SPOOL, Known
from streams.sources.intake import Intake, Ledger
from streams.sources.source import sources
from streams.told import together


@dataclass(frozen=True)
class Old:
    """What the state held before this run."""

    parts: list[Part] = field(default_factory=list)
    known: list[Known] = field(default_factory=list)
    rejects: list[pl.DataFrame] = field(default_factory=list)
    coverage: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    runs: list[tuple[Any, ...]] = field(default_factory=list)
    lateness_us: int = LATENESS_US

    def ledger(self) -> Ledger:
        """To go on with."""
        return Ledger(list(self.rejects), {key: list(count) for key, count in self.coverage.items()})


def replay(
    paths: Sequence[str],
    folder: Path,
    settings: Settings,
    *,
    lateness_us: int = LATENESS_US,
    arrival: str = "arrival",
    command: str = "",
    progress: Progress | None = None,
    fresh: bool = False,
    since: str = "",
    kafka: Sequence[str] = (),
    maps: Sequence[FieldMap] = (),
) -> Outcome:
    """Reads what is new in the paths and judges all that the state holds. Reads only these, sends nothing.

    since: from where on a topic is read, the first time. kafka: each `name=value`, how a Kafka is reached. maps: how
    files are read that they name.
    """
    started, bar = datetime.now(UTC), progress or Progress()
    if arrival not in ARRIVALS:
        raise Problem(f"--arrival {arrival}", f"not a time that events have; there are {', '.join(ARRIVALS)}")
    with _disk(folder), state.locked(folder), lake.undone(folder):
        old = load(folder, fresh)
        ledger = old.ledger()
        with Writer(folder, _relabelled(folder, old, lateness_us)) as writer:
            intake = Intake(folder, us_of(started), lateness_us, arrival, writer, ledger, bar, list(old.known))
            try:
                with sources(paths, folder, arrival=arrival, since=since, kafka=kafka, maps=maps) as found:
                    sizes = [opening.size for opening in found if opening.size is not None]
                    bar.begin("reading", sum(sizes) if len(sizes) == len(found) else 0)
                    usable = sum(map(intake.take, found))
            finally:
                shutil.rmtree(folder / SPOOL, ignore_errors=True)
            written = writer.close()
        notes = ledger.notes
        if intake.known == old.known and not usable:
            raise Problem("nothing to analyse", "\n".join(together(notes)), code=Exit.NOTHING)
        parts = lake.mark_repeats(folder, written, lateness_us)
        run = (started, command, lateness_us, notes)
        done = _switch(folder, old.runs, parts, intake.known, ledger, settings, run, bar)
    if not usable:
        query = "SELECT source, field, reason, count(*) FROM rejects GROUP BY ALL"
        then = f'asynchealth sql "{query}" --state {shell(folder)}'
        raise Problem("nothing to analyse", "\n".join(together(notes)), then, Exit.NOTHING)
    return done


ARRIVALS = [*dict.fromkeys(n for s in reversed(SCHEMA) for n, t in SCHEMA[s].items() if t == INSTANT), "stamp", "none"]


def rebuild(
    folder: Path,
    settings: Settings,
    *,
    lateness_us: int | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> Outcome:
    """Judges the lake again, after a change of detector, threshold or lateness."""
    started, bar = datetime.now(UTC), progress or Progress()
    if (folder / state.LANDING).exists():
        if lateness_us not in (None, LATENESS_US):
            reason = "rows that are fed live are late by what the workers say, 30 s"
            then = "asynchealth replay kafka://host:9092/requests --lateness 10m --state NEW"
            raise Problem("--lateness", reason, then)
        with _disk(folder):
            return rejudge(folder, settings, command, started, bar)
    with _disk(folder), state.locked(folder), lake.undone(folder):
        old = load(folder)
        if not old.parts:
            raise Problem(
                str(folder), "holds no rows", f"asynchealth replay PATH… --state {shell(folder)}", Exit.NOTHING
            )
        late = old.lateness_us if lateness_us is None else lateness_us
        parts = _relabelled(folder, old, late)
        run = (started, command, late, list[str]())
        return _switch(folder, old.runs, parts, old.known, old.ledger(), settings, run, bar)


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, duckdb.Error, pl.exceptions.PolarsError) as error:
        if not (why := disk_full(error)):
            raise
        reason = f"{why}; the state is as it was before this run"
        raise Problem(str(folder), reason, f"df -h {shell(folder)}", Exit.STATE) from error


def load(folder: Path, fresh: bool = False) -> Old:
    """What the state holds; an empty folder holds nothing. One that is fed live has another writer."""
    if (folder / state.LANDING).exists():
        reason = "fed live by asynchealth land; what is replayed or judged again needs a state of its own"
        raise Problem(str(folder), reason, "asynchealth replay PATH… --state NEW", Exit.STATE)
    if fresh or not (folder / READABLE).exists():
        return Old()
    con = state.open_readable(folder)
    try:
        runs = con.execute("SELECT * FROM runs ORDER BY started").fetchall()
        covered = con.execute("SELECT stream, field, rows, filled FROM coverage").fetchall()
        return Old(
            state.parts_of(con),
            state.known_of(con),
            [con.sql("FROM rejects").pl()],
            {(s, f): [rows, filled] for s, f, rows, filled in covered},
            runs,
            runs[-1][3],
        )
    finally:
        con.close()


def _relabelled(folder: Path, old: Old, lateness_us: int) -> list[Part]:
    """Parts whose rows say what is late by the lateness asked for: written anew if it was another before."""
    if lateness_us == old.lateness_us:
        return old.parts
    return [lake.relabel(folder, part, lateness_us) for part in old.parts]


def _switch(
    folder: Path,
    runs: Sequence[tuple[Any, ...]],
    parts: Sequence[Part],
    known: Sequence[Known],
    ledger: Ledger,
    settings: Settings,
    run: tuple[datetime, str, int, list[str]],
    bar: Progress,
) -> Outcome:
    """Builds the new readable file and puts it in the old one's place."""
    detectors = all_detectors()
    started, command, lateness_us, notes = run
    with state.build(folder) as con:
        analysis = Analysis(folder, detectors, settings, lateness_us, con, bar)
        bar.begin("judging", sum(p.rows for p in parts))
        analysis.run(parts)
        state.land_incidents(con, settings)
        state.land_rows(con, "lake_parts", parts)
        state.land_rows(con, "recordings", known)
        rejects = _rejects(ledger)
        state.land_frame(con, "rejects", rejects)
        state.land_frame(con, "accounting", _accounting(analysis.accounting, rejects, known))
        covered = ledger.coverage
        state.land_rows(con, "coverage", [(s, f, *n) for (s, f), n in sorted(covered.items())])
        sight = state.land_sight(con, detectors, covered)
        state.land_settings(con, rows_of(settings))
        ended = datetime.now(UTC)
        state.land_rows(con, "runs", [*runs, (started, ended, command, lateness_us, version("asynchealth"), notes)])
        state.add_views(con, folder, parts)
        done = outcome(con, notes, sight)
    lake.sweep(folder, [p.path for p in parts])
    bar.end()
    return done


def _rejects(ledger: Ledger) -> pl.DataFrame:
    if not ledger.rejects:
        return pl.DataFrame(schema={"stream": pl.String, "source": pl.String, "partition": pl.Int64})
    columns = ["stream", "source", "partition", "offset", "sub", "reason", "field", "raw"]
    return pl.concat([f.select(columns) for f in ledger.rejects]).sort("stream", "partition", "offset", "sub")


def _accounting(counted: Sequence[pl.DataFrame], rejects: pl.DataFrame, known: Sequence[Known]) -> pl.DataFrame:
    """Rows by stream, file and minute; rejects and null records have no minute: their line has none."""
    numbers = ["read", "used", "late", "implausible", "rejected", "repeated", "tombstones"]
    frames = [f.with_columns(pl.lit(0, dtype=pl.Int64).alias(n) for n in ("rejected", "tombstones")) for f in counted]
    nothing: dict[str, pl.DataType] = {"stream": pl.String(), "partition": pl.Int64(), "minute": INSTANT}
    frames.append(pl.DataFrame(schema=nothing | dict.fromkeys(numbers, pl.Int64())))
    lost = rejects.group_by("stream", "partition").agg(pl.len().cast(pl.Int64).alias("rejected"))
    for stream, partition, rejected in lost.iter_rows():
        frames.append(_unplaced(stream, partition, rejected, 0))
    frames += [_unplaced(k.stream, k.partition, 0, k.tombstones) for k in known if k.tombstones]
    names = pl.DataFrame(
        {
            "stream": [k.stream for k in known],
            "partition": [k.partition for k in known],
            "source": [k.name for k in known],
        },
        schema_overrides={"partition": pl.Int64},
    )
    every = pl.concat(frames, how="diagonal_relaxed").with_columns(pl.col(numbers).fill_null(0))
    summed = every.group_by("stream", "partition", "minute").agg(pl.col(numbers).sum())
    return summed.join(names, on=["stream", "partition"], how="left").sort("stream", "partition", "minute")


def _unplaced(stream: str, partition: int, rejected: int, tombstones: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "stream": stream,
            "partition": partition,
            "read": rejected + tombstones,
            "rejected": rejected,
            "tombstones": tombstones,
        }
    )
