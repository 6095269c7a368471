"""Commands around Kafka: topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from streams.problems import Exit

if TYPE_CHECKING:
    from streams.live.topics import Topic

Broker = Annotated[str, typer.Option("--broker", help="host:port of Kafka; several with commas between them.")]
Security = Annotated[
    list[str],
    typer.Option("--kafka", help="tls=true, mechanism=SCRAM-SHA-512, username=…; secrets in the environment or file."),
]
Partitions = Annotated[int, typer.Option(min=1, help="Of each source: the most workers that can share the work.")]
Prefix = Annotated[str, typer.Option(help="Before every topic's name: a second installation on one Kafka.")]

topics = typer.Typer(no_args_is_help=True, help="Kafka's topics: those that are read and those of asynchealth.")


def register(app: typer.Typer) -> None:
    app.add_typer(topics, name="topics")
    topics.command()(create)
    topics.command()(check)


def create(broker: Broker = "", kafka: Security = [], partitions: Partitions = 8, prefix: Prefix = "") -> None:  # noqa: B006
    """Make the topics that are not there yet. What is there stays as it is: topics check says whether it will do."""
    from streams.live import topics as kafka_topics
    from streams.live.connect import connection

    at = connection(broker, kafka)
    wanted = kafka_topics.topics(partitions, prefix)
    made = kafka_topics.create(kafka_topics.admin(at), wanted)
    for topic in wanted:
        typer.echo(f"{_line(topic)}   {'made' if topic.name in made else 'was there'}")
    typer.echo(f"Next: asynchealth topics check --broker {at.broker}")


def check(
    broker: Broker = "",
    kafka: Security = [],  # noqa: B006
    partitions: Partitions = 8,
    prefix: Prefix = "",
    stamped: Annotated[
        bool,
        typer.Option("--stamps-are-arrivals", help="The sources' own stamps are when records arrived, as in a tape."),
    ] = False,
) -> None:
    """Say whether the topics are as they must be, and what changes those that are not."""
    from streams.live import topics as kafka_topics
    from streams.live.connect import connection

    at = connection(broker, kafka)
    wanted = kafka_topics.topics(partitions, prefix)
    client = kafka_topics.admin(at)
    faults = kafka_topics.faults(client, wanted, at.broker, stamped=stamped)
    for fault in faults:
        typer.echo(str(fault), err=True)
    if faults:
        raise typer.Exit(Exit.USAGE)
    there = kafka_topics.partitions(client)
    for topic in wanted:
        typer.echo(_line(topic._replace(partitions=there[topic.name])))
    typer.echo(f"All {len(wanted)} topics are as they must be.")


def _line(topic: Topic) -> str:
    kept = f"kept {topic.keep_ms // 3_600_000:>3} h" if not topic.source else "of your services"
    return f"{topic.name:<16}  {topic.partitions:>3} partition{'s' if topic.partitions > 1 else ' '}  {kept}"
