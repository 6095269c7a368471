"""Workers on real Kafka: tables and findings equal those of one pass, by one worker and by several that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from detectors.detector import Detector
from detectors.engine import finding, findings
from detectors.events import STREAMS, encode_json
from detectors.windows import SLICE_US
from streams.catalog import all_detectors
from streams.landing import state
from streams.laws.runs import tables_of
from streams.live.judge import PRODUCER, left
from streams.live.numbered import head_of, unpack
from streams.live.ticks import tick
from streams.live.topics import create, topics
from streams.live.transport import FAILED
from streams.settings import CONFIG
from streams.sources.files import READABLE
from tests.cases import Case, cases
from tests.cases.timeout_ratio import fires_one_in_five
from tests.harness import Result, everything, one_pass
from tests.streams.live.chain import Chain, last_arrival, until
from tests.streams.live.logs import copies, read_log, taken
from tests.streams.tape import ROOT, asked

pytestmark = pytest.mark.xdist_group("kafka")
PARTITIONS = 2
PATIENCE_S = 150


def tape() -> Case:
    """Every firing case at once; Kafka keeps milliseconds, so that is what arrivals are here."""
    streams: dict[str, list[pl.DataFrame]] = {}
    every = [case for _, _, case in cases("fires_")]
    for stream in STREAMS:
        for p in range(PARTITIONS):
            parts = [c.streams[stream][p] for c in every if p < len(c.streams.get(stream, []))]
            if not parts:
                continue
            whole = pl.concat(parts, how="diagonal").drop("offset", strict=False).sort("arrival", maintain_order=True)
            number = pl.int_range(pl.len(), dtype=pl.Int64)
            streams.setdefault(stream, []).append(
                whole.with_columns(arrival=pl.col("arrival").dt.truncate("1ms"), offset=number)
            )
    return Case(streams)


@dataclass
class Play:
    """One tape on topics of its own, and what workers made of it."""

    bootstrap: str
    case: Case
    prefix: str
    folder: Path
    detectors: Sequence[Detector] = field(default_factory=lambda: everything()[1])
    stderr: int | None = None  # of workers; None: where ours goes

    def worker(
        self, dies_after: int = 0, ahead_s: int = 0, commit_s: float = 0.3, sources: Mapping[str, int] | None = None
    ) -> subprocess.Popen[bytes]:
        end = str(last_arrival(self.case))
        arguments = [self.bootstrap, self.prefix, str(PARTITIONS), end, str(self.folder), json.dumps(sources or {})]
        command = [sys.executable, "-m", "tests.streams.live.one_worker", *arguments]
        more = {"DIES_AFTER": str(dies_after), "AHEAD_S": str(ahead_s), "COMMIT_S": str(commit_s)}
        more["CONFIG"] = str(self.folder / CONFIG)
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **more}, stderr=self.stderr)

    def lander(self) -> subprocess.Popen[bytes]:
        arguments = [self.bootstrap, self.prefix, str(PARTITIONS), str(self.folder / "state")]
        command = [sys.executable, "-m", "tests.streams.live.one_lander", *arguments]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)

    def wait_landed(self) -> None:
        """Until the readable file tells of all that was judged, and of all rows."""
        rows = sum(len(p) for parts in self.case.streams.values() for p in parts)
        for _ in range(PATIENCE_S):
            con = state.open_readable(self.folder / "state")
            judged, next_window = con.execute("SELECT judged, next_window FROM landed").fetchall()[0]
            (read,) = con.execute("SELECT coalesce(sum(read), 0) FROM accounting").fetchall()[0]
            con.close()
            if judged == self.judged() and next_window >= judged and read == rows:
                return
            time.sleep(1)
        raise AssertionError(f"landed {read} of {rows} rows, findings up to {judged} of {self.judged()}")

    def landed_differs(self, expected: Result) -> list[str]:
        """Tables whose rows are not as many, streams whose rows are not, and findings that are not the same."""
        con = state.open_readable(self.folder / "state")
        count = {n: con.execute(f'SELECT count(*) FROM "{n}"').fetchall()[0][0] for n in (*expected.tables, *STREAMS)}
        wanted = {n: len(f) for n, f in expected.tables.items()}
        wanted |= {s: sum(map(len, self.case.streams.get(s, []))) for s in STREAMS}
        columns = ["finding_id", "level", "certainty", "onset", "last", "resolved", "value", "count", "facts"]
        found = con.sql("FROM findings ORDER BY finding_id").pl().select(columns)
        con.close()
        same = found.equals(expected.findings.select(columns))
        return [n for n in wanted if wanted[n] != count[n]] + ([] if same else ["findings"])

    def produce(self, case: Case | None = None) -> None:
        """Topics, and all records; or those of another case, as of the first hours."""
        self.make()
        self.send(case or self.case)

    def make(self) -> None:
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        wanted = topics(PARTITIONS, self.prefix)
        create(admin, [t for t in wanted if not t.source])
        keep = {"retention.ms": "-1"}  # their stamps are the tape's arrivals, which are long past
        sources = [NewTopic(t.name, t.partitions, 1, config=keep) for t in wanted if t.source]
        for future in admin.create_topics(sources).values():
            future.result()

    def send(self, case: Case, before_us: int = 0, since_us: int = 0) -> None:
        """What of it arrived then, or all of it, and the promise that it is all."""
        before_us = before_us or until(case)
        ordered = {"enable.idempotence": True}  # else what is sent again may come twice, and behind what followed it
        producer = Producer({"bootstrap.servers": self.bootstrap, "linger.ms": 20, **ordered})
        for stream, parts in case.streams.items():
            for p, part in enumerate(parts):
                some = part.filter(pl.col("arrival").cast(pl.Int64).is_between(since_us, before_us, closed="left"))
                stamps = some["arrival"].dt.epoch("ms").to_list()
                for stamp, value in zip(stamps, encode_json(stream, some.drop("arrival", "offset")), strict=True):
                    producer.produce(self.prefix + stream, value, partition=p, timestamp=stamp)
                    producer.poll(0)
        producer.produce(f"{self.prefix}ah.ticks", tick(before_us))
        assert producer.flush(PATIENCE_S) == 0

    def log(self, topic: str, partition: int = 0) -> list[tuple[bytes, bytes]]:
        return read_log(self.bootstrap, f"{self.prefix}ah.{topic}", partition)

    def judged(self) -> int:
        heads = [head_of(key) for key, _ in self.log("findings")]
        return max((h.hi for h in heads if h.kind == "state"), default=0)

    def wait(self, until_us: int = 0) -> None:
        """Until all is judged that is final at a time: when the tape has ended, unless another is given."""
        end = ((until_us or until(self.case)) - 30_000_000) // 10_000_000
        for _ in range(PATIENCE_S):
            if self.judged() >= end:
                return
            time.sleep(1)
        raise AssertionError(f"judged up to window {self.judged()} of {end} after {PATIENCE_S} s")

    def result(self) -> tuple[Result, int]:
        """Tables, findings, and how many messages came again, in all topics."""
        by_name = {t.name: t for t in tables_of(self.detectors)}
        said = taken(self.log("tables"), [str(q) for q in range(PARTITIONS)])
        frames: dict[str, list[pl.DataFrame]] = {}
        for one in said:
            for name, rows in one.frames.items():
                frames.setdefault(name, []).append(rows)
        log = self.log("findings")
        changes = taken([m for m in log if head_of(m[0]).kind != "state"], [PRODUCER])
        told = [r for c in changes for r in c.frames["changes"].drop("final_at").to_dicts()]
        last: dict[str, dict[str, Any]] = {r["finding_id"]: r | {"config": ""} for r in told}
        states = {head_of(key).hi: value for key, value in log if head_of(key).kind == "state"}
        open_ = left(states[max(states)]).episodes
        for d in self.detectors:
            for key, episode in open_[d.name].open.items():
                row = finding(d, "", key, episode)
                last[str(row["finding_id"])] = row
        merged = {n: by_name[n].merge(pl.concat(f)) for n, f in frames.items()}
        return Result(merged, findings(list(last.values())).sort("finding_id")), self.copies()

    def copies(self) -> int:
        logs = [self.log(t, p) for t in ("slices", "events") for p in range(PARTITIONS)]
        return sum(map(copies, [*logs, self.log("tables"), self.log("findings")]))


@pytest.fixture
def play(kafka: str, tmp_path: Path) -> Play:
    made = Play(kafka, tape(), f"w{uuid.uuid4().hex[:8]}.", tmp_path)
    made.produce()
    return made


@contextmanager
def workers(play: Play, n: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The clock of each is an hour ahead of the one before."""
    running = [play.worker(ahead_s=3_600 * i) for i in range(n)]
    try:
        yield running
    finally:
        for w in running:
            w.kill()
            w.wait()


