"""A process enters, what it has used leaves: CPU time and memory."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import NamedTuple

SAMPLED_S = 0.02


def cpu_s(pid: int | None = None) -> float:
    """Of this process, or of another one: in user and system mode together."""
    if pid is None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def most_mb(pid: int) -> int:
    """What another process held at most, its own and mapped files together."""
    status = Path(f"/proc/{pid}/status").read_text()
    (found,) = (int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return found


class Held(NamedTuple):
    """A process's own memory, and the pages of mapped files: the system takes those back when it needs them."""

    own_mb: int = 0
    mapped_mb: int = 0


def held(pid: int) -> Held:
    """By another process, now; nothing where it has ended, and waits for its parent to see."""
    status = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    now = {name: int(rest[0]) // 1024 for name, *rest in status if name in ("RssAnon:", "RssFile:")}
    return Held(now.get("RssAnon:", 0), now.get("RssFile:", 0))


def most_held(pid: int) -> Held:
    """The most of each that another process held until it ended, as far as samples tell."""
    most = Held()
    try:
        while True:
            now = held(pid)
            most = Held(max(most.own_mb, now.own_mb), max(most.mapped_mb, now.mapped_mb))
            time.sleep(SAMPLED_S)
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return most
