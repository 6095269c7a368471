"""A small recording in which something happens, and what a state says of it: for tests of files and of the state."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
import zstandard

from streams.cli import main
from streams.landing import state

ROOT = Path(__file__).parents[2]
T0 = 1_769_414_400  # 2026-01-26 08:00 UTC
COMMAND = [sys.executable, "-m", "streams.cli"]


def request(i: int, **changes: Any) -> dict[str, Any]:
    """Twenty calls a second; from 08:04 to 08:06 every second one is a retry."""
    start = T0 + i / 20
    return {
        "timestamp": start,
        "arrival": start + 1,
        "service_name": "payment",
        "caller": "gateway",
        "node_id": f"gateway-{i % 3}",
        "side": "client",
        "status": "ok",
        "retry_count": int(i % (2 if 240 <= i / 20 < 360 else 100) == 0),
        "duration_ms": 30 + i % 11,
        **changes,
    }


def storm(n: int = 8_000, **changes: Any) -> list[dict[str, Any]]:
    return [request(i, **changes) for i in range(n)]


def beats(n: int = 400) -> list[dict[str, Any]]:
    times = [T0 + i for i in range(n)]
    return [{"node_id": "gateway-1", "client_time": t, "server_time": t + 0.01, "arrival": t + 1} for t in times]


def lines(events: Sequence[Any]) -> bytes:
    return b"".join(msgspec.json.encode(e) + b"\n" for e in events)


def write(path: Path, content: bytes) -> Path:
    """As it is, or packed as the name says."""
    if path.suffix == ".gz":
        content = gzip.compress(content)
    if path.suffix == ".zst":
        content = zstandard.compress(content)
    path.write_bytes(content)
    return path


def asynchealth(*arguments: str | Path, stdin: bytes = b"", cwd: Path = ROOT) -> subprocess.CompletedProcess[bytes]:
    """The real command in this process: its exit code and each byte it said; with COMMAND it has one of its own."""
    argv = [str(ROOT / "streams" / "cli" / "__main__.py"), *map(str, arguments)]
    given, out, err = (io.TextIOWrapper(io.BytesIO(content), "utf-8") for content in (stdin, b"", b""))
    code = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(os, "environ", {"PYTHONPATH": str(ROOT), "PATH": ""})
        for name, value in {"argv": argv, "stdin": given, "stdout": out, "stderr": err}.items():
            patch.setattr(sys, name, value)
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    said = []
    for stream in (out, err):
        stream.flush()
        said.append(stream.buffer.getvalue())
    return subprocess.CompletedProcess(argv, code, *said)


WHEN = {"runs", "lake_parts", "recordings", "removed"}  # tables that say how the state came about


def contents(folder: Path) -> dict[str, pl.DataFrame]:
    """Every table and every view of a state, sorted: what was found, and the rows it was found in."""
    con = state.open_readable(folder)
    try:
        names = [n for (n,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall() if n not in WHEN]
        views = [n for (n,) in con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()]
        every = sorted({*names, *views})
        return {n: con.sql(f'SELECT * FROM "{n}" ORDER BY ALL').pl() for n in every}
    finally:
        con.close()


def differing(a: dict[str, pl.DataFrame], b: dict[str, pl.DataFrame], but: Sequence[str] = ()) -> list[str]:
    """The names of tables that are not equal, leaving out columns `but`."""
    assert a.keys() >= {"findings", "accounting", "calls", "requests"}, "nothing to compare"
    bare = [{n: f.drop(but, strict=False) for n, f in side.items()} for side in (a, b)]
    return [n for n in sorted({*a, *b}) if n not in a or n not in b or not bare[0][n].equals(bare[1][n])]


def accounting(folder: Path) -> dict[str, int]:
    """The sums over all files, having asserted that they add up."""
    numbers = ("read", "used", "late", "implausible", "rejected", "repeated", "tombstones")
    con = state.open_readable(folder)
    try:
        sums = ", ".join(f"sum({n})::BIGINT" for n in numbers)
        row = con.execute(f"SELECT {sums} FROM accounting").fetchone()
    finally:
        con.close()
    assert row is not None
    total = dict(zip(numbers, row, strict=True))
    assert total["read"] == sum(total[n] for n in numbers[1:])
    return {n: v for n, v in total.items() if v}


def asked(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """What the readable file of a state answers."""
    with state.open_readable(folder) as con:
        return con.execute(query).fetchall()
