"""The report as data enters, a document leaves: Markdown for a chat or an issue, HTML for a browser or a printer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from streams.report.found import Invoke
from streams.report.morning import Report
from streams.report.morning.screen import also, commands, headline, notes, opening, title, under
from streams.report.morning.section import BADGE, level
from streams.report.render import harmless, html, markdown, page
from streams.report.sentences import count

Part = tuple[str, str, list[tuple[str, str]]]  # heading, state, lines


def as_markdown(report: Report, invoke: Invoke) -> Iterator[str]:
    """Headings, lists and one block of commands: what GitHub and Slack both show."""
    yield f"# 🌅 {markdown(title(report))}"
    yield ""
    yield from _listed(opening(report))
    for heading, _, lines in _parts(report, invoke):
        yield ""
        yield f"## {markdown(heading)}"
        yield ""
        yield from _listed(lines)
    yield ""
    yield from (f"{markdown(note)}  " for note in notes(report, invoke))
    yield ""
    yield "```sh"
    yield from (harmless(command) for line in commands(report, invoke) for command in line)
    yield "```"


def _listed(lines: Iterable[tuple[str, str]]) -> Iterator[str]:
    return (f"- **{markdown(label.removeprefix('- '))}** {markdown(said)}" for label, said in lines)


def as_html(report: Report, invoke: Invoke) -> Iterator[str]:
    """One page that needs nothing else."""
    yield page(title(report), "\n".join(_body(report, invoke)))


def _body(report: Report, invoke: Invoke) -> Iterator[str]:
    yield f"<h1>🌅 {html(title(report))}</h1>"
    yield from _defined(opening(report))
    for heading, state, lines in _parts(report, invoke):
        yield f'<section>\n<h2 class="{state}">{html(heading)}</h2>'
        yield from _defined(lines)
        yield "</section>"
    yield "<section>"
    yield from (f"<div>{html(note)}</div>" for note in notes(report, invoke))
    yield "<pre>" + "\n".join(html(c) for line in commands(report, invoke) for c in line) + "</pre>\n</section>"


def _defined(lines: Iterable[tuple[str, str]]) -> Iterator[str]:
    rows = [f"<dt>{html(label.removeprefix('- '))}</dt><dd>{html(said)}</dd>" for label, said in lines]
    if rows:
        yield "<dl>\n" + "\n".join(rows) + "\n</dl>"


def _parts(report: Report, invoke: Invoke) -> Iterator[Part]:
    for s in report.sections:
        yield f"{s.icon} {s.title}: {headline(s)}", s.state, [*under(report, s, invoke)]
    if report.other:
        worst = level(report.other)
        yield f"🔎 ALSO: {count(len(report.other), 'finding')} ({BADGE[worst]})", worst, [*also(report, invoke)]
