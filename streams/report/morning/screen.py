"""The report as data enters, the lines of the screen leave."""

from __future__ import annotations

from collections.abc import Iterator

from streams.report.evidence import (
    text,
)
from streams.report.explain import quoted
from streams.report.found import Invoke
from streams.report.morning import Report
from streams.report.morning.section import BADGE, level
from streams.report.sentences import count, sentence, share

RULE = "━" * 43
MUCH_LATE = 0.10


def rendered(report: Report, invoke: Invoke) -> Iterator[str]:
    """The lines of the screen; `invoke` writes a command as it can be typed here."""
    span, levels = report.span, report.levels
    yield f"🌅 ASYNC HEALTH REPORT - {span.end:%Y-%m-%d %H:%M} UTC"
    yield RULE
    scope = f"   ({report.wanted.words})" if report.wanted.words else ""
    days = f"{span.clock(span.start)} - {span.clock(span.end)} UTC"
    yield _line("Window:", f"{days}, {levels['page']} page, {levels['warn']} warn{scope}")
    for s in report.sections:
        badge = f" ({BADGE[s.state]})" if s.state in ("page", "warn") and "cache hit" not in s.value else ""
        yield f"{s.icon} {s.title + ':':<20}{s.value}{badge}"
        yield from (_line(*line) for line in s.lines)
        if s.runbook:
            yield _line("See first:", f"{invoke(f'runbook {s.runbook}')}   (does it hold a lease?)")
        if s.action:
            yield _line("Action:", s.action)
    if report.other:
        yield f"🔎 {'ALSO:':<20}{count(len(report.other), 'finding')} ({BADGE[level(report.other)]})"
        for f in report.other:
            yield _line(f"- {f.name}:", f"{f.detector}, {sentence(f)}, {span.between(f)}")
    yield RULE
    yield from _footer(report, invoke)


def _line(label: str, words: str) -> str:
    """Values stand in one column; a label too long for it keeps a space."""
    return f"   {label:<19} {words}"


def accounting(totals: dict[str, int]) -> str:
    """306,679 read = 306,620 used + 35 late + …: every row is somewhere."""
    names = ("used", "late", "implausible", "rejected", "repeated", "stray", "parked")
    parts = [f"{totals[n]:,} {n}" for n in names if totals[n] or n == "used"]
    empty = f" + {totals['tombstones']:,} empty" if totals["tombstones"] else ""
    return f"{totals['read']:,} read = {' + '.join(parts)}{empty}"


def _footer(report: Report, invoke: Invoke) -> Iterator[str]:
    totals = report.totals
    yield f"   {accounting(totals)}"
    if report.removed:
        before, why = report.removed
        yield f"   Rows before {before:%Y-%m-%d %H:%M} UTC were removed by {why}; what was found in them stays."
    if report.used:
        yield f"   Judged with {', '.join(report.used)}"
    if totals["late"] > MUCH_LATE * max(1, totals["read"]):
        part = share(totals["late"] / totals["read"])
        yield f"   {part} of the rows arrived too late to be judged. Bring them in: {invoke('rebuild --lateness 10m')}"
    first = f" | {invoke(f'explain {report.first_page.short}')}" if report.first_page else ""
    yield f"Next: {invoke('findings')}{first}"
    if report.doubled_key:
        query = f"SELECT * FROM requests WHERE idempotency_key = {text(report.doubled_key)}"
        yield f"      {invoke(f'sql {quoted(query)}')}"
