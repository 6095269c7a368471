"""Any log of findings, cut, repeated and read by notifiers that are killed anywhere: who hears what, how often."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from kafka import TopicPartition

from detectors.windows import SECOND_US, WINDOW_US
from streams.live.connect import Connection
from streams.watch.news import Cursor, News, Notice, at, first_fresh, notice, told
from streams.watch.notify import Clocks, Notifier
from streams.watch.send import Answer
from tests.cases import Case, cases
from tests.streams.live.chain import Chain, until
from tests.streams.watch.judged import Change, Level, Messages, open_at, row, said

BEGIN = 1_000_000  # the first window
OLD_WINDOWS = 60
ONE_EACH = {d: c for d, _, c in cases("fires_")}


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Dice:
    """kills: how many are left; each is at a point that chance names."""

    random: random.Random
    kills: int
    killed: int = 0

    def maybe(self) -> None:
        if self.kills and self.random.random() < 0.2:
            self.kills -= 1
            self.killed += 1
            raise Killed


class Record(NamedTuple):
    offset: int
    key: bytes
    value: bytes


class Committed(NamedTuple):
    offset: int
    metadata: str


@dataclass
class Log:
    """The topic and the group in memory, in the words of the consumer: a thousand kills a minute need no broker."""

    dice: Dice
    messages: Messages = field(default_factory=list)
    at: int = 0
    kept: Committed | None = None

    def assign(self, _: object) -> None:
        """There is one partition."""

    def beginning_offsets(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 0)

    def end_offsets(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, len(self.messages))

    def committed(self, _: object, metadata: bool) -> Committed | None:
        return self.kept

    def seek(self, _: object, offset: int) -> None:
        self.at = offset

    def poll(self, timeout_ms: int) -> dict[str, list[Record]]:
        some = self.messages[self.at : self.at + self.dice.random.randint(1, 9)]
        records = [Record(self.at + i, *m) for i, m in enumerate(some)]
        self.at += len(records)
        return {"findings": records} if records else {}

    def commit(self, points: dict[TopicPartition, Any], timeout_ms: int) -> None:
        self.dice.maybe()
        ((point),) = points.values()
        self.kept = Committed(point.offset, point.metadata)
        self.dice.maybe()


@dataclass
class Told:
    """A receiver that keeps keys, and is away now and then."""

    dice: Dice
    name: str
    host: str = "here"
    keys: list[str] = field(default_factory=list)

    def send(self, notice: Notice, levels: Sequence[str]) -> Answer:
        self.dice.maybe()
        if self.dice.random.random() < 0.2:
            return Answer("away", "503")
        self.keys.append(notice.key)
        self.dice.maybe()
        return Answer("taken", "200")


@dataclass
class World:
    """now: the wall clock, in windows; the other clock goes on with each look."""

    dice: Dice
    level: str = "page"
    now: int = BEGIN
    ticks: float = 0.0
    ways: list[Told] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = Log(self.dice)
        self.ways = [Told(self.dice, "webhook"), Told(self.dice, "alertmanager")]

    def _tick(self) -> float:
        self.ticks += 1.0
        return self.ticks

    def look(self, stays_dead: float = 0.0) -> None:
        """Notifiers, one after the other dies, until one has told all that is there, or no other is started."""
        notifier = None
        for _ in range(5_000):
            try:
                if notifier is None:
                    clocks = Clocks(lambda: self.ticks, lambda: self.now * WINDOW_US / SECOND_US)
                    connection = Connection(broker="none:9092")
                    notifier = Notifier(connection, self.ways, lambda _: None, level=self.level, clocks=clocks)
                    log: Any = self.log
                    notifier._begin(log)
                    notifier.consumer = log
                self._tick()
                done = self.log.at == len(self.log.messages)
                notifier._read()
                for way in notifier.ways:
                    notifier._advance(way)
                if done and all(w.cursor and w.cursor.next == notifier.news.judged for w in notifier.ways):
                    return
            except Killed:
                notifier = None
                if self.dice.random.random() < stays_dead:
                    return
        raise AssertionError("it never tells all")


STEPS = st.integers(1, 40)
LEVEL: st.SearchStrategy[Level] = st.sampled_from(["warn", "page"])


@st.composite
def stories(draw: st.DrawFn, span: int = 60) -> list[Change]:
    """Findings that begin at a level within so many windows, may rise, and may end."""
    changes = []
    for i in range(draw(st.integers(1, 7))):
        window, level = BEGIN + draw(st.integers(0, span)), draw(LEVEL)
        changes.append(Change(window, f"RS-{i}", level))
        if level == "warn" and draw(st.booleans()):
            window, level = window + draw(STEPS), "page"
            changes.append(Change(window, f"RS-{i}", level))
        if draw(st.booleans()):
            changes.append(Change(window + draw(STEPS), f"RS-{i}", level, ends=True))
    return changes


def cuts(dice: random.Random, end: int) -> list[tuple[int, int]]:
    """(lo, to) as judge says it; one that was killed says the last again, and more."""
    spans, lo = [], 0
    at = BEGIN
    while at < end:
        at = min(end, at + dice.randint(1, 25))
        spans.append((lo, at))
        if dice.random() < 0.7:
            lo = at
    return spans


@settings(max_examples=60, deadline=None)
@given(stories(), st.integers(0, 8), st.integers(0, 2**32), st.sampled_from(["page", "warn"]))
def test_each_change_reaches_each_receiver_and_a_kill_costs_one_copy_at_most(
    story: list[Change], kills: int, seed: int, level: str
) -> None:
    dice = Dice(random.Random(seed), kills)
    world = World(dice, level)
    end = max(c.window for c in story) + 2
    for lo, to in cuts(dice.random, end):
        world.log.messages += said(story, lo, to)
        world.now = to + 4
        world.look()
    wanted = [c.key for c in story if level == "warn" or c.level == "page"]
    for way in world.ways:
        assert set(way.keys) == set(wanted)
        firsts = list(dict.fromkeys(way.keys))
        for finding in {c.finding_id for c in story}:
            of = [k for k in wanted if k.startswith(f"{finding}/")]
            assert [k for k in firsts if k.startswith(f"{finding}/")] == of, "in the order in which it happened"
    extra = sum(len(way.keys) - len(set(way.keys)) for way in world.ways)
    assert extra <= dice.killed
    event(f"killed: {dice.killed > 0}, extra: {extra > 0}, told: {bool(wanted)}")


@settings(max_examples=150, deadline=None)
@given(stories(5 * OLD_WINDOWS), st.integers(0, 6), st.integers(0, 2**32))
def test_after_long_stops_what_is_open_was_told_and_what_was_told_is_ended(
    story: list[Change], kills: int, seed: int
) -> None:
    dice = Dice(random.Random(seed), kills)
    world = World(dice)
    end = max(c.window for c in story) + 2
    passed = 0
    for lo, to in cuts(dice.random, end):
        world.log.messages += said(story, lo, to)
        world.now = to + 4
        if dice.random.random() < 0.3:
            world.look(stays_dead=0.5)
    world.now = end + 4
    world.look()
    for way in world.ways:
        keys = set(way.keys)
        fired = {k.removesuffix("/firing") for k in keys if k.endswith("/firing")}
        ended = {k.removesuffix("/resolved") for k in keys if k.endswith("/resolved")}
        really = {f"{c.finding_id}/page" for c in story if c.ends}
        assert ended <= fired, "nobody is told that something ended of which they never heard"
        assert fired & really == ended
        assert {f"{c.finding_id}/page" for c in open_at(story, end) if c.level == "page"} <= fired
        assert keys <= {c.key for c in story}
        passed += len({c.key for c in story if c.level == "page"} - keys)
    assert sum(len(way.keys) - len(set(way.keys)) for way in world.ways) <= dice.killed
    event(f"killed: {dice.killed > 0}, passed over: {passed > 0}")


def rows(*changes: Change) -> list[dict[str, Any]]:
    return [row(c, BEGIN) for c in changes]


def keys(found: Sequence[Any]) -> list[str]:
    return [f"{r['finding_id']}/{r['level']}/{'resolved' if r['resolved'] else 'firing'}" for r in found]


def test_of_old_news_only_what_is_open_at_page_level_and_the_end_of_what_was_told() -> None:
    old = rows(
        Change(BEGIN, "warned", "warn"),
        Change(BEGIN, "over", "page"),
        Change(BEGIN, "open", "page"),
        Change(BEGIN, "ends", "page"),
        Change(BEGIN, "rises", "warn"),
        Change(BEGIN + 1, "over", "page", ends=True),
        Change(BEGIN + 1, "told", "page", ends=True),
    )
    fresh = rows(
        Change(BEGIN + 2, "ends", "page", ends=True),
        Change(BEGIN + 2, "rises", "page"),
        Change(BEGIN + 3, "rises", "page", ends=True),
        Change(BEGIN + 3, "known", "warn", ends=True),
        Change(BEGIN + 3, "new", "warn"),
    )
    assert keys(told(old, fresh)) == [
        "told/page/resolved",
        "open/page/firing",
        "rises/page/firing",
        "rises/page/resolved",
        "known/warn/resolved",
        "new/warn/firing",
    ]


@pytest.mark.parametrize(("ended_s", "old"), [(599, False), (600, False), (601, True)])
def test_a_window_is_old_when_it_ended_more_than_ten_minutes_ago(ended_s: int, old: bool) -> None:
    now_us = (BEGIN + 1) * WINDOW_US + ended_s * SECOND_US
    assert (first_fresh(now_us) > BEGIN) == old


def test_old_news_waits_until_what_followed_it_is_known_unless_judging_stands_still() -> None:
    news = News()
    story = [Change(BEGIN, "RS-1", "page")]
    for offset, message in enumerate(said(story, 0, BEGIN + 1)):
        news.feed(offset, *message)
    assert news.base == 0
    now_us = (BEGIN + 2 * OLD_WINDOWS) * WINDOW_US
    assert news.decided(at(0), now_us, held=False) is None
    batch = news.decided(at(0), now_us, held=True)
    assert batch and keys(news.items(batch)) == ["RS-1/page/firing"]


@pytest.mark.parametrize(("detector", "case"), [pytest.param(d, c, id=d) for d, c in sorted(ONE_EACH.items())])
def test_what_judge_says_of_every_detectors_case_is_told_whole_and_in_words(detector: str, case: Case) -> None:
    """By the stages themselves, killed and in any steps."""
    chain = Chain(case, detector, random.Random(3))
    found = chain.run(0.2, until(case)).findings
    news = News()
    for offset, message in enumerate(chain.found):
        news.feed(offset, *message)
    batch = news.decided(at(news.base or 0), (news.judged + 4) * WINDOW_US, held=True)
    assert batch and batch.until == news.judged
    every = [notice(r) for r in news.items(Cursor(batch.next, batch.until, batch.next))]
    begun = {n.finding_id for n in every if n.state == "firing"}
    assert begun == set(found["finding_id"]) and begun
    assert {n.finding_id for n in every if n.state == "resolved"} == set(
        found.filter(pl.col("resolved").is_not_null())["finding_id"]
    )
    assert len({n.key for n in every}) == len(every)
    assert all(n.name in n.headline and len(n.sentence) > 10 for n in every)
    still = {(r["finding_id"], r["level"]) for r in news.open()}
    assert still == set(found.filter(pl.col("resolved").is_null()).select("finding_id", "level").iter_rows())
