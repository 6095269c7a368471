"""Commands that show something: detectors, runbook."""

from __future__ import annotations

from typing import Annotated

import typer

from streams.problems import Problem


def register(app: typer.Typer) -> None:
    app.command()(detectors)
    app.command()(runbook)


def detectors() -> None:
    """What can be found, from which table, and at which thresholds."""
    from detectors.detector import catalog

    for name, entry in catalog().items():
        d = entry.detector
        typer.echo(f"{name:<22} {d.subject_kind:<9} {entry.doc.splitlines()[0]}")
        for t in d.thresholds:
            typer.echo(f"    {name}.{t.name} = {t.default:g} {t.unit}   ({t.level}, {t.low:g} to {t.high:g})")
    typer.echo("Change one: --set detector.threshold=value.  Next: asynchealth runbook NAME")


def runbook(name: Annotated[str, typer.Argument(help="A detector's name.")]) -> None:
    """What to do about a finding, step by step."""
    from importlib.resources import files

    page = files("detectors.catalog") / f"{name}.md"
    if not page.is_file():
        raise Problem(name, "no such detector", "asynchealth detectors")
    typer.echo(page.read_text())
