"""A node's own entry of its vector clocks falls; the quiet ones count on, or share a name over two partitions."""

from __future__ import annotations

from typing import Any

from tests.cases import Case, at, partitions

LINES = 300
NODES = ("a-1", "b-1")


def _line(node: str, i: int, own: int | None, **more: Any) -> dict[str, Any]:
    clock = {"other": 3} if own is None else {node: own, "other": i // 2}
    second = i * 1.5 + (0.1 if node == "b-1" else 0.0)
    return {"timestamp": at(second), "arrival": at(second + 0.2), "node_id": node, "vector_clock": clock} | more


def _both(a: list[int | None], b: list[int | None], **more: Any) -> Case:
    """Each node has a partition of its own, since their lines come in turn."""
    pairs = enumerate(zip(a, b, strict=True))
    rows = [_line(n, i, own) | more for i, pair in pairs for n, own in zip(NODES, pair, strict=True)]
    return Case({"write_log": partitions("write_log", rows)})


def _falling(every: int, by: int = 4) -> list[int | None]:
    return [i - (by if i and i % every == 0 else 0) + 100 for i in range(LINES)]


def fires_where_the_own_entry_goes_back() -> Case:
    """At one of 13 lines, over 5 %; and at one of 40, over 1 %. One of the falls lies over a window's border."""
    case = _both(_falling(13), _falling(40))
    return Case(case.streams, frozenset({("a-1", "", "page"), ("b-1", "", "warn")}))


def fires_where_the_clock_of_an_entity_goes_back() -> Case:
    case = _both(_falling(13), _falling(40), entity_type="order", entity_id="7")
    return Case(case.streams, frozenset({("a-1", "", "page"), ("b-1", "", "warn")}))


def fires_where_the_clocks_of_two_entities_go_back_at_once() -> Case:
    """The first that went back has an earlier line that came after the other's: four lines in turn, 1 2 2 1."""
    rows = []
    for i in range(2 * LINES):
        entity, own = {"entity_type": "order", "entity_id": "1221"[i % 4]}, i + 100 - (8 if i % 20 in (18, 19) else 0)
        rows += [_line(n, i, own) | entity for n in NODES]
    case = Case({"write_log": partitions("write_log", rows)})
    return Case(case.streams, frozenset({("a-1", "", "page"), ("b-1", "", "page")}))


def quiet_where_each_counts_on() -> Case:
    return _both([*range(LINES)], [i // 3 for i in range(LINES)])


def quiet_where_a_restart_begins_to_count_again() -> Case:
    return _both([i % 200 for i in range(LINES)], [*range(LINES)])


def quiet_where_the_clock_does_not_name_its_node() -> Case:
    return _both([None] * LINES, [*range(LINES)])


def quiet_where_two_partitions_have_one_nodes_lines() -> Case:
    """In the order of arrival its entry goes back at every second line, and nobody knows the order between the two."""
    rows = [_line("a-1", i, i if i % 2 else 1_000 + i) for i in range(2 * LINES)]
    return Case({"write_log": partitions("write_log", rows)})


def quiet_where_each_entity_has_a_clock_of_its_own() -> Case:
    """Two entities in turn, for each node: between them the entry goes back at every second line."""
    rows = []
    for i in range(LINES):
        own = {"entity_type": "order", "entity_id": str(i // 2 % 2)}
        rows += [_line(n, i, i + 1_000 * (i // 2 % 2)) | own for n in NODES]
    return Case({"write_log": partitions("write_log", rows)})
