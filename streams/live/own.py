"""A folder enters, one of this process's own in it leaves; what processes that were killed left there goes first.

A worker keeps a day of keys in it. One that is killed can't take that with it, and a supervisor that starts it again
and again would fill the disk. The lock in each folder ends with its process, however that ended.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streams.problems import Exit, Problem, shell

PREFIX = "asynchealth-worker-"
LOCK = "lock"


@contextmanager
def own_folder(among: Path | None = None) -> Iterator[Path]:
    """Empty at the begin, gone at the end. among: else where temporary files are."""
    among = among or Path(tempfile.gettempdir())
    try:
        among.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=PREFIX, dir=among)
    except OSError as error:
        raise Problem(str(among), f"can't be written: {error.strerror}", f"ls -ld {shell(among)}", Exit.STATE) from None
    for folder in among.glob(f"{PREFIX}*"):
        if left_behind(folder):
            shutil.rmtree(folder, ignore_errors=True)  # another worker that begins may do so too
    with made as mine, (Path(mine) / "new").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Path(lock.name).rename(Path(mine) / LOCK)  # only then it may be looked at
        yield Path(mine)


def left_behind(folder: Path) -> bool:
    """Whether nobody lives there any more. One without a lock is being made; another user's is theirs."""
    try:
        with (folder / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, PermissionError, BlockingIOError):
        return False
    return True
