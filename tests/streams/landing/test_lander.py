"""What stages said, in any pieces, said twice and killed at any point, is landed as one replay of the same records."""

from __future__ import annotations

import random
from pathlib import Path

import duckdb
import polars as pl
import pytest

from detectors.detector import Settings
from detectors.events import STREAMS
from detectors.table import Table
from streams.landing import state
from streams.landing.lander import Place
from streams.landing.publish import publish
from streams.live.numbered import Reader, head_of
from streams.problems import Problem, disk_full
from streams.replay import replay
from tests.streams.landing.disk import fill
from tests.streams.landing.pieces import landed, lander, logs, published, unlike
from tests.streams.live.chain import Chain

pytestmark = pytest.mark.xdist_group("lander")  # they share one recording


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_any_point_it_lands_what_replay_lands(
    seed: int, chain: Chain, replayed: dict[str, pl.DataFrame], tmp_path: Path
) -> None:
    deaths = list(landed(tmp_path, chain, random.Random(seed), kills=0.1))
    assert set(deaths) == {"before", "after"}
    live = published(tmp_path)
    assert live["findings"]["detector"].n_unique() >= 8 and len(live["requests"]) > 1_000
    assert unlike(live, replayed) == []


def test_a_state_that_comes_before_a_change_that_it_follows_waits_for_it(
    chain: Chain, replayed: dict[str, pl.DataFrame], tmp_path: Path
) -> None:
    states = [m for m in chain.found if head_of(m[0]).kind == "state"]
    changes = [m for m in chain.found if head_of(m[0]).kind == "rows"]
    assert len(states) > 3 and len(changes) > 3
    mine, said = lander(tmp_path, chain), logs(chain)
    others = [m for m in chain.found if m not in states]
    said[Place("findings", 0)] = [*states, *others]
    for place, log in said.items():
        for offset, message in enumerate(log):
            mine.feed(place, offset, *message)
            if place.topic == "findings" and offset in (1, len(states) - 1, len(states) + 1):
                mine.land()
                mine.con.close()
                mine = lander(tmp_path, chain)  # killed: what waited is read again
                for again in range(mine.positions[place], offset + 1):
                    mine.feed(place, again, *log[again])
    mine.land()
    mine.tidy()
    publish(mine.con, tmp_path / state.LANDING)
    mine.con.close()
    assert unlike(published(tmp_path), replayed) == []


def test_it_knows_what_came_again_and_that_it_was_the_same(chain: Chain, tmp_path: Path) -> None:
    assert list(landed(tmp_path, chain, random.Random(4), kills=0)) == []
    ((copies, unequal),) = published_counts(tmp_path)
    assert copies > 0 and unequal == 0


def published_counts(folder: Path) -> list[tuple[int, int]]:
    con = state.open_readable(folder)
    found = con.execute("SELECT copies, unequal FROM landed").fetchall()
    con.close()
    return found


@pytest.mark.parametrize("mutant", ["copies are landed again", "rows of one key are not merged"])
def test_a_broken_lander_is_noticed(
    mutant: str, chain: Chain, replayed: dict[str, pl.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mutant == "copies are landed again":
        monkeypatch.setattr(Reader, "restore", lambda *_: None)
    else:
        monkeypatch.setattr(Table, "merge", lambda self, rows: rows)
    deaths = list(landed(tmp_path, chain, random.Random(1), kills=0.1))
    assert deaths
    assert unlike(published(tmp_path), replayed) != []


def test_a_state_that_is_fed_live_is_not_replayed_into(chain: Chain, tmp_path: Path) -> None:
    mine = lander(tmp_path, chain)
    mine.tidy()
    publish(mine.con, tmp_path / state.LANDING)
    mine.con.close()
    with pytest.raises(Problem, match="fed live"):
        replay(["x"], tmp_path, Settings())


def test_many_small_parts_become_one_and_the_rows_stay(chain: Chain, tmp_path: Path) -> None:
    mine = lander(tmp_path, chain)
    for place, log in logs(chain).items():
        for offset, message in enumerate(log):
            mine.feed(place, offset, *message)
            if offset % 20 == 0:
                mine.land()
    mine.land()
    before = len(mine.parts)
    rows = sum(p.rows for p in mine.parts)
    mine.tidy()
    assert len(mine.parts) < before > 16
    assert (
        sum(p.rows for p in mine.parts)
        == rows
        == len(mine.con.sql("SELECT 1 FROM requests"))
        + sum(len(mine.con.sql(f"SELECT 1 FROM {s}")) for s in STREAMS if s != "requests")
    )


DISK_BYTES = 128 << 20


@pytest.mark.parametrize("small_disk", [DISK_BYTES], indirect=True)
def test_a_full_disk_loses_nothing(chain: Chain, replayed: dict[str, pl.DataFrame], small_disk: Path) -> None:
    """However much is left: for nothing, for a part, for half of a transaction. It is read again once there is room."""
    folder = small_disk / "state"
    dice, failed = random.Random(5), 0
    for leave in (0, 64 << 10, 256 << 10, 1 << 20, 2 << 20):
        mine = lander(folder, chain)
        for place, log in logs(chain).items():
            at = mine.positions[place]
            for offset in range(at, min(len(log), at + dice.choice([50, 200]))):
                mine.feed(place, offset, *log[offset])
        filler = fill(small_disk, leave, DISK_BYTES)
        try:
            mine.land()
            mine.tidy()
            publish(mine.con, folder / state.LANDING)
        except (OSError, duckdb.Error) as error:
            assert disk_full(error), error
            failed += 1
        finally:
            filler.unlink()
            mine.con.close()
        assert not list(folder.glob("*.publishing"))
    assert failed >= 3
    assert list(landed(folder, chain, dice, kills=0)) == []
    assert unlike(published(folder), replayed) == []
