"""A field map enters, columns of the schema leave: which of a source's fields say what, written in TOML.

stream = "requests"
[fields]
timestamp = { from = "time_local", format = "%d/%b/%Y:%H:%M:%S %z", minus = "request_time", minus_unit = "s" }
service_name = { from = "upstream", capture = "^([^:]+)" }
status = { from = "status", values = { "504" = "timeout", "429|503" = "rejected", "5.." = "error", ".*" = "ok" } }
node_id = { value = "edge-1" }

A rule takes one value (from, value, concat, hash, file, parent, child) and changes it in the order: capture,
drop_dashes, values, less, missing, unit, format, zone, minus. Of a field's rules the first that gives a value counts.

timestamp = { from = "record" } says that there is no time, and that the order of the records is all that is known:
its number stands in for one, and whatever goes by time sees nothing of it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo

import msgspec
import polars as pl
import xxhash

from detectors.events import INSTANT, SCHEMA, fields
from streams.problems import Problem
from streams.sources.decoders import OF_MAPS, Format, decoder
from streams.sources.formats import Paths, Unfold
from streams.sources.words import STATUS_OF, Unit

FIXED = re.compile(r"[+-]\d\d:\d\d")
ORDER = "record"  # as the time: there is none
ORIGINS = ("source", "value", "concat", "hash", "file", "parent", "child")
HERE = Path()
SHIPPED = files("streams.sources") / "shipped"


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"source": "from"}):
    """Where one value comes from, and what is done to it.

    parent, child: the value at this path of the row whose span is this one's parent, or whose parent this one is.
    file: a regular expression that is looked for in the path of the file, or the name of the topic: its first group.
    where: regular expressions that the values at these paths must match for the rule to hold.
    values: regular expressions of whole texts, the first that matches counts; what matches none has no value. "http"
    and "grpc" are the tables of those codes.
    less: how much a count is too high, as that of attempts is by the first one; no count is below zero.
    unit: of a number: s, ms, us, ns. zone: of a time that has none. minus: a path to be taken off, in minus_unit.
    """

    source: str | None = None
    value: str | int | float | bool | None = None
    concat: list[str] = []
    between: str = ""
    hash: list[str] = []
    file: str | None = None
    parent: str | None = None
    child: str | None = None
    where: dict[str, str] = {}
    capture: str = ""
    drop_dashes: Annotated[int, msgspec.Meta(ge=0, le=20)] = 0
    values: dict[str, str] = {}
    less: Annotated[int, msgspec.Meta(ge=0)] = 0
    missing: str | None = None
    unit: Unit | None = None
    format: str = ""
    zone: str = ""
    minus: str | None = None
    minus_unit: Unit | None = None

    @property
    def paths(self) -> list[str]:
        """Of the row itself."""
        given = [self.source, self.minus, *self.concat, *self.hash, *self.where]
        return [p for p in given if p is not None]


Given = str | Rule | list[str | Rule]


class FieldMap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """stream: what the rows become. fields: a path, a rule or several for each.

    like: a shipped map whose words, and rules of fields, hold where this one has none. format: json, otlp, csv or text,
    or a table that says with which decoder records are read (see decoders).
    where: which rows it is about; the others hold nothing for us. nothing: texts that say that there is no value.
    members: where a document holds its events, or its only one. line: a regular expression with named groups, for
    text; one called pairs holds key=value. lines: how many make one record. has: of each list one path must be there,
    for a file to be recognised.
    unlock: for a field that a source may lack, how to get it logged.
    """

    stream: Literal["requests", "heartbeats", "write_log", "signals"]
    fields: dict[str, Given]
    name: str = ""
    like: str = ""
    format: str | Format = "json"
    files: str = "*"
    members: str = ""
    line: str = ""
    lines: Annotated[int, msgspec.Meta(ge=1)] = 1
    where: dict[str, str] = {}
    nothing: list[str] = []
    has: list[list[str]] = []
    unlock: dict[str, str] = {}

    @cached_property
    def form(self) -> Format:
        """The format as a table."""
        return Format(kind=self.format) if isinstance(self.format, str) else self.format

    @property
    def kind(self) -> str:
        """The format's name."""
        return self.form.kind

    @cached_property
    def decoder(self) -> Unfold:
        """How records are read, where the map's own words do not say it; made once, for messages come in small lots."""
        return decoder(self.form)

    @cached_property
    def rules(self) -> dict[str, list[Rule]]:
        def one(given: str | Rule) -> Rule:
            return Rule(source=given) if isinstance(given, str) else given

        return {f: [one(g) for g in (v if isinstance(v, list) else [v])] for f, v in self.fields.items()}

    @cached_property
    def ordered(self) -> bool:
        """Whether its rows have an order, and no time."""
        return self.rules.get("timestamp") == [Rule(source=ORDER)]

    @cached_property
    def paths(self) -> Paths:
        """What is taken of a row."""
        every = (p for rules in self.rules.values() for r in rules for p in r.paths)
        return Paths([*every, *self.where, *self.kin])

    @cached_property
    def signs(self) -> Paths:
        """What a file is recognised by."""
        return Paths(p for some in self.has for p in some)

    @cached_property
    def kin(self) -> list[str]:
        """What is taken of a row for its parent or its children."""
        every = [p for rules in self.rules.values() for r in rules for p in (r.parent, r.child)]
        return list(dict.fromkeys(p for p in every if p is not None))

    @cached_property
    def digest(self) -> str:
        """Another map reads the same file as something else; what it says to people changes nothing."""
        read = msgspec.structs.replace(self, unlock={})
        return xxhash.xxh3_64_hexdigest(msgspec.json.encode(read, order="sorted"))

    def within(self, place: str) -> FieldMap:
        """The map as it is for a file, or a topic: what its rules take from the name is a value."""
        if not any(r.file is not None for rules in self.rules.values() for r in rules):
            return self
        known = {name: [*_known(rules, place)] for name, rules in self.rules.items()}
        return msgspec.structs.replace(self, fields={name: rules for name, rules in known.items() if rules})

    def recognises(self, event: Any) -> bool:
        said = self.signs.of(event)
        return bool(self.has) and all(any(said.get(p) is not None for p in some) for some in self.has)


