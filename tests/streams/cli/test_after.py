"""Command lines of the review enter, screens and files leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from streams.problems import Problem
from tests.streams.cli.test_look import Screen, screen

__all__ = ["screen"]

Golden = Callable[[str, str], None]
NOTES = "time,what,who\n2026-01-26T08:22:00Z,breaker opened by hand,ana\n"


def test_the_timeline_of_the_storm_is_the_golden_one(screen: Screen, golden: Golden, tmp_path: Path) -> None:
    (tmp_path / "ops.csv").write_text(NOTES)
    asked = ["timeline", "--since", "08:17", "--until", "08:27", "--service", "payment"]
    golden("timeline.txt", screen(*asked, "--notes", str(tmp_path / "ops.csv")))
    golden("timeline_as_of.txt", screen(*asked, "--as-of", "08:20"))


def test_a_page_that_cannot_be_written_is_said_and_leaves_nothing(screen: Screen, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="can't be written"):
        screen("timeline", "--html", str(tmp_path / "nowhere" / "t.html"))
    assert not [*tmp_path.rglob("*")]
    with pytest.raises(Problem, match="one of the three"):
        screen("timeline", "--json", "--csv")
    assert "lines. Open it in a browser." in screen("timeline", "--html", str(tmp_path / "t.html"))
    assert (tmp_path / "t.html").read_text().startswith("<!doctype html>")
