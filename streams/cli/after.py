"""Commands for the review: what happened, in what order, by which evidence. They write the file asked for, no more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streams.cli.look import Ascii, Csv, Key, Node, Service, Since, Trace, Until, asked, give, opened, say
from streams.cli.work import STATE, State
from streams.problems import Exit, Problem


def register(app: typer.Typer) -> None:
    app.command()(timeline)


def timeline(
    id_: Annotated[str, typer.Argument(metavar="[ID]", help="Of one finding; else of all.")] = "",
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
    from streams.report.found import one_of, when
    from streams.report.notes import notes_of
    from streams.report.timeline import timeline as told

    if json + csv + bool(html) > 1:
        raise Problem("--json --csv --html", "one of the three")
    with opened(state) as (con, every, span, sight, invoke):
        chosen = [one_of(every, id_, invoke("findings")).finding_id] if id_ else []
        wanted = asked(span, since, until, service, node, key, trace)
        noted = [n for path in notes or () for n in notes_of(path)]
        known = told(con, span, wanted, chosen, noted, when(as_of, span) if as_of else None)
        if html:
            written(html, forms.page(known, span))
            say([f"{html}: {len(known.entries):,} lines. Open it in a browser."], ascii_only)
        elif json or csv:
            give(forms.json_lines(known) if json else forms.separated(known))
        else:
            say(forms.screen(known, span, sight, all_, invoke), ascii_only)


def written(path: Path, text: str) -> None:
    """A file for people, whole or not at all."""
    aside = path.with_name(f"{path.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise Problem(str(path), f"can't be written: {error.strerror}", f"ls -ld {path.parent}", Exit.STATE) from None
