"""What goes wrong with ourselves is a finding that people see: rows that come too late for all, copies that differ."""

from __future__ import annotations

import json
import random
import re
import signal
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from confluent_kafka import Producer

from detectors.detector import Settings
from detectors.events import encode_json
from detectors.windows import MINUTE_US
from streams.live.match import TABLES
from streams.live.numbered import Reader, head_of, pack, unpack
from streams.live.reduce import EVENTS, Out
from streams.live.ticks import tick
from streams.replay import rebuild
from streams.settings import CONFIG
from tests.cases import Case
from tests.cases.timeout_ratio import fires_one_in_five
from tests.harness import Result, one_pass
from tests.streams.live.chain import Chain, until
from tests.streams.live.test_worker import PATIENCE_S, Play, landing, workers
from tests.streams.tape import asked, asynchealth

STRAYS, BEHIND_S = 3, 20


def calls() -> Case:
    """Kafka keeps milliseconds."""
    parts = fires_one_in_five().streams["requests"]
    number = pl.int_range(pl.len(), dtype=pl.Int64)
    return Case({"requests": [p.with_columns(pl.col("arrival").dt.truncate("1ms"), offset=number) for p in parts]})


def others(result: Result) -> Result:
    """Without what we say of ourselves."""
    tables = {n: f for n, f in result.tables.items() if n != "accounts"}
    return Result(tables, result.findings.filter(pl.col("detector") != "pipeline"))


def landed(play: Play, rows: int) -> Path:
    with landing(play, rows):
        return play.folder / "state"


def ours(folder: Path, kind: str) -> list[dict[str, Any]]:
    said = asynchealth("findings", "--json", "--state", folder).stdout.splitlines()
    return [f for f in map(json.loads, said) if (f["detector"], f["kind"]) == ("pipeline", kind)]


@pytest.mark.xdist_group("kafka-2")
def test_a_row_of_a_time_that_was_closed_is_counted_said_and_in_no_table(kafka: str, tmp_path: Path) -> None:
    """Its partition had been read to its end and the clock was past it; then it landed there all the same."""
    case = calls()
    whole = one_pass(case)
    play = Play(kafka, case, f"o{uuid.uuid4().hex[:8]}.", tmp_path)
    play.produce()
    closed_us = until(case)
    with workers(play, 1):
        play.wait()
        behind = case.streams["requests"][0].tail(STRAYS)
        stamp = closed_us // 1_000 - BEHIND_S * 1_000
        at = pl.lit(stamp * 1_000).cast(pl.Datetime("us", "UTC"))
        producer = Producer({"bootstrap.servers": kafka})
        for value in encode_json("requests", behind.with_columns(timestamp=at).drop("arrival", "offset")):
            producer.produce(f"{play.prefix}requests", value, partition=0, timestamp=stamp)
        assert producer.flush(PATIENCE_S) == 0
        producer.produce(f"{play.prefix}ah.ticks", tick(closed_us + 5 * MINUTE_US))
        assert producer.flush(PATIENCE_S) == 0
        play.wait(closed_us + 5 * MINUTE_US)
    assert others(play.result()[0]).differs(others(whole)) == []
    folder = landed(play, sum(map(len, case.streams["requests"])) + STRAYS)
    for rebuilt in (False, True):
        if rebuilt:
            rebuild(folder, Settings())
        assert asked(folder, "SELECT sum(stray)::BIGINT FROM accounting") == [(STRAYS,)]
        assert asked(folder, "SELECT count(*) FROM requests WHERE fate = 'stray'") == [(STRAYS,)]
        measured = int(whole.tables["calls"]["attempts"].sum())
        assert asked(folder, "SELECT sum(attempts)::BIGINT FROM calls") == [(measured,)]
        (found,) = ours(folder, "stray")
        assert (found["subject"], found["level"], found["count"]) == ("requests/0", "warn", STRAYS)
        assert found["facts"]["behind_s"] == BEHIND_S and len(found["proof"]) == 1
        shown = asynchealth("report", "--state", folder).stdout.decode()
        assert f"{STRAYS} stray" in shown
        said = "3 rows came up to 20 s after their time was closed: not judged"
        assert re.search(rf"- requests/0: +pipeline, {said}", shown)


# ---- copies that differ ---------------------------------------------------------------------------------------------

