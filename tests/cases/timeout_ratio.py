"""gateway->payment: one call in five times out for two minutes, across many windows; the quiet one stays at 1 %."""

from detectors.detector import Settings
from tests.cases import Case, at, partitions


def _calls(share: int, caller: str = "gateway") -> list[dict[str, object]]:
    rows = []
    for i in range(1200):
        start = i * 0.5
        slow = 200 <= i < 440 and i % share == 0
        rows.append(
            {
                "timestamp": at(start),
                "arrival": at(start + 2.5),
                "service_name": "payment",
                "caller": caller,
                "node_id": f"{caller}-{i % 3}",
                "side": "client",
                "status": "timeout" if slow else "ok",
                "retry_count": 0,
                "duration_ms": 2000.0 if slow else 40.0 + i % 7,
                "timeout_ms": 2000.0,
            }
        )
    return rows


def fires_one_in_five() -> Case:
    return Case(
        {"requests": partitions("requests", _calls(5) + _calls(100, "search"))},
        frozenset({("gateway->payment", "", "page")}),
    )


def fires_where_the_client_s_lines_come_long_after_the_server_s() -> Case:
    """A burst of 60 calls: the server answers at once, the client waits for 20 s, six times in vain: 10 %, of 60."""
    rows = []
    for i in range(60):
        start = 300.0 + i * 0.1
        call = {"timestamp": at(start), "service_name": "stock", "caller": "gateway"}
        client = {"side": "client", "node_id": "g", "duration_ms": 20e3, "status": "timeout" if i % 10 == 0 else "ok"}
        server = {"side": "server", "node_id": "s", "duration_ms": 50.0, "status": "ok"}
        rows += [call | client | {"arrival": at(start + 20.1)}, call | server | {"arrival": at(start + 0.1)}]
    streams = {"requests": partitions("requests", rows + _calls(100, "search"))}
    return Case(streams, frozenset({("gateway->stock", "", "warn")}))


def quiet_under_what_is_set_for_the_service_called() -> Case:
    own = {"payment": {"timeout_ratio.warn_ratio": 0.3, "timeout_ratio.page_ratio": 0.4}}
    return Case({"requests": partitions("requests", _calls(5))}, settings=Settings(per_service=own))


def quiet_where_the_service_s_own_least_volume_is_not_reached() -> Case:
    own = {"payment": {"timeout_ratio.min_volume": 1000.0}}
    return Case({"requests": partitions("requests", _calls(5))}, settings=Settings(per_service=own))


def quiet_one_in_a_hundred() -> Case:
    return Case({"requests": partitions("requests", _calls(100))})
