"""The log of findings enters; what a receiver must be told of incidents leaves, once, in an order that a kill keeps.

An incident is told when it opens, rises to another level, ends, or opens again; not when more findings join it.

What is told is a function of the log and of a Cursor. When changes are there, the cursor names them as a batch and
which of them are old news; that is written down before the first of them is sent. So a successor sends the rest of the
same batch, however late it starts, and at most the one in flight comes twice.

Old is a change whose window ended more than ten minutes ago by the notifier's clock. Of old changes only what is still
open at page level is told, and the end of what was told before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec
import polars as pl

from detectors.engine import FINDING
from detectors.finding import LEVELS
from detectors.incidents import INCIDENT, OPEN, decoded, id_of, row_of
from detectors.windows import LATENESS_US, MINUTE_US, WINDOW_US, time_of
from streams.inventory import Inventory
from streams.live.canary import CANARY
from streams.live.judge import PRODUCER
from streams.live.numbered import Reader
from streams.report.found import Found
from streams.report.incidents import contacts, services, tree
from streams.report.sentences import sentence
from streams.said import Word

OLD_US = 10 * MINUTE_US
Row = Mapping[str, Any]  # of NEWS, and under `told` the rows of its findings


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """What people are told of an incident, or of ourselves. From detector to name: what it began with.

    key: by which a receiver knows what it has already. about: what a silence of it may name.
    """

    key: str
    incident_id: str
    detector: str
    kind: str = ""
    subject_kind: str = ""
    subject: str
    service: str = ""
    environment: str = ""
    tenant: str = ""
    name: str
    level: str
    certainty: str = "certain"
    state: str  # open, reopened or resolved; of ourselves firing or resolved
    onset: datetime
    since: datetime  # the state and the level
    sentence: str  # of the root cause
    chain: tuple[str, ...] = ()  # each finding with its numbers and why it is there, the root cause first
    findings: tuple[Mapping[str, str], ...] = ()
    contacts: tuple[str, ...] = ()
    commands: tuple[str, ...]  # what to type next, the runbook first
    about: frozenset[str] = frozenset()

    @property
    def headline(self) -> str:
        word = {"resolved": "RESOLVED", "reopened": f"{self.level.upper()} AGAIN"}.get(self.state, self.level.upper())
        return f"{word} {self.chain[0] if self.chain else f'{self.detector} {self.name}: {self.sentence}'}"

    @property
    def text(self) -> str:
        """All of it, as chats show it."""
        then = [f"then {line}" for line in self.chain[1:]]
        call = [f"Call: {'; '.join(self.contacts)}"] if self.contacts else []
        return "\n".join([self.headline, *then, *call, f"Next: {' | '.join(self.commands)}"])

    def is_quiet(self, words: Collection[Word], now: datetime) -> bool:
        """Silenced, or acknowledged as it is now: one that rises or opens again after that is told."""
        readable = self.since + READABLE_AFTER
        known = any(w.what == "ack" and w.about == self.incident_id and w.at >= readable for w in words)
        return self.is_silenced(words, now) or (known and self.state != "resolved")

    def is_silenced(self, words: Iterable[Word], now: datetime) -> bool:
        return any(w.silences(self.about, now) for w in words)

    def began_silenced(self, words: Iterable[Word]) -> bool:
        """At the time at which it could first be told."""
        readable = self.onset + READABLE_AFTER
        return any(w.at <= readable and w.silences(self.about, readable) for w in words)

    def told(self, receiver: str, host: str, at: datetime) -> Word:
        """That it was, to whom, and when: one fact, however often it was told."""
        what = f"{self.level}, {self.state}"
        known = f"{self.key}/{receiver}"
        return Word(at=at, what="notified", about=self.incident_id, by=f"{receiver} {host}", note=what, event_id=known)


READABLE_AFTER = timedelta(microseconds=WINDOW_US + LATENESS_US)


def notice(row: Row, inventory: Inventory) -> Notice:
    """An incident as it is told: a row of news, and under `told` the rows of its findings."""
    known = {r["finding_id"]: _found(r) for r in row["told"]}
    mine = [known[f["finding_id"]] for f in row["findings"] if f["finding_id"] in known] or list(known.values())
    began = next((f for f in known.values() if id_of(f.finding_id) == row["incident_id"]), mine[0])
    if into := row["merged_into"]:
        mine = [began]
    root = mine[0]
    state = "resolved" if into else row["state"]
    since = row["final_at"] or row["onset"]
    id_ = row["incident_id"]
    why = {effect: because for some in tree(row["chain"], mine).values() for effect, because in some}
    chain = () if into else tuple(_line(f, why.get(f.finding_id, "")) for f in mine)
    roles = {f["finding_id"]: f["role"] for f in row["findings"]}
    return Notice(
        key=f"{id_}/{row['level']}/{state}/{since:%Y%m%dT%H%M%SZ}",
        incident_id=id_,
        detector=began.detector,
        kind=began.kind,
        subject_kind=began.subject_kind,
        subject=began.subject,
        service=next(iter(services([began])), ""),
        environment=began.environment,
        tenant=began.tenant,
        name=began.name,
        level=row["level"],
        certainty=root.certainty,
        state=state,
        onset=row["onset"],
        since=row["resolved"] or since,
        sentence=f"went into {into}" if into else sentence(root),
        chain=chain,
        findings=tuple(_told(f, roles[f.finding_id]) for f in mine if f.finding_id in roles),
        contacts=tuple(contacts(mine, inventory)),
        commands=_commands(root.detector, into or id_, state),
        about=frozenset({id_, root.detector}),
    )


def _found(row: Row) -> Found:
    facts = msgspec.json.decode(row["facts"]) or {}
    return Found(short=row["finding_id"], **{**row, "facts": facts, "proof": [str(c) for c in row["proof"] or ()]})


def _line(f: Found, why: str) -> str:
    return f"{f.detector} {f.name}: {sentence(f)}{f', since {why}' if why else ''}"


def _told(f: Found, role: str) -> dict[str, str]:
    known = {"finding_id": f.finding_id, "detector": f.detector, "kind": f.kind, "subject": f.subject}
    return {**known, "level": f.level, "role": role, "sentence": sentence(f)}


def _commands(detector: str, incident: str, state: str) -> tuple[str, ...]:
    first = f"asynchealth runbook {detector}", f"asynchealth incident show {incident}"
    return first if state == "resolved" else (*first, f"asynchealth incident ack {incident} --by NAME")


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
                if taken.number >= self.base and "news" in taken.frames:
                    self.rows[taken.number] = _rows(taken.frames["news"], taken.frames["told"])
                if CANARY.name in taken.frames:
                    self.canaries.update(taken.frames[CANARY.name].select("name", "number").iter_rows())

    @property
    def judged(self) -> int:
        """The first window that is not judged yet."""
        return self.reader.state.number if self.reader.state else 0

    def open(self) -> list[Row]:
        """Incidents, with their findings as they are now, where they are open."""
        if self.reader.state is None:
            return []
        frames = self.reader.state.frames
        memory = [i for i in decoded(frames["incidents"]["saved"][0]) if i.resolved is None]
        parts = [frames[name] for name in ("known", "open") if name in frames]
        rows = {r["finding_id"]: r for part in parts for r in part.iter_rows(named=True)}
        now = pl.DataFrame([row_of(i) for i in memory], schema=INCIDENT, orient="row")
        return _rows(now.with_columns(final_at="onset"), pl.DataFrame(list(rows.values()), schema=FINDING))

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

    def items(self, cursor: Cursor, levels: Collection[str] = LEVELS[1:]) -> list[Row]:
        """What the batch tells."""
        numbered = [Numbered(n, r) for n in sorted(self.rows) if cursor.next <= n < cursor.until for r in self.rows[n]]
        mine = [m for m in numbered if m.row["level"] in levels]
        old = [r for n, r in mine if n < cursor.fresh]
        return told(old, [r for n, r in mine if n >= cursor.fresh], levels)

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


def told(old: Sequence[Row], fresh: Sequence[Row], levels: Collection[str] = LEVELS[1:]) -> list[Row]:
    """Of old changes the last of an incident, where it matters; of fresh ones all but ends of what nobody knows."""
    first, last = ({r["incident_id"]: r for r in some} for some in (reversed(old), old))
    knows = {i for i, r in first.items() if r["was"] in levels}  # and of what is not in the old, whoever listened
    next_ = {r["incident_id"]: r for r in reversed(fresh)}
    over = [r for i, r in last.items() if not _open(r) and i in knows]
    still = [
        r for i, r in last.items() if _open(r) and r["level"] == LEVELS[-1] and (i not in next_ or _open(next_[i]))
    ]
    unknown = last.keys() - {i for i in knows if _open(last[i])} - {r["incident_id"] for r in still}
    heard = []
    for r in fresh:
        if _open(r) or r["incident_id"] not in unknown:
            heard.append(r)
            unknown -= {r["incident_id"]}
    return [*over, *still, *heard]


def _open(row: Row) -> bool:
    return row["state"] in OPEN


def _rows(incidents: pl.DataFrame, findings: pl.DataFrame) -> list[Row]:
    """Each with what is told of it: its findings, or of one that went into another those of that."""
    every = {r["finding_id"]: r for r in findings.iter_rows(named=True)}
    return [{**r, "told": [every[f] for f in _listed(r, every)]} for r in incidents.iter_rows(named=True)]


def _listed(row: Row, every: Mapping[str, Row]) -> list[str]:
    if row["merged_into"]:
        return sorted(every, key=lambda f: (id_of(f) != row["incident_id"], f))[:1]
    return [f["finding_id"] for f in row["findings"]]


def instant(window: int) -> datetime:
    return time_of(window * WINDOW_US)
