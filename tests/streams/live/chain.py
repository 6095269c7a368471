"""A case enters as records; reduce, match and judge run over logs in memory, in any steps and killed at any of them."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from detectors.detector import Detector
from detectors.engine import finding, findings
from detectors.events import encode_json
from detectors.finding import Episodes
from detectors.table import Table
from detectors.windows import LATENESS_US, SLICE_US, WINDOW_US
from streams.laws.runs import tables_of
from streams.live.judge import PRODUCER, Judge, Left, left
from streams.live.match import KEYS, TABLES, Matcher
from streams.live.numbered import Reader, Taken, head_of
from streams.live.reduce import EVENTS, Out, Point, Reducer
from streams.live.remember import Recall
from streams.privacy import Privacy
from streams.sources.decode import Reading
from tests.cases import Case
from tests.harness import Memory, Result, everything

Log = list[tuple[bytes, bytes]]


@dataclass
class Chain:
    """Three stages over logs that only grow. Each stage is lost and resumed at `kill`, from what it had committed."""

    case: Case
    only: str
    dice: random.Random
    queues: int = 3
    kills: int = 0
    steps: Sequence[int] = (1, 30, 500)  # records that are read at once
    first: int = 1  # the offset of each partition's first record
    parked: Mapping[tuple[str, int], Collection[int]] = field(default_factory=dict)  # slices that nobody can measure
    own: Sequence[Detector] = ()  # in place of those of the catalog
    private: Privacy | None = None
    tables: list[Table] = field(init=False)
    detectors: list[Detector] = field(init=False)
    source: dict[tuple[str, int], tuple[list[int], list[int], list[bytes]]] = field(default_factory=dict)
    slices: list[Log] = field(init=False)
    events: Log = field(default_factory=list)
    windows: Log = field(default_factory=list)
    kept: list[Log] = field(init=False)
    found: Log = field(default_factory=list)
    reducers: dict[tuple[str, int], Reducer] = field(default_factory=dict)
    committed: dict[object, tuple[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.detectors = list(self.own) or [d for only in self.only.split("+") for d in everything(only)[1]]
        self.tables = tables_of(self.detectors)
        self.slices = [[] for _ in range(self.queues)]
        self.kept = [[] for _ in range(self.queues)]
        for stream, parts in self.case.streams.items():
            for p, part in enumerate(parts):
                values = encode_json(stream, part.drop("arrival"))
                stamps = part["arrival"].cast(pl.Int64).to_list()
                self.source[stream, p] = (list(range(self.first, self.first + len(part))), stamps, values)
        for key in self.source:
            self.reducers[key] = self._reducer(key)
        self.matchers = [self._matcher(q) for q in range(self.queues)]
        self.judge = self._judge()

    @property
    def producers(self) -> list[str]:
        return [f"{s}/{p}" for s, p in self.source]

    @property
    def said_twice(self) -> int:
        """Messages that came again, in all logs."""
        logs = [*self.slices, *self.kept, self.events, self.windows, self.found]
        return sum(len(log) - len({key for key, _ in log}) for log in logs)

    # ---- what a process begins with ----

    def _reducer(self, key: tuple[str, int]) -> Reducer:
        offset, metadata = self.committed.get(key, (0, ""))
        made = Reducer(*key, self.tables, self.queues, Point.of(offset, metadata))
        made.reading = Reading(key[0], None, self.private)
        made.parked = {n: "said so" for n in self.parked.get(key, ()) if n >= made.next}
        return made

    def _matcher(self, queue: int) -> Matcher:
        offset, metadata = self.committed.get(queue, (0, "0"))
        recall = Recall(queue, int(metadata), self.tables, Memory())
        recall.feed((i, *message) for i, message in enumerate(self.kept[queue]))
        given = (self.producers, self.tables, recall.horizon, offset, int(metadata))
        return Matcher(queue, *given, forgotten=recall.forgotten())

    def _judge(self) -> Judge:
        offset, metadata = self.committed.get("judge", (0, "0 -1"))
        number, at = map(int, metadata.split())
        before = left(self.found[at][1]) if at >= 0 else Left()
        queues = [str(q) for q in range(self.queues)]
        return Judge(
            queues, self.detectors, self.case.settings, offset, number, at, before, ends_us=last_arrival(self.case)
        )

    def _dies_unheard(self, dies: bool) -> bool:
        """Half of those that die do so before anything is published, the others before anything is committed."""
        return dies and self.dice.random() < 0.5

    # ---- steps ----

    def reduce(self, key: tuple[str, int], records: int, promised_us: int = 0, dies: bool = False) -> None:
        r = self.reducers[key]
        offsets, stamps, values = self.source[key]
        at = next((i for i, o in enumerate(offsets) if o >= r.position), len(offsets))
        some = slice(at, at + records)
        r.feed(offsets[some], stamps[some], values[some])
        if promised_us:
            r.promise(promised_us)
            self._commit(key)
        to = r.closable()
        if to == r.next:
            return
        said = r.say(to)
        if not self._dies_unheard(dies):
            self._publish(said)
        if dies:
            self.kills += 1
            self.reducers[key] = self._reducer(key)
            return
        r.done(to)
        self._commit(key)

    def _commit(self, key: tuple[str, int]) -> None:
        if saved := self.reducers[key].saved():
            self.committed[key] = (saved.offset, saved.metadata)

    def _publish(self, said: Sequence[Out]) -> None:
        for out in said:
            (self.events if out.queue == EVENTS else self.slices[out.queue]).append((out.key, out.value))

    def match(self, queue: int, dies: bool = False) -> None:
        m = self.matchers[queue]
        for offset in range(m.position, len(self.slices[queue])):
            m.feed(offset, *self.slices[queue][offset])
        _, said = m.say()
        if not said:
            return
        if not self._dies_unheard(dies):
            self.windows += [(o.key, o.value) for o in said if o.queue == TABLES]
            self.kept[queue] += [(o.key, o.value) for o in said if o.queue == KEYS]
        if dies:
            self.kills += 1
            self.matchers[queue] = self._matcher(queue)
            return
        m.done()
        self.committed[queue] = m.saved()

    def judged(self, dies: bool = False) -> None:
        j = self.judge
        for offset in range(j.position, len(self.windows)):
            j.feed(offset, *self.windows[offset])
        _, said = j.say()
        if not said:
            return
        if not self._dies_unheard(dies):
            self.found += [(o.key, o.value) for o in said]
        if dies:
            self.kills += 1
            self.judge = self._judge()
            return
        j.done()
        j.state_at = len(self.found) - 1
        self.committed["judge"] = j.saved()

    # ---- the whole ----

    def run(self, kills: float, until_us: int) -> Result:
        """All records, in steps of any size and order, then promises to the end; a stage dies with this probability."""
        while any(r.position <= self.source[k][0][-1] for k, r in self.reducers.items()):
            key = self.dice.choice(list(self.source))
            self.reduce(key, self.dice.choice(self.steps), dies=self.dice.random() < kills)
            self.match(self.dice.randrange(self.queues), dies=self.dice.random() < kills)
            if self.dice.random() < 0.5:
                self.judged(dies=self.dice.random() < kills)
        for key in self.source:
            self.reduce(key, 0, promised_us=until_us, dies=kills > 0)
            while self.reducers[key].position <= self.source[key][0][-1]:
                self.reduce(key, 1)
            self.reduce(key, 0)
        for queue in range(self.queues):
            self.match(queue)
        self.judged()
        return self.result()

    def result(self) -> Result:
        tables: dict[str, list[pl.DataFrame]] = {}
        for taken in self._read(self.windows, [str(q) for q in range(self.queues)]):
            for name, rows in taken.frames.items():
                tables.setdefault(name, []).append(rows)
        by_name = {t.name: t for t in self.tables}
        merged = {n: by_name[n].merge(pl.concat(frames)) for n, frames in tables.items()}
        said = self._read(self.found, [PRODUCER])
        changes = [t.frames["changes"].drop("final_at") for t in said if "changes" in t.frames]
        told = [row for f in changes for row in f.with_columns(config=pl.lit("")).to_dicts()]
        last: dict[str, dict[str, Any]] = {row["finding_id"]: row for row in told}
        for d in self.detectors:
            for key, episode in self.judge.state.episodes.get(d.name, Episodes()).open.items():
                row = finding(d, "", key, episode)
                last[str(row["finding_id"])] = row
        return Result(merged, findings(list(last.values())).sort("finding_id"))

    def _read(self, log: Log, producers: list[str]) -> list[Taken]:
        reader = Reader(producers)
        for offset, (key, value) in enumerate(log):
            reader.take(offset, key, value)
        assert reader.unequal == 0
        return reader.below(max(head_of(k).hi for k, _ in log))


def last_arrival(case: Case) -> int:
    return max(f["arrival"].cast(pl.Int64).max() for fs in case.streams.values() for f in fs if len(f))  # type: ignore[type-var, return-value]


def until(case: Case) -> int:
    """A promise after which every window of the case is final."""
    window = (last_arrival(case) // WINDOW_US + 1) * WINDOW_US
    return -(-(window + LATENESS_US) // SLICE_US) * SLICE_US
