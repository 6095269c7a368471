"""Commands for who was woken: triage walks the playbook's charts, card is what to try first. None changes anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from streams.cli.look import Ascii, Json, give, opened, say
from streams.cli.work import STATE, State, with_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.report.found import Found


def register(app: typer.Typer) -> None:
    app.command()(triage)
    app.command()(card)


def triage(
    about: Annotated[
        str, typer.Argument(metavar="[FINDING_ID|timestamps|duplicates|timeouts]", help="Else the worst open finding.")
    ] = "",
    json: Json = False,
    ascii_only: Ascii = False,
    state: State = STATE,
) -> None:
    """The playbook's flowcharts, walked over what was found: each question, its answer, what to do, whom to call."""
    from streams.inventory import inventory
    from streams.report.answers import ENCODER
    from streams.report.triage import screen
    from streams.report.triage.walk import called, walk
    from streams.settings import kinds

    with opened(state) as (con, every, span, _, invoke):
        chosen = _chosen(about, every, [f for f in every if span.is_open(f)], invoke("findings"))
        if chosen is None:
            say(screen.menu(every, invoke), ascii_only)
            return
        walked = walk(con, *chosen, every, kinds())
        contacts = called(walked, inventory())
        if json:
            give([ENCODER.encode({**walked.data, "contacts": contacts}).decode()])
            return
        say(screen.path(walked, contacts, invoke), ascii_only)
        if not about:
            say(["Also:", *screen.menu(every, invoke)], ascii_only)


def _chosen(
    about: str, every: Sequence[Found], still_open: Sequence[Found], listing: str
) -> tuple[str, Found | None] | None:
    """The chart and the finding that enters it: as asked for, else the worst that is open; none where none is."""
    from streams.report.found import one_of
    from streams.report.triage.chart import chart_of, charts

    if about in charts():
        mine = [f for some in (still_open, every) for f in some if chart_of(f.detector) == about]
        return about, next(iter(mine), None)
    found = one_of(every, about, listing) if about else next(iter(still_open), None)
    return (chart_of(found.detector), found) if found else None


def card(
    about: Annotated[str, typer.Argument(metavar="[FINDING_ID]", help="Else the worst open finding.")] = "",
    ascii_only: Ascii = False,
    state: State = STATE,
) -> None:
    """The emergency card: what to type first, what not to, and whom to call."""
    from streams.inventory import inventory
    from streams.report import card as emergency
    from streams.report.found import one_of
    from streams.sources.files import READABLE

    def invoke(command: str) -> str:
        return with_state(command, state)

    say(emergency.card(inventory().everyone, invoke), ascii_only)
    if about or state != STATE or (state / READABLE).exists():
        with opened(state) as (_, every, span, _, _):
            one = one_of(every, about, invoke("findings")) if about else None
            say(emergency.now(every, one, span, invoke), ascii_only)
