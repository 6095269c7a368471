"""Bytes or loosely typed columns enter, typed event frames and rejects leave: the one definition of the four streams.

Everything else derives from the structs below: the JSON decoder, the checks that columns of any other format get, the
polars and Arrow schemas and the DuckDB DDL. A column keeps the name under which operators query it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from operator import attrgetter
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import polars as pl
from msgspec import Meta
from msgspec.inspect import (
    BoolType,
    CustomType,
    DictType,
    FloatType,
    IntType,
    LiteralType,
    NoneType,
    StrType,
    Type,
    UnionType,
    type_info,
)

from detectors.narrow import Narrow

MAX_INT = 2**63 - 1
MAX_WEIGHT = 10**6  # one in a million: a percentile over 10^10 such rows still fits 64 bits
MAX_MS = 1e12  # 31 years: beyond it a duration is garbage and would overflow arithmetic in µs

Time = int | float | str  # RFC 3339 with a zone, or an epoch whose magnitude tells its unit
Count = Annotated[int, Meta(ge=0, le=MAX_INT)]
Number = Annotated[int, Meta(ge=-MAX_INT, le=MAX_INT)]
Millis = Annotated[float, Meta(ge=0, le=MAX_MS)]


class Event(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """What every event may carry. environment and tenant prefix every key; weight > 1 stands for sampled-away rows.

    A null means the default: many loggers write one for whatever they do not know.
    """

    environment: str | None = ""
    tenant: str | None = ""
    region: str | None = None
    weight: Annotated[int, Meta(ge=1, le=MAX_WEIGHT)] | None = 1
    seq: Count | None = None
    seq_scope: str | None = None
    event_id: str | None = None
    arrival: Time | None = None


class Request(Event, kw_only=True):
    """One attempt of one call as one side saw it; timestamp is its start on the clock of node_id."""

    timestamp: Time
    service_name: str
    node_id: str
    caller: str | None = None
    peer_node: str | None = None
    side: Literal["client", "server"] | None = None
    request_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    parent_span_id: str | None = None
    status: Literal["ok", "error", "timeout", "rejected", "cancelled"] | None = None
    retry_count: Count | None = None
    duration_ms: Millis | None = None
    timeout_ms: Millis | None = None
    idempotency_key: str | None = None
    payload_hash: str | None = None
    cache: Literal["hit", "miss"] | None = None
    applied: bool | None = None
    acked: bool | None = None
    health_check: bool | None = None
    error: str | None = None


class Heartbeat(Event, kw_only=True):
    """client_time: the sender's clock when it sent; server_time: the observer's when it received, as is timestamp."""

    node_id: str
    client_time: Time
    server_time: Time
    timestamp: Time | None = None
    observer: str | None = "collector"
    reply_sent: Time | None = None
    reply_received: Time | None = None
    role: str | None = None
    term: Count | None = None
    leader: str | None = None


class Write(Event, kw_only=True):
    """One write of one entity by one node; vector_clock counts the writes it knew of, by node."""

    timestamp: Time
    node_id: str
    service_name: str | None = None
    entity_type: str | None = None
    entity_id: str | None = None
    version: Count | None = None
    base_version: Count | None = None
    vector_clock: dict[str, Count] | None = None
    term: Count | None = None
    op: str | None = None
    request_id: str | None = None
    idempotency_key: str | None = None
    started: Time | None = None
    finished: Time | None = None


class Signal(Event, kw_only=True):
    """What people and platforms did or measured: deploys, breaker states, failovers, cache size."""

    timestamp: Time
    subject: str
    kind: Literal["change", "gauge", "clock", "alert"]
    name: str
    value: float | None = None
    text: str | None = None


STREAMS: dict[str, type[Event]] = {
    "requests": Request,
    "heartbeats": Heartbeat,
    "write_log": Write,
    "signals": Signal,
}

INSTANT = pl.Datetime("us", "UTC")
EARLIEST_US, LATEST_US = -62_135_596_800_000_000, 253_402_300_799_999_999  # the years 1 to 9999, as RFC 3339 has them
CLOCK = pl.List(pl.Struct({"key": pl.String, "value": pl.Int64}))  # polars has no map type
COORDINATES = {
    "source": pl.String(),
    "topic": pl.String(),
    "partition": pl.Int64(),
    "offset": pl.Int64(),
    "sub": pl.Int64(),
}


@dataclass(frozen=True)
class Field:
    """One column: its name, its type in frames and in DuckDB, and what a value must satisfy."""

    name: str
    required: bool
    default: Any
    dtype: pl.DataType
    ddl: str
    ge: float | None = None
    le: float | None = None
    values: tuple[str, ...] = ()


def fields(stream: str) -> tuple[Field, ...]:
    """The columns of a stream in their order: what identifies the line first, what every event may carry last."""
    struct = STREAMS[stream]
    common = set(Event.__struct_fields__)
    info = {f.name: f for f in type_info(struct).fields}  # type: ignore[attr-defined]
    names = [n for n in struct.__struct_fields__ if n not in common] + list(Event.__struct_fields__)
    return tuple(_field(n, info[n]) for n in names)


def _field(name: str, info: Any) -> Field:
    default = None if info.required or info.default is msgspec.NODEFAULT else info.default
    parts = [t for t in _flat(info.type) if not isinstance(t, NoneType)]
    dtype, ddl = _column_type(parts)
    first = parts[0]
    bounded = first if isinstance(first, IntType | FloatType) and len(parts) == 1 else None
    values = tuple(str(v) for v in first.values) if isinstance(first, LiteralType) else ()
    return Field(
        name=name,
        required=info.required,
        default=default,
        dtype=dtype,
        ddl=ddl,
        ge=bounded.ge if bounded else None,
        le=bounded.le if bounded else None,
        values=values,
    )


def _flat(kind: Type) -> Sequence[Type]:
    return kind.types if isinstance(kind, UnionType) else (kind,)


def _column_type(parts: Sequence[Type]) -> tuple[pl.DataType, str]:
    if len(parts) == 3:  # Time, the only union
        return INSTANT, "TIMESTAMPTZ"
    match parts[0]:
        case StrType() | LiteralType():
            return pl.String(), "VARCHAR"
        case BoolType():
            return pl.Boolean(), "BOOLEAN"
        case IntType():
            return pl.Int64(), "BIGINT"
        case FloatType():
            return pl.Float64(), "DOUBLE"
        case DictType():
            return CLOCK, "MAP(VARCHAR, BIGINT)"
        case CustomType() | _:
            raise TypeError(f"no column type for {parts[0]}")


SCHEMA: dict[str, dict[str, pl.DataType]] = {s: {f.name: f.dtype for f in fields(s)} for s in STREAMS}
PLACED = {
    "told": pl.Boolean(),  # False: event time stood in for an arrival nobody recorded; null: only an order is known
    "stepped_us": pl.Int64(),  # how far the append time lay behind the largest so far in its partition
    "fate": pl.String(),
}
LANDED: dict[str, dict[str, pl.DataType]] = {s: {**SCHEMA[s], **COORDINATES, **PLACED} for s in STREAMS}


def ddl(stream: str) -> str:
    """CREATE TABLE of a stream as its rows land: the events' columns, their coordinates and their fate."""
    columns = [(f.name, f.ddl + (" NOT NULL" if f.required else "")) for f in fields(stream)]
    kinds: dict[pl.DataType, str] = {pl.String(): "VARCHAR", pl.Int64(): "BIGINT", pl.Boolean(): "BOOLEAN"}
    columns += [(n, kinds[t] + ("" if n == "told" else " NOT NULL")) for n, t in {**COORDINATES, **PLACED}.items()]
    body = ",\n".join(f'    "{n}" {t}' for n, t in columns)
    return f"CREATE TABLE {stream} (\n{body}\n);\n"


