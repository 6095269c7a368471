"""A draft of a field map enters, its TOML leaves: each field with the reason for it, and what people have to decide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from detectors.events import fields
from streams.problems import few
from streams.sources.columns import Choice, Column
from streams.sources.fieldmap import Rule
from streams.sources.infer import TELLING, Draft
from streams.sources.words import SECRET

WIDTH = 118
WHAT = {
    "requests": "one attempt of one call as one side saw it",
    "heartbeats": "a sign of life, with the time on the sender's clock and on the observer's",
    "write_log": "one write of one entity by one node, or what else a node stamped",
    "signals": "what people and platforms did or measured",
}
LISTED = 60  # paths that are not used
EXAMPLE, DOUBT = 40, 160  # characters


def written(draft: Draft, name: str, check: str, about: str, quotes: bool = True) -> Iterator[str]:
    """name: of the log. check: the command that shows what the map makes of it. about: how many events it is drafted
    from. quotes: whether values of the log may stand in comments."""
    yield from comment(f"A field map for {name}, drafted from {about}.")
    yield from comment("Decide every TODO, then see what it makes of the log:")
    yield from comment(f"  {check}")
    yield from comment(_outcome(draft))
    tells = [n for n in draft.choices if n in TELLING[draft.stream]]
    why = f"since there is {', '.join(tells)}" if tells else "for want of fields that tell of another stream"
    yield from comment(f"{draft.stream}, {why}: {WHAT[draft.stream]}.")
    yield f"stream = {toml(draft.stream)}"
    if draft.shape.format != "json":
        yield f"format = {toml(draft.shape.format)}"
    if draft.shape.members:
        yield f"members = {toml(draft.shape.members)} # where a document holds the list of events"
    if draft.shape.line:
        yield from comment(f"{draft.shape.why}:")
        yield f"line = '{draft.shape.line}'"
    if draft.nothing:
        yield f"nothing = {toml(draft.nothing)} # texts that say that there is no value"
    yield from ["", "[fields]"]
    for field in (f.name for f in fields(draft.stream)):
        if field in draft.choices:
            yield from _field(field, draft.choices[field], quotes)
        elif field in draft.missing:
            yield from comment(
                f"TODO {field} is required, and no field of the log looks like it. Name one, or a value:"
            )
            yield from comment(f'{field} = "path.of.field" or {{ value = "…" }}')
    yield from _rest(draft, quotes)


def _outcome(draft: Draft) -> str:
    if draft.tried is None:
        return f"Not whole: no field of the log looks like {' or '.join(draft.missing)}."
    rows, refused = len(draft.tried.events), draft.tried.rejects
    if refused.is_empty():
        return f"As it is, all {rows:,} become rows."
    kinds = refused.group_by("field", "reason").len().sort("len", "field", descending=[True, False])
    most = "; ".join(
        f"{n:,} time{'' if n == 1 else 's'} {field}: {reason}" for field, reason, n in kinds.head(3).rows()
    )
    return f"As it is, {rows:,} become rows and {len(refused):,} are rejects ({most})."


def _field(field: str, choice: Choice, quotes: bool) -> Iterator[str]:
    yield from comment(f"{choice.path}: {'; '.join(choice.why)}" if quotes else choice.path)
    for todo in choice.todo:
        yield from comment(f"TODO {todo}")
    rules = [rule(r) for r in choice.rules]
    yield f"{field} = {rules[0] if len(rules) == 1 else '[' + ', '.join(rules) + ']'}"


def _rest(draft: Draft, quotes: bool) -> Iterator[str]:
    """What the log has that the map leaves out, and what the map could have that the log seems to lack."""
    absent = [f.name for f in fields(draft.stream) if f.name not in draft.choices and f.name not in draft.missing]
    yield ""
    yield from comment(f"Nothing in the log looks like: {', '.join(absent)}.")
    if never := [path for path, column in draft.columns.items() if not column.values]:
        yield from comment(f"Without a value in every row: {few(never, LISTED)}.")
    if unused := draft.unused:
        yield from comment("Not used, with an example each:" if quotes else "Not used:")
        for column in unused[:LISTED]:
            said = f" = {_example(column)}{_doubt(draft, column)}" if quotes else ""
            yield from comment(f"  {column.path}{said}")
        if len(unused) > LISTED:
            yield from comment(f"  and {len(unused) - LISTED:,} more")


def _example(column: Column) -> str:
    """One value; none of what may let somebody in, since drafts are kept and shown."""
    value = column.values[0]
    if SECRET.search(column.path) or SECRET.search(value):
        return "not shown"
    return toml(value if len(value) <= EXAMPLE else value[:EXAMPLE] + "…")


def _doubt(draft: Draft, column: Column) -> str:
    """Why it was not taken; that quotes a value, too."""
    doubt = "" if SECRET.search(column.path) else draft.doubts.get(column.path, "")
    return f" ({doubt if len(doubt) <= DOUBT else doubt[:DOUBT] + '…'})" if doubt else ""


def comment(text: str) -> list[str]:
    """As comment lines; a control character would end one, or be no TOML."""
    indent = " " * (len(text) - len(text.lstrip()))
    lines = textwrap.wrap(_shown(text), WIDTH - 2, subsequent_indent=indent, break_on_hyphens=False)
    return [f"# {line}" for line in lines]


def rule(given: Rule) -> str:
    """Only what it says; a rule that only names a path is the path."""
    names = zip(Rule.__struct_fields__, Rule.__struct_encode_fields__, strict=True)
    every = {spelt: getattr(given, name) for name, spelt in names}
    said = {name: value for name, value in every.items() if value not in (None, "", 0, [], {})}
    return toml(said["from"] if said.keys() == {"from"} else said)


def toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return '"' + _shown(value.replace("\\", "\\\\").replace('"', '\\"')) + '"'
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case dict():
            pairs = (f"{k if k.isidentifier() and k.isascii() else toml(k)} = {toml(v)}" for k, v in value.items())
            return "{ " + ", ".join(pairs) + " }"
        case _:
            return str(value)


def _shown(text: str) -> str:
    return "".join(
        c if c.isprintable() else f"\\u{ord(c):04x}" if ord(c) < 1 << 16 else f"\\U{ord(c):08x}" for c in text
    )
