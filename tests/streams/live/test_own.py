"""Folders of workers: what one that was killed left is gone with the next start, what one that lives has stays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streams.live.own import PREFIX, own_folder
from streams.problems import Exit, Problem
from tests.streams.tape import ROOT

LIVES = """
import sys, time
from pathlib import Path
from streams.live.own import own_folder
with own_folder(Path(sys.argv[1])) as mine:
    (mine / "keys").write_text("a day of them")
    print(mine, flush=True)
    time.sleep(60)
"""


@contextmanager
def living(among: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    process = subprocess.Popen([sys.executable, "-c", LIVES, str(among)], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    assert process.stdout
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()


def test_what_a_killed_worker_left_goes_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}begins").mkdir()  # without its lock
    (tmp_path / "other").mkdir()
    with living(tmp_path) as (_, kept), living(tmp_path) as (killed, left):
        killed.kill()
        killed.wait()
        assert (left / "keys").exists()
        with own_folder(tmp_path) as mine:
            assert (kept / "keys").exists()
            assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
                ["other", f"{PREFIX}begins", kept.name, mine.name]
            )
        assert not mine.exists()


def test_a_folder_that_is_not_there_is_made_and_one_that_cannot_be_is_said(tmp_path: Path) -> None:
    with own_folder(tmp_path / "not" / "there") as mine:
        assert mine.is_dir()
    (tmp_path / "file").touch()
    with (
        pytest.raises(Problem, match=r"file: can't be written: .+\nNext: ls -ld ") as said,
        own_folder(tmp_path / "file"),
    ):
        pass
    assert said.value.code == Exit.STATE
