"""Ids, times and filters enter; what must leave is one finding, one moment, or a message that says what to type."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.problems import Problem, few
from streams.report.found import LEAST_ID, Span, shortest, when
from tests.cases import T0
from tests.streams.report.states import of_rows
from tests.streams.report.test_morning import screen

HEX = st.text("0123456789abcdef", min_size=16, max_size=16)
IDS = st.lists(st.builds(lambda a, b: f"{a}-{b}", st.sampled_from(["dk", "rs", "cs"]), HEX), unique=True)
ALIKE = st.lists(st.text("01", min_size=16, max_size=16).map("dk-{}".format), unique=True, max_size=60)


@given(ids=IDS | ALIKE)
def test_a_short_id_is_a_prefix_of_one_id_only_and_no_shorter_one_is(ids: list[str]) -> None:
    short = shortest(ids)
    assert set(short) == set(ids)
    for own, prefix in short.items():
        assert own.startswith(prefix) and len(prefix.partition("-")[2]) >= LEAST_ID
        assert [i for i in ids if i.startswith(prefix)] == [own]
        if len(prefix.partition("-")[2]) > LEAST_ID:
            assert len([i for i in ids if i.startswith(prefix[:-1])]) > 1


def hour() -> Span:
    start = datetime(2026, 1, 26, 8, 0, tzinfo=UTC)
    return Span(start + timedelta(seconds=1), start + timedelta(minutes=59, seconds=59))


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("08:15", "2026-01-26T08:15:00+00:00"),
        ("8:15:30", "2026-01-26T08:15:30+00:00"),
        ("2026-01-26T08:15Z", "2026-01-26T08:15:00+00:00"),
        ("2026-01-26 09:15+01:00", "2026-01-26T08:15:00+00:00"),
        ("2026-01-25", "2026-01-25T00:00:00+00:00"),
        ("20m", "2026-01-26T08:40:00+00:00"),
        ("2h", "2026-01-26T07:00:00+00:00"),
    ],
)
def test_a_moment_may_be_typed_in_several_ways(text: str, moment: str) -> None:
    assert when(text, hour()) == datetime.fromisoformat(moment)


@pytest.mark.parametrize("text", ["noon", "24:00", "08:60", "-2h", "2 fortnights", ""])
def test_what_is_no_moment_is_refused_with_examples(text: str) -> None:
    with pytest.raises(Problem, match="write 08:15"):
        when(text, hour())


def test_a_window_ends_at_the_minute_that_holds_its_last_row() -> None:
    span = hour()
    assert (f"{span.start:%H:%M}", f"{span.end:%H:%M}") == ("08:00", "09:00")
    assert span.clock(span.start) == "08:00"


def test_times_carry_their_date_where_the_data_has_several_days() -> None:
    span = Span(hour().first, hour().last + timedelta(days=1))
    assert span.clock(span.start) == "01-26 08:00"


def test_a_list_that_is_cut_short_says_by_how_many() -> None:
    assert few(["a", "b", "c"], 3) == "a, b, c"
    assert few(["a", "b", "c", "d", "e"], 3) == "a, b, c and 2 more"


def beats(every_s: int, until_s: int, silent_from_s: int) -> list[dict[str, str]]:
    """Of three nodes, each a third of an interval after the one before; the first falls silent."""
    rows = []
    for second in range(0, until_s, every_s):
        for i, node in enumerate(("gone", "a", "b")):
            if node != "gone" or second < silent_from_s:
                at = (T0 + timedelta(seconds=second + i * every_s // 3)).isoformat()
                rows.append({"node_id": node, "client_time": at, "server_time": at, "arrival": at})
    return sorted(rows, key=lambda r: r["arrival"])


@pytest.mark.parametrize(
    ("every_s", "until_s", "silent_from_s", "to", "state"),
    [
        (300, 5400, 3600, "open", "open"),  # the next beat that is missed is minutes away
        (60, 9000, 3600, "unknown", "open"),  # the past hour has no gap to know an interval by, since half an hour
        (60, 3 * 3600, 3600, "unknown", "unknown"),  # nor for an hour: closed
    ],
)
def test_a_node_that_stays_silent_is_nowhere_said_to_be_over(
    every_s: int, until_s: int, silent_from_s: int, to: str, state: str, tmp_path: Path
) -> None:
    folder = of_rows(tmp_path, heartbeats=beats(every_s, until_s, silent_from_s))
    found, incident = (
        next(line.split() for line in screen(folder, *command).splitlines() if "heartbeat_loss" in line)
        for command in (("findings",), ("incident", "list"))
    )
    assert found[4] == to
    assert (incident[2], incident[4]) == (state, to)
    assert f" - {to}" in screen(folder, "report")
    assert f" - {to} UTC" in screen(folder, "explain", found[0])
    assert f" - {to} UTC" in screen(folder, "postmortem", incident[0])
