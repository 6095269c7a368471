"""A tape on topics of its own enters, workers and a lander run on it as processes: begun, watched, begun again.

As under a supervisor, one that ends is started again; how each ended is counted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka.cimpl import NewTopic

from detectors.windows import NEVER
from streams.live.connect import Connection
from streams.live.topics import admin, create, topics
from streams.live.transport import FAILED
from tests.streams.tape import ROOT

QUEUES = 2
PATIENCE_S = 60
LONGEST_S, STEP_S = 900, 0.25
ENDS = {  # of a worker: any other is a bug
    **{-signal.SIGKILL: "killed", -signal.SIGTERM: "left before it had joined"},
    **{FAILED: "ended by an error, to be begun again", 0: "left"},
}
Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Place:
    """Where a run's topics and files are."""

    bootstrap: str
    prefix: str
    folder: Path
    sources: Mapping[str, int]  # the partitions of each stream
    ends_us: int = NEVER

    @property
    def at(self) -> Connection:
        return Connection(broker=self.bootstrap)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def create_topics(self) -> None:
        """Sources keep the stamps that the tape gives, which are long past."""
        client = admin(self.at)
        wanted = topics(QUEUES, self.prefix)
        create(client, [t for t in wanted if not t.source])
        keep = {"retention.ms": "-1"}
        new = [NewTopic(self.prefix + stream, n, 1, config=keep) for stream, n in self.sources.items()]
        for made in client.create_topics(new).values():
            made.result()


def until(holds: Callable[[], bool], look_after: Callable[[], None]) -> None:
    """Looks after the processes until it holds."""
    end = time.monotonic() + LONGEST_S
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"not reached in {LONGEST_S} s")
        look_after()
        time.sleep(STEP_S)


@dataclass
class Crew:
    """As many workers as are wanted, and one lander. ended: how many ended, by how."""

    place: Place
    wanted: int
    workers: list[Process] = field(default_factory=list)
    doomed: list[Process] = field(default_factory=list)  # those that die between "published" and "committed"
    lander: Process | None = None
    ended: Counter[str] = field(default_factory=Counter)

    def watch(self) -> None:
        """Begins again what ended."""
        for w in [w for w in self.workers if w.poll() is not None]:
            self.workers.remove(w)
            self.ended[self._how(w)] += 1
        while len(self.workers) < self.wanted:
            self.workers.append(self.begin("one_worker", str(self.place.folder)))
        if self.lander is None or self.lander.poll() is not None:
            if self.lander is not None:
                self.ended[f"lander: {self.lander.returncode}"] += 1
            self.lander = self.begin("one_lander", str(self.place.state))

    def _how(self, worker: Process) -> str:
        if worker in self.doomed and worker.returncode == -signal.SIGKILL:
            return "between published and committed"
        if worker.returncode not in ENDS:
            log = (self.place.folder / "one_worker.log").read_text()
            raise SystemExit(f"a worker ended with {worker.returncode}:\n{log[-20_000:]}")
        return ENDS[worker.returncode]

    def begin(self, module: str, folder: str, dies_after: int = 0) -> Process:
        place = self.place
        shared = [place.bootstrap, place.prefix, str(QUEUES)]
        given = [*shared, str(place.ends_us), folder] if module == "one_worker" else [*shared, folder]
        command = [sys.executable, "-m", f"tests.streams.live.{module}", *given, json.dumps(place.sources)]
        environment = {**os.environ, "DIES_AFTER": str(dies_after), "POLARS_MAX_THREADS": "1"}
        with (place.folder / f"{module}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def doom(self, dies_after: int) -> None:
        """One more worker, that dies when its n-th batch is published and not committed."""
        self.workers.append(self.begin("one_worker", str(self.place.folder), dies_after))
        self.doomed.append(self.workers[-1])

    def publish(self) -> None:
        """The lander ends as it is asked to, with all that was landed in the readable file."""
        assert self.lander
        self.lander.terminate()
        if self.lander.wait(PATIENCE_S) != 0:
            raise SystemExit(f"the lander ended with {self.lander.returncode}: {self.place.folder / 'one_lander.log'}")

    def end(self) -> None:
        for process in [*self.workers, *([self.lander] if self.lander else [])]:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
