"""Logs of which only the order is known: what needs no time is found, the rest is blind, and no screen shows a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from detectors.detector import Settings
from streams.catalog import all_detectors
from streams.cli import app
from streams.landing import state
from streams.problems import Problem
from streams.replay import rebuild, replay
from streams.settings import load
from streams.sources import fieldmap
from streams.sources.named import reading
from tests.streams.tape import accounting, beats, contents, lines, storm

ORDER = 'stream = "write_log"\nfiles = "order*"\n[fields]\nnode_id = "host"\nvector_clock = "clock"\n'
RECORD = 'timestamp = { from = "record" }\n'
SCREENS = [["report"], ["findings"], ["doctor"], ["why-not"], ["tune", "ordering"], ["explain", "or-"]]


def given(extra: str = "") -> fieldmap.FieldMap:
    return fieldmap.parse(ORDER + RECORD + extra, "order.toml", "order")


def events(n: int = 100) -> list[dict[str, Any]]:
    """One node counts its own events, and forgets the last ten of them twice."""
    counts = [i - 10 * (i >= 40) - 10 * (i >= 70) for i in range(n)]
    return [{"record": "its own field", "host": "n-1", "clock": {"n-1": c + 1, "n-2": 1}} for c in counts]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("order")
    (folder / "order.jsonl").write_bytes(lines(events()))
    (folder / "requests.jsonl").write_bytes(lines(storm(8_000)))
    (folder / "heartbeats.jsonl").write_bytes(lines(beats()))
    for name, files in {"alone": ["order.jsonl"], "timed": ["requests.jsonl", "heartbeats.jsonl"]}.items():
        replay([str(folder / f) for f in files], folder / name, Settings(), maps=[given()])
    replay([str(p) for p in folder.glob("*.jsonl")], folder / "mixed", Settings(), maps=[given()])
    return folder


def found(folder: Path) -> list[tuple[Any, ...]]:
    con = state.open_readable(folder)
    try:
        return con.execute("SELECT detector, subject, level, count FROM findings ORDER BY ALL").fetchall()
    finally:
        con.close()


def screens(folder: Path, *more: list[str]) -> Iterator[tuple[str, str]]:
    for command in [*SCREENS, *more]:
        done = CliRunner().invoke(app, [*command, "--state", str(folder)])
        assert done.exit_code == 0, (command, done.output, done.exception)
        yield command[0], done.output


def test_what_needs_only_the_order_is_found_and_the_rest_is_blind(logs: Path) -> None:
    assert accounting(logs / "alone") == {"read": 100, "used": 100}
    assert found(logs / "alone") == [("ordering", "n-1", "warn", 2)]
    said = contents(logs / "alone")
    assert said["orders"].select("lines", "back").rows() == [(99, 2)]
    assert {"orders"} == {n for n in said if "window_start" in said[n].columns}, "nothing else is measured"
    blind = dict(said["detectors"].select("name", "missing").rows())
    assert blind.pop("ordering") == [] and all(blind.values())
    assert blind["concurrent_writers"][0] == blind["impossible_timestamp"][0] == "timestamp"
    assert said["accounting"]["minute"].null_count() == len(said["accounting"])


def test_no_screen_shows_a_time_where_there_is_none(logs: Path) -> None:
    shown = dict(screens(logs / "alone"))
    for name, text in shown.items():
        assert "1970" not in text and "00:00" not in text, (name, text)
        assert "no time" in text, (name, text)
    when = CliRunner().invoke(app, ["timeline", "--state", str(logs / "alone")])
    assert when.exit_code == 0 and "1970" not in when.output and "n-1" not in when.output, when.output
    assert "n-1" in shown["explain"] and "impossible_timestamp" in shown["doctor"]


def test_what_has_times_is_judged_as_if_it_were_alone(logs: Path) -> None:
    mixed, timed, alone = (contents(logs / n) for n in ("mixed", "timed", "alone"))
    assert "retry_storm" in set(timed["findings"]["detector"])
    measured = [n for n in timed if "window_start" in timed[n].columns]
    assert len(measured) >= 5
    assert [n for n in measured if not mixed[n].equals(timed[n])] == []
    assert mixed["orders"].equals(alone["orders"])
    names = ["finding_id", "level", "onset", "last", "resolved", "lost", "value", "peak", "count", "facts", "proof"]
    both = pl.concat([timed["findings"], alone["findings"]]).filter(pl.col("detector") != "ordering")
    kept = mixed["findings"].filter(pl.col("detector") != "ordering")
    assert kept.select(names).sort("finding_id").equals(both.select(names).sort("finding_id"))
    assert [(d, s) for d, s, *_ in found(logs / "mixed") if d == "ordering"] == [("ordering", "n-1")]
    for name, text in screens(logs / "mixed", ["timeline"]):
        assert "1970" not in text, (name, text)


def test_judged_again_it_is_the_same(logs: Path) -> None:
    before = contents(logs / "mixed")["findings"]
    rebuild(logs / "mixed", load(all_detectors()), lateness_us=60_000_000)
    assert contents(logs / "mixed")["findings"].equals(before)


def test_a_map_is_tried_without_times(logs: Path) -> None:
    path = logs / "map.toml"
    path.write_text(ORDER + RECORD)
    screen = CliRunner().invoke(app, ["map", "--check", str(path), str(logs / "order.jsonl")]).output
    assert "No times, only the order of the records" in screen and "1970" not in screen and "timestamp" not in screen
    asked = ["map", "--check", str(path), str(logs / "order.jsonl"), "--json"]
    told = json.loads(CliRunner().invoke(app, asked).output)
    assert told["usable"] == 100 and told["times"] is None and "timestamp" not in told["rows"][0]


def test_a_column_of_times_is_no_arrival_of_what_has_none(logs: Path, tmp_path: Path) -> None:
    replay([str(logs / "order.jsonl")], tmp_path, Settings(), maps=[given()], arrival="timestamp")
    assert found(tmp_path) == found(logs / "alone")


@pytest.mark.parametrize("extra", ['finished = "f"\n', 'arrival = "a"\n'])
def test_a_row_with_a_time_has_one(extra: str) -> None:
    with pytest.raises(Problem, match=f"fields.{extra.split()[0]}: a row with it has a time"):
        given(extra)


def test_messages_of_a_topic_have_no_order_of_their_own() -> None:
    with pytest.raises(Problem, match="between partitions messages have no order"):
        reading(given(), "clocks", "topic clocks")


def test_a_field_that_is_called_so_can_still_be_the_time() -> None:
    timed = fieldmap.parse(ORDER + 'timestamp = { from = "record", unit = "ms" }\n', "m")
    assert not timed.ordered and given().ordered
