"""Arrivals: of an honest recording none is lost, of one with slips these alone, wherever its chunks are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations
from random import Random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.events import INSTANT, REJECTS, Decoded
from detectors.windows import DAY_US, HOUR_US, LATENESS_US, MINUTE_US, SECOND_US
from streams.sources.arrivals import BACK, FEW, FUTURE, LAST, LEAP, SLIP, Arrivals
from tests.streams.tape import T0

BEGIN = T0 * SECOND_US
NOW = BEGIN + 40 * 365 * DAY_US
Row = tuple[int, int]  # arrival, event time
Sifted = tuple[dict[int, str], Arrivals]


def sift(rows: Sequence[Row], cuts: Sequence[int] = (), first: int = 0, clock_us: int | None = None) -> Sifted:
    """Reads them from row number `first` on: why those that are not believed are not, and what is known after them."""

    def chunks() -> Iterator[tuple[int, Decoded]]:
        for begin, end in pairwise(sorted({first, *(c for c in cuts if first < c < len(rows)), len(rows)})):
            numbers = pl.int_range(begin, end, dtype=pl.Int64, eager=True)
            columns = {"arrival": [a for a, _ in rows[begin:end]], "timestamp": [t for _, t in rows[begin:end]]}
            frame = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.Int64)).cast(INSTANT)
            events = frame.with_columns(offset=numbers, sub=pl.lit(0, dtype=pl.Int64))
            yield len(events), Decoded(events, pl.DataFrame(schema=REJECTS))

    arrivals = Arrivals("signals", NOW, clock_us)
    found = list(arrivals.believed(chunks()))
    assert sum(count for count, _ in found) == len(rows) - first
    reasons = {int(r["offset"]): str(r["reason"]) for _, d in found for r in d.rejects.iter_rows(named=True)}
    assert [n for _, d in found for n in d.events["offset"]] == [n for n in range(first, len(rows)) if n not in reasons]
    return reasons, arrivals


cut = st.lists(st.integers(1, 2_400), max_size=4)
seed = st.integers(0, 2**32)

# ---- honest recordings ----------

steps_us = st.sampled_from([0, 1_000, SECOND_US, 20 * SECOND_US, 5 * MINUTE_US, 3 * HOUR_US, DAY_US, 3 * DAY_US])
bursts = st.lists(st.tuples(steps_us, steps_us, st.integers(FEW + 1, 400)), max_size=6)


@settings(max_examples=40)
@given(seed, st.integers(0, 3), bursts, st.sampled_from([SECOND_US, 90 * MINUTE_US]), cut)
def test_gaps_bursts_backlogs_and_disorder_lose_nothing(
    seed: int, alone: int, bursts: list[tuple[int, int, int]], behind_us: int, cuts: list[int]
) -> None:
    """Any pace, any gap before each burst; event times right before their arrivals, or long before."""
    rows, at, dice = list[Row](), BEGIN, Random(seed)
    for gap, pace, many in [(DAY_US, DAY_US, alone), *bursts]:
        at += gap
        for _ in range(many):
            arrival = at - dice.randrange(LATENESS_US)
            rows.append((arrival, arrival - dice.randrange(behind_us)))
            at += pace
    assert sift(rows, cuts)[0] == {}


@settings(max_examples=15)
@given(seed, st.sampled_from([0.2, 0.5, 0.9]), st.sampled_from([1, 20, 300]), cut)
def test_collectors_whose_clocks_differ_lose_nothing(seed: int, share: float, batch: int, cuts: list[int]) -> None:
    rows, dice = list[Row](), Random(seed)
    while len(rows) < 1_500:
        ahead = 90 * MINUTE_US * (dice.random() < share)
        times = [BEGIN + i * SECOND_US for i in range(len(rows), len(rows) + batch)]
        rows += [(t + ahead, t) for t in times]
    assert sift(rows, cuts)[0] == {}


def steady(n: int, begin_us: int = BEGIN, pace_us: int = SECOND_US) -> list[Row]:
    return [(begin_us + i * pace_us, begin_us + i * pace_us) for i in range(n)]


@pytest.mark.parametrize("pace_us", [SECOND_US, 20 * SECOND_US, 10 * MINUTE_US])
@pytest.mark.parametrize("n", [3, 140])
def test_days_in_any_order_and_rows_with_the_newest_first_lose_nothing(n: int, pace_us: int) -> None:
    days = [steady(n, BEGIN + day * DAY_US, pace_us) for day in (0, 1, 2)]
    for order in permutations(days):
        assert sift([row for day in order for row in day])[0] == {}
    assert sift(steady(n, pace_us=pace_us)[::-1])[0] == {}


# ---- slips ----------

heights_us = st.sampled_from([90 * MINUTE_US, 20 * HOUR_US, 3 * DAY_US])
slips = st.lists(st.tuples(st.floats(0, 1), heights_us), min_size=1, max_size=FEW)


@settings(max_examples=40)
@given(seed, slips, st.booleans(), st.sampled_from([20_000, SECOND_US, 10 * SECOND_US]), st.integers(500, 2_500), cut)
def test_slips_alone_are_not_believed(
    seed: int, slips: list[tuple[float, int]], in_a_row: bool, pace_us: int, n: int, cuts: list[int]
) -> None:
    """Ten at most, anywhere; their own event times are sound. Read at once, in any chunks, or after it has grown."""
    dice, rows, where = Random(seed), steady(n, pace_us=pace_us), set[int]()
    rows = [(arrival - dice.randrange(LATENESS_US), t) for arrival, t in rows]
    for i, (share, height_us) in enumerate(slips):
        place = min(int(slips[0][0] * n) + i, n - 1) if in_a_row else int(share * (n - 1))
        rows[place] = (rows[place][1] + height_us, rows[place][1])
        where.add(place)
    reasons, _ = sift(rows)
    assert reasons.keys() == where
    assert sift(rows, cuts)[0] == reasons
    for upto in cuts:
        before, known = sift(rows[:upto])
        if not known.undecided:
            assert before | sift(rows, first=min(upto, n), clock_us=known.clock_us)[0] == reasons


@pytest.mark.parametrize("place", [0, 700, 1_500])
@pytest.mark.parametrize("many", [1, FEW])
def test_a_slip_that_its_stamp_confirms_is_told_by_the_rows_after_it(place: int, many: int) -> None:
    rows = steady(1_500)
    ahead = [(t + 90 * MINUTE_US, t + 90 * MINUTE_US) for _, t in rows[place : place + many] or rows[-many:]]
    reasons, known = sift([*rows[:place], *ahead, *rows[place:]])
    undecidable = place == 1_500  # or the first rows after a gap
    assert reasons == ({} if undecidable else dict.fromkeys(range(place, place + many), LEAP))
    assert known.undecided == undecidable or place == 700


@pytest.mark.parametrize("place", [0, 2, 3])
def test_one_later_than_the_day_of_reading_is_never_believed(place: int) -> None:
    rows = steady(3)
    rows.insert(place, (NOW + 2 * DAY_US, NOW + 2 * DAY_US))
    assert sift(rows)[0] == {place: FUTURE}


def test_of_few_rows_only_what_is_a_day_off_its_own_stamp_is_not_believed() -> None:
    for ahead, reason in ((90 * MINUTE_US, None), (3 * DAY_US, SLIP)):
        first, (_, t), last = steady(3)
        assert sift([first, (t + ahead, t), last])[0] == ({1: reason} if reason else {})


@pytest.mark.parametrize("many", [1, FEW, FEW + 1])
def test_the_last_rows_are_a_backlog_where_they_are_more_than_a_few_or_not_the_first(many: int) -> None:
    """What arrives last, an hour and a half after all before it, and tells of times before."""
    before = steady(BACK * FEW)
    last = [(BEGIN + 3 * HOUR_US, t) for _, t in before[:many]]
    assert sift([*before, *last])[0] == ({} if many > FEW else dict.fromkeys(range(200, 200 + many), LAST))
    hour_ago = [(arrival - HOUR_US, t - HOUR_US) for arrival, t in steady(FEW)]
    assert sift([*hour_ago, *before, *last])[0] == {}
