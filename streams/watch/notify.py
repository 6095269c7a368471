"""The log of findings enters, notifications leave: the process around news and send.

What people said of incidents it reads from the topic `signals`, from its begin: nobody is told of what is silenced, or
again of what is acknowledged.

It also writes into the topic `signals`, as any service writes its events. That people were told of an incident, and
when, so that it lands and the review knows it. And a canary a minute: the dead man's alert is fed by each that comes
back in the log of findings, and by nothing else. It is sent from here because only who hears what comes out can know
what should have, by one clock, and because one that is dead sends and feeds nothing.

Every receiver has a cursor of its own, so that one which is away keeps nobody waiting. All cursors are in the metadata
of one commit, which is made before a notice is sent (what is to be told) and after it (that it was): a kill repeats the
one in flight, and says under the same event_id that it was told. It assigns itself the topic and joins no group's
balance: one notifier runs for each prefix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError

from detectors.finding import LEVELS
from detectors.windows import SECOND_US, WINDOW_US
from streams.inventory import Inventory
from streams.live.canary import STREAM
from streams.live.connect import Connection
from streams.live.tell import Writer
from streams.live.topics import admin, names, partitions
from streams.problems import Problem
from streams.said import Word, record, words_in
from streams.watch.canaries import TOO_LONG_S, Canaries
from streams.watch.metrics import NOTIFIER, Meter
from streams.watch.news import Cursor, News, Notice, at, instant, notice
from streams.watch.send import Alertmanager, Answer, Receiver, ask, host_of

POLL_MS, POLL_MESSAGES = 200, 500
COMMIT_MS = 5_000
KEEP_S = 5.0  # for Kafka to take that somebody was told; it is held longer, and nobody waits
SAVE_S = 5.0
HELD_S = 120.0  # nothing was judged for so long: unreachable
STILL_S = 30.0  # a window is judged every 10 s
RENEW_S = 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
TRY_S = 5.0
TURN_S = 5.0  # then the others have theirs, however slow this one answers


class Kept(msgspec.Struct, frozen=True):
    """What one receiver was told, as it stands in the commit's metadata. unreachable: since which window, or -1."""

    cursor: Cursor
    unreachable: int = -1


@dataclass
class Way:
    """One receiver: how far it was told, and when it may be tried again."""

    receiver: Receiver
    cursor: Cursor | None = None
    unreachable: int = -1
    pause_s: float = 0.0
    again: float = 0.0  # by the monotonic clock

    def took(self, answer: Answer, now: float) -> None:
        """One that is away is tried later and later."""
        away = answer.outcome == "away"
        self.pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * self.pause_s)) if away else 0.0
        self.again = now + self.pause_s if away else 0.0


@dataclass
class Pulse:
    """Whether windows go on being judged. number: the first one that is not; moved: when it last grew.

    live: it grew by what was written since this process began. What was written before proves nothing of now.
    """

    moved: float
    number: int = 0
    live: bool = False

    def see(self, number: int, live: bool, now: float) -> None:
        if number > self.number:
            self.number, self.moved, self.live = number, now, self.live or live

    def held(self, now: float) -> bool:
        return now - self.moved > HELD_S

    def beats(self, now: float) -> bool:
        """Windows are judged now."""
        return self.live and not self.held(now)


class Clocks(NamedTuple):
    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


