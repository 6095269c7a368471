"""Bytes or loosely typed columns enter, typed event frames and rejects leave: the one definition of the four streams.

Everything else derives from the structs below: the JSON decoder, the checks that columns of any other format get, the
polars and Arrow schemas and the DuckDB DDL. A column keeps the name under which operators query it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

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

MAX_INT = 2**63 - 1
MAX_MS = 1e12  # 31 years: beyond it a duration is garbage and would overflow arithmetic in µs

Time = int | float | str  # RFC 3339 with a zone, or an epoch whose magnitude tells its unit
Count = Annotated[int, Meta(ge=0, le=MAX_INT)]
Number = Annotated[int, Meta(ge=-MAX_INT, le=MAX_INT)]
Millis = Annotated[float, Meta(ge=0, le=MAX_MS)]


class Event(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What every event may carry. environment and tenant prefix every key; weight > 1 stands for sampled-away rows."""

    environment: str = ""
    tenant: str = ""
    region: str | None = None
    weight: Annotated[int, Meta(ge=1, le=MAX_INT)] = 1
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
    observer: str = "collector"
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
    "told": pl.Boolean(),  # False where event time stood in for an arrival that nobody recorded
    "stepped_us": pl.Int64(),  # how far the append time lay behind the largest so far in its partition
    "fate": pl.String(),
}
LANDED: dict[str, dict[str, pl.DataType]] = {s: {**SCHEMA[s], **COORDINATES, **PLACED} for s in STREAMS}


def ddl(stream: str) -> str:
    """CREATE TABLE of a stream as its rows land: the events' columns, their coordinates and their fate."""
    columns = [(f.name, f.ddl + (" NOT NULL" if f.required else "")) for f in fields(stream)]
    kinds: dict[pl.DataType, str] = {pl.String(): "VARCHAR", pl.Int64(): "BIGINT", pl.Boolean(): "BOOLEAN"}
    columns += [(n, kinds[t] + " NOT NULL") for n, t in {**COORDINATES, **PLACED}.items()]
    body = ",\n".join(f'    "{n}" {t}' for n, t in columns)
    return f"CREATE TABLE {stream} (\n{body}\n);\n"


# ---- JSON -----------------------------------------------------------------------------------------------------------

REJECTS = {"offset": pl.Int64, "sub": pl.Int64, "reason": pl.String, "field": pl.String, "raw": pl.String}
RAW_KEPT = 200  # characters of a bad record that its reject keeps


@dataclass(frozen=True)
class Decoded:
    """events: typed columns with offset and sub; rejects: see REJECTS; tombstones: records without a value."""

    events: pl.DataFrame
    rejects: pl.DataFrame
    tombstones: int = 0


def decode_json(stream: str, records: Iterable[bytes], first_offset: int = 0) -> Decoded:
    """One record is one event, a list of events, or null. A bad record becomes a reject and stops nothing."""
    decoder: msgspec.json.Decoder[Any] = _DECODERS[stream]
    events: list[Any] = []
    offsets: list[int] = []
    subs: list[int] = []
    bad: list[tuple[int, int, str, str, str]] = []
    tombstones = 0
    for offset, record in enumerate(records, first_offset):
        try:
            event = decoder.decode(record)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            reason, where = _reason(error)
            bad.append((offset, 0, reason, where, record[:RAW_KEPT].decode("utf-8", "replace")))
            continue
        if event is None:
            tombstones += 1
        elif isinstance(event, list):
            events += event
            offsets += [offset] * len(event)
            subs += range(len(event))
        else:
            events.append(event)
            offsets.append(offset)
            subs.append(0)
    frame = _columns(stream, events).with_columns(
        offset=pl.Series(offsets, dtype=pl.Int64), sub=pl.Series(subs, dtype=pl.Int64)
    )
    good, rejects = conform(stream, frame)
    return Decoded(good, pl.concat([pl.DataFrame(bad, schema=REJECTS, orient="row"), rejects]), tombstones)


_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    s: msgspec.json.Decoder(t | list[t] | None)  # type: ignore[valid-type]
    for s, t in STREAMS.items()
}


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
    if clock := row.get("vector_clock"):
        row["vector_clock"] = {c["key"]: c["value"] for c in clock}
    return row


def _reason(error: Exception) -> tuple[str, str]:
    """msgspec says `Expected …, got … - at `$.a.b``: the words for people, and the path of the field."""
    text, _, where = str(error).partition(" - at `")
    if not isinstance(error, msgspec.ValidationError):
        return f"not JSON: {text}", ""
    if text.startswith("Object missing required field"):
        return "missing", text.split("`")[1]
    return text[:1].lower() + text[1:], where.rstrip("`").removeprefix("$").removeprefix("[...]").removeprefix(".")


