"""Small recorded histories, one module a detector: functions fires_* and quiet_* that give a Case."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from streams.laws.case import T0, Case, at, cases_of, partitions

__all__ = ["T0", "Case", "at", "cases", "partitions"]


@functools.cache
def cases(prefix: str) -> tuple[tuple[str, str, Case], ...]:
    """(detector, name, case) of every function whose name begins with the prefix, made once."""
    modules = [m.name for m in pkgutil.iter_modules(__path__)]
    found = {m: cases_of(importlib.import_module(f"{__name__}.{m}"), prefix) for m in modules}
    return tuple((module, name, case) for module, some in found.items() for name, case in some.items())
