"""A state and a span of time enter, one file leaves that is a state again wherever it is opened."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import polars as pl

from detectors.events import STREAMS
from detectors.windows import HOUR_US
from streams.landing import lake, state
from streams.landing.lake import Part
from streams.problems import Exit, Problem
from streams.sources.files import READABLE

NOT_OURS = {"meta", "lake_parts", "positions", "taken", "landed", "rejects"}  # of the whole state, or without a time
OVERLAPS = "onset <= $until AND (resolved IS NULL OR resolved >= $since)"
CHOSEN = {
    "accounting": "minute IS NULL OR minute BETWEEN $since AND $until",
    "findings": OVERLAPS,
    "finding_changes": f"finding_id IN (SELECT finding_id FROM findings WHERE {OVERLAPS})",
    "incident_changes": f"incident_id IN (SELECT incident_id FROM incidents WHERE {OVERLAPS})",
}
MEASURED = "window_start BETWEEN $since AND $until"
Span = dict[str, datetime]


@dataclass(frozen=True)
class Packed:
    rows: int
    tables: int
    size_bytes: int


def pack(
    folder: Path, con: duckdb.DuckDBPyConnection, since: datetime, until: datetime, beside: Mapping[str, str], to: Path
) -> Packed:
    """The rows that arrived in the span, what was measured and found in it, and other files by their names.

    con: of the state's readable file. The bundle is whole, or not there at all.
    """
    with TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-") as aside:
        small = Path(aside) / "state"
        small.mkdir()
        parts = [p for part in state.parts_of(con) if (p := _cut(folder, small, part, since, until))]
        with state.build(small) as out:
            names = [n for n in _names(con) if n not in NOT_OURS]
            for name in names:
                _copy(con, out, name, {"since": since, "until": until})
            state.land_rows(out, "removed", [("the bundle", since, 0)])
            state.land_rows(out, "lake_parts", parts)
            state.add_views(out, small, parts)
        for name, text in beside.items():
            (small / name).write_text(text, encoding="utf-8")
        packed = Path(aside) / to.name
        _zipped(small, to.stem, packed)
        os.replace(packed, to)
    return Packed(sum(p.rows for p in parts), len(names), to.stat().st_size)


def _cut(folder: Path, small: Path, part: Part, since: datetime, until: datetime) -> Part | None:
    """The part's rows that arrived in the span, as a part of the bundle; tables that lie in the lake come as tables."""
    lo, hi = (int(t.timestamp() * 1e6) for t in (since, until))
    if part.stream not in STREAMS or part.last_arrival < lo or part.first_arrival > hi:
        return None
    rows = lake.read(folder, part).filter(pl.col("arrival").is_between(since, until))
    return lake.write_part(small, part.stream, part.first_arrival // HOUR_US, rows) if len(rows) else None


def _names(con: duckdb.DuckDBPyConnection) -> list[str]:
    return [n for (n,) in con.execute("SELECT DISTINCT table_name FROM duckdb_tables() ORDER BY ALL").fetchall()]


def _copy(con: duckdb.DuckDBPyConnection, out: duckdb.DuckDBPyConnection, name: str, span: Span) -> None:
    columns = con.sql(f'SELECT * FROM "{name}"').columns
    where = CHOSEN.get(name, MEASURED if "window_start" in columns else "true")
    asked = span if "$" in where else {}
    out.register("rows", con.sql(f'SELECT * FROM "{name}" WHERE {where}', params=asked).to_arrow_table())
    if not state.has(out, name):
        out.execute(f'CREATE TABLE "{name}" AS SELECT * FROM rows LIMIT 0')
    out.execute(f'INSERT INTO "{name}" BY NAME SELECT * FROM rows')
    out.unregister("rows")


def _zipped(small: Path, name: str, to: Path) -> None:
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(p for p in small.rglob("*") if p.is_file()):
            file.write(path, Path(name) / path.relative_to(small))


def unpack(bundle: Path, into: Path) -> Path:
    """Where it is a state again: a new folder of the bundle's name."""
    try:
        with zipfile.ZipFile(bundle) as file:
            names = [Path(n) for n in file.namelist()]
            folder = into / names[0].parts[0] if names else into
            inside = all(n.parts[0] == folder.name and ".." not in n.parts for n in names)
            if Path(folder.name) / READABLE not in names or not inside:
                raise Problem(str(bundle), "no bundle of asynchealth", "asynchealth bundle INCIDENT", Exit.USAGE)
            if folder.exists():
                raise Problem(str(folder), "is there already", f"asynchealth report --state {folder}", Exit.USAGE)
            file.extractall(into)
    except (OSError, zipfile.BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Problem(str(bundle), f"can't be opened: {reason}", f"ls -l {bundle}", Exit.USAGE) from None
    return folder
