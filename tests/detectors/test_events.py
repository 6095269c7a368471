"""Events: what JSON, typed columns, Arrow and DuckDB say is the same event; what is none is a reject with its place."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.events import (
    CLOCK,
    COORDINATES,
    INSTANT,
    LIST_MAX,
    MAX_INT,
    MAX_WEIGHT,
    PLACED,
    SCHEMA,
    STREAMS,
    Field,
    conform,
    ddl,
    decode_json,
    encode_json,
    fields,
)
from detectors.windows import SUB_BITS
from tests.events import Row, as_columns, as_json, rows

GOLDEN = Path(__file__).parents[1] / "golden"
REQUEST: Row = {"timestamp": 1769414400, "service_name": "payment", "node_id": "payment-1"}


def decoded(stream: str, some: list[Row]) -> pl.DataFrame:
    result = decode_json(stream, [as_json(stream, r) for r in some])
    assert result.rejects.is_empty(), result.rejects
    return result.events


def request_with(**changes: Any) -> bytes:
    return json.dumps(REQUEST | changes).encode()


# ---- one definition, every form -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", STREAMS)
def test_the_ddl_of_a_stream_is_the_golden_one(stream: str) -> None:
    assert ddl(stream) == (GOLDEN / f"ddl_{stream}.sql").read_text()


@pytest.mark.parametrize("stream", STREAMS)
@settings(max_examples=20)
@given(data=st.data())
def test_an_event_survives_json_arrow_duckdb_and_back(stream: str, data: st.DataObject) -> None:
    some = data.draw(rows(stream))
    events = decoded(stream, some)
    assert len(events) == len(some)
    for name in SCHEMA[stream]:
        for row, cell in zip(some, events[name].to_list(), strict=True):
            if name in row and SCHEMA[stream][name] == CLOCK:
                assert cell == [{"key": k, "value": v} for k, v in sorted(row[name].items())]
            elif name in row and SCHEMA[stream][name] != INSTANT:
                assert cell == row[name]
    back = through_duckdb(stream, events)
    assert back.equals(events)
    again = decode_json(stream, encode_json(stream, back.select(list(SCHEMA[stream]))))
    assert again.rejects.is_empty()
    assert again.events.equals(events)


def through_duckdb(stream: str, events: pl.DataFrame) -> pl.DataFrame:
    """Lands as the DDL says and reads it again."""
    blank: dict[Any, Any] = {pl.String(): "", pl.Int64(): 0, pl.Boolean(): True}
    rest = [pl.lit(blank[t]).alias(n) for n, t in {**COORDINATES, **PLACED}.items() if n not in events.columns]
    clock = " REPLACE (map_from_entries(vector_clock) AS vector_clock)" if stream == "write_log" else ""
    pairs = " REPLACE (map_entries(vector_clock) AS vector_clock)" if stream == "write_log" else ""
    with duckdb.connect() as con:
        con.execute("SET TimeZone='UTC'")
        con.execute(ddl(stream))
        con.register("frame", events.with_columns(rest).to_arrow())
        con.execute(f"INSERT INTO {stream} BY NAME SELECT *{clock} FROM frame")
        back = con.sql(f"SELECT *{pairs} FROM {stream}").pl()
    typed: pl.DataFrame = back.select(pl.col(n).cast(t) for n, t in events.schema.items())
    return typed


@pytest.mark.parametrize("stream", STREAMS)
@settings(max_examples=20)
@given(data=st.data())
def test_typed_columns_say_what_json_says(stream: str, data: st.DataObject) -> None:
    some = data.draw(rows(stream))
    events, rejects = conform(stream, as_columns(stream, some))
    assert rejects.is_empty(), rejects
    assert events.equals(decoded(stream, some))


@settings(max_examples=60)
@given(
    st.sampled_from(
        [
            ("duration_ms", -0.5),
            ("duration_ms", 1e13),
            ("retry_count", -1),
            ("weight", 0),
            ("weight", MAX_WEIGHT + 1),
            ("status", "fine"),
            ("timestamp", "2026-01-26T08:00:00"),
            ("timestamp", "yesterday"),
            ("arrival", ""),
            ("applied", "perhaps"),
            ("seq", 1.5),
        ]
    ),
    st.integers(0, 2**40 - 1),
)
def test_a_bad_value_is_rejected_with_its_field_in_json_and_in_columns(bad: tuple[str, Any], offset: int) -> None:
    name, value = bad
    in_json = decode_json("requests", [request_with(), request_with(**{name: value})], offset)
    assert in_json.rejects.select("offset", "sub", "field").rows() == [(offset + 1, 0, name)]
    assert in_json.events["offset"].to_list() == [offset]
    column = pl.DataFrame({k: [v] for k, v in (REQUEST | {name: value}).items()})
    numbered = column.with_columns(offset=pl.lit(offset + 1), sub=pl.lit(0, dtype=pl.Int64))
    events, rejects = conform("requests", numbered)
    assert events.is_empty()
    assert rejects.select("offset", "sub", "field").rows() == [(offset + 1, 0, name)]
    assert rejects["raw"].item() == str(value)


# ---- times ----------------------------------------------------------------------------------------------------------

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PER_SECOND = {"s": 10**9, "ms": 10**6, "µs": 10**3, "ns": 1}


def spellings(ns: int, offset_min: int) -> list[str]:
    """The instant as s, ms, µs, ns, and RFC 3339 in a zone, each with every digit."""
    with_digits = [format(Decimal(ns) / unit, "f") for unit in PER_SECOND.values()]
    second, fraction = divmod(ns, 10**9)
    local = (EPOCH + timedelta(seconds=second)).astimezone(timezone(timedelta(minutes=offset_min)))
    zone = "Z" if not offset_min else local.strftime("%z")[:3] + ":" + local.strftime("%z")[3:]
    return [*with_digits, f"{local:%Y-%m-%dT%H:%M:%S}.{fraction:09d}{zone}"]


@settings(max_examples=100)
@given(
    st.integers(10**17, 4 * 10**18) | st.integers(-2 * 10**18, -(10**17)),  # nearer to 1970 the units blur
    st.integers(-1439, 1439),
)
def test_an_instant_is_the_same_in_five_spellings_floored_to_us(ns: int, offset_min: int) -> None:
    texts = spellings(ns, offset_min)
    column = pl.DataFrame({"timestamp": texts, "service_name": "s", "node_id": "n"})
    numbered = column.with_columns(offset=pl.int_range(5, dtype=pl.Int64), sub=pl.lit(0, dtype=pl.Int64))
    events, rejects = conform("requests", numbered)
    assert rejects.is_empty(), rejects
    assert events["timestamp"].cast(pl.Int64).unique().to_list() == [ns // 1000]
    in_json = decode_json("requests", [request_with(timestamp=t) for t in texts] + [request_with(timestamp=ns)])
    assert in_json.events["timestamp"].cast(pl.Int64).unique().to_list() == [ns // 1000]


@settings(max_examples=50)
@given(st.integers(10**14, 4 * 10**15), st.sampled_from(["UTC", "Asia/Tokyo", "America/New_York"]))
def test_a_number_with_a_fraction_keeps_its_us_and_a_zoned_column_its_instant(us: int, zone: str) -> None:
    number = request_with(timestamp=0).replace(
        b'"timestamp": 0', f'"timestamp": {us // 10**6}.{us % 10**6:06d}'.encode()
    )
    assert decode_json("requests", [number]).events["timestamp"].cast(pl.Int64).to_list() == [us]
    kinds = {pl.Datetime("us", zone): us, pl.Datetime("ns", zone): us * 1000 + 999, pl.Int64(): us, pl.UInt64(): us}
    for kind, value in kinds.items():
        column = pl.DataFrame({"timestamp": pl.Series([value], dtype=pl.Int64).cast(kind)})
        rest = [pl.lit("s").alias("service_name"), pl.lit("n").alias("node_id")]
        zero = [pl.lit(0, dtype=pl.Int64).alias(n) for n in ("offset", "sub")]
        events, rejects = conform("requests", column.with_columns(*rest, *zero))
        assert rejects.is_empty(), (kind, rejects)
        assert events["timestamp"].cast(pl.Int64).to_list() == [us], kind


@pytest.mark.parametrize(
    ("text", "us"),
    [
        (0, 0),
        ("0", 0),
        (-1, -1_000_000),
        (-1e-9, -1),
        ("1969-12-31T23:59:59.9999999Z", -1),
        ("0001-01-01T00:00:00Z", -62_135_596_800_000_000),
        ("9999-12-31T23:59:59.999999999Z", 253_402_300_799_999_999),
        (99_999_999_999, 99_999_999_999_000_000),
        (100_000_000_000, 100_000_000_000_000),
        (99_999_999_999_999, 99_999_999_999_999_000),
        (100_000_000_000_000, 100_000_000_000_000),
        (99_999_999_999_999_999, 99_999_999_999_999_999),
        (100_000_000_000_000_000, 100_000_000_000_000),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000_000),
    ],
)
def test_times_at_the_borders_of_their_units(text: Any, us: int) -> None:
    result = decode_json("requests", [request_with(timestamp=text)])
    assert result.events["timestamp"].cast(pl.Int64).to_list() == [us], result.rejects


@pytest.mark.parametrize(
    "text",
    ["", "2026-01-26", "2026-01-26T08:00:00", "08:00Z", "1e9", "+12026-01-26T08:00:00Z", 10**30, 1e300, "NaN", "∞"],
)
def test_what_is_no_time_with_a_zone_in_our_years_is_rejected(text: Any) -> None:
    result = decode_json("requests", [request_with(timestamp=text)])
    assert result.events.is_empty()
    assert result.rejects.select("field", "reason").rows() == [
        ("timestamp", "not a time with a zone (RFC 3339, or epoch s, ms, µs, ns)")
    ]


def test_a_column_of_times_without_zone_or_beyond_our_years_is_rejected() -> None:
    for kind, value in ((pl.Datetime("us"), 0), (pl.Datetime("ms", "UTC"), MAX_INT), (pl.Date(), 1)):
        column = pl.DataFrame(
            {"timestamp": pl.Series([value], dtype=pl.Int64).cast(pl.Int32 if kind == pl.Date else pl.Int64).cast(kind)}
        )
        rest = [pl.lit("s").alias("service_name"), pl.lit("n").alias("node_id")]
        zero = [pl.lit(0, dtype=pl.Int64).alias(n) for n in ("offset", "sub")]
        events, rejects = conform("requests", column.with_columns(*rest, *zero))
        assert events.is_empty(), kind
        assert rejects["field"].to_list() == ["timestamp"]


# ---- records --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "reason", "field"),
    [
        (b"", "not JSON: input data was truncated", ""),
        (b"{", "not JSON: input data was truncated", ""),
        (b"garbage", "not JSON: invalid character (byte 0)", ""),
        (b"5", "expected `object | array | null`, got `int`", ""),
        (b'{"timestamp": NaN}', "not JSON: invalid character (byte 14)", ""),
        (b'{"timestamp": Infinity}', "not JSON: invalid character (byte 14)", ""),
        (b'{"timestamp": 0, "node_id": "n"}', "missing", "service_name"),
        (request_with(node_id=5), "expected `str`, got `int`", "node_id"),
        (request_with(duration_ms=-1), "expected `float` >= 0.0", "duration_ms"),
        (request_with(error="\udcff").replace(b"\\udcff", b"\xff"), "not UTF-8: invalid start byte", ""),
        (request_with(x="y").replace(b'"y"', b"[" * 100_000), "nested too deeply", ""),
    ],
)
def test_a_bad_record_is_a_reject_that_says_what_and_where(record: bytes, reason: str, field: str) -> None:
    result = decode_json("requests", [request_with(), record, request_with()], 7)
    assert result.rejects.select("offset", "sub", "reason", "field").rows() == [(8, 0, reason, field)]
    assert result.events["offset"].to_list() == [7, 9]
    assert len(result.rejects["raw"].item()) <= 200


def test_the_path_of_a_bad_value_inside_a_map_is_kept() -> None:
    write = {"timestamp": 0, "node_id": "n", "vector_clock": {"a": 1, "b": "x"}}
    result = decode_json("write_log", [json.dumps(write).encode()])
    assert result.rejects["field"].to_list() == ["vector_clock[...]"]


def test_one_bad_event_of_a_list_does_not_cost_the_others() -> None:
    members = [REQUEST, REQUEST | {"status": "fine"}, 5, None, REQUEST | {"timestamp": "x"}, REQUEST]
    result = decode_json("requests", [json.dumps(members).encode(), b"[]", b"null"], 3)
    assert result.events.select("offset", "sub").rows() == [(3, 0), (3, 5)]
    assert sorted(result.rejects.select("offset", "sub", "field").rows()) == [
        (3, 1, "status"),
        (3, 2, ""),
        (3, 3, ""),
        (3, 4, "timestamp"),
    ]
    assert result.tombstones == 2, "an empty list and a null hold nothing"


@pytest.mark.parametrize("first", [REQUEST, 5])
def test_a_list_longer_than_coordinates_reach_is_cut_and_counted(first: Any) -> None:
    """With a bad event among them, too: then the list is taken apart."""
    assert LIST_MAX == 2**SUB_BITS
    result = decode_json("requests", [json.dumps([first] + [REQUEST] * (LIST_MAX + 1)).encode()])
    good = LIST_MAX - (first == 5)
    assert result.events["sub"].to_list() == list(range(LIST_MAX - good, LIST_MAX))
    assert len(result.events) + len(result.rejects) == LIST_MAX + 2
    assert set(result.rejects.filter(pl.col("sub") >= LIST_MAX)["reason"]) == {"more than 2,048 events in one record"}


def test_null_means_the_default() -> None:
    nothing = {f.name: None for f in fields("requests") if not f.required}
    result = decode_json("requests", [request_with(**nothing), request_with()])
    assert result.rejects.is_empty()
    assert result.events.drop("offset")[0].equals(result.events.drop("offset")[1])
    assert result.events["weight"].to_list() == [1, 1]
    assert result.events["environment"].to_list() == ["", ""]


def test_a_heartbeat_without_timestamp_has_that_of_its_observer_and_a_bad_one_is_rejected() -> None:
    beat = {"node_id": "n", "client_time": 1, "server_time": 2}
    result = decode_json(
        "heartbeats", [json.dumps(beat | t).encode() for t in ({}, {"timestamp": 9}, {"timestamp": "x"})]
    )
    assert result.events["timestamp"].cast(pl.Int64).to_list() == [2_000_000, 9_000_000]
    assert result.rejects["field"].to_list() == ["timestamp"]


# ---- columns of any type --------------------------------------------------------------------------------------------

SPECIMENS = {
    "null": pl.Series([None, None]),
    "text": pl.Series(["a", "true"]),
    "int8": pl.Series([-1, 1], dtype=pl.Int8),
    "uint64": pl.Series([2**64 - 1, 0], dtype=pl.UInt64),
    "int128": pl.Series([2**100, 0], dtype=pl.Int128),
    "float32": pl.Series([1.5, float("nan")], dtype=pl.Float32),
    "float64": pl.Series([float("inf"), -1.0]),
    "decimal": pl.Series([Decimal("1.50"), Decimal("2")]),
    "boolean": pl.Series([True, False]),
    "date": pl.Series([1, 2], dtype=pl.Int32).cast(pl.Date),
    "time": pl.Series([1, 2], dtype=pl.Int64).cast(pl.Time),
    "duration": pl.Series([1, 2], dtype=pl.Int64).cast(pl.Duration("ms")),
    "naive": pl.Series([1, 2], dtype=pl.Int64).cast(pl.Datetime("ns")),
    "zoned": pl.Series([1, 2], dtype=pl.Int64).cast(pl.Datetime("ms", "Asia/Tokyo")),
    "bytes": pl.Series([b"a", b"\xff"]),
    "list": pl.Series([[1], []], dtype=pl.List(pl.Int64)),
    "array": pl.Series([[1], [2]], dtype=pl.Array(pl.Int64, 1)),
    "struct": pl.Series([{"a": 1, "b": None}, {"a": -1, "b": 2}]),
    "map": pl.Series([[{"key": "b", "value": 1}, {"key": "a", "value": 2}], [{"key": "a", "value": -1}]]),
    "categorical": pl.Series(["ok", "x"], dtype=pl.Categorical),
    "enum": pl.Series(["ok", "x"], dtype=pl.Enum(["ok", "x"])),
}


def good_value(field: Field) -> Any:
    return "0" if field.dtype == INSTANT else field.values[0] if field.values else "x"


@pytest.mark.parametrize("kind", SPECIMENS)
@pytest.mark.parametrize("stream", STREAMS)
def test_a_column_of_any_type_gives_events_and_rejects_never_an_error(stream: str, kind: str) -> None:
    for field in fields(stream):
        others = [pl.lit(good_value(f)).alias(f.name) for f in fields(stream) if f.required and f.name != field.name]
        frame = pl.DataFrame({"offset": [0, 1], "sub": [0, 0]}).with_columns(SPECIMENS[kind].alias(field.name), *others)
        events, rejects = conform(stream, frame)
        assert sorted([*events["offset"], *rejects["offset"]]) == [0, 1], field.name
        assert set(rejects["field"]) <= {field.name}
        assert dict(events.schema) == {**SCHEMA[stream], "offset": pl.Int64, "sub": pl.Int64}, field.name
        lost = events.filter(pl.col(field.name).is_null())["offset"]
        assert SPECIMENS[kind].gather(lost).null_count() == len(lost), "a value became null without a complaint"


@pytest.mark.parametrize(
    ("raw", "pairs"),
    [
        ([{"key": "b", "value": 1}, {"key": "a", "value": 2}], [("a", 2), ("b", 1)]),
        ([], []),
        ([{"key": "a", "value": 1}, {"key": "a", "value": 2}], None),
        ([{"key": None, "value": 1}], None),
        ([{"key": "a", "value": None}], None),
        ([{"key": "a", "value": -1}], None),
        ({"b": 1, "a": None, "c": 0}, [("b", 1), ("c", 0)]),
    ],
)
def test_a_vector_clock_is_a_map_of_nodes_to_counts_or_rejected(raw: Any, pairs: list[tuple[str, int]] | None) -> None:
    kind = CLOCK if isinstance(raw, list) else None
    frame = pl.DataFrame({"vector_clock": pl.Series([raw], dtype=kind), "timestamp": "0", "node_id": "n"})
    zero = [pl.lit(0, dtype=pl.Int64).alias(n) for n in ("offset", "sub")]
    events, rejects = conform("write_log", frame.with_columns(zero))
    if pairs is None:
        assert rejects.select("field", "reason").rows() == [("vector_clock", "expected map of node to count")]
    else:
        assert [(c["key"], c["value"]) for c in events["vector_clock"].to_list()[0]] == pairs


def test_a_whole_number_may_be_written_as_a_double() -> None:
    """As in columns of tools that know only doubles; a fraction is still a mistake, alone and in a list."""
    event = b'{"timestamp":1700000000.0,"node_id":"a","version":%s,"vector_clock":{"a":1.0}}'
    decoded = decode_json("write_log", [event % b"3.0", event % b"3.5", b"[%s,%s]" % (event % b"4.0", event % b"4.5")])
    assert decoded.events.select("version", "offset", "sub").rows() == [(3, 0, 0), (4, 2, 0)]
    assert decoded.events["vector_clock"].to_list() == [[{"key": "a", "value": 1}]] * 2
    assert decoded.rejects.select("offset", "sub", "field").rows() == [(1, 0, "version"), (2, 1, "version")]
