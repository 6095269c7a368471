"""Events or columns of any format enter, rows of a stream leave: what a field map makes of each, and what it refuses.

    nested events -> texts by path -> values of the schema's columns -> conform

Times, durations and vector clocks are read here, as the map says; all else is text that `conform` reads. What can't be
read is a reject that names the field and the paths it is made from.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import polars as pl
import polars.selectors as cs
import polars_hash  # noqa: F401  (registers nchash)

from detectors.events import CLOCK, INSTANT, REJECTS, SCHEMA, UNREADABLE, Count, Decoded, conform, decimal, instant
from streams.sources.fieldmap import FIXED, ORDER, FieldMap, Rule, is_duration
from streams.sources.formats import Paths, Unfolded
from streams.sources.words import Unit

NS_PER: dict[Unit, int] = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
MS = 1e-3  # per µs
IN_ORDER = Rule(source=ORDER)
ZONED = re.compile("%[:#]*z")  # a format that reads a zone; %#z, without minutes, too


class Pair(msgspec.Struct, frozen=True):
    key: str
    value: Count


CLOCKS = msgspec.json.Decoder(dict[str, Count] | list[Pair])


class Kin(NamedTuple):
    """What the rows of a whole recording say for their parents and children, by (trace, span)."""

    parents: pl.DataFrame
    children: pl.DataFrame


def texts(given: FieldMap, found: Unfolded) -> pl.DataFrame:
    """Each path as a column of texts, with offset and sub; of the rows that the map is about."""
    return about_of(given, columns_of(given.paths, found))


def columns_of(paths: Paths, found: Unfolded) -> pl.DataFrame:
    """Each path as a column of texts, with offset and sub."""
    places = {
        "offset": pl.Series(found.offsets, dtype=pl.Int64),
        "sub": pl.Series(found.subs, dtype=pl.Int64),
    }
    texts: dict[str, list[str | None]] = {p: [None] * len(found.events) for p in paths}
    for row, event in enumerate(found.events):
        for path, value in paths.of(event).items():
            texts[path][row] = value if isinstance(value, str) else _text(value)
    return pl.DataFrame({**places, **{held_in(p): pl.Series(some, dtype=pl.String) for p, some in texts.items()}})


def held_in(path: str) -> str:
    """The column of a path: logs have fields named offset and sub, too, and * is a pattern to polars."""
    return f"at {path}"


def _at(path: str) -> pl.Expr:
    return pl.col(held_in(path))


def about_of(given: FieldMap, frame: pl.DataFrame) -> pl.DataFrame:
    """The rows that the map is about, without the texts that say nothing."""
    told = pl.col([held_in(p) for p in given.paths])
    said = frame.with_columns(told.replace(given.nothing, None)) if given.nothing else frame
    return said.filter(_matches(given.where)) if given.where else said


def column_of(path: str, shape: pl.Schema) -> str | None:
    """The column that holds a path: it may be a field of a struct column."""
    name = path if path in shape else path.partition(".")[0]
    return name if name in shape else None


def column_text(path: str, shape: pl.Schema) -> pl.Expr:
    """A column, or a field of a struct column, as texts; nulls where there is none."""
    name = column_of(path, shape)
    if name is None:
        return pl.lit(None, dtype=pl.String).alias(held_in(path))
    column, rest = cs.by_name(name).as_expr(), path[len(name) + 1 :]  # col would take * for a pattern
    kind: Any = shape[name]
    while rest:
        if (pair := _pair(kind)) is not None:
            column, kind = column.list.eval(_of_key(rest)).list.last(), pair
            break
        inside = {f.name: f.dtype for f in kind.fields} if isinstance(kind, pl.Struct) else {}
        name = rest if rest in inside else rest.partition(".")[0]
        if name not in inside:
            return pl.lit(None, dtype=pl.String).alias(held_in(path))
        column, kind, rest = column.struct.field(name), inside[name], rest[len(name) + 1 :]
    return _column(column, kind).alias(held_in(path))


def _column(column: pl.Expr, kind: pl.DataType) -> pl.Expr:
    if kind.is_nested():
        whole = pl.struct(_spelt(column, kind).alias("")).struct.json_encode()
        return pl.when(column.is_not_null()).then(whole.str.strip_prefix('{"":').str.head(-1))
    if isinstance(kind, pl.Datetime):
        return _calendar(column, {"ms": 10**3, "us": 10**6, "ns": 10**9}[kind.time_unit] * DAY_S)
    if kind == pl.Date:
        return _calendar(column, 1)
    if isinstance(kind, pl.Duration):  # in ms, as durations are where a map says no unit
        in_ms = pl.lit({"ms": "1", "us": "0.001", "ns": "0.000001"}[kind.time_unit]).cast(LONGEST)
        return (column.to_physical().cast(LONGEST) * in_ms).cast(pl.String)
    if kind == pl.Time:
        return column.dt.to_string("iso")
    if isinstance(kind, pl.Binary):
        return column.map_elements(_of_bytes, return_dtype=pl.String)
    return column.cast(pl.String)


LONGEST = pl.Decimal(38, 6)
DAY_S = 86_400
DAYS = -719_162, 2_932_896  # from 0001-01-01 to 9999-12-31; polars panics far beyond


def _spelt(column: pl.Expr, kind: Any) -> pl.Expr:
    """With texts for what JSON has no word for, or polars none that is safe."""
    if isinstance(kind, pl.Struct):
        parts = [_spelt(column.struct.field(f.name), f.dtype).alias(f.name) for f in kind.fields]
        return pl.when(column.is_not_null()).then(pl.struct(parts))
    if isinstance(kind, pl.List):
        return column.list.eval(_spelt(pl.element(), kind.inner))
    return _column(column, kind) if kind.is_temporal() or kind in (pl.Binary, pl.Decimal) else column


def _pair(kind: Any) -> pl.DataType | None:
    """Of a map the type of its values: parquet.py makes a list of pairs of it."""
    pair = kind.inner if isinstance(kind, pl.List) else None
    inside = {f.name: f.dtype for f in pair.fields} if isinstance(pair, pl.Struct) else {}
    return inside["value"] if [*inside] == ["key", "value"] and inside["key"] == pl.String else None  # type: ignore[return-value]


def _of_key(key: str) -> pl.Expr:
    pair = pl.element().struct
    return pair.field("value").filter(pair.field("key") == key)


def _calendar(column: pl.Expr, a_day: int) -> pl.Expr:
    """A day that no calendar has, as "infinity" is written, stays a text that is no time."""
    number = column.to_physical()
    known = pl.when((number // a_day).is_between(*DAYS)).then(column)
    return pl.coalesce(known.dt.to_string("iso:strict"), pl.format("{} beyond the calendar", number))


def _of_bytes(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return b64encode(value).decode()


def _text(value: Any) -> str | None:
    match value:
        case None | str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case bytes():
            return b64encode(value).decode()
        case _:
            return msgspec.json.encode(value).decode()


def mapped(given: FieldMap, frame: pl.DataFrame, kin: Kin | None = None) -> Decoded:
    """Texts to the stream's columns; what can't be read as what the map says it is becomes a reject.

    kin: of the whole recording; else parents and children are looked for in the same record, whatever came with it.
    """
    if given.kin:
        frame = _with_kin(given, frame, kin)
    shape = SCHEMA[given.stream]
    values = [_field(rules, name, shape[name]).alias(name) for name, rules in given.rules.items()]
    raw = [pl.coalesce(_held(r, _origin(r)) for r in rules).alias(f"raw {name}") for name, rules in given.rules.items()]
    whole = frame.select("offset", "sub", *values, *raw)
    checked = [n for n, t in shape.items() if n in given.rules and (t in (INSTANT, CLOCK) or is_duration(n))]
    good, unread = _unread(given, frame, whole, checked)
    events, rejects = conform(given.stream, good.select("offset", "sub", *given.rules))
    named = rejects.with_columns(field=_where(given, pl.col("field")))
    return Decoded(events, pl.concat([unread, named]), 0)


def _unread(
    given: FieldMap, frame: pl.DataFrame, whole: pl.DataFrame, checked: Sequence[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows with a text where a time, a duration or a clock should be."""
    wrong = {n: pl.col(n).is_null() & pl.col(f"raw {n}").is_not_null() for n in checked}
    if not wrong:
        return whole, pl.DataFrame(schema=REJECTS)
    bad = whole.select(pl.any_horizontal(wrong.values())).to_series()
    why = pl.coalesce(
        pl.when(w).then(pl.struct(reason=_words(given, n), field=pl.lit(n), raw=pl.col(f"raw {n}")))
        for n, w in wrong.items()
    )
    unmade = {f"unmade {n}": _unmade(given.rules[n], n) for n in checked}
    rejects = whole.filter(bad).hstack(frame.filter(bad).select("offset", **unmade).drop("offset"))
    rejects = rejects.select("offset", "sub", why.alias("why")).unnest("why")
    return whole.filter(~bad), rejects.with_columns(field=_where(given, pl.col("field"))).cast(REJECTS)  # type: ignore[arg-type]