# ---- JSON -----------------------------------------------------------------------------------------------------------

REJECTS = {"offset": pl.Int64, "sub": pl.Int64, "reason": pl.String, "field": pl.String, "raw": pl.String}
RAW_KEPT = 200  # characters of a bad record that its reject keeps
LIST_MAX = 2**11  # events in one record: more have no coordinates
TOO_MANY = f"more than {LIST_MAX:,} events in one record"
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True)
class Decoded:
    """events: typed columns with offset and sub; rejects: see REJECTS; tombstones: records without a value."""

    events: pl.DataFrame
    rejects: pl.DataFrame
    tombstones: int = 0


def decode_json(stream: str, records: Sequence[bytes], first_offset: int = 0) -> Decoded:
    """One record is one event, a list of events, or null. A bad event becomes a reject and stops nothing.

    tombstones: records that hold no event at all, nor anything that is wrong.
    """
    events, place, bad, tombstones = _one_each(stream, records, first_offset) or _each(stream, records, first_offset)
    good, rejects = conform(stream, _columns(stream, events).with_columns(place))
    return Decoded(good, pl.concat([pl.DataFrame(bad, schema=REJECTS, orient="row"), rejects]), tombstones)


_Bad = tuple[int, int, str, str, str]
_Read = tuple[list[Any], pl.DataFrame, list[_Bad], int]  # events, their offset and sub, what is bad, tombstones


