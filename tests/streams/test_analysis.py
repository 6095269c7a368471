"""What becomes final is judged in pieces: none too short, nothing left out, whatever comes first."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.windows import WINDOW_US
from streams.analysis import JUDGED_ROWS, JUDGED_US, LOOKED_BACK_ON, Final, joined

finals = st.lists(st.tuples(st.integers(1, 90), st.sets(st.sampled_from("abc"))), max_size=12)


def _finals(some: list[tuple[int, set[str]]]) -> list[Final]:
    """Neighbours of so many windows, with a row in each table named."""
    found, lo = list[Final](), 0
    for i, (windows, names) in enumerate(some):
        to = lo + windows * WINDOW_US
        found.append(Final({n: pl.DataFrame({"window": [lo], "of": [i]}) for n in sorted(names)}, lo, to, to + i, i))
        lo = to
    return found


@given(finals)
def test_pieces_hold_all_that_is_final_in_its_order_and_none_but_the_last_is_short(
    some: list[tuple[int, set[str]]],
) -> None:
    given_, pieces = _finals(some), list(joined(_finals(some), lambda: 0))
    assert [p.lo for p in pieces[1:]] == [p.to for p in pieces[:-1]]
    assert [(p.lo, p.to, p.heard_us) for p in pieces[:1]] == [(0, p.to, p.heard_us) for p in pieces[:1]]
    assert [p.to for p in pieces[-1:]] == [f.to for f in given_[-1:]]
    assert all(p.to - p.lo >= JUDGED_US for p in pieces[:-1])
    assert sum(p.rows for p in pieces) == sum(f.rows for f in given_)
    assert all(p.heard_us in {f.heard_us for f in given_ if f.to == p.to} for p in pieces)
    for name in "abc":
        told = [row for p in pieces if name in p.tables for row in p.tables[name].rows()]
        assert told == [row for f in given_ if name in f.tables for row in f.tables[name].rows()]


@pytest.mark.parametrize(("past_rows", "many"), [(0, 3), (2 * LOOKED_BACK_ON * JUDGED_ROWS, 5)])
def test_pieces_of_many_rows_are_short_unless_the_past_has_many_more(past_rows: int, many: int) -> None:
    rows = pl.select(window=pl.repeat(0, JUDGED_ROWS * 2 // 5, dtype=pl.Int64))
    large = [Final({"a": rows}, i * WINDOW_US, (i + 1) * WINDOW_US, 0, 7) for i in range(2 * many)]
    assert [(p.to - p.lo) // WINDOW_US for p in joined(large, lambda: past_rows)] == [many, many]