@contextmanager
def landing(play: Play, rows: int) -> Iterator[subprocess.Popen[bytes]]:
    """A lander that has landed so many rows and all that was judged, and ends with the block as it should."""
    lander, folder = play.lander(), play.folder / "state"
    wanted = (rows, *[play.judged()] * 2)
    how_far = "SELECT (SELECT coalesce(sum(read), 0)::BIGINT FROM accounting), judged, next_window FROM landed"
    try:
        found: list[Any] = []
        for _ in range(PATIENCE_S):
            time.sleep(1)
            runs = (folder / "lock").exists() and (folder / "lock").read_text() == str(lander.pid)
            if runs and (folder / READABLE).exists() and (found := asked(folder, how_far)) == [wanted]:
                break
        assert found == [wanted]
        yield lander
        lander.send_signal(signal.SIGINT)
        _, said = lander.communicate(timeout=PATIENCE_S)
        assert lander.returncode == 0, said
    finally:
        lander.kill()
        lander.wait()


@pytest.fixture(scope="module")
def expected() -> Result:
    case = tape()
    assert last_arrival(case) > 0
    result = one_pass(case)
    assert result.findings["detector"].n_unique() >= 8
    return result


def test_one_worker_gives_what_one_pass_gives_and_a_killed_lander_lands_it(play: Play, expected: Result) -> None:
    with workers(play, 1):
        first = play.lander()
        play.wait()
        first.kill()
        first.wait()
    result, _ = play.result()
    assert result.differs(expected) == []
    for _ in range(2):
        killed = play.lander()
        time.sleep(2)
        killed.kill()
        killed.wait()
    last = play.lander()
    play.wait_landed()
    last.terminate()
    assert last.wait(PATIENCE_S) == 0
    assert play.landed_differs(expected) == []


