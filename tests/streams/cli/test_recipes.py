"""The README's recipes, run word for word: each line of its block in a folder that holds what the line speaks of.

psql and Kafka's console consumer are not ours: scripts stand in for them that print what those print.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from streams.sources.fieldmap import parse
from tests.fuzz import HEADER, SAMPLES, SPANS
from tests.records import NGINX, TRAIL
from tests.streams.tape import COMMAND, ROOT, accounting, lines, storm

ROWS = 60
NOON = datetime(2026, 1, 26, 12, tzinfo=UTC)


def section() -> str:
    text = (ROOT / "README.md").read_text()
    return text[text.index("### Recipes") :].partition("`asynchealth.toml`")[0]


def recipes() -> list[str]:
    (block,) = re.findall(r"```sh\n(.*?)```", section(), re.DOTALL)
    return [re.split(r"\s{2,}# ", line)[0] for line in block.splitlines()]


def maps(folder: Path) -> None:
    for text in re.findall(r"```toml\n(.*?)```", section(), re.DOTALL):
        name = re.match(r"# (\w+\.toml):", text)
        assert name, text
        (folder / name[1]).write_text(text)


def script(folder: Path, name: str, body: str) -> None:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def printed(folder: Path, name: str, content: bytes) -> None:
    """A program that prints."""
    (folder / f"{name}.out").write_bytes(content)
    script(folder, name, f'cat "{folder / name}.out"')


def prepared(folder: Path) -> dict[str, int]:
    """What each recipe finds; how many rows it must use."""
    maps(folder)
    python = " ".join(f'"{part}"' for part in COMMAND)
    script(folder, "asynchealth", f'PYTHONPATH="{ROOT}" exec {python} "$@"')
    (folder / "otel").mkdir()
    (folder / "otel" / "traces.jsonl").write_bytes((SAMPLES["otlp"][0] + b"\n") * ROWS)
    (folder / "nginx").mkdir()
    (folder / "nginx" / "access.json").write_text(json.dumps(NGINX) + "\n")
    (folder / "nginx" / "access.json.1.gz").write_bytes(
        gzip.compress(json.dumps({**NGINX, "status": "200"}).encode() + b"\n")
    )
    printed(folder, "psql", audit())
    printed(folder, "kafka-console-consumer.sh", lines(storm(ROWS)))
    day = folder / "AWSLogs" / "123" / "CloudTrail" / "eu-west-1" / "2026" / "01" / "26"
    day.mkdir(parents=True)
    (day / "123_CloudTrail_a.json.gz").write_bytes(gzip.compress(json.dumps({"Records": [TRAIL] * ROWS}).encode()))
    (folder / "spans.csv").write_bytes(b"\n".join([HEADER, *SPANS]) + b"\n")
    counts = {"otel": 2 * ROWS, "nginx": 2, "psql": ROWS, "kafka": ROWS, "AWSLogs": ROWS, "spans.csv": len(SPANS)}
    return counts


def audit() -> bytes:
    """As psql prints the audit trigger's table: a zone of two digits, values of the row as hstore, quoted."""
    head = "event_id,table_name,action_tstamp_clk,client_addr,action,row_data"
    rows = [head]
    for i in range(ROWS):
        at = NOON + timedelta(seconds=i, milliseconds=i % 2 * 250)
        stamp = f"{at:%Y-%m-%d %H:%M:%S}" + (f".{at.microsecond // 1000:03d}" if at.microsecond else "") + "+00"
        rows.append(f'{i},orders,{stamp},10.0.0.{i % 3},{"IUD"[i % 3]},"""id""=>""{i % 7}"", ""total""=>""5"""')
    return ("\n".join(rows) + "\n").encode()


def test_maps_on_the_page_about_formats_are_maps() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "formats.md").read_text(), re.DOTALL)
    maps = [parse(block, "docs/formats.md") for block in blocks if "[fields]" in block]
    assert [one.stream for one in maps] == ["requests", "write_log"]


def test_every_recipe_is_one_that_is_tried() -> None:
    assert len(recipes()) == 6


@pytest.mark.parametrize("number", range(6))
def test_a_recipe_of_the_readme_does_what_it_says(tmp_path: Path, number: int) -> None:
    counts = prepared(tmp_path)
    command = recipes()[number].replace("/var/log/", f"{tmp_path}/")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, capture_output=True, check=False, env={"PATH": path}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wanted,) = {n for what, n in counts.items() if what in command}
    assert accounting(tmp_path / "asynchealth-state") == {"read": wanted, "used": wanted}
