"""The command that helps to write field maps: it drafts one from a log, and shows what one makes of a log."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from streams.cli.look import Ascii, Json, give, say
from streams.cli.work import program
from streams.problems import Exit, Problem


def register(app: typer.Typer) -> None:
    app.command(name="map")(map_)


def map_(
    sample: Annotated[Path | None, typer.Argument(metavar="SAMPLE", help="The log that --check is about.")] = None,
    infer: Annotated[Path | None, typer.Option("--infer", metavar="SAMPLE", help="Draft a map for this log.")] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="MAP", help="Show what this map makes of SAMPLE.")
    ] = None,
    json: Json = False,
    ascii_only: Ascii = False,
) -> None:
    """Draft a field map for logs in another format, with a reason for each field; or see what a map makes of a log."""
    if infer and not check and not sample:
        if json:
            raise Problem("--json", "a draft is TOML", f"asynchealth map --infer {quoted(infer)} > MAP.toml")
        _infer(infer)
    elif check and sample and not infer:
        _check(check, sample, json, ascii_only)
    else:
        reason = "either --infer SAMPLE, or --check MAP SAMPLE"
        then = (
            f"asynchealth map --check {quoted(check)} SAMPLE" if check else "asynchealth map --infer SAMPLE > MAP.toml"
        )
        raise Problem("map", reason, then)


def quoted(path: Path | str) -> str:
    return shlex.quote(str(path))


def _infer(path: Path) -> None:
    """The draft goes to standard output, to become a file; what to do next to the other one."""
    from streams.settings import private
    from streams.sources.decode import first_lines, shipped_of
    from streams.sources.draft import comment, written
    from streams.sources.fieldmap import shipped_text
    from streams.sources.files import look
    from streams.sources.sample import drafted

    file = look(path, str(path))
    check = f"map --check MAP.toml {quoted(path)}"
    if file.format == "avro":
        reason = "an Avro container: drafts are of JSON, CSV and Parquet"
        raise Problem(str(path), reason, f"write MAP.toml by hand, then asynchealth {check}", Exit.NOTHING)
    if file.format != "parquet" and (known := shipped_of(first_lines(file))):
        known_as = (
            f"{path.name} is {known.name} by its fields: `replay` reads it without a map. This is its own, to change:"
        )
        give(comment(known_as))
        give(shipped_text(known.name).splitlines())
        sys.stderr.write(f"Next: {program()} replay {quoted(path)}, or {program()} {check}\n")
        return
    sample, draft = drafted(file)
    events = f"{'all its' if sample.whole else 'its first'} {len(sample.columns):,} events"
    unread = f" ({sample.unread:,} more can't be read)" if sample.unread else ""
    give(written(draft, path.name, f"asynchealth {check}", events + unread, quotes=private() is None))
    if draft.missing:
        sys.stderr.write(
            f"{path}: no field looks like {', '.join(draft.missing)}, which {draft.stream} need: see TODO\n"
        )
    keep = f"{program()} map --infer {quoted(path)} > MAP.toml, then " if sys.stdout.isatty() else ""
    sys.stderr.write(f"Next: {keep}{program()} {check}\n")
    if not draft.usable:
        raise typer.Exit(Exit.NOTHING)


def _check(given: Path, path: Path, json: bool, ascii_only: bool) -> None:
    from streams.report.answers import ENCODER
    from streams.report.trial import for_machines, screen
    from streams.settings import private
    from streams.sources import fieldmap
    from streams.sources.decode import refuse_binary
    from streams.sources.files import look
    from streams.sources.trial import tried

    field_map = fieldmap.load(given)
    file = look(path, path.name)
    refuse_binary(file)
    trial = tried(file, field_map, private())
    if json:
        give([ENCODER.encode(for_machines(trial, field_map, path.name)).decode()])
    else:
        go_on = f"{program()} replay {quoted(path)} --map {quoted(given)}"
        again = f"change {quoted(given)}, then {program()} map --check {quoted(given)} {quoted(path)}"
        say(screen(trial, field_map, path.name, go_on if trial.usable else again, ascii_only), ascii_only)
    if not trial.usable:
        raise typer.Exit(Exit.NOTHING)
