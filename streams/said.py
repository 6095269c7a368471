"""What people say of an incident enters and leaves, as signals like any other: acknowledgements and silences.

And what they were told of it, which `notify` says. Of a state that was replayed they are in acks.jsonl beside it, of
one that is fed live in the topic `signals`, with which they land. So they outlive a rebuild, and whoever reads the
state knows them at once.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import duckdb
import msgspec

from streams.problems import Exit, Problem, shell

ACKS = "acks.jsonl"
PREFIX = "incident."
What = Literal["ack", "silence", "notified"]
NAMES = [PREFIX + what for what in get_args(What)]


SPOKEN = f"kind = 'change' AND name IN ({', '.join(repr(n) for n in NAMES)}) AND json_valid(text)"  # rows of signals


class Word(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was said at a time. about: an incident's id or a detector's name; until: of a silence.

    by: who said it, or who was told. event_id: by which it is one, however often it was written.
    """

    at: datetime
    what: What
    about: str
    by: str = ""
    note: str = ""
    until: datetime | None = None
    event_id: str = ""

    @property
    def words(self) -> str:
        """What was done and by whom, for a line that says when."""
        if self.what == "notified":
            return f"told to {self.by}"
        done = "acknowledged" if self.until is None else f"silenced until {self.until:%Y-%m-%d %H:%M} UTC"
        return f"{done}{f' by {self.by}' if self.by else ''}"

    def silences(self, names: Collection[str], at: datetime) -> bool:
        return self.what == "silence" and self.about in names and self.until is not None and at < self.until


class _Text(msgspec.Struct, omit_defaults=True):
    by: str = ""
    note: str = ""


class _Record(msgspec.Struct, omit_defaults=True):
    """An event of the stream `signals`; value: of a silence, how many seconds."""

    timestamp: Annotated[datetime, msgspec.Meta(tz=True)]
    subject: str
    name: str
    kind: str = ""
    value: float | None = None
    text: str = "{}"
    event_id: str = ""


def record(word: Word) -> bytes:
    """As the event that it is."""
    lasts = (word.until - word.at).total_seconds() if word.until else None
    text = msgspec.json.encode(_Text(word.by, word.note)).decode()
    return msgspec.json.encode(_Record(word.at, word.about, PREFIX + word.what, "change", lasts, text, word.event_id))


def _word(r: _Record) -> Word:
    text = msgspec.json.decode(r.text, type=_Text)
    try:
        until = r.timestamp + timedelta(seconds=r.value) if r.value is not None else None
    except (OverflowError, ValueError):
        raise msgspec.ValidationError(f"{r.value:g} s after {r.timestamp} is no time") from None
    what = msgspec.convert(r.name.removeprefix(PREFIX), What)
    said: dict[str, Any] = {"by": text.by, "note": text.note, "until": until, "event_id": r.event_id}
    return Word(at=r.timestamp, what=what, about=r.subject, **said)


def words_in(value: bytes | None) -> list[Word]:
    """Of a message of the topic `signals`; most of them are other people's, of whatever form."""
    if value is None or not any(name.encode() in value for name in NAMES):
        return []
    try:
        read = msgspec.json.decode(value, type=list[_Record] | _Record)
    except msgspec.DecodeError:
        return []  # it only looks like one
    return _words(r for r in (read if isinstance(read, list) else [read]) if r.name in NAMES)


def _words(records: Iterable[_Record]) -> list[Word]:
    """Without those that only look like one."""
    found = []
    for r in records:
        with suppress(msgspec.DecodeError):
            found.append(_word(r))
    return found


def write(folder: Path, word: Word) -> None:
    """To the end of the file; it is on the disk when this returns. What a full disk cut off there makes room."""
    path = folder / ACKS
    try:
        with path.open("a+b") as file:
            file.seek(0)
            whole = _whole(file.read())
            file.truncate(len(whole))
            between = b"\n" if whole and not whole.endswith(b"\n") else b""
            file.write(between + record(word) + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Problem(str(path), f"can't be written: {error.strerror}", f"ls -ld {shell(folder)}", Exit.STATE) from None


def said(con: duckdb.DuckDBPyConnection, folder: Path) -> list[Word]:
    """All of it, the oldest first; what was written twice once, as it was first.

    Anybody may write a signal: what landed and only looks like a word is passed over.
    """
    sql = f"SELECT timestamp, subject, name, kind, value, text, coalesce(event_id, '') FROM signals WHERE {SPOKEN}"
    landed = [w for row in con.execute(sql).fetchall() for w in _words([_Record(*row)])]
    every = sorted([*landed, *_file(folder / ACKS)], key=lambda w: (w.at, w.about, w.what))
    first: dict[str | Word, Word] = {}
    for w in every:
        first.setdefault(w.event_id or w, w)
    return list(first.values())


def _file(path: Path) -> list[Word]:
    """Of its whole lines: where the last was cut off nobody was told that it is kept."""
    if not path.exists():
        return []
    try:
        return [_word(msgspec.json.decode(line, type=_Record)) for line in _whole(path.read_bytes()).splitlines()]
    except (OSError, msgspec.DecodeError) as error:
        raise Problem(str(path), f"can't be read: {error}", f"mv {shell(path)} {shell(path)}.bad", Exit.STATE) from None


def _whole(lines: bytes) -> bytes:
    """Without what a full disk left of the last."""
    last = lines.rfind(b"\n") + 1
    return lines if lines.endswith(b"}") else lines[:last]
