"""Windows: fate at its borders, the clock of a partition, what stands in for arrivals, coordinates there and back."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.events import INSTANT, STREAMS
from detectors.windows import (
    DAY_US,
    LATENESS_US,
    OFFSET_BITS,
    PARTITION_BITS,
    SECOND_US,
    SLICE_US,
    SUB_BITS,
    WINDOW_US,
    coordinate,
    event_time,
    final_before,
    parse_coordinate,
    place,
    running_arrival,
    stand_in_arrival,
    suspect,
    window_of,
)

ARRIVED = 1_769_414_400_000_000


def signals(event_us: list[int], arrived_us: list[int], told: bool = True) -> pl.DataFrame:
    times = {"timestamp": event_us, "arrival": arrived_us}
    frame = pl.DataFrame({n: pl.Series(v, dtype=pl.Int64).cast(INSTANT) for n, v in times.items()})
    numbers = [pl.lit(0, dtype=pl.Int64).alias(n) for n in ("partition", "sub")]
    return frame.with_columns(pl.int_range(len(frame)).alias("offset"), pl.lit(told).alias("told"), *numbers)


def fates(delays_us: list[int], lateness_us: int = LATENESS_US) -> list[str]:
    rows = signals([ARRIVED - d for d in delays_us], [ARRIVED] * len(delays_us))
    return place(rows, "signals", lateness_us)["fate"].to_list()


#   event time of a row that arrives at A:
#
#   implausible |      late      |     used     | implausible
#  -------------[----------------[------A-------]------------->
#           A - 30 d          A - 30 s       A + 60 s
def test_fate_changes_one_us_past_its_borders() -> None:
    borders = {60 * SECOND_US: -1, 30 * SECOND_US: 1, 30 * DAY_US: 1}
    (ahead, _), (late, _), (old, _) = borders.items()
    assert fates([-ahead - 1, -ahead, 0, late, late + 1, old, old + 1]) == [
        *("implausible", "used", "used", "used", "late", "late", "implausible")
    ]


def test_another_lateness_moves_one_border_only() -> None:
    assert fates([-60 * SECOND_US - 1, 0, 1, 30 * DAY_US, 30 * DAY_US + 1], lateness_us=0) == [
        *("implausible", "used", "late", "late", "implausible")
    ]


def test_arrival_stands_in_for_a_time_that_cannot_be_true_and_only_there() -> None:
    rows = place(signals([ARRIVED + 61 * SECOND_US, ARRIVED - 31 * SECOND_US, ARRIVED - 5], [ARRIVED] * 3), "signals")
    assert rows["t"].to_list() == [ARRIVED, ARRIVED - 31 * SECOND_US, ARRIVED - 5]
    assert rows["arrived"].to_list() == [ARRIVED] * 3


@given(st.lists(st.integers(-40 * DAY_US, 40 * DAY_US), min_size=1), st.integers(0, DAY_US))
def test_the_fate_of_a_row_is_its_own(delays: list[int], lateness_us: int) -> None:
    assert fates(delays, lateness_us) == [fates([d], lateness_us)[0] for d in delays]


@given(st.integers(0, 4 * 10**15), st.integers(-60 * SECOND_US, 30 * SECOND_US), st.integers(0, 10**6))
def test_no_used_row_can_still_arrive_for_a_final_window(frontier: int, delay: int, after: int) -> None:
    arrived = frontier // SLICE_US * SLICE_US + after  # not passed yet
    window = (arrived - delay) // WINDOW_US * WINDOW_US
    assert window >= final_before(frontier // SLICE_US * SLICE_US, LATENESS_US)


def test_event_time_is_when_the_line_could_first_be_written() -> None:
    at = pl.Series([7_000_000], dtype=pl.Int64).cast(INSTANT)
    request = pl.DataFrame({"timestamp": at, "duration_ms": [1.5]})
    assert request.select(event_time("requests")).item() == 7_001_500
    assert request.with_columns(duration_ms=pl.lit(None, dtype=pl.Float64)).select(event_time("requests")).item() == (
        7_000_000
    )
    write = pl.DataFrame({"timestamp": at, "finished": at.dt.offset_by("2s")})
    assert write.select(event_time("write_log")).item() == 9_000_000
    beat = pl.DataFrame({"server_time": at, "timestamp": at.dt.offset_by("2s")})
    assert beat.select(event_time("heartbeats")).item() == 7_000_000


def test_windows_are_floored_also_before_1970() -> None:
    frame = pl.DataFrame({"t": [-1, 0, 9_999_999, 10_000_000]})
    assert frame.select(window_of(pl.col("t")))["t"].to_list() == [-10_000_000, 0, 0, 10_000_000]


# ---- the clock of a partition ---------------------------------------------------------------------------------------

stamps = st.lists(st.none() | st.integers(0, 100), max_size=12)


@given(stamps, st.integers(0, 100))
def test_arrival_never_goes_back_and_a_row_without_one_takes_the_clock(raw: list[int | None], clock: int) -> None:
    expected = []
    now = clock
    for stamp in raw:
        now = max(now, stamp if stamp is not None else now)
        expected.append(now)
    assert running_arrival(pl.Series(raw, dtype=pl.Int64), clock).to_list() == expected


@given(stamps, st.integers(0, 12), st.integers(0, 100))
def test_arrivals_are_the_same_however_the_partition_is_cut(raw: list[int | None], cut: int, clock: int) -> None:
    whole = running_arrival(pl.Series(raw, dtype=pl.Int64), clock)
    head = running_arrival(pl.Series(raw[:cut], dtype=pl.Int64), clock)
    tail = running_arrival(pl.Series(raw[cut:], dtype=pl.Int64), int(head[-1]) if len(head) else clock)
    assert [*head, *tail] == whole.to_list()


# ---- without arrivals -----------------------------------------------------------------------------------------------


def cut_off(times: list[int]) -> list[bool]:
    """suspect() as the design says it: stretches between gaps > 24 h, the smallest while they hold < 1 % together."""
    stretch_of: dict[int, int] = {}
    stretch, last = 0, None
    for t in sorted(times):
        stretch += last is not None and t - last > DAY_US
        stretch_of[t], last = stretch, t
    rows = [stretch_of[t] for t in times]
    sizes = {s: rows.count(s) for s in set(rows)}
    out: set[int] = set()
    for size in sorted(set(sizes.values())):
        out |= {s for s, n in sizes.items() if n == size}
        if sum(sizes[s] for s in out) >= 0.01 * len(times):
            out -= {s for s, n in sizes.items() if n == size}
            break
    return [s in out for s in rows]


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from([1, 1, 2, 3, 150, 300])), max_size=6),
    st.randoms(use_true_random=False),
)
def test_suspect_rows_are_those_of_stretches_that_together_hold_under_one_percent(
    groups: list[tuple[int, int]], dice: object
) -> None:
    times = [day * 3 * DAY_US + i for day, n in groups for i in range(n)]
    dice.shuffle(times)  # type: ignore[attr-defined]
    assert suspect(pl.Series("t", times, dtype=pl.Int64)).to_list() == cut_off(times)


def test_a_gap_of_exactly_a_day_cuts_nothing_off() -> None:
    block = list(range(200))
    assert not suspect(pl.Series([*block, 199 + DAY_US])).any()
    assert suspect(pl.Series([*block, 200 + DAY_US])).to_list() == [False] * 200 + [True]


def test_exactly_one_percent_is_plausible_and_under_it_is_not() -> None:
    far = 10 * DAY_US
    assert not suspect(pl.Series([*range(99), far])).any()
    assert suspect(pl.Series([*range(100), far])).sum() == 1


def test_a_suspect_row_takes_the_nearest_plausible_record_before_it_else_after() -> None:
    far = 2**55
    times = [far, *range(100, 300), far, 300]
    stood = stand_in_arrival(pl.Series(times, dtype=pl.Int64)).to_list()
    assert stood == [100, *range(100, 300), 299, 300]
    rows = place(signals(times, stood, told=False), "signals")
    assert rows["fate"].to_list() == ["implausible", *["used"] * 200, "implausible", "used"]
    assert rows["t"].to_list() == stood


def test_without_arrivals_no_row_is_late() -> None:
    times = [0, 3 * DAY_US, 5, 2 * DAY_US]
    rows = place(signals(times, stand_in_arrival(pl.Series(times)).to_list(), told=False), "signals")
    assert rows["fate"].to_list() == ["used"] * 4


# ---- coordinates ----------------------------------------------------------------------------------------------------

places = st.tuples(
    st.sampled_from(list(STREAMS)),
    st.integers(0, 2**PARTITION_BITS - 1),
    st.integers(0, 2**OFFSET_BITS - 1),
    st.integers(0, 2**SUB_BITS - 1),
)


def number(where: tuple[str, int, int, int]) -> int:
    stream, partition, offset, sub = where
    row = pl.DataFrame(
        {"partition": [partition], "offset": [offset], "sub": [sub]},
        schema_overrides=dict.fromkeys(("partition", "offset", "sub"), pl.Int64),
    )
    return int(row.select(coordinate(stream)).item())


@given(places, places)
def test_coordinates_are_one_integer_that_sorts_as_they_do(
    a: tuple[str, int, int, int], b: tuple[str, int, int, int]
) -> None:
    assert parse_coordinate(number(a)) == a
    order = list(STREAMS)
    assert (number(a) < number(b)) == ((order.index(a[0]), *a[1:]) < (order.index(b[0]), *b[1:]))
    assert 0 <= number(a) < 2**63


@pytest.mark.parametrize("stream", STREAMS)
def test_the_largest_coordinate_of_a_stream_fits(stream: str) -> None:
    top = (stream, 2**PARTITION_BITS - 1, 2**OFFSET_BITS - 1, 2**SUB_BITS - 1)
    assert parse_coordinate(number(top)) == top
