"""What a person says of an incident of a live state goes to the topic `signals`, as an event that lands."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition
from typer.testing import CliRunner

from detectors.events import decode_json
from streams.cli import app
from streams.landing.state import LANDING
from streams.live.connect import Connection
from streams.live.embedded import EmbeddedBroker
from streams.live.tell import tell
from streams.problems import Problem

WAIT_S = 30


def test_an_acknowledgement_of_a_live_state_is_a_signal_in_its_topic(
    embedded_broker: EmbeddedBroker, storm_state: Path
) -> None:
    embedded_broker.create("signals", 1)
    (storm_state / LANDING).touch()  # by which a state is known to have a lander
    command = [
        "incident",
        "ack",
        "in-",
        "--by",
        "anna",
        "--broker",
        embedded_broker.bootstrap,
        "--state",
        str(storm_state),
    ]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0 and "is acknowledged" in result.output
    assert not (storm_state / "acks.jsonl").exists()
    consumer = Consumer({"bootstrap.servers": embedded_broker.bootstrap, "group.id": "test"})
    consumer.assign([TopicPartition("signals", 0, 0)])
    message = consumer.poll(WAIT_S)
    consumer.close()
    assert message is not None and not message.error()
    decoded = decode_json("signals", [message.value() or b""])
    (row,) = decoded.events.to_dicts()
    assert len(decoded.rejects) == 0
    assert (row["kind"], row["name"]) == ("change", "incident.ack") and row["subject"].startswith("in-")
    assert msgspec.json.decode(row["text"]) == {"by": "anna"}


def test_where_no_broker_takes_it_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.live.tell.WAIT_S", 2.0)
    with pytest.raises(Problem, match=r"not written to topic signals: .+\nNext: asynchealth topics check"):
        tell(Connection(broker="127.0.0.1:1"), "signals", b"{}")
