"""Tables of final windows enter, changes of findings and incidents leave, and what is open, for a successor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any, ClassVar

import msgspec
import polars as pl
import polars.selectors as cs

from detectors.detector import Detector, Settings
from detectors.engine import INSTANT, Hole, Judged, JudgeState, finding, findings, judge, open_findings
from detectors.finding import Episode, Episodes, Key, named
from detectors.incidents import Memory, change, decoded, encoded, fold, news
from detectors.table import Table
from detectors.tables.accounts import ACCOUNTS
from detectors.windows import LATENESS_US, NEVER, WINDOW_US
from streams.live.apart import Apart
from streams.live.canary import CANARY
from streams.live.numbered import Frames, Head, Reader, by_window, messages, pack, unpack
from streams.live.reduce import Out
from streams.live.step import Step
from streams.settings import fingerprint, rows_of

PRODUCER = "judge"
SLICES = "ah.slices"  # whose partitions those read that say tables
MOST_WINDOWS = 4_320  # that are judged at once; twelve hours


class Open(msgspec.Struct):
    """One detector's episodes, as JSON can hold them."""

    open: list[tuple[Key, Episode]]
    ended: list[tuple[Key, int]]
    held: list[tuple[Key, dict[str, Any]]] = []


@dataclass(frozen=True)
class Left:
    """What a judge leaves to its successor: each detector's episodes, incidents, and the rows of their findings."""

    episodes: Mapping[str, Episodes] = field(default_factory=dict)
    incidents: Memory = ()
    known: Mapping[str, dict[str, Any]] = field(default_factory=dict)


def saved_episodes(episodes: Mapping[str, Episodes]) -> pl.DataFrame:
    kept = {
        n: Open(sorted(e.open.items()), sorted(e.ended.items()), sorted(e.held.items(), key=itemgetter(0)))
        for n, e in sorted(episodes.items())
    }
    return pl.DataFrame({"saved": [msgspec.json.encode(kept)]})


def left(body: bytes) -> Left:
    """Out of the body of a state."""
    frames = unpack(body)
    episodes = {n: Episodes(dict(o.open), dict(o.ended), dict(o.held)) for n, o in _read(frames["episodes"]).items()}
    known = frames["known"].with_columns(cs.temporal().to_physical()).to_dicts() if "known" in frames else []
    return Left(episodes, decoded(frames["incidents"]["saved"][0]), {r["finding_id"]: r for r in known})


def judged_with(saved: pl.DataFrame) -> set[str]:
    """The detectors that had a say in a state, out of its frame of episodes."""
    return set(_read(saved))


def _read(saved: pl.DataFrame) -> dict[str, Open]:
    return msgspec.json.decode(saved["saved"][0], type=dict[str, Open])


