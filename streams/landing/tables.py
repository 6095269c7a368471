"""Tables of windows enter the lander's database, whole hours of them leave for Parquet; one view shows both.

A publication copies the database, so it may only hold what is young.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from detectors.windows import HOUR_US
from streams.landing import lake, state
from streams.landing.lake import Part

YOUNG_US = HOUR_US  # an hour that ended so long ago leaves: nothing in the database is older than two
HOUR = f"epoch_us(window_start) // {HOUR_US}"


def written(con: duckdb.DuckDBPyConnection, folder: Path, before_hour: int) -> list[Part]:
    """The hours before one as parts, which count once the list names them."""
    parts = []
    for name in state.recent(con):
        if name in state.HIDDEN:
            continue  # never in the database
        hours = f'SELECT DISTINCT {HOUR} FROM {state.RECENT}."{name}" WHERE {HOUR} < ? ORDER BY ALL'
        parts += [_written(con, folder, name, h) for (h,) in con.execute(hours, [before_hour]).fetchall()]
    return parts


def _written(con: duckdb.DuckDBPyConnection, folder: Path, name: str, hour: int) -> Part:
    path = lake.new_path(folder, name, hour)
    where = str(folder / path).replace("'", "''")
    mine = f'FROM {state.RECENT}."{name}" WHERE {HOUR} = {hour}'
    con.execute(f"COPY ({mine}) TO '{where}' (FORMAT parquet, COMPRESSION zstd)")
    span = con.execute(f"SELECT count(*), epoch_us(min(window_start)), epoch_us(max(window_start)) {mine}")
    return Part(name, str(path), *span.fetchall()[0])


def forget(con: duckdb.DuckDBPyConnection, before_hour: int) -> None:
    """What was written, in the transaction that lists it."""
    for name in state.recent(con):
        if name not in state.HIDDEN:
            con.execute(f'DELETE FROM {state.RECENT}."{name}" WHERE {HOUR} < ?', [before_hour])
