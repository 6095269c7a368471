"""A person's own CSV enters, entries of the timeline leave: what was seen, said and done beside the logs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streams.problems import Exit, Problem
from streams.report.timeline import Entry

TIME, WORDS, SUBJECT = ("time", "timestamp", "datetime", "at"), ("what", "text", "note", "message"), ("subject", "who")


def notes_of(path: Path) -> list[Entry]:
    """A person's own CSV: a column for the time with its zone, one for what happened, perhaps one for whose it is."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lines = [(reader.line_num, row) for row in reader]
            names = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no CSV in UTF-8: {error}"
        raise Problem(str(path), str(reason), f"head {path}", Exit.USAGE) from None
    time, words = (_column(names, some, path) for some in (TIME, WORDS))
    subject = next((n for n in names if n.strip().lower() in SUBJECT), None)
    return [_note(path, number, row, time, words, subject) for number, row in lines]


def _column(names: Sequence[str], known: Sequence[str], path: Path) -> str:
    found = next((n for n in names if n.strip().lower() in known), None)
    if found is None:
        raise Problem(str(path), f"no column {' or '.join(known)}", "first line: time,what,subject", Exit.USAGE)
    return found


def _note(path: Path, number: int, row: Mapping[str | None, Any], time: str, words: str, subject: str | None) -> Entry:
    place = f"{path.name}:{number}"
    if None in row:
        raise Problem(place, "more cells than the first line has", 'put words with a comma in "quotes"', Exit.USAGE)
    at = _instant(row[time] or "")
    if at is None:
        raise Problem(place, f"{row[time]!r} is no time with a zone", "write 2026-01-26T08:22:00Z", Exit.USAGE)
    whose = ((row[subject] if subject else None) or "").strip()
    return Entry(at, "note", whose, (row[words] or "").strip(), (place,), readable=at)


def _instant(text: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(text.strip())
        return at.astimezone(UTC) if at.tzinfo else None
    except (ValueError, OverflowError):
        return None
