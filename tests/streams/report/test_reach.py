"""Whether there were enough rows to judge: the query over spans and windows says what a plain loop says."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.detector import Settings
from detectors.windows import MINUTE_US, WINDOW_US
from streams.landing.state import land_settings
from streams.report.found import Filter
from streams.report.reach import MEASURES, Reach, reach, setting
from streams.settings import rows_of

NEEDED, SPAN = {"pay": 6, "it's": 3}, MINUTE_US // WINDOW_US
BEGIN = datetime(2026, 1, 26, 8, tzinfo=UTC)
WINDOW = timedelta(microseconds=WINDOW_US)
Row = tuple[str, str, str | None, int, int]  # tenant, service, side, window, rows


SETTINGS = Settings({"timeout_ratio.min_volume": NEEDED["pay"]}, {"it's": {"timeout_ratio.min_volume": NEEDED["it's"]}})


@pytest.fixture(scope="module")
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as con:
        con.execute("SET TimeZone='UTC'")
        con.execute("CREATE TABLE settings (config VARCHAR, name VARCHAR, value VARCHAR)")
        con.execute("CREATE TABLE judged_with (since TIMESTAMPTZ, config VARCHAR)")
        land_settings(con, rows_of(SETTINGS))
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
        whole = {w for w in counts if lately[w] >= NEEDED[service]}
        judged = sum(n for at, n in counts.items() if any(at <= w < at + SPAN for w in whole))
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
    assert all(v.needed == NEEDED["it's" if "it's" in v.subject else "pay"] for v in known.volumes)
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
    assert known and known.needed == NEEDED["pay"] and "timeout_ratio" in MEASURES
    return known


def test_what_was_set_is_what_was_in_force_then_and_the_defaults_come_back() -> None:
    """Two settings, each taken back, and the first once more."""
    some, other = Settings({"clock_skew.warn_ms": 40.0}), Settings({"clock_skew.warn_ms": 70.0})
    hours = [BEGIN + timedelta(hours=i) for i in range(5)]
    with duckdb.connect() as con:
        con.execute("SET TimeZone='UTC'")
        con.execute("CREATE TABLE settings (config VARCHAR, name VARCHAR, value VARCHAR)")
        con.execute("CREATE TABLE judged_with (since TIMESTAMPTZ, config VARCHAR)")
        for since, settings in zip(hours, [some, other, some, Settings(), Settings()], strict=True):
            land_settings(con, rows_of(settings), since)
        then = [setting(con, "clock_skew.warn_ms", 100, hour + WINDOW) for hour in hours]
        assert then == [40, 70, 40, 100, 100]
        assert setting(con, "clock_skew.warn_ms", 100, BEGIN - WINDOW) == 40, "of windows before, too"
        assert setting(con, "clock_skew.warn_ms", 100) == 100
        assert con.execute("SELECT count(*) FROM judged_with").fetchall() == [(4,)]
