"""What /metrics, /health and /ready answer of a meter."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streams.problems import Problem
from streams.watch.metrics import ALIVE_S, LANDER, NOTIFIER, READY_S, WORKER, Measure, Meter, answer
from tests.kafka import free_port

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def asked(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, "nobody listens"


def samples(port: int) -> Samples:
    code, text = asked(port, "/metrics")
    families = text_string_to_metric_families(text) if code == 200 else ()
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def of(found: Samples, name: str, **labels: str) -> float | None:
    some = [v for (n, mine), v in found.items() if n == name and labels.items() <= dict(mine).items()]
    return sum(some) if some else None


@pytest.fixture
def served() -> Iterator[tuple[Meter, int]]:
    meter, port = Meter(WORKER), free_port()
    server = answer(meter, "127.0.0.1", port)
    yield meter, port
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("measure", sorted({*WORKER, *LANDER, *NOTIFIER}), ids=lambda m: m.name)
def test_names_follow_the_conventions_and_labels_can_have_few_values(measure: Measure) -> None:
    name, kind, labels, meaning = measure
    assert re.fullmatch(r"asynchealth(_[a-z]+)+", name) and meaning.endswith(".")
    assert (kind == "counter") == name.endswith("_total")
    assert set(labels) <= {"stream", "fate", "topic", "partition", "step", "detector", "level", "way", "outcome"}


def test_what_is_counted_adds_up_and_what_is_set_takes_the_old_ones_place(served: tuple[Meter, int]) -> None:
    meter, port = served
    meter.add("asynchealth_events_total", 2, "requests", "used")
    meter.add("asynchealth_events_total", 3, "requests", "used")
    meter.set("asynchealth_lag_messages", {("requests", "0"): 7, ("requests", "1"): 1})
    meter.set("asynchealth_lag_messages", {("requests", "1"): 4})
    found = samples(port)
    assert of(found, "asynchealth_events_total", stream="requests", fate="used") == 5
    assert of(found, "asynchealth_lag_messages") == 4
    assert of(found, "process_resident_memory_bytes")
    with pytest.raises(KeyError):
        meter.add("asynchealth_no_such_total", 1)


def test_a_loop_that_is_stuck_is_neither_healthy_nor_ready_and_says_so(served: tuple[Meter, int]) -> None:
    meter, port = served
    assert asked(port, "/health") == (200, "ok\n")
    assert asked(port, "/ready") == (503, "nothing to work on yet\n")
    meter.reach(True)
    assert asked(port, "/ready") == (200, "ok\n")
    now = time.monotonic()
    assert meter.unready(now + READY_S - 1) == ""
    assert "has not come round for 31 s" in meter.unhealthy(meter.beaten + ALIVE_S + 1)
    meter.beaten = now + READY_S
    assert meter.unready(now + READY_S + 5).startswith("Kafka has not answered for 35 s")
    assert asked(port, "/nowhere")[0] == 404


def test_a_port_that_is_taken_is_said_with_the_way_out(served: tuple[Meter, int]) -> None:
    with pytest.raises(Problem, match=rf"--metrics {served[1]} on 127.0.0.1: can't listen there"):
        answer(Meter(WORKER), "127.0.0.1", served[1])
