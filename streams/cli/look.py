"""Commands that show something: report, findings, explain, sql, detectors, runbook. None changes anything."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from streams.cli.work import STATE, FailOn, State, fail, whole_program, with_state
from streams.problems import Exit, Problem

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from streams.report.answers import Form
    from streams.report.found import Filter, Found, Invoke, Sight, Span

Since = Annotated[str, typer.Option(help="08:15, 2026-01-26T08:15Z, or 2h: so long before the end of the data.")]
Until = Annotated[str, typer.Option(help="As --since.")]
Service = Annotated[str, typer.Option(help="Only what has to do with this service.")]
Node = Annotated[str, typer.Option(help="Only what has to do with this node.")]
Key = Annotated[str, typer.Option(help="Only what has to do with this idempotency key.")]
Trace = Annotated[str, typer.Option(help="Only what has to do with this trace.")]
Json = Annotated[bool, typer.Option("--json", help="For machines.")]
Csv = Annotated[bool, typer.Option("--csv", help="For a spreadsheet.")]
Ascii = Annotated[bool, typer.Option("--ascii", help="For plain terminals.")]
Id = Annotated[str, typer.Argument(help="The beginning of an id, as `findings` shows it.")]

known = typer.Typer()


class OneQuery(TyperCommand):
    """A query may begin with a comment, which is no option although it begins with two dashes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f"\n{a}" if re.match(r"--(\s|.*\n)", a) else a for a in args])


def register(app: typer.Typer) -> None:
    app.command()(report)
    app.command()(findings)
    app.command()(explain)
    app.command(cls=OneQuery)(sql)
    app.add_typer(known, name="detectors")
    known.callback(invoke_without_command=True)(detectors)
    known.command()(check)
    app.command()(runbook)


def say(lines: Iterable[str], ascii_only: bool = False) -> None:
    """A screen for people; plain where the terminal can't show more."""
    from streams.report.render import plain

    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    simple = ascii_only or not sys.stdout.encoding.lower().startswith("utf")
    for line in lines:
        sys.stdout.write(plain(line, simple, colour) + "\n")


def give(lines: Iterable[str]) -> None:
    """Output for machines, byte for byte."""
    for line in lines:
        sys.stdout.write(line + "\n")


@contextmanager
def opened(state: Path) -> Iterator[tuple[duckdb.DuckDBPyConnection, list[Found], Span, dict[str, Sight], Invoke]]:
    """What every screen starts from: the file, its findings, the span of the data, who was blind, how to hint."""
    from streams.landing.state import open_readable
    from streams.report.found import all_findings, sight_of, span_of

    def invoke(command: str) -> str:
        return with_state(command, state)

    con = open_readable(state)
    try:
        yield con, all_findings(con), span_of(con, invoke("replay PATH…")), sight_of(con), invoke
    finally:
        con.close()


def asked(span: Span, since: str, until: str, service: str, node: str, key: str = "", trace: str = "") -> Filter:
    from streams.report.found import Filter, when

    begin, end = (when(text, span) if text else None for text in (since, until))
    if begin and end and begin >= end:
        reason = f"ends at {end:%Y-%m-%d %H:%M}, before it begins at {begin:%Y-%m-%d %H:%M}"
        raise Problem(f"--since {since} --until {until}", reason, f"the data is from {span.start:%Y-%m-%d %H:%M} on")
    return Filter(begin, end, service, node, key, trace)


def _form(json: bool, csv: bool) -> Form:
    if json and csv:
        raise Problem("--json --csv", "one of the two")
    return "json" if json else "csv" if csv else "table"


def report(
    since: Since = "", until: Until = "", service: Service = "", node: Node = "", key: Key = "", trace: Trace = "",
    json: Json = False, ascii_only: Ascii = False, fail_on: FailOn = "", state: State = STATE,
    format_: Annotated[str, typer.Option("--format", help="text, json, markdown or html.")] = "text",
    schedule_: Annotated[bool, typer.Option("--schedule", help="The cron line and systemd units for it.")] = False,
) -> None:  # fmt: skip
    """The morning report, against the day before."""
    from streams.report.answers import ENCODER
    from streams.report.morning import gather

    form = "json" if json else format_
    if form not in ("text", "json", "markdown", "html"):
        raise Problem(f"--format {form}", "unknown", "--format text, json, markdown or html")
    if schedule_:
        from streams.report.morning.schedule import schedule

        give(schedule([whole_program()], state.absolute(), Path.cwd()))
        return
    with opened(state) as (con, every, span, sight, invoke):
        wanted = asked(span, since, until, service, node, key, trace)
        known = gather(con, every, span, sight, wanted)
        if form == "json":
            give([ENCODER.encode(known.data).decode()])
        elif form == "text":
            from streams.report.morning.screen import rendered

            say(rendered(known, invoke), ascii_only)
        else:
            from streams.report.morning.pages import as_html, as_markdown

            give(as_html(known, invoke) if form == "html" else as_markdown(known, invoke))
    fail(fail_on, known.levels)