def _columns(stream: str, events: list[Any]) -> pl.DataFrame:
    """Structs to columns; times stay text here, so that every format takes the same path to µs."""
    columns = {}
    for name, dtype in SCHEMA[stream].items():
        values = [getattr(e, name) for e in events]
        if dtype == INSTANT:
            columns[name] = pl.Series(name, [_text(v) for v in values], dtype=pl.String)
        elif dtype == CLOCK:
            pairs = [None if v is None else [{"key": k, "value": v[k]} for k in sorted(v)] for v in values]
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
    values, faults = [], []
    for field in fields(stream):
        raw = pl.col(field.name) if field.name in frame.columns else pl.lit(None, dtype=pl.String)
        raw_type = frame.schema.get(field.name, pl.String())
        value = _cast(field, raw, raw_type)
        if (stream, field.name) == ("heartbeats", "timestamp"):
            server_time = pl.col("server_time") if "server_time" in frame.columns else pl.lit(None, dtype=pl.String)
            received = instant(server_time, frame.schema.get("server_time", pl.String()))
            value = pl.when(raw.is_null()).then(received).otherwise(value)
        values.append(value.alias(field.name))
        if field.required or field.name in frame.columns:
            faults += [(field.name, wrong, words) for wrong, words in _faults(field, raw, raw_type, value)]
    typed = frame.select(
        "offset", "sub", *values, pl.any_horizontal(pl.lit(False), *(w for _, w, _ in faults)).alias(BAD)
    )
    bad = typed[BAD].fill_null(False)
    if not bad.any():
        return typed.drop(BAD), pl.DataFrame(schema=REJECTS)
    why = pl.coalesce(
        pl.when(wrong).then(pl.struct(reason=pl.lit(words), field=pl.lit(name), raw=_shown(frame, name)))
        for name, wrong, words in faults
    )
    rejects = frame.filter(bad).select("offset", "sub", why.alias("why")).unnest("why").cast(REJECTS)  # type: ignore[arg-type]
    return typed.filter(~bad).drop(BAD), rejects


BAD = "is bad"


def _shown(frame: pl.DataFrame, name: str) -> pl.Expr:
    if name not in frame.columns or frame.schema[name].is_nested():
        return pl.lit("")
    return pl.col(name).cast(pl.String).str.slice(0, RAW_KEPT).fill_null("")


def _cast(field: Field, raw: pl.Expr, raw_type: pl.DataType) -> pl.Expr:
    if field.dtype == INSTANT:
        value = instant(raw, raw_type)
    elif field.dtype == CLOCK:
        value = raw if raw_type == CLOCK else pl.lit(None, dtype=CLOCK)
    elif raw_type == field.dtype:
        value = raw
    elif field.dtype == pl.Int64 and raw_type.is_float():
        value = pl.when(raw == raw.floor()).then(raw).cast(pl.Int64, strict=False)
    elif field.dtype == pl.Boolean and raw_type == pl.String:
        value = raw.replace_strict({"true": True, "false": False}, default=None, return_dtype=pl.Boolean)
    else:
        value = raw.cast(field.dtype, strict=False)
    return value.fill_null(pl.lit(field.default, dtype=field.dtype)) if field.default is not None else value


def _faults(field: Field, raw: pl.Expr, raw_type: pl.DataType, value: pl.Expr) -> list[tuple[pl.Expr, str]]:
    """What can be wrong with a value of this field, as (condition, words); nothing that its type already rules out."""
    faults = []
    if raw_type != field.dtype:
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
    """Any spelling of a time to µs since 1970, floored; null where it is not a time or has no zone."""
    if isinstance(raw_type, pl.Datetime):
        if raw_type.time_zone is None:
            return pl.lit(None, dtype=INSTANT)
        return raw.dt.convert_time_zone("UTC").dt.cast_time_unit("us")
    text = raw.map_elements(_text, return_dtype=pl.String) if raw_type.is_float() else raw.cast(pl.String)
    return pl.coalesce(text.str.to_datetime("%+", time_unit="us", strict=False), _epoch(text))


def _epoch(text: pl.Expr) -> pl.Expr:
    """Decimal digits to µs: |x| < 1e11 is seconds, < 1e14 ms, < 1e17 µs, else ns. Exact: 128-bit integers of 1e-9."""
    part = text.str.extract_groups(r"^(?<sign>-?)(?<whole>\d{1,20})(?:\.(?<rest>\d*))?$").struct
    whole = part.field("whole").cast(pl.Int128, strict=False)
    rest = part.field("rest").fill_null("").str.slice(0, 9).str.pad_end(9, "0").cast(pl.Int128, strict=False)
    nano = pl.lit(10**9, dtype=pl.Int128)
    value = (whole * nano + rest) * pl.when(part.field("sign") == "-").then(-1).otherwise(1).cast(pl.Int128)
    divisor = (
        pl.when(whole < 10**11)
        .then(pl.lit(10**3, dtype=pl.Int128))
        .when(whole < 10**14)
        .then(pl.lit(10**6, dtype=pl.Int128))
        .when(whole < 10**17)
        .then(pl.lit(10**9, dtype=pl.Int128))
        .otherwise(pl.lit(10**12, dtype=pl.Int128))
    )
    return (value // divisor).cast(pl.Int64, strict=False).cast(INSTANT)
