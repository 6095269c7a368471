"""Debezium's change events: known by their fields in either form, each a write of a row, tombstones of nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.events import Decoded
from streams.sources.decode import chunks, from_fields, recognise, unfold_of
from streams.sources.fieldmap import FieldMap, parse, shipped
from streams.sources.files import Recording, look
from streams.sources.formats import of_messages
from tests.streams.tape import accounting, asynchealth

NOON = datetime(2026, 1, 26, 12, tzinfo=UTC)
NOON_MS = 1_769_428_800_000
POSTGRES = {"connector": "postgresql", "name": "shop", "ts_ms": NOON_MS, "db": "shop", "schema": "public", "txId": 7}
MYSQL = {"connector": "mysql", "name": "shop", "ts_ms": NOON_MS, "db": "shop", "file": "binlog.3", "server_id": 12}


def change(op: str, before: Any = None, after: Any = None, **source: Any) -> dict[str, Any]:
    told = {**POSTGRES, "table": "orders", "lsn": 24_023_128, **source}
    return {"before": before, "after": after, "source": told, "op": op, "ts_ms": NOON_MS + 250, "transaction": None}


def debezium() -> FieldMap:
    return next(m for m in shipped() if m.name == "debezium")


def decoded(events: list[Any], by: FieldMap | None = None) -> Decoded:
    given = by or debezium()
    return from_fields(given, of_messages(unfold_of(given), [json.dumps(e).encode() for e in events]))


@pytest.mark.parametrize("enveloped", [True, False])
def test_changes_are_known_in_either_form_and_are_writes(tmp_path: Path, enveloped: bool) -> None:
    row, newer = {"id": 1001, "total": 5}, {"id": 1001, "total": 6}
    events = [change("r", None, row), change("c", None, row), change("u", row, newer), change("d", newer, None)]
    records = [{"schema": {"type": "struct"}, "payload": e} if enveloped else e for e in events]
    path = tmp_path / "x.json"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*records, None]))
    reading = recognise(look(path, "x.json"))
    assert (reading.stream, reading.format) == ("write_log", "debezium")
    (only,) = [d for _, d in chunks(Recording(look(path, "x.json")), reading)]
    assert only.rejects.is_empty() and only.tombstones == 1
    assert only.events["op"].to_list() == ["read", "create", "update", "delete"]
    same = only.events.select("timestamp", "node_id", "entity_type", "entity_id", "version").unique()
    assert same.rows() == [(NOON, "shop", "shop.public.orders", "1001", 24_023_128)]


def test_a_tombstone_in_its_envelope_holds_nothing() -> None:
    done = decoded([{"schema": None, "payload": None}, {"schema": {}, "payload": change("c", None, {"id": 1})}, None])
    assert (len(done.events), len(done.rejects), done.tombstones) == (1, 0, 2)


def test_what_is_no_write_of_a_row_counts_as_nothing() -> None:
    message = {"op": "m", "message": {"prefix": "x"}, "source": POSTGRES, "ts_ms": NOON_MS}
    schema = {"source": MYSQL, "databaseName": "shop", "ddl": "CREATE TABLE …"}
    done = decoded([change("t"), message, schema])
    assert (len(done.events), len(done.rejects), done.tombstones) == (0, 0, 3)


def test_servers_of_one_mysql_are_nodes_and_its_tables_have_the_names_of_their_databases() -> None:
    source = {**MYSQL, "table": "orders", "pos": 154}
    event = {**change("c", None, {"id": "a"}), "source": source}
    snapshot = {**event, "source": {**source, "server_id": 0, "ts_ms": 0}}
    done = decoded([event, snapshot])
    assert done.events.select("node_id", "entity_type", "entity_id", "version").rows() == [
        ("shop/12", "shop.orders", "a", 154),
        ("shop", "shop.orders", "a", 154),
    ]
    assert [(t - NOON).total_seconds() for t in done.events["timestamp"]] == [0, 0.25]


def test_microseconds_are_kept_where_the_source_has_them() -> None:
    done = decoded([change("c", None, {"id": 1}, ts_us=NOON_MS * 1_000 + 7)])
    assert (done.events["timestamp"][0] - NOON).microseconds == 7


@pytest.mark.parametrize(
    ("tx", "version"), [(565, 565), ("565", 565), ("0400170021050000", 400170021050000), ("a0:1", None)]
)
def test_the_version_is_the_place_in_the_log_or_the_number_of_the_transaction(tx: Any, version: int | None) -> None:
    done = decoded([change("c", None, {"id": 1}, lsn=None, txId=tx)])
    assert done.rejects.is_empty() and done.events["version"].to_list() == [version]


def test_a_map_knows_the_key_of_each_table_and_another_version() -> None:
    by = parse(
        """like = "debezium"
