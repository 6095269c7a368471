"""Settings enter, a worker and a lander run in processes of their own: begun together, watched, and ended together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
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

QUICK: Mapping[str, Any] = {"broker_commit_interval": 0.5}  # Faust's, where a player waits for the commits
LOOK_S = 0.1
TELL_S = 1.0
ENDS_S = 20.0


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
    """tell is called about once a second, for the screen; a child that ended by itself is a Problem."""

    parts: Parts
    tell: Callable[[], None]
    children: dict[str, BaseProcess] = field(default_factory=dict)
    told: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        spawn = multiprocessing.get_context("spawn")
        if self.parts.played:
            os.environ.setdefault("POLARS_MAX_THREADS", "1")  # many small frames: threads would wait for each other
        self.children = {n: spawn.Process(target=f, args=(self.parts,), name=n) for n, f in ROLES.items()}
        try:
            self._start()
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

    def _start(self) -> None:
        """A child ignores Ctrl-C from its begin."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for child in self.children.values():
                child.start()
        finally:
            signal.signal(signal.SIGINT, before)

    def _end(self) -> None:
        """Worker first: what it still says is landed."""
        for child in self.children.values():
            child.terminate()
            child.join(ENDS_S)
            if child.exitcode not in (0, -signal.SIGTERM):  # the latter before it had begun
                raise self._ended(child)

    def _ended(self, child: BaseProcess) -> Problem:
        then = f"read what it said above; what was landed before is in {self.parts.folder}"
        return Problem(child.name, f"ended with {child.exitcode}", then, Exit.STATE)

    def wait(self, until: Callable[[], bool]) -> None:
        """Until it holds, while all children run."""
        while not until():
            self.pause(LOOK_S)

    def pause(self, seconds: float) -> None:
        for child in self.children.values():
            if not child.is_alive():
                raise self._ended(child)
        if time.monotonic() > self.told + TELL_S:
            self.tell()
            self.told = time.monotonic()
        time.sleep(seconds)
