"""Broken records of every format: no crash, no hang, each accounted once, and those beside it are read as ever.

    python -m tests.fuzz --inputs 1e6 --seed 1

A record that breaks a rule is kept in tests/streams/sources/fuzzed/, and from then on a case of the suite.
"""

from __future__ import annotations

import argparse
import faulthandler
import gzip
import hashlib
import io
import json
import random
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import polars as pl
from fastavro import schemaless_writer
from pyarrow.parquet import write_table

from detectors.events import Decoded, encode_json
from streams.problems import Problem
from streams.sources.decode import Reading, chunks, from_fields, messages, recognise
from streams.sources.fieldmap import FieldMap, load, parse, shipped
from streams.sources.files import Recording, look
from streams.sources.formats import Cells, of_messages
from streams.sources.shapes import TIMED
from tests.cases import cases
from tests.records import ENVOY, NGINX, TRAIL

KEPT = Path(__file__).parent / "streams" / "sources" / "fuzzed"
MAPS = Path(__file__).parent / "maps"
BATCH = 500  # records, every second one of them whole
HANGS_S = 60
FILES = 20  # inputs to one broken file
EVERYTHING = (Exception, pl.exceptions.PanicException)  # polars panics, and that is no Exception

Decode = Callable[[Sequence[bytes | None]], Decoded]


@dataclass(frozen=True)
class Target:
    """One decoder and whole records of it."""

    name: str
    decode: Decode
    samples: list[bytes]


# ---- what is broken -------------------------------------------------------------------------------------------------


def targets() -> list[Target]:
    found = [Target(name, _by(Reading(name)), own) for name, own in _own().items()]
    found += [Target(m.name, _by(Reading(m.stream, m)), SAMPLES[m.name]) for m in shipped()]
    threads, spans = (load(MAPS / f"{name}.toml") for name in ("threads", "spans"))
    found.append(Target("text", _by(Reading(threads.stream, threads)), THREADS))
    pairs = parse(PAIRS_MAP, "pairs")
    found.append(Target("pairs", _by(Reading(pairs.stream, pairs)), PAIRS))
    return [*found, Target("csv", _by_cells(spans), SPANS), Target("avro", _by(_avro()), ORDERS)]


