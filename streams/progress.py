"""Progress of long work on stderr, with rate and time left; silent where stderr is not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

EVERY_S = 0.2


class Progress:
    """begin names the work and its size, add counts, end clears the line.

    The size is in what the caller likes, bytes or rows; 0: nobody knows it, and so not how long it takes.
    """

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()
        self._what = ""
        self._size = self._before = self._reached = self._events = 0
        self._started = self._shown = 0.0

    def begin(self, what: str, size: int = 0) -> None:
        self._what, self._size = what, size
        self._before = self._reached = self._events = 0
        self._started = time.monotonic()
        self._show(self._started)

    @contextmanager
    def part(self, size: int) -> Iterator[None]:
        """A part of the work, which is done when the block ends, however much was read of it."""
        try:
            yield
        finally:
            self._before += size
            self._reached = self._before

    def add(self, events: int, reached: int) -> None:
        """So many events more; reached: of the size of this part, or of all where there are no parts."""
        self._events += events
        self._reached = self._before + reached
        now = time.monotonic()
        if now - self._shown >= EVERY_S:
            self._show(now)

    def _show(self, now: float) -> None:
        if not self._on:
            return
        self._shown = now
        passed = max(now - self._started, 1e-9)
        rate = f", {self._events / passed:,.0f}/s" if self._events else ""
        left = passed * (self._size - self._reached) / self._reached if self._reached else 0.0
        time_left = f", {_span(left)} left" if self._size and self._reached else ""
        sys.stderr.write(f"\r\x1b[K{self._what}: {self._events:,} events{rate}{time_left}")
        sys.stderr.flush()

    def end(self) -> None:
        if self._on:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
