"""Commands for the review: what happened, in what order, by which evidence. They write the file asked for, no more."""

from __future__ import annotations

import shlex
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streams.cli.look import Ascii, Csv, Key, Node, Service, Since, Trace, Until, asked, give, opened, say
from streams.cli.work import STATE, State, program, with_state
from streams.problems import Exit, Problem, shell

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb

    from streams.report.found import Found, Invoke
    from streams.report.incidents import Incident


def register(app: typer.Typer) -> None:
    app.command()(timeline)
    app.command()(postmortem)
    app.command()(bundle)
    app.command()(reopen)


def timeline(
    id_: Annotated[str, typer.Argument(metavar="[ID]", help="Of one finding or incident; else of all.")] = "",
    since: Since = "", until: Until = "", service: Service = "", node: Node = "", key: Key = "", trace: Trace = "",
    notes: Annotated[list[Path] | None, typer.Option(help="Your own CSV to merge in: time,what,subject.")] = None,
    as_of: Annotated[str, typer.Option(help="Only what could be read then: 08:20, or as --since.")] = "",
    html: Annotated[Path | None, typer.Option(help="One page for a browser, into this file.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every line, however many.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One object a line, as Timesketch imports it.")] = False,
    csv: Csv = False, ascii_only: Ascii = False, state: State = STATE,
) -> None:  # fmt: skip
    """What happened, in order: findings, signals, the rows that prove it, silences, and what you noted."""
    from streams.report import timeline_forms as forms
    from streams.report.found import when
    from streams.report.notes import notes_of
    from streams.report.timeline import spoken
    from streams.report.timeline import timeline as told
    from streams.said import said

    if json + csv + bool(html) > 1:
        raise Problem("--json --csv --html", "one of the three")
    with opened(state) as (con, every, span, sight, invoke):
        chosen = _chosen(con, every, id_, invoke) if id_ else []
        wanted = asked(span, since, until, service, node, key, trace)
        about = {n for f in every if f.finding_id in chosen for n in (f.incident, f.detector)}
        words = [w for w in said(con, state) if not chosen or w.about in about]
        noted = [*spoken(words), *(n for path in notes or () for n in notes_of(path))]
        known = told(con, span, wanted, chosen, noted, when(as_of, span) if as_of else None)
        if html:
            written(html, forms.page(known, span))
            say([f"{html}: {len(known.entries):,} lines. Open it in a browser."], ascii_only)
        elif json or csv:
            give(forms.json_lines(known) if json else forms.separated(known))
        else:
            say(forms.screen(known, span, sight, all_, invoke), ascii_only)


def _chosen(con: duckdb.DuckDBPyConnection, every: list[Found], id_: str, invoke: Invoke) -> list[str]:
    """The finding, or those of the incident, whose id begins so."""
    from streams.report.found import one_of
    from streams.report.incidents import all_incidents, incident_of

    incidents = all_incidents(con)
    if any(i.incident_id.startswith(id_) for i in incidents):
        return [f["finding_id"] for f in incident_of(incidents, id_, invoke("incident list")).findings]
    return [one_of(every, id_, invoke("findings")).finding_id]


def postmortem(
    id_: Annotated[str, typer.Argument(metavar="INCIDENT", help="As `incident list` shows it.")],
    out: Annotated[Path | None, typer.Option(help="Into this Markdown file; what you wrote into it stays.")] = None,
    html: Annotated[Path | None, typer.Option(help="The same as a page, with what you wrote into --out.")] = None,
    damage: Annotated[Path | None, typer.Option(help="Every doubled effect with its proof, as CSV.")] = None,
    notes: Annotated[list[Path] | None, typer.Option(help="Your own CSV for its timeline: time,what,subject.")] = None,
    state: State = STATE,
) -> None:
    """The review: what it cost, what happened, why, what is to be done. Markdown, unless a file is named."""
    from streams.cli.incident import book_of
    from streams.report import postmortem as review
    from streams.report.answers import comma_separated
    from streams.report.damage import COLUMNS
    from streams.report.incidents import incident_of
    from streams.report.notes import notes_of

    with book_of(state) as (some, book):
        one = incident_of(some, id_, book.invoke("incident list"))
        known = review.gather(book.con, one, book, [n for path in notes or () for n in notes_of(path)])
        made = review.parts(known, book)
        old = _kept(out, one, some) if out else ""
        text, kept, gone = review.renewed(old, made) if old else (review.document(made), [], [])
        if out:
            written(out, text)
            said = [f"{name} was changed by hand and stays" for name in kept]
            said += [f"{name} was taken out and stays out" for name in gone]
            say([f"{out}: {'; '.join(said) or ('made again' if old else 'made')}."])
        if html:
            written(html, review.html(text, f"Post-mortem {one.incident_id}"))
            say([f"{html}: open it in a browser."])
        if damage:
            written(damage, "".join(f"{line}\n" for line in comma_separated(COLUMNS, (d.cells for d in known.damage))))
            more = f"; {known.gone} more were found, their rows are not in this state any more" if known.gone else ""
            say([f"{damage}: {len(known.damage)} doubled effects{more}."])
        if not (out or html or damage):
            give([text])


