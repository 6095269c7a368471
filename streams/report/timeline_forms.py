"""A timeline enters; a screen, CSV, JSON lines that Timesketch imports, or one page for a browser leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from importlib.resources import files
from typing import Any

from detectors.windows import EPOCH
from streams.report import render
from streams.report.answers import ENCODER, comma_separated
from streams.report.corrected import MS
from streams.report.found import MINUTE, Invoke, Sight, Span
from streams.report.sentences import count, stamp
from streams.report.timeline import Entry, Timeline

SHOWN = 200
COLUMNS = (
    *("time", "corrected", "earliest", "latest", "until", "what", "level", "subject", "node", "words", "detector"),
    *("finding", "evidence", "readable"),
)


def screen(t: Timeline, span: Span, sight: dict[str, Sight], whole: bool, invoke: Invoke) -> Iterator[str]:
    if not t.entries:
        yield f"Nothing happened in {_about(t, span)}."
        yield f"Next: {invoke('findings')}"
        return
    many = Counter[str](e.what for e in t.entries)
    told = [count(len(t.found), "finding"), *(count(many[w], one) for w, one in KINDS.items() if many[w])]
    yield f"TIMELINE {_about(t, span)}: {', '.join(told)}"
    shown = t.entries if whole else t.entries[:SHOWN]
    dated = len({_placed(e).date() for e in t.entries}) > 1
    cells = [(_time(e.at, dated), e.corrected, e.level.upper() or e.what, e.subject) for e in shown]
    widths = [max(len(c[i]) for c in (HEADS, *cells)) for i in range(len(HEADS))]
    yield "  ".join(h.ljust(w) for h, w in zip(HEADS, widths, strict=True)).rstrip()
    for e, cell in zip(shown, cells, strict=True):
        yield f"{'  '.join(c.ljust(w) for c, w in zip(cell, widths, strict=True))}  {e.words}{_proof(e)}"
    if len(shown) < len(t.entries):
        yield f"{len(t.entries) - len(shown):,} more: --all, or --since {_placed(t.entries[len(shown)]):%H:%M:%S}"
    if blind := [s.detector for s in sight.values() if s.blind]:
        yield f"Can't be seen here: {', '.join(blind)} ({invoke('doctor')} says why)"
    yield LEGEND
    yield f"Next: {invoke('timeline --html timeline.html')}"


HEADS = ("TIME raw", "CORRECTED", "", "SUBJECT")
LEGEND = "Raw: by the clock of the node that wrote the row, which stands where corrected. A finding: at its first row."
KINDS = {"signal": "signal", "note": "note", "event": "row", "silence": "silence"}


def _about(t: Timeline, span: Span) -> str:
    if t.as_of is None:
        return span.days
    one_day = span.start.date() == (span.end - MINUTE).date() == t.as_of.date()
    return f"{span.days}, as it was known at {t.as_of:{'%H:%M:%S' if one_day else '%Y-%m-%d %H:%M:%S'}}"


def _time(at: datetime, dated: bool) -> str:
    return f"{at:%m-%d %H:%M:%S.%f}"[:-3] if dated and 2000 < at.year < 2090 else stamp(at)


def _placed(e: Entry) -> datetime:
    return e.placed or e.at


def _proof(e: Entry) -> str:
    more = f" +{len(e.evidence) - 1}" if len(e.evidence) > 1 else ""
    return f"  [{e.evidence[0]}{more}]" if e.evidence else ""


def row(e: Entry) -> dict[str, Any]:
    """In the order of COLUMNS."""
    return {"time": e.at} | {n: getattr(e, n) for n in COLUMNS[1:]}


def separated(t: Timeline) -> Iterator[str]:
    rows = (row(e) | {"evidence": " ".join(e.evidence)} for e in t.entries)
    yield from comma_separated(COLUMNS, ([*r.values()] for r in rows))


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
    title = f"Timeline {_about(t, span)}"
    data = {
        "title": title,
        "legend": LEGEND,
        "from": _ms(min([span.start, *map(_placed, t.entries)])),
        "to": _ms(max([span.end, *(e.until or _placed(e) for e in t.entries)])),
        "entries": [row(e) | _in_ms(e) for e in t.entries],
    }
    held = ENCODER.encode(data).decode().replace("<", "\\u003c")  # no value can end the script
    body, style = (files("streams.report").joinpath(f"timeline.{kind}").read_text() for kind in ("html", "css"))
    return render.page(title, body.replace("{{data}}", held), style, scripts=True)


def _in_ms(e: Entry) -> dict[str, Any]:
    ends = {"until": e.until, "earliest": e.earliest, "latest": e.latest}
    return {"time": _ms(_placed(e)), "raw": stamp(e.at)} | {n: at and _ms(at) for n, at in ends.items()}


def _ms(at: datetime) -> float:
    return (at - EPOCH) / MS
