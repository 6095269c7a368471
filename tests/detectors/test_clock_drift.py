"""What two minutes' bounds leave for the change of a clock holds the true change, whatever the delays."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.catalog.clock_drift import changes
from detectors.facts import facts_of, names_of, recent, throughout
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
