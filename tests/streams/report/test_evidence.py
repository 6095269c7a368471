"""Of thousands of parts a screen opens those that hold its rows, and it shows what it would show of all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import polars as pl
import pytest

from detectors.windows import us_of
from streams.landing.state import open_readable, parts_of
from streams.report.evidence import evidence, proven_by, rows_at
from streams.report.found import Filter, Found, all_findings, span_of
from streams.report.timeline import timeline


def test_a_finding_has_as_many_rows_as_its_query_has_over_all_parts(demo_state: Path) -> None:
    with open_readable(demo_state) as con:
        found = all_findings(con)
        sources = {part for f in found for part in parts_of(con) if part.stream == evidence(con, f).stream}
        assert len(sources) > len({p.stream for p in sources})  # one stream has several
        for f in found:
            made_of = evidence(con, f)
            (every,) = con.execute(f"SELECT count(*) FROM ({made_of.query})").fetchall()[0]
            assert made_of.rows(con) == every > 0, f.finding_id


def storm(found: list[Found]) -> Found:
    return next(f for f in found if f.detector == "retry_storm")


def test_rows_that_did_not_arrive_when_they_should_have_are_found_all_the_same(demo_state: Path) -> None:
    with open_readable(demo_state) as con:
        f = storm(all_findings(con))
        known = rows_at(con, f.proof)
        elsewhere = max(p.first_arrival for p in parts_of(con) if p.stream == "requests")
        assert us_of(f.last) < elsewhere and [r["record"] for r in known] and len(known) == len(f.proof)
        assert rows_at(con, f.proof, (elsewhere, elsewhere + 1)) == known == proven_by(con, f, evidence(con, f))


@pytest.mark.parametrize("detector", ["retry_storm", "impossible_timestamp"])
def test_rows_that_came_for_a_closed_time_are_in_no_count_as_in_no_table(
    detector: str, demo_state: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    shutil.copytree(demo_state, folder)
    with open_readable(folder) as con:
        f = next(f for f in all_findings(con) if f.detector == detector)
        made_of = evidence(con, f)
        many = made_of.rows(con)
        parts = [folder / p.path for p in parts_of(con) if p.stream == made_of.stream]
        one = f'SELECT "offset", "partition" FROM ({made_of.query}) LIMIT 1'
        ((offset, partition),) = con.execute(one).fetchall()
    assert many > 1
    for part in parts:
        mine = (pl.col("offset") == offset) & (pl.col("partition") == partition)
        fate = pl.when(mine).then(pl.lit("stray")).otherwise("fate").alias("fate")
        pl.read_parquet(part).with_columns(fate).write_parquet(part)
    with open_readable(folder) as con:
        assert con.execute(f"SELECT count(*) FROM {made_of.stream} WHERE fate = 'stray'").fetchall() == [(1,)]
        assert evidence(con, f).rows(con) == many - 1


@pytest.fixture
def damaged(demo_state: Path, tmp_path: Path) -> Path:
    """The demo, of which the part with the last requests can't be read."""
    folder = tmp_path / "state"
    shutil.copytree(demo_state, folder)
    with open_readable(folder) as con:
        last = max((p for p in parts_of(con) if p.stream == "requests"), key=lambda p: p.first_arrival)
        assert us_of(storm(all_findings(con)).last) < last.first_arrival
    part = folder / last.path
    whole = part.read_bytes()
    kept = int.from_bytes(whole[-8:-4], "little") + 8  # Parquet's footer: a view looks at the columns of its first part
    part.write_bytes(whole[:4] + bytes(len(whole) - kept - 4) + whole[-kept:])
    with open_readable(folder) as con, pytest.raises(duckdb.Error):
        con.execute("SELECT max(node_id) FROM requests").fetchall()
    return folder


def test_the_timeline_of_an_incident_opens_no_part_of_another_time(demo_state: Path, damaged: Path) -> None:
    told = []
    for folder in (demo_state, damaged):
        with open_readable(folder) as con:
            found = all_findings(con)
            chosen = [f.finding_id for f in found if f.incident == storm(found).incident]
            known = timeline(con, span_of(con, ""), Filter(), chosen)
            told.append((known.entries, known.found))
    assert len(told[0][1]) == 5 and any(e.what == "event" for e in told[0][0])
    assert told[0] == told[1]
