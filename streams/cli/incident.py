"""Commands about incidents: list, show, and what people say of them: ack, silence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streams.cli.live import Broker, Prefix
from streams.cli.look import Ascii, Json, give, opened, say
from streams.cli.work import STATE, Security, State, with_state
from streams.problems import Problem

if TYPE_CHECKING:
    from streams.report.incidents import Book, Incident
    from streams.said import Word

Id = Annotated[str, typer.Argument(help="The beginning of an id, as `incident list` shows it.")]
By = Annotated[str, typer.Option(help="Who says so.")]
Note = Annotated[str, typer.Option(help="What to remember.")]

incident = typer.Typer(no_args_is_help=True, help="What belongs together by cause and time, and what people say of it.")


def register(app: typer.Typer) -> None:
    app.add_typer(incident, name="incident")
    incident.command(name="list")(every)
    incident.command()(show)
    incident.command()(ack)
    incident.command()(silence)


@contextmanager
def book_of(state: Path) -> Iterator[tuple[list[Incident], Book]]:
    from streams.inventory import inventory
    from streams.report.incidents import Book, all_incidents
    from streams.said import said

    with opened(state) as (con, found, span, _, invoke):
        by_id = {f.finding_id: f for f in found}
        yield all_incidents(con), Book(con, by_id, said(con, state), inventory(), span, invoke, datetime.now(UTC))


def every(json: Json = False, ascii_only: Ascii = False, state: State = STATE) -> None:
    """Pages first, then in the order in which they began."""
    from streams.report.answers import ENCODER
    from streams.report.incidents import listing

    with book_of(state) as (some, book):
        if json:
            give(ENCODER.encode({**i.columns, "said": book.about(i)}).decode() for i in some)
        else:
            say(listing(some, book), ascii_only)


def show(id_: Id, json: Json = False, ascii_only: Ascii = False, state: State = STATE) -> None:
    """What caused what and why, what was ruled out, what people said, whom to call."""
    from streams.report import incidents
    from streams.report.answers import ENCODER

    with book_of(state) as (some, book):
        one = incidents.incident_of(some, id_, book.invoke("incident list"))
        if json:
            give([ENCODER.encode({**one.columns, "said": book.about(one)}).decode()])
        else:
            say(incidents.show(one, book), ascii_only)


def ack(
    id_: Id, by: By = "", note: Note = "", broker: Broker = "", kafka: Security = [], prefix: Prefix = "",  # noqa: B006
    state: State = STATE,
) -> None:  # fmt: skip
    """Somebody is on it."""
    from streams.said import Word

    what = _whole(id_, state)
    word = Word(at=datetime.now(UTC), what="ack", about=what, by=by, note=note)
    _tell(word, state, broker, kafka, prefix)
    typer.echo(f"{id_} is acknowledged.  Next: {with_state(f'incident show {id_}', state)}")


def silence(
    id_: Annotated[str, typer.Argument(metavar="[ID]", help="Of one incident; else --detector.")] = "",
    detector: Annotated[str, typer.Option(help="Of all incidents that begin with it.")] = "",
    lasting: Annotated[str, typer.Option("--for", help="30m, 2h, 1d.")] = "2h",
    by: By = "", note: Note = "", broker: Broker = "", kafka: Security = [], prefix: Prefix = "",  # noqa: B006
    state: State = STATE,
) -> None:  # fmt: skip
    """List it as silenced for a while; it is found all the same."""
    from streams.catalog import catalog
    from streams.said import Word
    from streams.settings import span_us

    if bool(id_) == bool(detector):
        raise Problem("silence", "an incident or a detector", with_state("incident silence --detector NAME", state))
    if detector and detector not in catalog():
        raise Problem(f"--detector {detector}", "no such detector", with_state("detectors", state))
    lasts_us = span_us(lasting)
    if lasts_us <= 0:
        raise Problem(
            f"--for {lasting}",
            "a silence must last",
            with_state(f"incident silence {id_ or f'--detector {detector}'} --for 2h", state),
        )
    now = datetime.now(UTC)
    until = now + timedelta(microseconds=lasts_us)
    what = detector or _whole(id_, state)
    _tell(Word(at=now, what="silence", about=what, by=by, note=note, until=until), state, broker, kafka, prefix)
    then = with_state("incident list", state)
    typer.echo(f"{detector or id_} is silenced until {until:%Y-%m-%d %H:%M} UTC.  Next: {then}")


def _whole(id_: str, state: Path) -> str:
    from streams.report.incidents import incident_of

    with book_of(state) as (some, book):
        return incident_of(some, id_, book.invoke("incident list")).incident_id


def _tell(word: Word, state: Path, broker: str, kafka: list[str], prefix: str) -> None:
    """To the file beside a state that was replayed; of one that is fed live to the topic that its lander reads."""
    from streams import said
    from streams.landing.state import LANDING, fed_from

    if not (state / LANDING).exists():
        said.write(state, word)
        return
    from streams.live.connect import connection
    from streams.live.tell import tell

    known = ("", "") if broker else fed_from(state)
    tell(connection(broker or known[0], kafka), "signals", said.record(word), prefix or known[1])
