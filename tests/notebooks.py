"""Notebooks and a state enter, what their cells show leaves; as pictures in docs/: python -m tests.notebooks STATE."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path
from typing import Any

import altair as alt
import jupytext

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


def shown(notebook: Path, state: str) -> tuple[list[Any], dict[str, Any]]:
    """What each cell of code ends with, as Jupyter would show it, and the names that are left."""
    os.environ["ASYNCHEALTH_STATE"] = state
    names: dict[str, Any] = {}
    return [_run(c.source, names) for c in jupytext.read(notebook).cells if c.cell_type == "code"], names


def _run(cell: str, names: dict[str, Any]) -> Any:
    *before, last = ast.parse(cell).body
    exec(compile(ast.Module(before, []), "cell", "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return exec(compile(ast.Module([last], []), "cell", "exec"), names)


def charts(shown: list[Any]) -> list[Any]:
    return [s for s in shown if isinstance(s, alt.TopLevelMixin)]


def main(state: str) -> None:
    DOCS.mkdir(exist_ok=True)
    for notebook in NOTEBOOKS:
        for number, chart in enumerate(charts(shown(notebook, state)[0]), 1):
            to = DOCS / f"{notebook.stem}-{number}.png"
            chart.save(to, scale_factor=1.5)
            sys.stdout.write(f"docs/notebooks/{to.name}\n")


if __name__ == "__main__":
    main(sys.argv[1])
