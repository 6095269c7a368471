"""What became of the rows adds up, and our own trouble is told from that of the system."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import polars as pl
import pytest

from detectors.catalog.pipeline import pipeline
from detectors.engine import MatchState, match, reduce
from detectors.events import STREAMS
from detectors.tables.accounts import ACCOUNTS
from detectors.windows import WINDOW_US
from tests.cases import Case, at, partitions
from tests.cases.pipeline import fires_where_a_fifth_is_late, fires_where_append_time_steps_back
from tests.harness import Memory, one_pass, placed

Row = dict[str, Any]


def line(t: float, delay_s: float = 0.5) -> Row:
    return {"timestamp": at(t), "arrival": at(t + delay_s), "service_name": "s", "node_id": "n", "duration_ms": 1.0}


def test_every_row_of_every_stream_is_in_the_accounts() -> None:
    beat = {"node_id": "n", "client_time": at(5), "server_time": at(5), "arrival": at(5)}
    signal = {"timestamp": at(6), "subject": "n", "kind": "change", "name": "deploy", "arrival": at(6)}
    case = Case(
        {
            "requests": partitions("requests", [line(1), line(2, 40), line(3, -70), line(4, 3_000_000)]),
            "heartbeats": partitions("heartbeats", [beat], 1),
            "write_log": partitions("write_log", [{"timestamp": at(7), "node_id": "n", "arrival": at(7)}], 1),
            "signals": partitions("signals", [signal], 1),
        }
    )
    log = placed(case)
    news = [reduce([ACCOUNTS], stream, p) for stream, parts in log.items() for p in parts if len(p)]
    to = max(int(p["arrived"].max()) for parts in log.values() for p in parts if len(p)) + WINDOW_US  # type: ignore[arg-type]
    accounts = match([ACCOUNTS], MatchState(), news, to, Memory())[0]["accounts"]
    sums = accounts.group_by("stream").agg(pl.col("rows", "late", "implausible").sum())
    expected = dict.fromkeys(STREAMS, (1, 0, 0)) | {"requests": (4, 1, 2)}
    assert {s: tuple(r) for s, *r in sums.iter_rows()} == expected
    assert accounts["rows"].sum() == sum(len(p) for parts in log.values() for p in parts)


@pytest.mark.parametrize(("step_s", "fires"), [(2.0, False), (2.001, True)])
def test_append_time_may_step_back_by_two_seconds(step_s: float, fires: bool) -> None:
    (part,) = partitions("requests", [line(i) for i in range(100)], 1)
    stepped = pl.int_range(pl.len()) == 50
    back = pl.col("arrival") - timedelta(seconds=step_s + 1)  # one second came between the two rows
    case = Case({"requests": [part.with_columns(pl.when(stepped).then(back).otherwise("arrival"))]})
    expected = {("requests/0", "append_back", "warn")} if fires else set()
    assert one_pass(case).fired("pipeline") == expected


FACTS = {
    "append_back": {"step_back_s"},
    "late_share": {"late_share"},
    "stray": {"behind_s"},
    "parked": {"first_offset", "last_offset"},
    "deleted": {"first_offset", "last_offset"},
    "copies": set[str](),
}


def test_a_kind_has_its_own_facts_and_none_of_the_others() -> None:
    every = dict.fromkeys(set().union(*FACTS.values(), {"mine"}))
    assert {t.kind for t in pipeline.thresholds} == set(FACTS)
    for kind, facts in FACTS.items():
        assert set(pipeline.facts_of(kind, every)) == {*facts, "mine"}
    cases = fires_where_append_time_steps_back(), fires_where_a_fifth_is_late()
    found = pl.concat(one_pass(case, only="pipeline").findings for case in cases)
    told = list(found.select("kind", "facts").iter_rows())
    assert {kind for kind, _ in told} == {"append_back", "late_share"}
    assert all(set(msgspec.json.decode(facts)) == FACTS[kind] and "null" not in facts for kind, facts in told)


@pytest.mark.parametrize(("late", "fires"), [(12, False), (13, True)])
def test_more_than_a_tenth_must_be_late(late: int, fires: bool) -> None:
    """All within one window, so that no span is cut."""
    rows = [line(100 + i / 100) for i in range(108)] + [line(50 + i / 100, 51) for i in range(late)]
    expected = {("requests/0", "late_share", "warn")} if fires else set()
    assert one_pass(Case({"requests": partitions("requests", rows, 1)})).fired("pipeline") == expected


def test_few_rows_are_unknown_and_rows_that_can_not_be_true_are_not_late() -> None:
    few = [line(100 + i / 100) for i in range(80)] + [line(50 + i / 100, 51) for i in range(19)]
    assert not one_pass(Case({"requests": partitions("requests", few, 1)})).fired("pipeline")
    enough = [*few, line(100)]
    assert one_pass(Case({"requests": partitions("requests", enough, 1)})).fired("pipeline")
    ahead = [*few, *(line(500 + i, -400) for i in range(5))]
    assert not one_pass(Case({"requests": partitions("requests", ahead, 1)})).fired("pipeline")
