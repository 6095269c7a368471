"""What a field map made of a log enters, a screen or an object for machines leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from streams.report.answers import ON_SCREEN, grid
from streams.report.sentences import count
from streams.sources.fieldmap import FieldMap
from streams.sources.trial import Trial

CELL = 36  # characters


def screen(trial: Trial, given: FieldMap, log: str, next_: str, ascii_only: bool) -> Iterator[str]:
    """next_: the command to go on with, where there is a row to go on with, else to come back."""
    shown = [n for n in trial.rows.columns if trial.filled[n]]
    if trial.usable:
        first = f"the first {len(trial.rows)} of {count(trial.usable, 'row')}"
        yield f"{log} as {given.name} reads it: {given.stream}, {first}"
        yield from grid(shown, [*map(_cut, trial.rows.select(shown).iter_rows())], ascii_only)
    never = [n for n in trial.rows.columns if not trial.filled[n]]
    if never and trial.usable:
        yield f"No value in any row: {', '.join(_with_paths(n, given) for n in never)}"
    if trial.times:
        span = " to ".join(f"{time:%Y-%m-%d %H:%M:%S}" for time in trial.times)
        yield f"Times, in UTC: {span} (off by hours: set zone; by years: set unit)"
    if given.ordered:
        yield "No times, only the order of the records: what goes by time will see nothing of it"
    yield from trial.notes
    if many := len(trial.rejects):
        some = trial.rejects.head(ON_SCREEN)
        yield count(many, "reject") + (f" (the first {ON_SCREEN}; all: --json)" if many > ON_SCREEN else "")
        yield from grid(some.columns, [*map(_cut, some.iter_rows())], ascii_only)
    c = trial.counts
    empty = f" + {c['empty']:,} empty" if c["empty"] else ""
    yield f"{c['read']:,} read = {c['usable']:,} usable + {c['rejected']:,} rejected{empty}"
    yield f"Next: {next_}"


def for_machines(trial: Trial, given: FieldMap, log: str) -> dict[str, Any]:
    return {
        "log": log,
        "map": given.name,
        "stream": given.stream,
        **trial.counts,
        "times": trial.times,
        "filled": trial.filled,
        "notes": trial.notes,
        "rows": trial.rows.to_dicts(),
        "rejects": trial.rejects.to_dicts(),
    }


def _with_paths(name: str, given: FieldMap) -> str:
    paths = [p for rule in given.rules[name] for p in rule.paths]
    return f"{name} (from {', '.join(paths)})" if paths else name


def _cut(row: Sequence[Any]) -> list[Any]:
    return [v[:CELL] + "…" if isinstance(v, str) and len(v) > CELL else v for v in row]
