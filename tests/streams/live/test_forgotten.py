"""What a queue kept of a day of keys is gone when its next owner comes: what looks back on it is unknown, not clear."""

from __future__ import annotations

import random
import subprocess
import time
import uuid
from pathlib import Path

import polars as pl
import pytest
from confluent_kafka import OFFSET_END, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from detectors.windows import HOUR_US, MINUTE_US, WINDOW_US
from streams.live.numbered import Reader, head_of
from streams.live.ticks import tick
from tests.cases import Case, cases
from tests.harness import one_pass
from tests.streams.live.chain import Chain, until
from tests.streams.live.test_ourselves import landed
from tests.streams.live.test_worker import PARTITIONS, PATIENCE_S, Play, workers
from tests.streams.tape import asked, asynchealth

DAY = 24 * HOUR_US // WINDOW_US  # in windows
(TWICE,) = (c for d, n, c in cases("fires_") if (d, n) == ("duplicate_key", "fires_possibly_applied_twice"))


def lost(log: list[tuple[bytes, bytes]], queues: int) -> list[tuple[int, int]]:
    """The windows that were said to lack the keys."""
    reader = Reader([str(q) for q in range(queues)])
    for offset, message in enumerate(log):
        reader.take(offset, *message)
    return reader.lost_of["keys"].ranges if "keys" in reader.lost_of else []


def test_the_windows_of_a_day_after_are_said_as_lost_and_nothing_is_found_because_of_it() -> None:
    chain = Chain(TWICE, "duplicate_key", random.Random(1), queues=1, steps=(50,))
    for key in chain.source:
        chain.reduce(key, len(chain.source[key][0]) // 2)
    chain.match(0)
    number = chain.matchers[0].next
    assert number and chain.kept[0] and lost(chain.windows, 1) == []
    chain.kept[0].clear()
    chain.matchers = [chain._matcher(0)]
    result = chain.run(0, until(TWICE))
    assert lost(chain.windows, 1) == [(number, chain.matchers[0].next)]
    whole = one_pass(TWICE, only="duplicate_key")
    who = ["kind", "subject"]
    assert len(whole.findings) and result.findings.join(whole.findings, on=who, how="anti").is_empty()


def test_it_lasts_as_long_as_a_key_is_looked_back_on_and_no_longer() -> None:
    chain = Chain(TWICE, "duplicate_key", random.Random(1), queues=1)
    first = int(chain.source["requests", 0][1][0]) // WINDOW_US
    chain.committed[0] = (0, str(first))
    matcher = chain._matcher(0)
    assert matcher.forgotten.ranges == [(first - DAY, first)]
    lacking = matcher._lacking(first + 2 * DAY)["keys"].ranges
    assert lacking == [(first, first + DAY)]


@pytest.mark.xdist_group("kafka-2")
def test_a_topic_of_keys_that_was_emptied_stops_no_worker_and_why_not_says_what_is_unknown(
    kafka: str, tmp_path: Path
) -> None:
    parts = [
        p.with_columns(pl.col("arrival").dt.truncate("1ms"), offset=pl.int_range(pl.len(), dtype=pl.Int64))
        for p in TWICE.streams["requests"]
    ]
    case = Case({"requests": parts})
    play = Play(kafka, case, f"k{uuid.uuid4().hex[:8]}.", tmp_path, stderr=subprocess.PIPE)
    play.produce()
    with workers(play, 1):
        play.wait()
        time.sleep(2)  # its commits come three times a second
    admin = AdminClient({"bootstrap.servers": kafka})
    keys = f"{play.prefix}ah.keys"
    assert any(play.log("keys", p) for p in range(PARTITIONS))
    emptied = admin.delete_records([TopicPartition(keys, p, OFFSET_END) for p in range(PARTITIONS)])
    assert all(f.result().low_watermark for f in emptied.values())
    closed_us = until(case)
    with workers(play, 1) as (worker,):
        producer = Producer({"bootstrap.servers": kafka})
        producer.produce(f"{play.prefix}ah.ticks", tick(closed_us + 5 * MINUTE_US))
        assert producer.flush(PATIENCE_S) == 0
        play.wait(closed_us + 5 * MINUTE_US)
        worker.terminate()
        _, said = worker.communicate(timeout=PATIENCE_S)
    assert b"ah.keys/0: has not all keys from" in said and b"the rest goes on" in said
    folder = landed(play, sum(map(len, parts)))
    ((what, since_us, until_us),) = asked(folder, "SELECT what, epoch_us(since), epoch_us(until) FROM lost")
    ends = {head_of(key).hi for key, _ in play.log("tables")}
    assert (what, until_us) == ("keys", max(ends) * WINDOW_US) and since_us <= closed_us
    for command in (("report",), ("findings",), ("why-not", "duplicate_key"), ("doctor",)):
        shown = asynchealth(*command, "--state", folder).stdout.decode()
        assert "(of keys a part was lost)" in shown, command
