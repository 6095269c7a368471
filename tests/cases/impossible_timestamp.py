"""Lines of a few nodes, one stream or all of them; some stamps can't be true, others only look odd."""

from datetime import datetime, timedelta
from typing import Any

from tests.cases import Case, at, partitions

SECONDS = 400


def _line(node: str, t: float, stamp: datetime | None = None, **more: Any) -> dict[str, Any]:
    return {
        "timestamp": stamp or at(t),
        "arrival": at(t + 0.25),
        "service_name": "search",
        "node_id": node,
        "duration_ms": 20.0,
    } | more


def _steady(node: str, rows: int = 400) -> list[dict[str, Any]]:
    return [_line(node, i * SECONDS / rows) for i in range(rows)]


def _requests(*parts: list[dict[str, Any]], expect: frozenset[tuple[str, str, str]] = frozenset()) -> Case:
    return Case({"requests": partitions("requests", [r for rows in parts for r in rows])}, expect)


def fires_a_dozen_rows_of_2099() -> Case:
    """When they come, 12 of 1,430 are under 1 %, 20 of 1,440 over it; 8 of 390 are too few rows to page."""
    far = timedelta(days=26_663)
    wrong = [
        _line(node, t := 376.0 + i * 0.5, at(t) + far)
        for node, rows in (("search-4", 12), ("search-5", 20), ("search-6", 8))
        for i in range(rows)
    ]
    return _requests(
        *(_steady("search-4", 1500), _steady("search-5", 1500), _steady("search-6", 400), wrong),
        expect=frozenset({("search-4", "ahead", "warn"), ("search-5", "ahead", "page"), ("search-6", "ahead", "warn")}),
    )


def fires_each_kind_in_its_stream() -> Case:
    lines = [*_steady("a-1"), _line("a-1", 209.9, datetime.fromisoformat("1970-01-01T00:00:00Z"))]
    writes = [{"timestamp": r["timestamp"], "arrival": r["arrival"], "node_id": "b-1"} for r in _steady("b-1")]
    writes[205]["timestamp"] -= timedelta(days=31)
    beats = [
        {
            "node_id": f"c-{i % 2}",
            "observer": "collector",
            "client_time": at(i + 61.0 if i == 311 else i),
            "server_time": at(i + 61.0 if i == 100 else i),
            "arrival": at(i + 0.5),
        }
        for i in range(SECONDS)
    ]
    wrong = {("a-1", "epoch"), ("b-1", "old"), ("c-1", "ahead"), ("collector", "ahead")}
    return Case(
        {
            "requests": partitions("requests", lines),
            "write_log": partitions("write_log", writes),
            "heartbeats": partitions("heartbeats", beats),
        },
        frozenset((n, k, "warn") for n, k in wrong),
    )


def fires_where_the_number_goes_up_and_the_stamp_down() -> Case:
    """A clock is set back by 3 s between 209.0 and 210.5 s, across a window's border."""
    rows = [_line("a-1", i * 1.5, at(i * 1.5 - (3 if i >= 140 else 0)), seq=i) for i in range(270)]
    return _requests(rows, _steady("a-2"), expect=frozenset({("a-1", "back", "warn")}))


def quiet_a_minute_ahead_a_month_old() -> Case:
    near = [
        _line("a-1", 205.0, at(205.0 + 60.2)),
        _line("a-1", 206.0, at(206.0) - timedelta(days=29, hours=23)),
    ]
    return _requests(_steady("a-1"), _steady("a-2"), near)


def quiet_where_a_counter_begins_again() -> Case:
    return _requests([_line("a-1", i * 0.7, seq=i if i < 290 else i - 290, seq_scope="w") for i in range(500)])


def quiet_where_lines_overtake_each_other() -> Case:
    """Every fifth line is shipped 12 s late, over a window's border; numbers and stamps agree."""
    rows = [_line("a-1", i * 0.7, seq=i) for i in range(500)]
    for r in rows[::5]:
        r["arrival"] += timedelta(seconds=12)
    return _requests(rows)


def quiet_where_calls_are_numbered_when_they_begin_or_end() -> Case:
    """Long and short calls overlap: beginnings go back where ends are in order, and the other way round."""
    begun, ended = [], []
    for i in range(500):
        took = 2.0 if i % 7 == 0 else 0.05
        begun.append(_line("a-1", i * 0.7, seq=i, duration_ms=took * 1000, arrival=at(i * 0.7 + 2.5)))
        ended.append(_line("a-2", i * 0.7, at(i * 0.7 - took), seq=i, duration_ms=took * 1000))
    return _requests(begun, ended)


def quiet_where_threads_swap_stamps_within_a_millisecond() -> Case:
    rows = []
    for i in range(0, 500, 2):
        rows.append(_line("a-1", i * 0.7, at(i * 0.7 + 0.0009), seq=i))
        rows.append(_line("a-1", i * 0.7 + 0.1, at(i * 0.7), seq=i + 1))
    return _requests(rows)
