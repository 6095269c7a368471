"""What is installed enters; versions leave, and who else ships modules of our names: one would hide the other."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

US = "asynchealth"
OURS = ("streams", "detectors")


def versions() -> dict[str, str]:
    """Python, ourselves and what we run on; `not installed` where a requirement is missing."""
    found = {"python": platform.python_version()}
    needed = [re.split(r"[^\w.-]", r, maxsplit=1)[0] for r in requires(US) or [] if "extra ==" not in r]
    for name in [US, *sorted(needed)]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def clashes(
    shipped: Mapping[str, Sequence[str]] | None = None, path: Sequence[str] | None = None
) -> list[tuple[str, str]]:
    """(module, who else has it): installed packages, and folders and files on Python's path.

    shipped: who ships each module that can be imported; path: where Python looks.
    """
    by = packages_distributions() if shipped is None else shipped
    where = sys.path if path is None else path
    packages = [(m, d) for m in OURS for d in sorted({*by.get(m, [])} - {US})]
    return packages + [(m, p) for m in OURS for p in _others(m, where) if not any(m == n for n, _ in packages)]


def _others(module: str, path: Sequence[str]) -> Iterator[str]:
    spec = importlib.util.find_spec(module)
    ours = Path(spec.origin).resolve() if spec and spec.origin else None
    for folder in dict.fromkeys(path):
        for place in (Path(folder or ".") / module / "__init__.py", Path(folder or ".") / f"{module}.py"):
            if place.is_file() and place.resolve() != ours:
                yield str(place)
