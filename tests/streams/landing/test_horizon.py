"""The horizon on disk answers as the one in memory does, whatever is asked and whoever goes on with its folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.engine import MatchState, Place, match, reduce
from detectors.table import Meet, Table
from detectors.windows import HOUR_US, WINDOW_US
from streams.landing.horizon import Segments
from tests.cases import Case, at, partitions
from tests.harness import Memory, placed

KEYS: Place = ("keys", 0)
COLUMNS: dict[str, pl.DataType] = {
    "hash": pl.UInt64(),
    "key": pl.String(),
    "applied": pl.Boolean(),
    "proof": pl.List(pl.Int64),
    "window": pl.Int64(),
}
EDGES = [0, 1, 2, 3, 2**63 - 1, 2**63, 2**64 - 1]

row = st.tuples(
    st.sampled_from(EDGES),
    st.none() | st.text(max_size=20),
    st.none() | st.booleans(),
    st.none() | st.lists(st.integers(0, 9), max_size=3),
    st.integers(0, 20),
)
places = st.sampled_from([KEYS, ("keys", 1), ("repeats", 0)])
keep = st.tuples(st.just("keep"), places, st.lists(row, max_size=8), st.integers(0, 20))
ask = st.tuples(st.just("ask"), places, st.lists(st.sampled_from(EDGES), max_size=5), st.integers(0, 20))


def frame(rows: list[tuple[object, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def in_order(rows: pl.DataFrame | None) -> pl.DataFrame:
    return frame([]) if rows is None else rows.sort(list(COLUMNS))


@settings(deadline=None, max_examples=200)
@given(st.lists(keep | ask, max_size=25))
def test_the_horizon_on_disk_answers_as_the_one_in_memory(steps: list[tuple[str, Place, list[object], int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        memory, useless = Memory(), dict.fromkeys([KEYS, ("keys", 1), ("repeats", 0)], 0)
        for what, where, values, window in steps:
            segments = Segments(Path(folder))  # each step by another process: the folder is the whole state
            if what == "keep":
                rows = frame(values)  # type: ignore[arg-type]
                memory.keep(where, rows, window)
                segments.keep(where, rows, window)
                useless[where] = max(useless[where], window)
            else:
                hashes = pl.Series(values, dtype=pl.UInt64)
                since = max(window, useless[where])
                told = segments.seen(where, hashes, since)
                assert in_order(told).equals(in_order(memory.seen(where, hashes, since)))
                assert told is None or told.schema == frame([]).schema


def some(first: int, last: int) -> pl.DataFrame:
    return frame([(w, f"key-{w}", True, [w], w) for w in range(first, last)])


def test_what_is_found_comes_back_as_it_was_kept_once_for_every_row_of_its_hash(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    segments.keep(KEYS, frame([(7, "a", None, [1], 0), (5, None, True, None, 1), (7, "b", False, [], 1)]), 0)
    segments.keep(KEYS, frame([(7, "c", True, [2], 2)]), 0)
    told = segments.seen(KEYS, pl.Series([7, 7, 6], dtype=pl.UInt64), 0)
    assert told is not None
    assert told.sort("key").rows() == [(7, "a", None, [1], 0), (7, "b", False, [], 1), (7, "c", True, [2], 2)]


def test_segments_wholly_before_the_horizon_leave_the_disk_and_others_stay(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    segments.keep(KEYS, some(0, 10), 0)
    segments.keep(KEYS, some(10, 20), 0)
    assert len(list(tmp_path.rglob("*.arrow"))) == 2
    segments.keep(KEYS, some(20, 30), 10)
    segments.keep(KEYS, frame([]), 19)
    assert len(list(tmp_path.rglob("*.arrow"))) == 2
    told = segments.seen(KEYS, pl.Series(range(30), dtype=pl.UInt64), 19)
    assert told is not None
    assert sorted(told["window"]) == list(range(19, 30))


def test_what_a_killed_process_left_half_written_is_not_there(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    segments.keep(KEYS, some(0, 5), 0)
    (whole,) = tmp_path.rglob("*.arrow")
    whole.with_name("1_5_8.writing").write_bytes(whole.read_bytes()[:100])
    told = segments.seen(KEYS, pl.Series(range(9), dtype=pl.UInt64), 0)
    assert told is not None
    assert sorted(told["window"]) == list(range(5))
    segments.keep(KEYS, some(5, 9), 0)
    told = segments.seen(KEYS, pl.Series(range(9), dtype=pl.UInt64), 0)
    assert told is not None
    assert sorted(told["window"]) == list(range(9))


def test_a_day_of_batches_is_searched_in_a_few_indexes(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    for w in range(0, 100 * 4, 4):
        segments.keep(KEYS, some(w, w + 4), 0)
    assert len(list(tmp_path.rglob("*.arrow"))) == 100
    assert 0 < len(list(tmp_path.rglob("*.npy"))) <= 7
    told = segments.seen(KEYS, pl.Series(range(500), dtype=pl.UInt64), 0)
    assert told is not None
    assert sorted(told["window"]) == list(range(400))


def test_an_index_that_was_merged_by_a_process_killed_since_is_not_read_twice(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    segments.keep(KEYS, some(0, 5), 0)
    (old,) = tmp_path.rglob("*.npy")
    left = old.read_bytes()
    segments.keep(KEYS, some(5, 10), 0)
    assert not old.exists()
    old.write_bytes(left)
    told = segments.seen(KEYS, pl.Series(range(10), dtype=pl.UInt64), 0)
    assert told is not None
    assert sorted(told["window"]) == list(range(10))


def partners(rows: pl.DataFrame) -> pl.DataFrame:
    later = (pl.int_range(pl.len()).over("request_id")).alias("partners")
    return rows.with_columns(later).filter(pl.col("partners") > 0, "now").drop("now")


def test_rows_hours_apart_meet_through_the_disk(tmp_path: Path) -> None:
    """request  a----b--------------a---b     hours 0, 1, 5, 6; a batch closes after each."""
    again = Table(
        name="again",
        key=("request_id",),
        sources=(Meet(stream="requests", on=("request_id",), back_us=6 * HOUR_US, match=partners),),
    )
    rows = [
        {"timestamp": at(3600 * h), "arrival": at(3600 * h), "service_name": "s", "node_id": "n", "request_id": r}
        for h, r in [(0, "a"), (1, "b"), (5, "a"), (6, "b")]
    ]
    log = placed(Case({"requests": partitions("requests", rows, 1)}))["requests"][0]
    found, state = [], MatchState()
    for i in range(len(log)):
        end = int(log["t"][i]) + WINDOW_US
        final, state = match([again], state, [reduce([again], "requests", log[i : i + 1])], end, Segments(tmp_path))
        found += [r for f in final.values() for r in f.select("request_id", "partners").rows()]
    assert found == [("a", 1), ("b", 1)]
