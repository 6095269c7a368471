"""A number of partitions and a prefix enter, all topics of the live system leave: made, or compared with what is there.

All carry LogAppendTime. Of the sources because arrival, the brokers' stamp, is the only clock that is trusted; of ours
because retention goes by the stamp, and a producer whose clock is wrong must not delete or keep anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType
from confluent_kafka.cimpl import NewTopic

from detectors.events import STREAMS
from streams.live.connect import Connection
from streams.problems import Problem

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
PARTITIONS = 8
REPLICAS = 3  # or as many as there are brokers
WAIT_S, TRY_S, LOOK_S = 10.0, 1.0, 0.1
GRANT = "grant DescribeConfigs on the topics to this user"
APPEND_TIME = ("message.timestamp.type", "LogAppendTime")


class Topic(NamedTuple):
    name: str
    partitions: int
    keep_ms: int
    source: bool = False  # others write it

    @property
    def config(self) -> dict[str, str]:
        return dict([APPEND_TIME, ("retention.ms", str(self.keep_ms)), ("cleanup.policy", "delete")])


class Names(NamedTuple):
    """Ours, each with the prefix of the installation."""

    events: str  # rows, rejects and accounting, for the lander
    slices: str  # partial tables by key, for match
    tables: str  # final windows, for judge and the lander
    findings: str  # for the lander and the notifier; judge's own state
    ticks: str  # whose acknowledgements tell the brokers' time
    keys: str  # what match remembers for a day


def names(prefix: str = "") -> Names:
    return Names(*(f"{prefix}ah.{name}" for name in Names._fields))


def topics(partitions: int = PARTITIONS, prefix: str = "", sources: Sequence[str] = ()) -> list[Topic]:
    """partitions: of each source and of what is spread by key, hence the most workers that can share the work. Sources
    may have more (grow.py).

    sources: the topic of each stream, if not the prefix and the stream.
    """
    ours = names(prefix)
    return [
        *(Topic(n, partitions, 7 * DAY_MS, source=True) for n in sources or [prefix + s for s in STREAMS]),
        Topic(ours.events, partitions, 3 * DAY_MS),  # a lander may be away over a weekend
        Topic(ours.slices, partitions, 3 * DAY_MS),
        Topic(ours.tables, 1, 3 * DAY_MS),  # one writer of findings: windows have one order
        Topic(ours.findings, 1, 30 * DAY_MS),
        Topic(ours.ticks, 1, HOUR_MS),
        Topic(ours.keys, partitions, 5 * DAY_MS),  # match looks back a day, from slices that may be three days old
    ]


def admin(connection: Connection) -> AdminClient:
    """A client that a broker has answered; it must outlive the futures it gives."""
    errors: list[KafkaError] = []
    tell: dict[str, Any] = {"error_cb": errors.append, "log_level": 0}
    client = AdminClient({**connection.confluent(), **tell})
    until = time.monotonic() + WAIT_S
    while True:
        try:
            client.list_topics(timeout=TRY_S)
            return client
        except KafkaException as error:
            client.poll(0)  # only then the reasons are told
            if time.monotonic() > until or KafkaError._ALL_BROKERS_DOWN in {e.code() for e in errors}:
                reason = (errors or error.args)[0].str()
                then = f"check --broker, and whether Kafka runs there and speaks {connection.protocol}"
                raise Problem(connection.broker, f"no Kafka answers ({reason})", then) from None


def create(client: AdminClient, wanted: Sequence[Topic]) -> list[str]:
    """Makes what is not there, and says which; what is there stays as it is."""
    replicas = min(REPLICAS, len(client.list_topics(timeout=WAIT_S).brokers))
    there = partitions(client)
    new = [NewTopic(t.name, t.partitions, replicas, config=t.config) for t in wanted if t.name not in there]
    made = []
    for name, future in (client.create_topics(new) if new else {}).items():
        try:
            future.result()
            made.append(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # somebody else did meanwhile
                then = "ask who runs Kafka for the right to create topics, or to create this one"
                raise Problem(f"topic {name}", f"Kafka did not make it: {error.args[0].str()}", then) from None
    wait_for(client, dict.fromkeys(made, 1))
    return made


def wait_for(client: AdminClient, counts: Mapping[str, int]) -> None:
    """The controller answers before the brokers know: who asked them at once would be told of fewer partitions."""
    until = time.monotonic() + WAIT_S
    while missing := [t for t, n in counts.items() if partitions(client).get(t, 0) < n]:
        if time.monotonic() > until:
            then = "the same again in a while; what is there stays as it is"
            raise Problem(", ".join(sorted(missing)), "made, but the brokers do not show it yet", then)
        time.sleep(LOOK_S)


def partitions(client: AdminClient) -> dict[str, int]:
    """How many every topic has."""
    return {name: len(topic.partitions) for name, topic in client.list_topics(timeout=WAIT_S).topics.items()}


def queues(client: AdminClient, prefix: str = "") -> int:
    """The partitions of what is spread by key: as they are, else as they are made."""
    return partitions(client).get(names(prefix).slices, PARTITIONS)


def faults(
    client: AdminClient, wanted: Sequence[Topic], at: Connection, prefix: str = "", *, stamped: bool = False
) -> list[Problem]:
    """What would give wrong findings. stamped: the sources' own stamps are declared to be arrivals, as a tape's are."""
    there = partitions(client)
    found = _configs(client, [t.name for t in wanted if t.name in there])
    return [p for t in wanted for p in _faults(t, there.get(t.name, 0), found.get(t.name, {}), at, prefix, stamped)]


def _configs(client: AdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    every = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    asked: dict[Any, Any] = client.describe_configs(every, request_timeout=WAIT_S)
    try:
        return {r.name: {n: e.value for n, e in future.result().items()} for r, future in asked.items()}
    except KafkaException as error:
        late = error.args[0].code() == KafkaError._TIMED_OUT
        then = "is a broker away? The one inside asynchealth up shows none" if late else GRANT
        raise Problem("the topics' settings", f"Kafka does not show them: {error.args[0].str()}", then) from None


def _faults(
    topic: Topic, count: int, config: dict[str, str], at: Connection, prefix: str, stamped: bool
) -> Iterator[Problem]:
    thing = f"topic {topic.name}"
    if not count:
        yield Problem(thing, "not there", f"asynchealth topics create {at.options(prefix)}")
        return
    if not topic.source and count != topic.partitions:
        reason = f"it has {count} partitions, not {topic.partitions}, and whoever reads it would wait for others"
        yield Problem(thing, reason, f"--partitions {count}, or delete the topic and create it again")
    if not (topic.source and stamped) and config[APPEND_TIME[0]] != APPEND_TIME[1]:
        reason = "its records carry their producers' clocks, and one that is wrong would shift every finding"
        yield Problem(thing, reason, altered(topic.name, "=".join(APPEND_TIME), at.broker))
    if "compact" in config["cleanup.policy"]:
        reason = "compaction removes all but the last record of each key, before they are read"
        yield Problem(thing, reason, altered(topic.name, "cleanup.policy=delete", at.broker))
    if not topic.source and 0 <= int(config["retention.ms"]) < topic.keep_ms:
        reason = f"kept for {int(config['retention.ms']) / HOUR_MS:g} h, needed for {topic.keep_ms / HOUR_MS:g} h"
        yield Problem(thing, reason, altered(topic.name, f"retention.ms={topic.keep_ms}", at.broker))


def altered(topic: str, setting: str, broker: str) -> str:
    """Kafka's own command that changes one setting of a topic."""
    return f"kafka-configs.sh --bootstrap-server {broker} --alter --topic {topic} --add-config {setting}"
