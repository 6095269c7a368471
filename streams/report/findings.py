"""Findings enter, the list of them leaves: two lines each, what can't be said, the legend and the next command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from streams.report.found import Filter, Found, Invoke, Sight, Span, by_level
from streams.report.sentences import count, sentence

CANNOT_SAY = "Cannot say: "
LEGEND = "certain = proven by the events listed; possible = fits them."


def listing(
    found: Sequence[Found],
    span: Span,
    sight: dict[str, Sight],
    wanted: Filter,
    nobody: Sequence[str],
    unsaid: Sequence[str],
    used: Sequence[str],
    invoke: Invoke,
) -> Iterator[str]:
    """The lines of the screen.

    nobody: whom no row names, of those asked for; unsaid: what nobody could judge; used: the settings that these were
    judged with and that are not the default.
    """
    blind = [s for s in sight.values() if s.blind]
    levels = ", ".join(f"{n} {level}" for level, n in by_level(found).items())
    ran = f"{count(len(sight) - len(blind), 'detector')} ran, {len(blind)} blind"
    scope = f" ({wanted.words})" if wanted.words else ""
    incidents = len({f.incident for f in found if f.incident})
    joined = f" in {count(incidents, 'incident')}" if 0 < incidents < len(found) else ""
    yield f"{count(len(found), 'finding')}{joined}{scope}, {span.days}: {levels}. {ran}."
    yield from _rows(found, span)
    if unsaid:
        yield from (f"{'' if i else CANNOT_SAY:<{len(CANNOT_SAY)}}{words}" for i, words in enumerate(unsaid))
        yield f"{'':<{len(CANNOT_SAY)}}See: {invoke('detectors')}"
    if nobody:
        yield from (f"{CANNOT_SAY}{words}" for words in nobody)
    if not found and nobody:
        yield f"All findings: {invoke('findings')}"
        return
    if not found:
        rest = "what could be judged is under every threshold" if unsaid else "nothing is over a threshold"
        yield f"{rest.capitalize()}. Thresholds: {invoke('detectors')}"
        return
    if used:
        yield f"Judged with {', '.join(used)}"
    yield f"{LEGEND}  Next: {invoke(f'explain {found[0].short}')}"


def _rows(found: Sequence[Found], span: Span) -> Iterator[str]:
    if not found:
        return
    heads = ("ID", "LEVEL", "SURE", "FROM", "TO", "DETECTOR", "SUBJECT")
    rows = [
        (f.short, f.level.upper(), f.certainty, span.clock(f.onset), span.until(f), f.detector, f.name) for f in found
    ]
    widths = [max(len(r[i]) for r in (heads, *rows)) for i in range(len(heads))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

    yield line(heads)
    for f, row in zip(found, rows, strict=True):
        yield line(row)
        yield f"{'':{widths[0]}}  {sentence(f)}"