SAID = 16  # batches, of which six partitions without a record have twelve
OWN = '''
"""Calls that took long."""

import polars as pl
from detectors.detector import ratio
from detectors.table import Low, Rows, Sum, Table
from detectors.windows import MINUTE_US

SLOW = pl.col("duration_ms") > 1e6
COLUMNS = {"rows": Sum(weighted=False), "calls": Sum(), "slow": Sum(SLOW), "slow_proof": Low(pl.col("coord"))}
KEY = ("caller", "service_name")
TOOK = Table(name="took", key=(*KEY, "side"), sources=(Rows(stream="requests"),), columns=COLUMNS)
long = ratio("long", TOOK, of="slow", by="calls", subject=KEY, over_us=MINUTE_US, min_volume=50, warn=0.05, page=0.9)
'''


@pytest.mark.xdist_group("kafka-2")
def test_workers_that_say_one_time_in_two_ways_are_a_finding_and_the_first_counts(kafka: str, tmp_path: Path) -> None:
    """One measures a table of its own; it dies when what it said is published, and before that is committed."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "long.py").write_text(OWN)
    (tmp_path / "own" / "long.md").write_text("# long: look\n")
    case = calls()
    play = Play(kafka, case, f"o{uuid.uuid4().hex[:8]}.", tmp_path)
    play.produce()
    (tmp_path / CONFIG).write_text('detectors = ["./own"]\n')
    assert play.worker(dies_after=SAID, commit_s=600).wait(PATIENCE_S) == -signal.SIGKILL
    (tmp_path / CONFIG).unlink()
    with workers(play, 1):
        play.wait()
    folder = landed(play, sum(map(len, case.streams["requests"])))
    found = ours(folder, "copies")
    assert found and {f["subject"] for f in found} <= {"requests/0", "requests/1"}
    assert {f["level"] for f in found} == {"warn"}
    assert "in two ways: the first of each counts" in asynchealth("report", "--state", folder).stdout.decode()
    expected = others(one_pass(case)).findings
    columns = ["finding_id", "level", "onset", "last", "resolved", "value", "count"]
    found_of = {tuple(row) for row in asked(folder, f"SELECT {', '.join(columns)} FROM findings")}
    assert expected.select(columns).rows() and {*expected.select(columns).rows()} <= found_of


class Twofold(Chain):
    """Of what is said to match (or to judge) every fourth body comes again at once, without its first row."""

    spoilt = 0
    of_tables = False

    def _publish(self, said: Sequence[Out]) -> None:
        super()._publish(said)
        if not self.of_tables:
            for out in said:
                if out.queue != EVENTS and (value := self._other(out)):
                    self.slices[out.queue].append((out.key, value))

    def match(self, queue: int, dies: bool = False) -> None:
        before = len(self.windows)
        super().match(queue, dies)
        for key, value in self.windows[before:] if self.of_tables else []:
            if other := self._other(Out(TABLES, key, value)):
                self.windows.append((key, other))

    def _other(self, out: Out) -> bytes:
        if head_of(out.key).kind != "rows" or self.dice.random() > 0.25:
            return b""
        other = pack({name: frame.tail(-1) for name, frame in unpack(out.value).items()})
        self.spoilt += bool(other)
        return other

    def _read(self, log: list[tuple[bytes, bytes]], producers: list[str]) -> list[Any]:
        reader = Reader(producers)
        for offset, message in enumerate(log):
            reader.take(offset, *message)
        return reader.below(2**62)


@pytest.mark.parametrize("kills", [0, 0.1])
@pytest.mark.parametrize("of_tables", [False, True])
def test_every_copy_that_differs_is_told_and_changes_nothing_else(of_tables: bool, kills: float) -> None:
    case = fires_one_in_five()
    chain = Twofold(case, "timeout_ratio+pipeline", random.Random(1), queues=2, steps=(20, 100))
    chain.of_tables = of_tables
    result = chain.run(kills, until(case))
    found = result.findings.filter(detector="pipeline", kind="copies")
    assert chain.spoilt > 20
    partitions = {"ah.slices/0", "ah.slices/1"} if of_tables else {"requests/0", "requests/1"}
    assert {*found["subject"]} >= partitions
    if not kills:
        assert {*found["subject"]} == partitions
        assert result.tables["accounts"]["differing"].sum() == (0 if of_tables else chain.spoilt)
    expected = one_pass(case, only="timeout_ratio")
    assert result.findings.filter(detector="timeout_ratio").equals(expected.findings)
    assert result.tables["calls"].equals(expected.tables["calls"])
