"""A disk that is soon full; one recording as stages said it, and as replay landed it."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from detectors.detector import Settings
from detectors.events import STREAMS, encode_json
from streams.replay import replay
from tests.cases import Case, cases
from tests.streams.landing.disk import SMALL_BYTES
from tests.streams.landing.pieces import QUEUES, landed
from tests.streams.live.chain import Chain, until
from tests.streams.tape import contents


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Of SMALL_BYTES, or as many as the test's parameter says."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = getattr(request, "param", SMALL_BYTES)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def rows_of(case: Case) -> int:
    return sum(len(p) for parts in case.streams.values() for p in parts)


@pytest.fixture(scope="session")
def case() -> Case:
    """Of each detector the shortest firing case, all at once."""
    firing: dict[str, list[Case]] = {}
    for detector, _, c in cases("fires_"):
        firing.setdefault(detector, []).append(c)
    chosen = [min(some, key=rows_of) for some in firing.values()]
    streams: dict[str, list[pl.DataFrame]] = {}
    for stream in STREAMS:
        parts = [p for c in chosen for p in c.streams.get(stream, [])]
        if parts:
            whole = pl.concat(parts, how="diagonal").drop("offset", strict=False).sort("arrival", maintain_order=True)
            streams[stream] = [whole.with_columns(offset=pl.int_range(pl.len(), dtype=pl.Int64))]
    return Case(streams)


@pytest.fixture(scope="session")
def chain(case: Case) -> Chain:
    """The logs of stages that were killed now and then, so that much of it was said twice."""
    made = Chain(case, "", random.Random(3), queues=QUEUES, first=0, steps=(500, 2_000))
    made.run(0.1, until(case))
    assert made.said_twice > 0
    return made


@pytest.fixture(scope="session")
def tape(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tape")
    for stream, (part,) in case.streams.items():
        (folder / f"{stream}.jsonl").write_bytes(b"\n".join(encode_json(stream, part.drop("offset"))) + b"\n")
    return folder


@pytest.fixture(scope="session")
def replayed(tape: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    folder = tmp_path_factory.mktemp("replayed")
    replay([str(tape)], folder, Settings())
    return contents(folder)


@pytest.fixture(scope="session")
def landed_once(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("landed")
    assert list(landed(folder, chain, random.Random(7), kills=0)) == []
    return folder


@pytest.fixture
def live(landed_once: Path, tmp_path: Path) -> Path:
    """A state of its own in which everything has landed."""
    return shutil.copytree(landed_once, tmp_path / "live")