def _one_each(stream: str, records: Sequence[bytes], first_offset: int) -> _Read | None:
    """Where every record is one event, as nearly everywhere: quicker than to look at what each of them is."""
    try:
        events = _NARROW[stream].decode(records)
    except UNREADABLE:
        return None
    offset = pl.int_range(first_offset, first_offset + len(events), dtype=pl.Int64, eager=True)
    return events, pl.DataFrame({"offset": offset}).with_columns(sub=pl.lit(0, pl.Int64)), [], 0


def _each(stream: str, records: Sequence[bytes], first_offset: int) -> _Read:
    decoder: msgspec.json.Decoder[Any] = _DECODERS[stream]
    events: list[Any] = []
    offsets: list[int] = []
    subs: list[int] = []
    bad: list[_Bad] = []
    tombstones = 0
    for offset, record in enumerate(records, first_offset):
        wrong: Sequence[Any] = ()
        try:
            event = decoder.decode(record)
            where: Sequence[int] = range(len(event)) if isinstance(event, list) else ()
        except UNREADABLE as error:
            event, where, wrong = _sift(stream, record, error)
            bad += [(offset, *w) for w in wrong]
        if not event and not wrong:
            tombstones += 1
        elif isinstance(event, list):
            events += event[:LIST_MAX]
            subs += where[:LIST_MAX]
            offsets += [offset] * len(where[:LIST_MAX])
            bad += [(offset, sub, TOO_MANY, "", "") for sub in where[LIST_MAX:]]
        else:
            events.append(event)
            offsets.append(offset)
            subs.append(0)
    place = pl.DataFrame({"offset": offsets, "sub": subs}, schema={"offset": pl.Int64, "sub": pl.Int64})
    return events, place, bad, tombstones


def _sift(stream: str, record: bytes, error: Exception) -> tuple[list[Any], list[int], list[tuple[int, str, str, str]]]:
    """A record that is bad as a whole: of a list the good events, their places in it, and what is wrong with the rest.

    One bad event in a shipper's batch must not cost the others.
    """
    try:
        members = _MEMBERS.decode(record)
    except UNREADABLE:
        try:
            return [_whole(stream, record, error)], [0], []
        except UNREADABLE as mistake:
            return [], [], [(0, *reason_of(mistake), excerpt(record))]
    good: list[Any] = []
    where: list[int] = []
    wrong: list[tuple[int, str, str, str]] = []
    wrong += [(sub, TOO_MANY, "", "") for sub in range(LIST_MAX, len(members))]
    for sub, member in enumerate(members[:LIST_MAX]):
        try:
            good.append(_member(stream, bytes(member)))
            where.append(sub)
        except UNREADABLE as mistake:
            wrong.append((sub, *reason_of(mistake), excerpt(bytes(member))))
    return good, where, wrong


def _member(stream: str, member: bytes) -> Any:
    try:
        return _ONE[stream].decode(member)
    except UNREADABLE as error:
        return _whole(stream, member, error)


def _whole(stream: str, record: bytes, error: Exception) -> Any:
    """An event whose whole numbers are written 1.0, as tools that have only doubles do; for anything else the error."""
    if "got `float`" not in str(error):
        raise error
    return msgspec.convert(_integers(msgspec.json.decode(record)), STREAMS[stream])


