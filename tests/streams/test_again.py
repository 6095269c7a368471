"""Landed tables judged again: the findings that landed, however they are cut, and near misses that agree with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import polars as pl
import pytest

from detectors.detector import Settings
from detectors.windows import HOUR_US, MINUTE_US
from streams import again
from streams.again import Landed, lateness_of, other_than
from streams.catalog import all_detectors
from streams.landing.state import open_readable, spell
from streams.replay import replay
from streams.settings import fingerprint
from tests.cases import Case, cases
from tests.conftest import Once
from tests.streams.report.states import of_case
from tests.streams.tape import lines, storm

LOWER = Settings({"retry_storm.warn_per_min": 20, "timeout_ratio.warn_ratio": 0.01, "clock_skew.warn_ms": 20})


@contextmanager
def landed(state: Path) -> Iterator[Landed]:
    con = open_readable(state)
    try:
        yield Landed(con, all_detectors(), lateness_of(con))
    finally:
        con.close()


def unlike(con: duckdb.DuckDBPyConnection, found: pl.DataFrame) -> int:
    """Findings in which they differ from those that landed."""
    proof = pl.Series([[spell(c) for c in coords] for coords in found["proof"]], dtype=pl.List(pl.String))
    mine, theirs = found.with_columns(proof=proof), con.sql("FROM findings").pl().select(found.columns)
    assert len(theirs)
    key = [*mine.columns]
    return len(mine.join(theirs, on=key, how="anti", nulls_equal=True)) + abs(len(mine) - len(theirs))


@pytest.mark.parametrize("span_us", [10 * MINUTE_US, HOUR_US // 3, 5 * HOUR_US])
def test_the_demos_tables_give_the_findings_that_landed_however_they_are_cut(
    span_us: int, demo_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(again, "SPAN_US", span_us)
    with landed(demo_state) as state:
        assert unlike(state.con, state.found(Settings())) == 0


@pytest.mark.parametrize(("detector", "name", "case"), cases("fires_"), ids=lambda x: x if isinstance(x, str) else "")
def test_every_case_that_fires_is_found_again_and_is_near(detector: str, name: str, case: Case, once: Once) -> None:
    with landed(once(f"{detector}-{name}", lambda folder: of_case(folder, case)) / "state") as state:
        found = state.found(case.settings)
        near = state.near(case.settings)
        if not len(state.con.execute("FROM findings").fetchall()):
            pytest.skip("fires live only")
        assert unlike(state.con, found) == 0
        for row in found.iter_rows(named=True):
            mine = near[row["detector"]].filter(
                pl.col(n) == row[n] for n in ("kind", "subject", "environment", "tenant")
            )
            assert mine["best"][0] >= 1 and mine["warn"][0]["near"] > 1


@pytest.mark.parametrize("span_us", [7 * MINUTE_US, 5 * HOUR_US])
def test_near_misses_do_not_depend_on_how_they_are_cut(
    span_us: int, demo_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with landed(demo_state) as state:
        whole = state.near(LOWER)
        monkeypatch.setattr(again, "SPAN_US", span_us)
        cut = state.near(LOWER)
    assert whole.keys() == cut.keys() and len(whole) == len(state.detectors)
    assert all(whole[n].equals(cut[n]) for n in whole)


def test_what_fired_is_exactly_what_has_a_finding(demo_state: Path) -> None:
    with landed(demo_state) as state:
        near = state.near(Settings())
        rows = state.con.execute("SELECT detector, kind, subject, level FROM findings").fetchall()
    fired = {
        (d, r["kind"], r["subject"], ("", "warn", "page")[r["best"]])
        for d, f in near.items()
        for r in f.iter_rows(named=True)
        if r["best"]
    }
    assert fired == {*rows} and len(fired) >= 8


def test_a_time_asked_for_is_judged_with_all_that_lies_before_it(demo_state: Path) -> None:
    """payment's storm is over at 08:30; its share an hour back still counts for what is compared with its past."""
    with landed(demo_state) as state:
        lo, _ = state.span
        early = state.near(Settings(), until=lo + 15 * MINUTE_US)["retry_storm"]
        late = state.near(Settings(), since=lo + 40 * MINUTE_US)["retry_storm"]
        every = state.near(Settings())["retry_storm"]
    assert {*early["best"], *late["best"]} == {0} and 2 in every["best"]
    assert all(said["window"] >= lo + 40 * MINUTE_US for said in late["warn"])
    assert all(said["window"] < lo + 15 * MINUTE_US for said in early["warn"])
    lower = Settings({"retry_storm.warn_per_min": 1})
    with landed(demo_state) as state:
        near = state.near(lower, since=lo + 40 * MINUTE_US)["retry_storm"].filter(subject="edge->gateway")
    assert near["warn"][0]["certain"], "there is a past to compare with"


def test_other_settings_than_the_findings_were_made_with_are_told(tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_bytes(lines(storm(2_000)))
    replay([str(tmp_path / "requests.jsonl")], tmp_path / "state", LOWER, lateness_us=2 * MINUTE_US)
    with landed(tmp_path / "state") as state:
        assert state.lateness_us == 2 * MINUTE_US
        assert other_than(state.con, LOWER) == ""
        assert "the defaults" in other_than(state.con, Settings())
        assert "retry_storm.warn_per_min = 7" in other_than(state.con, Settings({"retry_storm.warn_per_min": 7}))
    assert fingerprint(LOWER) != fingerprint(Settings())