def _kept(path: Path, one: Incident, some: Sequence[Incident]) -> str:
    """What the file holds; one that is no post-mortem, or that of another incident, is left alone."""
    from streams.report.incidents import incident_of
    from streams.report.postmortem import incident_in

    try:
        old = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text in UTF-8"
        raise Problem(str(path), f"can't be read: {reason}", f"ls -ld {shell(path)}", Exit.USAGE) from None
    was = incident_in(old)
    if old and was is None:
        raise Problem(str(path), "is no post-mortem, and stays as it is", "--out another.md", Exit.USAGE)
    if any(i.incident_id == was for i in some) and (of := incident_of(some, was or "", "")) != one:
        reason = f"is the post-mortem of {of.short}, and stays as it is"
        raise Problem(str(path), reason, f"--out {one.short}.md", Exit.USAGE)
    return old


AROUND = timedelta(minutes=10)  # before an incident and after it; rows come that late, and causes lie before


def bundle(
    id_: Annotated[str, typer.Argument(metavar="INCIDENT", help="As `incident list` shows it.")],
    out: Annotated[Path | None, typer.Option(help="The file; else the incident's id with .zip.")] = None,
    state: State = STATE,
) -> None:
    """One file with an incident's rows, findings, settings and review, which `reopen` makes a state again anywhere."""
    from streams.cli.incident import book_of
    from streams.landing.bundle import pack
    from streams.report import postmortem as review
    from streams.report import timeline_forms as forms
    from streams.report.incidents import incident_of
    from streams.said import ACKS, record
    from streams.settings import CONFIG

    with book_of(state) as (some, book):
        one = incident_of(some, id_, book.invoke("incident list"))
        known = review.gather(book.con, one, book)
        begins, ends = review.lasted(known.found)
        since, until = begins - AROUND, ends + AROUND
        text = review.document(review.parts(known, book))
        there = {i.incident_id for i in some if i.onset <= until and (i.resolved is None or i.resolved >= since)}
        words = [w for w in book.words if w.about in there or not w.about.startswith("in-")]
        beside = {
            "postmortem.md": text,
            "postmortem.html": review.html(text, f"Post-mortem {one.incident_id}"),
            "timeline.html": forms.page(known.timeline, book.span),
            ACKS: "".join(record(w).decode() + "\n" for w in words),
        }
        if Path(CONFIG).exists():
            beside[CONFIG] = Path(CONFIG).read_text(encoding="utf-8")
        to = out or Path(f"{one.incident_id}.zip")
        try:
            packed = pack(state, book.con, since, until, beside, to.absolute(), review.proof(book.con, known, since))
        except OSError as error:
            raise Problem(
                str(to), f"can't be written: {error.strerror}", f"df -h {shell(to.parent)}", Exit.STATE
            ) from None
    size = f"{packed.size_bytes / 1e6:,.1f} MB"
    say([f"{to}: {packed.rows:,} rows of {since:%H:%M} - {until:%H:%M} UTC, {packed.tables} tables, {size}."])
    say([f"Anywhere: {program()} reopen {to.name}"])


def reopen(
    file: Annotated[Path, typer.Argument(help="What `bundle` made.")],
    into: Annotated[Path, typer.Option(help="The folder in which its own is made.")] = Path(),
) -> None:
    """Makes a bundle a state again, in a new folder; nothing else is needed."""
    from streams.landing.bundle import unpack
    from streams.settings import CONFIG

    folder = unpack(file, into)
    say([f"{folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}"])
    own = (folder / CONFIG).exists()  # is read in the folder in which one types
    then = f"cd {shlex.quote(str(folder))} && {with_state('incident list', Path())}"
    say([f"Next: {then if own else with_state('incident list', folder)}"])


def written(path: Path, text: str) -> None:
    """A file for people, whole or not at all."""
    aside = path.with_name(f"{path.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise Problem(
            str(path), f"can't be written: {error.strerror}", f"ls -ld {shell(path.parent)}", Exit.STATE
        ) from None
