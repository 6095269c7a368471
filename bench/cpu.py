"""A process enters, the CPU time that it has used leaves."""

from __future__ import annotations

import os
import resource
from pathlib import Path


def cpu_s(pid: int | None = None) -> float:
    """Of this process, or of another one: in user and system mode together."""
    if pid is None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
