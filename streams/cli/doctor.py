"""Commands about what was not found: doctor says what can't be seen, why-not how near the rest came."""

from __future__ import annotations

import typer

from streams.cli.look import Ascii, Json, give, opened, say
from streams.cli.work import STATE, State


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(state: State = STATE, json: Json = False, ascii_only: Ascii = False) -> None:
    """What can't be seen and what would unlock it; delay and lateness, gaps, stamps, sampling, versions."""
    from streams.catalog import all_detectors
    from streams.installed import clashes, versions
    from streams.landing.state import LANDING
    from streams.report.answers import ENCODER
    from streams.report.doctor import data, diagnose, screen

    with opened(state) as (con, _, span, sight, invoke):
        live = (state / LANDING).exists()
        found = diagnose(con, all_detectors(), sight, span, (versions(), clashes()), live)
        if json:
            give([ENCODER.encode(data(found)).decode()])
        else:
            say(screen(found, span, invoke), ascii_only)