def _avro() -> Reading:
    """Messages in Confluent's frame, by a map with a schema beside it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "order.avsc").write_text(json.dumps(ORDER))
        (Path(folder) / "orders.toml").write_text(ORDER_MAP)
        given = load(Path(folder) / "orders.toml")
    return Reading(given.stream, given)


def _by(reading: Reading) -> Decode:
    return lambda values: messages(reading, values)


def _by_cells(given: FieldMap) -> Decode:
    cells = Cells.of(HEADER)
    assert cells
    return lambda values: from_fields(given, of_messages(cells.unfold, values))


def _own() -> dict[str, list[bytes]]:
    """Some events of each stream, as cases of detectors have them, and some in a list."""
    found: dict[str, list[bytes]] = {}
    for _, _, case in cases("fires_"):
        for stream, parts in case.streams.items():
            frame = parts[0].head(4).drop("offset", strict=False)
            found.setdefault(stream, []).extend(encode_json(stream, frame))
    signal = {"timestamp": "2026-01-26T12:00:00Z", "subject": "pay", "kind": "gauge", "name": "size", "value": 5.5}
    found.setdefault("signals", []).append(json.dumps(signal).encode())
    return {stream: [*some, b"[" + b",".join(some[:3]) + b"]", b"[]", b"null"] for stream, some in found.items()}


def _lines(*values: object) -> list[bytes]:
    return [json.dumps(v).encode() for v in values]


def span(kind: object, name: str, own: str, parent: str) -> dict[str, object]:
    keys = {"service.name": name, "k8s.pod.name": f"{name}-1"}
    values = [{"key": k, "value": {"stringValue": v}} for k, v in keys.items()]
    status = [{"key": "http.response.status_code", "value": {"intValue": "503"}}]
    times = {"startTimeUnixNano": "1769428800000000000", "endTimeUnixNano": "1769428800025000000"}
    one = {"traceId": "t", "spanId": own, "parentSpanId": parent, "kind": kind, "attributes": status, **times}
    return {"resource": {"attributes": values}, "scopeSpans": [{"spans": [one]}]}


CHANGE = {
    "before": None,
    "after": {"id": 1001, "total": 5},
    "source": {"connector": "postgresql", "name": "shop", "ts_ms": 1_769_428_800_000, "db": "shop", "table": "orders"},
    "op": "c",
    "ts_ms": 1_769_428_800_250,
}
NESTED = {**TRAIL, "requestParameters": {"clientToken": "c", "bucket": {"name": "b"}}, "userIdentity": {"arn": "a"}}
SAMPLES: dict[str, list[bytes]] = {
    "chrony_statistics": [
        b"=" * 120,
        b"2026-01-26 12:00:00 192.0.2.7        6.261e-03 -3.247e-03  2.220e-03  1.874e-06  1.080e-06 7.8e-02",
        b"   Date (UTC) Time     IP Address    Std dev'n Est offset  Offset sd  Diff freq   Est skew  Stress",
    ],
    "chrony_tracking": [
        b"=" * 120,
        b"2026-01-26 12:00:00 192.0.2.7        2     -3.541      0.075 -8.621e-06 N  2  2.940e-03 -2.084e-04",
        b"2026-01-26 12:00:16 0.0.0.0          0     -3.541      0.075  0.000e+00 ?  0  2.940e-03 -2.084e-04",
    ],
    "debezium": _lines(CHANGE, {"schema": {"type": "struct"}, "payload": CHANGE}, {**CHANGE, "op": "t"}),
    "cloudtrail": _lines(NESTED, {"Records": [TRAIL, NESTED]}, {"Records": []}),
    "envoy": _lines(ENVOY, {**ENVOY, "duration": "12", "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}),
    "nginx": _lines(NGINX, {**NGINX, "msec": "1769428801.250", "time_local": "26/Jan/2026:12:00:01 +0000"}),
    "otlp": _lines(
        {"resourceSpans": [span(3, "web", "a", ""), span("SPAN_KIND_SERVER", "pay", "b", "a")]},
        span(2, "pay", "b", "a"),
        {"resourceSpans": []},
    ),
}
THREADS = [
    b'1000000000000 Write 5 to x (ptr=0x1)\nt1 {"t1":3, "t2":1}',
    b'1000000000500 Read 5 from x (ptr=0x1)\nt2 {"t2":2}',
]
PAIRS_MAP = f"""stream = "requests"
format = "text"
line = '{TIMED}'
[fields]
timestamp = {{ from = "time", zone = "UTC" }}
service_name = "pairs.service"
node_id = "thread"
status = {{ from = "pairs.http.status", values = "http" }}
"""
PAIRS = [
    b'2026-01-26 12:00:00.250 INFO [pay-1] service=pay http.status=503, msg="said \\"no\\"" took=5ms',
    b"[2026-01-26T12:00:00Z] [pay-2] - service=pay http.status=200",
]
ORDER = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "at", "type": "long"},
        {"name": "service", "type": "string"},
        {"name": "tries", "type": ["null", "int"]},
        {"name": "tags", "type": {"type": "map", "values": {"type": "array", "items": "string"}}},
    ],
}
ORDER_MAP = """stream = "requests"
format = { kind = "avro", schema = "order.avsc" }
[fields]
timestamp = { from = "at", unit = "ms" }
service_name = "service"
node_id = { value = "n" }
retry_count = "tries"
"""


def _framed(**event: object) -> bytes:
    body = io.BytesIO()
    schemaless_writer(body, ORDER, event)
    return struct.pack(">bI", 0, 7) + body.getvalue()


ORDERS = [
    _framed(at=1_769_428_800_000, service="pay", tries=2, tags={"a": ["x", "y"], "b": []}),
    _framed(at=1_769_428_800_000, service="", tries=None, tags={}),
]
HEADER = b"TraceID,SpanID,ParentID,PodName,OperationName,StartTimeUnixNano,EndTimeUnixNano,Duration"
SPANS = [
    b"t,a,root,web-7f-x1,GET /,1769428800000000000,1769428800025000000,25000",
    b't,b,a,"pay-7f-x2","say ""hi""",1769428800000000000,1769428800005000000,5000',
]

# ---- how it is broken -----------------------------------------------------------------------------------------------

TOKENS = [
    *(b"null", b"true", b"NaN", b"Infinity", b"-1", b"0", b"1e999", b"-0.0", b"9223372036854775808", b"1" * 400, b'""'),
    *(b'"2099-01-01T00:00:00Z"', b'"0000-00-00"', b'"\\ud800"', b'"\\u0000"', b"[]", b"{}", b"[[[[[[[[", b'{"a":'),
    *(b"[" * 3_000, b'{"a":' * 3_000, b"\xff", b"\xed\xa0\x80", b"\0", b"\n", b"\r\n", b'"', b",", b"\\", b"{", b"}"),
    *(
        b'"9999-12-31T23:59:59.999999999+23:59"',
        b"18446744073709551615",
        b"0.1e-400",
        b"\xef\xbb\xbf",
        b'"x' + b"y" * 70_000,
    ),
]


