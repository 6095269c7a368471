"""python -m bench.report [--events 100e6] [--keep DIR]: how long the morning report takes over so many landed events.

And the timeline of one incident out of them. The demo fleet's hour is landed once; its rows, tables and findings are
laid down again for each hour before it, in lake and readable file, as a replay of all of them would: every hour with
coordinates and ids of its own. The time is that of the whole command, the best of three.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import polars as pl
from polars import col

from detectors.detector import Settings
from detectors.events import STREAMS
from detectors.finding import QUIET_US
from detectors.windows import HOUR_US, OFFSET_BITS, SUB_BITS
from streams.chaos.fleet import make_hour, write_tape
from streams.landing import lake, state
from streams.replay import replay
from streams.sources.files import READABLE

RUNS = 3
DAY_H = 24
IDS = {"request_id", "trace_id", "span_id", "parent_span_id", "idempotency_key", "event_id"}  # no hour has another's
COORDINATES = {"coord", "witness", "earlier", "proof"}  # and all that end in _proof
US = {"t", "last_us", "goodbye_us"}
REPORT = {
    "report, the last 24 h": ["report", "--since", "24h"],
    "report, the last 24 h, HTML": ["report", "--since", "24h", "--format", "html"],
    "report, one service, 24 h": ["report", "--since", "24h", "--service", "payment"],
    "report, all of it": ["report"],
}


def again(folder: Path, hours: int) -> None:
    """The state's hour laid down for so many hours before it, too, each as a recording of its own would have been."""
    con = duckdb.connect(str(folder / READABLE))
    state.prepare(con)
    parts = state.parts_of(con)
    rows = {p: lake.read(folder, p) for p in parts}
    recordings = 1 + int(con.execute('SELECT max("partition") FROM recordings').fetchall()[0][0])
    for number in range(1, hours):
        state.land_rows(con, "lake_parts", [_shifted(folder, p.stream, rows[p], number, recordings) for p in parts])
    for name, column in _windowed(con):
        _lay_down(con, name, column, hours, recordings)
    _find(con, hours, recordings)
    con.execute(f"UPDATE coverage SET rows = rows * {hours}, filled = filled * {hours}")
    state.add_views(con, folder, state.parts_of(con))
    con.execute("CHECKPOINT")
    con.close()


