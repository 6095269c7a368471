"""One subject through a hole, window by window.

window    0   1   2   3   4   5   6   …
value    hot     [  h o l e  ]    what was said last in the hole holds from here on
"""

from __future__ import annotations

import polars as pl
import pytest

from detectors.detector import complete, pack
from detectors.finding import LOST_US, QUIET_US, Change, Episodes, fold
from detectors.windows import HOUR_US, WINDOW_US

W = WINDOW_US
END = 2 * HOUR_US


def assessed(*said: tuple[int, int]) -> pl.DataFrame:
    """Windows (their index) with the level that holds from there on."""
    rows = pl.DataFrame(said, schema=["window", "level"], orient="row", schema_overrides={"window": pl.Int64})
    value = pl.col("level").cast(pl.Float64)
    return pack(
        complete(
            rows.with_columns(pl.col("window") * W, subject=pl.lit("a"), value=value, threshold=pl.lit(0.5), opens=True)
        )
    )


def run(said: list[tuple[int, int]], holes: list[tuple[int, int]], cut: int = 0, fires: bool = False) -> list[Change]:
    """All at once, or in two steps."""
    spans = [(a * W, b * W) for a, b in holes]
    state, changes = Episodes(), []
    for lo, to in ((0, cut * W), (cut * W, END)) if cut else ((0, END),):
        some = assessed(*said).filter(pl.col("window").is_between(lo, to - 1))
        state, told = fold(state, some, lo, to, spans, fires)
        changes += told
    return changes


def ends(changes: list[Change]) -> list[tuple[int, bool]]:
    return [(c.episode.resolved // W, c.episode.lost) for c in changes if c.episode.resolved is not None]


QUIET = QUIET_US // W


@pytest.mark.parametrize("cut", [0, 3, 5, 8, 10, 11])
def test_a_hole_neither_ends_nor_begins_anything(cut: int) -> None:
    assert ends(run([(1, 2), (4, 0)], [], cut)) == [(4 + QUIET, False)]
    assert ends(run([(1, 2), (4, 0)], [(3, 10)], cut)) == [(10 + QUIET, False)], "quiet counts from its end on"
    assert ends(run([(1, 2), (4, 0), (6, 2)], [(3, 10)], cut)) == [], "what was said last in it holds"
    assert ends(run([(1, 2), (4, 0), (10, 2)], [(3, 10)], cut)) == [], "news at its end are stronger"
    assert ends(run([(1, 2), (2, 0)], [(3, 10)], cut)) == [(10 + QUIET, False)], "it was quiet before"
    assert ends(run([(1, 2)], [(3, 10)], cut)) == [], "it was hot before, and nothing else was said"
    assert run([(4, 2), (6, 0)], [(3, 10)], cut) == []
    assert run([(4, 2), (10, 0)], [(3, 10)], cut) == []
    assert [c.window // W for c in run([(4, 2)], [(3, 10)], cut)] == [10]


@pytest.mark.parametrize("cut", [0, 3, 5, 10])
def test_after_an_hour_of_it_an_episode_is_lost(cut: int) -> None:
    (begun, ended) = run([(1, 2), (4, 0)], [(3, 3 + LOST_US // W + 5)], cut)
    assert (begun.window // W, ends([ended])) == (1, [(3 + LOST_US // W, True)])


@pytest.mark.parametrize("cut", [0, 3, 5, 10])
def test_where_a_loss_only_takes_away_it_fires_over_a_hole_but_does_not_end_there(cut: int) -> None:
    (begun, ended) = run([(4, 1), (5, 0)], [(3, 10)], cut, fires=True)
    assert (begun.window // W, ends([ended])) == (4, [(10 + QUIET, False)])