def findings(
    id_: Annotated[str, typer.Argument(metavar="[ID]", help="One finding; with --csv the list behind it.")] = "",
    since: Since = "", until: Until = "", service: Service = "", node: Node = "", key: Key = "", trace: Trace = "",
    detector: Annotated[str, typer.Option(help="Of this detector.")] = "",
    json: Json = False, csv: Csv = False, ascii_only: Ascii = False, fail_on: FailOn = "", state: State = STATE,
) -> None:  # fmt: skip
    """What was found: pages first, then in the order in which it began."""
    from streams.report.answers import ENCODER, comma_separated
    from streams.report.evidence import about, behind
    from streams.report.findings import listing
    from streams.report.found import Found, judged_with, one_of
    from streams.report.morning.keys import cache_size
    from streams.report.reach import cannot_say, in_no_row

    with opened(state) as (con, every, span, sight, invoke):
        form = _form(json, csv)
        one = one_of(every, id_, invoke("findings")) if id_ else None
        if one and form == "csv":
            columns, rows = behind(con, one)
            give(comma_separated(columns, iter(rows)))
            return
        if detector and detector not in {*sight, *(f.detector for f in every)}:
            raise Problem(f"--detector {detector}", "no such detector", invoke("detectors"))
        wanted = replace(asked(span, since, until, service, node, key, trace), detector=detector)
        found = about(con, [one] if one else every, wanted)
        if form == "json":
            give(ENCODER.encode(f.columns).decode() for f in found)
        elif form == "csv":
            names = [n for n in Found.__dataclass_fields__ if n != "short"]
            give(comma_separated(names, (list(f.columns.values()) for f in found)))
        else:
            nobody = [*in_no_row(con, wanted)]
            unsaid = cannot_say(con, sight, wanted) if not nobody else []
            unsaid += [] if nobody or cache_size(con) else ["cache size (no source reports it)"]
            unsaid = [words for words in unsaid if not detector or words.split()[0] == detector]
            say(listing(found, span, sight, wanted, nobody, unsaid, judged_with(con, found), invoke), ascii_only)
    fail(fail_on, Counter(f.level for f in found))


def explain(
    id_: Id,
    all_: Annotated[bool, typer.Option("--all", help="Every key's story, where there are several.")] = False,
    ascii_only: Ascii = False,
    state: State = STATE,
) -> None:
    """Why a finding was made: the rows that prove it, the threshold, what to do now."""
    from streams.report.explain import explain as told
    from streams.report.found import one_of

    with opened(state) as (con, every, span, _, invoke):
        say(told(con, one_of(every, id_, invoke("findings")), every, span, invoke, all_), ascii_only)


def sql(
    query: Annotated[str, typer.Argument(help="A SELECT, @name for a shipped one, or - for standard input.")] = "",
    list_: Annotated[bool, typer.Option("--list", help="The shipped queries and the questions they answer.")] = False,
    json: Json = False,
    csv: Csv = False,
    ascii_only: Ascii = False,
    limit: Annotated[str, typer.Option(help="Stop a query that runs longer.")] = "60s",
    state: State = STATE,
) -> None:
    """Ask the rows and what was found, in SQL that can only read."""
    from streams.report import library
    from streams.report.answers import lines, table
    from streams.settings import span_us

    if list_:
        every = library.queries()
        width = max(map(len, every))
        say((f"@{q.name:<{width}}  {q.question}" for q in every.values()), ascii_only)
        say([f"Next: {with_state('sql @' + next(iter(every)), state)}"])
        return
    if not query:
        one, every_one = (with_state(f"sql {q}", state) for q in ('"SELECT * FROM findings"', "--list"))
        raise Problem("sql", "no query", f"{one}, or {every_one}")
    text = sys.stdin.read() if query == "-" else library.query(query[1:]).text if query.startswith("@") else query
    form = _form(json, csv)
    answer = _answer(state, text, span_us(limit) / 1e6)
    if form == "table":
        say(table(answer, ascii_only), ascii_only)
    else:
        give(lines(answer, form))


