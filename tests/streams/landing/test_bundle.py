"""A bundle, opened in an empty folder, says of its incident what the state said that it was cut from."""

from __future__ import annotations

import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from streams.landing.bundle import Packed, pack, unpack
from streams.landing.state import open_readable
from streams.problems import Problem
from streams.report.found import Filter, span_of
from streams.report.timeline import timeline

SINCE, UNTIL = (datetime(2026, 1, 26, 8, m, tzinfo=UTC) for m in (7, 36))


@pytest.fixture(scope="module")
def packed(demo_state: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Packed]:
    to = tmp_path_factory.mktemp("bundle") / "storm.zip"
    with open_readable(demo_state) as con:
        return to, pack(demo_state, con, SINCE, UNTIL, {"asynchealth.toml": "# ours\n"}, to)


def test_it_is_a_state_with_the_rows_of_the_span_and_all_that_was_found_in_it(
    demo_state: Path, packed: tuple[Path, Packed], tmp_path: Path
) -> None:
    file, size = packed
    folder = unpack(file, tmp_path)
    assert (folder / "asynchealth.toml").read_text() == "# ours\n"
    inside = f"arrival BETWEEN TIMESTAMPTZ '{SINCE}' AND TIMESTAMPTZ '{UNTIL}'"
    with open_readable(demo_state) as whole, open_readable(folder) as cut:
        rows = 0
        for stream in ("requests", "heartbeats", "write_log", "signals"):
            asked = f'SELECT * FROM {stream} WHERE {inside} ORDER BY source, "partition", "offset", sub'
            wanted = whole.sql(asked).pl()
            assert len(wanted) and cut.sql(asked).pl().equals(wanted)
            rows += len(wanted)
        assert size.rows == rows == cut.sql("SELECT sum(rows) FROM lake_parts").fetchall()[0][0]
        for table in ("findings", "incidents", "causes"):
            every = f"SELECT * FROM {table} ORDER BY ALL"
            assert len(cut.sql(every).fetchall()) and cut.sql(every).fetchall() == whole.sql(every).fetchall()


def test_its_timeline_of_the_storm_is_the_states(demo_state: Path, packed: tuple[Path, Packed], tmp_path: Path) -> None:
    wanted = Filter(SINCE + timedelta(minutes=9), UNTIL - timedelta(minutes=10))
    told = []
    for folder in (demo_state, unpack(packed[0], tmp_path)):
        with open_readable(folder) as con:
            known = timeline(con, span_of(con, ""), wanted)
            told.append([e for e in known.entries if e.subject in ("payment", "gateway->payment")])
    assert len(told[0]) > 20 and told[0] == told[1]


def test_what_is_no_bundle_or_would_write_elsewhere_is_refused(packed: tuple[Path, Packed], tmp_path: Path) -> None:
    unpack(packed[0], tmp_path)
    with pytest.raises(Problem, match="is there already"):
        unpack(packed[0], tmp_path)
    with pytest.raises(Problem, match="can't be opened"):
        unpack(tmp_path / "none.zip", tmp_path)
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(Problem, match="can't be opened"):
        unpack(tmp_path / "text.zip", tmp_path)
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr("a/asynchealth.duckdb", b"")
        file.writestr("a/../../b", b"")
    with pytest.raises(Problem, match="no bundle"):
        unpack(tmp_path / "evil.zip", tmp_path)
    assert not (tmp_path / "a").exists() and not (tmp_path.parent / "b").exists()


def test_one_that_breaks_off_leaves_no_half_state(packed: tuple[Path, Packed], tmp_path: Path) -> None:
    held = bytearray(packed[0].read_bytes())
    held[len(held) // 2 : len(held) // 2 + 100] = bytes(100)
    (tmp_path / "storm.zip").write_bytes(held)
    with pytest.raises(Problem, match="can't be opened"):
        unpack(tmp_path / "storm.zip", tmp_path / "new")
    assert not [*(tmp_path / "new").iterdir()]
