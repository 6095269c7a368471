"""Command lines of the review enter, screens and files leave."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streams.cli import app
from streams.problems import Problem
from tests.cases import at
from tests.cases.duplicate_key import attempt
from tests.streams.cli.test_look import Screen, screen
from tests.streams.report.states import of_rows

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
    assert (tmp_path / "t.html").read_text().startswith("<!DOCTYPE html>")


def storm(screen: Screen) -> str:
    """The incident with most findings."""
    every = [json.loads(line) for line in screen("incident", "list", "--json").splitlines()]
    found: str = max(every, key=lambda i: len(i["findings"]))["incident_id"]
    return found


def test_the_post_mortem_of_the_storm_is_the_golden_one(screen: Screen, golden: Golden, tmp_path: Path) -> None:
    text = screen("postmortem", storm(screen))
    golden("postmortem.md", re.sub("[0-9a-f]{16} -->", "HASH -->", text))  # it depends on where the state is


def test_made_again_it_keeps_what_was_written_and_its_page_shows_it(screen: Screen, tmp_path: Path) -> None:
    path, one = tmp_path / "review.md", storm(screen)
    assert "made." in screen("postmortem", one, "--out", str(path))
    path.write_text(path.read_text().replace("- [ ] Undo", "- [x] (ana, done) Undo") + "\n## Lessons\nAsk first.\n")
    pages = ["--html", str(tmp_path / "review.html"), "--damage", str(tmp_path / "damage.csv")]
    said = screen("postmortem", one, "--out", str(path), *pages)
    assert "action items was changed by hand and stays" in said and "23 doubled effects" in said
    for kept in ("(ana, done) Undo", "Ask first."):
        assert kept in path.read_text() and kept in (tmp_path / "review.html").read_text()
    assert len((tmp_path / "damage.csv").read_text().splitlines()) == 24


def test_a_file_that_is_not_this_incidents_review_stays_as_it_is(screen: Screen, tmp_path: Path) -> None:
    path, one = tmp_path / "review.md", storm(screen)
    others = [json.loads(line)["incident_id"] for line in screen("incident", "list", "--json").splitlines()]
    screen("postmortem", next(i for i in others if i != one), "--out", str(path))
    for held, why in (
        (path.read_bytes(), r"is the post-mortem of in-\w+, and stays"),
        (b"# Notes of mine\n", "is no post-mortem, and stays"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
    ):
        path.write_bytes(held)
        with pytest.raises(Problem, match=f"{why}(.|\n)*Next: "):
            screen("postmortem", one, "--out", str(path))
        assert path.read_bytes() == held
    with pytest.raises(Problem, match="can't be read: Is a directory"):
        screen("postmortem", one, "--out", str(tmp_path))


def test_a_bundle_reopens_in_an_empty_folder_and_explains_as_before(screen: Screen, tmp_path: Path) -> None:
    to = tmp_path / "storm.zip"
    assert "rows of 08:07 - 08:37 UTC" in screen("bundle", storm(screen), "--out", str(to))
    result = CliRunner().invoke(app, ["reopen", str(to), "--into", str(tmp_path)])
    assert result.exit_code == 0 and "asynchealth.duckdb" in result.output and "postmortem.md" in result.output
    cut = Screen(tmp_path / "storm")
    of = screen.ids("retry_storm")[0]
    assert cut("explain", of).splitlines()[:8] == screen("explain", of).splitlines()[:8]
    assert storm(cut) == storm(screen)
    ids = [json.loads(line)["incident_id"] for line in cut("incident", "list", "--json").splitlines()]
    assert len(ids) == 6
    for one in ids:
        assert not re.search(r"\| -\d+ \w+ \|", cut("postmortem", one)), "nothing could be read before it was"


def test_a_bundle_has_what_proves_the_incident_and_what_changed_before_it_however_early(tmp_path: Path) -> None:
    """A key was used five hours before, a deploy came 25 minutes before."""
    early, late = attempt(0, 1), attempt(18_000, 1, retry_count=1)
    rows = sorted(
        [*early, *(r for n in range(9_000) for r in attempt(2 * n + 1, 10 + n)), *late], key=itemgetter("arrival")
    )
    deploy = {"timestamp": at(16_500), "arrival": at(16_500), "subject": "payment", "kind": "change", "name": "deploy"}
    whole = Screen(of_rows(tmp_path, requests=rows, signals=[deploy]))
    to = tmp_path / "early.zip"
    assert re.search(r": \d{3} rows of ", whole("bundle", "in-", "--out", str(to)))
    assert CliRunner().invoke(app, ["reopen", str(to), "--into", str(tmp_path / "new")]).exit_code == 0
    cut = Screen(tmp_path / "new" / "early")
    for of in (whole, cut):
        assert "preceded by deploy at " in of("incident", "show", "in-")
        said = of("postmortem", "in-", "--damage", str(tmp_path / "damage.csv"))
        assert "damage.csv: 1 doubled effects.\n" in said
        assert "pay-1,True," in (tmp_path / "damage.csv").read_text()
    assert "12:5" in cut("findings") and "08:0" not in cut("findings"), "its span begins where it did"


def test_reopened_the_next_command_reads_the_settings_that_came_with_it(
    screen: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, there = storm(screen), tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    (there / "asynchealth.toml").write_text('[services.payment]\nowner = "Pay"\n')
    screen("bundle", one)
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(app, ["reopen", f"there/{one}.zip"]).output
    assert f"\nNext: cd {one} && " in said and said.endswith(" incident list --state .\n")
    monkeypatch.chdir(tmp_path / one)
    assert "Call: Pay (owner of payment)" in Screen(Path())("incident", "show", one)


def test_as_of_another_day_is_said_with_its_date(screen: Screen) -> None:
    assert ", as it was known at 08:20:00: " in screen("timeline", "--as-of", "08:20")
    assert ", as it was known at 2026-01-25 23:00:00." in screen("timeline", "--as-of", "2026-01-25T23:00Z")