@dataclass
class Judge(Step):
    """next: the window (its index) not judged yet; left: what was open before it.

    state_at: the offset, among the findings, of the last state that was acknowledged; -1: none.
    ends_us: where a recording that is played ends, since what is silent after its end is not silent.
    """

    number_us: ClassVar[int] = WINDOW_US
    queues: Sequence[str]
    detectors: Sequence[Detector]
    settings: Settings
    position: int = 0
    next: int = 0
    state_at: int = -1
    left: Left = field(default_factory=Left)
    lateness_us: int = LATENESS_US
    ends_us: int = NEVER
    reader: Reader = field(init=False)
    state: JudgeState = field(init=False)
    tables: dict[str, Table] = field(init=False)
    apart: Apart = field(default_factory=Apart)

    def __post_init__(self) -> None:
        self.tables = {t.name: t for d in self.detectors for t in d.tables}
        self.reader = Reader(self.queues, floor=self._needed())
        mine = {d.name for d in self.detectors}  # a detector that was taken away has no say any more
        self.state = JudgeState({}, {n: e for n, e in self.left.episodes.items() if n in mine})
        self.incidents = self._incidents = self.left.incidents
        self.known = self._known = dict(self.left.known)
        self._after: tuple[int, JudgeState] | None = None
        self.begun: list[tuple[str, str]] = []  # detector and level of what began or rose with what was said last

    def done(self) -> None:
        super().done()
        self.incidents, self.known = self._incidents, self._known

    def saved(self) -> tuple[int, str]:
        offset, number = super().saved()
        return offset, f"{number} {self.state_at}"

    def _partition(self, producer: str) -> tuple[str, int]:
        return SLICES, int(producer)

    def _needed(self) -> int:
        past = max((d.past_us for d in self.detectors), default=0)
        return max(0, self.next - -(-past // WINDOW_US))

    def say(self) -> tuple[int, list[Out]]:
        """(the first window not judged, the messages for those before it, the state last); done() makes it so."""
        to = self._to()
        if to == self.next:
            return to, []
        news: dict[str, list[pl.DataFrame]] = {}
        for taken in self.reader.below(to):
            for name, rows in taken.frames.items():
                news.setdefault(name, []).append(rows)
        canaries = news.pop(CANARY.name, [])
        self.apart.tell(
            "table", news.keys() - self.tables.keys(), "measured by a worker, read by no detector of this one"
        )
        if ACCOUNTS.name in self.tables and len(copies := self.differing(to)):
            news.setdefault(ACCOUNTS.name, []).append(copies)
        merged = {n: t.merge(pl.concat(news[n])) for n, t in self.tables.items() if n in news}
        lo_us = self.next * WINDOW_US
        before, now = pl.col("window") < lo_us, pl.col("window") >= lo_us
        past = {n: f.filter(before) for n, f in merged.items()}  # read again after a restart
        state = JudgeState({**self.state.history, **{n: f for n, f in past.items() if len(f)}}, self.state.episodes)
        tables = {n: f.filter(now) for n, f in merged.items()}
        begin = self._begin(tables)
        heard_us = min(self.ends_us, to * WINDOW_US + self.lateness_us)
        given = (begin, to * WINDOW_US, heard_us, self.settings, self._holes())
        judged, after = judge(self.detectors, state, tables, *given, partial(self.apart.raised, "detector"))
        self._after = to, after
        told = ((d, c.episode) for d in self.detectors for c in judged.changes.get(d.name, []))
        self.begun = [(d.name, named(d, episode.level)) for d, episode in told if episode.resolved is None]
        return to, self._messages(judged, canaries, to, after)

    def _holes(self) -> list[Hole]:
        lost = self.reader.lost_of.items()
        return [Hole(lo * WINDOW_US, hi * WINDOW_US, of) for of, r in lost for lo, hi in r.ranges]

    def _to(self) -> int:
        """All windows that are final, in pieces: after a silence of months they are millions."""
        begin = self.next or self.reader.first_fresh()
        to = self.reader.upto(self.next)
        return to if begin is None else min(to, max(begin, self.next) + MOST_WINDOWS)

    def _begin(self, tables: Mapping[str, pl.DataFrame]) -> int:
        """The first window to judge: of a log that begins, the first with rows."""
        starts = [int(f["window"].min()) for f in tables.values() if len(f)]  # type: ignore[arg-type]
        known = self.next or any(e.open or e.ended for e in self.state.episodes.values())
        return self.next * WINDOW_US if known else min(starts, default=0)

    def _messages(self, judged: Judged, canaries: Sequence[pl.DataFrame], to: int, after: JudgeState) -> list[Out]:
        lo, out = self.next, []
        said = _canaries(canaries, self.next)
        changes = self._changes(judged)
        for window, some in changes.items():
            said.setdefault(window, {})["changes"] = _frame(some)
        for window, frames in self._joined(changes).items():
            said[window] |= frames
        for window in sorted(said):
            head = Head(producer=PRODUCER, lo=lo, hi=window + 1, kind=self._kind(lo, window + 1, "rows"))
            out += [Out(0, *m) for m in messages(head, pack(said[window]))]
            lo = window + 1
        if lo < to:
            empty = Head(producer=PRODUCER, lo=lo, hi=to, kind=self._kind(lo, to, "empty"))
            out += [Out(0, *m) for m in messages(empty)]
        state = Head(producer=PRODUCER, lo=self.next, hi=to, kind="state")
        return out + [Out(0, *m) for m in messages(state, self._state(after.episodes))]

    def _joined(self, changes: Mapping[int, Sequence[tuple[int, dict[str, Any]]]]) -> dict[int, Frames]:
        """By window the incidents, those that people must hear of, and the findings of these as they stood."""
        every = (change(row, at) for some in changes.values() for at, row in some)
        self._incidents, incidents = fold(self.incidents, every, self.settings)
        out = {window: {"incidents": rows} for window, rows in incidents}
        said = dict(news(self.incidents, incidents))
        known = dict(self.known)
        for window in sorted(changes):
            known |= {row["finding_id"]: row for _, row in changes[window]}
            if window in said:
                of = out[window]["incidents"]["findings"].explode().struct.field("finding_id").drop_nulls()
                told = findings([known[f] for f in of.unique().sort()])
                out[window] |= {"news": said[window], "told": told}
        mine = {f.finding_id for i in self._incidents for f in i.findings}
        self._known = {f: row for f, row in known.items() if f in mine}
        return out

    def _state(self, episodes: Mapping[str, Episodes]) -> bytes:
        """For a successor episodes and incidents; for readers what is open as it stands now, and how it was judged."""
        open_ = findings(open_findings(self.detectors, fingerprint(self.settings), episodes)).sort("finding_id")
        settings = pl.DataFrame(rows_of(self.settings), schema=["config", "name", "value"], orient="row")
        ends = pl.DataFrame({"ends_us": [self.ends_us] if self.ends_us < NEVER else []}, schema={"ends_us": pl.Int64})
        incidents = pl.DataFrame({"saved": [encoded(self._incidents)]})
        kept = {"episodes": saved_episodes(episodes), "incidents": incidents}
        known = findings([self._known[f] for f in sorted(self._known)])
        return pack(kept | {"known": known, "open": open_, "settings": settings, "ends": ends})

    def _kind(self, lo: int, hi: int, kind: Any) -> Any:
        return "lost" if self.reader.is_lost(lo, hi) else kind

    def _changes(self, judged: Judged) -> dict[int, list[tuple[int, dict[str, Any]]]]:
        """Rows of finding_changes, each with its final_at, by the window (its index) with which they were final.

        An episode that is resolved at the begin of a window was so with the end of the one before.
        """
        config = fingerprint(self.settings)
        found: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for d in self.detectors:
            for c in judged.changes.get(d.name, []):
                row = finding(d, config, c.key, c.episode)
                window = c.window // WINDOW_US - (c.episode.resolved is not None)
                found.setdefault(window, []).append((c.window, row))
        return found


def _canaries(said: Sequence[pl.DataFrame], since: int) -> dict[int, Frames]:
    """Those of windows that were not said before; a restart reads the others again."""
    if not said:
        return {}
    merged = CANARY.merge(pl.concat(said))
    return by_window({CANARY.name: merged.filter(pl.col("window") >= since * WINDOW_US)})


def _frame(changes: Sequence[tuple[int, dict[str, Any]]]) -> pl.DataFrame:
    at = pl.Series("final_at", [w for w, _ in changes], dtype=pl.Int64).cast(INSTANT)
    return findings([row for _, row in changes]).with_columns(at).sort("finding_id", "final_at", "level")
