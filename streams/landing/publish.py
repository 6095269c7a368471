"""The lander's database enters, the readable file leaves: a copy that takes the old one's place in one step.

DuckDB lets no second process into a file that is being written, and our own process must not open it by other means: to
close such a handle would drop the lock. So another process copies it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import duckdb

from streams.sources.files import READABLE


def publish(con: duckdb.DuckDBPyConnection, landing: Path) -> None:
    """landing: the file of con, in the state folder; nothing is written to it meanwhile."""
    con.execute("CHECKPOINT")
    aside = landing.with_name(f"{READABLE}.publishing")
    copied = subprocess.run(["cp", str(landing), str(aside)], capture_output=True, text=True, check=False)
    if copied.returncode:
        aside.unlink(missing_ok=True)
        raise OSError(copied.stderr.strip())
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(aside, landing.with_name(READABLE))
