"""A live state is judged again as a replayed one is, and a lander goes on with it: nothing twice, nothing lost."""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path

import duckdb
import polars as pl
import pytest

from detectors.detector import Settings
from detectors.windows import AHEAD_US, DAY_US, MINUTE_US, SLICE_US, WINDOW_US
from streams import rejudge
from streams.landing import lake, lander, state, tables
from streams.problems import Exit, Problem
from streams.replay import rebuild, replay
from streams.settings import Limits
from tests.cases import Case
from tests.cases.timeout_ratio import fires_one_in_five
from tests.streams.landing import pieces
from tests.streams.landing.pieces import fed, published, unlike
from tests.streams.live.chain import Chain, until
from tests.streams.live.test_ourselves import Twofold
from tests.streams.tape import asynchealth, contents

pytestmark = pytest.mark.xdist_group("lander")  # they share one recording
READ = (  # of each topic, by one lander after the other: each of the three is behind the others once
    {"events": 0.5, "tables": 0.2, "findings": 0.6},
    {"events": 0.5, "tables": 0.7, "findings": 0.7},
    {"events": 0.9, "tables": 0.95, "findings": 0.75},
    {"events": 1.0, "tables": 1.0, "findings": 1.0},
)
LOWER = Settings({"retry_storm.warn_per_min": 20, "timeout_ratio.warn_ratio": 0.01, "clock_skew.warn_ms": 20})


def boundaries(folder: Path) -> tuple[int, ...]:
    with duckdb.connect(str(folder / state.LANDING), read_only=True) as con:
        (row,) = con.execute("SELECT next_window, judged, rebuilt FROM landed").fetchall()
    return tuple(row)


def overlapping(findings: pl.DataFrame) -> int:
    """Pairs of findings of one subject that overlap."""
    key = ["detector", "kind", "subject_kind", "subject", "environment", "tenant"]
    pairs = findings.join(findings, on=key, suffix="_2").filter(pl.col("finding_id") < pl.col("finding_id_2"))
    return len(pairs.filter((pl.col("onset") < pl.col("last_2")) & (pl.col("onset_2") < pl.col("last"))))


def test_judged_again_at_any_point_it_lands_what_replay_lands(
    chain: Chain, replayed: dict[str, pl.DataFrame], tmp_path: Path
) -> None:
    """With the workers' own thresholds, between one lander and the next."""
    again = []
    for shares in READ:
        fed(tmp_path, chain, shares)
        rebuild(tmp_path, Settings())
        again.append(boundaries(tmp_path))
    windows, judged, rebuilt = zip(*again, strict=True)
    assert 0 < rebuilt[0] <= windows[0] < judged[0] and rebuilt[1] < min(windows[1], judged[1])
    assert rebuilt[2] == judged[2] < windows[2] and rebuilt[3] == judged[3] == windows[3]
    assert unlike(published(tmp_path), replayed) == []


def test_other_thresholds_find_what_they_find_in_a_replayed_state(
    live: Path, tape: Path, replayed: dict[str, pl.DataFrame], tmp_path: Path
) -> None:
    rebuild(live, LOWER, command="asynchealth rebuild")
    replay([str(tape)], tmp_path / "files", LOWER)
    again, files = published(live), contents(tmp_path / "files")
    assert len(again["findings"]) > len(replayed["findings"])
    assert again["settings"]["name"].to_list() == sorted(LOWER.values)
    assert unlike(again, files) == []
    with state.open_readable(live) as con:
        assert [c for (c,) in con.execute("SELECT command FROM runs ORDER BY started").fetchall()] == [
            "",
            "asynchealth rebuild",
        ]


def test_a_lander_goes_on_with_what_was_judged_by_other_thresholds(
    chain: Chain, replayed: dict[str, pl.DataFrame], tmp_path: Path
) -> None:
    """The workers go on with theirs: what they say of an episode replaces what was judged; nothing is twice."""
    for shares in READ:
        fed(tmp_path, chain, shares)
        if shares is READ[-1]:
            break
        rebuild(tmp_path, LOWER)
        with state.open_readable(tmp_path) as con:
            assert overlapping(con.sql("FROM findings").pl()) == 0
    live = published(tmp_path)
    of_incidents = {"incident_changes", *state.INCIDENT_VIEWS}
    assert set(unlike(live, replayed)) <= {"findings", "finding_changes", "settings", "judged_with", *of_incidents}
    findings = live["findings"]
    assert overlapping(findings) == 0 and findings["finding_id"].is_unique().all()
    assert set(live["finding_changes"]["finding_id"]) <= set(findings["finding_id"])
    members = live["incident_findings"]
    known = members.filter(pl.col("finding_id").is_in(findings["finding_id"].implode()))
    assert set(known["finding_id"]) == set(findings["finding_id"])
    assert set(known["incident_id"]) == set(members["incident_id"])
    _, _, rebuilt = boundaries(tmp_path)
    after = pl.col("onset").cast(pl.Int64) >= rebuilt * WINDOW_US
    assert set(replayed["findings"].filter(after)["finding_id"]) <= set(findings["finding_id"])


