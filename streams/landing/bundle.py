"""A state and a span of time enter, one file leaves that is a state again wherever it is opened."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import polars as pl

from detectors.events import STREAMS
from detectors.windows import HOUR_US, us_of
from streams.landing import lake, state
from streams.landing.lake import Part
from streams.problems import Exit, Problem, shell
from streams.sources.files import READABLE

NOT_OURS = {"meta", "lake_parts", "positions", "taken", "landed", "rejects"}  # of the whole state, or without a time
OVERLAPS = "onset <= $until AND (resolved IS NULL OR resolved >= $since)"
CHOSEN = {
    "accounting": "minute IS NULL OR minute BETWEEN $since AND $until",
    "findings": OVERLAPS,
    "finding_changes": f"finding_id IN (SELECT finding_id FROM findings WHERE {OVERLAPS})",
    "incident_changes": f"incident_id IN (SELECT incident_id FROM incidents WHERE {OVERLAPS})",
}
PLACE = ["partition", "offset", "sub"]
MEASURED = "window_start BETWEEN $since AND $until"
Span = dict[str, datetime]


@dataclass(frozen=True)
class Packed:
    rows: int
    tables: int
    size_bytes: int


def pack(
    folder: Path,
    con: duckdb.DuckDBPyConnection,
    since: datetime,
    until: datetime,
    beside: Mapping[str, str],
    to: Path,
    proof: Sequence[Mapping[str, Any]] = (),
) -> Packed:
    """The rows that arrived in the span, what was measured and found in it, and other files by their names.

    con: of the state's readable file. proof: rows that are in it, too, whenever they arrived; a span begins and ends
    as if they were not. The bundle is whole, or not there at all.
    """
    with TemporaryDirectory(dir=to.parent, prefix=f".{to.name}-") as aside:
        small = Path(aside) / "state"
        small.mkdir()
        parts = [p for part in state.parts_of(con) if (p := _cut(folder, small, part, since, until, proof))]
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


def _cut(
    folder: Path, small: Path, part: Part, since: datetime, until: datetime, proof: Sequence[Mapping[str, Any]]
) -> Part | None:
    """The part's rows that arrived in the span, as a part of the bundle; tables that lie in the lake come as tables."""
    lo, hi = us_of(since), us_of(until)
    mine = [
        r
        for r in proof
        if r["stream"] == part.stream and part.first_arrival <= us_of(r["arrival"]) <= part.last_arrival
    ]
    if part.stream not in STREAMS or not (mine or (lo <= part.last_arrival and part.first_arrival <= hi)):
        return None
    places = pl.DataFrame([[r[n] for n in PLACE] for r in mine], schema=dict.fromkeys(PLACE, pl.Int64), orient="row")
    rows = lake.read(folder, part)
    inside = pl.col("arrival").is_between(since, until)
    rows = pl.concat([rows.filter(inside), rows.filter(~inside).join(places, on=PLACE, how="semi")])
    if not len(rows):
        return None
    cut = lake.write_part(small, part.stream, part.first_arrival // HOUR_US, rows)
    first, last = (min(max(us, lo), hi) for us in (cut.first_arrival, cut.last_arrival))
    return replace(cut, first_arrival=first, last_arrival=last)


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
    """Where it is a state again: a new folder of the bundle's name, which is whole or not there at all."""
    try:
        with zipfile.ZipFile(bundle) as file:
            names = [Path(n) for n in file.namelist()]
            folder = into / names[0].parts[0] if names else into
            inside = all(n.parts[0] == folder.name and ".." not in n.parts for n in names)
            if Path(folder.name) / READABLE not in names or not inside:
                raise Problem(str(bundle), "no bundle of asynchealth", "asynchealth bundle INCIDENT", Exit.USAGE)
            if folder.exists():
                raise Problem(
                    str(folder), "is there already", f"asynchealth report --state {shell(folder)}", Exit.USAGE
                )
            into.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=into, prefix=f".{folder.name}-") as aside:
                file.extractall(aside)
                os.replace(Path(aside) / folder.name, folder)
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Problem(str(bundle), f"can't be opened: {reason}", f"ls -l {shell(bundle)}", Exit.USAGE) from None
    return folder
