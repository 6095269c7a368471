"""A process enters, what it has used leaves: CPU time and memory."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Literal


def cpu_s(pid: int | None = None) -> float:
    """Of this process, or of another one: in user and system mode together."""
    if pid is None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int, what: Literal["VmRSS", "VmHWM"]) -> int:
    """What another process holds now, or held at most."""
    status = Path(f"/proc/{pid}/status").read_text()
    (found,) = (int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith(what))
    return found
