"""Topics on real Kafka: what is made passes, each setting that would give wrong findings is named with its remedy."""

from __future__ import annotations

import time
import uuid

import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from typer.testing import CliRunner

from streams.cli import app
from streams.live.connect import Connection
from streams.live.embedded import EmbeddedBroker
from streams.live.topics import HOUR_MS, Topic, admin, create, faults, names, partitions, topics
from streams.problems import Exit, Problem
from tests.kafka import free_port

pytestmark = pytest.mark.xdist_group("kafka")


@pytest.fixture
def client(kafka: str) -> AdminClient:
    return admin(Connection(broker=kafka))


@pytest.fixture
def wanted(client: AdminClient) -> list[Topic]:
    """Under a prefix of their own, and made."""
    wanted = topics(3, f"t{uuid.uuid4().hex[:8]}-")
    assert create(client, wanted) == [t.name for t in wanted]
    return wanted


def alter(client: AdminClient, topic: str, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    for done in client.incremental_alter_configs([resource]).values():
        done.result()
    for _ in range(100):  # the controller answers before the brokers know
        [shown] = client.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
        if shown.result()[name].value == value:
            return
        time.sleep(0.1)
    raise AssertionError(f"{topic} never had {name}={value}")


def test_topics_that_were_made_are_as_they_must_be(client: AdminClient, wanted: list[Topic], kafka: str) -> None:
    assert faults(client, wanted, Connection(broker=kafka)) == []
    there = partitions(client)
    assert {t.name: there[t.name] for t in wanted} == {t.name: t.partitions for t in wanted}
    assert {t.partitions for t in wanted} == {1, 3}


def test_what_is_there_is_not_made_again(client: AdminClient, wanted: list[Topic]) -> None:
    one_more = Topic(f"{wanted[0].name}-more", 2, HOUR_MS)
    assert create(client, [*wanted, one_more]) == [one_more.name]
    assert create(client, wanted) == []


def test_every_missing_topic_is_named_with_the_command_that_makes_it(client: AdminClient, kafka: str) -> None:
    missing = topics(3, "never-")
    found = [str(p) for p in faults(client, missing, Connection(broker=kafka), "never-")]
    then = f"asynchealth topics create --broker {kafka} --prefix never-"
    assert found == [f"topic {t.name}: not there\nNext: {then}" for t in missing]


@pytest.mark.parametrize(
    ("topic", "setting", "value", "remedy"),
    [
        ("requests", "message.timestamp.type", "CreateTime", "message.timestamp.type=LogAppendTime"),
        ("ah.ticks", "message.timestamp.type", "CreateTime", "message.timestamp.type=LogAppendTime"),
        ("write_log", "cleanup.policy", "compact", "cleanup.policy=delete"),
        ("ah.keys", "retention.ms", "3600000", "retention.ms=432000000"),
    ],
)
def test_a_wrong_setting_is_named_with_the_command_that_changes_it(
    client: AdminClient, wanted: list[Topic], kafka: str, topic: str, setting: str, value: str, remedy: str
) -> None:
    [name] = [t.name for t in wanted if t.name.endswith(topic)]
    alter(client, name, setting, value)
    [found] = faults(client, wanted, Connection(broker=kafka))
    assert str(found).startswith(f"topic {name}: ")
    assert f"kafka-configs.sh --bootstrap-server {kafka} --alter --topic {name} --add-config {remedy}" in str(found)
    changed, _, to = remedy.partition("=")
    alter(client, name, changed, to)  # the remedy, as Kafka's own tool would apply it
    assert faults(client, wanted, Connection(broker=kafka)) == []


def test_stamps_of_sources_may_be_declared_arrivals_but_ours_may_not(
    client: AdminClient, wanted: list[Topic], kafka: str
) -> None:
    by_name = {t.name.partition("-")[2]: t.name for t in wanted}
    for topic in ("heartbeats", "ah.findings"):
        alter(client, by_name[topic], "message.timestamp.type", "CreateTime")
    assert len(faults(client, wanted, Connection(broker=kafka))) == 2
    [left] = faults(client, wanted, Connection(broker=kafka), stamped=True)
    assert by_name["ah.findings"] in str(left)


def test_a_topic_of_ours_with_another_number_of_partitions_is_refused_but_a_source_has_what_it_has(
    client: AdminClient, wanted: list[Topic], kafka: str
) -> None:
    four = [t._replace(partitions=4) if t.partitions == 3 else t for t in wanted]
    found = [str(p) for p in faults(client, four, Connection(broker=kafka))]
    ours = [t.name for t in four if t.partitions == 4 and not t.source]
    assert [p.partition(": ")[0] for p in found] == [f"topic {name}" for name in ours]
    assert len(ours) == 3
    assert all("it has 3 partitions, not 4" in p and "--partitions 3" in p for p in found)


def test_names_and_topics_are_the_same(wanted: list[Topic]) -> None:
    prefix = wanted[0].name.removesuffix("requests")
    assert [t.name for t in wanted if not t.source] == list(names(prefix))


def test_a_wrong_address_is_named_with_the_reason() -> None:
    nobody = f"127.0.0.1:{free_port()}"
    with pytest.raises(Problem, match=f"{nobody}: no Kafka answers .*Connection refused.*\nNext: check --broker"):
        admin(Connection(broker=nobody))


def test_the_embedded_broker_takes_the_same_topics(embedded_broker: EmbeddedBroker) -> None:
    for topic in topics(3):
        embedded_broker.create(topic.name, topic.partitions)
    there = partitions(admin(Connection(broker=embedded_broker.bootstrap)))
    assert there == {t.name: t.partitions for t in topics(3)}


def test_people_make_check_and_are_told_what_is_wrong(kafka: str, client: AdminClient) -> None:
    prefix = f"t{uuid.uuid4().hex[:8]}-"
    options = ["--broker", kafka, "--partitions", "2", "--prefix", prefix]
    before = CliRunner().invoke(app, ["topics", "check", *options])
    assert before.exit_code == Exit.USAGE
    assert before.output.count("not there\nNext: ") == len(topics())
    made = CliRunner().invoke(app, ["topics", "create", *options])
    assert made.exit_code == 0
    assert made.output.count("   made\n") == len(topics())
    again = CliRunner().invoke(app, ["topics", "create", "--broker", kafka, "--partitions", "3", "--prefix", prefix])
    assert again.output == made.output.replace("   made\n", "   was there\n")
    after = CliRunner().invoke(app, ["topics", "check", *options])
    assert after.exit_code == 0, after.output
    assert f"All {len(topics())} topics are as they must be." in after.output
    alter(client, f"{prefix}requests", "message.timestamp.type", "CreateTime")
    wrong = CliRunner().invoke(app, ["topics", "check", *options])
    assert wrong.exit_code == Exit.USAGE
    assert "message.timestamp.type=LogAppendTime" in wrong.output
    tape = CliRunner().invoke(app, ["topics", "check", *options, "--stamps-are-arrivals"])
    assert tape.exit_code == 0, tape.output


def test_what_is_told_next_can_be_typed_as_it_stands(kafka: str, client: AdminClient) -> None:
    """Whatever the prefix and the number of partitions; also where one topic of an installation is gone."""
    prefix = f"t{uuid.uuid4().hex[:8]}-"

    def typed(line: str) -> str:
        done = CliRunner().invoke(app, line.split()[1:])
        assert done.exit_code == (Exit.USAGE if "not there" in done.output else 0), done.output
        return done.output

    made = typed(f"asynchealth topics create --broker {kafka} --partitions 2 --prefix {prefix}")
    assert "All 10 topics are as they must be." in typed(next_of(made))
    client.delete_topics([f"{prefix}ah.keys"])[f"{prefix}ah.keys"].result()
    wait_for_none(client, f"{prefix}ah.keys")
    missing = typed(next_of(made))
    assert "All 10 topics are as they must be." in typed(next_of(typed(next_of(missing))))


def next_of(said: str) -> str:
    return said.rpartition("Next: ")[2].strip()


def wait_for_none(client: AdminClient, topic: str) -> None:
    until = time.monotonic() + 10
    while topic in partitions(client):
        assert time.monotonic() < until
        time.sleep(0.1)
