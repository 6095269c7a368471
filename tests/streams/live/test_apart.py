"""Stages with other detectors than those before them, or with broken ones; the rest must leave, and a word of them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from detectors.detector import Detector, Threshold
from detectors.finding import Episodes
from detectors.table import Meet, Table
from streams.landing import state
from streams.landing.lander import Lander, Place
from streams.live.judge import Judge, Left
from tests.cases.timeout_ratio import fires_one_in_five
from tests.harness import everything, one_pass
from tests.streams.live.chain import Chain, until


def said(only: str) -> Chain:
    case = fires_one_in_five()
    chain = Chain(case, only, random.Random(1), queues=1, first=0)
    chain.run(0, until(case))
    assert chain.windows and chain.found
    return chain


def landed(folder: Path, chain: Chain, names: tuple[str, ...]) -> Lander:
    con = duckdb.connect(str(folder / state.LANDING))
    mine = Lander(folder, con, [d for d in everything()[1] if d.name in names], chain.producers, 1)
    logs = {Place("events", 0): chain.events, Place("tables", 0): chain.windows, Place("findings", 0): chain.found}
    for place, log in logs.items():
        for offset, message in enumerate(log):
            mine.feed(place, offset, *message)
    mine.land()
    mine.tidy()
    return mine


def test_a_lander_that_does_not_know_what_the_workers_run_says_so_and_lands_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = landed(tmp_path, said("timeout_ratio"), ("heartbeat_loss",))
    told = capsys.readouterr().err
    assert "detector timeout_ratio: run by the workers, not by this lander\nNext: the same asynchealth.toml" in told
    assert "table calls: measured by the workers, not landed" in told
    assert "detector heartbeat_loss: known to this lander, not run by the workers" in told
    assert mine.con.sql("SELECT detector FROM findings").fetchall() == [("timeout_ratio",)]
    assert mine.con.sql("SELECT count(*) > 1000 FROM requests").fetchall() == [(True,)]
    assert mine.con.sql("FROM detectors").fetchall() == [], "a detector that nobody runs is not said to have run"
    mine.con.close()


def test_a_lander_with_the_workers_detectors_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = landed(tmp_path, said("timeout_ratio"), ("timeout_ratio",))
    assert mine.con.sql("SELECT name FROM detectors").fetchall() == [("timeout_ratio",)]
    assert mine.con.sql("SELECT count(*) > 10 FROM calls").fetchall() == [(True,)]
    assert capsys.readouterr().err == ""
    mine.con.close()


def test_a_worker_passes_over_a_table_of_a_detector_that_it_has_not_and_says_so_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chain = said("timeout_ratio")
    detectors = [d for d in everything()[1] if d.name == "heartbeat_loss"]
    judge = Judge(["0"], detectors, chain.case.settings)
    for offset, message in enumerate(chain.windows):
        judge.feed(offset, *message)
        if judge.say()[1]:
            judge.done()
    assert judge.next > 0
    assert capsys.readouterr().err.count("table calls: measured by a worker, read by no detector of this one") == 1


def test_a_detector_that_was_taken_away_has_no_say_in_what_comes_after() -> None:
    detectors = [d for d in everything()[1] if d.name == "timeout_ratio"]
    kept = {"taken_away": Episodes(), "timeout_ratio": Episodes()}
    judge = Judge(["0"], detectors, fires_one_in_five().settings, left=Left(kept))
    assert set(judge.state.episodes) == {"timeout_ratio"}


# ---- broken ones ----------------------------------------------------------------------------------------------------


def boom(*_: Any) -> Any:
    raise ZeroDivisionError("a bug of ours")


(TIMEOUTS,) = everything("timeout_ratio")[1]
MET = Table(
    name="met",
    key=("service_name",),
    sources=(Meet(stream="requests", on=("service_name",), carry=("status",), back_us=60_000_000, match=boom),),
)
ANY = (Threshold("any", "warn", 0, "rows", 0, 1e9),)
BROKEN = {
    "detector broken": replace(TIMEOUTS, name="broken", assess=boom),
    "table met": Detector(name="of_met", reads=MET, assess=boom, subject_kind="service", thresholds=ANY, unit="rows"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_raises_while_it_merges_or_judges_is_unknown_and_said_once_and_the_rest_goes_on(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case = fires_one_in_five()
    whole = one_pass(case, only="timeout_ratio")
    chain = Chain(case, "", random.Random(1), queues=1, steps=(100, 500), own=[BROKEN[what], TIMEOUTS])
    found = chain.run(0, until(case))
    assert whole.fired("timeout_ratio") == case.expect
    assert found.findings.equals(whole.findings)
    assert found.tables["calls"].equals(whole.tables["calls"])
    reason = f"{what}: raised ZeroDivisionError: a bug of ours; what it would have said is unknown, the rest goes on"
    told = capsys.readouterr().err
    assert told.count(reason) == 1 and "asynchealth detectors check" in told


def test_what_was_open_when_a_detector_broke_is_neither_resolved_nor_raised(capsys: pytest.CaptureFixture[str]) -> None:
    """It broke in the middle of what it had found: after an hour nobody knows any more."""
    case = fires_one_in_five()
    chain = Chain(case, "timeout_ratio", random.Random(1), queues=1, steps=(100,))
    while not chain.judge.state.episodes.get("timeout_ratio", Episodes()).open:
        chain.reduce(("requests", 0), 100)
        chain.reduce(("requests", 1), 100)
        chain.match(0)
        chain.judged()
    chain.judge.detectors = [replace(TIMEOUTS, assess=boom)]
    found = chain.run(0, until(case)).findings
    assert found.select("detector", "level", "resolved").rows() == [("timeout_ratio", found["level"][0], None)]
    (episode,) = chain.judge.state.episodes["timeout_ratio"].open.values()
    assert episode.unknown_since is not None
    assert "detector timeout_ratio: raised" in capsys.readouterr().err
    assert found["last"].cast(pl.Int64)[0] <= episode.unknown_since
