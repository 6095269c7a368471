"""A state folder or a bundle enters; its connection, findings and incidents leave, also where it holds nothing."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
from IPython.display import Markdown

from detectors.detector import Detector, Settings
from detectors.windows import EPOCH
from streams.again import Landed, lateness_of
from streams.catalog import all_detectors
from streams.inventory import inventory
from streams.landing.bundle import unpack
from streams.landing.state import open_readable
from streams.problems import Exit, Problem
from streams.report.found import Found, Span, all_findings, span_of
from streams.report.incidents import Book, Incident, all_incidents, incident_of
from streams.report.postmortem import PostMortem, gather
from streams.report.render import markdown
from streams.said import said
from streams.settings import CONFIG, load

NO_SPAN = Span(EPOCH, EPOCH + timedelta(minutes=1))


@dataclass(frozen=True)
class Opened:
    """con: of the readable file. config: of the bundle, else beside the state, else of the working folder."""

    con: duckdb.DuckDBPyConnection
    book: Book
    incidents: list[Incident]
    config: Path
    aside: TemporaryDirectory[str] | None

    @property
    def found(self) -> list[Found]:
        return list(self.book.findings.values())

    @property
    def span(self) -> Span:
        return self.book.span

    @cached_property
    def settings(self) -> Settings:
        return load(all_detectors(self.config), path=self.config)

    def of(self, detector: str) -> list[Found]:
        """The worst first."""
        return sorted((f for f in self.found if f.detector == detector), key=lambda f: (-f.peak, f.onset))

    def incident(self, prefix: str = "") -> Incident | None:
        """The one whose id begins so; else the one with most findings, pages first. None where there is none."""
        if prefix:
            return incident_of(self.incidents, prefix, self.book.invoke("incident list"))
        some = [i for i in self.incidents if i.state != "merged" and self.book.of(i)]
        return max(some, key=lambda i: (len(self.book.of(i)), i.level == "page", -i.onset.timestamp()), default=None)

    def review(self, i: Incident) -> PostMortem:
        return gather(self.con, i, self.book)

    def landed(self, *chosen: Detector) -> Landed:
        """The measured tables that these detectors read."""
        return Landed(self.con, chosen, lateness_of(self.con))


def opened(where: str) -> Opened:
    """A state folder, or the .zip that `asynchealth bundle INCIDENT` makes, opened in a folder that goes with it."""
    folder, aside = Path(where), None
    if not folder.exists():
        then = 'make notebooks STATE=demo-state, or another STATE = "…" above'
        raise Problem(str(folder.absolute()), "no state folder and no bundle is there", then, Exit.NOTHING)
    if folder.is_file():
        aside = TemporaryDirectory(prefix="asynchealth-")
        folder = unpack(folder, Path(aside.name))
    beside = (f / CONFIG for f in (folder, folder.parent) if (f / CONFIG).exists())
    config = next(beside, Path(CONFIG))
    con = open_readable(folder)
    findings = {f.finding_id: f for f in all_findings(con)}

    def invoke(command: str) -> str:
        return f"asynchealth {command} --state {shlex.quote(folder.name if aside else where)}"

    book = Book(con, findings, said(con, folder), inventory(config), _span(con), invoke, datetime.now(UTC))
    return Opened(con, book, all_incidents(con), config, aside)


def _span(con: duckdb.DuckDBPyConnection) -> Span:
    try:
        return span_of(con, "")
    except Problem:  # no rows: each notebook says of what there is none
        return NO_SPAN


def told(*sentences: str) -> Markdown:
    """Paragraphs, to be read aloud; what a name holds is no markup."""
    return Markdown("\n\n".join(markdown(s) for s in sentences))


def screen(lines: Iterable[str]) -> Markdown:
    """As a terminal shows it."""
    return Markdown("\n".join(["```", *lines, "```"]))