def broken(record: bytes, other: bytes, dice: random.Random) -> bytes:
    """One to three of: a bit, a byte, a piece gone, doubled or moved, a token in its place, the rest of another one."""
    for _ in range(dice.choice((1, 1, 2, 3))):
        record = dice.choice(WAYS)(record, other, dice)
    return record


def _place(record: bytes, dice: random.Random, longest: int = 40) -> tuple[int, int]:
    lo = dice.randrange(len(record) + 1)
    return lo, min(len(record), lo + dice.randrange(longest))


def _flip(record: bytes, _: bytes, dice: random.Random) -> bytes:
    if not record:
        return b"\x80"
    at = dice.randrange(len(record))
    return record[:at] + bytes([record[at] ^ 1 << dice.randrange(8)]) + record[at + 1 :]


def _gone(record: bytes, _: bytes, dice: random.Random) -> bytes:
    lo, hi = _place(record, dice)
    return record[:lo] + record[hi:]


def _doubled(record: bytes, _: bytes, dice: random.Random) -> bytes:
    lo, hi = _place(record, dice)
    return record[:hi] + record[lo:hi] * dice.choice((1, 2, 50)) + record[hi:]


def _token(record: bytes, _: bytes, dice: random.Random) -> bytes:
    lo, hi = _place(record, dice, dice.choice((1, 12)))
    return record[:lo] + dice.choice(TOKENS) + record[hi:]


def _value(record: bytes, _: bytes, dice: random.Random) -> bytes:
    """A token in the place of what stands behind a colon."""
    colons = [i for i, byte in enumerate(record) if byte == 0x3A]
    if not colons:
        return dice.choice(TOKENS)
    at = dice.choice(colons) + 1
    ends = [e for e in (record.find(b",", at), record.find(b"}", at)) if e >= 0]
    return record[:at] + dice.choice(TOKENS) + record[min(ends, default=len(record)) :]


def _cut(record: bytes, _: bytes, dice: random.Random) -> bytes:
    return record[: dice.randrange(len(record) + 1)]


def _spliced(record: bytes, other: bytes, dice: random.Random) -> bytes:
    return record[: dice.randrange(len(record) + 1)] + other[dice.randrange(len(other) + 1) :]


WAYS: list[Callable[[bytes, bytes, random.Random], bytes]] = [_flip, _gone, _doubled, _token, _value, _cut, _spliced]

# ---- what must hold -------------------------------------------------------------------------------------------------


