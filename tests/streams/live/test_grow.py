"""Sources that get partitions: the same tables and findings as in one pass, whoever was killed or went on around it."""

from __future__ import annotations

import random
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewPartitions
from kafka import TopicPartition
from kafka.errors import KafkaConnectionError, KafkaError

from detectors.events import STREAMS
from detectors.windows import SECOND_US, SLICE_US, WINDOW_US
from streams.live import grow
from streams.live.connect import Connection
from streams.live.grow import Frontier, Grown, Growth
from streams.live.match import KEYS, TABLES, Matcher
from streams.live.numbered import PROTOCOL, Head, OtherProtocol, messages, unpack
from streams.live.reduce import Point, Reducer
from streams.live.topics import admin
from streams.problems import Exit, Problem
from tests.cases import T0, Case, cases
from tests.cases.duplicate_key import attempt, ordinary
from tests.cases.duplicate_key import case as of_keys
from tests.equality.append_time import final
from tests.harness import Result, one_pass
from tests.streams.live.chain import Chain, until
from tests.streams.live.test_commands import begun, ended, event, wait_landed
from tests.streams.live.test_worker import PARTITIONS, Play, tape, workers
from tests.streams.tape import asked, asynchealth, contents

FIRING = [pytest.param(d, c, id=f"{d}-{n}") for d, n, c in cases("fires_")]
OF_KEYS = {n: c for d, n, c in cases("fires_") if d == "duplicate_key"}
SHARE = 3  # of the rows after the growth every third is in a partition that was made then


def arrived(case: Case) -> pl.Series:
    return pl.concat([p["arrival"] for parts in case.streams.values() for p in parts]).cast(pl.Int64).sort()


def grown(case: Case, since_us: int, moves: pl.Expr | None = None, still: str = "") -> Case:
    """One more partition of each stream, with rows that arrived since then, out of the others; of one stream, none."""
    some = pl.int_range(pl.len()) % SHARE == 0 if moves is None else moves
    streams = {}
    for stream, parts in case.streams.items():
        goes = some & (pl.col("arrival").cast(pl.Int64) >= since_us) & pl.lit(stream != still)
        moved = pl.concat([p.filter(goes) for p in parts]).sort("arrival", maintain_order=True)
        streams[stream] = [*(p.filter(~goes) for p in parts), moved]
    return Case(streams, case.expect, case.settings)


def middle_of(case: Case) -> int:
    return int(arrived(case).quantile(0.6) or 0) // SLICE_US * SLICE_US


@dataclass
class Growing(Chain):
    """A chain of a grown case, whose last partitions are there from grow() on, as what arrives then and later."""

    at_us: int = 0
    whole: dict[tuple[str, int], tuple[list[int], list[int], list[bytes]]] = field(init=False)
    frontier: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.whole = dict(self.source)
        last = max(p for _, p in self.whole)
        for (stream, p), (offsets, stamps, values) in self.whole.items():
            n = sum(s < self.at_us for s in stamps)
            self.source[stream, p] = offsets[:n], stamps[:n], values[:n]
            if p == last:
                del self.source[stream, p], self.reducers[stream, p]
        self.matchers = [self._matcher(q) for q in range(self.queues)]

    def before(self, kills: float) -> None:
        """What was there before the growth, read whole."""
        while any(r.position <= self.source[k][0][-1] for k, r in self.reducers.items()):
            key = self.dice.choice(list(self.source))
            self.reduce(key, self.dice.choice(self.steps), dies=self.dice.random() < kills)
            self.match(self.dice.randrange(self.queues), dies=self.dice.random() < kills)
            self.judged(dies=self.dice.random() < kills)

    def grow(self) -> tuple[list[Reducer], list[Matcher]]:
        """All workers are new ones after it. Gives the old, which may be zombies."""
        zombies = list(self.reducers.values()), self.matchers
        old, new = self.producers, [k for k in self.whole if k not in self.source]
        told = grow.announced(f"{s}/{p}" for s, p in new)
        for queue in range(self.queues):
            self.slices[queue] += told
            offset, metadata = self.committed.get(queue, (0, "0"))
            heard = Frontier(old, int(metadata))
            for said, _ in self.slices[queue][offset:]:
                heard.hear(said)
            self.frontier = max(self.frontier, heard.slice)
        for key in new:
            self.committed[key] = 0, grow.point(self.frontier).metadata
        self.source = dict(self.whole)
        self.reducers = {key: self._reducer(key) for key in self.source}
        self.matchers = [self._matcher(q) for q in range(self.queues)]
        self.judge = self._judge()
        return zombies

    def haunted(self, reducers: list[Reducer], matchers: list[Matcher]) -> int:
        """Zombies go on before anybody else does. How many of the matchers met a producer that they do not know."""
        for r in reducers:
            offsets, stamps, values = self.source[r.stream, r.partition]
            r.feed(offsets, stamps, values)
            r.promise(until(self.case))
            self._publish(r.say(r.closable()))
        return sum(self._haunts(m) for m in matchers)

    def _haunts(self, m: Matcher) -> bool:
        met = False
        try:
            for offset in range(m.position, len(self.slices[m.queue])):
                m.feed(offset, *self.slices[m.queue][offset])
        except OtherProtocol:
            met = True
        _, said = m.say()  # of what it had read before it ended
        self.windows += [(o.key, o.value) for o in said if o.queue == TABLES]
        self.kept[m.queue] += [(o.key, o.value) for o in said if o.queue == KEYS]
        return met

    def strays(self) -> int:
        """Rows that landed as such, each once."""
        frames = [unpack(value) for _, value in dict(self.events).items()]
        return sum(f["rows"].filter(fate="stray").height for f in frames if "rows" in f)