def _integers(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _integers(v) for k, v in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _utf8(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def excerpt(record: bytes) -> str:
    return record[:RAW_KEPT].decode("utf-8", "replace")


_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    s: msgspec.json.Decoder(t | list[t] | None)  # type: ignore[valid-type]
    for s, t in STREAMS.items()
}
_NARROW = {s: Narrow(t) for s, t in STREAMS.items()}
_ONE: dict[str, msgspec.json.Decoder[Any]] = {s: msgspec.json.Decoder(t) for s, t in STREAMS.items()}
_MEMBERS = msgspec.json.Decoder(list[msgspec.Raw])


def encode_json(stream: str, frame: pl.DataFrame) -> list[bytes]:
    """The inverse of decode_json for typed rows: one record an event, fields at their default left out."""
    shape = SCHEMA[stream]
    texts = [
        pl.col(n).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ") if t == INSTANT else pl.col(n)
        for n, t in shape.items()
        if n in frame.columns
    ]
    defaults = {f.name: f.default for f in fields(stream)}
    encoder = msgspec.json.Encoder()
    rows = frame.select(texts).iter_rows(named=True)
    return [encoder.encode(_plain({n: v for n, v in row.items() if v != defaults[n]})) for row in rows]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    if (clock := row.get("vector_clock")) is not None:
        row["vector_clock"] = {c["key"]: c["value"] for c in clock}
    return row


def reason_of(error: Exception) -> tuple[str, str]:
    """msgspec says `Expected …, got … - at `$.a.b``: the words for people, and the path of the field."""
    if isinstance(error, RecursionError):
        return "nested too deeply", ""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason}", ""
    text, _, where = str(error).partition(" - at `")
    text = text[:1].lower() + text[1:]
    if not isinstance(error, msgspec.ValidationError):
        return "not JSON: " + text.removeprefix("jSON is malformed: "), ""
    if text.startswith("object missing required field"):
        return "missing", text.split("`")[1]
    return text, where.rstrip("`").removeprefix("$").removeprefix(".")


def _columns(stream: str, events: list[Any]) -> pl.DataFrame:
    """Structs to columns of what they have; times stay text here, so that every format takes the same path to µs."""
    columns, have = {}, {*(type(events[0]) if events else STREAMS[stream]).__struct_fields__}
    for name, dtype in SCHEMA[stream].items():
        if name not in have:
            continue
        values = list(map(attrgetter(name), events))
        if dtype == INSTANT:
            columns[name] = pl.Series(name, [_text(v) for v in values], dtype=pl.String)
        elif dtype == CLOCK:
            pairs = [None if v is None else [{"key": k, "value": n} for k, n in v.items()] for v in values]
            columns[name] = pl.Series(name, pairs, dtype=CLOCK)
        else:
            columns[name] = pl.Series(name, values, dtype=dtype)
    return pl.DataFrame(columns)


def _text(value: Time | None) -> str | None:
    """A number as its decimal digits: repr() of a double is the shortest text that means it, so µs survive."""
    if value is None or isinstance(value, str):
        return value
    return format(Decimal(repr(value)), "f") if isinstance(value, float) else str(value)


# ---- any columns ----------------------------------------------------------------------------------------------------


