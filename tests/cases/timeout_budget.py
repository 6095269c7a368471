"""Calls with a timeout of 2 s for ten minutes; for two of them one call in twenty takes most of it."""

from dataclasses import replace
from typing import Any

from detectors.detector import Settings
from tests.cases import Case, at, partitions


def _calls(service: str, slow_ms: float, share: int = 20, side: str = "client", **more: Any) -> list[dict[str, Any]]:
    rows = []
    for i in range(1200):
        start = i * 0.5
        slow = 200 <= i < 440 and i % share == 0
        duration = slow_ms if slow else 40.0 + i % 7
        rows.append(
            {
                "timestamp": at(start),
                "arrival": at(start + duration / 1000 + 0.3),
                "service_name": service,
                "caller": "gateway",
                "node_id": f"{side}-{i % 3}",
                "side": side,
                "status": "ok",
                "duration_ms": duration,
                "timeout_ms": 2000.0,
                "health_check": False,
            }
            | more
        )
    return rows


def _case(*services: list[dict[str, Any]], expect: frozenset[tuple[str, str, str]] = frozenset()) -> Case:
    return Case({"requests": partitions("requests", [r for rows in services for r in rows])}, expect)


def fires_nine_tenths_and_all_of_it() -> Case:
    """search uses 90 %; payment is over its timeout; server lines of a service that has client lines don't count."""
    return _case(
        _calls("search", 1800.0),
        _calls("payment", 2001.0),
        _calls("cart", 100.0) + _calls("cart", 1990.0, side="server"),
        expect=frozenset({("search", "", "warn"), ("payment", "", "page")}),
    )


def fires_on_timeouts_whose_lines_give_no_duration() -> Case:
    rows = _calls("search", 1999.0, side="server") + _calls("stock", 1600.0)
    for r in rows:
        if r["duration_ms"] == 1999.0:
            r |= {"status": "timeout", "duration_ms": None}
    return _case(rows, expect=frozenset({("search", "", "page")}))


def fires_where_a_service_s_own_warning_is_lower() -> Case:
    """70 % is over what is set for payment, and is counted and proven by that; search has the general warning."""
    own = Settings(per_service={"payment": {"timeout_budget.warn_pct": 60}})
    case = _case(_calls("payment", 1400.0), _calls("search", 1400.0), expect=frozenset({("payment", "", "warn")}))
    return replace(case, settings=own)


def quiet_at_exactly_four_fifths() -> Case:
    return _case(_calls("payment", 1600.0))


def quiet_where_one_call_of_a_minute_s_120_is_slow() -> Case:
    return _case(_calls("payment", 1999.0, share=120))


def quiet_where_only_health_checks_are_slow() -> Case:
    return _case(_calls("payment", 50.0), _calls("payment", 1999.0, health_check=True))


def quiet_where_a_minute_has_too_few_calls() -> Case:
    few = [r for i, r in enumerate(_calls("payment", 2500.0)) if i % 3 == 2 or r["duration_ms"] > 2000]
    assert 2 * len(few) < 1200
    return _case(few, _calls("search", 60.0))