def test_a_second_lander_on_one_state_is_refused(play: Play) -> None:
    first = play.lander()
    try:
        for _ in range(PATIENCE_S):
            if (play.folder / "state" / READABLE).exists():
                break
            time.sleep(0.2)
        second = play.lander()
        _, said = second.communicate(timeout=PATIENCE_S)
        assert b"locked by another asynchealth" in said and second.returncode != 0
    finally:
        first.kill()
        first.wait()


def test_workers_killed_between_published_and_committed_give_it_too(play: Play, expected: Result) -> None:
    dice = random.Random(1)
    for _ in range(3):
        with workers(play, 0) as running:
            running.append(play.worker(dies_after=dice.randrange(2, 9)))
            assert running[0].wait(PATIENCE_S) == -signal.SIGKILL
    with workers(play, 2):
        play.wait()
    result, copies = play.result()
    assert result.differs(expected) == []
    assert copies > 0


# ---- a table of one's own that raises on one record for ever ---------------------------------------------------------

POISON_MS = 41.5
BRITTLE = f'''
"""Calls that were checked; its check has a bug."""

import polars as pl
from detectors.detector import ratio
from detectors.table import Low, Rows, Sum, Table
from detectors.windows import MINUTE_US


def check(ms):
    if ms == {POISON_MS}:
        raise ZeroDivisionError("a bug of ours")
    return int(ms > 1_000)


SLOW = pl.col("duration_ms").map_elements(check, return_dtype=pl.Int64)
COLUMNS = {{"rows": Sum(weighted=False), "calls": Sum(), "slow": Sum(SLOW), "slow_proof": Low(pl.col("coord"))}}
KEY = ("caller", "service_name")
CHECKED = Table(name="checked", key=(*KEY, "side"), sources=(Rows(stream="requests"),), columns=COLUMNS)
LIMITS = {{"over_us": MINUTE_US, "min_volume": 50, "warn": 0.05, "page": 0.9}}
brittle = ratio("brittle", CHECKED, of="slow", by="calls", subject=KEY, **LIMITS)
'''


