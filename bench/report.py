"""python -m bench.report [--events 100e6]: how long the morning report takes over so many landed events.

The demo fleet's hour is landed once; its rows, tables and findings are laid down again for each hour before it, in lake
and readable file, as a replay of all of them would. The time is that of the whole command, the best of five.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from detectors.detector import Settings
from detectors.events import STREAMS
from detectors.windows import HOUR_US
from streams.chaos.fleet import make_hour, write_tape
from streams.landing import lake, state
from streams.replay import replay
from streams.sources.files import READABLE

RUNS = 5
DAY_H = 24
TIMES = ("timestamp", "arrival", "client_time", "server_time", "started", "finished", "reply_sent", "reply_received")
SHAPES = {
    "the last 24 h": ["--since", "24h"],
    "all of it": [],
    "one service, 24 h": ["--since", "24h", "--service", "payment"],
    "the last 24 h, HTML": ["--since", "24h", "--format", "html"],
}


def again(folder: Path, hours: int) -> int:
    """The state's hour laid down for so many hours before it, too; how many events there are then."""
    con = duckdb.connect(str(folder / READABLE))
    con.execute("SET TimeZone = 'UTC'")
    con.execute(f"CREATE TEMP TABLE ago AS SELECT to_hours(range) AS ago, range AS n FROM range(1, {hours})")
    for name, column in _windowed(con):
        con.execute(f'INSERT INTO "{name}" SELECT t.* REPLACE ({column} - ago AS {column}) FROM "{name}" t, ago')
    at = ", ".join(f"{c} - ago AS {c}" for c in ("onset", "last", "resolved", "peak_at"))
    other = f"finding_id || '-' || n AS finding_id, {at}"
    con.execute(f"INSERT INTO findings SELECT f.* REPLACE ({other}) FROM findings f, ago WHERE n % {DAY_H} = 0")
    con.execute(f"UPDATE coverage SET rows = rows * {hours}, filled = filled * {hours}")
    for part in state.parts_of(con):
        for number in range(1, hours):
            state.land_rows(con, "lake_parts", [_shifted(con, folder, part, number)])
    events = con.execute("SELECT sum(rows)::BIGINT FROM lake_parts WHERE stream IN (SELECT unnest(?))", [[*STREAMS]])
    total = int(events.fetchall()[0][0])
    con.execute("CHECKPOINT")
    con.close()
    return total


def _windowed(con: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    """Tables that have a row for each window or minute, and that column."""
    names = "SELECT table_name, column_name FROM duckdb_columns() WHERE column_name IN ('window_start', 'minute')"
    return con.execute(f"{names} AND database_name <> 'temp' AND NOT internal").fetchall()


def _shifted(con: duckdb.DuckDBPyConnection, folder: Path, part: lake.Part, number: int) -> lake.Part:
    """The part's rows as they would have been so many hours before."""
    first = part.first_arrival - number * HOUR_US
    path = lake.new_path(folder, part.stream, first // HOUR_US)
    rows = f"FROM read_parquet('{folder / part.path}')"
    there = {d[0] for d in con.execute(f"{rows} LIMIT 0").description or ()}
    earlier = ", ".join(f"{c} - to_hours({number}) AS {c}" for c in TIMES if c in there)
    con.execute(f"COPY (SELECT * REPLACE ({earlier}) {rows}) TO '{folder / path}' (FORMAT parquet, COMPRESSION zstd)")
    return lake.Part(part.stream, str(path), part.rows, first, part.last_arrival - number * HOUR_US)


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=float, default=100e6)
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="asynchealth-"))
    try:
        write_tape(make_hour(1), home / "tape")
        replay([str(home / "tape")], home / "state", Settings())
        with state.open_readable(home / "state") as con:
            hour = sum(p.rows for p in state.parts_of(con) if p.stream in STREAMS)
        hours = max(2 * DAY_H, round(given.events / hour))
        events = again(home / "state", hours)
        lake_gb = sum(f.stat().st_size for f in (home / "state" / "lake").rglob("*.parquet")) / 1e9
        file_gb = (home / "state" / READABLE).stat().st_size / 1e9
        print(f"{events:,} landed events of {hours} hours: lake {lake_gb:.1f} GB, readable file {file_gb:.2f} GB\n")
        print("| report over | the whole command, s | of CPU, s |\n|---|---|---|")
        shapes = {n: ["report", "--state", str(home / "state"), *o] for n, o in SHAPES.items()}
        for name, arguments in {**shapes, "(`--help`, for comparison)": ["--help"]}.items():
            print("| {} | {:.2f} | {:.2f} |".format(name, *took_s(arguments)), flush=True)
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