def _known(rules: Sequence[Rule], place: str) -> Iterator[Rule]:
    """A rule whose expression is not found in the name gives nothing."""
    for rule in rules:
        if rule.file is None:
            yield rule
        elif (match := re.search(rule.file, place)) and match[1] is not None:
            yield msgspec.structs.replace(rule, file=None, value=match[1])


# ---- reading a map --------------------------------------------------------------------------------------------------


def load(path: Path) -> FieldMap:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Problem(str(path), f"not readable: {reason}", "asynchealth map --infer LOG > MAP.toml") from None
    return parse(text, str(path), path.stem, path.parent)


@cache
def shipped() -> tuple[FieldMap, ...]:
    """The maps of formats that are known by their fields."""
    return tuple(parse(shipped_text(name), f"{name}.toml", name) for name in _shipped_names())


def _shipped_names() -> list[str]:
    return sorted(f.name.removesuffix(".toml") for f in SHIPPED.iterdir() if f.name.endswith(".toml"))


def shipped_text(name: str) -> str:
    """A shipped map as it is written, with its comments."""
    return (SHIPPED / f"{name}.toml").read_text()


def parse(text: str, where: str, name: str = "", folder: Path = HERE) -> FieldMap:
    """A map of that name; the schemas that it names lie in the folder."""
    try:
        given = _with_codes(_like(tomllib.loads(text), where))
        found = msgspec.convert({"name": name, **given}, FieldMap)
    except tomllib.TOMLDecodeError as error:
        raise Problem(where, f"not TOML: {error}", EXAMPLE) from None
    except msgspec.ValidationError as error:
        reason, _, path = _of_field(given, error).rstrip("`").partition(" - at `$.")
        raise Problem(f"{where}: {path}" if path else where, reason, _example(path)) from None
    if isinstance(found.format, Format):
        found = msgspec.structs.replace(found, format=found.format.loaded(folder, where))
    for field, reason in _wrong(found):
        raise Problem(f"{where}: {field}", reason, _example(field))
    return found


def _of_field(given: dict[str, Any], error: msgspec.ValidationError) -> str:
    """What is wrong, with the name of the field whose rule it is and the words that there are."""
    text, fields_ = str(error), given.get("fields")
    for field, rules in fields_.items() if isinstance(fields_, dict) and "`$.fields[...]" in text else ():
        try:
            msgspec.convert(rules, Given)
        except msgspec.ValidationError:
            text = text.replace("fields[...]", f"fields.{field}")
            break
    reason, at, path = text.partition(" - at")
    words = next((words for sign, words in WORDS.items() if re.search(sign, text)), "")
    return f"{reason}; there are {words}{at}{path}" if words else text


def _example(field: str) -> str:
    return STREAM if field == "stream" else FORMATS if field.startswith("format") else EXAMPLE


def _like(given: dict[str, Any], where: str) -> dict[str, Any]:
    """With the words of the shipped map that it names."""
    if "like" not in given:
        return given
    if given["like"] not in (known := _shipped_names()):
        raise Problem(f"{where}: like", f"no shipped map {given['like']!r}; there are {', '.join(known)}", LIKE)
    base = tomllib.loads(shipped_text(given["like"]))
    mine = given.get("fields", {})
    return {**base, **given, "fields": {**base["fields"], **mine} if isinstance(mine, dict) else mine}


def _with_codes(given: dict[str, Any]) -> dict[str, Any]:
    """With tables of codes in the place of their names."""
    if not isinstance(given.get("fields"), dict):
        return given
    return {**given, "fields": {field: _coded(rules) for field, rules in given["fields"].items()}}