def check(target: Target, records: Sequence[bytes], whole: Sequence[bytes]) -> Counter[str]:
    """Records among whole ones; raises AssertionError, or what the decoder raises."""
    mixed = [r for pair in zip(whole, records, strict=True) for r in pair]
    found, alone = target.decode(mixed), target.decode(whole)
    beside = found.events.filter(pl.col("offset") % 2 == 0).with_columns(pl.col("offset") // 2)
    assert beside.equals(alone.events), "a whole record beside it is read otherwise"
    assert not found.rejects.filter(pl.col("offset") % 2 == 0).height, "a whole record beside it is refused"
    said = pl.concat([found.events.select("offset", "sub"), found.rejects.select("offset", "sub")])
    assert said.is_duplicated().sum() == 0, "counted twice"
    assert said["offset"].n_unique() + found.tombstones == len(mixed), "not accounted"
    assert found.rejects.filter(pl.col("reason").str.len_chars() == 0).is_empty(), "no reason"
    own = found.events.filter(pl.col("offset") % 2 == 1)["offset"].n_unique()
    refused = found.rejects["offset"].n_unique()
    return Counter(inputs=len(records), used=own, refused=refused, events_refused=found.rejects.height)


def first_wrong(target: Target, records: Sequence[bytes], whole: Sequence[bytes]) -> tuple[bytes, str]:
    """The one record that breaks a rule by itself."""
    for record, beside in zip(records, whole, strict=True):
        try:
            check(target, [record], [beside])
        except EVERYTHING as error:
            return record, f"{type(error).__name__}: {error}"
    raise AssertionError("the batch breaks a rule, and no record of it does alone")


def kept() -> list[tuple[str, bytes]]:
    return [(p.name.partition("-")[0], p.read_bytes()) for p in sorted(KEPT.glob("*-*"))]


def keep(target: Target, record: bytes) -> Path:
    path = KEPT / f"{target.name}-{hashlib.sha256(record).hexdigest()[:12]}"
    path.write_bytes(record)
    return path


def run(target: Target, inputs: int, dice: random.Random) -> Counter[str]:
    """Batches of broken records; the first that breaks a rule is kept and raised."""
    total: Counter[str] = Counter()
    while total["inputs"] < inputs:
        n = min(BATCH // 2, inputs - total["inputs"])
        whole = [dice.choice(target.samples) for _ in range(n)]
        records = [broken(dice.choice(target.samples), dice.choice(target.samples), dice) for _ in range(n)]
        faulthandler.dump_traceback_later(HANGS_S, exit=True)
        try:
            total += check(target, records, whole)
        except EVERYTHING:
            record, why = first_wrong(target, records, whole)
            raise AssertionError(f"{target.name}: {why}; kept in {keep(target, record)}") from None
        finally:
            faulthandler.cancel_dump_traceback_later()
    return total


def run_files(inputs: int, dice: random.Random) -> Counter[str]:
    """Whole files that are broken: packed ones and Parquet. All that is read lies before the damage, or is told."""
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, content, rows) in zip(range(inputs), _files(dice), strict=False):
            path = Path(folder) / f"{i}-{name}"
            path.write_bytes(dice.choice((broken, at_an_end))(content, content, dice))
            faulthandler.dump_traceback_later(HANGS_S, exit=True)
            try:
                file = look(path, name)
                recording, reading = Recording(file), recognise(file, dice.choice(([], [COLUMNS])))
                read = sum(n for n, _ in chunks(recording, reading))
                total += Counter(inputs=1, damaged=bool(recording.broken), whole=read == rows)
            except Problem:
                total += Counter(inputs=1, refused=1)
            finally:
                faulthandler.cancel_dump_traceback_later()
            path.unlink()
    return total


def at_an_end(record: bytes, _: bytes, dice: random.Random) -> bytes:
    """Some bytes changed where a file says what is in it: Parquet's first page and footer, a packed file's frame."""
    ends = [*range(4, 80), *range(-400, -4)]
    changed = bytearray(record)
    for at in dice.sample(ends, dice.choice((1, 2, 4))):
        changed[at] = dice.choice((changed[at] ^ 1, 0, 0x7F, 0x80, 0xFF, dice.randrange(256)))
    return bytes(changed)


COLUMNS = parse(
    """stream = "requests"
[fields]
timestamp = "timestamp"
service_name = "service_name"
node_id = "node_id"
duration_ms = ["took", "duration_ms"]
request_id = "who.raw"
payload_hash = { hash = ["days", "who", "counts"] }
region = "counts.a"
""",
    "columns",
)


def _files(dice: random.Random) -> Iterator[tuple[str, bytes, int]]:
    own = [r for r in _own()["requests"] if r.startswith(b"{")]
    text = b"\n".join(own) + b"\n"
    frame = pl.read_ndjson(text, infer_schema_length=None)
    timed = frame.with_columns(pl.col("timestamp").str.to_datetime(time_zone="UTC"))
    nested = timed.with_columns(
        took=pl.lit(timedelta(milliseconds=5)).cast(pl.Duration("ms")),
        days=pl.concat_list(pl.col("timestamp"), pl.col("timestamp").dt.offset_by("1d")),
        who=pl.struct(raw=pl.lit(b"\xff"), on=pl.col("timestamp").dt.date()),
        counts=pl.concat_list(pl.struct(key=pl.lit("a"), value=pl.lit(1))),
    )
    frames = (frame, timed, nested)
    every = [("r.gz", gzip.compress(text)), *(("requests.parquet", c) for f in frames for c in _parquets(f))]
    while True:
        yield *dice.choice(every), len(own)


def _parquets(frame: pl.DataFrame) -> Iterator[bytes]:
    """As polars and pyarrow write it."""
    for packed in ("zstd", "uncompressed"):
        out = io.BytesIO()
        frame.write_parquet(out, compression=packed, row_group_size=3)
        yield out.getvalue()
    for version in ("1.0", "2.0"):
        out = io.BytesIO()
        write_table(frame.to_arrow(), out, data_page_version=version, row_group_size=3)
        yield out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=float, default=1e6)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    every, dice = targets(), random.Random(given.seed)
    print(f"seed {given.seed}\n{'format':<12} {'inputs':>10} {'used':>10} {'refused':>10} {'s':>6}")
    total = 0
    for target in every:
        begun = time.monotonic()
        said = run(target, -(-int(given.inputs) // len(every)), dice)
        total += said["inputs"]
        print(
            f"{target.name:<12} {said['inputs']:>10,} {said['used']:>10,} {said['refused']:>10,} "
            f"{time.monotonic() - begun:>6.0f}",
            flush=True,
        )
    said = run_files(int(given.inputs) // FILES // len(every), dice)
    print(f"{'files':<12} {said['inputs']:>10,} {said['whole']:>10,} {said['refused']:>10,}")
    print(f"{total + said['inputs']:,} inputs: no crash, no hang, each accounted once, all records beside them read")


if __name__ == "__main__":
    main()
