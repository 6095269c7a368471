"""python -m tests.equality.append_time [--minutes 10]: the fleet in real time, stamped by Kafka, and replayed from it.

The commands that an operator types: topics create, three workers, one lander; every two minutes a worker is killed and
started again. At the end `replay kafka://` reads the same topics. What was final by then must be the same on both
sides: every row that had arrived, every table of final windows, every change of a finding.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from detectors.events import STREAMS
from streams.live.connect import Connection
from streams.live.follow import Follower
from streams.live.play import Player
from streams.live.up import fleet
from tests.equality.crew import PATIENCE_S, QUEUES, STEP_S, Process, until
from tests.kafka import Broker
from tests.streams.tape import COMMAND, ROOT, contents

PASSED = timedelta(minutes=14, seconds=30)  # of the fleet's hour: a clock steps and a storm begins soon after
KILL_S = 120.0
BEHIND = timedelta(seconds=60)  # what arrived so long before the end is judged
OF_ALL = {"coverage", "findings"}  # of all rows; what each finding was at any time stands in finding_changes


@dataclass
class Commands:
    """Three workers and a lander, as commands."""

    bootstrap: str
    folder: Path
    running: dict[str, Process] = field(default_factory=dict)

    def begin(self, name: str) -> None:
        given = ["land", "--state", str(self.folder / "live")] if name == "lander" else ["worker"]
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [*COMMAND, *given, "--broker", self.bootstrap]
            environment = {**os.environ, "POLARS_MAX_THREADS": "1"}
            self.running[name] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running[name].wait()

    def watch(self) -> None:
        for name, process in self.running.items():
            if process.poll() is not None:
                raise SystemExit(f"{name} ended with {process.returncode}: {(self.folder / f'{name}.log').read_text()}")


def live(crew: Commands, minutes: float, dice: random.Random) -> tuple[int, int]:
    """(records sent, workers killed) in so many minutes."""
    at, begun = Connection(broker=crew.bootstrap), time.monotonic()
    logs = fleet(1, datetime.now(UTC) - PASSED)
    player = Player(at, logs, stamped=False)
    player.sent = [log.before(time.time_ns() // 1_000_000) for log in logs]
    passed, kills = sum(player.sent), 0
    while (since_s := time.monotonic() - begun) < minutes * 60:
        player.play(time.time_ns() // 1_000_000)
        crew.watch()
        if since_s > (kills + 1) * KILL_S:
            name = dice.choice([n for n in crew.running if n != "lander"])
            crew.kill(name)
            crew.begin(name)
            kills += 1
        time.sleep(STEP_S)
    return sum(player.sent) - passed, kills


def landed(crew: Commands, by: datetime) -> None:
    """Returns when all windows before it are judged, and what was said of them is in the readable file."""
    follower = Follower(Connection(broker=crew.bootstrap), QUEUES)
    until(lambda: follower.look() >= by.timestamp() * 1e6, crew.watch)
    ends = follower.ends()
    until(lambda: follower.landed(ends), crew.watch)
    follower.close()
    crew.running["lander"].terminate()
    if crew.running["lander"].wait(PATIENCE_S):
        raise SystemExit((crew.folder / "lander.log").read_text())


def final(tables: Mapping[str, pl.DataFrame], by: datetime) -> dict[str, pl.DataFrame]:
    """What cannot change any more: what arrived, was measured or was said before a time."""
    minute = by.replace(second=0, microsecond=0)
    before = {"window_start": by, "arrival": by, "minute": minute, "final_at": by}
    cut: dict[str, pl.DataFrame] = {}
    for name, frame in tables.items():
        time_of = next((c for c in before if c in frame.columns), None)
        if time_of and name not in OF_ALL:
            cut[name] = frame.filter(pl.col(time_of) < before[time_of]).drop("source", strict=False)
    return cut


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory(prefix="asynchealth-equality-") as made:
        folder = Path(made)
        broker = Broker(folder / "kafka")
        broker.start()
        crew = Commands(broker.bootstrap, folder)
        try:
            create = ["topics", "create", "--partitions", str(QUEUES), "--broker", broker.bootstrap]
            subprocess.run([*COMMAND, *create], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            for name in ("worker 1", "worker 2", "worker 3", "lander"):
                crew.begin(name)
            sent, kills = live(crew, minutes, random.Random(1))
            by = datetime.now(UTC) - BEHIND
            topics = [f"kafka://{broker.bootstrap}/{stream}" for stream in STREAMS]
            replay = [*COMMAND, "replay", *topics, "--state", str(folder / "replayed")]
            subprocess.run(replay, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            landed(crew, by)
            sides = [final(contents(folder / name), by) for name in ("live", "replayed")]
        finally:
            for process in crew.running.values():
                process.kill()
                process.wait()
            broker.kill()
    return report(sides[0], sides[1], f"{sent:,} records in {minutes:g} minutes, {kills} workers killed")


def report(ours: Mapping[str, pl.DataFrame], theirs: Mapping[str, pl.DataFrame], what: str) -> int:
    differ = [name for name in theirs if name not in ours or not ours[name].equals(theirs[name])]
    found = sorted(set(theirs["finding_changes"]["detector"]))
    print(f"## Stamped by Kafka\n{what}; what was final a minute before the end, live and by replay kafka://:")
    print(f"{len(theirs) - len(differ)} of {len(theirs)} tables and views equal row for row.")
    print(f"{sum(len(theirs[s]) for s in STREAMS):,} rows, {len(theirs['finding_changes'])} changes of findings of")
    print(f"{', '.join(found)}.")
    for name in differ:
        print(f"{name} differs: {len(ours.get(name, pl.DataFrame()))} rows live, {len(theirs[name])} by replay")
    if not found:
        print("nothing was found, so nothing is shown")
    return int(bool(differ) or not found)


if __name__ == "__main__":
    sys.exit(main())
