"""A tape enters, the state that live processes made of it leaves: played at a pace, with faults if they are wanted."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectors.events import STREAMS
from streams.live.follow import Follower
from streams.live.play import Log, Player, final_us, last_us, last_window_us
from tests.equality.crew import QUEUES, STEP_S, Crew, Place, until
from tests.equality.faults import Faults
from tests.kafka import Broker
from tests.streams.live.logs import copies, read_log, taken


@dataclass(frozen=True)
class Run:
    """How a tape is played. pace: times as fast as it was recorded; 0: as fast as Kafka takes it."""

    name: str
    workers: int
    pace: float = 0.0
    faults: int = 0
    seed: int = 1


@dataclass(frozen=True)
class Outcome:
    """struck: the faults by kind; ended: how processes ended; copies: messages that came again, in all topics."""

    state: Path
    wall_s: float
    struck: Counter[str]
    ended: Counter[str]
    copies: int


def played(run: Run, logs: Sequence[Log], broker: Broker, folder: Path) -> Outcome:
    folder.mkdir()
    sources = {s: max(1, sum(log.stream == s for log in logs)) for s in STREAMS}
    place = Place(broker.bootstrap, f"{run.name.replace(' ', '-')}.", folder, sources, last_us(logs))
    place.create_topics()
    crew = Crew(place, run.workers)
    begin_us, end_us = first_us(logs), last_us(logs)
    pause_s = (end_us - begin_us) / 1e6 / run.pace / run.faults if run.faults else 0.0
    faults = Faults(crew, broker, random.Random(run.seed), run.faults, pause_s)
    player, follower = Player(place.at, logs, place.prefix), Follower(place.at, QUEUES, place.prefix)
    begun = time.monotonic()

    def look_after() -> None:
        faults.step()
        crew.watch()

    try:
        while player.left:
            now_us = begin_us + int((time.monotonic() - begun) * run.pace * 1e6) if run.pace else end_us
            player.play(min(now_us, end_us) // 1_000 + 1)
            look_after()
            time.sleep(STEP_S)
        until(lambda: faults.done, look_after)
        judged_us = last_window_us(logs)
        player.tick(final_us(judged_us))
        until(lambda: follower.look() >= judged_us, look_after)
        ends = follower.ends()
        until(lambda: follower.landed(ends), look_after)
        crew.publish()
    finally:
        crew.end()
        follower.close()
    return Outcome(place.state, time.monotonic() - begun, faults.struck, crew.ended, _copies(place))


def first_us(logs: Sequence[Log]) -> int:
    return min(int(log.stamps_ms[0]) for log in logs) * 1_000


def _copies(place: Place) -> int:
    """Of all topics of ours, having compared what was said again."""
    producers = [f"{stream}/{p}" for stream, n in place.sources.items() for p in range(n)]
    queues = [str(q) for q in range(QUEUES)]
    count = 0
    for topic, n, who in (("slices", QUEUES, producers), ("events", QUEUES, producers), ("tables", 1, queues)):
        for partition in range(n):
            log = read_log(place.bootstrap, f"{place.prefix}ah.{topic}", partition)
            taken(log, who)
            count += copies(log)
    return count + copies(read_log(place.bootstrap, f"{place.prefix}ah.findings"))
