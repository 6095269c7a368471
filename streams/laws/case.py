"""Rows of a small recorded history enter, a Case leaves: what a detector must say about it.

Cases of a detector are functions fires_* and quiet_* of one module. Every firing case has at least three windows, two
partitions and something that crosses a window's border.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import polars as pl

from detectors.detector import Settings
from detectors.events import SCHEMA, conform

T0 = datetime(2026, 1, 26, 8, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


@dataclass(frozen=True)
class Case:
    """streams: for each stream its partitions in offset order, with arrival. expect: (subject, kind, level)."""

    streams: Mapping[str, list[pl.DataFrame]]
    expect: frozenset[tuple[str, str, str]] = frozenset()
    settings: Settings = field(default_factory=Settings)


def partitions(stream: str, rows: Iterable[Mapping[str, Any]], n: int = 2) -> list[pl.DataFrame]:
    """Rows with `arrival` onto n partitions in turn, each in the order of arrival; nothing may be rejected."""
    ordered = sorted(rows, key=lambda r: r["arrival"])
    frames = []
    for p in range(n):
        part = ordered[p::n]
        columns = {name: [r.get(name) for r in part] for name in SCHEMA[stream] if any(name in r for r in part)}
        raw = pl.DataFrame(
            {
                k: pl.Series(
                    k, v, dtype=pl.Datetime("us", "UTC") if v and isinstance(v[0], datetime) else None, strict=False
                )
                for k, v in columns.items()
            }
        ).with_columns(offset=pl.int_range(len(part), dtype=pl.Int64), sub=pl.lit(0, dtype=pl.Int64))
        good, rejects = conform(stream, raw)
        assert rejects.is_empty(), rejects
        frames.append(good.drop("offset", "sub"))
    return frames


def cases_of(module: ModuleType, prefix: str) -> dict[str, Case]:
    """By name, of every function whose name begins with the prefix."""
    return {n: getattr(module, n)() for n in sorted(vars(module)) if n.startswith(prefix)}