def through(chain: Growing) -> tuple[Result, int]:
    """Kills before and after, zombies in between; all that was there at the growth was read to its end.

    How many zombies met a producer that they do not know.
    """
    chain.before(0.2)
    for key in list(chain.source):
        chain.reduce(key, 0, promised_us=chain.at_us)
    for queue in range(chain.queues):
        chain.match(queue)
    assert chain.windows and chain.kills > 0
    met = chain.haunted(*chain.grow())
    return chain.run(0.2, until(chain.case)), met


@pytest.mark.parametrize(("detector", "case"), FIRING)
def test_rows_before_and_after_kills_and_zombies_are_one_pass(detector: str, case: Case) -> None:
    middle = middle_of(case)
    case = grown(case, middle)
    assert all(len(part) for parts in case.streams.values() for part in parts)
    expected = one_pass(case, only=detector)
    assert expected.fired(detector)
    chain = Growing(case, detector, random.Random(2), at_us=middle)
    result, met = through(chain)
    assert (chain.frontier * SLICE_US, met) == (middle, chain.queues)
    assert result.differs(expected) == []
    assert chain.strays() == 0 and chain.said_twice > 0
    assert all(m.reader.unequal == 0 for m in chain.matchers)


AGAIN_S = 3 * 3_600  # the first time is remembered beyond what a queue's state holds


def test_an_operation_that_runs_again_in_a_new_partition_is_found() -> None:
    rows = ordinary(range(800)) + ordinary(range(4 * AGAIN_S, 4 * AGAIN_S + 800))
    rows += [r for n in range(23) for s in (60, AGAIN_S + 60) for r in attempt(s + n / 2, 100_000 + n)]
    expect = ("payment", "applied_twice", "page")
    middle = int(T0.timestamp() + AGAIN_S / 2) * SECOND_US
    keys = [f"pay-{100_000 + n}" for n in range(23)]
    case = grown(of_keys(rows, expect), middle, pl.col("idempotency_key").is_in(keys))
    assert set(case.streams["requests"][-1]["idempotency_key"]) == set(keys)
    expected = one_pass(case, only="duplicate_key")
    assert expected.fired("duplicate_key") == {expect}
    chain = Growing(case, "duplicate_key", random.Random(3), at_us=middle)
    result, _ = through(chain)
    assert chain.frontier * SLICE_US == middle
    assert result.differs(expected) == []