def _coded(rules: Any) -> Any:
    match rules:
        case list():
            return [*map(_coded, rules)]
        case {"values": str(name)} if name in STATUS_OF:
            return {**rules, "values": STATUS_OF[name]}
        case _:
            return rules


WORDS = {  # by what a reason looks like: what may stand there
    r"unknown field .*fields\.": ", ".join(f.encode_name for f in msgspec.structs.fields(Rule)),
    r"unknown field `[^`]*`$": ", ".join(f.encode_name for f in msgspec.structs.fields(FieldMap)),
    r"enum .*unit`": ", ".join(get_args(Unit)),
    r"enum .*\.stream`": ", ".join(SCHEMA),
    r"`str` .*\.values`": f"{', '.join(STATUS_OF)}, or a table",
}
STREAM = 'write it as in: stream = "requests"'
LIKE = 'write it as in: like = "debezium"'
FORMATS = 'write it as in: format = "csv", or: format = { kind = "avro", schema = "order.avsc" }'
EXAMPLE = 'write it as in: service_name = "path.of.field", or { from = "path", capture = "^([^:]+)" }'


def _wrong(given: FieldMap) -> Iterator[tuple[str, str]]:
    """What a map says that can't be done: (where, why)."""
    known = {f.name: f for f in fields(given.stream)}
    for name, rules in given.rules.items():
        if name not in known:
            yield f"fields.{name}", f"{given.stream} have no such field; there are {', '.join(known)}"
        for rule in rules:
            yield from ((f"fields.{name}", why) for why in _wrong_rule(rule, given, name))
    for name, field in known.items():
        if field.required and name not in given.rules:
            yield f"fields.{name}", f"missing, and {given.stream} need it"
    for name in (n for n in given.rules if given.ordered and n != "timestamp" and known[n].dtype == INSTANT):
        yield f"fields.{name}", f'a row with it has a time: take the timestamp from there, not from = "{ORDER}"'
    yield from (("format", why) for why in _wrong_format(given))
    if (given.kind == "text") != bool(given.line):
        yield "line", 'a map of text (format = "text") needs a pattern with named groups, and no other has one'
    yield from (("where", why) for why in _wrong_patterns(given.where.values()))
    yield from (("line", why) for why in _wrong_patterns([given.line]))


def _wrong_format(given: FieldMap) -> Iterator[str]:
    if given.kind in OF_MAPS:
        if given.form.schema or given.form.options:
            yield f"{given.kind} takes no schema and no options"
        return
    try:
        _ = given.decoder
    except ValueError as error:
        yield str(error)


def _wrong_rule(rule: Rule, given: FieldMap, name: str) -> Iterator[str]:
    origins = [o for o in ORIGINS if getattr(rule, o) not in (None, [])]
    if len(origins) != 1:
        yield f"one of from, value, concat, hash, file, parent, child is needed, and there are {len(origins)}"
    if (rule.parent or rule.child) and not {"span_id", "parent_span_id"} <= given.rules.keys():
        yield "parent and child need the fields span_id and parent_span_id"
    timed = SCHEMA[given.stream].get(name) == INSTANT
    if (rule.zone or rule.format) and not timed:
        yield "zone and format are for times"
    if rule.unit and (rule.zone or rule.format):
        yield "a number with a unit has no zone and no format"
    if (rule.unit or rule.minus or rule.minus_unit) and not (timed or is_duration(name)):
        yield "unit and minus are for times and for durations"
    if rule.less and not isinstance(SCHEMA[given.stream].get(name), pl.Int64):
        yield "less is for counts"
    if rule.zone and not _is_zone(rule.zone):
        yield f"{rule.zone!r} is no zone: write UTC, -04:00 or Europe/Berlin"
    wrong = [*_wrong_patterns([rule.capture, rule.file or "", *rule.values, *rule.where.values()])]
    yield from wrong
    if rule.file is not None and not wrong and not re.compile(rule.file).groups:
        yield f"{rule.file!r} has no group, in parentheses, to say which part of the name counts"


def is_duration(name: str) -> bool:
    return name.endswith("_ms")


def _wrong_patterns(patterns: Iterable[str]) -> Iterator[str]:
    """What the engine that will match them says."""
    for pattern in patterns:
        try:
            re.compile(pattern)
            pl.select(pl.lit("").str.contains(pattern))
        except (pl.exceptions.ComputeError, re.error) as error:
            told = [line for line in str(error).splitlines() if line.startswith("error: ")] or [str(error)]
            yield f"{pattern!r} is no regular expression: {told[0].removeprefix('error: ')}"


def _is_zone(zone: str) -> bool:
    if FIXED.fullmatch(zone):
        return True
    try:
        return bool(ZoneInfo(zone))
    except (KeyError, ValueError, OSError):
        return False
