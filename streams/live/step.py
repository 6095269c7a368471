"""Our own messages enter by their offsets, where a successor begins leaves: what match and judge have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import polars as pl

from detectors.windows import WINDOW_US
from streams.live.differing import accounts
from streams.live.numbered import Reader


class Step(ABC):
    """next: the window (its index) not said yet. _after: next and state once what was said is acknowledged.

    number_us: how long a number of the messages that are read is.
    """

    number_us: ClassVar[int]
    position: int
    next: int
    reader: Reader
    state: Any
    _after: tuple[int, Any] | None

    @abstractmethod
    def _needed(self) -> int:
        """The first number of the messages that is still needed."""

    def feed(self, offset: int, key: bytes | None, value: bytes | None) -> None:
        if offset >= self.position:
            self.reader.take(offset, key, value)
            self.position = offset + 1

    @abstractmethod
    def _partition(self, producer: str) -> tuple[str, int]:
        """The topic and the partition that a producer of these messages reads."""

    def differing(self, to: int) -> pl.DataFrame:
        """What the accounts of the windows before `to` have of copies that differ."""
        every = [(max(self._window(d.number), self.next), self._partition(d.producer)) for d in self.reader.differing]
        return accounts((window * WINDOW_US, *partition) for window, partition in every if window < to)

    def _window(self, number: int) -> int:
        return number * self.number_us // WINDOW_US

    def done(self) -> None:
        """All that was said is acknowledged."""
        assert self._after
        (self.next, self.state), self._after = self._after, None
        self.reader.differing = [d for d in self.reader.differing if self._window(d.number) >= self.next]
        self.reader.forget(self._needed())

    def saved(self) -> tuple[int, str]:
        """The offset and the metadata that a successor begins with."""
        return self.reader.restart(self.position), str(self.next)
