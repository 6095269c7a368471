"""A timeline enters; a screen, CSV, JSON lines that Timesketch imports, or one page for a browser leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from importlib.resources import files
from typing import Any

from streams.report.answers import ENCODER, comma_separated
from streams.report.found import Invoke, Sight, Span
from streams.report.sentences import count
from streams.report.timeline import Entry, Timeline

SHOWN = 200
COLUMNS = ("time", "until", "what", "level", "subject", "node", "words", "detector", "finding", "evidence", "readable")


def screen(t: Timeline, span: Span, sight: dict[str, Sight], whole: bool, invoke: Invoke) -> Iterator[str]:
    if not t.entries:
        yield f"Nothing happened in {_about(t, span)}."
        yield f"Next: {invoke('findings')}"
        return
    many = Counter[str](e.what for e in t.entries)
    told = [count(len(t.found), "finding"), *(count(many[w], one) for w, one in KINDS.items() if many[w])]
    yield f"TIMELINE {_about(t, span)}: {', '.join(told)}"
    shown = t.entries if whole else t.entries[:SHOWN]
    dated = len({e.at.date() for e in t.entries}) > 1
    cells = [(_time(e.at, dated), e.level.upper() or e.what, e.subject, e.words, _proof(e)) for e in shown]
    widths = [max(len(c[i]) for c in cells) for i in range(3)]
    for time, mark, subject, words, proof in cells:
        head = f"{time.ljust(widths[0])}  {mark.ljust(widths[1])}  {subject.ljust(widths[2])}"
        yield f"{head}  {words}{proof}"
    if len(shown) < len(t.entries):
        yield f"{len(t.entries) - len(shown):,} more: --all, or --since {t.entries[len(shown)].at:%H:%M:%S}"
    if blind := [s.detector for s in sight.values() if s.blind]:
        yield f"Can't be seen here: {', '.join(blind)} ({invoke('doctor')} says why)"
    yield "Times are those of the node that wrote the line; of a finding, where its first row lies."
    yield f"Next: {invoke('timeline --html timeline.html')}"


KINDS = {"signal": "signal", "note": "note", "event": "row", "silence": "silence"}


def _about(t: Timeline, span: Span) -> str:
    known = f", as it was known at {t.as_of:%H:%M:%S}" if t.as_of else ""
    return f"{span.days}{known}"


def _time(at: datetime, dated: bool) -> str:
    return f"{at:%m-%d %H:%M:%S.%f}"[:-3] if dated else f"{at:%H:%M:%S.%f}"[:-3]


def _proof(e: Entry) -> str:
    more = f" +{len(e.evidence) - 1}" if len(e.evidence) > 1 else ""
    return f"  [{e.evidence[0]}{more}]" if e.evidence else ""


def row(e: Entry) -> dict[str, Any]:
    """In the order of COLUMNS."""
    return {
        "time": e.at,
        "until": e.until,
        "what": e.what,
        "level": e.level,
        "subject": e.subject,
        "node": e.node,
        "words": e.words,
        "detector": e.detector,
        "finding": e.finding,
        "evidence": list(e.evidence),
        "readable": e.readable,
    }


def separated(t: Timeline) -> Iterator[str]:
    yield from comma_separated(
        COLUMNS, (list((row(e) | {"evidence": " ".join(e.evidence)}).values()) for e in t.entries)
    )


def json_lines(t: Timeline) -> Iterator[str]:
    """With the three fields that Timesketch requires: message, datetime, timestamp_desc."""
    for e in t.entries:
        message = f"{e.subject}: {e.words}" if e.subject else e.words
        theirs = {"message": message, "datetime": _iso(e.at), "timestamp_desc": DESCRIBED[e.what]}
        mine = {n: _iso(v) if isinstance(v, datetime) else v for n, v in row(e).items()}
        yield ENCODER.encode(theirs | mine | {"tag": [e.what, *([e.level] if e.level else [])]}).decode()


DESCRIBED = {
    "finding": "Window of a finding",
    "signal": "Signal",
    "event": "Event Logged",
    "note": "Note",
    "silence": "Begin of a silence",
}


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="microseconds")


# ---- the page -------------------------------------------------------------------------------------------------------


def page(t: Timeline, span: Span) -> str:
    """One self-contained file: bars and points on a line of time, and the list below; it asks no outside host."""
    data = {
        "title": f"Timeline {_about(t, span)}",
        "from": _ms(min([span.start, *(e.at for e in t.entries)])),
        "to": _ms(max([span.end, *(e.until or e.at for e in t.entries)])),
        "entries": [row(e) | {"time": _ms(e.at), "until": e.until and _ms(e.until)} for e in t.entries],
    }
    held = ENCODER.encode(data).decode().replace("<", "\\u003c")  # no value can end the script
    return files("streams.report").joinpath("timeline.html").read_text().replace("{{data}}", held)


def _ms(at: datetime) -> float:
    return (at - EPOCH) / timedelta(milliseconds=1)


EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
