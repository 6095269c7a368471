"""gateway->payment: keys that protect and keys that do not.

Calls come four a second and end in a second's quarter, but for those that a case makes slow, fail or come again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from detectors.detector import Settings
from detectors.windows import MINUTE_US
from tests.cases import Case, at, partitions

Row = dict[str, Any]


def line(side: str, start_s: float, took_s: float, n: int, **more: Any) -> Row:
    node = f"gateway-{n % 3}" if side == "client" else f"payment-{n % 5}"
    return {
        "timestamp": at(start_s),
        "arrival": at(start_s + took_s + 1.5),
        "duration_ms": took_s * 1000,
        "service_name": "payment",
        "caller": "gateway",
        "node_id": node,
        "side": side,
        "status": "ok",
        "request_id": f"req-{n}",
        "retry_count": 0,
        "idempotency_key": f"pay-{n}",
        "payload_hash": f"hash-{n}",
        **more,
    }


def attempt(start_s: float, n: int, took_s: float = 0.2, gives_up_s: float = 2.0, **server: Any) -> list[Row]:
    """Both lines of one attempt; the client waits no longer than it gives up."""
    shared = {k: v for k, v in server.items() if k in ("retry_count", "idempotency_key", "payload_hash")}
    status = "timeout" if took_s > gives_up_s else server.get("status", "ok")
    waited = min(took_s + 0.01, gives_up_s)
    return [
        line("client", start_s, waited, n, **shared | {"status": status}),
        line("server", start_s + 0.005, took_s, n, **{"cache": "miss", "applied": True} | server),
    ]


def ordinary(numbers: Iterable[int]) -> list[Row]:
    """Call n starts at second n / 4 and is applied once; of every eight one is repeated and answered from the cache."""
    rows = []
    for n in numbers:
        rows += attempt(n / 4, n)
        if n % 8 == 0:
            rows += attempt(n / 4 + 5, n, 0.02, retry_count=1, cache="hit", applied=False)
    return rows


def case(rows: list[Row], *expect: tuple[str, str, str], settings: Settings | None = None) -> Case:
    return Case({"requests": partitions("requests", rows)}, frozenset(expect), settings or Settings())


def slow_and_retried(second: dict[str, Any]) -> list[Row]:
    """23 calls from second 60 on take 12 s; the client gives up after 2 s and tries again, on another node.

    window   60         70         80
    first    |=============|                 applied at 72
    retry       |=|                          looks the key up at 62: missed, as the first has not finished
    """
    rows = []
    for i in range(23):
        start, n = 60 + i / 2, 100_000 + i
        rows += attempt(start, n, 12.0)
        rows += attempt(start + 2.2, n, 0.2, retry_count=1, node_id="payment-9", **second)
    return rows


def fires_applied_twice() -> Case:
    rows = ordinary(range(800)) + slow_and_retried({})
    return case(rows, ("payment", "applied_twice", "page"))


def fires_possibly_applied_twice() -> Case:
    """Nobody logs `applied`: ok without a hit is all there is, and a double charge can't be waited out."""
    rows = ordinary(range(800)) + slow_and_retried({})
    told = [{k: v for k, v in r.items() if k != "applied"} for r in rows]
    return case(told, ("payment", "applied_twice", "page"))


def fires_every_warning() -> Case:
    """The service forgets keys after a minute. Nothing is applied twice."""
    rows = ordinary(range(1600))
    for i in range(8):
        n = 200_000 + 10 * i
        rows += attempt(80 + 3 * i, n) + attempt(99 + 3 * i, n, payload_hash="another", status="error", applied=False)
        rows += attempt(100 + i, n + 1) + attempt(200 + i, n + 1, status="error", applied=False)
        rows += attempt(205 + 2 * i, n + 2, 9.0) + attempt(209 + 2 * i, n + 2, 9.0, status="error", applied=False)
        rows += attempt(250 + 3 * i, n + 3, retry_count=1, idempotency_key=None)
    return case(
        rows,
        *(("payment", kind, "warn") for kind in ("other_payload", "after_ttl", "concurrent", "missing")),
        settings=Settings(ttl_us={"payment": MINUTE_US}),
    )


def fires_only_clients_log() -> Case:
    """Client lines alone, which say what the service answered."""
    rows = [r | {"applied": False} for r in ordinary(range(1200)) if r["side"] == "client"]
    for i in range(6):
        n = 300_000 + i
        rows += [line("client", 100 + 3 * i, 0.2, n), line("client", 118 + 3 * i, 0.2, n, payload_hash="another")]
    return case(rows, ("payment", "other_payload", "warn"))


def quiet_protected() -> Case:
    """Slow calls, retried while they run: the repeat waits and hits, or is refused; and a failed call is done again."""
    rows = ordinary(range(800))
    for i in range(23):
        start, n = 60 + i / 2, 400_000 + 10 * i
        rows += attempt(start, n, 12.0)
        rows += attempt(start + 2.2, n, 11.0, retry_count=1, cache="hit", applied=False)
        rows += attempt(start, n + 1, 12.0)
        rows += attempt(start + 2.2, n + 1, 0.01, retry_count=1, cache="miss", status="rejected", applied=False)
        rows += attempt(start, n + 2, 0.5, status="error", applied=False) + attempt(start + 9, n + 2, retry_count=1)
    return case(rows)


def quiet_one_key_at_two_services() -> Case:
    rows = ordinary(range(800))
    rows += [
        {**r, "service_name": "ledger", "node_id": "ledger-1", "caller": "payment"}
        for r in ordinary(range(800))
        if r["side"] == "server"
    ]
    return case(rows)


def quiet_clients_repeat_what_servers_protect() -> Case:
    """The client's lines of one key differ in their payload (a new timestamp in it); the server's do not."""
    rows = ordinary(range(800))
    for r in rows:
        if r["side"] == "client" and r["retry_count"]:
            r["payload_hash"] = "another"
    return case(rows)


def quiet_few_calls_carry_keys() -> Case:
    """A tenth of the calls are reads, which carry no key and are retried."""
    rows = ordinary(range(800))
    for n in range(80):
        rows += attempt(3 * n, 500_000 + n, retry_count=1, idempotency_key=None, cache=None)
    return case(rows)