def early(case: Case, middle: int) -> tuple[Case, Case, int]:
    """Rows come into the new partition twenty seconds before it is taken in. With them, without, how many."""
    with_them = grown(case, middle - 20 * SECOND_US)
    streams, n = {}, 0
    for stream, (*old, new) in with_them.streams.items():
        counts = pl.col("arrival").cast(pl.Int64) >= middle
        kept = [p.with_columns(offset=pl.int_range(1, pl.len() + 1, dtype=pl.Int64)) for p in (*old, new)]
        streams[stream] = [*kept[:-1], kept[-1].filter(counts)]
        n += len(new) - len(streams[stream][-1])
    return with_them, Case(streams, case.expect, case.settings), n


@pytest.mark.parametrize("name", OF_KEYS)
def test_what_came_before_a_partition_was_taken_in_is_stray_and_in_no_table(name: str) -> None:
    """Somebody added it, and workers read on without it for a while."""
    middle = middle_of(OF_KEYS[name])
    with_them, without, n = early(OF_KEYS[name], middle)
    assert n > 10
    chain = Growing(with_them, "duplicate_key", random.Random(2), at_us=middle)
    result, met = through(chain)
    assert (chain.frontier * SLICE_US, met) == (middle, chain.queues)
    assert chain.strays() == n
    assert result.differs(one_pass(without, only="duplicate_key")) == []


def heard(next_: int, **said: Sequence[tuple[int, int]]) -> int:
    frontier = Frontier(["a", "b"], next_)
    for producer, ranges in said.items():
        for lo, hi in ranges:
            frontier.hear(messages(Head(producer=producer, lo=lo, hi=hi, kind="empty"))[0][0])
    return frontier.slice


def test_nobody_can_have_been_further_than_the_slowest_producer_or_the_windows_that_were_said() -> None:
    """Windows of five slices, final fifteen slices after their end."""
    assert heard(0) == heard(0, a=[(0, 70)]) == 0
    assert heard(0, a=[(0, 70), (70, 90)], b=[(0, 80)], c=[(0, 5)]) == 80
    assert heard(0, a=[(0, 90), (70, 80)], b=[(0, 95)]) == 90  # what a zombie says again takes nothing back
    assert heard(12, a=[(70, 90)]) == 12 * 5 + 15


@dataclass
class Reader:
    """In place of a client: what it hears of a queue that holds ten messages."""

    heard: Sequence[bytes] | KafkaError

    def assign(self, places: Sequence[Any]) -> None:
        self.places, self.at = list(places), 0

    def seek(self, *_: Any) -> None: ...

    def close(self) -> None: ...

    def end_offsets(self, places: Sequence[Any]) -> dict[Any, int]:
        return dict.fromkeys(places, 10)

    def position(self, place: Any) -> int:
        return self.at

    def poll(self, timeout_ms: int) -> dict[Any, list[Any]]:
        if isinstance(self.heard, KafkaError):
            raise self.heard
        time.sleep(0.01)
        some, self.heard = self.heard, ()
        self.at += len(some)
        return {self.places[0]: [SimpleNamespace(key=key) for key in some]}


JOINS = grow.announced(["a/0"])[0][0]
OTHERS = JOINS.replace(f'"protocol":{PROTOCOL}'.encode(), b'"protocol":1')


