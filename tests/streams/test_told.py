"""A folder of many files is told in few lines, in which no file and no event is missing."""

from __future__ import annotations

from pathlib import Path

from streams.told import FEW, together
from tests.streams.tape import asynchealth, lines, storm, write


def test_what_is_alike_stands_together_and_what_is_not_stays() -> None:
    read = [f"a/{i}: cloudtrail → requests, 1,00{i} events" for i in range(FEW + 1)]
    before = [f"b/{i}: read before as a/{i}, nothing new in it" for i in range(40)]
    empty = [f"c/{i}: empty\nNext: leave it out" for i in range(FEW)]
    odd = ["d: cloudtrail → requests, 3 events, 1 rejected (1 time: not JSON)"]
    assert [*together([*empty, *read, *odd, *before])] == [
        *empty,
        "a/0, a/1, a/2 and 3 others: cloudtrail → requests, 6,015 events",
        *odd,
        "b/0, b/1, b/2 and 37 others: read before, nothing new in them",
    ]


def test_a_thousand_files_that_are_no_logs_are_two_lines(tmp_path: Path) -> None:
    for i in range(1_000):
        (tmp_path / f"{i:03}.txt").write_text(f"Dear {i},\nthis is a letter\n")
    write(tmp_path / "requests.jsonl", lines(storm(50)))
    done = asynchealth("replay", tmp_path, "--state", tmp_path.parent / "state")
    first, then, counted, *_ = done.stdout.decode().splitlines()
    assert first.startswith("000.txt, 001.txt, 002.txt and 997 others: not recognised: ")
    assert then.startswith("Next: ") and "000.txt" in then and counted == "50 read = 50 used"
