"""A field map enters, columns of the schema leave: which of a source's fields say what, written in TOML.

stream = "requests"
[fields]
timestamp = { from = "time_local", format = "%d/%b/%Y:%H:%M:%S %z", minus = "request_time", minus_unit = "s" }
service_name = { from = "upstream", capture = "^([^:]+)" }
status = { from = "status", values = { "504" = "timeout", "429|503" = "rejected", "5.." = "error", ".*" = "ok" } }
node_id = { value = "edge-1" }

A rule takes one value (from, value, concat, hash, parent, child) and changes it in the order: capture, drop_dashes,
values, missing, unit, format, zone, minus. Of several rules for a field the first that gives a value counts.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import polars as pl
import polars_hash  # noqa: F401  (registers nchash)
import xxhash

from detectors.events import CLOCK, INSTANT, REJECTS, SCHEMA, Decoded, conform, fields, instant
from streams.problems import Problem
from streams.sources.formats import Unfold, Unfolded, at, of_json, of_otlp, of_text

NS_PER = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
DIGITS = 9  # behind the point that count
FIXED = re.compile(r"[+-]\d\d:\d\d")
ORIGINS = ("source", "value", "concat", "hash", "parent", "child")
MS = 1e-3  # per µs
SHIPPED = files("streams.sources") / "shipped"


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"source": "from"}):
    """Where one value comes from, and what is done to it.

    parent, child: the value at this path of the row whose span is this one's parent, or whose parent this one is.
    where: regular expressions that the values at these paths must match for the rule to hold.
    values: regular expressions of whole texts, the first that matches counts; what matches none has no value.
    unit: of a number: s, ms, us, ns. zone: of a time that has none. minus: a path to be taken off, in minus_unit.
    """

    source: str | None = None
    value: str | int | float | bool | None = None
    concat: list[str] = []
    between: str = ""
    hash: list[str] = []
    parent: str | None = None
    child: str | None = None
    where: dict[str, str] = {}
    capture: str = ""
    drop_dashes: int = 0
    values: dict[str, str] = {}
    missing: str | None = None
    unit: Literal["s", "ms", "us", "ns"] | None = None
    format: str = ""
    zone: str = ""
    minus: str | None = None
    minus_unit: Literal["s", "ms", "us", "ns"] | None = None

    @property
    def paths(self) -> list[str]:
        """Of the row itself."""
        given = [self.source, self.minus, *self.concat, *self.hash, *self.where]
        return [p for p in given if p is not None]


Given = str | Rule | list[str | Rule]


class FieldMap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """stream: what the rows become. fields: a path, a rule or several for each.

    where: which rows it is about; the others hold nothing for us. members: where a document holds the list of events.
    line: a regular expression with named groups, for text; lines: how many make one record. has: of each list one path
    must be there, for a file to be recognised. unlock: for a field that a source may lack, how to get it logged.
    """

    stream: Literal["requests", "heartbeats", "write_log", "signals"]
    fields: dict[str, Given]
    name: str = ""
    format: Literal["json", "otlp", "csv", "text"] = "json"
    files: str = "*"
    members: str = ""
    line: str = ""
    lines: int = 1
    where: dict[str, str] = {}
    has: list[list[str]] = []
    unlock: dict[str, str] = {}

    @cached_property
    def rules(self) -> dict[str, list[Rule]]:
        def one(given: str | Rule) -> Rule:
            return Rule(source=given) if isinstance(given, str) else given

        return {f: [one(g) for g in (v if isinstance(v, list) else [v])] for f, v in self.fields.items()}

    @cached_property
    def paths(self) -> list[str]:
        """What is taken of a row."""
        every = [p for rules in self.rules.values() for r in rules for p in r.paths]
        return list(dict.fromkeys([*every, *self.where, *self.kin]))

    @cached_property
    def kin(self) -> list[str]:
        """What is taken of a row for its parent or its children."""
        every = [p for rules in self.rules.values() for r in rules for p in (r.parent, r.child)]
        return list(dict.fromkeys(p for p in every if p is not None))

    @cached_property
    def digest(self) -> str:
        """Another map reads the same file as something else."""
        return xxhash.xxh3_64_hexdigest(msgspec.json.encode(self, order="sorted"))

    def recognises(self, event: Any) -> bool:
        return bool(self.has) and all(any(at(event, p) is not None for p in some) for some in self.has)


# ---- reading a map --------------------------------------------------------------------------------------------------


def load(path: Path) -> FieldMap:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(str(path), f"not readable: {error}", "asynchealth replay PATH… --map FILE.toml") from None
    return parse(text, str(path), path.stem)


def shipped() -> list[FieldMap]:
    """The maps of formats that are known by their fields."""
    found = sorted((f for f in SHIPPED.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return [parse(f.read_text(), f.name, f.name.removesuffix(".toml")) for f in found]


def parse(text: str, where: str, name: str = "") -> FieldMap:
    try:
        given = tomllib.loads(text)
        found = msgspec.convert({"name": name, **given}, FieldMap)
    except tomllib.TOMLDecodeError as error:
        raise Problem(where, f"not TOML: {error}", EXAMPLE) from None
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        raise Problem(f"{where}: {path.rstrip('`')}" if path else where, reason, EXAMPLE) from None
    for field, reason in _wrong(found):
        raise Problem(f"{where}: {field}", reason, EXAMPLE)
    return found


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
    if (given.format == "text") != bool(given.line):
        yield "line", 'a map of text (format = "text") needs a pattern with named groups, and no other has one'
    yield from (("where", why) for why in _wrong_patterns(given.where.values()))
    yield from (("line", why) for why in _wrong_patterns([given.line]))


def _wrong_rule(rule: Rule, given: FieldMap, name: str) -> Iterator[str]:
    origins = [o for o in ORIGINS if getattr(rule, o) not in (None, [])]
    if len(origins) != 1:
        yield f"one of from, value, concat, hash, parent, child is needed, and there are {len(origins)}"
    if (rule.parent or rule.child) and not {"span_id", "parent_span_id"} <= given.rules.keys():
        yield "parent and child need the fields span_id and parent_span_id"
    timed = SCHEMA[given.stream].get(name) == INSTANT
    if (rule.zone or rule.format) and not timed:
        yield "zone and format are for times"
    if rule.unit and (rule.zone or rule.format):
        yield "a number with a unit has no zone and no format"
    if (rule.unit or rule.minus or rule.minus_unit) and not (timed or name.endswith("_ms")):
        yield "unit and minus are for times and for durations"
    if rule.zone and not _is_zone(rule.zone):
        yield f"{rule.zone!r} is no zone: write UTC, -04:00 or Europe/Berlin"
    yield from _wrong_patterns([rule.capture, *rule.values, *rule.where.values()])


def _wrong_patterns(patterns: Any) -> Iterator[str]:
    """What the engine that will match them says."""
    for pattern in patterns:
        try:
            pl.select(pl.lit("").str.contains(pattern))
            re.compile(pattern)
        except (pl.exceptions.ComputeError, re.error) as error:
            yield f"{pattern!r} is no regular expression: {str(error).splitlines()[-1]}"


def _is_zone(zone: str) -> bool:
    if FIXED.fullmatch(zone):
        return True
    try:
        return bool(ZoneInfo(zone))
    except (KeyError, ValueError, OSError):
        return False


# ---- rows to columns ------------------------------------------------------------------------------------------------


class Kin(NamedTuple):
    """What the rows of a whole recording say for their parents and children, by (trace, span)."""

    parents: pl.DataFrame
    children: pl.DataFrame


def texts(given: FieldMap, found: Unfolded) -> pl.DataFrame:
    """Each path as a column of texts, with offset and sub; of the rows that the map is about."""
    columns = {p: [_text(at(e, p)) for e in found.events] for p in given.paths}
    frame = pl.DataFrame(columns, schema=dict.fromkeys(given.paths, pl.String())).with_columns(
        offset=pl.Series(found.offsets, dtype=pl.Int64), sub=pl.Series(found.subs, dtype=pl.Int64)
    )
    return about_of(given, frame)


def about_of(given: FieldMap, frame: pl.DataFrame) -> pl.DataFrame:
    """The rows that the map is about."""
    return frame.filter(_matches(given.where)) if given.where else frame


def unfold_of(given: FieldMap) -> Unfold:
    """How its records are read; a CSV file needs its header, see formats.Cells."""
    if given.format == "otlp":
        return of_otlp
    return of_text(given.line) if given.format == "text" else of_json(given.members)


def column_text(path: str, shape: pl.Schema) -> pl.Expr:
    """A column, or a field of a struct column, as texts; nulls where there is none."""
    name = path if path in shape else path.partition(".")[0]
    if name not in shape:
        return pl.lit(None, dtype=pl.String).alias(path)
    column, rest = pl.col(name), path[len(name) + 1 :]
    kind: Any = shape[name]
    while rest:
        inside = {f.name: f.dtype for f in kind.fields} if isinstance(kind, pl.Struct) else {}
        name = rest if rest in inside else rest.partition(".")[0]
        if name not in inside:
            return pl.lit(None, dtype=pl.String).alias(path)
        column, kind, rest = column.struct.field(name), inside[name], rest[len(name) + 1 :]
    return _column(column, kind).alias(path)


def _column(column: pl.Expr, kind: pl.DataType) -> pl.Expr:
    if isinstance(kind, pl.Struct):
        return column.struct.json_encode()
    if kind.is_nested():
        return column.map_elements(lambda v: _text(list(v)), return_dtype=pl.String)
    if isinstance(kind, pl.Datetime):
        return column.dt.to_string("iso:strict")
    return column.cast(pl.String)


def _text(value: Any) -> str | None:
    match value:
        case None | str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case _:
            return msgspec.json.encode(value).decode()


def mapped(given: FieldMap, frame: pl.DataFrame, kin: Kin | None = None) -> Decoded:
    """Texts to the stream's columns; what can't be read as what the map says it is becomes a reject.

    kin: of the whole recording; else parents and children are looked for among these rows.
    """
    if given.kin:
        frame = _with_kin(given, frame, kin or kin_of(given, [frame]))
    shape = SCHEMA[given.stream]
    values = [_field(rules, name, shape[name]).alias(name) for name, rules in given.rules.items()]
    raw = [pl.coalesce(_origin(r) for r in rules).alias(f"raw {name}") for name, rules in given.rules.items()]
    whole = frame.select("offset", "sub", *values, *raw)
    checked = [n for n, t in shape.items() if n in given.rules and (t in (INSTANT, CLOCK) or n.endswith("_ms"))]
    good, unread = _unread(given, whole, checked)
    events, rejects = conform(given.stream, good.select("offset", "sub", *given.rules))
    named = rejects.with_columns(field=_where(given, pl.col("field")))
    return Decoded(events, pl.concat([unread, named]), 0)


def _unread(given: FieldMap, whole: pl.DataFrame, checked: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows with a text where a time, a duration or a clock should be."""
    wrong = {n: pl.col(n).is_null() & pl.col(f"raw {n}").is_not_null() for n in checked}
    if not wrong:
        return whole, pl.DataFrame(schema=REJECTS)
    bad = whole.select(pl.any_horizontal(wrong.values())).to_series()
    why = pl.coalesce(
        pl.when(w).then(pl.struct(reason=pl.lit(_words(given, n)), field=pl.lit(n), raw=pl.col(f"raw {n}")))
        for n, w in wrong.items()
    )
    rejects = whole.filter(bad).select("offset", "sub", why.alias("why")).unnest("why")
    return whole.filter(~bad), rejects.with_columns(field=_where(given, pl.col("field"))).cast(REJECTS)  # type: ignore[arg-type]


