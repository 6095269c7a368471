"""A map tried on a log: the rows, the sums, and that each reject leads to the line that it came from."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.sources.fieldmap import FieldMap, parse
from streams.sources.files import BOM, Recording, line_numbers, look
from streams.sources.trial import ROWS, tried

JSON = """stream = "requests"
{}
[fields]
timestamp = "t"
service_name = "s"
node_id = "s"
duration_ms = "d"
region = "r"
"""
GOOD, BAD = b'{"t": 1769428800, "s": "pay"}', b'{"t": 1769428800, "s": "pay", "d": "soon"}'


def map_of(more: str = "") -> FieldMap:
    return parse(JSON.format(more), "map", "mine")


def test_the_first_rows_the_sums_and_what_never_has_a_value(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\n".join([GOOD] * 25 + [BAD, b"null", b"oops"]) + b"\n")
    trial = tried(look(path, "x"), map_of())
    assert trial.counts == {"read": 28, "usable": 25, "rejected": 2, "empty": 1}
    assert len(trial.rows) == ROWS and trial.rows["service_name"].to_list() == ["pay"] * ROWS
    assert trial.filled == {"timestamp": 25, "service_name": 25, "node_id": 25, "duration_ms": 0, "region": 0}
    assert trial.times and {f"{t:%Y-%m-%d %H:%M}" for t in trial.times} == {"2026-01-26 12:00"}
    assert trial.rejects.rows(named=True)[0] == {
        "line": 26, "field": "duration_ms", "path": "d", "reason": "not a number", "raw": "soon",
    }  # fmt: skip
    assert trial.rejects["line"].to_list() == [26, 28] and trial.notes == []


@pytest.mark.parametrize(
    ("content", "more", "lines"),
    [
        (GOOD + b"\n\n  \n" + BAD + b"\n" + GOOD + b"\n" + BAD, "", [4, 6]),
        (BOM + b"\n" + BAD + b"\n", "", [2]),
        (b'{"all": [' + b",".join([GOOD, BAD, BAD]) + b"]}\nnull\n" + BAD + b"\n", 'members = "all"', [1, 1, 3]),
        (b's,t,d\npay,1769428800,1\n"p\na\ny",1769428800,2\npay,1769428800,no\npay,1\n', 'format = "csv"', [6, 7]),
        (b"1769428800\npay 1\n1769428800\npay x\nodd\n", TEXT := "format = 'text'\nlines = 2\n"
         r"line = '(?P<t>\d+)\n(?P<s>\w+) (?P<d>\w+)'", [3, 5]),
    ],
)  # fmt: skip
def test_a_reject_leads_to_the_line_on_which_its_record_begins(
    tmp_path: Path, content: bytes, more: str, lines: list[int]
) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(content))
    assert tried(look(path, "x.gz"), map_of(more)).rejects["line"].to_list() == lines


def test_of_parquet_the_line_is_the_row(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pl.DataFrame({"t": [1769428800] * 3, "s": ["pay"] * 3, "d": ["1", "x", "2"]}).write_parquet(path)
    assert tried(look(path, "x"), map_of()).rejects["line"].to_list() == [2]


def test_what_a_replay_would_do_otherwise_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(GOOD + b"\n" + GOOD + b"\n")[:-5])
    notes = tried(look(path, "x.gz"), map_of('files = "calls*"')).notes
    assert notes[0].startswith("damaged: ") and notes[1].startswith('the map is for files = "calls*"')


@given(st.lists(st.sampled_from([b"a", b"", b" ", b"\r", b"\t\v"])), st.booleans())
def test_every_record_has_the_number_of_its_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], bom: bool
) -> None:
    path = tmp_path_factory.mktemp("lines") / "x"
    path.write_bytes((BOM if bom else b"") + b"\n".join(lines))
    records = [r for block in Recording(look(path, "x")).lines() for r in block]
    numbers = [*line_numbers(look(path, "x"))]
    assert [lines[n - 1] for n in numbers] == records
    assert numbers == [n for n, line in enumerate(lines, 1) if line.strip()]
