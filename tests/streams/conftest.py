"""Real Kafka for the tests that need it: a given one, else one from Maven's artifacts, else a skip that says why.

And a small state with one finding, for those that change it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.live.embedded import EmbeddedBroker, embedded
from tests.cases import Case, cases
from tests.kafka import Broker, Unavailable
from tests.streams.report.states import of_case


def started(broker: Broker) -> Broker:
    """Where a skip would hide that nothing was tried, as in CI, it is a failure."""
    try:
        broker.start()
    except Unavailable as why:
        if os.environ.get("ASYNCHEALTH_NO_SKIP"):
            raise
        pytest.skip(f"no Kafka: {why}")
    return broker


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker that the session shares; tests name their own topics.

    They are of two groups, kafka and kafka-2, each with a broker in its process, since they mostly wait.
    """
    if given := os.environ.get("ASYNCHEALTH_TEST_KAFKA"):
        yield given
        return
    broker = started(Broker(tmp_path_factory.mktemp("kafka")))
    yield broker.bootstrap
    broker.stop()


@pytest.fixture
def private_kafka(tmp_path: Path) -> Iterator[Broker]:
    """A broker of one's own, to kill."""
    broker = started(Broker(tmp_path / "kafka"))
    yield broker
    broker.kill()


@pytest.fixture
def embedded_broker() -> Iterator[EmbeddedBroker]:
    """The broker inside this process; topics are made with its `create`."""
    with embedded() as broker:
        yield broker


@pytest.fixture(scope="session")
def storm_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shortest storm of retries, replayed."""

    def rows(case: Case) -> int:
        return sum(len(p) for parts in case.streams.values() for p in parts)

    storms = (c for detector, _, c in cases("fires_") if detector == "retry_storm")
    return of_case(tmp_path_factory.mktemp("storm"), min(storms, key=rows))


@pytest.fixture
def storm_state(storm_once: Path, tmp_path: Path) -> Path:
    return shutil.copytree(storm_once, tmp_path / "storm")