def _unmade(rules: Sequence[Rule], name: str) -> pl.Expr:
    """Why what can be read makes no value: what is to be taken off is no number."""
    none = pl.lit(None, dtype=pl.String)
    return pl.coalesce(none, *(_held(r, _short(r, name)) for r in rules if r.minus is not None))


def _short(rule: Rule, name: str) -> pl.Expr:
    dtype = pl.Float64() if is_duration(name) else INSTANT
    whole = value_of(msgspec.structs.replace(rule, minus=None), name, dtype)
    reason = f"{rule.minus}, which is to be taken off, is no number"
    return pl.when(whole.is_not_null() & _us(_at(rule.minus or ""), "ms").is_null()).then(pl.lit(reason))


def _words(given: FieldMap, name: str) -> pl.Expr:
    placed = [r for r in given.rules[name] if r.zone and not FIXED.fullmatch(r.zone)]
    unclear = (_unclear(r, pl.col(f"raw {name}")) for r in placed)
    return pl.coalesce(*unclear, pl.col(f"unmade {name}"), pl.lit(_word(given, name)))


def _unclear(rule: Rule, text: pl.Expr) -> pl.Expr:
    """Where a clock shows a time twice, or never, as summer time ends and begins."""
    naive = _naive_of(rule, _changed(rule, text))
    shown = naive.dt.replace_time_zone(rule.zone, ambiguous="null", non_existent="null")
    reason = f"not one time: clocks of {rule.zone} show it twice or never, as they are set"
    return pl.when(naive.is_not_null() & shown.is_null()).then(pl.lit(reason))


