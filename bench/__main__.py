"""python -m bench [--events N] [--big N]: one run, printed as Markdown; ratios count, absolute times drift."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import duckdb
import polars as pl

from bench import tape
from bench.cpu import Held, cpu_s, most_held
from detectors.detector import Detector, Settings, View, catalog
from detectors.table import Table
from detectors.windows import LATENESS_US
from streams.analysis import Analysis
from streams.landing import state
from streams.progress import Progress

HEADER = "| what | wall s | M events/s | CPU µs/event | peak MB | own | mapped files |\n|---|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Cost:
    wall_s: float
    cpu_s: float
    peak_mb: int
    held: Held

    def row(self, what: str, events: int) -> str:
        rate, per = events / self.wall_s / 1e6, self.cpu_s / events * 1e6
        memory = " | ".join(f"{mb:,}" for mb in (self.peak_mb, *self.held))
        return f"| {what} | {self.wall_s:.1f} | {rate:.2f} | {per:.2f} | {memory} |"


def command(*args: str) -> Cost:
    """A command in a process of its own: wall and CPU time, peak memory."""
    with ThreadPoolExecutor(1) as thread:
        begin = time.monotonic()
        child = subprocess.Popen([sys.executable, *args], stdout=subprocess.DEVNULL)
        held = thread.submit(most_held, child.pid)
        _, status, used = os.wait4(child.pid, 0)
        wall_s = time.monotonic() - begin
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(args)}: exit {child.returncode}")
    return Cost(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss // 1024, held.result())


def cli(*args: str) -> Cost:
    return command("-m", "streams.cli", *args)


POLARS = """
import polars as pl, sys
rows = pl.scan_parquet(sys.argv[1] + "/requests-0.parquet")
minute = pl.col("timestamp").dt.truncate("1m")
print(rows.filter(pl.col("retry_count") > 0, pl.col("side") == "client").group_by("service_name", minute).len()
      .collect(engine="streaming"))
"""
SQL = """
import duckdb, sys
duckdb.sql("SET TimeZone='UTC'")
print(duckdb.sql(f\"\"\"SELECT service_name, date_trunc('minute', timestamp) AS minute, count(*) AS retries
FROM '{sys.argv[1]}/requests-0.parquet' WHERE retry_count > 0 AND side = 'client' GROUP BY ALL\"\"\"))
"""


def replays(folder: Path, events: int) -> tuple[list[str], Path]:
    """Replay with landing, and the engine alone over what landed."""
    rows = tape.write(folder / f"tape-{events}", events)
    total = sum(rows.values())
    where = folder / f"state-{events}"
    name = f"{total / 1e6:.0f} M events"
    lines = [cli("replay", str(folder / f"tape-{events}"), "--state", str(where)).row(f"replay, {name}", total)]
    lines.append(cli("rebuild", "--state", str(where)).row(f"rebuild (rows landed before), {name}", total))
    return lines, where


def fired(where: Path) -> str:
    con = state.open_readable(where)
    found = {n for (n,) in con.execute("SELECT DISTINCT detector FROM findings").fetchall()}
    con.close()
    silent = sorted(set(catalog()) - found)
    return f"{len(found)} of {len(catalog())} detectors fired" + (f"; silent: {', '.join(silent)}" if silent else "")


def peers(folder: Path, events: int) -> list[str]:
    """The same recording, one question, by hand: retries per service and minute."""
    where = str(folder / f"tape-{events}")
    lines = []
    for name, program in (("polars by hand", POLARS), ("DuckDB SQL by hand", SQL)):
        lines.append(command("-c", program, where).row(f"{name}: retries per service and minute", events))
    return lines


def alone(where: Path, detectors: list[Detector]) -> tuple[float, int]:
    """CPU seconds of the engine with these detectors only, and the rows it read."""
    con = state.open_readable(where)
    parts = state.parts_of(con)
    con.close()
    memory = duckdb.connect()
    state.make_findings(memory)
    begin = cpu_s()
    Analysis(where, detectors, Settings(), LATENESS_US, memory, Progress()).run(parts)
    return cpu_s() - begin, sum(p.rows for p in parts)


def _nothing(view: View) -> pl.DataFrame:
    return pl.DataFrame(schema={"window": pl.Int64, "subject": pl.String, "value": pl.Float64})


def _only(table: Table) -> Detector:
    return Detector(name="none", reads=table, assess=_nothing, subject_kind="fleet", thresholds=(), unit="")


def costs(where: Path) -> list[str]:
    detectors = [e.detector for e in catalog().values()]
    tables = {t.name: t for d in detectors for t in d.tables}
    none, rows = alone(where, [])
    lines = [f"| reading the lake, no table | {none / rows * 1e6:.2f} |"]
    spent = {}
    for name, table in sorted(tables.items()):
        spent[name] = alone(where, [_only(table)])[0]
        lines.append(f"| table {name} | {(spent[name] - none) / rows * 1e6:.2f} |")
    for d in detectors:
        base = max(spent[t.name] for t in d.tables)
        lines.append(
            f"| detector {d.name}, beyond its table | {max(0.0, alone(where, [d])[0] - base) / rows * 1e6:.2f} |"
        )
    return lines


def help_time(times: int = 5) -> float:
    return sorted(_timed(lambda: cli("--help")) for _ in range(times))[times // 2]


def _timed(work: Callable[[], Cost]) -> float:
    return work().wall_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=float, default=10e6)
    parser.add_argument("--big", type=float, default=40e6, help="0 leaves the large one out")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; removed afterwards")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="asynchealth-bench-"))
    events = int(given.events)
    try:
        print(HEADER)
        lines, where = replays(folder, events)
        print("\n".join([*lines, *peers(folder, events)]), flush=True)
        if given.big:
            shutil.rmtree(folder / f"tape-{events}")
            print("\n".join(replays(folder, int(given.big))[0]), flush=True)
        print(f"\n{fired(where)}; --help takes {help_time():.2f} s (median of 5).\n")
        print("| cost of one alone, over the same rows | CPU µs/event |\n|---|---|")
        print("\n".join(costs(where)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