[fields]
entity_id = [
    { concat = ["after.tenant", "after.no"], between = "/", where = { "source.table" = "orders" } },
    { concat = ["before.tenant", "before.no"], between = "/", where = { "source.table" = "orders" } },
    "after.id",
]
version = "source.txId"
""",
        "map",
    )
    key = {"tenant": "acme", "no": 5, "id": 99}
    done = decoded([change("c", None, key), change("d", key), change("c", None, {"id": 3}, table="items")], by)
    assert done.events["entity_id"].to_list() == ["acme/5", "acme/5", "3"]
    assert done.events["version"].to_list() == [7, 7, 7]


def test_a_row_without_the_key_is_a_write_of_no_known_entity() -> None:
    done = decoded([change("c", None, {"uuid": "x"}), change("d", None, None)])
    assert done.rejects.is_empty() and done.events["entity_id"].to_list() == [None, None]


def test_a_bad_change_is_a_reject_that_names_field_and_path_and_costs_no_other() -> None:
    good = change("c", None, {"id": 1})
    bad = [change("c", None, {"id": 1}, ts_ms="noon"), change("c", None, {"id": 1}, lsn="0/16")]
    given = debezium()
    records = [json.dumps(e).encode() for e in [good, *bad, good]]
    done = from_fields(given, of_messages(unfold_of(given), [*records, b'{"payload":']))
    assert done.events["offset"].to_list() == [0, 3]
    told = {
        r["offset"]: (r["field"].partition(",")[0], r["reason"].partition(":")[0])
        for r in done.rejects.rows(named=True)
    }
    assert told == {
        1: ("timestamp (from source.ts_us", "not a time as the map says"),
        2: ("version (from source.lsn", "expected integer"),
        4: ("", "not JSON"),
    }


def test_replay_reads_them_and_takes_a_map_that_is_like_the_shipped_one(tmp_path: Path) -> None:
    path, given, state = tmp_path / "shop.json", tmp_path / "m.toml", tmp_path / "state"
    path.write_text("".join(json.dumps(change("c", None, {"no": i})) + "\n" for i in range(3)))
    screen = asynchealth("replay", path, "--state", state).stdout.decode()
    assert "shop.json: debezium → write_log, 3 events" in screen
    given.write_text('like = "debezium"\n[fields]\nentity_id = "after.no"\n')
    screen = asynchealth("replay", path, "--state", state, "--map", given).stdout.decode()
    assert "read again with another field map" in screen
    assert {k: v for k, v in accounting(state).items() if v} == {"read": 3, "used": 3}
    assert "2" in asynchealth("sql", "SELECT max(entity_id) FROM write_log", "--state", state).stdout.decode()


keys = st.one_of(
    st.integers(-(2**62), 2**62), st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
)


@given(st.lists(st.tuples(st.sampled_from("crud"), keys, st.integers(0, 2**62), st.booleans()), min_size=1, max_size=8))
def test_the_envelope_changes_nothing_and_every_change_is_one_write(changes: list[tuple[str, Any, int, bool]]) -> None:
    plain, mixed = [], []
    for op, key, lsn, enveloped in changes:
        row = {"id": key}
        event = change(op, row if op in "ud" else None, None if op == "d" else row, lsn=lsn)
        plain.append(event)
        mixed.append({"schema": None, "payload": event} if enveloped else event)
    done, other = decoded(plain), decoded(mixed)
    assert done.events.equals(other.events) and done.rejects.is_empty() and not done.tombstones
    assert done.events["entity_id"].to_list() == [str(key) for _, key, _, _ in changes]
    assert done.events["version"].to_list() == [lsn for _, _, lsn, _ in changes]
