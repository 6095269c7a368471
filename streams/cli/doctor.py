"""Commands about what was not found: what can't be seen, how near the rest came, what else would have been found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from streams.cli.look import Ascii, Json, Node, Service, Since, Until, asked, give, opened, say
from streams.cli.work import STATE, Sets, State
from streams.problems import Problem

if TYPE_CHECKING:
    from detectors.detector import Detector


def register(app: typer.Typer) -> None:
    app.command()(doctor)
    app.command()(why_not)
    app.command()(tune)


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
    from streams.report.reach import in_no_row
    from streams.report.whynot import answers, data, screen
    from streams.settings import load

    every = all_detectors()
    chosen = _chosen(every, detector)
    settings = load(every, set_)
    with opened(state) as (con, found, span, sight, invoke):
        wanted = asked(span, since, until, service, node)
        begin, end = (int(at.timestamp()) * 1_000_000 if at else None for at in (wanted.since, wanted.until))
        near = Landed(con, chosen, lateness_of(con)).near(settings, begin, end)
        given = answers(con, chosen, near, found, sight, wanted)
        if json:
            give(ENCODER.encode(one).decode() for one in data(given))
        else:
            first, *rest = screen(given, span, wanted, other_than(con, settings), invoke)
            say([first, *(f"Cannot say: {unsaid}" for unsaid in in_no_row(con, wanted)), *rest], ascii_only)


def _chosen(every: Sequence[Detector], name: str) -> list[Detector]:
    chosen = [d for d in every if name in ("", d.name)]
    if not chosen:
        raise Problem(name, "no such detector", "asynchealth detectors")
    return chosen


def tune(
    detector: Annotated[str, typer.Argument(help="A detector's name.")],
    set_: Sets = [],  # noqa: B006
    shadow: Annotated[bool, typer.Option("--shadow", help="The change that lets it find and tells nobody.")] = False,
    json: Json = False,
    ascii_only: Ascii = False,
    state: State = STATE,
) -> None:
    """What other thresholds would have found in what was measured, and the change of asynchealth.toml."""
    from streams import tune as backtests
    from streams.again import Landed, lateness_of
    from streams.catalog import all_detectors
    from streams.report import tune as screens
    from streams.report.answers import ENCODER
    from streams.settings import load

    if shadow and set_:
        raise Problem("--shadow --set", "one of the two", f"asynchealth tune {detector} --shadow")
    every = all_detectors()
    (given,) = _chosen(every, detector)
    chosen = replace(given, shadow=False)  # what it would be without
    now = load(every)
    numbers = backtests.of_detector(chosen, load(every, set_), set_)
    with opened(state) as (con, _, span, _, invoke):
        landed = Landed(con, [chosen], lateness_of(con))
        if shadow:
            found = backtests.tried(landed, chosen, now, {})
            change = [] if given.shadow else backtests.shaded(chosen)
        else:
            found = backtests.tried(landed, chosen, now, numbers) if set_ else backtests.proposed(landed, chosen, now)
            change = backtests.difference(found.proposed) if found.proposed else []
        if json:
            give([ENCODER.encode({**screens.data(found), "change": change}).decode()])
        else:
            shown = screens.shadow if shadow else screens.screen
            say(shown(found, span, change, invoke), ascii_only)
