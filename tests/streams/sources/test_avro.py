"""Avro: messages in Confluent's frame, container files, and what damage costs in each."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fastavro import schemaless_writer, writer
from hypothesis import given
from hypothesis import strategies as st

from detectors.events import Decoded
from streams.problems import Exit, Problem
from streams.sources import decode
from streams.sources.avro import confluent, of_container
from streams.sources.decode import Reading, chunks, from_fields, recognise, unfold_of
from streams.sources.fieldmap import FieldMap, load, parse
from streams.sources.files import Recording, look
from streams.sources.formats import NotOne, of_messages
from streams.sources.named import sources
from tests.streams.tape import accounting, asynchealth

NOON = datetime(2026, 1, 26, 12, tzinfo=UTC)
NOON_MS = 1_769_428_800_000
MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
ORDER = {
    "type": "record",
    "name": "Order",
    "namespace": "shop",
    "fields": [
        {"name": "at", "type": MILLIS},
        {"name": "who", "type": {"type": "record", "name": "Pod", "fields": [{"name": "svc", "type": "string"}]}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "tries", "type": ["null", "int"], "default": None},
    ],
}
MAP = """stream = "requests"
[format]
kind = "avro"
schema = "order.avsc"
[fields]
timestamp = { from = "at", unit = "ms" }
service_name = "who.svc"
node_id = "who.svc"
retry_count = "tries"
payload_hash = "price"
"""


def order(at: int = NOON_MS, svc: str = "pay", tries: int | None = None) -> dict[str, Any]:
    return {"at": at, "who": {"svc": svc}, "price": b"\x01\xff", "tries": tries}


def framed(event: Any, number: int = 7, schema: Any = ORDER) -> bytes:
    body = BytesIO()
    schemaless_writer(body, schema, event)
    return struct.pack(">bI", 0, number) + body.getvalue()


def mapped(folder: Path, text: str = MAP, **schemas: Any) -> FieldMap:
    for name, schema in (schemas or {"order": ORDER}).items():
        (folder / f"{name}.avsc").write_text(json.dumps(schema))
    (folder / "orders.toml").write_text(text)
    return load(folder / "orders.toml")


def messages(by: FieldMap, records: Sequence[bytes]) -> Decoded:
    return from_fields(by, of_messages(unfold_of(by), records))


def container(path: Path, events: Sequence[Any], schema: Any = ORDER, **how: Any) -> Path:
    with path.open("wb") as out:
        writer(out, schema, events, **how)
    return path


def read(path: Path, by: Reading | None = None) -> tuple[Recording, list[Decoded]]:
    file = look(path, path.name)
    recording = Recording(file)
    return recording, [d for _, d in chunks(recording, by or recognise(file))]


# ---- messages -------------------------------------------------------------------------------------------------------


def test_a_message_is_read_by_the_schema_that_the_map_names(tmp_path: Path) -> None:
    done = messages(mapped(tmp_path), [framed(order(tries=2)), framed(order(NOON_MS + 1, "cart"), 8)])
    assert done.rejects.is_empty()
    assert done.events.select("timestamp", "service_name", "retry_count", "payload_hash").rows() == [
        (NOON, "pay", 2, "Af8="),
        (NOON.replace(microsecond=1_000), "cart", None, "Af8="),
    ]


def test_a_topic_that_the_configuration_names_is_read_so_wherever_it_is_read(tmp_path: Path) -> None:
    mapped(tmp_path, MAP + 'region = { file = "^(..)-" }\n')
    (tmp_path / "asynchealth.toml").write_text('[topics]\neu-orders = "orders.toml"\n')
    (topic,) = [s for s in sources(path=tmp_path / "asynchealth.toml") if s.reading.stream == "requests"]
    done = decode.messages(topic.reading, [framed(order()), None, b"no avro", framed(order(tries=1))])
    assert done.events.select("offset", "service_name", "region").rows() == [(0, "pay", "eu"), (3, "pay", "eu")]
    assert (done.rejects["offset"].to_list(), done.tombstones) == ([2], 1)


def test_each_id_may_have_a_schema_of_its_own(tmp_path: Path) -> None:
    older = {**ORDER, "fields": ORDER["fields"][:3]}
    text = MAP.replace('schema = "order.avsc"', 'schema = { 7 = "new.avsc", 3 = "old.avsc" }')
    by = mapped(tmp_path, text, new=ORDER, old=older)
    event = order()
    records = [framed(event), framed({k: event[k] for k in ("at", "who", "price")}, 3, older), framed(event, 9)]
    done = messages(by, records)
    assert done.events["offset"].to_list() == [0, 1]
    assert done.rejects["reason"].to_list() == ["its schema is 9, and the map has 7, 3: [format] schema says"]


def test_another_schema_makes_another_map(tmp_path: Path) -> None:
    before = mapped(tmp_path).digest
    assert mapped(tmp_path).digest == before
    assert mapped(tmp_path, order={**ORDER, "doc": "changed"}).digest != before


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"", "no message in Confluent's frame: it begins with nothing"),
        (b'{"at": 1}', "no message in Confluent's frame: it begins with 7b 22 61 74 22"),
        (b"\0\0\0", "no message in Confluent's frame: it begins with 00 00 00"),
        (framed(order())[:-3], "not Avro of this schema: it ends too early; its schema is 7"),
        (framed(order()) + b"..", "2 bytes are left over: its schema, 7, is not the one that the map has"),
        (framed(order())[:5] + b"\0\x02\xff" + framed(order())[12:], "not Avro of this schema: "),
    ],
)
def test_a_bad_message_is_told_and_costs_no_other(tmp_path: Path, record: bytes, reason: str) -> None:
    done = messages(mapped(tmp_path), [framed(order()), record, framed(order())])
    assert done.events["offset"].to_list() == [0, 2]
    (told,) = done.rejects.rows(named=True)
    assert told["offset"] == 1 and told["reason"].startswith(reason)


def test_a_field_that_cannot_be_read_is_named_with_its_path(tmp_path: Path) -> None:
    done = messages(mapped(tmp_path), [framed(order(tries=-1)), framed(order(2**62))])
    assert done.rejects["field"].to_list() == ["timestamp (from at)", "retry_count (from tries)"]


@pytest.mark.parametrize(
    ("text", "schema", "reason"),
    [
        (MAP, {"type": "record"}, "the schema is none of Avro: SchemaParseException: "),
        (MAP, 5, "the schema is none of Avro: "),
        (MAP, {"type": "record", "name": "n", "fields": [{"name": "m", "type": "nope"}]}, "UnknownType: nope"),
        (
            MAP,
            {
                "type": "record",
                "name": "n",
                "fields": [{"name": "next", "type": ["null", {"type": "array", "items": "n"}]}],
            },
            "the schema has a type that holds itself, n",
        ),
        (MAP.replace("[fields]", "options = { a = 1 }\n[fields]"), ORDER, "avro takes no options, and there are a"),
    ],
)
def test_what_a_map_may_not_say(tmp_path: Path, text: str, schema: Any, reason: str) -> None:
    with pytest.raises(Problem) as caught:
        mapped(tmp_path, text, order=schema)
    assert f"{tmp_path}/orders.toml: format: " in str(caught.value) and reason in str(caught.value)
    assert "\nNext: write it as in: format = " in str(caught.value)


def test_a_schema_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        Problem, match=r"format.schema: .*away.avsc is not readable: No such file or directory\nNext: ls"
    ):
        parse(MAP.replace("order.avsc", "away.avsc"), "map", "map", tmp_path)


def test_without_a_schema_messages_are_told_so() -> None:
    with pytest.raises(NotOne, match="its schema is 7, and the map has none"):
        confluent({}, {})(framed(order()))


@given(st.binary(max_size=60))
def test_no_message_stops_the_others(body: bytes) -> None:
    unfold = confluent({"": json.dumps(ORDER)}, {})
    good = framed(order())
    found = of_messages(unfold, [good, b"\0\0\0\0\x07" + body, body, good])
    assert found.offsets[0] == 0 and found.offsets[-1] == 3


events = st.builds(
    order,
    st.integers(-(2**63), 2**63 - 1),
    st.text(st.characters(codec="utf-8")),
    st.none() | st.integers(0, 2**31 - 1),
)


@given(st.lists(events, max_size=5), st.integers(0, 2**32 - 1))
def test_what_is_written_is_read(orders: list[dict[str, Any]], number: int) -> None:
    raw = json.loads(json.dumps(ORDER).replace(', "logicalType": "timestamp-millis"', ""))
    raw["fields"][2]["type"] = "bytes"
    records = [framed(o, number, raw) for o in orders]
    assert of_messages(confluent({"": json.dumps(ORDER)}, {}), records).events == orders
    whole = BytesIO()
    writer(whole, raw, orders, sync_interval=1)
    whole.seek(0)
    parts = [*of_container(whole)]
    assert [e for _, found in parts for e in found.events] == orders
    assert parts[-1][0] == len(orders)


# ---- containers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy", "zstandard"])
def test_a_container_is_known_by_content_and_read_by_a_map(tmp_path: Path, codec: str) -> None:
    path = container(tmp_path / "x.log", [order(NOON_MS + i, f"pay-{i}") for i in range(3)], codec=codec)
    assert look(path, "x").format == "avro"
    by = parse(MAP.replace('[format]\nkind = "avro"\nschema = "order.avsc"\n', ""), "map", "orders")
    _, (only,) = read(path, Reading("requests", by))
    assert only.events["service_name"].to_list() == ["pay-0", "pay-1", "pay-2"] and only.rejects.is_empty()
    assert only.events["timestamp"][0] == NOON


def test_our_own_fields_may_come_in_a_container(tmp_path: Path) -> None:
    own = {
        "type": "record",
        "name": "Write",
        "fields": [
            {"name": "timestamp", "type": {"type": "long", "logicalType": "timestamp-micros"}},
            {"name": "node_id", "type": "string"},
            {"name": "entity_id", "type": "string"},
            {"name": "vector_clock", "type": {"type": "map", "values": "long"}},
        ],
    }
    one = {"timestamp": NOON_MS * 1_000 + 5, "node_id": "a", "entity_id": "e", "vector_clock": {"b": 2, "a": 1}}
    path = container(tmp_path / "x.avro", [one], own)
    reading = recognise(look(path, "x.avro"))
    assert (reading.stream, reading.format) == ("write_log", "avro")
    _, (only,) = read(path)
    assert only.events["timestamp"][0] == NOON.replace(microsecond=5)
    assert only.events["vector_clock"].to_list() == [[{"key": "a", "value": 1}, {"key": "b", "value": 2}]]


def test_a_shipped_map_knows_its_records_in_a_container(tmp_path: Path) -> None:
    source = [{"name": n, "type": "string"} for n in ("connector", "name", "db", "table")]
    row = {"type": "record", "name": "Row", "fields": [{"name": "id", "type": "int"}]}
    envelope = [
        {"name": "after", "type": ["null", row]},
        {"name": "source", "type": {"type": "record", "name": "Source", "fields": source}},
        {"name": "op", "type": "string"},
        {"name": "ts_ms", "type": "long"},
    ]
    told = {"connector": "mysql", "name": "shop", "db": "shop", "table": "orders"}
    event = {"after": {"id": 4}, "source": told, "op": "c", "ts_ms": NOON_MS}
    path = container(tmp_path / "x", [event], {"type": "record", "name": "Envelope", "fields": envelope})
    assert recognise(look(path, "x")).format == "debezium"
    _, (only,) = read(path)
    assert only.events.select("timestamp", "entity_type", "entity_id").rows() == [(NOON, "shop.orders", "4")]


def test_a_container_that_is_not_whole_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = container(tmp_path / "x.avro", [order(NOON_MS + i) for i in range(100)], sync_interval=200)
    whole = path.read_bytes()
    by = Reading("requests", mapped(tmp_path))
    path.write_bytes(whole[:-30])
    recording, parts = read(path, by)
    used = sum(len(d.events) for d in parts)
    assert 80 < used < 100 and recording.broken.startswith("damaged: ")
    path.write_bytes(whole[:40])
    recording, parts = read(path, by)
    assert parts == [] and recording.broken
    with pytest.raises(Problem, match=r"x.avro: not a whole Avro container file") as caught:
        recognise(look(path, "x.avro"))
    assert caught.value.code == Exit.NOTHING


def test_a_bad_record_of_a_container_costs_its_block_and_no_other(tmp_path: Path) -> None:
    path = container(tmp_path / "x.avro", [order(svc=f"svc-{i}") for i in range(9)], sync_interval=45)
    raw = path.read_bytes()
    assert raw.count(b"svc-4") == 1
    path.write_bytes(raw.replace(b"svc-4", b"svc\xff4"))
    recording, (only,) = read(path, Reading("requests", mapped(tmp_path)))
    (told,) = only.rejects.rows(named=True)
    assert not recording.broken and told["offset"] == 4
    assert told["reason"].startswith("not Avro of this schema: UnicodeDecodeError: ")
    assert "records of its block are lost with it" in told["reason"]
    names = only.events["service_name"].to_list()
    assert names[:4] == ["svc-0", "svc-1", "svc-2", "svc-3"] and names[-1] == "svc-8"


@given(st.data())
def test_no_damage_to_a_container_raises_anything_else(data: st.DataObject) -> None:
    whole = BytesIO()
    writer(whole, ORDER, [order(NOON_MS + i) for i in range(20)], sync_interval=60)
    raw = bytearray(whole.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    parts = of_container(BytesIO(bytes(raw[: data.draw(st.integers(0, len(raw)))])))
    end = 0
    try:
        for number, found in parts:
            told = sorted([*found.offsets, *found.empty, *(b[0] for b in found.bad)])
            assert told == [*range(end, number)]
            end = number
    except NotOne as error:
        assert str(error)


def test_replay_reads_on_where_a_container_ended(tmp_path: Path) -> None:
    path, state = tmp_path / "logs" / "x.avro", tmp_path / "state"
    path.parent.mkdir()
    container(path, [order(NOON_MS + i) for i in range(3)])
    mapped(tmp_path)
    arguments: list[str | Path] = ["replay", path.parent, "--map", tmp_path / "orders.toml", "--state", state]
    assert "x.avro: orders → requests, 3 events" in asynchealth(*arguments).stdout.decode()
    with path.open("a+b") as more:
        writer(more, ORDER, [order(NOON_MS + i) for i in range(3, 5)])
    asynchealth(*arguments)
    assert {k: v for k, v in accounting(state).items() if v} == {"read": 5, "used": 5}
    assert "nothing new in it" in asynchealth(*arguments).stdout.decode()