def _words(given: FieldMap, name: str) -> str:
    if SCHEMA[given.stream][name] == CLOCK:
        return "not a map of node to count"
    if name.endswith("_ms"):
        return "not a number"
    zoned = any(r.zone or r.unit for r in given.rules[name])
    return (
        "not a time as the map says" if zoned else 'not a time with a zone; if it has none add zone = "UTC" to the map'
    )


def _where(given: FieldMap, name: pl.Expr) -> pl.Expr:
    """A field with the paths that it is made from."""
    made = {n: f"{n} (from {', '.join(p for r in rules for p in r.paths)})" for n, rules in given.rules.items()}
    return name.replace({n: text for n, text in made.items() if not text.endswith("(from )")})


def _matches(where: dict[str, str]) -> pl.Expr:
    return pl.all_horizontal(pl.col(p).fill_null("").str.contains(f"^(?:{x})$") for p, x in where.items())


def _field(rules: Sequence[Rule], name: str, dtype: pl.DataType) -> pl.Expr:
    return pl.coalesce(
        pl.when(_matches(r.where)).then(_value(r, name, dtype)) if r.where else _value(r, name, dtype) for r in rules
    )


def _value(rule: Rule, name: str, dtype: pl.DataType) -> pl.Expr:
    text = _changed(rule, _origin(rule))
    if dtype == CLOCK:
        return text.map_elements(_clock, return_dtype=CLOCK)
    if dtype != INSTANT and not name.endswith("_ms"):
        return text
    us = _time(rule, text).cast(pl.Int64) if dtype == INSTANT else _us(text, rule.unit or "ms")
    if rule.minus is not None:
        us = us - _us(pl.col(rule.minus), rule.minus_unit or rule.unit or "ms")
    return us.cast(INSTANT) if dtype == INSTANT else us * MS


