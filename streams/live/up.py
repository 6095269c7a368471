"""A tape enters, a state that is fed live leaves: broker, worker, lander and player in one command.

Without a Kafka the broker is the one inside this process. It keeps 5 MiB of each partition and drops the oldest without
a word, so the player goes on only when what it played before is judged and landed; and it stamps nothing, so the
player's ticks are its clock.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from detectors.detector import Settings
from detectors.events import STREAMS
from detectors.windows import LATENESS_US, NEVER, SECOND_US, SLICE_US, WINDOW_US
from streams.chaos.fleet import make_hour, write_tape
from streams.chaos.plan import FAULTS_NEED_MIN
from streams.landing.state import begin_anew
from streams.live import topics
from streams.live.connect import Connection
from streams.live.embedded import embedded
from streams.live.follow import Follower
from streams.live.pace import Pace
from streams.live.play import Log, Player, final_us, last_us, last_window_us, read_tape, steps
from streams.live.system import Parts, System
from streams.problems import Problem

QUEUES = 2
STEP_BYTES = 2 << 20  # of one partition at once; two steps are under way
STEP_S = 60  # a step must last as long, since what is judged trails what is played by most of it
BEHIND_US = LATENESS_US + 2 * WINDOW_US + SLICE_US  # by which what is judged trails what was played
AHEAD_US = 2 * STEP_S * SECOND_US  # by which the fleet may be ahead of what is judged: then it waits
PLAY_S = 0.5
HOUR_MINUTES = 60
Say = Callable[[str], None]
Show = Callable[[], None]


def inside(
    tape: Sequence[str], minutes: int, folder: Path, settings: Settings, command: str, say: Say, show: Show, once: bool
) -> None:
    """On the broker inside this process: the tape, or the fleet's last minutes; then, if not once, the fleet live."""
    past = datetime.now(UTC) - timedelta(minutes=minutes)
    logs = read_tape(tape, folder, say) if tape else fleet(1, past, minutes)
    cuts = fitting(logs)
    begin_anew(folder)
    sources = {s: max(1, sum(log.stream == s for log in logs)) for s in STREAMS}
    with broker_inside(sources) as at:
        ends_us = last_us(logs) if once else NEVER
        parts = Parts(at, settings, folder, sources, QUEUES, command, played=True, ends_us=ends_us)
        system, player, follower = System(parts, show, say), Player(at, logs), Follower(at, QUEUES)
        with system.running():
            play_through(system, player, follower, cuts)
            if once:
                finish(system, player, follower)
            else:
                say("What was before is played; from here the fleet is live. Ctrl-C ends it.")
                then = "this machine has too little time for all that; nothing is lost, findings come later. Next: top"
                pace = Pace(BEHIND_US / SECOND_US, then)

                def most_ms() -> int:
                    if line := pace.line(time.time_ns() // 1_000, follower.look()):
                        say(f"The live system {line}")
                    return (follower.judged_us + AHEAD_US) // 1_000

                go_on(system, 2, lambda logs: Player(at, logs), most_ms)
        follower.close()


def on_kafka(at: Connection, parts: Parts, say: Say, show: Show) -> None:
    """On topics of a Kafka: the fleet live."""
    system = System(parts, show, say)
    with system.running():
        say("A simulated fleet is live; findings come as its faults do. Ctrl-C ends it.")
        go_on(system, 1, lambda logs: Player(at, logs, parts.prefix, stamped=False))


@contextmanager
def broker_inside(sources: Mapping[str, int]) -> Iterator[Connection]:
    """With all topics; each source has as many partitions as its tape."""
    with embedded() as broker:
        for topic in topics.topics(QUEUES):
            broker.create(topic.name, sources[topic.name] if topic.source else topic.partitions)
        yield Connection(broker=broker.bootstrap)


def fleet(seed: int, start: datetime, minutes: int = HOUR_MINUTES) -> list[Log]:
    """So many minutes of the simulated fleet; few of them are calm, since its faults take a while."""
    with tempfile.TemporaryDirectory(prefix="asynchealth-") as folder:
        calm = minutes < FAULTS_NEED_MIN
        hour = make_hour(seed, calm=calm, start=start.replace(microsecond=0), minutes=minutes)
        write_tape(hour, Path(folder))
        return read_tape([folder], Path(folder) / "none")


def fitting(logs: Sequence[Log]) -> list[int]:
    """The steps of a tape that the broker inside can hold."""
    cuts = list(steps(logs, STEP_BYTES))
    short = [b - a for a, b in zip([int(min(log.stamps_ms[0] for log in logs)), *cuts], cuts[:-1], strict=False)]
    if short and min(short) < STEP_S * 1_000:
        reason = f"more than {STEP_BYTES >> 20} MiB a minute in one partition, which the broker inside can't hold"
        raise Problem("the tape", reason, "asynchealth replay PATH…")
    return cuts


def play_through(system: System, player: Player, follower: Follower, cuts: Sequence[int]) -> None:
    """A whole tape, as fast as it is judged and landed."""
    before_ms, ends = 0, follower.ends()

    def through() -> bool:
        return follower.look() >= before_ms * 1_000 - BEHIND_US and follower.landed(ends)

    for cut in cuts:
        player.play(cut)
        system.wait(through)
        before_ms, ends = cut, follower.ends()
    system.wait(through)


def finish(system: System, player: Player, follower: Follower) -> None:
    """The tape's last windows are judged, and all is landed."""
    end_us = last_window_us(player.logs)
    player.tick(final_us(end_us))
    system.wait(lambda: follower.look() >= end_us)
    ends = follower.ends()
    system.wait(lambda: follower.landed(ends))


def go_on(
    system: System, seed: int, player: Callable[[list[Log]], Player], most_ms: Callable[[], int] = lambda: NEVER
) -> None:
    """Hour after hour of the fleet in real time: what arrived by now, and before most_ms, is sent."""
    while True:
        mine = player(fleet(seed, datetime.now(UTC)))
        end_ms = last_us(mine.logs) // 1_000 + 1
        while mine.left:
            mine.play(min(time.time_ns() // 1_000_000, end_ms, most_ms()))
            system.pause(PLAY_S)
        seed += 1
