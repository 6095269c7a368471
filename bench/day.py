"""python -m bench.day [--copies N] [--hours N]: a day of landed tables, and what a publication costs at its end.

The demo fleet's hour of tables is landed again and again, window by window, N fleets at once: by a lander that keeps
everything in its database, and by the one that there is. Only the ratios count.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import duckdb
import polars as pl

from detectors.detector import Settings, catalog
from detectors.windows import HOUR_US, WINDOW_US
from streams.chaos.fleet import make_hour, write_tape
from streams.landing import state, tables
from streams.landing.lander import Lander, Place
from streams.landing.publish import publish
from streams.live.numbered import Head, messages, pack
from streams.replay import replay
from streams.sources.files import READABLE

AT_ONCE = 60  # windows that are landed between two publications
PAIRS = 5
DETECTORS = [e.detector for e in catalog().values()]
TABLES = {t.name: t for d in DETECTORS for t in d.tables}
NEVER_OLD_US = 10**6 * HOUR_US


def measured(folder: Path, copies: int) -> dict[str, pl.DataFrame]:
    """The tables of the demo's hour, of so many fleets."""
    write_tape(make_hour(1), folder / "tape")
    replay([str(folder / "tape")], folder / "replayed", Settings())
    with state.open_readable(folder / "replayed") as con:
        found = {n: con.sql(f'SELECT * FROM "{n}"').pl() for n in TABLES if _is_there(con, n)}
    instant = pl.col("window_start").cast(pl.Int64).alias("window")
    plain = {n: f.select(instant, pl.exclude("window_start")) for n, f in found.items()}
    names = [pl.lit(f"fleet-{i}").alias("environment") for i in range(copies)]
    return {n: pl.concat([f.with_columns(name) for name in names]) for n, f in plain.items()}


def _is_there(con: duckdb.DuckDBPyConnection, name: str) -> bool:
    return bool(con.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = ?", [name]).fetchall())


def before_now(hour: Mapping[str, pl.DataFrame], hours: int) -> dict[str, pl.DataFrame]:
    """The hour from which so many, one after the other, end now."""
    moved_us = (time.time_ns() // 1_000 - hours * HOUR_US - _begin_us(hour)) // WINDOW_US * WINDOW_US
    return {n: f.with_columns(pl.col("window") + moved_us) for n, f in hour.items()}


def _begin_us(hour: Mapping[str, pl.DataFrame]) -> int:
    return min(int(f["window"].min()) for f in hour.values())  # type: ignore[arg-type]


def by_window(hour: Mapping[str, pl.DataFrame]) -> dict[int, bytes]:
    """The body that match says of each window."""
    frames: dict[int, dict[str, pl.DataFrame]] = {}
    for name, frame in hour.items():
        for (window,), rows in frame.partition_by("window", as_dict=True, maintain_order=True).items():
            frames.setdefault(int(window) // WINDOW_US, {})[name] = rows.drop("window")
    return {
        w: pack({n: f.with_columns(window=pl.lit(w * WINDOW_US)) for n, f in some.items()})
        for w, some in frames.items()
    }


def landed(folder: Path, hour: Mapping[str, pl.DataFrame], hours: int) -> Lander:
    """So many hours, one after the other, published as they land."""
    folder.mkdir()
    con = duckdb.connect(str(folder / state.LANDING))
    state.prepare(con)
    mine = Lander(folder, con, DETECTORS, ["requests/0"], 1)
    place, offset = Place("tables", 0), 0
    first = _begin_us(hour) // WINDOW_US
    for number in range(hours):
        step = number * HOUR_US
        shifted = by_window({n: f.with_columns(pl.col("window") + step) for n, f in hour.items()})
        for i in range(HOUR_US // WINDOW_US):
            window = first + number * HOUR_US // WINDOW_US + i
            head = Head(producer="0", lo=window, hi=window + 1, kind="rows" if window in shifted else "empty")
            for key, value in messages(head, shifted.get(window, b"")):
                mine.feed(place, offset, key, value)
                offset += 1
            if i % AT_ONCE == AT_ONCE - 1:
                mine.land()
                mine.tidy()
                publish(con, folder / state.LANDING)
    return mine


def publication_s(mine: Lander) -> float:
    begin = time.monotonic()
    mine.tidy()
    publish(mine.con, mine.folder / state.LANDING)
    return time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--hours", type=int, default=24)
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="asynchealth-"))
    try:
        hour = measured(home, given.copies)
        ways = {"all in the database": NEVER_OLD_US, "hours in the lake": tables.YOUNG_US}
        made = {}
        for name, keeps_us in ways.items():
            tables.YOUNG_US = keeps_us
            made[name] = landed(home / name.replace(" ", "-"), hour, given.hours)
        took: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(PAIRS):
            for name, keeps_us in ways.items():
                tables.YOUNG_US = keeps_us
                took[name].append(publication_s(made[name]))
        sizes = {name: (m.folder / READABLE).stat().st_size / 1e6 for name, m in made.items()}
        rows = sum(map(len, hour.values()))
        print(f"{given.hours} hours of {given.copies} fleets: {rows * given.hours:,} rows in {len(hour)} tables\n")
        print("| tables of windows | published file, MB | a publication, s | parts in the lake |\n|---|---|---|---|")
        for name, mine in made.items():
            print(f"| {name} | {sizes[name]:.1f} | {median(took[name]):.3f} | {len(mine.parts)} |")
        old, new = made
        print(f"\nRatio: file {sizes[old] / sizes[new]:.1f}, publication {median(took[old]) / median(took[new]):.1f}")
        for mine in made.values():
            mine.con.close()
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