def _shifted(folder: Path, stream: str, rows: pl.DataFrame, number: int, recordings: int) -> lake.Part:
    """The rows as they would have been so many hours before."""
    earlier = rows.with_columns(
        col(pl.Datetime) - pl.duration(hours=number),
        col("partition") + number * recordings,
        *(col(n) + f".{number}" for n in IDS.intersection(rows.columns)),
    )
    hour = earlier["arrival"].cast(pl.Int64).min()
    return lake.write_part(folder, stream, int(hour) // HOUR_US, earlier)  # type: ignore[arg-type]


def _windowed(con: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    """Tables that have a row for each window or minute, and that column."""
    names = "SELECT table_name, column_name FROM duckdb_columns() WHERE column_name IN ('window_start', 'minute')"
    return con.execute(f"{names} AND database_name <> 'temp' AND NOT internal").fetchall()


def _lay_down(con: duckdb.DuckDBPyConnection, table: str, at: str, hours: int, recordings: int) -> None:
    """The table's rows for each hour, the first hour first, as they land."""
    coordinate = f"$n * {recordings} * (1::BIGINT << {OFFSET_BITS + SUB_BITS})"
    earlier = {at: f"{at} - to_hours($n)"}
    for name, kind in con.execute(f"SELECT name, type FROM pragma_table_info('{table}')").fetchall():
        if name in COORDINATES or name.endswith("_proof"):
            earlier[name] = f"{name} + {coordinate}"
        elif name == "spans":
            earlier[name] = f"list_transform(spans, lambda c: c + {coordinate})"
        elif name == "partition":
            earlier[name] = f'"partition" + $n * {recordings}'
        elif name in US and kind == "BIGINT":
            earlier[name] = f"{name} - $n * {HOUR_US}"
        elif name in IDS:
            earlier[name] = f"{name} || '.' || $n"
    replaced = ", ".join(f'{sql} AS "{name}"' for name, sql in earlier.items())
    con.execute(f'CREATE TEMP TABLE hour AS FROM "{table}"')
    con.execute(f'DELETE FROM "{table}"')
    con.execute("BEGIN")
    for number in reversed(range(1, hours)):
        con.execute(f'INSERT INTO "{table}" SELECT * REPLACE ({replaced}) FROM hour', {"n": number})
    con.execute(f'INSERT INTO "{table}" FROM hour')
    con.execute("COMMIT")
    con.execute("DROP TABLE hour")


def _find(con: duckdb.DuckDBPyConnection, hours: int, recordings: int) -> None:
    """What was found, once a day; a day later all of it is over. The incidents are those of all days."""
    times = ", ".join(f"{c} - to_hours(n) AS {c}" for c in ("onset", "last", "peak_at"))
    days = f"(SELECT range AS n FROM range({DAY_H}, {hours}, {DAY_H}))"
    partition = f"(regexp_extract(c, '/(\\d+):', 1)::BIGINT + n * {recordings})"
    record = f"split_part(c, '/', 1) || '/' || {partition} || ':' || split_part(c, ':', 2)"
    proof = f"list_transform(proof, lambda c: {record}) AS proof"
    other = f"left(finding_id, 3) || left(md5(finding_id || n), 16) AS finding_id, {times}, {proof}"
    over = f"last + to_microseconds({QUIET_US})"
    con.execute(f"""INSERT INTO finding_changes
        SELECT f.* REPLACE (final_at - to_hours(n) AS final_at, resolved - to_hours(n) AS resolved, {other})
        FROM finding_changes f, {days}
        UNION ALL SELECT {over} - to_hours(n), f.* REPLACE ({over} - to_hours(n) AS resolved, {other})
        FROM findings f, {days} WHERE resolved IS NULL""")
    con.execute(f"""INSERT INTO findings
        SELECT f.* REPLACE (coalesce(resolved, {over}) - to_hours(n) AS resolved, {other}) FROM findings f, {days}""")
    state.land_incidents(con, Settings())


def of_one(folder: Path) -> dict[str, list[str]]:
    """Commands about the incident of most findings that lies nearest to the middle of the events."""
    middle = "(SELECT (min(first_arrival) + max(last_arrival)) / 2 FROM lake_parts)"
    nearest = f"ORDER BY len(findings) DESC, abs(epoch_us(onset) - {middle}) LIMIT 1"
    with state.open_readable(folder) as con:
        ((incident,),) = con.execute(f"SELECT incident_id FROM incidents {nearest}").fetchall()
    return {
        "timeline of one incident amid them": ["timeline", incident],
        "`incident show` of it": ["incident", "show", incident],
        "postmortem of it": ["postmortem", incident],
    }


def took_s(arguments: list[str]) -> tuple[float, float]:
    """(by the clock, of CPU) of a command, the best of RUNS."""
    runs = []
    for _ in range(RUNS):
        begin, cpu = time.monotonic(), _cpu_s()
        subprocess.run([sys.executable, "-m", "streams.cli", *arguments], check=True, capture_output=True)
        runs.append((time.monotonic() - begin, _cpu_s() - cpu))
    clock, cpu_s = zip(*runs, strict=True)
    return min(clock), min(cpu_s)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def made(folder: Path, events: float) -> None:
    """The demo fleet's hour, landed, and again until there are so many events."""
    write_tape(make_hour(1), folder / "tape")
    replay([str(folder / "tape")], folder / "state", Settings())
    with state.open_readable(folder / "state") as con:
        hour = sum(p.rows for p in state.parts_of(con) if p.stream in STREAMS)
    again(folder / "state", max(2 * DAY_H, round(events / hour)))


def size(folder: Path) -> str:
    with state.open_readable(folder) as con:
        parts = [p for p in state.parts_of(con) if p.stream in STREAMS]
    hours = len({p.first_arrival // HOUR_US for p in parts})
    lake_gb = sum(f.stat().st_size for f in (folder / "lake").rglob("*.parquet")) / 1e9
    file_gb = (folder / READABLE).stat().st_size / 1e9
    events = sum(p.rows for p in parts)
    return f"{events:,} landed events of {hours} hours: lake {lake_gb:.1f} GB, readable file {file_gb:.2f} GB"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=float, default=100e6)
    parser.add_argument("--keep", type=Path, help="where the state is made, or was by a run before; else it is removed")
    given = parser.parse_args()
    home = given.keep or Path(tempfile.mkdtemp(prefix="asynchealth-"))
    folder = home / "state"
    try:
        if not folder.exists():
            made(home, given.events)
        busy = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} as it began"
        print(f"{size(folder)}; {busy}\n\n| | the whole command, s | of CPU, s |\n|---|---|---|", flush=True)
        for name, arguments in {**REPORT, **of_one(folder)}.items():
            clock_s, cpu_s = took_s([*arguments, "--state", str(folder)])
            print(f"| {name} | {clock_s:.2f} | {cpu_s:.2f} |", flush=True)
        print("| (`--help`, for comparison) | {:.2f} | {:.2f} |".format(*took_s(["--help"])))
    finally:
        if not given.keep:
            shutil.rmtree(home)


if __name__ == "__main__":
    main()