def conform(stream: str, frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Loosely typed columns (with offset and sub) to the stream's types: (events, rejects).

    A row is rejected for its first bad field: a required value missing, a value of the wrong type or out of range, a
    time without zone. Columns outside the schema are dropped.
    """
    plan = _plan(stream, tuple(frame.schema.items()))
    known = frame.lazy().with_columns(plan.read)
    wrong = pl.any_horizontal(pl.lit(False), *(w for _, w, _ in plan.faults)).fill_null(False)
    typed = known.select("offset", "sub", *plan.values, wrong.alias(BAD)).collect()
    bad = typed.drop_in_place(BAD)
    if not bad.any():
        return typed, pl.DataFrame(schema=REJECTS)
    why = pl.coalesce(
        pl.when(wrong).then(pl.struct(reason=pl.lit(words), field=pl.lit(name), raw=_shown(frame, name)))
        for name, wrong, words in plan.faults
    )
    among = known.collect().filter(bad)
    rejects = among.select("offset", "sub", why.alias("why")).unnest("why").cast(REJECTS)  # type: ignore[arg-type]
    return typed.filter(~bad), rejects


class _Plan(NamedTuple):
    """read: values that have to be made of others. values: the events' columns. faults: field, where, words."""

    read: list[pl.Expr]
    values: list[pl.Expr]
    faults: list[tuple[str, pl.Expr, str]]


@lru_cache
def _plan(stream: str, shape: tuple[tuple[str, pl.DataType], ...]) -> _Plan:
    """For columns of one shape; to make it costs as much as a thousand rows."""
    types, plan = dict(shape), _Plan([], [], [])
    for field in fields(stream):
        raw_type = types.get(field.name, field.dtype)
        raw = pl.col(field.name) if field.name in types else pl.lit(None, dtype=raw_type)
        value = _cast(field, raw, raw_type)
        if (stream, field.name) == ("heartbeats", "timestamp"):
            server_time = pl.col("server_time") if "server_time" in types else pl.lit(None, dtype=pl.String)
            received = instant(server_time, types.get("server_time", pl.String()))
            value = pl.when(raw.is_null()).then(received).otherwise(value)
        if value is not raw:  # it is asked for twice
            plan.read.append(value.alias(READ + field.name))
            value = pl.col(READ + field.name)
        plan.values.append(_filled(field, value).alias(field.name))
        if field.required or field.name in types:
            plan.faults.extend((field.name, *fault) for fault in _faults(field, raw, raw_type, value))
    return plan


READ = "as read: "
BAD = "is bad"


def _shown(frame: pl.DataFrame, name: str) -> pl.Expr:
    if name not in frame.columns or not _spelt(frame.schema[name]):
        return pl.lit("")
    return _in_our_years(pl.col(name), frame.schema[name]).cast(pl.String).str.slice(0, RAW_KEPT).fill_null("")


def _spelt(kind: pl.DataType) -> bool:
    """Whether a value of this type has a text: others are no value of any column but a map."""
    return not kind.is_nested() and kind not in (pl.Duration, pl.Time, pl.Object, pl.Binary)


def _in_our_years(raw: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """Null where a temporal value lies outside the years 1 to 9999, which polars could not spell."""
    if kind != pl.Date and not isinstance(kind, pl.Datetime):
        return raw
    unit_us = 86_400_000_000 if not isinstance(kind, pl.Datetime) else 1000 if kind.time_unit == "ms" else 1
    if isinstance(kind, pl.Datetime) and kind.time_unit == "ns":
        return raw  # all of them lie inside
    return pl.when(raw.to_physical().is_between(EARLIEST_US // unit_us, LATEST_US // unit_us)).then(raw)


def _cast(field: Field, raw: pl.Expr, raw_type: pl.DataType) -> pl.Expr:
    """The value in the column's type; null where it has none."""
    if field.dtype == CLOCK:
        return _clock(raw, raw_type)
    if raw_type == pl.Binary:  # text, from writers that do not say so
        raw, raw_type = raw.map_elements(_utf8, return_dtype=pl.String), pl.String()
    if raw_type in (pl.Categorical, pl.Enum):
        raw, raw_type = raw.cast(pl.String), pl.String()
    if field.dtype == INSTANT:
        return instant(raw, raw_type)
    if raw_type == field.dtype:
        return raw
    if not _spelt(raw_type) or (field.dtype != pl.String and (raw_type.is_temporal() or raw_type == pl.Boolean)):
        return pl.lit(None, dtype=field.dtype)
    if field.dtype == pl.Int64 and (raw_type.is_float() or raw_type.is_decimal()):
        number = raw.cast(pl.Float64)
        return pl.when(number == number.floor()).then(number).cast(pl.Int64, strict=False)
    if field.dtype == pl.Boolean:
        return raw.cast(pl.String).replace_strict(TRUTH, default=None, return_dtype=pl.Boolean)
    return _in_our_years(raw, raw_type).cast(field.dtype, strict=False)


TRUTH = {"true": True, "false": False, "1": True, "0": False}


def _clock(raw: pl.Expr, raw_type: pl.DataType) -> pl.Expr:
    """A map, or a struct with a field per node, to pairs sorted by node; null where a node has no count or two."""
    if (
        isinstance(raw_type, pl.Struct)
        and raw_type.fields
        and all(f.dtype.is_integer() or f.dtype == pl.Null for f in raw_type.fields)
    ):
        pairs = [
            pl.struct(key=pl.lit(f.name), value=raw.struct.field(f.name).cast(pl.Int64, strict=False))
            for f in raw_type.fields
        ]
        known = pl.concat_list(pairs).list.eval(pl.element().filter(pl.element().struct.field("value").is_not_null()))
        clock: pl.Expr = pl.when(raw.is_not_null()).then(known)
    elif _is_map(raw_type):
        clock = raw.cast(CLOCK, strict=False)
    else:
        return pl.lit(None, dtype=CLOCK)
    node, count = pl.element().struct.field("key"), pl.element().struct.field("value")
    sane = (node.is_not_null() & (count >= 0).fill_null(False)).all() & (node.n_unique() == node.len())
    ordered = clock.list.eval(pl.element().sort_by(node))
    return pl.when(clock.list.eval(sane).list.first()).then(ordered)


def _is_map(kind: pl.DataType) -> bool:
    if not isinstance(kind, pl.List) or not isinstance(kind.inner, pl.Struct):
        return False
    types = {f.name: f.dtype for f in kind.inner.fields}
    return types.keys() == {"key", "value"} and types["key"] == pl.String and types["value"].is_integer()


def _filled(field: Field, value: pl.Expr) -> pl.Expr:
    return value if field.default is None else value.fill_null(pl.lit(field.default, dtype=field.dtype))


def _faults(field: Field, raw: pl.Expr, raw_type: pl.DataType, value: pl.Expr) -> list[tuple[pl.Expr, str]]:
    """What can be wrong with a value of this field, as (condition, words); nothing that its type already rules out."""
    faults = []
    if raw_type != field.dtype or field.dtype in (INSTANT, CLOCK):  # not every value of these types is one of ours
        faults.append((raw.is_not_null() & value.is_null(), _expected(field)))
    if field.required:
        faults.append((raw.is_null(), "missing"))
    if field.values:
        faults.append((~value.is_in(field.values), "expected one of " + ", ".join(field.values)))
    if field.dtype == pl.Float64:
        faults.append((~value.is_finite(), "not a finite number"))
    if field.ge is not None and field.le is not None:
        words = f"expected a number from {field.ge:g} to {field.le:g}"
        faults.append(((value < field.ge) | (value > field.le), words))
    return faults


def _expected(field: Field) -> str:
    if field.dtype == INSTANT:
        return "not a time with a zone (RFC 3339, or epoch s, ms, µs, ns)"
    kinds: dict[pl.DataType, str] = {pl.Int64(): "integer", pl.Float64(): "number", pl.Boolean(): "boolean"}
    return f"expected {kinds.get(field.dtype, 'text' if field.dtype == pl.String else 'map of node to count')}"


def instant(raw: pl.Expr, raw_type: pl.DataType) -> pl.Expr:
    """Any spelling of a time to µs since 1970, floored; null where it is not a time, has no zone or no year of ours."""
    if isinstance(raw_type, pl.Datetime):
        if raw_type.time_zone is None:
            return pl.lit(None, dtype=INSTANT)
        return _in_our_years(raw, raw_type).dt.convert_time_zone("UTC").dt.cast_time_unit("us")
    if not _spelt(raw_type) or raw_type == pl.Date:
        return pl.lit(None, dtype=INSTANT)
    text = raw.map_elements(_text, return_dtype=pl.String) if raw_type.is_float() else raw.cast(pl.String)
    return text.map_batches(_spelled, return_dtype=INSTANT, is_elementwise=True)


def _spelled(text: pl.Series) -> pl.Series:
    """Digits are looked for only where a text is no RFC 3339: to read all texts as both costs three times as much."""
    if text.null_count() == len(text):
        return pl.Series(text.name, [], INSTANT).extend_constant(None, len(text))
    value = text.str.to_datetime("%+", time_unit="us", strict=False)
    if value.null_count() > text.null_count():
        both = pl.DataFrame({"text": text, "value": value})
        value = both.select(pl.coalesce("value", _epoch(pl.col("text")))).to_series()
    years = value.to_physical().is_between(EARLIEST_US, LATEST_US)
    return value if years.all() else value.zip_with(years.fill_null(False), pl.Series([None], dtype=INSTANT))


def _epoch(text: pl.Expr) -> pl.Expr:
    """Decimal digits to µs: |x| < 1e11 is seconds, < 1e14 ms, < 1e17 µs, else ns."""
    whole, billionths = decimal(text)
    divisor = (
        pl.when(whole < 10**11)
        .then(pl.lit(10**3, dtype=pl.Int128))
        .when(whole < 10**14)
        .then(pl.lit(10**6, dtype=pl.Int128))
        .when(whole < 10**17)
        .then(pl.lit(10**9, dtype=pl.Int128))
        .otherwise(pl.lit(10**12, dtype=pl.Int128))
    )
    return (billionths // divisor).cast(pl.Int64, strict=False).cast(INSTANT)


def decimal(text: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """Decimal digits as (what stands before the point, all of it in 1e-9): exact, in 128-bit integers; else null."""
    part = text.str.extract_groups(r"^(?<sign>-?)(?<whole>\d{1,20})(?:\.(?<rest>\d*))?$").struct
    whole = part.field("whole").cast(pl.Int128, strict=False)
    rest = part.field("rest").fill_null("").str.slice(0, 9).str.pad_end(9, "0").cast(pl.Int128, strict=False)
    sign = pl.when(part.field("sign") == "-").then(-1).otherwise(1).cast(pl.Int128)
    return whole, (whole * pl.lit(10**9, dtype=pl.Int128) + rest) * sign
