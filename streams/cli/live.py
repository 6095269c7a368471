"""Commands around Kafka: topics, worker, land, lag."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streams.cli.look import Ascii, Json, give, say
from streams.cli.work import STATE, Security, Sets, State, folder_named, invoked, program, with_state
from streams.problems import Exit, Problem

if TYPE_CHECKING:
    from streams.live.connect import Connection
    from streams.live.grow import Grown, Growth
    from streams.live.topics import Topic

Broker = Annotated[str, typer.Option("--broker", help="host:port of Kafka; several with commas between them.")]
Partitions = Annotated[
    int | None,
    typer.Option(min=1, help="Of each source: the most workers that can share the work. Else what is there, or 8."),
]
Prefix = Annotated[str, typer.Option(help="Before every topic's name: a second installation on one Kafka.")]

Metrics = Annotated[
    int | None, typer.Option("--metrics", min=1, max=65_535, help="A port for /metrics, /health and /ready.")
]
MetricsAddress = Annotated[str, typer.Option(help="Who may ask: 0.0.0.0 for other machines too.")]

topics = typer.Typer(no_args_is_help=True, help="Kafka's topics: those that are read and those of asynchealth.")


def register(app: typer.Typer) -> None:
    app.add_typer(topics, name="topics")
    topics.command()(create)
    topics.command()(check)
    topics.command()(grow)
    app.command()(worker)
    app.command()(land)
    app.command()(lag)


def create(broker: Broker = "", kafka: Security = [], partitions: Partitions = None, prefix: Prefix = "") -> None:  # noqa: B006
    """Make the topics that are not there yet. What is there stays as it is: topics check says whether it will do."""
    from streams.live import topics as kafka_topics
    from streams.live.connect import connection
    from streams.sources.named import sources

    at = connection(broker, kafka)
    client = kafka_topics.admin(at)
    count = partitions or kafka_topics.queues(client, prefix)
    wanted = kafka_topics.topics(count, prefix, [s.name for s in sources(prefix)])
    made = kafka_topics.create(client, wanted)
    there = kafka_topics.partitions(client)
    for topic in wanted:
        line = _line(topic._replace(partitions=there.get(topic.name, topic.partitions)))
        typer.echo(f"{line}   {'made' if topic.name in made else 'was there'}")
    typer.echo(f"Next: {program()} topics check {at.options(prefix)}")


def check(
    broker: Broker = "",
    kafka: Security = [],  # noqa: B006
    partitions: Partitions = None,
    prefix: Prefix = "",
    stamped: Annotated[
        bool,
        typer.Option("--stamps-are-arrivals", help="The sources' own stamps are when records arrived, as in a tape."),
    ] = False,
) -> None:
    """Say whether the topics are as they must be, and what changes those that are not."""
    from streams.live import topics as kafka_topics
    from streams.live.connect import connection
    from streams.sources.named import sources

    at = connection(broker, kafka)
    client = kafka_topics.admin(at)
    count = partitions or kafka_topics.queues(client, prefix)
    wanted = kafka_topics.topics(count, prefix, [s.name for s in sources(prefix)])
    faults = kafka_topics.faults(client, wanted, at, prefix, stamped=stamped) or growth(at, prefix).problems()
    for fault in faults:
        typer.echo(str(fault), err=True)
    if faults:
        raise typer.Exit(Exit.USAGE)
    there = kafka_topics.partitions(client)
    for topic in wanted:
        typer.echo(_line(topic._replace(partitions=there.get(topic.name, topic.partitions))))
    typer.echo(f"All {len(wanted)} topics are as they must be.")


def grow(
    broker: Broker = "",
    kafka: Security = [],  # noqa: B006
    partitions: Annotated[int, typer.Option(min=0, help="Of each source; one that has as many keeps them.")] = 0,
    prefix: Prefix = "",
) -> None:
    """Give the sources more partitions, or take in those that somebody added to them, while no worker runs.

    Services go on writing meanwhile: nothing is lost or counted twice. The topics of asynchealth stay as they are.
    """
    from streams.live.connect import connection

    at = connection(broker, kafka)
    usable(at, prefix)
    grown = growth(at, prefix).grow(partitions)
    for topic, (before, now) in grown.counts.items():
        typer.echo(f"{topic:<16}  {now:>3} partition{'s' if now > 1 else ' '}  {now - before or 'none'} made")
    for line in _joined(grown):
        typer.echo(line)
    typer.echo(f"Next: {program()} worker {at.options(prefix)}")


def _joined(grown: Grown) -> Iterator[str]:
    from streams.report.lag import spelled

    if not grown.joined:
        yield "No partition waits for being taken in."
        return
    by_topic: dict[str, list[int]] = {}
    for one in grown.joined:
        by_topic.setdefault(one.topic, []).append(one.partition)
    names = " ".join(spelled(topic, numbers) for topic, numbers in by_topic.items())
    yield f"Taken in: {names}. They count from {grown.since:%Y-%m-%d %H:%M:%S} UTC on."
    if strays := sum(one.strays for one in grown.joined):
        yield f"{strays:,} records came into them before: they land and are counted as stray, in no table."


def growth(at: Connection, prefix: str) -> Growth:
    from streams.live.grow import Growth
    from streams.sources.named import sources

    return Growth(at, prefix, {s.reading.stream: s.name for s in sources(prefix)})


def _line(topic: Topic) -> str:
    kept = f"kept {topic.keep_ms // 3_600_000:>3} h" if not topic.source else "of your services"
    return f"{topic.name:<16}  {topic.partitions:>3} partition{'s' if topic.partitions > 1 else ' '}  {kept}"


def usable(at: Connection, prefix: str) -> tuple[dict[str, int], int]:
    """Of each stream and of what is spread by key, on topics that are as they must be."""
    from streams.live import topics as kafka_topics
    from streams.sources.named import sources

    client = kafka_topics.admin(at)
    there, queues = kafka_topics.partitions(client), kafka_topics.queues(client, prefix)
    given = sources(prefix)
    if faults := kafka_topics.faults(client, kafka_topics.topics(queues, prefix, [s.name for s in given]), at, prefix):
        first = str(faults[0]).splitlines()[0]
        then = f"asynchealth topics check {at.options(prefix)}"
        raise Problem(first, f"the first of {len(faults)} faults of the topics", then)
    return {s.reading.stream: there[s.name] for s in given}, queues


def ready(at: Connection, prefix: str) -> tuple[dict[str, int], int]:
    """The same, of topics in which no partition waits for being taken in."""
    found = usable(at, prefix)
    for problem in growth(at, prefix).problems():
        raise problem
    return found


def worker(
    broker: Broker = "",
    kafka: Security = [],  # noqa: B006
    prefix: Prefix = "",
    folder: Annotated[
        Path | None,
        typer.Option(help="For what does not fit in memory: a day of keys. It is filled anew at each start."),
    ] = None,
    set_: Sets = [],  # noqa: B006
    metrics: Metrics = None,
    metrics_address: MetricsAddress = "127.0.0.1",
) -> None:
    """Read the logs in Kafka and judge them, alone or with other workers. Exit code 70: start it again."""
    os.environ.setdefault("POLARS_MAX_THREADS", "1")  # of small frames threads wait for each other; cores take workers

    from streams.catalog import all_detectors
    from streams.live.connect import connection
    from streams.live.worker import Worker, serve
    from streams.settings import load
    from streams.sources.named import sources
    from streams.watch.metrics import WORKER, Meter, answer

    at = connection(broker, kafka)
    meter = Meter(WORKER)
    if metrics is not None:
        answer(meter, metrics_address, metrics)
    detectors = all_detectors()
    settings = load(detectors, set_)
    counts, queues = ready(at, prefix)
    made = partial(Worker, sources=counts, readings=dict(sources(prefix)), meter=meter)
    serve(at, prefix, lambda app, home: made(app, at, queues, detectors, settings, home, prefix), folder)


def land(
    broker: Broker = "",
    kafka: Security = [],  # noqa: B006
    prefix: Prefix = "",
    state: State = STATE,
    metrics: Metrics = None,
    metrics_address: MetricsAddress = "127.0.0.1",
) -> None:
    """Write what workers say into DuckDB, and put a new readable file in place every few seconds."""
    from streams.catalog import all_detectors
    from streams.live.connect import connection
    from streams.live.land import Landing, run
    from streams.settings import limits
    from streams.watch.metrics import LANDER, Meter, answer

    keep = limits()
    at = connection(broker, kafka)
    meter = Meter(LANDER)
    if metrics is not None:
        answer(meter, metrics_address, metrics)
    counts, queues = usable(at, prefix)
    detectors = all_detectors()
    run(Landing(state, at, detectors, counts, queues, prefix, invoked(), keep, meter=meter))


def lag(
    broker: Broker = "",
    kafka: Security = [],  # noqa: B006
    prefix: Prefix = "",
    state: Annotated[
        Path | None,
        typer.Option("--state", parser=folder_named, help="Also what a lander has published there, from its Kafka."),
    ] = None,
    max_lag_s: Annotated[
        float | None, typer.Option(min=0, help="Exit 1 if anything is further behind; 60 s are normal.")
    ] = None,
    json: Json = False,
    ascii_only: Ascii = False,
) -> None:
    """How far behind the workers are, and who does what. Joins no group, changes nothing."""
    from streams.landing.state import fed_from
    from streams.live import lag as behind
    from streams.live.connect import connection
    from streams.report.answers import ENCODER
    from streams.report.lag import screen
    from streams.sources.named import sources

    known = fed_from(state) if state and not broker else ("", "")
    at, prefix = connection(broker or known[0], kafka), prefix or known[1]
    found = behind.lag(behind.facts(at, prefix, state, [s.name for s in sources(prefix)]))
    if json:
        give([ENCODER.encode(found).decode()])
    else:
        say(screen(found, f" {at.options(prefix)}", lambda command: with_state(command, state or STATE)), ascii_only)
    if max_lag_s is not None and (found.worst_s is None or found.worst_s > max_lag_s):
        raise typer.Exit(Exit.FOUND)
