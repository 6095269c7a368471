"""Heartbeats of a fleet to one collector, and calls between two of its nodes."""

from __future__ import annotations

import random
from typing import Any

from tests.cases import Case, at, partitions

Row = dict[str, Any]


def _beats(off_ms: dict[str, float], delay_ms: float = 0.4, since: float = 0.0) -> list[Row]:
    dice, rows = random.Random(5), []
    for i in range(80):
        for n in range(8):
            node, second = f"n{n}", i * 5.0 + n * 0.3
            wrong = off_ms.get(node, 0.0) / 1000 if second >= since else 0.0
            wait = delay_ms / 1000 + dice.expovariate(500)
            rows.append(
                {
                    "node_id": node,
                    "client_time": at(second + wrong),
                    "server_time": at(second + wait),
                    "arrival": at(second + wait + 0.5),
                }
            )
    return rows


def _calls(off_ms: dict[str, float], way_ms: float = 1.0) -> list[Row]:
    """a calls b, both sides logged; the way there takes way_ms, the way back 1 ms."""
    rows = []
    for i in range(300):
        second, wrong = i * 1.1, {n: v / 1000 for n, v in off_ms.items()}
        took, server = 0.020 + way_ms / 1000, f"b{i % 3}"
        common = {"service_name": "b", "caller": "a", "status": "ok", "trace_id": "t"}
        rows.append(
            common
            | {"side": "client", "node_id": "a1", "span_id": f"s{i}", "timestamp": at(second + wrong.get("a1", 0)),
               "duration_ms": took * 1000 + 1, "arrival": at(second + 0.8)}
        )  # fmt: skip
        begun = second + way_ms / 1000 + wrong.get(server, 0)
        rows.append(
            common
            | {"side": "server", "node_id": server, "parent_span_id": f"s{i}", "timestamp": at(begun),
               "duration_ms": 20.0, "arrival": at(second + 0.9)}
        )  # fmt: skip
    return rows


def fires_ahead_since_a_step() -> Case:
    rows = _beats({"n3": 847.0}, since=200.0)
    return Case({"heartbeats": partitions("heartbeats", rows)}, frozenset({("n3", "", "page")}))


def fires_ahead_and_behind_beyond_any_delay() -> Case:
    rows = _beats({"n1": 130.0, "n2": -1700.0})
    expect = frozenset({("n1", "", "warn"), ("n2", "", "warn")})
    return Case({"heartbeats": partitions("heartbeats", rows)}, expect)


def fires_between_callers_both_ways() -> Case:
    """No heartbeats: one of four nodes is 300 ms behind, known from the way back."""
    rows = _calls({"b1": -300.0})
    return Case({"requests": partitions("requests", rows)}, frozenset({("b1", "", "warn")}))


def quiet_slow_way() -> Case:
    """400 ms one way is a delay, not a clock; heartbeats that need 600 ms may be slow or behind: not said."""
    rows = partitions("requests", _calls({}, way_ms=400.0))
    return Case({"requests": rows, "heartbeats": partitions("heartbeats", _beats({}, delay_ms=600.0))})


def _one_request(first_s: float, then_s: float, callers: tuple[str, str], service: str = "stripe") -> Case:
    """Of each request the client's line of one call and the server's line of another one, with true stamps."""
    rows: list[Row] = []
    for i in range(300):
        client, server = i * 1.1 + first_s, i * 1.1 + then_s
        common: Row = {"status": "ok", "request_id": f"r{i}", "retry_count": 0}
        rows.append(
            common
            | {"side": "client", "node_id": "order-1", "service_name": service, "caller": callers[0],
               "timestamp": at(client + 1e-6), "duration_ms": 300.5, "arrival": at(client + 0.8)}
        )  # fmt: skip
        rows.append(
            common
            | {"side": "server", "node_id": "mail-1", "service_name": "mail", "caller": callers[1],
               "timestamp": at(server + 1e-6), "duration_ms": 100.5, "arrival": at(server + 0.9)}
        )  # fmt: skip
    return Case({"requests": partitions("requests", rows)})


def quiet_two_services_called_in_one_request() -> Case:
    """External calls are logged by the client, internal ones by the server: neither line is the other's attempt."""
    return _one_request(1.0, 0.1, ("order", "order"))


def quiet_two_callers_of_one_service_in_one_request() -> Case:
    return _one_request(0.0, 1.5, ("order", "billing"), service="mail")


def quiet_small_offsets() -> Case:
    rows = _beats({f"n{n}": (-1) ** n * 12.0 * n for n in range(8)})
    return Case({"heartbeats": partitions("heartbeats", rows)})
