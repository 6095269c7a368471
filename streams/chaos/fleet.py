"""A seed enters, a tape leaves: one recorded hour of a simulated fleet of 47 nodes, with labels of what is wrong in it.

The way of the data: topology -> plan -> traffic, nodes, writes -> shipping -> labels. Everything is a pure function of
the seed and the options; seed DEMO_SEED is the hour that the screens show.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from detectors.events import encode_json
from detectors.windows import us_of
from streams.chaos.labels import Garbage, Parts, labels, rfc3339
from streams.chaos.nodes import heartbeats, signals
from streams.chaos.plan import DEMO_SEED, Plan, make_plan
from streams.chaos.shipping import misdated, shipped, stamped
from streams.chaos.traffic import traffic
from streams.chaos.writes import writes

START = datetime(2026, 1, 26, 8, tzinfo=UTC)
GARBAGE = (
    ("requests", '{{"timestamp":"{t}","service_name":"payment","node_id":"gateway-1","caller":"gate'),
    ("requests", '{{"timestamp":"{naive}","service_name":"search","node_id":"gateway-2","status":"ok"}}'),
    ("requests", '{{"timestamp":"{t}","service_name":"payment","node_id":"gateway-3","duration_ms":NaN}}'),
    ("requests", '{{"timestamp":"{t}","service_name":"order","node_id":"order-1","duration_ms":-3.5}}'),
    ("requests", '{{"timestamp":"{t}","service_name":"user","status":"ok"}}'),
    ("requests", '{{"timestamp":"{t}","service_name":"user","node_id":"user-2","status":"perhaps"}}'),
    ("requests", "Traceback (most recent call last):"),
    ("requests", '{{"timestamp":"{t}","service_name":"catalog","node_id":"catalog-1","retry_count":"two"}}'),
    ("heartbeats", '{{"node_id":"edge-1","client_time":"yesterday","server_time":"{t}"}}'),
    ("heartbeats", '{{"node_id":"edge-2","client_time":"{t}"}}'),
    ("write_log", '{{"timestamp":"{t}","node_id":"order-3","entity_type":"order","entity_id":"o-1","version":-1}}'),
    ("write_log", '{{"timestamp":"{naive}","node_id":"user-3","entity_type":"user","entity_id":"u-1"}}'),
)


@dataclass(frozen=True)
class Tape:
    """frames: partitions by stream, rows in the order of arrival. garbage: lines that are no event, by file stem."""

    frames: dict[str, list[pl.DataFrame]]
    garbage: Garbage
    labels: dict[str, Any]
    plan: Plan
    marked: Parts  # the frames with what only the generator knows: whose fault a row is, and when it truly began


def make_hour(
    seed: int = DEMO_SEED,
    *,
    calm: bool = False,
    start: datetime = START,
    minutes: int = 60,
    scale: float = 1.0,
) -> Tape:
    """calm: no faults, but jitter, daily load, honest retries, a deploy, cold caches. scale multiplies the events."""
    rng = np.random.default_rng([seed, calm])
    begin = us_of(start)
    end = begin + minutes * 60_000_000
    plan = make_plan(rng, seed, calm=calm, start_us=begin, end_us=end, scale=scale)
    truly = {
        "requests": traffic(rng, plan),
        "heartbeats": heartbeats(rng, plan),
        "write_log": writes(rng, plan),
        "signals": signals(rng, plan),
    }
    marked = shipped(rng, misdated(stamped(truly, plan), plan), plan)
    garbage = _garbage(rng, plan, marked)
    frames = {s: [p.drop("doubled", "group", "start", strict=False) for p in parts] for s, parts in marked.items()}
    return Tape(frames, garbage, labels(plan, marked, garbage), plan, marked)


def _garbage(rng: np.random.Generator, plan: Plan, frames: Parts) -> dict[str, list[tuple[int, bytes]]]:
    """Lines that no decoder takes, each at its record number in the finished file."""
    found: dict[str, list[tuple[int, bytes]]] = {}
    for i in range(plan.faults.rejected if plan.faults else 0):
        stream, text = GARBAGE[i % len(GARBAGE)]
        p = int(rng.integers(len(frames[stream])))
        part = frames[stream][p]
        row = int(rng.integers(1, len(part)))
        t = rfc3339(int(part["arrival"].cast(pl.Int64)[row]))
        line = text.format(t=t, naive=t.removesuffix("Z")) if text.startswith("{") else text
        found.setdefault(f"{stream}-{p}", []).append((row, line.encode()))
    return {stem: sorted(lines) for stem, lines in found.items()}


def write_tape(tape: Tape, folder: Path, fmt: str = "jsonl") -> list[Path]:
    """One file a partition, and labels.json. A Parquet file holds no garbage: its labels say so."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, said = [], tape.labels if fmt == "jsonl" else labels(tape.plan, tape.marked, {})
    for stream, parts in tape.frames.items():
        for p, part in enumerate(parts):
            path = folder / f"{stream}-{p}.{fmt}"
            if fmt == "jsonl":
                path.write_bytes(b"\n".join(_lines(stream, part, tape.garbage.get(path.stem, []))) + b"\n")
            else:
                part.write_parquet(path)
            paths.append(path)
    path = folder / "labels.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(said), indent=2) + b"\n")
    return [*paths, path]


def _lines(stream: str, part: pl.DataFrame, garbage: list[tuple[int, bytes]]) -> list[bytes]:
    lines = encode_json(stream, part)
    for number, line in garbage:
        lines.insert(number, line)
    return lines
