"""The logs of stages enter, a state leaves: landed in pieces, by landers that are killed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb
import polars as pl

from streams.landing import state
from streams.landing.lander import Lander, Place
from streams.landing.publish import publish
from streams.live.numbered import head_of
from tests.harness import everything
from tests.streams.live.chain import Chain
from tests.streams.tape import contents, differing

QUEUES = 3
PIECES = (1, 5, 100)  # messages that are read at once
LIVE_ONLY = {"positions", "taken", "landed"}


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
            mine.con.close()
            yield "after" if after else "before"
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


def fed(folder: Path, chain: Chain, shares: Mapping[str, float]) -> None:
    """One lander that reads so much of each topic, lands it, publishes and ends."""
    mine = lander(folder, chain)
    for place, log in logs(chain).items():
        for offset in range(mine.positions[place], int(len(log) / 2 * shares[place.topic])):
            mine.feed(place, offset, *log[offset])
    mine.land()
    mine.tidy()
    publish(mine.con, folder / state.LANDING)
    mine.con.close()