def _word(given: FieldMap, name: str) -> str:
    if SCHEMA[given.stream][name] == CLOCK:
        return "not a map of node to count"
    if is_duration(name):
        return "not a number"
    zoned = any(r.zone or r.unit for r in given.rules[name])
    return (
        "not a time as the map says" if zoned else 'not a time with a zone; if it has none add zone = "UTC" to the map'
    )


def _where(given: FieldMap, name: pl.Expr) -> pl.Expr:
    """A field with the paths that it is made from."""
    made = {n: [p for r in rules for p in r.paths] for n, rules in given.rules.items()}
    return name.replace({n: f"{n} (from {', '.join(paths)})" for n, paths in made.items() if paths})


def _matches(where: dict[str, str]) -> pl.Expr:
    return pl.all_horizontal(_at(p).fill_null("").str.contains(f"^(?:{x})$") for p, x in where.items())


def _field(rules: Sequence[Rule], name: str, dtype: pl.DataType) -> pl.Expr:
    return pl.coalesce(_held(r, value_of(r, name, dtype)) for r in rules)


def _held(rule: Rule, value: pl.Expr) -> pl.Expr:
    """The value where the rule holds."""
    return pl.when(_matches(rule.where)).then(value) if rule.where else value


def value_of(rule: Rule, name: str, dtype: pl.DataType) -> pl.Expr:
    """What a rule makes of a row, whether it holds there or not; null where that can't be read."""
    if name == "timestamp" and rule == IN_ORDER:
        return pl.col("offset").cast(INSTANT)
    text = _changed(rule, _origin(rule))
    if dtype == CLOCK:
        return text.map_elements(_clock, return_dtype=CLOCK)
    if dtype != INSTANT and not is_duration(name):
        return text
    us = _time(rule, text).cast(pl.Int64) if dtype == INSTANT else _us(text, rule.unit or "ms")
    if rule.minus is not None:
        us = us - _us(_at(rule.minus), rule.minus_unit or rule.unit or "ms")
    return us.cast(INSTANT) if dtype == INSTANT else us * MS


def _origin(rule: Rule) -> pl.Expr:
    if rule.source is not None:
        return _at(rule.source)
    if rule.concat:
        return pl.concat_str([_at(p) for p in rule.concat], separator=rule.between)
    if rule.hash:
        whole = pl.concat_str([_at(p).fill_null("") for p in rule.hash], separator="\0")
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
    if rule.less:
        text = pl.coalesce((text.cast(pl.Int64, strict=False) - rule.less).clip(0).cast(pl.String), text)
    return text if rule.missing is None else text.fill_null(rule.missing)


