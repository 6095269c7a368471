"""What columns of Parquet hold beside plain values: nested ones, maps, and times that no calendar has."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow.parquet import write_table

from detectors.events import Decoded
from streams.sources.decode import Reading, chunks, recognise
from streams.sources.fieldmap import parse
from streams.sources.files import Recording, look

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
FAR = 2**62
PAIRS = pa.map_(pa.string(), pa.int64())


def columns(path: Path, values: Any, of: str = "x", field: str = "request_id") -> Decoded:
    """What a map makes of a file with a column x."""
    write_table(pa.table({"at": [START] * len(values), "svc": ["pay"] * len(values), "x": values}), path)
    stream = "write_log" if field == "vector_clock" else "requests"
    service = 'service_name = "svc"\n' if stream == "requests" else ""
    named = f'timestamp = "at"\nnode_id = "svc"\n{service}{field} = "{of}"\n'
    (only,) = [d for _, d in chunks(Recording(look(path, "x")), _reading(stream, named))]
    return only


def _reading(stream: str, named: str) -> Reading:
    return Reading(stream, parse(f'stream = "{stream}"\n[fields]\n{named}', "map"))


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (
            pa.array([[1, FAR]], pa.list_(pa.timestamp("us"))),
            ['["1970-01-01T00:00:00.000001",BEYOND]'],
        ),
        (pa.array([{"t": FAR}], pa.struct([("t", pa.timestamp("ms"))])), ['{"t":BEYOND}']),
        (
            pa.array([[{"t": 2**31 - 1}]], pa.list_(pa.struct([("t", pa.date32())]))),
            ['[{"t":BEYOND}]'],
        ),
        (pa.array([[[1], []], None]), ["[[1],[]]", None]),
        (pa.array([[1, 2]], pa.list_(pa.int64(), 2)), ["[1,2]"]),
        (pa.array([{"a": b"\xff"}, None]), ['{"a":"/w=="}', None]),
        (pa.array([[2**63 - 1]], pa.list_(pa.duration("ms"))), ['["9223372036854775807.000000"]']),
        (pa.array([1_500_000], pa.time64("us")), ["00:00:01.500"]),
        (pa.array([Decimal("9" * 50)], pa.decimal256(60, 2)), ["9" * 50 + ".00"]),
    ],
)
def test_values_of_any_type_are_texts(tmp_path: Path, values: Any, texts: Sequence[str | None]) -> None:
    read = columns(tmp_path / "x.parquet", values)
    far = str(2**31 - 1) if "date32" in str(values.type) else str(FAR)
    assert read.events["request_id"].to_list() == [
        t and t.replace("BEYOND", f'"{far} beyond the calendar"') for t in texts
    ]


@pytest.mark.parametrize("name", ["*", "^x$", "^.*$", "at x"])
def test_a_column_may_have_a_name_that_is_a_pattern_elsewhere(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.parquet"
    write_table(pa.table({"at": [START], "svc": ["pay"], "x": ["other"], name: ["mine"]}), path)
    named = f'timestamp = "at"\nnode_id = "svc"\nservice_name = "svc"\nrequest_id = "{name}"\n'
    (only,) = [d for _, d in chunks(Recording(look(path, "x")), _reading("requests", named))]
    assert only.events["request_id"].to_list() == ["mine"]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_a_duration_beyond_all_measure_is_a_reject_of_its_row(tmp_path: Path, unit: str) -> None:
    values = pa.array([5, 2**63 - 1, -(2**63)], pa.duration(unit))
    read = columns(tmp_path / "x.parquet", values, field="duration_ms")
    assert read.events["offset"].to_list() == [0] and read.rejects["offset"].to_list() == [1, 2]


def test_a_map_is_a_vector_clock_and_holds_values_by_their_keys(tmp_path: Path) -> None:
    path, values = tmp_path / "x.parquet", pa.array([[("b", 1), ("a", 2)], [("a", 1), ("a", 2)]], PAIRS)
    clocks = [[{"key": "a", "value": 2}, {"key": "b", "value": 1}]]
    read = columns(path, values, field="vector_clock")
    assert read.events["vector_clock"].to_list() == clocks and read.rejects["offset"].to_list() == [1]
    assert columns(path, values, of="x.b").events["request_id"].to_list() == ["1", None]
    own = {"timestamp": [START] * 2, "node_id": ["a"] * 2, "vector_clock": values}
    write_table(pa.table(own), path)
    (only,) = [d for _, d in chunks(Recording(look(path, "x")), recognise(look(path, "x")))]
    assert only.events["vector_clock"].to_list() == clocks and only.rejects["offset"].to_list() == [1]


def test_a_time_of_96_bits_that_ns_do_not_reach_keeps_its_year(tmp_path: Path) -> None:
    path, never = tmp_path / "x.parquet", datetime(9999, 12, 31)
    write_table(pa.table({"x": [never]}), path, use_deprecated_int96_timestamps=True)
    named = 'timestamp = { from = "x", zone = "UTC" }\nnode_id = { value = "a" }\n'
    (only,) = [d for _, d in chunks(Recording(look(path, "x")), _reading("write_log", named))]
    assert only.events["timestamp"].dt.year().to_list() == [9999]
