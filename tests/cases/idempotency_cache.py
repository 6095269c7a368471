"""gateway->payment: every call is repeated eight seconds later, and the look-up hits or misses."""

from __future__ import annotations

from typing import Any

from tests.cases import Case, at, partitions


def calls(missed: range, one_in: int, per_s: int = 2, lasts_s: int = 480, status: str = "ok") -> list[dict[str, Any]]:
    """Of the repeats that start within the seconds `missed` every one_in-th misses the cache."""
    rows = []
    for n in range(per_s * lasts_s):
        for again in (0, 1):
            start = n / per_s + 8 * again
            miss = not again or (missed.start <= start < missed.stop and n % one_in == 0)
            rows.append(
                {
                    "timestamp": at(start),
                    "arrival": at(start + 1.2),
                    "duration_ms": 50.0 + n % 7,
                    "service_name": "payment",
                    "caller": "gateway",
                    "node_id": f"payment-{n % 5}",
                    "side": "server",
                    "status": "ok" if again else status,
                    "retry_count": again,
                    "idempotency_key": f"pay-{n}",
                    "cache": "miss" if miss else "hit",
                    "applied": not again,
                }
            )
    return rows


def fires_emptied() -> Case:
    rows = calls(range(370, 480), 1)
    return Case({"requests": partitions("requests", rows)}, frozenset({("payment", "", "page")}))


def fires_one_in_four() -> Case:
    rows = calls(range(100, 480), 4)
    return Case({"requests": partitions("requests", rows)}, frozenset({("payment", "", "warn")}))


def quiet_one_in_six() -> Case:
    """Of all look-ups more than half miss; of those of known keys 17 %."""
    return Case({"requests": partitions("requests", calls(range(2000), 6))})


def quiet_few_lookups() -> Case:
    """All miss, but 46 in five minutes say nothing."""
    rows = [r for i, r in enumerate(calls(range(2000), 1)) if i // 2 % 13 == 0]
    return Case({"requests": partitions("requests", rows)})


def quiet_nothing_was_kept() -> Case:
    """Every first call is refused, so that there is nothing which the cache could have forgotten."""
    rows = calls(range(2000), 1, status="rejected")
    return Case({"requests": partitions("requests", rows)})