@dataclass
class Notifier:
    """run() ends when it is told to stop. say: where lines for people go."""

    connection: Connection
    receivers: Sequence[Receiver]
    say: Callable[[str], None]
    prefix: str = ""
    level: str = LEVELS[-1]
    heartbeat_url: str = ""
    meter: Meter = field(default_factory=lambda: Meter(NOTIFIER))
    inventory: Inventory = field(default_factory=lambda: Inventory({}, {}))
    clocks: Clocks = field(default_factory=Clocks)
    stopping: bool = False
    news: News = field(default_factory=News)
    consumer: KafkaConsumer | None = None

    def __post_init__(self) -> None:
        self.ways = [Way(r) for r in self.receivers]
        self.levels = LEVELS[LEVELS.index(self.level) :]
        self.place = TopicPartition(names(self.prefix).findings, 0)
        self.signals: dict[TopicPartition, int] = {}  # and up to where it reached when this process began
        self.words: list[Word] = []
        self.heard: set[tuple[str, str]] = set()  # incident and receiver
        self.pulse = Pulse(self.clocks.monotonic())
        self._end = 0  # of the log, when this process began
        self._committed: tuple[int, str] | None = None
        self._saved_at = float("-inf")
        self.writer = Writer(self.connection, self.prefix + STREAM, TOO_LONG_S)
        self.canaries = Canaries(self.writer)
        self._renewed = self.pulse.moved
        self._ill: set[str] = set()

    def stop(self, *_: object) -> None:
        self.stopping = True

    def run(self) -> None:
        try:
            while not self.stopping:
                self._read()
                self._watch()
                for way in self.ways:
                    self._advance(way)
                if self.clocks.monotonic() > self._saved_at + SAVE_S:
                    self._commit()
                self._show()
            self._commit()
        finally:
            self.writer.close()
            if self.consumer is not None:
                self.consumer.close()

    # ---- reading ----

    def _read(self) -> None:
        if self.consumer is None:
            self._open()
            return
        try:
            polled = self.consumer.poll(timeout_ms=POLL_MS)
        except KafkaError as error:
            then = f"asynchealth topics check {self.connection.options(self.prefix)}"
            raise Problem(f"topic {self.place.topic}", f"can't be read: {error}", then) from error
        for place, records in polled.items():
            for r in records:
                if place == self.place:
                    self.news.feed(r.offset, r.key, r.value)
                else:
                    self._hear(words_in(r.value))
            self.meter.reach(True)
        self.pulse.see(self.news.judged, self.news.position > self._end, self.clocks.monotonic())
        base = self.news.base
        for way in self.ways:
            if base is not None and (way.cursor is None or way.cursor.next < base):
                way.cursor = at(base)
        if base is not None and len(self.ways):
            self.news.forget(min(way.cursor.next for way in self.ways if way.cursor))

    def _open(self) -> None:
        """Where no Kafka answers it is asked again, since that, too, is to be told."""
        try:
            client = admin(self.connection)
        except Problem as problem:
            self._tell("Kafka", str(problem))
            time.sleep(TRY_S)
            return
        there = partitions(client)
        if self.place.topic not in there:
            then = f"asynchealth topics create {self.connection.options(self.prefix)}"
            raise Problem(f"topic {self.place.topic}", "not there", then)
        consumer = self.connection.consumer(
            group_id=group(self.prefix),
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            max_poll_records=POLL_MESSAGES,
        )
        topic = self.writer.topic
        self.canaries.partitions = there.get(topic, 0)
        try:
            self._begin(consumer, [TopicPartition(topic, p) for p in range(self.canaries.partitions)])
        except KafkaError as error:
            consumer.close()
            self._tell("Kafka", f"{self.connection.broker}: {error}; asked again")
            time.sleep(TRY_S)
            return
        self.consumer = consumer
        self._tell("Kafka", "")

    def _begin(self, consumer: KafkaConsumer, signals: Sequence[TopicPartition] = ()) -> None:
        """Where the last one ended, as far as the log still has it; signals from where they begin."""
        consumer.assign([self.place, *signals])
        start = consumer.beginning_offsets([self.place])[self.place]
        self._end = consumer.end_offsets([self.place])[self.place]
        known = consumer.committed(self.place, metadata=True)
        kept = msgspec.json.decode(known.metadata, type=dict[str, Kept]) if known and known.metadata else {}
        for way in self.ways:
            if mine := kept.get(way.receiver.name):
                way.cursor, way.unreachable = mine.cursor, mine.unreachable
        whole = known is not None and start <= known.offset <= self._end
        if known is not None and not whole:
            self.say(f"{self.place.topic}: what lies between {known.offset} and {start} was deleted and is not told")
        cursors = [way.cursor.next for way in self.ways if way.cursor]
        position = known.offset if whole else start
        self.news = News(position, min(cursors) if whole and cursors else None)
        consumer.seek(self.place, position)
        self.words, self.heard = [], set()
        self.signals = consumer.end_offsets(signals) if signals else {}
        for place, offset in (consumer.beginning_offsets(signals) if signals else {}).items():
            consumer.seek(place, offset)

    @property
    def _listened(self) -> bool:
        """Whether all is read that people had said when this process began."""
        if self.consumer is None:
            return False
        self.signals = {p: end for p, end in self.signals.items() if self.consumer.position(p) < end}
        return not self.signals

    # ---- telling ----

    def _advance(self, way: Way) -> None:
        """All that it takes in one turn. Before each the last is in Kafka."""
        if not self._listened:
            return
        ends = self.clocks.monotonic() + TURN_S
        while not self.stopping and way.cursor and way.again <= self.clocks.monotonic() < ends:
            if way.cursor.idle:
                held = self.pulse.held(self.clocks.monotonic())
                decided = self.news.decided(way.cursor, self._now_us(), held)
                if decided is None:
                    return
                way.cursor = decided
            if not self.news.has(way.cursor):
                return
            items = [notice(r, self.inventory) for r in self.news.items(way.cursor, self.levels)]
            wanted = (i for i, n in enumerate(items) if i >= way.cursor.sent and not self._quiet(way, n))
            if (i := next(wanted, None)) is None:
                way.cursor = at(way.cursor.until)
                continue
            way.cursor = msgspec.structs.replace(way.cursor, sent=i)
            if not self._commit() or (answer := self._send(way, items[i])).outcome == "away":
                return
            if answer.outcome == "taken":
                self.heard.add((items[i].incident_id, way.receiver.name))
                self._keep(way.receiver, items[i])
            way.cursor = msgspec.structs.replace(way.cursor, sent=i + 1)
            self._commit()

    def _quiet(self, way: Way, what: Notice) -> bool:
        """Nobody needs the end of what was silenced when it began, but who heard of it since; Alertmanager ends by it
        what it was told again once the silence was over."""
        heard = (what.incident_id, way.receiver.name) in self.heard or isinstance(way.receiver, Alertmanager)
        over = what.state == "resolved" and not heard and what.began_silenced(self.words)
        return over or what.is_quiet(self.words, self._now())

    def _hear(self, words: Iterable[Word]) -> None:
        """What people said, and of whom they were told, whoever told them."""
        for w in words:
            if w.what == "notified":
                self.heard.add((w.about, w.by.partition(" ")[0]))
            else:
                self.words.append(w)

    def _send(self, way: Way, what: Notice) -> Answer:
        answer = way.receiver.send(what, self.levels)
        self._answered(way.receiver, answer, what.key)
        way.took(answer, self.clocks.monotonic())
        return answer

    def _keep(self, receiver: Receiver, what: Notice) -> None:
        """That it was told. What stops this stops no notification; it is said."""
        if self.canaries.partitions:
            self.writer.write(record(what.told(receiver.name, receiver.host, self._now())))
            self.writer.wait(KEEP_S)
            why = self.writer.refused
        else:
            why = "it is not there"
        bad = f"when people were told of incidents can't be written to {self.writer.topic}: {why}\nNext: {self._lag}"
        self._tell("told", bad if why else "")

    def _answered(self, receiver: Receiver, answer: Answer, what: str) -> None:
        self.meter.add("asynchealth_notifications_total", 1, receiver.name, answer.outcome)
        match answer.outcome:
            case "taken":
                self._tell(receiver.name, "")
            case "refused":
                self.say(f"{receiver.name} {receiver.host}: refused {what} ({answer.said}); it is not sent again")
            case "away":
                self._tell(receiver.name, f"{receiver.name} {receiver.host}: {answer.said}; tried again")

    def _tell(self, who: str, line: str) -> None:
        """Once until it is well again, which an empty line says."""
        if line and who not in self._ill:
            self.say(line)
            self._ill.add(who)
        elif not line:
            self._ill.discard(who)

    # ---- ourselves ----

    def _watch(self) -> None:
        now = self.clocks.monotonic()
        held, beats = self.pulse.held(now), self.pulse.beats(now)
        for way in self.ways:
            if now >= way.again:
                self._tell_of_us(way, held, beats)
        if self.heartbeat_url or any(isinstance(r, Alertmanager) for r in self.receivers):
            self._fly(now)
        if (beats or held) and now > self._renewed + RENEW_S:
            self._renewed = now
            self._renew()

    def _tell_of_us(self, way: Way, held: bool, beats: bool) -> None:
        if held and way.unreachable < 0:
            what, then = self._unreachable(self.pulse.number, "firing"), self.pulse.number
        elif beats and way.unreachable >= 0:
            what, then = self._unreachable(way.unreachable, "resolved"), -1
        else:
            return
        if self._send(way, what).outcome != "away":
            way.unreachable = then
            self._commit()

    def _unreachable(self, number: int, state: str) -> Notice:
        since = f"since {instant(number):%Y-%m-%d %H:%M:%S} UTC" if number else "yet"
        why = "Kafka does not answer" if self.consumer is None else f"nothing is judged {since}"
        firing = state == "firing"
        now = self._now()
        return Notice(
            key=f"unreachable-{number}/{LEVELS[-1]}/{state}",
            incident_id=f"unreachable-{number}",
            detector="asynchealth",
            kind="unreachable",
            subject_kind="fleet",
            subject="unreachable",
            name="unreachable",
            level=LEVELS[-1],
            state="firing" if firing else "resolved",
            onset=instant(number) if number else now,
            since=now,
            sentence=f"{why}: findings may go untold" if firing else "windows are judged again",
            commands=(self._lag,),
        )

    def _alertmanagers(self) -> Iterator[tuple[Way, Alertmanager]]:
        for way in self.ways:
            if isinstance(way.receiver, Alertmanager) and self.clocks.monotonic() >= way.again:
                yield way, way.receiver

    def _fly(self, now: float) -> None:
        """Sends the canary that is due; feeds the dead man's alerts when one has come back."""
        if self.consumer is not None:
            self.writer.look()
            self.canaries.send(now, self._now())
        if self.canaries.back(self.news.canaries, now):
            self._beat()
            if self.canaries.came_at is not None:
                self.meter.set("asynchealth_canary_timestamp_seconds", {(): self.canaries.came_at.timestamp()})
        self._tell("canary", self._silence(now))

    def _silence(self, now: float) -> str:
        """Why the dead man's alerts are not fed; empty where they are."""
        if not self.canaries.missing(now):
            return ""
        if self.consumer is None:
            why = "Kafka does not answer"
        elif refused := self.writer.refused if self.canaries.partitions else "it is not there":
            why = f"no canary could be written to {self.writer.topic}: {refused}"
        elif now > self.pulse.moved + STILL_S:
            number = self.pulse.number
            why = f"nothing is judged {f'since {instant(number):%H:%M:%S} UTC' if number else 'yet'}"
        else:
            why = f"windows are judged, but what is written to {self.writer.topic} does not come out"
        return f"the dead man's alert is not fed: {why}\nNext: {self._lag}"

    @property
    def _lag(self) -> str:
        return f"asynchealth lag {self.connection.options(self.prefix)}"

    def _beat(self) -> None:
        """A canary came back."""
        now = self._now()
        for way, receiver in self._alertmanagers():
            answer = receiver.watchdog(now, self._lag)
            self._answered(receiver, answer, "the dead man's alert")
            way.took(answer, self.clocks.monotonic())
        if self.heartbeat_url:
            answer = ask(self.heartbeat_url)
            bad = f"heartbeat {host_of(self.heartbeat_url)}: {answer.said}; asked again in {RENEW_S:.0f} s"
            self._tell("heartbeat", "" if answer.outcome == "taken" else bad)

    def _renew(self) -> None:
        """Alertmanager ends what is not said again."""
        now = self._now()
        for way, receiver in self._alertmanagers():
            told = [notice(r, self.inventory) for r in self.news.open() if r["level"] in self.levels]
            still = [n for n in told if not n.is_silenced(self.words, now)]
            if way.unreachable >= 0:
                still.append(self._unreachable(way.unreachable, "firing"))
            if still:
                answer = receiver.renew(still, now)
                self._answered(receiver, answer, "alerts that are still open")
                way.took(answer, self.clocks.monotonic())

    # ---- what is kept ----

    def _commit(self) -> bool:
        """Whether Kafka has where every way stands."""
        if self.consumer is None or any(way.cursor is None for way in self.ways):
            return False
        kept = {w.receiver.name: Kept(w.cursor, w.unreachable) for w in self.ways if w.cursor}
        self._saved_at = self.clocks.monotonic()
        point = self.news.restart(), msgspec.json.encode(kept).decode()
        if point != self._committed:
            try:
                self.consumer.commit({self.place: OffsetAndMetadata(*point, -1)}, timeout_ms=COMMIT_MS)
            except KafkaError as error:
                self._tell(
                    "commit", f"Kafka keeps no position of {group(self.prefix)}: {error}; nothing is sent until then"
                )
                return False
            self._tell("commit", "")
            self._committed = point
        return True

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.clocks.wall(), UTC)

    def _now_us(self) -> int:
        return int(self.clocks.wall() * SECOND_US)

    def _show(self) -> None:
        self.meter.beat()
        if self.news.judged:
            until = self.news.judged * WINDOW_US / SECOND_US
            self.meter.set("asynchealth_final_until_timestamp_seconds", {("notify",): until})
        behind = {(w.receiver.name,): self.news.judged - w.cursor.next for w in self.ways if w.cursor}
        self.meter.set("asynchealth_notify_windows_waiting", behind)
        self.meter.set("asynchealth_copies_total", {("notify",): self.news.reader.copies})
        self.meter.set("asynchealth_copies_unequal_total", {("notify",): self.news.reader.unequal})


def group(prefix: str = "") -> str:
    """Under this name Kafka keeps what was told."""
    return f"{prefix}asynchealth-notify"