def _answer(folder: Path, text: str, limit_s: float) -> pa.Table:
    """The whole answer as an Arrow table, over the connection that is shut in."""
    from streams.catalog import all_detectors
    from streams.landing.state import open_readable, parts_of, paths, view_sql
    from streams.report.sql import Missing, Refused, TooLarge, TooLong, open_shut_in, run

    with open_readable(folder) as con:
        parts = parts_of(con)
    with open_shut_in(folder, view_sql(folder, parts), paths(folder, parts)) as con:
        try:
            return run(con, text, limit_s)
        except Missing as error:
            if error.table.lower() not in {t.name for d in all_detectors() for t in d.tables}:
                raise Problem("sql", str(error), code=Exit.USAGE) from None
            reason = "nothing was measured into it: no row here has what it is measured from"
            raise Problem(f"table {error.table}", reason, with_state("doctor", folder), Exit.USAGE) from None
        except (Refused, TooLong, TooLarge) as error:
            raise Problem("sql", str(error), code=Exit.USAGE) from None


def detectors(context: typer.Context, state: State = STATE) -> None:
    """What can be found, at which thresholds, and which of it could be seen in a state."""
    if context.invoked_subcommand:
        return
    from streams.catalog import catalog, file_of
    from streams.sources.files import READABLE

    sight = {}
    if state != STATE or (state / READABLE).exists():
        with opened(state) as (_, _, _, seen, _):
            sight = seen
    for name, entry in catalog().items():
        d = entry.detector
        blind = f"   BLIND: {sight[name].why}" if name in sight and sight[name].blind else ""
        blind += "   SHADOW: nobody is told" if d.shadow else ""
        typer.echo(f"{name:<22} {d.subject_kind:<9} {entry.doc.strip().splitlines()[0]}{blind}")
        if not entry.shipped:
            typer.echo(f"    from {file_of(entry)}")
        for t in d.thresholds:
            typer.echo(f"    {name}.{t.name} = {t.default:g} {t.unit}   ({t.level}, {t.low:g} to {t.high:g})")
    if sight:
        blind_ones = sum(s.blind for s in sight.values())
        typer.echo(f"{len(sight) - blind_ones} ran, {blind_ones} blind in {state}.")
    typer.echo(f"Change one: --set detector.threshold=value.  Next: {with_state('runbook NAME', state)}")


def check(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]…", help="Of your own; else all of them.")] = None,
) -> None:
    """Whether your own detectors give the same answer live, killed and in any order: tried on the cases they bring."""
    from streams.catalog import catalog
    from streams.laws.check import check as laws

    own = {n: e for n, e in catalog().items() if not e.shipped}
    if unknown := [n for n in names or [] if n not in own]:
        raise Problem(unknown[0], "no detector of your own", "asynchealth detectors")
    if not own:
        raise Problem("detectors", "none of your own", 'detectors = ["./detectors"] in asynchealth.toml')
    broken = 0
    for name in names or own:
        typer.echo(name)
        for law in laws(own[name]):
            typer.echo(f"    {'BROKEN' if law.broken else 'holds '}  {law.words}")
            for where in law.broken:
                typer.echo(f"            {where}")
            broken += bool(law.broken)
    if broken:
        raise typer.Exit(Exit.FOUND)


def runbook(name: Annotated[str, typer.Argument(help="A detector's name.")], state: State = STATE) -> None:
    """What to do about a finding, step by step."""
    from streams.catalog import catalog, runbook_of

    if name not in (every := catalog()):
        reason = "no such detector; your own are known where asynchealth.toml names their folder"
        raise Problem(name, reason, "asynchealth detectors")
    text = runbook_of(every[name]).read_text()
    typer.echo(COMMAND.sub(lambda m: f"`{with_state(m[1], state)}`", text))


COMMAND = re.compile(r"`asynchealth ([^`]+)`")
