"""The log of findings enters; what a receiver must be told leaves, each change once, in an order that a kill keeps.

What is told is a function of the log and of a Cursor. When changes are there, the cursor names them as a batch and
which of them are old news; that is written down before the first of them is sent. So a successor sends the rest of the
same batch, however late it starts, and at most the one in flight comes twice.

Old is a change whose window ended more than ten minutes ago by the notifier's clock. Of old changes only what is still
open at page level is told, and the end of what was told before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

import msgspec

from detectors.finding import LEVELS
from detectors.windows import MINUTE_US, WINDOW_US
from streams.live.canary import CANARY
from streams.live.judge import PRODUCER
from streams.live.numbered import Reader
from streams.report.found import Found
from streams.report.sentences import sentence

OLD_US = 10 * MINUTE_US
Row = Mapping[str, Any]  # of finding_changes or of what is open
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """What people are told of a finding, or of ourselves. name: the subject as screens show it."""

    finding_id: str
    detector: str
    kind: str = ""
    subject_kind: str = ""
    subject: str
    environment: str = ""
    tenant: str = ""
    name: str
    level: str
    certainty: str = "certain"
    state: Literal["firing", "resolved"]
    onset: datetime
    since: datetime  # the state and the level
    sentence: str
    commands: tuple[str, ...]  # what to type next, the runbook first

    @property
    def key(self) -> str:
        """By which a receiver knows what it has already."""
        return f"{self.finding_id}/{self.level}/{self.state}"

    @property
    def headline(self) -> str:
        began = "RESOLVED" if self.state == "resolved" else self.level.upper()
        return f"{began} {self.detector} {self.name}: {self.sentence}"


def notice(row: Row) -> Notice:
    """A change as it is told; a row of what is open has no final_at, and is so since its onset."""
    columns = {n: v for n, v in row.items() if n != "final_at"}
    facts = msgspec.json.decode(row["facts"]) or {}
    f = Found(short=row["finding_id"], **{**columns, "facts": facts, "proof": [str(c) for c in row["proof"] or ()]})
    return Notice(
        finding_id=f.finding_id,
        detector=f.detector,
        kind=f.kind,
        subject_kind=f.subject_kind,
        subject=f.subject,
        environment=f.environment,
        tenant=f.tenant,
        name=f.name,
        level=f.level,
        certainty=f.certainty,
        state="firing" if f.resolved is None else "resolved",
        onset=f.onset,
        since=f.resolved or row.get("final_at") or f.onset,
        sentence=sentence(f),
        commands=(f"asynchealth runbook {f.detector}", f"asynchealth explain {f.finding_id}"),
    )


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """How far one receiver has been told: `sent` of the batch of windows next ≤ n < until, old before `fresh`."""

    next: int
    until: int
    fresh: int
    sent: int = 0

    @property
    def idle(self) -> bool:
        return self.until == self.next


def at(window: int) -> Cursor:
    return Cursor(window, window, window)


class Numbered(NamedTuple):
    window: int
    row: Row


@dataclass
class News:
    """The changes that some receiver has still to be told, what is open by judge's last state, and which canaries came.

    base: the first window whose changes are kept; None: the first that the log tells of.
    """

    position: int = 0
    base: int | None = None
    reader: Reader = field(default_factory=lambda: Reader([PRODUCER]))
    rows: dict[int, list[Row]] = field(default_factory=dict)
    canaries: dict[str, int] = field(default_factory=dict)  # of each sender the last that came out

    def feed(self, offset: int, key: bytes | None, value: bytes | None) -> None:
        if offset < self.position:
            return
        self.reader.take(offset, key, value)
        self.position = offset + 1
        if self.base is None:
            self.base = self.reader.first()
        if self.base is not None:
            for taken in self.reader.below(self.reader.upto(self.base)):
                if taken.number >= self.base and "changes" in taken.frames:
                    self.rows[taken.number] = list(taken.frames["changes"].iter_rows(named=True))
                if CANARY.name in taken.frames:
                    self.canaries.update(taken.frames[CANARY.name].select("name", "number").iter_rows())

    @property
    def judged(self) -> int:
        """The first window that is not judged yet."""
        return self.reader.state.number if self.reader.state else 0

    def open(self) -> list[Row]:
        frames = self.reader.state.frames if self.reader.state else {}
        return list(frames["open"].iter_rows(named=True)) if "open" in frames else []

    def decided(self, cursor: Cursor, now_us: int, held: bool) -> Cursor | None:
        """The batch after this one. Old changes wait until what followed them is known, unless judging stands still."""
        known = self.reader.upto(cursor.next)
        fresh = first_fresh(now_us)
        if known == cursor.next or (known <= fresh and not held):
            return None
        return Cursor(cursor.next, known, min(max(fresh, cursor.next), known))

    def has(self, cursor: Cursor) -> bool:
        """Whether all of the batch is read: a successor knows what its predecessor decided before it knows the rows."""
        return self.reader.upto(cursor.next) >= cursor.until

    def items(self, cursor: Cursor) -> list[Row]:
        """What the batch tells."""
        numbered = [Numbered(n, r) for n in sorted(self.rows) if cursor.next <= n < cursor.until for r in self.rows[n]]
        old = [r for n, r in numbered if n < cursor.fresh]
        return told(old, [r for n, r in numbered if n >= cursor.fresh])

    def forget(self, below: int) -> None:
        """What every receiver has been told; the last state is read again by a successor, and so is what it follows."""
        self.base = below
        self.rows = {n: rows for n, rows in self.rows.items() if n >= below}
        self.reader.forget(min(below, self.judged - 1))

    def restart(self) -> int:
        """The offset at which a successor must begin."""
        return self.reader.restart(self.position)


def first_fresh(now_us: int) -> int:
    """The first window that ended no more than ten minutes ago."""
    return -(-(now_us - OLD_US) // WINDOW_US) - 1


def told(old: Sequence[Row], fresh: Sequence[Row]) -> list[Row]:
    """Of old changes the last of a finding, where it still matters; of fresh ones all but ends of what nobody knows."""
    last = {r["finding_id"]: r for r in old}
    began = {r["finding_id"] for r in old if r["resolved"] is None}
    ended = {r["finding_id"] for r in fresh if r["resolved"] is not None}
    unknown = began - {r["finding_id"] for r in fresh if r["resolved"] is None}
    still = [r for r in last.values() if r["resolved"] is None and r["level"] == LEVELS[-1]]
    over = [r for r in last.values() if r["resolved"] is not None and r["finding_id"] not in began]
    return [
        *over,
        *(r for r in still if r["finding_id"] not in ended),
        *(r for r in fresh if r["resolved"] is None or r["finding_id"] not in unknown),
    ]


def instant(window: int) -> datetime:
    return EPOCH + timedelta(microseconds=window * WINDOW_US)
