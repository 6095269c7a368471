"""What stages said, in any pieces, said twice and killed at any point, is landed as one replay of the same records."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import duckdb
import polars as pl
import pytest

from detectors.detector import Settings
from detectors.events import STREAMS, encode_json
from detectors.table import Table
from streams.landing import state
from streams.landing.lander import Lander, Place
from streams.landing.publish import publish
from streams.live.numbered import Reader, head_of
from streams.problems import Exit, Problem, disk_full
from streams.replay import rebuild, replay
from tests.cases import Case, cases
from tests.harness import everything
from tests.streams.landing.disk import fill
from tests.streams.live.chain import Chain, until
from tests.streams.tape import contents, differing

pytestmark = pytest.mark.xdist_group("lander")  # they share one recording
QUEUES = 3
PIECES = (1, 5, 100)  # messages that are read at once
LIVE_ONLY = {"positions", "taken", "landed"}


def rows_of(case: Case) -> int:
    return sum(len(p) for parts in case.streams.values() for p in parts)


@pytest.fixture(scope="module")
def case() -> Case:
    """Of each detector the shortest firing case, all at once."""
    firing: dict[str, list[Case]] = {}
    for detector, _, c in cases("fires_"):
        firing.setdefault(detector, []).append(c)
    chosen = [min(some, key=rows_of) for some in firing.values()]
    streams: dict[str, list[pl.DataFrame]] = {}
    for stream in STREAMS:
        parts = [p for c in chosen for p in c.streams.get(stream, [])]
        if parts:
            whole = pl.concat(parts, how="diagonal").drop("offset", strict=False).sort("arrival", maintain_order=True)
            streams[stream] = [whole.with_columns(offset=pl.int_range(pl.len(), dtype=pl.Int64))]
    return Case(streams)


@pytest.fixture(scope="module")
def chain(case: Case) -> Chain:
    """The logs of stages that were killed now and then, so that much of it was said twice."""
    made = Chain(case, "", random.Random(3), queues=QUEUES, first=0, steps=(500, 2_000))
    made.run(0.1, until(case))
    assert made.said_twice > 0
    return made


@pytest.fixture(scope="module")
def replayed(case: Case, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    folder = tmp_path_factory.mktemp("replayed")
    for stream, (part,) in case.streams.items():
        (folder / f"{stream}.jsonl").write_bytes(b"\n".join(encode_json(stream, part.drop("offset"))) + b"\n")
    replay([str(folder)], folder / "state", Settings())
    return contents(folder / "state")


def logs(chain: Chain) -> dict[Place, list[tuple[bytes, bytes]]]:
    made: dict[Place, list[tuple[bytes, bytes]]] = {Place("events", q): [] for q in range(QUEUES)}
    for key, value in chain.events:
        made[Place("events", int(head_of(key).producer.rpartition("/")[2]) % QUEUES)].append((key, value))
    said = made | {Place("tables", 0): chain.windows, Place("findings", 0): chain.found}
    return {place: log + log for place, log in said.items()}  # and all of it again, as by one who slept meanwhile


def lander(folder: Path, chain: Chain) -> Lander:
    folder.mkdir(exist_ok=True)
    con = duckdb.connect(str(folder / state.LANDING))
    state.prepare(con)
    return Lander(folder, con, everything()[1], chain.producers, QUEUES)


def landed(folder: Path, chain: Chain, dice: random.Random, kills: float) -> Iterator[str]:
    """All messages in pieces; killed before or after a landing, which is one transaction. Says how it died."""
    said, mine = logs(chain), lander(folder, chain)
    while any(mine.positions[p] < len(log) for p, log in said.items()):
        place = dice.choice([p for p, log in said.items() if mine.positions[p] < len(log)])
        at = mine.positions[place]
        for offset in range(at, min(at + dice.choice(PIECES), len(said[place]))):
            mine.feed(place, offset, *said[place][offset])
        dies, after = dice.random() < kills, dice.random() < 0.5
        if not dies or after:
            mine.land()
        if dice.random() < 0.1:
            mine.tidy()
        if dies:
            yield "after" if after else "before"
            mine.con.close()
            mine = lander(folder, chain)
    mine.land()
    mine.tidy()
    publish(mine.con, folder / state.LANDING)
    mine.con.close()


def published(folder: Path) -> dict[str, pl.DataFrame]:
    said = contents(folder)
    assert said.keys() >= LIVE_ONLY
    return {n: f for n, f in said.items() if n not in LIVE_ONLY}


def unlike(live: dict[str, pl.DataFrame], files: dict[str, pl.DataFrame]) -> list[str]:
    """But for where a row was read: a file has a name, a topic is one."""
    return differing(live, files, but=["source"])


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
    with pytest.raises(Problem, match="fed live") as refused:
        rebuild(tmp_path, Settings())
    assert refused.value.code == Exit.STATE
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
