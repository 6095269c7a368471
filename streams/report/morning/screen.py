"""The report as data enters, the lines of the screen leave; `pages` makes documents of the same words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from streams.report.evidence import text
from streams.report.explain import quoted
from streams.report.found import NO_TIME, NO_TIMES, SHOWN_LEVELS, Invoke, is_time
from streams.report.morning import Report
from streams.report.morning.day import measures, words
from streams.report.morning.section import BADGE, Section, first_of, level
from streams.report.sentences import count, sentence, share

RULE = "━" * 43
MUCH_LATE = 0.10


def rendered(report: Report, invoke: Invoke) -> Iterator[str]:
    """The lines of the screen; `invoke` writes a command as it can be typed here."""
    yield f"🌅 {title(report)}"
    yield RULE
    yield from (_line(*line) for line in opening(report))
    for s in report.sections:
        yield f"{s.icon} {s.title + ':':<20}{headline(s)}"
        yield from (_line(*line) for line in under(report, s, invoke))
    if report.other:
        yield f"🔎 {'ALSO:':<20}{count(len(report.other), 'finding')} ({BADGE[level(report.other)]})"
        yield from (_line(*line) for line in also(report, invoke))
    yield RULE
    yield from (f"   {note}" for note in notes(report, invoke))
    first, *rest = commands(report, invoke)
    yield f"Next: {' | '.join(first)}"
    yield from (f"      {' | '.join(line)}" for line in rest)


def _line(label: str, said: str) -> str:
    """Values stand in one column; a label too long for it keeps a space."""
    return f"   {label:<19} {said}"


def title(report: Report) -> str:
    end = report.span.end
    return f"ASYNC HEALTH REPORT - {f'{end:%Y-%m-%d %H:%M} UTC' if is_time(report.span.last) else NO_TIMES}"


def opening(report: Report) -> Iterator[tuple[str, str]]:
    """Of which time, and what is known of the day before."""
    span, before = report.span, report.before
    scope = f"   ({report.wanted.words})" if report.wanted.words else ""
    days = f"{span.clock(span.start)} - {span.clock(span.end)} UTC" if is_time(span.last) else NO_TIME
    yield "Window:", f"{days}, {_levels(report.levels)}{scope}"
    if before.span:
        then = f"{before.span.start:%m-%d %H:%M} - {before.span.end:%m-%d %H:%M}"
        yield "Day before:", f"{then} UTC, {_levels(before.levels)}"
    else:
        yield "Day before:", f"unknown ({before.why})"


def _levels(levels: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {level}" for level, n in levels.items())


def headline(s: Section) -> str:
    """What a section says, with its level."""
    return s.value + (f" ({BADGE[s.state]})" if s.state in SHOWN_LEVELS and "cache hit" not in s.value else "")


def under(report: Report, s: Section, invoke: Invoke) -> Iterator[tuple[str, str]]:
    """The lines under a section's headline."""
    yield from s.lines
    yield from _more(s.more, invoke)
    if s.shown_by:
        yield "All:", invoke(s.shown_by)
    if report.before.span and measures(s):
        yield "Day before:", words(report.before.of(s), s)
    if s.runbook:
        yield "See first:", f"{invoke(f'runbook {s.runbook}')}   (does it hold a lease?)"
    if s.action:
        yield "Action:", s.action


def also(report: Report, invoke: Invoke) -> Iterator[tuple[str, str]]:
    """Findings that are in no section."""
    shown, more = first_of(report.other)
    for f in shown:
        yield f"- {f.name}:", f"{f.detector}, {sentence(f)}, {report.span.between(f)}"
    yield from _more(more, invoke)


def _more(more: Mapping[str, int], invoke: Invoke) -> Iterator[tuple[str, str]]:
    for detector, n in more.items():
        yield f"And {n:,} more:", invoke(f"findings --detector {detector}")


def accounting(totals: dict[str, int]) -> str:
    """306,679 read = 306,620 used + 35 late + …: every row is somewhere."""
    names = ("used", "late", "implausible", "rejected", "repeated", "stray", "parked")
    parts = [f"{totals[n]:,} {n}" for n in names if totals[n] or n == "used"]
    empty = f" + {totals['tombstones']:,} empty" if totals["tombstones"] else ""
    return f"{totals['read']:,} read = {' + '.join(parts)}{empty}"


def notes(report: Report, invoke: Invoke) -> Iterator[str]:
    """What one must know to believe the numbers."""
    totals = report.totals
    yield accounting(totals)
    if report.removed:
        before, why = report.removed
        yield f"Rows before {before:%Y-%m-%d %H:%M} UTC were removed by {why}; what was found in them stays."
    yield from (f"Cannot say: {line}" for line in report.lost)
    if report.used:
        yield f"Judged with {', '.join(report.used)}"
    if totals["late"] > MUCH_LATE * max(1, totals["read"]):
        part = share(totals["late"] / totals["read"])
        yield f"{part} of the rows arrived too late to be judged. The lateness that brings them in: {invoke('doctor')}"


def commands(report: Report, invoke: Invoke) -> Iterator[list[str]]:
    """The next commands, as they stand in lines."""
    yield [invoke("findings"), *([invoke(f"explain {report.first_page.short}")] if report.first_page else [])]
    if report.doubled_key:
        query = f"SELECT * FROM requests WHERE idempotency_key = {text(report.doubled_key)}"
        yield [invoke(f"sql {quoted(query)}")]
