"""Any log of findings, cut, repeated and read by notifiers that are killed anywhere: who hears what, how often."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import polars as pl
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from kafka import TopicPartition

from detectors.causes import Finding
from detectors.detector import Settings
from detectors.incidents import Change as IncidentChange
from detectors.incidents import fold, id_of
from detectors.incidents import news as incident_news
from detectors.windows import SECOND_US, WINDOW_US
from streams.inventory import inventory
from streams.live.connect import Connection
from streams.live.tell import ANY
from streams.said import Word, record, words_in
from streams.watch.news import Cursor, News, Notice, at, first_fresh, notice, told
from streams.watch.notify import Clocks, Notifier
from streams.watch.send import Answer
from tests.cases import Case, cases
from tests.detectors.test_causes import SLOW, STORM, TIMEOUTS
from tests.streams.live.chain import Chain, until
from tests.streams.watch.judged import Change, Level, Messages, open_at, row, said

BEGIN = 1_000_000  # the first window
OLD_WINDOWS = 60
CALLED = inventory(Path("none"))
ONE_EACH = {d: c for d, _, c in cases("fires_")}


FINDINGS, SIGNALS = TopicPartition("ah.findings", 0), TopicPartition("signals", 0)


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
    spoken: list[bytes] = field(default_factory=list)  # the topic signals
    at: int = 0
    heard: int = 0
    kept: Committed | None = None

    def assign(self, _: object) -> None:
        """There is one partition."""

    def beginning_offsets(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 0)

    def end_offsets(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {p: len(self.spoken if p == SIGNALS else self.messages) for p in places}

    def committed(self, _: object, metadata: bool) -> Committed | None:
        return self.kept

    def seek(self, place: TopicPartition, offset: int) -> None:
        if place == SIGNALS:
            self.heard = offset
        else:
            self.at = offset

    def poll(self, timeout_ms: int) -> dict[str, list[Record]]:
        some = self.messages[self.at : self.at + self.dice.random.randint(1, 9)]
        records = [Record(self.at + i, *m) for i, m in enumerate(some)]
        self.at += len(records)
        words = [Record(self.heard + i, b"", v) for i, v in enumerate(self.spoken[self.heard :])]
        self.heard += len(words)
        return {place: some for place, some in ((FINDINGS, records), (SIGNALS, words)) if some}

    def position(self, _: TopicPartition) -> int:
        return self.heard

    def write(self, value: bytes, partition: int = ANY) -> None:
        """Into the topic signals."""
        self.dice.maybe()
        self.spoken.append(value)
        self.dice.maybe()

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
                    notifier._begin(log, [SIGNALS])
                    notifier.consumer = log
                    notifier.canaries.partitions = 1
                    notifier.writer.write = self.log.write  # type: ignore[method-assign]
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
        for incident in {c.incident for c in story}:
            of = [k for k in wanted if k.startswith(f"{incident}/")]
            assert [k for k in firsts if k.startswith(f"{incident}/")] == of, "in the order in which it happened"
        noted = [w for value in world.log.spoken for w in words_in(value) if w.by == f"{way.name} {way.host}"]
        assert {w.event_id for w in noted} == {f"{k}/{way.name}" for k in wanted}, "that it was told is not lost"
        assert {(w.about, w.note) for w in noted} == {(i, f"{at}, {state}") for i, at, state in map(parts, wanted)}
    extra = sum(len(way.keys) - len(set(way.keys)) for way in world.ways)
    assert extra <= dice.killed
    assert len(world.log.spoken) <= 2 * len(wanted) + dice.killed
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
        fired, ended = ({i for i, _, state in map(parts, keys) if state == s} for s in ("open", "resolved"))
        really = {c.incident for c in story if c.ends and c.level == "page"}
        assert ended <= fired, "nobody is told that something ended of which they never heard"
        assert fired & really == ended
        assert {c.incident for c in open_at(story, end) if c.level == "page"} <= fired
        assert keys <= {c.key for c in story}
        passed += len({c.key for c in story if c.level == "page"} - keys)
    assert sum(len(way.keys) - len(set(way.keys)) for way in world.ways) <= dice.killed
    event(f"killed: {dice.killed > 0}, passed over: {passed > 0}")


def parts(key: str) -> tuple[str, str, str]:
    incident, level, state, _ = key.split("/")
    return incident, level, state


def rows(*changes: tuple[int, str, str, str, str]) -> list[dict[str, Any]]:
    """Of news: when, of which incident, its level, its state, and at which level it was open before."""
    names = ("window", "incident_id", "level", "state", "was")
    return [dict(zip(names, c, strict=True)) for c in changes]


def keys(found: Sequence[Any]) -> list[str]:
    return [f"{r['incident_id']}/{r['level']}/{r['state']}" for r in found]


def test_of_old_news_only_what_is_open_at_page_level_and_the_end_of_what_was_told() -> None:
    old = rows(
        (0, "warned", "warn", "open", ""),
        (0, "over", "page", "open", ""),
        (0, "open", "page", "open", ""),
        (0, "ends", "page", "open", ""),
        (0, "rises", "warn", "open", ""),
        (0, "flaps", "page", "resolved", "page"),
        (0, "again", "page", "resolved", "page"),
        (1, "over", "page", "resolved", "page"),
        (1, "told", "page", "resolved", "page"),
        (1, "flaps", "page", "reopened", ""),
        (1, "again", "page", "reopened", ""),
        (2, "flaps", "page", "resolved", "page"),
    )
    fresh = rows(
        (3, "ends", "page", "resolved", "page"),
        (3, "rises", "page", "open", "warn"),
        (4, "ends", "page", "reopened", ""),
        (4, "rises", "page", "resolved", "page"),
        (4, "known", "warn", "resolved", "warn"),
        (4, "new", "warn", "open", ""),
        (5, "again", "page", "resolved", "page"),
    )
    assert keys(told(old, fresh)) == [
        "flaps/page/resolved",
        "told/page/resolved",
        "open/page/open",
        "rises/page/open",
        "ends/page/reopened",
        "rises/page/resolved",
        "known/warn/resolved",
        "new/warn/open",
        "again/page/resolved",
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
    assert batch and keys(news.items(batch)) == [f"{story[0].incident}/page/open"]


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
    every = [notice(r, CALLED) for r in news.items(Cursor(batch.next, batch.until, batch.next))]
    told_of = {f["finding_id"] for n in every for f in n.findings if n.state != "resolved"}
    last = {n.incident_id: n for n in every}
    over = found.filter(pl.col("resolved").is_not_null())["finding_id"]
    assert told_of and told_of <= set(found["finding_id"])
    assert len({n.key for n in every}) == len(every)
    assert all(n.name in n.headline and len(n.sentence) > 10 and n.contacts for n in every if n.chain)
    still = [notice(r, CALLED) for r in news.open()]
    assert {n.incident_id for n in still} == {i for i, n in last.items() if n.state != "resolved"}
    open_ = {f["finding_id"] for n in still for f in n.findings}
    assert set(found["finding_id"]) - set(over) <= open_


# ---- what people said ------------------------------------------------------------------------------------------------

SINCE = datetime(2026, 1, 26, 8, tzinfo=UTC)
TOLD = Notice(
    key="k", incident_id="in-1", detector="retry_storm", subject="a->b", name="a->b", level="page", state="open",
    onset=SINCE, since=SINCE, sentence="s", commands=("c",), about=frozenset({"in-1", "retry_storm"}),
)  # fmt: skip
LATER = SINCE + timedelta(minutes=5)


@pytest.mark.parametrize(
    ("about", "until", "quiet"),
    [
        ("in-1", LATER, True),
        ("retry_storm", LATER, True),
        ("in-2", LATER, False),
        ("in-1", SINCE + timedelta(minutes=1), False),
    ],
)
def test_what_is_silenced_is_not_told_until_the_time(about: str, until: datetime, quiet: bool) -> None:
    word = Word(at=SINCE, what="silence", about=about, until=until)
    assert TOLD.is_quiet([word], SINCE + timedelta(minutes=2)) == quiet


def test_what_is_acknowledged_is_not_told_again_and_what_rises_or_opens_after_that_is() -> None:
    ack = Word(at=SINCE + timedelta(minutes=1), what="ack", about="in-1")
    assert TOLD.is_quiet([ack], LATER)
    assert not TOLD.is_quiet([msgspec.structs.replace(ack, about="in-2")], LATER)
    for after in ({"state": "reopened"}, {"level": "page"}):
        assert not msgspec.structs.replace(TOLD, since=LATER, **after).is_quiet([ack], LATER)
    assert not msgspec.structs.replace(TOLD, state="resolved").is_quiet([ack], LATER), "its end is told"


def test_words_are_read_from_signals_among_what_others_write() -> None:
    ack = Word(at=SINCE, what="ack", about="in-1", by="anna")
    mute = Word(at=SINCE, what="silence", about="retry_storm", until=LATER)
    told_ = TOLD.told("webhook", "chat.example", LATER)
    assert told_.event_id == "k/webhook" and told_.words == "told to webhook chat.example"
    assert [words_in(record(w)) for w in (ack, mute, told_)] == [[ack], [mute], [told_]]
    assert words_in(b"[" + record(ack) + b"," + record(mute) + b"]") == [ack, mute]
    others = [None, b"incident.ack", b'{"name": "incident.opened"}', record(ack).replace(b"incident.ack", b"deploy")]
    assert [words_in(o) for o in others] == [[]] * 4


# ---- one that goes into another --------------------------------------------------------------------------------------


def test_one_that_goes_into_another_ends_with_these_words_and_nobody_is_paged_anew() -> None:
    """Retries, timeouts of the same edge are known last: what was two is one, under the older id."""
    older, younger, link = (replace(f, level="page", resolved=None) for f in (SLOW, STORM, TIMEOUTS))
    opened = [change_of(older, 10), change_of(younger, 20)]
    memory, rows = fold((), [*opened, change_of(link, 30)], Settings())
    assert [r["state"] for _, f in rows for r in f.to_dicts()] == ["open", "open", "open", "merged"]
    heard = [r for _, f in incident_news((), rows) for r in f.to_dicts()]
    assert [(r["state"], r["incident_id"]) for r in heard] == [
        ("open", id_of(older.finding_id)),
        ("open", id_of(younger.finding_id)),
        ("merged", id_of(younger.finding_id)),
    ]
    began = row(Change(20, younger.finding_id, "page"), 20)
    told_ = notice(heard[-1] | {"told": [{**began, "onset": SINCE, "last": SINCE, "peak_at": SINCE}]}, CALLED)
    assert told_.state == "resolved" and told_.incident_id == id_of(younger.finding_id)
    assert told_.headline.endswith(f": went into {id_of(older.finding_id)}")
    assert len(memory) == 1


def change_of(f: Finding, number: int) -> IncidentChange:
    return IncidentChange(number, number * WINDOW_US, replace(f, onset=10 * WINDOW_US, last=number * WINDOW_US))
