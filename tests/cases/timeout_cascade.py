"""Traces of a gateway that calls a, which calls b, which calls c; for two minutes of ten some of it is slow."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from detectors.detector import Settings
from tests.cases import Case, at, partitions

Row = dict[str, Any]
CHAIN = ("gateway", "a", "b", "c")
SLOW = range(200, 320)  # of 600 traces, one a second
BUDGET = Settings({"timeout_cascade.budget_ms": 500})


def _line(trace: int, span: str, parent: str | None, start: float, ms: float, **more: Any) -> Row:
    ids = {"trace_id": f"t{trace}", "span_id": span, "parent_span_id": parent}
    times = {"timestamp": at(start), "duration_ms": ms, "arrival": at(start + ms / 1000 + 0.3)}
    return ids | times | {"node_id": f"{more['service_name']}-1", "status": "ok"} | more


def _nested(trace: int, timeouts: dict[str, float], slow: bool) -> Iterator[Row]:
    """Both lines of each call of the chain; a slow one times out, and its server goes on for a while."""
    start, parent = trace + 0.5, None
    yield _line(trace, "root", None, start, 4000.0 if slow else 130.0, service_name="gateway", side="server",
                timeout_ms=15_000.0)  # fmt: skip
    parent = "root"
    for i, (caller, service) in enumerate(pairwise(CHAIN)):
        fails, start = slow and service in timeouts, start + 0.01
        names = {"service_name": service, "caller": caller, "timeout_ms": timeouts.get(service, 2000.0)}
        took = timeouts[service] if fails else 100.0 - 20 * i
        yield _line(trace, f"{service}-c", parent, start, took, side="client", **names,
                    **({"status": "timeout"} if fails else {}))  # fmt: skip
        yield _line(
            trace, f"{service}-s", f"{service}-c", start + 0.001, took + (50 if fails else -2), side="server", **names
        )
        parent = f"{service}-s"


def _unsided(trace: int, calls: int, gap_ms: float) -> Iterator[Row]:
    """Spans of a source that tells no sides: the shop calls stock in spans of its own, and waits for the network."""
    total = calls * (gap_ms + 5)
    yield _line(trace, "root", None, trace, total + 10, service_name="shop")
    for i in range(calls):
        start = trace + i * (gap_ms + 5) / 1000
        yield _line(trace, f"out-{i}", "root", start, gap_ms + 5, service_name="shop", caller="shop")
        yield _line(trace, f"in-{i}", f"out-{i}", start + gap_ms / 2000, 5.0, service_name="stock", caller="shop")


def _case(rows: Iterator[Row] | list[Row], *expect: tuple[str, str, str], settings: Settings | None = None) -> Case:
    return Case({"requests": partitions("requests", rows)}, frozenset(expect), settings or Settings())


def _traces(timeouts: dict[str, float], every: int = 3) -> list[Row]:
    return [r for t in range(600) for r in _nested(t, timeouts, t in SLOW and t % every == 0)]


def fires_where_two_hops_time_out_in_one_another() -> Case:
    return _case(_traces({"a": 2000.0, "b": 1500.0}), ("gateway", "timed_out", "warn"))


def fires_as_a_page_where_three_hops_time_out_in_one_another() -> Case:
    return _case(_traces({"a": 2000.0, "b": 1500.0, "c": 1200.0}), ("gateway", "timed_out", "page"))


def fires_on_one_attempt_that_timed_out() -> Case:
    return _case(
        _traces({"c": 1200.0}, every=1000) + list(_nested(600, {"c": 1200.0}, True)), ("gateway", "timed_out", "warn")
    )


def fires_over_a_budget_that_is_given_and_on_the_hop_that_used_it() -> Case:
    rows = [r for t in range(600) for r in _unsided(t, 2, 300.0 if t in SLOW else 20.0)]
    return _case(rows, ("shop", "over_budget", "warn"), settings=BUDGET)


def quiet_where_calls_are_many_and_none_takes_a_quarter_of_the_budget() -> Case:
    return _case([r for t in range(600) for r in _unsided(t, 8, 120.0)], settings=BUDGET)


def quiet_at_exactly_the_budget() -> Case:
    return _case([r for t in range(600) for r in _unsided(t, 2, 240.0)], settings=BUDGET)


def quiet_where_no_budget_is_given() -> Case:
    return _case([r for t in range(600) for r in _unsided(t, 2, 300.0)])


def quiet_where_a_root_has_a_timeout_of_its_own() -> Case:
    return _case([r for t in range(600) for r in _nested(t, {}, t in SLOW)], settings=BUDGET)
