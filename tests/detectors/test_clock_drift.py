"""What two minutes' bounds leave for the change of a clock holds the true change, whatever the delays."""

from __future__ import annotations

from typing import Any, Self

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.catalog import clock_drift
from detectors.catalog.clock_drift import Fleet as Drifting
from detectors.catalog.clock_drift import Said, assess, changes
from detectors.detector import Settings, View
from detectors.facts import Moment, facts_of, names_of, recent, throughout
from detectors.windows import MINUTE_US, WINDOW_US
from tests.detectors.test_corrected import T0, Fleet, Message, fleets

FIRST, LAST = T0, T0 + 2 * MINUTE_US


def test_the_true_change_lies_between_least_and_most() -> None:
    compared: set[int] = set()

    @settings(deadline=None, max_examples=60)
    @given(fleets, st.lists(st.tuples(st.permutations(range(5)), st.integers(0, 50_000)), min_size=2, max_size=4))
    def law(fleet: Fleet, rings: list[tuple[list[int], int]]) -> None:
        """Each ring of messages goes once around; rings of both minutes."""
        sent = [
            Message(a, b, at + 1_000 * i, took, 500_000)
            for at in (0, LAST - FIRST)
            for order, took in rings
            for i, (a, b) in enumerate(zip(order, order[1:] + order[:1], strict=True))
        ]
        rows = fleet.rows(sent)
        names = names_of(rows)
        found = recent(facts_of(rows, names), len(names), FIRST, LAST + WINDOW_US)
        before, now = (throughout(some, names, w, 200) for w, some in found if w in (FIRST, LAST))
        true = [fleet.shown(n, LAST - T0) - fleet.shown(n, FIRST - T0) for n in range(5)]
        for node, change in changes(before, now, now.steady()).items():
            gained = sorted(true[node] - other for other in true)[len(true) // 2]
            assert change.least <= gained <= change.most
            compared.add(change.nodes)

    law()
    assert compared == {5}


def test_judged_window_by_window_a_minute_is_measured_as_often_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Live judges every 10 s, and has something to say at full minutes."""
    measured: list[int] = []
    moment = Drifting.moment

    def counted(self: Drifting, w: int) -> Moment:
        measured.append(w)
        return moment(self, w)

    monkeypatch.setattr(Drifting, "moment", counted)
    fleet = Fleet([0] * 5, [0] * 5)
    ring = [Message(n, (n + 1) % 5, at, 1_000, 0) for at in range(0, 40 * MINUTE_US, WINDOW_US) for n in range(5)]
    rows = fleet.rows(ring).with_columns(environment=pl.lit("e"), tenant=pl.lit("t"))
    lo, to = T0 + 30 * MINUTE_US, T0 + 31 * MINUTE_US

    def said(lo: int, to: int) -> list[dict[str, object]]:
        return assess(View(rows, {}, lo, to, to, Settings())).drop("environment", "tenant").to_dicts()

    at_once, often = said(lo, to), len(measured)
    each = [row for w in range(lo, to, WINDOW_US) for row in said(w, w + WINDOW_US)]
    assert often and any(row["kind"] == "drift" and not row["unknown"] for row in at_once)
    assert each == at_once
    assert len(measured) == 2 * often


def test_nodes_that_only_send_are_unknown_each_minute_and_no_work_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fleet of a hundred thousand they were most of what a replay held in memory."""
    made: list[str] = []

    class Counted(Said):
        def __new__(cls, *values: Any, **more: Any) -> Self:
            made.append(cls.__name__)
            return super().__new__(cls, *values, **more)

    monkeypatch.setattr(clock_drift, "Said", Counted)
    fleet = Fleet([0] * 50, [0] * 50)
    sent = [Message(n, 0, 10_000_000 * n, 1_000, 0) for n in range(1, 50)]
    rows = fleet.rows(sent).with_columns(environment=pl.lit("e"), tenant=pl.lit("t"))
    lo, to = T0 + 9 * MINUTE_US, T0 + 10 * MINUTE_US
    said = assess(View(rows, {}, lo, to, to, Settings()))
    assert said["subject"].n_unique() == 50 and said["unknown"].all()
    assert said.select("window", "kind", "subject").is_unique().all() and len(said) == 100
    assert len(made) == 2
