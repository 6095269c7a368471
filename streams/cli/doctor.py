"""Commands about what was not found: doctor says what can't be seen, why-not how near the rest came."""

from __future__ import annotations

from typing import Annotated

import typer

from streams.cli.look import Ascii, Json, Node, Service, Since, Until, asked, give, opened, say
from streams.cli.work import STATE, Sets, State
from streams.problems import Problem


def register(app: typer.Typer) -> None:
    app.command()(doctor)
    app.command()(why_not)


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


def why_not(
    detector: Annotated[str, typer.Argument(metavar="[DETECTOR]", help="One of them, with all its subjects.")] = "",
    since: Since = "", until: Until = "", service: Service = "", node: Node = "", set_: Sets = [],  # noqa: B006
    json: Json = False, ascii_only: Ascii = False, state: State = STATE,
) -> None:  # fmt: skip
    """How near everything came to its thresholds, by which and when; what fired, what is unknown and why."""
    from streams.again import Landed, lateness_of, other_than
    from streams.catalog import all_detectors
    from streams.report.answers import ENCODER
    from streams.report.whynot import answers, data, screen
    from streams.settings import load

    every = all_detectors()
    chosen = [d for d in every if detector in ("", d.name)]
    if not chosen:
        raise Problem(detector, "no such detector", "asynchealth detectors")
    settings = load(every, set_)
    with opened(state) as (con, found, span, sight, invoke):
        wanted = asked(span, since, until, service, node)
        begin, end = (int(at.timestamp()) * 1_000_000 if at else None for at in (wanted.since, wanted.until))
        near = Landed(con, chosen, lateness_of(con)).near(settings, begin, end)
        given = answers(con, chosen, near, found, sight, wanted)
        if json:
            give(ENCODER.encode(one).decode() for one in data(given))
        else:
            say(screen(given, span, wanted, other_than(con, settings), invoke), ascii_only)
