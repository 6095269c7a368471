"""A disk and how many bytes to leave on it enter, a file that takes the rest leaves."""

from __future__ import annotations

from pathlib import Path

SMALL_BYTES = 12 << 20


def fill(disk: Path, leave: int, size: int = SMALL_BYTES) -> Path:
    filler = disk / "filler"
    used = sum(p.stat().st_blocks * 512 for p in disk.rglob("*") if p.is_file())
    filler.write_bytes(b"\0" * (size - used - leave - (64 << 10)))
    with filler.open("ab", buffering=0) as f:
        try:
            while leave < (64 << 10):
                f.write(b"\0" * 4096)
        except OSError:
            pass  # full to the last page
    return filler
