"""Decoders that packages bring: found by their entry point, told where they fail, and no danger to other records."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from streams.problems import Problem
from streams.sources.decode import from_fields, unfold_of
from streams.sources.decoders import GROUP, decoders
from streams.sources.fieldmap import parse
from streams.sources.formats import of_messages
from tests.streams.tape import COMMAND, ROOT, accounting

LOGFMT = """
def decoder(schemas, options):
    between = options.get("between", " ")
    if len(between) != 1:
        raise ValueError(f"between is one character, not {between!r}")

    def unfold(record):
        if record == b"text":
            return "no list"
        return [dict(pair.split("=", 1) for pair in record.decode().split(between))]

    return unfold


def broken(schemas, options):
    raise RuntimeError("not today")
"""
FIELDS = '[fields]\ntimestamp = "t"\nservice_name = "s"\nnode_id = "s"\n'
EVENT = b"t=2026-01-26T08:00:00Z s=pay"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an installed package, on the path."""
    found = tmp_path / "site"
    name = f"logfmt_{abs(hash(tmp_path))}"  # a module is imported once
    for made, text in {
        f"{name}.py": LOGFMT,
        "ours-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: ours\nVersion: 1.0\n",
        "ours-1.0.dist-info/entry_points.txt": f"[{GROUP}]\nlogfmt = {name}:decoder\nbroken = {name}:broken\n"
        "gone = not_there:decoder\navro = not_there:decoder\n",
    }.items():
        (found / made).parent.mkdir(parents=True, exist_ok=True)
        (found / made).write_text(text)
    monkeypatch.syspath_prepend(found)
    return found


def given(form: str) -> str:
    return f'stream = "requests"\nformat = {form}\n{FIELDS}'


@pytest.mark.usefixtures("site")
def test_a_decoder_of_a_package_is_read_with_and_what_it_raises_costs_no_other_record() -> None:
    by = parse(given('"logfmt"'), "map")
    done = from_fields(by, of_messages(unfold_of(by), [EVENT, b"nothing", EVENT, b"text", b"\xff"]))
    assert done.events["offset"].to_list() == [0, 2]
    told = {row["offset"]: row["reason"] for row in done.rejects.rows(named=True)}
    assert told[1].startswith("not logfmt: ValueError: ") and told[4].startswith("not UTF-8")
    assert told[3] == "the decoder logfmt gave str, not a list of events"


@pytest.mark.usefixtures("site")
def test_a_decoder_takes_the_maps_options() -> None:
    by = parse(given('{ kind = "logfmt", options = { between = ";" } }'), "map")
    done = from_fields(by, of_messages(unfold_of(by), [EVENT.replace(b" ", b";")]))
    assert done.events["service_name"].to_list() == ["pay"]
    assert by.digest != parse(given('"logfmt"'), "map").digest


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ('{ kind = "logfmt", options = { between = "--" } }', "map: format: between is one character, not '--'"),
        ('"broken"', "map: format: ours, entry point broken = "),
        ('"broken"', "does not load: RuntimeError: not today"),
        ('"gone"', "does not load: ModuleNotFoundError: No module named 'not_there'"),
        ('"xml"', "there is no format 'xml'; there are avro, broken, csv, gone, json, logfmt, otlp, text"),
        ('{ kind = "json", schema = "map" }', "map is not readable"),
        ('{ kind = "json", options = { a = 1 } }', "json takes no schema and no options"),
        ('{ knid = "json" }', "map: format: "),
        ("5", "map: format: "),
    ],
)
def test_what_a_map_may_not_say_of_its_format(form: str, reason: str) -> None:
    with pytest.raises(Problem) as caught:
        parse(given(form), "map")
    assert reason in str(caught.value) and "\nNext: " in str(caught.value)


@pytest.mark.usefixtures("site")
def test_what_is_shipped_keeps_its_name() -> None:
    assert decoders()["avro"].value == "streams.sources.avro:confluent"


def test_replay_reads_files_line_by_line_with_it(site: Path, tmp_path: Path) -> None:
    path, by, state = tmp_path / "x.log", tmp_path / "m.toml", tmp_path / "state"
    path.write_bytes(b"".join(line + b"\n" for line in [EVENT, b"nothing", EVENT]))
    by.write_text(given('"logfmt"'))
    command = [*COMMAND, "replay", str(path), "--map", str(by), "--state", str(state)]
    where = {"PYTHONPATH": f"{ROOT}:{site}", "PATH": ""}
    screen = subprocess.run(command, capture_output=True, cwd=ROOT, check=True, env=where).stdout.decode()
    assert "x.log: m → requests, 2 events, 1 rejected (1 time: not logfmt: " in screen
    assert {k: v for k, v in accounting(state).items() if v} == {"read": 3, "used": 2, "rejected": 1}


def test_a_table_of_a_format_that_maps_read_themselves_is_that_format() -> None:
    events: list[Any] = [{"t": "2026-01-26T08:00:00Z", "s": "pay"}]
    by = parse(given('{ kind = "json" }'), "map")
    done = from_fields(by, of_messages(unfold_of(by), [json.dumps(e).encode() for e in events]))
    assert len(done.events) == 1
