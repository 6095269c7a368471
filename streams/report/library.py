"""Names enter, the shipped questions leave: files in `queries`, whose first line is the question they answer."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from streams.problems import Problem


@dataclass(frozen=True)
class Query:
    """A shipped query: `asynchealth sql @name`."""

    name: str
    question: str
    text: str


def queries() -> dict[str, Query]:
    """All shipped queries by name."""
    found = {}
    for file in sorted((files("streams.report") / "queries").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".sql"):
            text, name = file.read_text(), file.name.removesuffix(".sql")
            found[name] = Query(name, text.splitlines()[0].removeprefix("-- "), text)
    return found


def query(name: str) -> Query:
    known = queries()
    if name not in known:
        raise Problem(f"@{name}", f"no such query; there are {', '.join(known)}", "asynchealth sql --list")
    return known[name]
