"""Our own messages enter by their offsets, where a successor begins leaves: what match and judge have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from streams.live.numbered import Reader


class Step(ABC):
    """next: the window (its index) not said yet. _after: next and state once what was said is acknowledged."""

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

    def done(self) -> None:
        """All that was said is acknowledged."""
        assert self._after
        (self.next, self.state), self._after = self._after, None
        self.reader.forget(self._needed())

    def saved(self) -> tuple[int, str]:
        """The offset and the metadata that a successor begins with."""
        return self.reader.restart(self.position), str(self.next)