def poisoned(case: Case, record: int) -> Case:
    """Kafka keeps milliseconds. Of the first partition one record is what the check can't bear."""
    parts = [p.with_columns(arrival=pl.col("arrival").dt.truncate("1ms")) for p in case.streams["requests"]]
    worse = pl.when(pl.int_range(pl.len()) == record).then(POISON_MS).otherwise("duration_ms").alias("duration_ms")
    numbered = [p.with_columns(offset=pl.int_range(pl.len(), dtype=pl.Int64)) for p in parts]
    return Case({"requests": [numbered[0].with_columns(worse), numbered[1]]})


def rejects(play: Play) -> list[tuple[int, str]]:
    bodies = [unpack(value) for p in range(PARTITIONS) for _, value in play.log("events", p)]
    return [row for b in bodies if "rejects" in b for row in b["rejects"].select("offset", "reason").rows()]


def test_a_record_that_a_table_of_ones_own_never_takes_is_set_aside_at_the_third_time(
    kafka: str, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "brittle.py").write_text(BRITTLE)
    (tmp_path / "own" / "brittle.md").write_text("# brittle: mend the check\n")
    (tmp_path / CONFIG).write_text('detectors = ["./own"]\n')
    detectors = [d for d in all_detectors(tmp_path / CONFIG) if d.name in ("brittle", "timeout_ratio", "pipeline")]
    assert len(detectors) == 3
    case = poisoned(fires_one_in_five(), 500)
    number = int(case.streams["requests"][0]["arrival"].cast(pl.Int64)[500]) // SLICE_US
    chain = Chain(case, "", random.Random(1), 1, 0, (500,), 0, {("requests", 0): {number}}, detectors)
    expected = chain.run(0, until(case))
    assert expected.findings["detector"].unique().sort().to_list() == ["brittle", "pipeline", "timeout_ratio"]
    every = all_detectors(tmp_path / CONFIG)
    play = Play(kafka, case, f"w{uuid.uuid4().hex[:8]}.", tmp_path, every, subprocess.PIPE)
    play.produce()
    for times in (1, 2):
        worker = play.worker()
        said = worker.communicate(timeout=PATIENCE_S)[1].decode()
        assert worker.returncode == FAILED, said
        assert f"can't be measured, {times} of 3 times: ZeroDivisionError: a bug of ours" in said
    with workers(play, 1):
        play.wait()
    result, _ = play.result()
    names = [d.name for d in detectors]
    assert result.findings.filter(pl.col("detector").is_in(names)).equals(expected.findings)
    for table in tables_of(detectors):
        assert result.tables[table.name].equals(expected.tables[table.name]), table.name
    ((offset, reason),) = rejects(play)
    assert offset <= 500 and reason.endswith(": ZeroDivisionError: a bug of ours")
