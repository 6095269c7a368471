"""Whether there were enough rows to judge: the query over spans and windows says what a plain loop says."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.windows import MINUTE_US, WINDOW_US
from streams.report.found import Filter
from streams.report.reach import MEASURES, Reach, reach

NEEDED, SPAN = 6, MINUTE_US // WINDOW_US
BEGIN = datetime(2026, 1, 26, 8, tzinfo=UTC)
WINDOW = timedelta(microseconds=WINDOW_US)
Row = tuple[str, str, str | None, int, int]  # tenant, service, side, window, rows


@pytest.fixture(scope="module")
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as con:
        con.execute("SET TimeZone='UTC'")
        con.execute("CREATE TABLE settings (config VARCHAR, name VARCHAR, value VARCHAR)")
        con.execute(f"INSERT INTO settings VALUES ('c', 'timeout_ratio.min_volume', '{NEEDED}')")
        con.execute("""CREATE TABLE calls (window_start TIMESTAMPTZ, environment VARCHAR, tenant VARCHAR,
            caller VARCHAR, service_name VARCHAR, side VARCHAR, rows BIGINT)""")
        yield con


def by_loop(rows: list[Row], lo: int, hi: int) -> dict[str, tuple[bool, int]]:
    """Of each subject whether most of its rows came in some span with enough of them, and the most in any span."""
    inside = [r for r in rows if lo <= r[3] < hi]
    said = {}
    for tenant, service in {(t, s) for t, s, *_ in inside}:
        mine = [(side, at, n) for t, s, side, at, n in inside if (t, s) == (tenant, service)]
        client = any(side != "server" for side, *_ in mine)
        counts: dict[int, int] = {}
        for side, at, n in mine:
            if (side != "server") is client:
                counts[at] = counts.get(at, 0) + n
        lately = {at: sum(n for w, n in counts.items() if at - SPAN < w <= at) for at in counts}
        judged = sum(n for at, n in counts.items() if any(lately[w] >= NEEDED for w in counts if at <= w < at + SPAN))
        name = f"?->{service}" + (f" [{tenant}]" if tenant else "")
        said[name] = (2 * judged >= sum(counts.values()), max(lately.values()))
    return said


rows = st.lists(
    st.tuples(
        st.sampled_from(["", "blue"]),
        st.sampled_from(["pay", "it's"]),
        st.sampled_from(["client", "server", None]),
        st.integers(0, 30),
        st.integers(1, 4),
    ),
    max_size=30,
)


@given(rows, st.integers(0, 12), st.integers(13, 31))
def test_a_subject_has_enough_rows_where_a_loop_over_all_spans_says_so(
    con: duckdb.DuckDBPyConnection, rows: list[Row], lo: int, hi: int
) -> None:
    con.execute("DELETE FROM calls")
    if rows:
        values = [(BEGIN + at * WINDOW, "", t, None, s, side, n) for t, s, side, at, n in rows]
        con.executemany("INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    known = told(con, BEGIN + lo * WINDOW, BEGIN + hi * WINDOW)
    wanted = by_loop(rows, lo, hi)
    assert {v.subject: v.enough for v in known.volumes} == {name: enough for name, (enough, _) in wanted.items()}
    assert {v.subject: v.most for v in known.short} == {n: most for n, (enough, most) in wanted.items() if not enough}


def test_rows_of_another_service_or_time_are_not_counted(con: duckdb.DuckDBPyConnection) -> None:
    con.execute("DELETE FROM calls")
    values: list[Any] = [(BEGIN + n * WINDOW, "", "", "gw", s, None, 1) for s in ("pay", "search") for n in range(12)]
    con.executemany("INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    assert [v.subject for v in told(con).volumes] == ["gw->pay", "gw->search"] and not told(con).short
    (only,) = told(con, service="search").volumes
    assert only.subject == "gw->search" and only.enough
    (few,) = told(con, BEGIN + 9 * WINDOW, service="pay").short
    assert few.most == 3


def told(
    con: duckdb.DuckDBPyConnection, since: datetime | None = None, until: datetime | None = None, service: str = ""
) -> Reach:
    known = reach(con, "timeout_ratio", Filter(since, until, service))
    assert known and known.needed == NEEDED and "timeout_ratio" in MEASURES
    return known
