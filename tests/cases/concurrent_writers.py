"""order/42 is written by two nodes that do not know of each other, across windows; the quiet ones take turns."""

from __future__ import annotations

from typing import Any

from tests.cases import Case, at, partitions


def _row(second: float, node: str, entity: str, **more: Any) -> dict[str, Any]:
    stamp = at(second)
    return {
        "timestamp": stamp,
        "arrival": at(second + 0.7),
        "node_id": node,
        "entity_type": "order",
        "entity_id": entity,
        **more,
    }


def _taking_turns(entity: str, n: int = 300) -> list[dict[str, Any]]:
    return [_row(i * 2.0, f"order-{i % 2}", entity, version=i + 1, base_version=i) for i in range(n)]


def fires_same_base_version() -> Case:
    rows = _taking_turns("1")
    for i in range(8):  # the pair lies on both sides of a window's border
        rows += [
            _row(59.5 + 30 * i, "order-1", "42", version=10 + i, base_version=9 + i),
            _row(60.5 + 30 * i, "order-2", "42", version=10 + i, base_version=9 + i),
        ]
    return Case({"write_log": partitions("write_log", rows)}, frozenset({("order/42", "", "page")}))


def fires_on_two_entities_whose_names_join_to_one_text() -> Case:
    """Each has its own conflicts: six of (order, eu/1), too few to page, and two of (order/eu, 1)."""
    rows = _taking_turns("1")
    for kind, number, times in (("order", "eu/1", 3), ("order/eu", "1", 1)):
        for i in range(times):
            second, versions = 59.5 + 40 * i, {"version": 10 + i, "base_version": 9 + i}
            rows += [_row(second + k, f"order-{k}", number, **versions) | {"entity_type": kind} for k in (0, 1)]
    expect = frozenset({("order/eu/1", "", "warn"), (r"order\/eu/1", "", "warn")})
    return Case({"write_log": partitions("write_log", rows)}, expect)


def fires_vector_clocks() -> Case:
    rows = _taking_turns("1")
    a, b = {"a": 1, "b": 0}, {"a": 0, "b": 1}
    rows += [_row(19.0, "a", "7", vector_clock=a), _row(21.0, "b", "7", vector_clock=b)]
    rows += [_row(40.0, "a", "7", vector_clock={"a": 2, "b": 1})]
    return Case({"write_log": partitions("write_log", rows)}, frozenset({("order/7", "", "warn")}))


def fires_overlapping_intervals() -> Case:
    rows = _taking_turns("1")
    for i in range(8):
        for node, begun in (("a", 28.0), ("b", 29.0)):
            second = 40.0 * i + begun
            rows.append(_row(second, node, "9", started=at(second), finished=at(second + 3.0)))
    return Case({"write_log": partitions("write_log", rows)}, frozenset({("order/9", "", "warn")}))


def _of_one_request(n: int, entity: str, **of_replica: Any) -> list[dict[str, Any]]:
    """The leader's line of each request's write, and one of the replica, half a second later."""
    rows = []
    for i in range(n):
        write = {"version": 10 + i, "base_version": 9 + i, "op": "update", "request_id": f"r{i}"}
        rows.append(_row(29.8 + 20 * i, "leader", entity, **write))
        rows.append(_row(30.3 + 20 * i, "replica", entity, **(write | of_replica)))
    return rows


def fires_where_one_request_writes_twice() -> Case:
    """Another operation, from the same version, is another write, whoever asked for it; so is one of no request."""
    rows = _taking_turns("1") + _of_one_request(8, "10", op="delete") + _of_one_request(8, "11", request_id=None)
    expect = frozenset({("order/10", "", "page"), ("order/11", "", "page")})
    return Case({"write_log": partitions("write_log", rows)}, expect)


def quiet_one_write_that_leader_and_replica_log() -> Case:
    rows = _taking_turns("1") + _of_one_request(15, "8")
    rows += [r | {"request_id": None, "idempotency_key": r["request_id"]} for r in _of_one_request(15, "9")]
    return Case({"write_log": partitions("write_log", rows)})


def quiet_taking_turns() -> Case:
    return Case({"write_log": partitions("write_log", _taking_turns("1") + _taking_turns("2"))})


def quiet_each_knows_the_last() -> Case:
    """By vector clocks of two that take turns; by intervals that touch and do not overlap."""
    rows = []
    for i in range(300):
        second, k = 9.5 + 2.0 * i, i + 1
        clock = {"a": (k + 1) // 2, "b": k // 2}
        rows.append(_row(second, "ab"[i % 2], "5", vector_clock=clock))
        rows.append(_row(second, "ab"[i % 2], "6", started=at(second - 2.0), finished=at(second)))
    return Case({"write_log": partitions("write_log", rows)})


def quiet_one_node_and_one_unknowable() -> Case:
    """One node may write as it likes; without versions, clocks or intervals nothing can be said."""
    rows = _taking_turns("1") + [_row(i * 1.0, "order-1", "3", version=5, base_version=4) for i in range(50)]
    rows += [_row(i * 1.0, f"order-{i % 2}", "4") for i in range(50)]
    return Case({"write_log": partitions("write_log", rows)})