def _origin(rule: Rule) -> pl.Expr:
    if rule.source is not None:
        return pl.col(rule.source)
    if rule.concat:
        return pl.concat_str(rule.concat, separator=rule.between)
    if rule.hash:
        whole = pl.concat_str([pl.col(p).fill_null("") for p in rule.hash], separator="\0")
        return whole.nchash.xxh3_64().cast(pl.String)  # type: ignore[attr-defined, no-any-return]
    if rule.parent is not None:
        return pl.col(f"parent {rule.parent}")
    if rule.child is not None:
        return pl.col(f"child {rule.child}")
    return pl.lit(_text(rule.value), dtype=pl.String)


def _changed(rule: Rule, text: pl.Expr) -> pl.Expr:
    if rule.capture:
        text = text.str.extract(rule.capture if "(" in rule.capture else f"({rule.capture})")
    if rule.drop_dashes:
        text = text.str.replace(rf"(?:-[^-]*){{{rule.drop_dashes}}}$", "")
    if rule.values:
        chosen = pl.lit(None, dtype=pl.String)
        for pattern, value in reversed(rule.values.items()):
            chosen = pl.when(text.str.contains(f"^(?:{pattern})$")).then(pl.lit(value)).otherwise(chosen)
        text = chosen
    return text if rule.missing is None else text.fill_null(rule.missing)


