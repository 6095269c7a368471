"""Small recorded histories, one module a detector: functions fires_* and quiet_* that give a Case.

Every firing case has at least three windows, two partitions and something that crosses a window's border.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
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


def cases(prefix: str) -> list[tuple[str, str, Case]]:
    """(detector, name, case) of every function whose name begins with the prefix."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        code = importlib.import_module(f"{__name__}.{module.name}")
        found += [(module.name, n, getattr(code, n)()) for n in sorted(vars(code)) if n.startswith(prefix)]
    return found