@pytest.mark.parametrize(
    ("heard", "said", "then"),
    [
        ([JOINS] * 9, "topic blue.ah.slices: nothing came in 0 s", "once Kafka answers, AGAIN; nothing is lost"),
        (KafkaConnectionError("gone"), "b:9092: Kafka does not tell: .*gone", "grant Describe"),
        ([OTHERS], "topic blue.ah.slices: written by protocol 1", "the asynchealth .*AGAIN"),
    ],
    ids=("a broker that goes away", "a broker that refuses", "another version's messages"),
)
def test_what_stops_a_growth_that_reads_is_said(
    heard: Any, said: str, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(growing: Growth, partitions: int) -> Grown:
        place = TopicPartition(growing.names.slices, 0)
        growing._hear({place: Frontier(["a/0"], 0)}, {place: 0})
        return Grown({})

    monkeypatch.setattr(grow, "admin", lambda at: None)
    monkeypatch.setattr(Connection, "consumer", lambda *_, **__: Reader(heard))
    monkeypatch.setattr(grow, "WAIT_S", 0.05)
    monkeypatch.setattr(Growth, "_grow", read)
    growing = Growth(Connection(broker="b:9092", given=("tls=true",)), "blue.", {})
    again = "asynchealth topics grow --broker b:9092 --kafka tls=true --prefix blue."
    with pytest.raises(Problem, match=f"{said}.*\nNext: {then.replace('AGAIN', again)}"):
        growing.grow(0)


# ---- what the tests above would notice ----

MUTANTS = (
    "nobody is told of the new producers",
    "a new partition counts from its begin",
    "it counts from before the frontier on",
)


def broken(patch: pytest.MonkeyPatch, mutant: str) -> None:
    match mutant:
        case "nobody is told of the new producers":
            patch.setattr(grow, "announced", lambda producers: [])
        case "a new partition counts from its begin":
            patch.setattr(grow, "point", lambda first: Point(0))
        case "it counts from before the frontier on":
            patch.setattr(grow, "point", lambda first: Point(0, promised=first - 10))
        case _:
            raise ValueError(mutant)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_growth_gives_other_tables(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    middle = middle_of(OF_KEYS["fires_applied_twice"])
    with_them, without, _ = early(OF_KEYS["fires_applied_twice"], middle)
    expected = one_pass(without, only="duplicate_key")
    broken(monkeypatch, mutant)
    chain = Growing(with_them, "duplicate_key", random.Random(2), at_us=middle)
    try:
        differs = through(chain)[0].differs(expected)
    except AssertionError:
        return  # copies that say something else
    assert differs != []


# ---- on real Kafka ----

real = pytest.mark.xdist_group("kafka-2")
PATIENCE_S = 120
MORE = PARTITIONS + 1


def growth(play: Play) -> Growth:
    return Growth(Connection(broker=play.bootstrap), play.prefix, {s: f"{play.prefix}{s}" for s in STREAMS})


def once_at_rest(growing: Growth, partitions: int) -> Grown:
    """Those that were killed are members for a while."""
    refused = 0
    for _ in range(PATIENCE_S):
        try:
            grown = growing.grow(partitions)
        except Problem as problem:
            assert "workers are running, or were killed less than a minute ago" in str(problem)
            refused += 1
            time.sleep(1)
            continue
        assert refused
        return grown
    raise AssertionError("never at rest")


@real
def test_a_growth_between_two_halves_of_a_tape_is_one_pass(kafka: str, tmp_path: Path) -> None:
    """Before it one worker is killed and one is stopped, which goes on behind it; after it one more is killed."""
    whole = tape()
    middle = middle_of(whole)
    parts = grown(whole, middle, still="write_log").streams
    case = Case({s: [p.with_columns(offset=pl.int_range(pl.len())) for p in some] for s, some in parts.items()})
    expected = one_pass(case)
    assert expected.findings["detector"].n_unique() >= 8
    play = Play(kafka, case, f"g{uuid.uuid4().hex[:8]}.", tmp_path, stderr=subprocess.PIPE)
    play.make()
    play.send(case, middle)
    with workers(play, 2) as (killed, zombie):
        play.wait(middle)
        zombie.send_signal(signal.SIGSTOP)
        killed.kill()
        done = once_at_rest(growth(play), MORE)
        assert done.since and done.since.timestamp() * SECOND_US == middle
        assert len(done.joined) == len(STREAMS) and not any(j.strays for j in done.joined)
        assert not growth(play).problems() and not growth(play).grow(0).joined
        play.send(case, since_us=middle)
        zombie.send_signal(signal.SIGCONT)
        sources = dict.fromkeys(STREAMS, MORE)
        dies = play.worker(dies_after=6, sources=sources)
        assert dies.wait(PATIENCE_S) == -signal.SIGKILL
        last = play.worker(sources=sources)
        try:
            play.wait()
        finally:
            last.kill()
            last.wait()
        _, said = zombie.communicate(timeout=PATIENCE_S)
    assert (zombie.returncode, b"topics grow" in said) == (Exit.STATE, True), said.decode()
    result, copies = play.result()
    assert result.differs(expected) == []
    assert copies > 0


def send(bootstrap: str, topic: str, rows: Mapping[int, Sequence[bytes]]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap})
    for partition, values in rows.items():
        for value in values:
            producer.produce(topic, value, partition=partition)
    assert producer.flush(PATIENCE_S) == 0


def calls(partition: int, n: int = 30) -> list[bytes]:
    """Each applied, and the same keys whatever the partition."""
    said = {"caller": "gateway", "side": "server", "status": "ok", "cache": "miss", "applied": True, "duration_ms": 5}
    return [event(idempotency_key=f"pay-{i}", request_id=f"req-{i}", node_id=f"n{partition}", **said) for i in range(n)]


def ended_with(running: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, said = running.communicate(timeout=PATIENCE_S)
    return running.returncode, said.decode()


def judged(folder: Path) -> datetime:
    ((window,),) = asked(folder, "SELECT judged FROM landed")
    return datetime.fromtimestamp(window * WINDOW_US / SECOND_US, UTC)


def assert_told_of(partition: str, where: Sequence[str]) -> None:
    for looks in (["topics", "check", "--partitions", "2"], ["worker"]):
        told = asynchealth(*looks, *where)
        assert told.returncode in (Exit.STATE, Exit.USAGE)
        assert f"{partition}: added while workers ran".encode() in told.stderr, told.stderr
        assert f"asynchealth topics grow {' '.join(where)}".encode() in told.stderr
    assert b"waits for topics grow" in asynchealth("lag", *where).stdout


@real
def test_partitions_that_somebody_adds_are_noticed_taken_in_and_counted_as_replay_counts_them(
    kafka: str, tmp_path: Path
) -> None:
    """On topics that Kafka stamps, by the commands that people type."""
    prefix, live, replayed = f"g{uuid.uuid4().hex[:8]}.", tmp_path / "live", tmp_path / "replayed"
    where, topic = ["--broker", kafka, "--prefix", prefix], f"{prefix}requests"
    assert asynchealth("topics", "create", *where, "--partitions", "2").returncode == 0
    lander, worker = begun("land", *where, "--state", str(live)), begun("worker", *where)
    running = [lander, worker]
    try:
        send(kafka, topic, {p: calls(p) for p in range(2)})
        wait_landed(live, 60)
        refused = asynchealth("topics", "grow", *where, "--partitions", "3")
        assert (refused.returncode, b"workers are running" in refused.stderr) == (Exit.STATE, True)
        client = admin(Connection(broker=kafka))
        for altered in client.create_partitions([NewPartitions(topic, 3)]).values():
            altered.result()
        code, said = ended_with(worker)
        assert code == Exit.STATE
        assert f"topic {topic}: has 3 partitions now, 2 are read" in said and "asynchealth topics grow" in said
        send(kafka, topic, {2: calls(2, 10)})
        assert_told_of(f"{topic}/2", where)
        taken_in = refused
        begun_s = time.monotonic()
        while b"less than a minute ago" in taken_in.stderr and time.monotonic() < begun_s + PATIENCE_S:
            taken_in = asynchealth("topics", "grow", *where, "--partitions", "4")
        assert taken_in.returncode == 0, taken_in.stderr
        said = taken_in.stdout.decode()
        assert f"{topic}/2-3" in said and "stray" not in said
        assert said.count("    4 partitions  ") == len(STREAMS)
        assert asynchealth("topics", "check", *where, "--partitions", "2").returncode == 0
        running.append(begun("worker", *where))
        code, said = ended_with(lander)
        assert code == Exit.STATE and "after topics grow, start this process again" in said
        running.append(begun("land", *where, "--state", str(live)))
        send(kafka, topic, {p: calls(p, 20) for p in range(4)})
        wait_landed(live, 150)
        ((last,),) = asked(live, "SELECT time_bucket(INTERVAL 10 SECOND, max(arrival)) FROM requests")
        by = last + timedelta(seconds=10)
        topics = [f"kafka://{kafka}/{prefix}{stream}" for stream in STREAMS]
        assert asynchealth("replay", *topics, "--state", replayed).returncode == 0
        begun_s = time.monotonic()
        while judged(live) < by and time.monotonic() < begun_s + PATIENCE_S:
            time.sleep(1)
        ended(running[2:])
    finally:
        for process in running:
            process.kill()
    ours, theirs = (final(contents(folder), by) for folder in (live, replayed))
    assert [n for n in theirs if n not in ours or not ours[n].equals(theirs[n])] == []
    assert len(ours["requests"]) == 150 and "duplicate_key" in set(ours["finding_changes"]["detector"])
