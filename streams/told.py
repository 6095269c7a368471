"""What a replay says of each file enters, what people are shown leaves: of many alike one line, with their sum."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

FEW = 5  # alike are shown each
SHOWN = 3  # names
READ_AS = re.compile(r"(\S+ → \w+), ([\d,]+) events?")
BEFORE = re.compile(r"(read before|a shorter copy) (?:as|of) .*, nothing new in it")


def together(notes: Sequence[str]) -> Iterator[str]:
    """In their order; those that are one stand where the first of them stood."""
    alike: dict[str, list[str]] = {}
    for note in notes:
        alike.setdefault(_kind(note), []).append(note)
    told = set[str]()
    for note in notes:
        kind = _kind(note)
        if len(alike[kind]) <= FEW:
            yield note
        elif kind not in told:
            told.add(kind)
            yield _one(kind, alike[kind])


def _kind(note: str) -> str:
    """What it says without the file's name, and without what is another number or name in each."""
    reason = note.partition("\n")[0].partition(": ")[2]
    if before := BEFORE.fullmatch(reason):
        return f"{before[1]}, nothing new in them"
    return read[1] if (read := READ_AS.fullmatch(reason)) else reason


def _one(kind: str, notes: Sequence[str]) -> str:
    names = [note.partition(": ")[0] for note in notes]
    events = [read[2] for note in notes if (read := READ_AS.search(note))]
    many = f", {sum(int(n.replace(',', '')) for n in events):,} events" if len(events) == len(notes) else ""
    _, end, then = notes[0].partition("\n")
    return f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN:,} others: {kind}{many}{end}{then}"
