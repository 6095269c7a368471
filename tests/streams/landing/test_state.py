"""The state folder: one writer at a time, readers always, and a full disk or damage costs nothing that was there."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from detectors.detector import Settings
from detectors.events import LANDED, SCHEMA, STREAMS, ddl
from streams.landing import lake, state
from streams.problems import Exit, Problem, disk_full
from streams.replay import rebuild, replay
from streams.sources.files import READABLE
from tests.streams.landing.disk import fill
from tests.streams.tape import COMMAND, ROOT, asynchealth, beats, contents, differing, lines, storm, write


def run(folder: Path, *paths: Path) -> None:
    replay([str(p) for p in paths], folder, Settings())


def problem_of(folder: Path, *paths: Path) -> str:
    with pytest.raises(Problem) as caught:
        run(folder, *paths)
    assert caught.value.code == Exit.STATE
    return str(caught.value)


# ---- one writer, any reader -----------------------------------------------------------------------------------------


def test_a_locked_state_names_its_owner_and_lets_readers_in(tmp_path: Path) -> None:
    """The owner waits for its standard input to end."""
    folder, file = tmp_path / "state", write(tmp_path / "requests.jsonl", lines(storm(50)))
    run(folder, file)
    before = contents(folder)
    more = tmp_path / "more.jsonl"
    owner = subprocess.Popen([*COMMAND, "replay", "-", "--state", str(folder)], cwd=ROOT, stdin=subprocess.PIPE)
    assert owner.stdin is not None
    while not any(folder.glob("spool/*")):
        assert owner.poll() is None
        time.sleep(0.01)
    second = asynchealth("replay", write(more, lines(storm(60))), "--state", folder)
    assert second.returncode == Exit.STATE
    assert second.stdout == b""
    assert second.stderr.decode() == (
        f"{folder}: locked by another asynchealth (process {owner.pid})\nNext: ps -p {owner.pid}\n"
    )
    assert differing(contents(folder), before) == []
    owner.stdin.write(lines(beats(20)))
    owner.stdin.close()
    assert owner.wait() == Exit.FINE
    assert len(contents(folder)["heartbeats"]) == 20
    run(folder, more)  # the lock is free again


def test_a_state_folder_that_is_a_file_says_so(tmp_path: Path) -> None:
    file = write(tmp_path / "requests.jsonl", lines(storm(5)))
    message = f"{file}: can't be written: File exists\nNext: ls -ld {file}"
    assert problem_of(file, file) == message


# ---- damage ---------------------------------------------------------------------------------------------------------


def test_a_file_that_another_program_has_open_is_not_to_be_put_aside(tmp_path: Path) -> None:
    """As a shell of duckdb does that may write: the file is whole."""
    folder, file = tmp_path / "state", write(tmp_path / "requests.jsonl", lines(storm(50)))
    run(folder, file)
    readable, good = folder / READABLE, contents(folder)
    holds = "import duckdb, sys; con = duckdb.connect(sys.argv[1]); print('open', flush=True); input()"
    command = [sys.executable, "-c", holds, str(readable)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"open\n"
        message = problem_of(folder, file)
        assert message.startswith(f"{readable}: ") and f"PID {other.pid}" in message
        assert message.endswith(f"\nNext: fuser {readable}")
        other.communicate(b"\n")
    assert differing(contents(folder), good) == []


def test_a_closed_standard_input_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(Problem, match="standard input is closed") as caught:
        replay(["-"], tmp_path / "state", Settings())
    assert caught.value.code == Exit.NOTHING


def test_a_damaged_readable_file_is_named_and_can_be_left_behind(tmp_path: Path) -> None:
    folder, file = tmp_path / "state", write(tmp_path / "requests.jsonl", lines(storm(50)))
    run(folder, file)
    good = contents(folder)
    readable = folder / READABLE
    readable.write_bytes(b"garbage" * 1000)
    message = problem_of(folder, file)
    assert message.startswith(f"{readable}: ")
    assert message.endswith(f"\nNext: mv {readable} {readable}.bad")
    readable.unlink()
    with duckdb.connect(str(readable)) as con:
        con.execute("CREATE TABLE other (i INTEGER)")
    assert problem_of(folder, file).startswith(f"{folder}: the state is damaged: ")
    replay([str(file)], folder, Settings(), fresh=True)
    assert differing(contents(folder), good) == []


def test_a_missing_or_damaged_lake_part_is_named(tmp_path: Path) -> None:
    folder, file = tmp_path / "state", write(tmp_path / "requests.jsonl", lines(storm(50)))
    run(folder, file)
    before = (folder / READABLE).read_bytes()
    [part] = (folder / "lake").rglob("*.parquet")
    for damage in (lambda: part.write_bytes(b"PAR1 and nothing more"), part.unlink):
        damage()
        for again in (lambda: rebuild(folder, Settings()), lambda: run(folder, write(file, lines(storm(60))))):
            with pytest.raises(Problem) as problem:
                again()
            assert problem.value.code == Exit.STATE
            assert str(problem.value).startswith(f"{folder}: the state is damaged: ")
            assert part.name in str(problem.value)
            assert str(problem.value).endswith(f"\nNext: asynchealth replay PATH… --fresh --state {folder}")
        assert (folder / READABLE).read_bytes() == before


# ---- a full disk ----------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_state_as_it_was(tmp_path: Path, small_disk: Path) -> None:
    """However much is left: for nothing, for a part, for half of the new file."""
    folder = small_disk / "state"
    first = write(tmp_path / "requests-0.jsonl", lines(storm(2_000)))
    second = write(tmp_path / "requests-1.jsonl", lines(storm()[2_000:]))
    run(tmp_path / "reference", first, second)
    run(folder, first)
    before = contents(folder)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    failed = 0
    for leave_kib in (0, 100, 200, 400, 800, 1_200, 1_600):
        filler = fill(small_disk, leave_kib << 10)
        try:
            run(folder, second)
        except Problem as problem:
            failed += 1
            assert problem.code == Exit.STATE
            assert str(problem) == (
                f"{folder}: no space left on the disk; the state is as it was before this run\nNext: df -h {folder}"
            )
            assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == files
            assert differing(contents(folder), before) == []
        else:
            break
        finally:
            filler.unlink()
    assert failed >= 3
    filler = fill(small_disk, 300 << 10)
    command = asynchealth("replay", second, "--state", folder)
    assert (command.returncode, command.stdout) == (Exit.STATE, b"")
    assert command.stderr.decode().endswith(f"\nNext: df -h {folder}\n")
    filler.unlink()
    run(folder, second)
    assert differing(contents(folder), contents(tmp_path / "reference")) == []


LIMITED = """
import resource, sys
from pathlib import Path
from detectors.detector import Settings
from streams.problems import Problem
from streams.replay import replay
for kib in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib << 10, resource.RLIM_INFINITY))
    try:
        replay([sys.argv[1]], Path(sys.argv[2]), Settings())
    except Problem as problem:
        print(problem, problem.code)
