"""The notifier over a log in memory and by clocks of our own: receivers that are away, ourselves, and dead men."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from detectors.incidents import id_of
from detectors.windows import SECOND_US, WINDOW_US
from streams.live.connect import Connection
from streams.live.tell import ANY
from streams.said import Word, record, words_in
from streams.watch.canaries import TOO_LONG_S
from streams.watch.notify import HELD_S, RENEW_S, Clocks, Notifier
from streams.watch.send import Alertmanager, Webhook
from streams.watch.send import Receiver as Sends
from tests.kafka import free_port
from tests.streams.watch.judged import Change, said
from tests.streams.watch.receivers import Receiver, receiving
from tests.streams.watch.test_news import BEGIN, SIGNALS, Committed, Dice, Log

JUDGED_AGO_S = 45  # after its end a window is judged


@dataclass
class Night:
    """One notifier, two receivers and a heartbeat's; s: how many seconds went by on both clocks."""

    hook: Receiver
    manager: Receiver
    dead_man: Receiver
    story: list[Change]
    s: float = 0.0
    judged: int = 0
    lines: list[str] = field(default_factory=list)
    flown: dict[int, tuple[str, int]] = field(default_factory=dict)
    swallowed: bool = False

    def __post_init__(self) -> None:
        self.log = Log(Dice(random.Random(1), 0))
        self.begin()

    def begin(self) -> None:
        """A notifier, or the next one."""
        clocks = Clocks(lambda: self.s, lambda: BEGIN * WINDOW_US / SECOND_US + self.s)
        ways: list[Sends] = [Webhook(self.hook.url), Alertmanager(self.manager.url)]
        where = Connection(broker="kafka:9092")
        heart = self.dead_man.url + "/ping"
        self.notifier = Notifier(where, ways, self.lines.append, "", "page", heart, clocks=clocks)
        log: Any = self.log
        self.notifier._begin(log, [SIGNALS])
        self.notifier.consumer = log
        self.notifier.canaries.partitions = 1
        self.notifier.writer.write = self.write  # type: ignore[method-assign]

    def write(self, value: bytes, partition: int = ANY) -> None:
        if partition == ANY:
            self.log.write(value)
        else:
            self.fly(value, partition)

    def at(self, s: float) -> datetime:
        """By the wall clock."""
        return datetime.fromtimestamp(BEGIN * WINDOW_US / SECOND_US + s, UTC)

    def say(self, word: Word) -> None:
        """What a person says of an incident."""
        self.log.spoken.append(record(word))

    @property
    def noted(self) -> list[Word]:
        """That people were told, as it landed."""
        return [w for value in self.log.spoken for w in words_in(value) if w.what == "notified"]

    def fly(self, value: bytes, partition: int) -> None:
        """The chain: in the window of its arrival a canary comes out, unless it is swallowed."""
        assert partition == 0
        event = msgspec.json.decode(value)
        assert (event["tenant"], event["kind"]) == ("asynchealth", "gauge")
        if not self.swallowed:
            self.flown[BEGIN + int(self.s * SECOND_US // WINDOW_US)] = (event["name"], event["value"])

    def go(self, seconds: float, judging: bool = True) -> None:
        """A round a second."""
        until = self.s + seconds
        while self.s < until:
            self.s += 1
            to = BEGIN + int((self.s - JUDGED_AGO_S) * SECOND_US // WINDOW_US)
            if judging and to > max(self.judged, BEGIN):
                self.log.messages += said(self.story, self.judged, to, self.flown)
                self.judged = to
            self.notifier._read()
            self.notifier._watch()
            for way in self.notifier.ways:
                self.notifier._advance(way)

    def fired(self, finding: str) -> int:
        """How often Alertmanager heard that its incident is open."""
        return sum(k.startswith(f"{id_of(finding)}/page/open/") for k in self.manager.keys)

    def watchdogs(self) -> int:
        alerts = [a for _, body in self.manager.got for a in body]
        return sum(a["labels"]["alertname"] == "asynchealth_watchdog" for a in alerts)

    def close(self) -> None:
        assert self.manager.refusals == []


STORY = [Change(BEGIN + 2, "RS-1", "page"), Change(BEGIN + 8, "RS-2", "page"), Change(BEGIN + 9, "RS-1", "page", True)]
KEYS = [c.key for c in STORY]


@pytest.fixture
def night() -> Iterator[Night]:
    with receiving() as hook, receiving() as manager, receiving() as dead_man:
        made = Night(hook, manager, dead_man, STORY)
        yield made
        made.close()


def test_of_what_a_shadow_finds_nobody_is_told(night: Night) -> None:
    night.notifier.levels = ("warn", "page")
    warned = Change(BEGIN + 1, "RS-4", "warn")
    night.story = [Change(BEGIN + 1, "RS-3", "shadow"), warned, *STORY]
    night.go(200)
    assert night.hook.keys == [warned.key, *KEYS]


def test_when_each_receiver_was_told_is_noted_and_of_what_was_refused_or_of_ourselves_is_not(night: Night) -> None:
    night.hook.answers = [503, 400]
    night.go(200)
    night.go(2 * HELD_S, judging=False)
    assert "unreachable" in night.hook.keys[-1] and night.manager.keys
    told = [w.event_id for w in night.noted]
    assert sorted(told) == sorted([f"{k}/webhook" for k in KEYS[1:]] + [f"{k}/alertmanager" for k in KEYS])
    first = next(w for w in night.noted if w.by.startswith("alertmanager 127.0.0.1:"))
    assert (first.about, first.note) == (STORY[0].incident, "page, open")
    assert first.at.timestamp() == pytest.approx(BEGIN * WINDOW_US / SECOND_US + JUDGED_AGO_S + 30, abs=15)


LASTS = [Change(BEGIN + 2, "RS-1", "page"), Change(BEGIN + 30, "RS-1", "page", True)]


def test_what_is_silenced_goes_to_nobody_until_the_silence_ends_whoever_runs(night: Night) -> None:
    """The webhook never hears of it, nor of its end; Alertmanager what is still open when the silence is over."""
    night.story = LASTS
    begun, ended = (c.key for c in LASTS)
    night.say(Word(at=night.at(0), what="silence", about="retry_storm", until=night.at(200)))
    night.go(130)
    night.begin()
    night.go(69)
    assert night.judged > LASTS[0].window and (night.hook.keys, night.manager.keys) == ([], [])
    night.go(RENEW_S + 1)
    assert (night.hook.keys, set(night.manager.keys)) == ([], {begun})
    night.go(120)
    assert night.judged > LASTS[1].window and (night.hook.keys, night.manager.keys[-1]) == ([], ended)


@pytest.mark.parametrize("successor", [False, True])
def test_the_end_of_what_rose_after_its_silence_is_told_to_who_heard_it_rise(night: Night, successor: bool) -> None:
    night.story = [Change(BEGIN + 2, "RS-1", "warn"), Change(BEGIN + 20, "RS-1", "page"), LASTS[1]]
    night.say(Word(at=night.at(0), what="silence", about="retry_storm", until=night.at(200)))
    night.go(260)
    assert night.hook.keys == [night.story[1].key]
    if successor:
        night.begin()
    night.go(150)
    assert night.hook.keys == [c.key for c in night.story[1:]]


def test_what_is_acknowledged_is_not_sent_again_whoever_runs_and_its_end_is(night: Night) -> None:
    night.story = LASTS
    begun, ended = (c.key for c in LASTS)
    night.go(100)
    assert night.hook.keys == [begun]
    night.log.kept = Committed(0, "")
    night.begin()
    night.go(40)
    assert night.hook.keys == [begun] * 2, "one that does not know what was told tells it again"
    night.say(Word(at=night.at(night.s), what="ack", about=LASTS[0].incident, by="anna"))
    night.log.kept = Committed(0, "")
    night.begin()
    night.go(40)
    assert night.hook.keys == [begun] * 2
    night.go(250)
    assert night.judged > LASTS[1].window and night.hook.keys == [begun, begun, ended]


def test_where_it_cannot_be_noted_people_are_told_all_the_same(night: Night) -> None:
    def refused(value: bytes, partition: int = ANY) -> None:
        night.notifier.writer.refused = "Broker: no"

    night.notifier.writer.write = refused  # type: ignore[method-assign]
    night.go(200)
    assert night.hook.keys == KEYS and night.noted == []
    (line,) = [line for line in night.lines if line.startswith("when people were told")]
    assert line.startswith("when people were told of incidents can't be written to signals: Broker: no\nNext: ")


def test_a_receiver_that_is_away_is_tried_with_growing_pauses_and_keeps_nobody_waiting(night: Night) -> None:
    night.hook.answers = [503, 429, 500, 503, 503]
    night.go(90)
    assert night.manager.keys[:1] == KEYS[:1] and night.hook.keys == []
    assert night.hook.asked < 6
    night.go(200)
    assert night.hook.keys == KEYS
    assert night.hook.asked == 5 + len(KEYS)
    away = [line for line in night.lines if "tried again" in line]
    assert away and away[0] == f"webhook 127.0.0.1:{night.hook.port}: 503 as it was told to; tried again"


def test_what_a_receiver_refuses_is_said_once_and_the_rest_goes_on(night: Night) -> None:
    night.hook.answers = [400]
    night.go(200)
    assert night.hook.keys == KEYS[1:]
    assert set(night.manager.keys) == set(KEYS)
    (line,) = [line for line in night.lines if "refused" in line]
    assert line.endswith(f"refused {KEYS[0]} (400 as it was told to); it is not sent again")


def test_alerts_that_are_open_are_sent_again_every_minute_and_ended_ones_are_not(night: Night) -> None:
    night.go(100)
    before = night.fired("RS-1")
    night.go(400)
    assert 5 <= night.fired("RS-2") <= 8
    assert night.manager.keys.count(KEYS[2]) == 1
    assert night.fired("RS-1") <= before + 2
    assert night.hook.keys == KEYS


def test_while_nothing_is_judged_one_page_says_so_and_the_dead_mans_alerts_fall_silent(night: Night) -> None:
    night.go(300)
    fed, asked = night.watchdogs(), night.dead_man.asked
    assert 3 <= fed <= 6 and 3 <= asked <= 6
    night.go(HELD_S - 20, judging=False)
    assert night.hook.keys == KEYS
    night.go(30, judging=False)
    number = night.judged
    assert night.hook.keys == [*KEYS, f"unreachable-{number}/page/firing"]
    body = night.hook.got[-1][1]
    assert body["text"].startswith("PAGE asynchealth unreachable: nothing is judged since ")
    assert body["runbook"] == "asynchealth lag --broker kafka:9092"
    fed, asked = night.watchdogs(), night.dead_man.asked
    night.go(3 * RENEW_S, judging=False)
    assert (night.watchdogs(), night.dead_man.asked) == (fed, asked)
    assert night.manager.keys.count(f"unreachable-{number}/page/firing") >= 3, "Alertmanager must hear it again"
    night.begin()
    night.go(2 * HELD_S, judging=False)
    assert night.hook.keys == [*KEYS, f"unreachable-{number}/page/firing"], "the next one knows that it was told"
    night.go(100)
    assert night.hook.keys == [*KEYS, *(f"unreachable-{number}/page/{state}" for state in ("firing", "resolved"))]
    night.go(60)
    assert night.watchdogs() > fed and night.dead_man.asked > asked


def unfed(night: Night) -> list[str]:
    return [line for line in night.lines if line.startswith("the dead man's alert is not fed: ")]


def test_a_canary_that_does_not_come_back_feeds_nothing_and_it_is_said_why(night: Night) -> None:
    night.go(300)
    fed = night.watchdogs()
    assert fed >= 3 and unfed(night) == []
    night.swallowed = True
    night.go(TOO_LONG_S + 60)
    assert night.watchdogs() <= fed + 1, "the one that was under way"
    fed = night.watchdogs()
    night.go(300)
    assert night.watchdogs() == fed, "windows go on being judged, and that alone feeds nothing"
    why = "windows are judged, but what is written to signals does not come out"
    assert unfed(night) == [f"the dead man's alert is not fed: {why}\nNext: asynchealth lag --broker kafka:9092"]
    assert not [k for k in night.hook.keys if k.startswith("unreachable")]
    night.swallowed = False
    night.go(180)
    assert night.watchdogs() > fed
    assert len(unfed(night)) == 1


def test_where_nothing_is_judged_the_silence_of_the_dead_mans_alert_is_said_too(night: Night) -> None:
    night.go(200)
    night.go(200, judging=False)
    (line,) = unfed(night)
    assert re.match(r"the dead man's alert is not fed: nothing is judged since \d\d:\d\d:\d\d UTC", line)


def test_a_canary_that_comes_back_after_minutes_feeds_nothing(night: Night) -> None:
    """What a standstill held back comes out at once when it ends, and proves nothing of now."""
    night.go(100)
    night.go(10 * 60, judging=False)
    fed = night.watchdogs()
    night.go(12)
    assert night.watchdogs() <= fed + 1
    assert [n for n, (_, last) in night.flown.items() if last >= 10], "they had been sent all the while"


def test_another_notifiers_canaries_are_none_of_ours(night: Night) -> None:
    night.go(100)
    before = night.watchdogs()
    night.flown = dict.fromkeys(night.flown, ("somebody", 10**6))
    night.fly = lambda value, partition: None  # type: ignore[method-assign]
    night.begin()
    night.go(200)
    assert night.watchdogs() == before


def test_one_who_feeds_no_dead_mans_alert_writes_no_canary() -> None:
    with receiving() as hook:
        clocks = Clocks(lambda: 0.0, lambda: 0.0)
        notifier = Notifier(Connection(broker="kafka:9092"), [Webhook(hook.url)], print, clocks=clocks)
        notifier._watch()
        assert notifier.canaries._sent is None


def test_a_log_whose_begin_was_deleted_is_told_from_where_it_begins(night: Night) -> None:
    night.go(90)
    assert night.hook.keys == KEYS[:1]
    offset = len(night.log.messages) + 1
    night.log.beginning_offsets = lambda places: dict.fromkeys(places, offset)  # type: ignore[method-assign]
    night.log.messages += said(night.story, night.judged, night.judged + 2)  # which nobody reads
    night.judged += 2
    while len(night.log.messages) < offset:
        night.log.messages.append((b"", b""))
    night.begin()
    night.go(200)
    assert night.hook.keys == KEYS
    assert any("was deleted and is not told" in line for line in night.lines)


def test_positions_that_somebody_has_set_back_begin_anew_with_what_is_open(night: Night) -> None:
    night.go(90 + 20)
    night.log.kept = Committed(0, "")
    night.begin()
    night.go(90)
    assert list(dict.fromkeys(night.hook.keys)) == KEYS


def test_a_kafka_that_does_not_answer_from_the_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.watch.notify.TRY_S", 0.01)
    lines: list[str] = []
    with receiving() as hook:
        passed = iter(range(0, 10_000, 50))
        clocks = Clocks(monotonic=lambda: float(next(passed)))
        nowhere = Connection(broker=f"127.0.0.1:{free_port()}")
        notifier = Notifier(nowhere, [Webhook(hook.url)], lines.append, clocks=clocks)
        for _ in range(4):
            notifier._read()
            notifier._watch()
        assert hook.keys == ["unreachable-0/page/firing"]
        assert hook.got[0][1]["sentence"] == "Kafka does not answer: findings may go untold"
    assert len(lines) == 1 and "no Kafka answers" in lines[0]