def _time(rule: Rule, text: pl.Expr) -> pl.Expr:
    """A unit in the map beats the rule of magnitude; a zone counts only where the text has none."""
    if rule.unit:
        return _us(text, rule.unit).cast(INSTANT)
    if rule.format and "%z" in rule.format:
        return text.str.to_datetime(rule.format, time_unit="us", time_zone="UTC", strict=False)
    naive = text.str.to_datetime(rule.format, time_unit="us", strict=False) if rule.format else _naive(text)
    if not rule.zone:
        return instant(text, pl.String())
    if FIXED.fullmatch(rule.zone):
        sign, hours, minutes = rule.zone[0] + "1", rule.zone[1:3], rule.zone[4:]
        ahead = int(sign) * (int(hours) * 60 + int(minutes))
        zoned = naive.dt.replace_time_zone("UTC") - pl.duration(minutes=ahead)
    else:
        zoned = naive.dt.replace_time_zone(rule.zone, ambiguous="null", non_existent="null")
    return pl.coalesce(instant(text, pl.String()), zoned.dt.convert_time_zone("UTC"))


def _naive(text: pl.Expr) -> pl.Expr:
    shape = "%Y-%m-%dT%H:%M:%S%.f"
    return text.str.replace(" ", "T", literal=True).str.to_datetime(shape, time_unit="us", strict=False)


def _us(text: pl.Expr, unit: str) -> pl.Expr:
    """Decimal digits of a unit to µs, floored: exact, in 128-bit integers of 1e-9 of the unit."""
    part = text.str.extract_groups(r"^(?<sign>-?)(?<whole>\d{1,20})(?:\.(?<rest>\d*))?$").struct
    whole = part.field("whole").cast(pl.Int128, strict=False)
    rest = part.field("rest").fill_null("").str.slice(0, DIGITS).str.pad_end(DIGITS, "0").cast(pl.Int128, strict=False)
    sign = pl.when(part.field("sign") == "-").then(-1).otherwise(1).cast(pl.Int128)
    value = (whole * pl.lit(10**DIGITS, dtype=pl.Int128) + rest) * sign * pl.lit(NS_PER[unit], dtype=pl.Int128)
    return (value // pl.lit(10 ** (DIGITS + 3), dtype=pl.Int128)).cast(pl.Int64, strict=False)


def _clock(text: str) -> list[dict[str, Any]] | None:
    try:
        return [{"key": k, "value": n} for k, n in sorted(msgspec.json.decode(text, type=dict[str, int]).items())]
    except msgspec.DecodeError:
        return None


# ---- parents and children -------------------------------------------------------------------------------------------

TRACE, OWN, PARENT = "span's trace", "span's own", "span's parent"  # no paths: those may have any name


def _span_keys(given: FieldMap) -> dict[str, pl.Expr]:
    def of(name: str) -> pl.Expr:
        return _field(given.rules[name], name, pl.String()) if name in given.rules else pl.lit("")

    return {TRACE: of("trace_id").fill_null(""), OWN: of("span_id"), PARENT: of("parent_span_id")}


def kin_of(given: FieldMap, frames: Sequence[pl.DataFrame]) -> Kin:
    """By span what is taken of it, by parent what is taken of its first child."""
    every = pl.concat([f.select(**_span_keys(given), **{p: pl.col(p) for p in given.kin}) for f in frames])

    def by(key: str, named: str) -> pl.DataFrame:
        some = every.filter(pl.col(key).is_not_null()).group_by(TRACE, key).agg(pl.col(given.kin).min())
        return some.rename({p: f"{named} {p}" for p in given.kin})

    return Kin(by(OWN, "parent").rename({OWN: PARENT}), by(PARENT, "child").rename({PARENT: OWN}))


def _with_kin(given: FieldMap, frame: pl.DataFrame, kin: Kin) -> pl.DataFrame:
    keyed = frame.with_columns(**_span_keys(given))
    with_parent = keyed.join(kin.parents, on=[TRACE, PARENT], how="left", maintain_order="left")
    whole = with_parent.join(kin.children, on=[TRACE, OWN], how="left", maintain_order="left")
    return whole.drop(TRACE, OWN, PARENT)
