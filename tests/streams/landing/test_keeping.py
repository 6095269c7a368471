"""A lander that runs for months: parts become few, old hours leave, and a kill at any step loses nothing."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import polars as pl
import pytest

from detectors.detector import Settings
from detectors.events import LANDED
from detectors.windows import HOUR_US
from streams.landing import lake, state
from streams.landing.lake import Part
from streams.landing.lander import Lander, Place
from streams.landing.publish import publish
from streams.live.judge import Judge
from streams.live.land import disk, shown
from streams.problems import Exit, Problem
from streams.replay import rebuild
from streams.report.explain import explain
from streams.report.findings import listing
from streams.report.found import Filter, all_findings, judged_with, sight_of, span_of
from streams.report.morning import gather
from streams.report.morning.screen import rendered
from streams.settings import Limits, limits
from streams.sources.files import READABLE
from tests.harness import everything
from tests.streams.landing.disk import fill
from tests.streams.landing.pieces import QUEUES, fed, lander, logs
from tests.streams.live.chain import Chain
from tests.streams.tape import T0, contents, differing

pytestmark = pytest.mark.xdist_group("lander")  # they share one recording
HOUR = T0 // 3600
OLD_S = lake.LEFTOVER_S + 60


# ---- a lake of hours ------------------------------------------------------------------------------------------------


def rows(hour: int, first: int, number: int) -> pl.DataFrame:
    """Signals of one hour."""
    at = pl.Series("arrival", [hour * HOUR_US + i for i in range(first, first + number)], dtype=pl.Int64)
    plain = pl.DataFrame({"arrival": at.cast(pl.Datetime("us", "UTC")), "partition": 0, "offset": at, "fate": "used"})
    empty = pl.DataFrame(schema=LANDED["signals"])
    return pl.concat([empty, plain.with_columns(pl.col("partition", "offset").cast(pl.Int64))], how="diagonal")


@pytest.fixture
def con(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(str(tmp_path / state.LANDING)) as con:
        state.prepare(con)
        yield con


def begun(folder: Path, con: duckdb.DuckDBPyConnection, closed: int) -> Lander:
    """One that has heard of every hour before `closed`."""
    made = Lander(folder, con, [], ["signals/0"], 1)
    place = next(p for p in made.readers if p.topic == "events")
    made.readers[place].restore("signals/0", 0, closed * 1800)
    return made


def give(mine: Lander, hour: int, parts: int, each: int = 10) -> None:
    made = [lake.write_part(mine.folder, "signals", hour, rows(hour, i * each, each)) for i in range(parts)]
    with mine._listing([], made):
        pass


def offsets(mine: Lander) -> list[int]:
    return [n for (n,) in mine.con.execute('SELECT "offset" FROM signals ORDER BY ALL').fetchall()]


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in (folder / "lake").rglob("*.parquet")}


def age(folder: Path) -> None:
    for path in (folder / "lake").rglob("*.parquet"):
        os.utime(path, (time.time() - OLD_S,) * 2)


# ---- few parts ------------------------------------------------------------------------------------------------------


def test_parts_of_a_closed_hour_become_one_and_of_an_open_hour_when_they_are_many(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    mine = begun(tmp_path, con, closed=HOUR + 2)
    for hour, parts in ((HOUR, 5), (HOUR + 1, 2), (HOUR + 2, lake.SMALL_PARTS - 1)):
        give(mine, hour, parts)
    before = offsets(mine)
    for _ in range(4):
        mine.tidy()
    by_hour = [sum(p.first_arrival // HOUR_US == HOUR + i for p in mine.parts) for i in range(3)]
    assert by_hour == [1, 1, lake.SMALL_PARTS - 1]
    give(mine, HOUR + 2, 1, each=3)
    mine.tidy()
    assert len(mine.parts) == 3
    again = [(HOUR + 2) * HOUR_US + i for i in range(3)]
    assert offsets(mine) == sorted([*before, *again]) and len(before) == 10 * (7 + lake.SMALL_PARTS - 1)


def test_a_merged_part_has_no_more_rows_than_a_reader_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake, "MERGED_ROWS", 100)
    dice, hours = random.Random(1), 0
    for _ in range(200):
        parts = [Part("signals", str(i), dice.randrange(1, 130), i, i) for i in range(dice.randrange(12))]
        rows, merges = sum(p.rows for p in parts), 0
        while chosen := lake.to_join(parts, HOUR_US):
            merges += 1
            assert len(chosen) > 1 and sum(p.rows for p in chosen) <= 100
            whole = Part("signals", f"m{merges}", sum(p.rows for p in chosen), chosen[0].first_arrival, 0)
            parts = [p for p in parts if p not in chosen] + [whole]
        assert sum(p.rows for p in parts) == rows
        hours += merges > 1
    assert hours > 20


class Killed(BaseException):
    """Instead of a signal."""


@contextmanager
def killed_at(step: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A lander dies there."""

    def die(*_: object) -> None:
        raise Killed

    def half(*_: object) -> Iterator[object]:
        yield from [pl.DataFrame({"a": [1]}).to_arrow()]
        raise Killed

    @contextmanager
    def before_commit(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        con.execute("BEGIN")
        yield
        con.execute("ROLLBACK")
        raise Killed

    @contextmanager
    def after_commit(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
        con.execute("BEGIN")
        yield
        con.execute("COMMIT")
        raise Killed

    with patch.context() as broken:
        match step:
            case "while the new part is written":
                broken.setattr(lake, "_pieces", half)
            case "before it is listed":
                broken.setattr(lake, "replaced", die)
            case "before the commit":
                broken.setattr("streams.landing.lander.transaction", before_commit)
            case "after the commit":
                broken.setattr("streams.landing.lander.transaction", after_commit)
        yield


@pytest.mark.parametrize(
    "step", ["while the new part is written", "before it is listed", "before the commit", "after the commit"]
)
def test_killed_at_any_step_the_next_one_finds_every_row_once_and_cleans_up(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with duckdb.connect(str(tmp_path / state.LANDING)) as con:
        state.prepare(con)
        mine = begun(tmp_path, con, closed=HOUR + 1)
        give(mine, HOUR, 5)
        mine.con.execute("CHECKPOINT")
        publish(con, tmp_path / state.LANDING)
        before, old = offsets(mine), {p.path for p in mine.parts}
        with killed_at(step, monkeypatch), pytest.raises(Killed):
            mine.tidy()
    half = tmp_path / "lake" / "signals" / "half.parquet"
    half.write_bytes(b"PAR1 and no more")  # what a part is that a signal interrupts
    with duckdb.connect(str(tmp_path / state.LANDING)) as con:
        state.prepare(con)
        mine = begun(tmp_path, con, closed=HOUR + 1)
        lake.sweep(tmp_path, {p.path for p in mine.parts} | shown(tmp_path))
        assert files(tmp_path) >= old | {str(half.relative_to(tmp_path))}, "a reader may still have them open"
        mine.tidy()
        assert offsets(mine) == before and len(mine.parts) == 1
        age(tmp_path)
        lake.sweep(tmp_path, {p.path for p in mine.parts} | shown(tmp_path))
        assert files(tmp_path) == old | {p.path for p in mine.parts}, "what the readable file lists stays"
        with state.open_readable(tmp_path) as readers:
            assert readers.execute("SELECT count(*) FROM signals").fetchall() == [(len(before),)]
        publish(con, tmp_path / state.LANDING)
        lake.sweep(tmp_path, {p.path for p in mine.parts} | shown(tmp_path))
        assert files(tmp_path) == {p.path for p in mine.parts}


def test_a_part_that_was_replaced_lives_for_ten_minutes_from_then_on(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    mine = begun(tmp_path, con, closed=HOUR + 1)
    give(mine, HOUR, 3)
    age(tmp_path)  # written long before
    old = files(tmp_path)
    mine.tidy()
    lake.sweep(tmp_path, [p.path for p in mine.parts])
    assert len(files(tmp_path)) == 4 and files(tmp_path) > old


# ---- old hours leave ------------------------------------------------------------------------------------------------


def test_hours_beyond_keep_days_leave_and_the_state_says_so(tmp_path: Path, con: duckdb.DuckDBPyConnection) -> None:
    mine = begun(tmp_path, con, closed=HOUR + 72)
    minute = "INSERT INTO accounting VALUES ('signals', 'signals', 0, make_timestamptz(?), 10, 10, 0, 0, 0, 0, 0, 0, 0)"
    made = [lake.write_part(tmp_path, "signals", hour, rows(hour, 0, 10)) for hour in range(HOUR, HOUR + 72)]
    with mine._listing([], made):
        con.executemany(minute, [[hour * HOUR_US] for hour in range(HOUR, HOUR + 72)])
    assert mine.shrink(Limits(keep_days=4)) == [] and len(mine.parts) == 72
    assert mine.shrink(Limits(keep_days=1)) == []  # it is as one was told
    assert {p.first_arrival // HOUR_US for p in mine.parts} == set(range(HOUR + 48, HOUR + 72))
    assert con.execute("FROM removed").fetchall() == [
        ("keep_days", datetime.fromtimestamp((HOUR + 48) * 3600, UTC), 480)
    ]
    lines = con.execute("SELECT count(*), sum(read)::BIGINT, min(minute) FROM accounting").fetchall()
    assert lines == [(2 + 8 + 24, 720, datetime(2026, 1, 26, tzinfo=UTC))]  # whole days are one line each
    assert len(offsets(mine)) == 240
    assert mine.shrink(Limits(keep_days=1)) == [] and len(mine.parts) == 24


def test_what_gets_rows_stays_however_old_and_a_clock_that_jumped_ahead_alone_removes_nothing(
    tmp_path: Path, con: duckdb.DuckDBPyConnection
) -> None:
    """The clock is what all partitions have passed."""
    mine = begun(tmp_path, con, closed=HOUR + 1)
    give(mine, HOUR, 1)
    give(mine, HOUR + 50_000, 1)
    assert mine.shrink(Limits(keep_days=1)) == [] and len(mine.parts) == 2
    assert len(mine.shrink(Limits(max_gb=1e-9))) == 1 and len(mine.parts) == 1
    assert mine.parts[0].first_arrival // HOUR_US == HOUR + 50_000


def test_the_oldest_hours_make_room_and_it_is_said_in_one_line(tmp_path: Path, con: duckdb.DuckDBPyConnection) -> None:
    mine = begun(tmp_path, con, closed=HOUR + 5)
    for hour in range(HOUR, HOUR + 5):
        give(mine, hour, 2)
    size = sum(lake.sizes(tmp_path, mine.parts).values())
    assert mine.shrink(Limits(max_gb=1.01 * size / 1e9)) == []
    (line,) = mine.shrink(Limits(max_gb=0.61 * size / 1e9))
    assert line.startswith("rows before 2026-01-26 10:00 UTC were removed, by max_gb = ")
    assert line.endswith(": 40 rows")
    assert sum(lake.sizes(tmp_path, mine.parts).values()) <= 0.61 * size
    assert {p.first_arrival // HOUR_US for p in mine.parts} == {HOUR + 2, HOUR + 3, HOUR + 4}
    assert mine.shrink(Limits(max_gb=0.61 * size / 1e9)) == []


def screens(folder: Path) -> dict[str, str]:
    """What the commands print, without their options."""
    with state.open_readable(folder) as con:
        every, span, sight = all_findings(con), span_of(con, "asynchealth replay PATH…"), sight_of(con)
        used, wanted = judged_with(con, every), Filter()
        shown = {"report": rendered(gather(con, every, span, sight, wanted), str)}
        shown["findings"] = listing(every, span, sight, wanted, "", "", used, str)
        shown |= {f.finding_id: explain(con, f, every, span, str, whole=True) for f in every}
        return {name: "\n".join(lines) for name, lines in shown.items()}


def test_screens_say_what_was_set_and_which_rows_are_gone_and_findings_stay(
    chain: Chain, live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuild(live, Settings({"retry_storm.warn_per_min": 50}))
    before = screens(live)
    assert "Judged with retry_storm.warn_per_min = 50" in before["report"]
    assert before["findings"].count("Judged with retry_storm.warn_per_min = 50") == 1
    told = [n for n, text in before.items() if "Judged with" in text]
    assert [n for n in told if n.startswith("rs-")] and len(told) < len(before)
    mine = lander(live, chain)
    monkeypatch.setattr(Lander, "closed_us", property(lambda _: 2 * T0 * 1_000_000))
    mine.shrink(Limits(keep_days=1))
    assert mine.parts == []
    publish(mine.con, live / state.LANDING)
    mine.con.close()
    after = screens(live)
    assert after.keys() == before.keys()
    assert "UTC were removed by keep_days; what was found in them stays." in after["report"]
    assert all("UTC were removed by keep_days: below is what is left." in after[n] for n in after if "-" in n)
    with pytest.raises(Problem, match="holds no rows that were judged"):
        rebuild(live, Settings())


def test_the_live_file_says_what_the_workers_judge_with(chain: Chain, tmp_path: Path) -> None:
    """Every process of the workers says it; of each fingerprint it stands there once."""
    mine, offset = lander(tmp_path, chain), 0
    for least in (50, 60):
        settings = Settings({"retry_storm.warn_per_min": least}, {"payment": {"timeout_budget.warn_pct": 70}})
        judge = Judge([str(q) for q in range(QUEUES)], everything()[1], settings, ends_us=T0)
        for at, message in enumerate(chain.windows[: len(chain.windows) * least // 60]):
            judge.feed(at, *message)
        for out in judge.say()[1]:
            mine.feed(Place("findings", 0), offset, out.key, out.value)
            offset += 1
        mine.land()
    mine.con.close()
    mine = lander(tmp_path, chain)
    assert mine.ends_us == T0
    found = mine.con.execute("SELECT name, value FROM settings ORDER BY ALL").fetchall()
    per_service = ("services.payment.timeout_budget.warn_pct", "70")
    assert found == [("retry_storm.warn_per_min", "50"), ("retry_storm.warn_per_min", "60"), per_service, per_service]
    assert len(mine.con.execute("SELECT DISTINCT config FROM settings").fetchall()) == 2
    mine.con.close()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("keep_day = 3", "lake.keep_day: no such setting; there are keep_days, max_gb"),
        ("keep_days = 0", "lake.keep_days: 0 is not a number above 0, of at most 3660"),
        ('max_gb = "2"', "lake.max_gb: '2' is not a number above 0"),
        ("max_gb = true", "lake.max_gb: True is not a number above 0"),
    ],
)
def test_a_slip_in_the_limits_is_named(written: str, said: str, tmp_path: Path) -> None:
    config = tmp_path / "asynchealth.toml"
    assert limits(config) == Limits(keep_days=14, max_gb=None)
    config.write_text("[lake]\nkeep_days = 2.5\nmax_gb = 10\n")
    assert limits(config) == Limits(keep_days=2.5, max_gb=10)
    config.write_text(f"[lake]\n{written}\n")
    with pytest.raises(Problem) as refused:
        limits(config)
    assert str(refused.value).startswith(f"{config}: {said}")


# ---- tables and rejects ---------------------------------------------------------------------------------------------


def test_tables_that_went_to_the_lake_are_read_as_before(
    chain: Chain, live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By our own connection, and by DuckDB alone."""
    before = contents(live)
    monkeypatch.setattr("streams.landing.tables.YOUNG_US", -HOUR_US)  # all of it is old
    mine = lander(live, chain)
    mine.tidy()
    assert {p.stream for p in mine.parts} >= {"calls", "keys", "clocks"}
    assert [n for n in state.recent(mine.con) if mine.con.execute(f"FROM recent.{n}").fetchall()] == []
    publish(mine.con, live / state.LANDING)
    mine.con.close()
    assert differing(contents(live), before) == []
    with duckdb.connect(str(live / READABLE), read_only=True) as plain:
        for table in ("calls", "keys", "rejects"):
            assert len(plain.sql(f"FROM {table}")) == len(before[table])


# ---- a full disk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("small_disk", [64 << 20], indirect=True)
def test_a_full_disk_ends_the_lander_with_what_to_do_and_nothing_is_lost(chain: Chain, small_disk: Path) -> None:
    folder = small_disk / "state"
    fed(folder, chain, dict.fromkeys(("events", "tables", "findings"), 0.5))
    before = contents(folder)
    filler = fill(small_disk, 32 << 10, 64 << 20)
    mine = lander(folder, chain)
    for place, log in logs(chain).items():
        for offset in range(mine.positions[place], len(log)):
            mine.feed(place, offset, *log[offset])
    with pytest.raises(Problem) as full, disk(folder, "asynchealth land"):
        mine.land()
        publish(mine.con, folder / state.LANDING)
    mine.con.close()
    assert full.value.code == Exit.STATE
    assert str(full.value).startswith(f"{folder}: no space left on the disk (0.")
    assert f"\nNext: df -h {folder}; make room, or set [lake] max_gb" in str(full.value)
    assert differing(contents(folder), before) == []
    filler.unlink()
    fed(folder, chain, dict.fromkeys(("events", "tables", "findings"), 1.0))
    assert len(contents(folder)["requests"]) == sum(len(p) for p in chain.case.streams["requests"])
