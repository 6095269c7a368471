"""Commands that make something: replay, rebuild, chaos fleet."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streams.problems import Exit, Problem, shell

if TYPE_CHECKING:
    from streams.outcome import Outcome


def folder_named(given: str | Path) -> Path:
    if not str(given).strip():
        raise Problem("--state", "no folder named", f"--state {STATE}, or leave it out")
    return Path(given)


STATE = Path("asynchealth-state")
State = Annotated[Path, typer.Option("--state", parser=folder_named, help="The folder with what was found.")]
Sets = Annotated[list[str], typer.Option("--set", help="detector.threshold=value; may be given several times.")]

Security = Annotated[
    list[str],
    typer.Option("--kafka", help="tls=true, mechanism=SCRAM-SHA-512, username=…; secrets in the environment or file."),
]


def _level(given: str) -> str:
    if given not in ("", "warn", "page"):
        raise Problem(f"--fail-on {given}", "not a level", "--fail-on page")
    return given


FailOn = Annotated[
    str, typer.Option("--fail-on", callback=_level, help="Exit 1 if there is a finding at this level: warn or page.")
]

chaos = typer.Typer(no_args_is_help=True, help="A simulated fleet and its faults.")


def register(app: typer.Typer) -> None:
    app.command()(replay)
    app.command()(rebuild)
    app.add_typer(chaos, name="chaos")
    chaos.command()(fleet)
    chaos.callback()(lambda: None)


def program() -> str:
    """asynchealth where the shell finds it by that name, else as it was called."""
    called = sys.argv[0]
    if Path(called).name != "asynchealth" or called == shutil.which("asynchealth"):
        return "asynchealth"
    return shlex.quote(called)


def whole_program() -> str:
    """From the root on, for what starts it without our shell."""
    return str(Path(sys.argv[0]).absolute())


def invoked() -> str:
    return shlex.join(["asynchealth", *sys.argv[1:]])


def with_state(command: str, state: Path) -> str:
    """A hint as it can be typed here."""
    return f"{program()} {command}" + ("" if state == STATE else f" --state {shell(state)}")


def typed(message: str) -> str:
    """The hints of a message with the program as it was called."""
    hints = re.compile(r"(?<![\w./-])asynchealth (?=[a-z])")
    lines = (hints.sub(f"{program()} ", x) if x.startswith("Next: ") else x for x in message.split("\n"))
    return "\n".join(lines)


def replay(
    paths: Annotated[
        list[str], typer.Argument(help="Files, globs, folders, - for standard input, or kafka://host:9092/topic.")
    ],
    state: State = STATE,
    since: Annotated[
        str, typer.Option(help="Topics: from this time on, or 2h (before their newest record); later runs read on.")
    ] = "",
    kafka: Security = [],  # noqa: B006
    lateness: Annotated[str, typer.Option(help="A row this much behind its arrival is late.")] = "30s",
    arrival: Annotated[
        str,
        typer.Option(
            help="Which column holds the arrival; none: event time stands in; stamp: Kafka's, whoever set it."
        ),
    ] = "arrival",
    map_: Annotated[
        list[Path], typer.Option("--map", help="A field map in TOML: which of a file's fields is what.")
    ] = [],  # noqa: B006
    set_: Sets = [],  # noqa: B006
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what the state folder held.")] = False,
    fail_on: FailOn = "",
) -> None:
    """Analyse recorded logs, in files or in Kafka. Reads only, sends nothing."""
    from streams import replay as engine
    from streams.catalog import all_detectors
    from streams.settings import load, span_us
    from streams.sources import fieldmap

    settings = load(all_detectors(), set_)
    outcome = engine.replay(
        paths,
        state,
        settings,
        lateness_us=span_us(lateness),
        arrival=arrival,
        command=invoked(),
        fresh=fresh,
        since=since,
        kafka=kafka,
        maps=[fieldmap.load(path) for path in map_],
    )
    _say(outcome, state, fail_on)


def rebuild(
    state: State = STATE,
    lateness: Annotated[str, typer.Option(help="Another lateness than before.")] = "",
    set_: Sets = [],  # noqa: B006
    fail_on: FailOn = "",
) -> None:
    """Judge the rows that have landed again, after a change of detector, threshold or lateness."""
    from streams import replay as engine
    from streams.catalog import all_detectors
    from streams.settings import load, span_us

    settings = load(all_detectors(), set_)
    late = span_us(lateness) if lateness else None
    outcome = engine.rebuild(state, settings, lateness_us=late, command=invoked())
    _say(outcome, state, fail_on)


def _say(outcome: Outcome, state: Path, fail_on: str) -> None:
    from streams.report.coverage import in_short
    from streams.told import together

    for note in together(outcome.notes):
        typer.echo(typed(note))
    t = outcome.totals
    parts = [f"{t[n]:,} {n}" for n in ("used", "late", "implausible", "rejected", "repeated") if t[n] or n == "used"]
    empty = f" + {t['tombstones']:,} empty" if t["tombstones"] else ""
    typer.echo(f"{t['read']:,} read = {' + '.join(parts)}{empty}")
    for line in in_short(outcome.seen, outcome.formats, with_state("doctor", state)):
        typer.echo(line)
    page, warn = outcome.levels.get("page", 0), outcome.levels.get("warn", 0)
    found = f"{page + warn:,} finding{'' if page + warn == 1 else 's'}"
    shadow = outcome.levels.get("shadow", 0)
    apart = f" (and {shadow:,} of shadows)" if shadow else ""
    typer.echo(f"{found}: {page} page, {warn} warn{apart}. Next: {with_state('findings', state)}")
    fail(fail_on, outcome.levels)


def fail(level: str, found: Mapping[str, int]) -> None:
    """Ends with the exit code that says so, if there is a finding at the level asked for."""
    page, warn = found.get("page", 0), found.get("warn", 0)
    if (level == "page" and page) or (level == "warn" and page + warn):
        raise typer.Exit(Exit.FOUND)


def fleet(
    folder: Annotated[Path, typer.Argument(help="Where the recorded hour goes.")],
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 1,
    calm: Annotated[bool, typer.Option("--calm", help="An hour without faults.")] = False,
    start: Annotated[datetime | None, typer.Option(help="When the hour begins, UTC.")] = None,
    minutes: int = 60,
    scale: Annotated[float, typer.Option(help="Times as many events.")] = 1.0,
    format_: Annotated[str, typer.Option("--format", help="jsonl or parquet.")] = "jsonl",
) -> None:
    """Record one hour of a simulated fleet of 47 nodes, with labels of what is wrong in it."""
    from datetime import UTC

    from streams.chaos.fleet import START, make_hour, write_tape
    from streams.chaos.plan import FAULTS_NEED_MIN

    if format_ not in ("jsonl", "parquet"):
        raise Problem(f"--format {format_}", "unknown", "--format jsonl or --format parquet")
    begin = start.replace(tzinfo=UTC) if start else START
    if minutes < FAULTS_NEED_MIN and not calm:
        reason = f"the faults need {FAULTS_NEED_MIN} minutes or more"
        raise Problem(f"--minutes {minutes}", reason, f"--minutes {FAULTS_NEED_MIN}, or --calm")
    if minutes < 1 or not 0 < scale <= 100:
        raise Problem(f"--minutes {minutes} --scale {scale:g}", "nothing to record", "--minutes 60 --scale 1")
    tape = make_hour(seed, calm=calm, start=begin, minutes=minutes, scale=scale)
    files = write_tape(tape, folder, format_)
    faults = len(tape.labels["faults"])
    typer.echo(f"{folder}: {len(files)} files, {tape.labels['totals']['read']:,} records, {faults} labelled faults")
