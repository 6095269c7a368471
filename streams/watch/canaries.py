"""Time enters, a canary a minute leaves for the topic `signals`; which of them came back comes back.

Each goes into the next partition, so that all are tried in turn. One that took too long proves nothing: by then the
chain was behind. Clocks: when it is due and how long it took go by the monotonic one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import uuid4

from streams.live.canary import signal
from streams.live.tell import Writer

EVERY_S = 60.0
TOO_LONG_S = 120.0  # window and lateness are 40 s


class Sent(NamedTuple):
    number: int
    monotonic: float
    at: datetime


@dataclass
class Canaries:
    """Those of one process. partitions: of the writer's topic; none where it is not there. came_at: see metrics."""

    writer: Writer
    partitions: int = 0
    came_at: datetime | None = None
    name: str = field(default_factory=lambda: uuid4().hex)
    _out: list[Sent] = field(default_factory=list)
    _sent: Sent | None = None
    _since: float | None = None  # when the last came back, or the first was due

    def send(self, now: float, at: datetime) -> None:
        """The one that is due, if it is."""
        if self._since is None:
            self._since = now
        if self._sent is not None and now < self._sent.monotonic + EVERY_S:
            return
        number = self._sent.number + 1 if self._sent else 1
        self._sent = Sent(number, now, at)
        self._out = [*(s for s in self._out if now < s.monotonic + TOO_LONG_S), self._sent]
        if self.partitions:
            self.writer.write(signal(self.name, number, at), number % self.partitions)

    def back(self, seen: Mapping[str, int], now: float) -> bool:
        """Whether another one came back in time. seen: of each sender the last that came out."""
        last = seen.get(self.name, 0)
        came = [s for s in self._out if s.number <= last and now < s.monotonic + TOO_LONG_S]
        self._out = [s for s in self._out if s.number > last]
        if came:
            self._since, self.came_at = now, came[-1].at
        return bool(came)

    def missing(self, now: float) -> bool:
        """None came back for longer than it can take where all is well."""
        return self._since is not None and now > self._since + TOO_LONG_S
