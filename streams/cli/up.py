"""up: the whole live system in one command, with the simulated fleet or a recorded tape to look at."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streams.cli.live import Broker, Prefix, ready
from streams.cli.look import say
from streams.cli.work import STATE, Security, Sets, State, invoked, typed, with_state
from streams.problems import Problem

if TYPE_CHECKING:
    from detectors.detector import Settings
    from streams.report.found import Found

Tape = Annotated[list[str] | None, typer.Argument(help="A recorded tape to play; else the fleet's last hour.")]
Once = Annotated[bool, typer.Option("--once", help="End when that is played, judged and landed; a tape always does.")]
Minutes = Annotated[int, typer.Option(min=1, max=60, help="Of the fleet's past, played first; fewer than 40: calm.")]


def register(app: typer.Typer) -> None:
    app.command()(up)


def up(
    tape: Tape = None,
    state: State = STATE,
    once: Once = False,
    minutes: Minutes = 60,
    broker: Broker = "",
    kafka: Security = [],  # noqa: B006
    prefix: Prefix = "",
    set_: Sets = [],  # noqa: B006
) -> None:
    """Start everything: broker, worker, lander and a simulated fleet. Ctrl-C ends it; what was found stays."""
    from streams.catalog import all_detectors
    from streams.settings import limits, load

    settings = load(all_detectors(), set_)
    limits()  # a slip is said here, not by the lander's process
    if broker and (tape or once):
        reason = "a tape has arrivals of its own, and Kafka stamps what it gets with the time of now"
        raise Problem("--broker", reason, "asynchealth replay PATH…, or up without --broker")
    screen = Screen(state)
    try:
        if broker:
            _on_kafka(screen, broker, kafka, prefix, settings)
        else:
            _inside(screen, tape or [], minutes, settings, once or bool(tape))
    except KeyboardInterrupt:
        typer.echo("")
    screen.show()
    if screen.read:
        typer.echo(f"Ended; what was found stays. Next: {with_state('report', state)}")
    else:
        typer.echo(typed(f"Ended before any row had landed.\nNext: {invoked()}"))


def _inside(screen: Screen, tape: list[str], minutes: int, settings: Settings, once: bool) -> None:
    from streams.live.up import inside

    typer.echo("The broker is inside this process: for this run, and for no more than 2 MiB a minute and partition.")
    typer.echo(f"Look from another terminal: {with_state('findings', screen.state)}")
    inside(tape, minutes, screen.state, settings, invoked(), typer.echo, screen.show, once)


def _on_kafka(screen: Screen, broker: str, kafka: list[str], prefix: str, settings: Settings) -> None:
    from streams.live import topics
    from streams.live.connect import connection
    from streams.live.system import Parts
    from streams.live.up import on_kafka

    at = connection(broker, kafka)
    client = topics.admin(at)
    made = topics.create(client, topics.topics(topics.queues(client, prefix), prefix))
    sources, queues = ready(at, prefix)
    typer.echo(f"{at.broker}: {len(made)} topics made. Look from another terminal:")
    typer.echo(f"  {with_state('findings', screen.state)}")
    on_kafka(at, Parts(at, settings, screen.state, sources, queues, invoked(), prefix), typer.echo, screen.show)


class Screen:
    """What the readable file says that it did not say before: a line for each new finding, and how far it is."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.seen: dict[str, tuple[str, bool]] = {}
        self.shown_ns = 0  # when the file that was shown last was written
        self.read = 0

    def show(self) -> None:
        from streams.landing.state import open_readable
        from streams.report.found import all_findings
        from streams.sources.files import READABLE

        readable = self.state / READABLE
        if not readable.exists() or (written_ns := readable.stat().st_mtime_ns) == self.shown_ns:
            return
        self.shown_ns = written_ns
        con = open_readable(self.state)
        try:
            found = all_findings(con)
            self.read, until = con.execute(HOW_FAR).fetchall()[0]
        finally:
            con.close()
        fresh = [f for f in found if self.seen.get(f.finding_id) != (f.level, f.resolved is not None)]
        self._status("")
        for f in sorted(fresh, key=lambda f: f.resolved or f.onset):
            say([self._line(f)])
            self.seen[f.finding_id] = (f.level, f.resolved is not None)
        if until:
            self._status(f"{until:%Y-%m-%d %H:%M:%S} UTC   {self.read:,} read   {len(found)} findings")

    def _line(self, f: Found) -> str:
        from streams.report.sentences import sentence

        when = f"resolved {f.resolved:%H:%M}" if f.resolved else f"since {f.onset:%H:%M}"
        return f"{f.short}  {f.level.upper()}  {when}  {f.detector}  {f.name}: {sentence(f)}"

    def _status(self, text: str) -> None:
        """One line that is written over, where there is a terminal."""
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()


HOW_FAR = "SELECT coalesce(sum(read), 0)::BIGINT, max(minute) FROM accounting"
