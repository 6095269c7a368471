"""A crew and its broker enter, one fault after another strikes them: the menu of bad days, each kind at least once."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.equality.crew import Crew, Process
from tests.kafka import Broker

ZOMBIE_S = (8.0, 15.0)  # past the session's timeout, which is 6 s
AWAY_S = (5.0, 12.0)
BATCHES = (2, 9)  # that one publishes before it dies


@dataclass
class Faults:
    """struck: how many, by kind. pause_s: on average between two."""

    crew: Crew
    broker: Broker
    dice: random.Random
    wanted: int
    pause_s: float
    struck: Counter[str] = field(default_factory=Counter)
    next_at: float = field(init=False)
    later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)  # what ends a fault
    _kinds: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.next_at = time.monotonic() + self.pause_s

    @property
    def done(self) -> bool:
        return self.struck.total() >= self.wanted and not self.later

    def step(self) -> None:
        """What is due now."""
        now = time.monotonic()
        for due in [d for d in self.later if d[0] <= now]:
            self.later.remove(due)
            due[1]()
        if self.struck.total() < self.wanted and now >= self.next_at:
            self._strike()
            self.next_at = time.monotonic() + self.pause_s * self.dice.uniform(0.5, 1.5)

    def _strike(self) -> None:
        menu: Mapping[str, Callable[[], None]] = {
            "worker killed": lambda: self._worker().kill(),
            "worker to die between published and committed": self._doomed,
            "zombie": lambda: self._stopped(self._worker()),
            "worker joined and left": self._guest,
            "broker killed": self._broker_killed,
            "broker away": self._broker_away,
            "lander killed": lambda: self._lander().kill(),
            "lander stopped": lambda: self._stopped(self._lander()),
        }
        if not self._kinds:
            self._kinds = self.dice.sample(sorted(menu), len(menu))
        kind = self._kinds.pop()
        menu[kind]()
        self.struck[kind] += 1

    def _worker(self) -> Process:
        """Not one that is to die otherwise, while there is another."""
        worker = self.dice.choice([w for w in self.crew.workers if w not in self.crew.doomed] or self.crew.workers)
        if worker in self.crew.doomed:
            self.crew.doomed.remove(worker)
        return worker

    def _lander(self) -> Process:
        assert self.crew.lander
        return self.crew.lander

    def _doomed(self) -> None:
        """In the place of one that is killed."""
        self._worker().kill()
        self.crew.doom(self.dice.randint(*BATCHES))

    def _stopped(self, process: Process) -> None:
        process.send_signal(signal.SIGSTOP)
        self._after(ZOMBIE_S, lambda: process.send_signal(signal.SIGCONT))

    def _guest(self) -> None:
        guest = self.crew.begin("one_worker", str(self.crew.place.folder))
        self.crew.workers.append(guest)
        self._after(ZOMBIE_S, guest.terminate)

    def _broker_killed(self) -> None:
        self.broker.kill()
        self.broker.start()

    def _broker_away(self) -> None:
        self.broker.stop()
        time.sleep(self.dice.uniform(*AWAY_S))
        self.broker.start()

    def _after(self, seconds: tuple[float, float], what: Callable[[], None]) -> None:
        self.later.append((time.monotonic() + self.dice.uniform(*seconds), what))