"""


def test_a_limit_on_the_size_of_files_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    """Too low for rows that wait, and for the new file."""
    folder = tmp_path / "state"
    run(folder, write(tmp_path / "requests-0.jsonl", lines(storm(400))))
    before = contents(folder)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    second = write(tmp_path / "requests-1.jsonl", lines([e | {"arrival": None} for e in storm()[400:2_000]]))
    limits = ["20", "300"]
    command = [sys.executable, "-c", LIMITED, str(second), str(folder), *limits]
    child = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    why = "files may not become as large as this one (see ulimit -f); the state is as it was before this run"
    assert (child.stdout, child.stderr) == (f"{folder}: {why}\nNext: df -h {folder} 4\n" * len(limits), "")
    assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == files
    assert differing(contents(folder), before) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_what_keeps_from_writing_is_known_by_its_number_and_in_the_words_of_others(number: int) -> None:
    said = f"IO Error: Could not write to file: {os.strerror(number)}"
    assert disk_full(OSError(number, "")) == disk_full(duckdb.IOException(said)) != ""
    assert disk_full(OSError(errno.ENOENT, os.strerror(errno.ENOENT))) == ""


# ---- what lands -----------------------------------------------------------------------------------------------------


def columns(con: duckdb.DuckDBPyConnection, name: str) -> list[Any]:
    return [row[:2] for row in con.execute(f'DESCRIBE "{name}"').fetchall()]


def test_views_have_the_columns_of_the_ddl_with_rows_and_without(tmp_path: Path) -> None:
    write_log = [{"timestamp": 1, "node_id": "n", "vector_clock": {"b": 2, "a": 1}, "arrival": 2}]
    run(tmp_path / "some", write(tmp_path / "write_log.jsonl", lines(write_log)))
    run(tmp_path / "none", write(tmp_path / "requests.jsonl", lines(storm(5))))
    for folder in ("some", "none"):
        con = state.open_readable(tmp_path / folder)
        with duckdb.connect() as bare:
            for stream in STREAMS:
                bare.execute(ddl(stream))
                assert columns(con, stream) == columns(bare, stream), (folder, stream)
        con.close()
    con = state.open_readable(tmp_path / "some")
    assert con.execute("SELECT vector_clock FROM write_log").fetchall() == [({"a": 1, "b": 2},)]
    con.close()


def test_a_writer_cuts_by_hour_and_takes_back_a_partition(tmp_path: Path) -> None:
    hour = pl.Series("arrival", [0, 1, 3_600_000_000, -1], dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))
    empty = pl.DataFrame(schema=LANDED["signals"])
    rows = pl.concat([empty, pl.DataFrame({"arrival": hour, "partition": [0, 1, 1, 0]})], how="diagonal")
    writer = lake.Writer(tmp_path)
    writer.add("signals", rows)
    writer.close()
    assert sorted((p.rows, p.first_arrival) for p in writer.parts) == [(1, -1), (1, 3_600_000_000), (2, 0)]
    writer.add("signals", rows)
    assert sum(map(len, writer.take_back("signals", 1))) == 4
    left = [lake.read(tmp_path, p, ["partition"]) for p in writer.close()]
    assert pl.concat(left)["partition"].to_list() == [0] * 4
    assert set(SCHEMA["signals"]) <= set(lake.read(tmp_path, writer.parts[0]).columns)