def test_what_was_set_aside_is_so_still_when_the_rest_is_judged_again(case: Case, tmp_path: Path) -> None:
    """As is what was unknown because of it: the rows alone would not tell."""
    number = case.streams["requests"][0]["arrival"].cast(pl.Int64)[len(case.streams["requests"][0]) // 2] // SLICE_US
    parked = {("requests", 0): range(number, number + 10)}
    chain = Chain(case, "", random.Random(3), queues=pieces.QUEUES, first=0, steps=(2_000,), parked=parked)
    chain.run(0, until(case))
    fed(tmp_path, chain, dict.fromkeys(("events", "tables", "findings"), 1.0))
    before = contents(tmp_path)
    ours = before["findings"].filter(pl.col("detector") == "pipeline", pl.col("kind") == "parked")
    assert len(ours) and before["lost"]["what"].to_list() == ["requests"]
    rebuild(tmp_path, Settings())
    assert unlike(contents(tmp_path), before) == ["landed"]


def test_what_judge_read_in_two_ways_is_so_still_when_the_rest_is_judged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row and no table that landed tells of it."""
    monkeypatch.setattr(pieces, "QUEUES", 2)  # of fewer, each has rows to leave out
    case = fires_one_in_five()
    chain = Twofold(case, "timeout_ratio+pipeline", random.Random(1), queues=2, first=0, steps=(20, 100))
    chain.of_tables = True
    chain.run(0, until(case))
    fed(tmp_path, chain, dict.fromkeys(("events", "tables", "findings"), 1.0))
    before = contents(tmp_path)
    rebuild(tmp_path, Settings())
    after = contents(tmp_path)
    for table in ("findings", "finding_changes"):
        said, still = (found[table].filter(kind="copies") for found in (before, after))
        assert len(said) and still.equals(said)
    told = f"Cannot say: which is right of {chain.spoilt} messages that workers said in two ways (the first counts)"
    assert told in asynchealth("report", "--state", tmp_path).stdout.decode()


def test_a_state_that_a_lander_holds_is_not_judged_again(live: Path) -> None:
    before = contents(live)
    with state.locked(live), pytest.raises(Problem, match=r"locked by .*\nNext: kill -INT \d+, then") as refused:
        rebuild(live, LOWER)
    assert refused.value.code == Exit.STATE
    (live / state.ONE_RUN).touch()
    with (
        state.locked(live),
        pytest.raises(Problem, match=r"\nNext: Ctrl-C in the terminal .* up, then asynchealth reb"),
    ):
        rebuild(live, LOWER)
    with pytest.raises(Problem, match="--lateness: rows that are fed live are late by what the workers say"):
        rebuild(live, LOWER, lateness_us=1)
    assert unlike(contents(live), before) == []


@pytest.mark.parametrize("step", ["analysis", "switch", "publish"])
def test_one_that_is_killed_leaves_the_state_before_or_the_one_after(
    step: str, live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(live)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        match step:
            case "analysis":
                broken.setattr(rejudge.Again, "_keep_findings", killed)
            case "switch":
                broken.setattr("streams.rejudge.os.replace", killed)
            case "publish":
                broken.setattr(rejudge, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            rebuild(live, LOWER)
    assert unlike(contents(live), before) == []  # readers still have the old one
    assert not list(live.glob("*.building*"))
    rebuild(live, Settings())
    after = contents(live)
    settings = {"analysis": 0, "switch": 0, "publish": len(LOWER.values)}[step]
    assert len(after["settings"]) == settings
    assert set(unlike(after, before)) == {"landed", *(["settings"] if settings else [])}


SHORT_US = MINUTE_US  # instead of an hour, so that a recording of minutes has several


def test_what_was_found_in_rows_that_are_gone_stays_and_the_rest_is_judged_again(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (lake, lander, rejudge, tables):
        monkeypatch.setattr(module, "HOUR_US", SHORT_US)
    monkeypatch.setattr(tables, "HOUR", f"epoch_us(window_start) // {SHORT_US}")
    monkeypatch.setattr(tables, "YOUNG_US", SHORT_US)
    fed(tmp_path, chain, dict.fromkeys(("events", "tables", "findings"), 1.0))
    before = contents(tmp_path)
    mine = pieces.lander(tmp_path, chain)
    middle = before["findings"]["onset"].sort()[len(before["findings"]) // 2].timestamp() * 1e6
    mine.shrink(Limits(keep_days=(mine.closed_us - middle) / DAY_US))
    assert 0 < len(mine.con.sql("FROM requests")) < len(before["requests"])
    ((gone,),) = mine.con.execute("SELECT before FROM removed").fetchall()
    mine.con.close()
    rebuild(tmp_path, Settings())
    after = contents(tmp_path)
    old = pl.col("onset") < gone + timedelta(microseconds=AHEAD_US)
    kept = before["findings"].filter(old)
    assert 3 <= len(kept) < len(before["findings"])
    assert after["findings"].filter(old).equals(kept)
    assert overlapping(after["findings"]) == 0
    whole = pl.col("window_start") >= gone
    for table in ("calls", "durations", "beats"):
        assert after[table].equals(before[table].filter(whole)), table
    assert after["accounting"].equals(before["accounting"])
