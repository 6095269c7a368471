"""A failure as people read it at night: the thing, the reason, the next command, and the exit code."""

from __future__ import annotations

import errno
import shlex
from collections.abc import Sequence
from enum import IntEnum


class Exit(IntEnum):
    """What the exit code of a command means."""

    FINE = 0
    FOUND = 1  # findings at or above --fail-on
    USAGE = 2
    NOTHING = 3  # nothing usable in the input
    STATE = 4  # state locked, damaged or disk full


class Problem(Exception):
    """Ends a command with a message and an exit code; nothing was lost."""

    def __init__(self, thing: str, reason: str, then: str = "", code: Exit = Exit.USAGE) -> None:
        super().__init__(f"{thing}: {reason}" + (f"\nNext: {then}" if then else ""))
        self.code = code

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback."""
        return [str(self)]


def shell(path: object) -> str:
    """As it is typed in a command."""
    return shlex.quote(str(path))


def few(names: Sequence[str], most: int) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def disk_full(error: BaseException) -> str:
    """Why nothing more can be written; nothing where the error is another. polars and DuckDB wrap the system's error in
    a text of their own."""
    number, text = error.errno if isinstance(error, OSError) else None, str(error).lower()
    return next((why for n, (said, why) in FULL.items() if number == n or said in text), "")


FULL = {
    errno.ENOSPC: ("no space left", "no space left on the disk"),
    errno.EDQUOT: ("disk quota exceeded", "the quota of the disk is used up"),
    errno.EFBIG: ("file too large", "files may not become as large as this one (see ulimit -f)"),
    errno.EROFS: ("read-only file system", "the disk can only be read"),
}
