"""Settings enter, a worker and a lander run in processes of their own: begun together, watched, and ended together.

One that ends by itself or is killed is begun again, a few times: it goes on where its predecessor's commits end. On the
broker inside what it needs for that may be gone, as late in a long tape; then all ends, and says so.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from detectors.detector import Settings
from detectors.windows import NEVER
from streams.catalog import all_detectors
from streams.live.connect import Connection
from streams.live.embedded import API_VERSION
from streams.live.land import Landing
from streams.live.land import run as run_lander
from streams.live.transport import App
from streams.live.worker import Worker, serve
from streams.problems import Exit, Problem
from streams.settings import limits

QUICK: Mapping[str, Any] = {  # Faust's, where a player waits: for the commits, and for a worker's successor
    "broker_commit_interval": 0.5,
    "broker_session_timeout": 20.0,
}
LOOK_S = 0.1
TELL_S = 1.0
ENDS_S = 20.0
RESTARTS, RESTARTS_S = 3, 600.0  # of one child in so many seconds: what ends it is not going to pass


@dataclass(frozen=True)
class Parts:
    """What worker and lander are made of, so that a new process can make them.

    played: on the broker inside, by the player's clock; ends_us: where the tape that it plays ends.
    """

    connection: Connection
    settings: Settings
    folder: Path
    sources: Mapping[str, int]
    queues: int
    command: str
    prefix: str = ""
    played: bool = False
    ends_us: int = NEVER


def work(parts: Parts) -> None:
    """The worker's process."""
    _with_parent()
    given = (parts.connection, parts.queues, all_detectors(), parts.settings)

    def make(app: App, home: Path) -> Worker:
        return Worker(app, *given, home, parts.prefix, parts.played, parts.ends_us, parts.sources)

    serve(parts.connection, parts.prefix, make, **(QUICK if parts.played else {}))


def land(parts: Parts) -> None:
    """The lander's process."""
    _with_parent()
    client = {"api_version": API_VERSION} if parts.played else {}
    given = (parts.folder, parts.connection, all_detectors(), parts.sources, parts.queues, parts.prefix, parts.command)
    run_lander(Landing(*given, limits(), client))


ROLES: Mapping[str, Callable[[Parts], None]] = {"worker": work, "lander": land}
FOR_GOOD = (Exit.USAGE, Exit.NOTHING, Exit.STATE)  # a new process would end in the same way


def run_as(role: str, parts: Parts) -> None:
    """A child's process. What ends it is said as a command says it, and with its exit code."""
    try:
        ROLES[role](parts)
    except Problem as problem:
        sys.stderr.write(f"{problem}\n")
        sys.exit(problem.code)


def _with_parent() -> None:
    """Ends this process when the one that began it is gone, however that ended; a terminal's Ctrl-C is for that one."""
    os.setsid()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ENDS_S)
        os._exit(Exit.STATE)  # clients wait for a broker that is gone with its process

    threading.Thread(target=wait, daemon=True).start()


@dataclass
class System:
    """tell is called about once a second, for the screen; say with a line about a child that is begun again."""

    parts: Parts
    tell: Callable[[], None]
    say: Callable[[str], None]
    children: dict[str, BaseProcess] = field(default_factory=dict)
    ended: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # when each did so by itself
    told: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        os.environ.setdefault("POLARS_MAX_THREADS", "1")  # as in `asynchealth worker`
        try:
            self._start(ROLES)
            yield
        except KeyboardInterrupt:
            self._end()
            raise
        else:
            self._end()
        finally:
            for child in self.children.values():
                if child.is_alive():
                    child.kill()
                    child.join()

    def _start(self, names: Iterable[str]) -> None:
        """A child ignores Ctrl-C from its begin."""
        spawn = multiprocessing.get_context("spawn")
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for name in names:
                self.children[name] = spawn.Process(target=run_as, args=(name, self.parts), name=name)
                self.children[name].start()
        finally:
            signal.signal(signal.SIGINT, before)

    def _again(self, child: BaseProcess) -> None:
        now = time.monotonic()
        times = self.ended[child.name] = [t for t in self.ended[child.name] if t > now - RESTARTS_S] + [now]
        if len(times) > RESTARTS or child.exitcode in FOR_GOOD:
            raise self._ended(child)
        self.say(f"The {child.name} ended with {child.exitcode} and is started again where its commits end.")
        self._start([child.name])

    def _end(self) -> None:
        """Worker first: what it still says is landed."""
        for child in self.children.values():
            child.terminate()
            child.join(ENDS_S)
            if child.exitcode not in (0, -signal.SIGTERM):  # the latter before it had begun
                raise self._ended(child)

    def _ended(self, child: BaseProcess) -> Problem:
        then = f"read what it said above; what was landed before is in {self.parts.folder}"
        code = Exit(child.exitcode) if child.exitcode in FOR_GOOD else Exit.STATE
        return Problem(child.name, f"ended with {child.exitcode}", then, code)

    def wait(self, until: Callable[[], bool]) -> None:
        """Until it holds; children that end meanwhile are begun again."""
        while not until():
            self.pause(LOOK_S)

    def pause(self, seconds: float) -> None:
        for child in [*self.children.values()]:
            if not child.is_alive():
                self._again(child)
        if time.monotonic() > self.told + TELL_S:
            self.tell()
            self.told = time.monotonic()
        time.sleep(seconds)
