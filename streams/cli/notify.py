"""notify: incidents from Kafka to a webhook and to Alertmanager.

[notify]
webhook = "https://chat.example/hooks/…"
alertmanager = "http://alertmanager:9093"
heartbeat_url = "https://dead-man.example/ping/…"
level = "page"

An option is stronger than the file; an address that is a secret belongs into the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from streams.cli.live import Broker, Metrics, MetricsAddress, Prefix
from streams.cli.work import Security, program
from streams.problems import Exit, Problem

if TYPE_CHECKING:
    from streams.watch.news import Notice
    from streams.watch.send import Receiver

WAYS = '--webhook URL, --alertmanager URL, or alertmanager = "http://host:9093" under [notify] in asynchealth.toml'


class Receivers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom to tell, and of what."""

    webhook: str = ""
    alertmanager: str = ""
    heartbeat_url: str = ""
    level: Literal["page", "warn"] = "page"


def register(app: typer.Typer) -> None:
    app.command()(notify)


def notify(
    broker: Broker = "",
    kafka: Security = [],  # noqa: B006
    prefix: Prefix = "",
    webhook: Annotated[str, typer.Option(help="Gets one POST of JSON for each notification.")] = "",
    alertmanager: Annotated[str, typer.Option(help="Its address; alerts go to its API v2.")] = "",
    heartbeat_url: Annotated[str, typer.Option(help="Asked every minute while findings can be found at all.")] = "",
    level: Annotated[str, typer.Option(help="The lowest level that is sent: page or warn.")] = "",
    metrics: Metrics = None,
    metrics_address: MetricsAddress = "127.0.0.1",
    test: Annotated[
        bool, typer.Option("--test", help="Send one test notification, say what came back, and end.")
    ] = False,
) -> None:
    """Send incidents as they open, get worse and end, from Kafka, causes first. One runs for each prefix."""
    to = receivers(webhook=webhook, alertmanager=alertmanager, heartbeat_url=heartbeat_url, level=level)
    ways = list(_ways(to, prefix))
    if not ways:
        raise Problem("notify", "nobody to tell", WAYS)
    if test:
        _try(ways)
        return
    _run(to, ways, broker, kafka, prefix, metrics, metrics_address)


def receivers(path: Path | None = None, **given: str) -> Receivers:
    """The file's table, then what was given."""
    from streams.settings import CONFIG, read

    at = path or Path(CONFIG)
    table: Any = read(at).get("notify", {})
    try:
        known = msgspec.to_builtins(msgspec.convert(table, Receivers))
        made = msgspec.convert(known | {n: v for n, v in given.items() if v}, Receivers)
    except msgspec.ValidationError as error:
        then = f"its names are {', '.join(Receivers.__struct_fields__)}; level is page or warn"
        raise Problem("notify", str(error), then) from None
    return made


def _ways(to: Receivers, prefix: str) -> list[Receiver]:
    from streams.watch.send import Alertmanager, Webhook, checked

    own = (("installation", prefix),) if prefix else ()
    for option, url in _addresses(to):
        checked(url, option)
    ways: list[Receiver] = [Webhook(to.webhook)] if to.webhook else []
    return ways + ([Alertmanager(to.alertmanager, own)] if to.alertmanager else [])


def _addresses(to: Receivers) -> list[tuple[str, str]]:
    """Each with the option that names it."""
    given = (("--webhook", to.webhook), ("--alertmanager", to.alertmanager), ("--heartbeat-url", to.heartbeat_url))
    return [(option, url) for option, url in given if url]


def _try(ways: list[Receiver]) -> None:
    from streams.watch.send import Answer

    answers: list[tuple[Receiver, Answer]] = [(way, way.send(_test(), ["page"])) for way in ways]
    for way, answer in answers:
        typer.echo(f"{way.name} {way.host}: {answer.outcome} ({answer.said})")
    failed = [way.name for way, answer in answers if answer.outcome != "taken"]
    if failed:
        reason = "the test notification did not arrive; what was answered stands above"
        raise Problem(" and ".join(failed), reason, "check the address, then the same again", Exit.USAGE)
    typer.echo(f"Next: {program()} notify, with the same options and without --test")


def _test() -> Notice:
    from datetime import UTC, datetime

    from streams.watch.news import Notice

    now = datetime.now(UTC)
    return Notice(
        key="test/page/firing",
        incident_id="test",
        detector="asynchealth",
        kind="test",
        subject="test",
        name="test",
        level="page",
        state="firing",
        onset=now,
        since=now,
        sentence="a test by asynchealth notify --test: nothing is wrong, there is nothing to do",
        commands=("asynchealth incident list",),
    )


def _run(
    to: Receivers,
    ways: list[Receiver],
    broker: str,
    kafka: list[str],
    prefix: str,
    metrics: int | None,
    metrics_address: str,
) -> None:
    import signal
    from functools import partial

    from streams.inventory import inventory
    from streams.live.connect import connection
    from streams.watch.metrics import NOTIFIER, Meter, answer
    from streams.watch.notify import Notifier
    from streams.watch.send import host_of, unheard

    at = connection(broker, kafka)
    for option, url in _addresses(to):
        if why := unheard(url):
            typer.echo(f"{option} {host_of(url)}: {why}; tried again whenever there is something to send", err=True)
    meter = Meter(NOTIFIER)
    if metrics is not None:
        answer(meter, metrics_address, metrics)
    say = partial(typer.echo, err=True)
    notifier = Notifier(at, ways, say, prefix, to.level, to.heartbeat_url, meter, inventory())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, notifier.stop)
    names = ", ".join(f"{way.name} {way.host}" for way in ways)
    typer.echo(
        f"Tells {names} of incidents at level {to.level}{'' if to.level == 'page' else ' or page'}, from {at.broker}"
    )
    notifier.run()
