"""Progress of long work on stderr, with rate and time left; silent where stderr is not a terminal."""

from __future__ import annotations

import sys
import time


class Progress:
    """begin names the work and its size, add counts, end clears the line."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()
        self._what, self._of, self._done = "", 0, 0
        self._started = self._shown = 0.0

    def begin(self, what: str, of: int = 0) -> None:
        self._what, self._of, self._done = what, of, 0
        self._started = time.monotonic()

    def add(self, n: int) -> None:
        self._done += n
        now = time.monotonic()
        if not self._on or now - self._shown < 0.2:
            return
        self._shown = now
        rate = self._done / max(now - self._started, 1e-9)
        left = f", {(self._of - self._done) / rate:.0f} s left" if self._of and rate else ""
        sys.stderr.write(f"\r\x1b[K{self._what}: {self._done:,} events, {rate:,.0f}/s{left}")
        sys.stderr.flush()

    def end(self) -> None:
        if self._on:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
