"""Cases and rows enter, a replayed state folder leaves: what a screen is tested on where the demo is too large."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from detectors.detector import Settings
from detectors.events import encode_json
from streams.replay import replay
from tests.cases import Case


def of_case(folder: Path, case: Case) -> Path:
    """The case's partitions as one JSONL file each, replayed."""
    tape = folder / "tape"
    tape.mkdir()
    for stream, parts in case.streams.items():
        for number, part in enumerate(parts):
            (tape / f"{stream}-{number}.jsonl").write_bytes(b"\n".join(encode_json(stream, part)) + b"\n")
    replay([str(tape)], folder / "state", case.settings)
    return folder / "state"


def of_rows(folder: Path, **streams: Iterable[Mapping[str, Any]]) -> Path:
    """Rows as a service would log them, a file a stream, replayed."""
    tape = folder / "tape"
    tape.mkdir()
    for stream, rows in streams.items():
        (tape / f"{stream}-0.jsonl").write_text("".join(json.dumps(r, default=str) + "\n" for r in rows))
    replay([str(tape)], folder / "state", Settings())
    return folder / "state"