def _time(rule: Rule, text: pl.Expr) -> pl.Expr:
    """A unit in the map beats the rule of magnitude; a zone counts only where the text has none."""
    if rule.unit:
        return _us(text, rule.unit).cast(INSTANT)
    if ZONED.search(rule.format):
        return text.str.to_datetime(rule.format, time_unit="us", time_zone="UTC", strict=False)
    if not rule.zone:
        return instant(text, pl.String())
    naive = _naive_of(rule, text)
    if FIXED.fullmatch(rule.zone):
        sign, hours, minutes = rule.zone[0] + "1", rule.zone[1:3], rule.zone[4:]
        ahead = int(sign) * (int(hours) * 60 + int(minutes))
        zoned = naive.dt.replace_time_zone("UTC") - pl.duration(minutes=ahead)
    else:
        zoned = naive.dt.replace_time_zone(rule.zone, ambiguous="null", non_existent="null")
    return pl.coalesce(instant(text, pl.String()), zoned.dt.convert_time_zone("UTC"))


def _naive_of(rule: Rule, text: pl.Expr) -> pl.Expr:
    return text.str.to_datetime(rule.format, time_unit="us", strict=False) if rule.format else _naive(text)


def _naive(text: pl.Expr) -> pl.Expr:
    shape = "%Y-%m-%dT%H:%M:%S%.f"
    return text.str.replace(" ", "T", literal=True).str.to_datetime(shape, time_unit="us", strict=False)


def _us(text: pl.Expr, unit: Unit) -> pl.Expr:
    """Decimal digits of a unit to µs, floored."""
    _, billionths = decimal(text)
    ns = billionths * pl.lit(NS_PER[unit], dtype=pl.Int128)
    return (ns // pl.lit(10**12, dtype=pl.Int128)).cast(pl.Int64, strict=False)


def _clock(text: str) -> list[dict[str, Any]] | None:
    """Of a map, or a list of its pairs; None where a node has two counts."""
    try:
        said = CLOCKS.decode(text)
    except UNREADABLE:
        return None
    pairs = [*said.items()] if isinstance(said, dict) else [(p.key, p.value) for p in said]
    clock = dict(pairs)
    return [{"key": k, "value": n} for k, n in sorted(clock.items())] if len(clock) == len(pairs) else None


# ---- parents and children -------------------------------------------------------------------------------------------

TRACE, OWN, PARENT = "span's trace", "span's own", "span's parent"  # no paths: those may have any name


def _span_keys(given: FieldMap, apart: bool) -> dict[str, pl.Expr]:
    """apart: each record's spans by themselves."""

    def of(name: str) -> pl.Expr:
        return _field(given.rules[name], name, pl.String()) if name in given.rules else pl.lit("")

    trace = of("trace_id").fill_null("")
    whole = pl.concat_str(pl.col("offset"), pl.lit(" "), trace) if apart else trace
    return {TRACE: whole, OWN: of("span_id"), PARENT: of("parent_span_id")}


def kin_of(given: FieldMap, frames: Sequence[pl.DataFrame], apart: bool = False) -> Kin:
    """By span what is taken of it, by parent what is taken of its first child."""
    every = pl.concat([f.select(*map(_at, given.kin), **_span_keys(given, apart)) for f in frames])

    def by(key: str, named: str) -> pl.DataFrame:
        some = every.filter(pl.col(key).is_not_null()).group_by(TRACE, key).agg(_at(p).min() for p in given.kin)
        return some.rename({held_in(p): f"{named} {p}" for p in given.kin})

    return Kin(by(OWN, "parent").rename({OWN: PARENT}), by(PARENT, "child").rename({PARENT: OWN}))


def _with_kin(given: FieldMap, frame: pl.DataFrame, whole: Kin | None) -> pl.DataFrame:
    kin = whole or kin_of(given, [frame], apart=True)
    keyed = frame.with_columns(**_span_keys(given, whole is None))
    with_parent = keyed.join(kin.parents, on=[TRACE, PARENT], how="left", maintain_order="left")
    with_both = with_parent.join(kin.children, on=[TRACE, OWN], how="left", maintain_order="left")
    return with_both.drop(TRACE, OWN, PARENT)
