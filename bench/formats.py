"""python -m bench.formats [--events N]: what reading a record costs in each format, beside polars and DuckDB.

They read the same file to columns, whatever its fields mean; we make rows of our schema of it, checked and placed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
from fastavro import writer as write_avro

from bench.cpu import cpu_s
from detectors.events import encode_json
from streams.sources.decode import chunks, recognise
from streams.sources.fieldmap import FieldMap, load
from streams.sources.files import Recording, look
from tests.cases import cases
from tests.fuzz import CHANGE, HEADER, MAPS, ORDER, ORDER_MAP, SAMPLES, THREADS, span
from tests.records import ENVOY, NGINX, TRAIL

TIMES = 3
ABOUT = """Reading an event in each format, in CPU µs. polars and DuckDB read the same file to columns, whatever they
mean; we make rows of our schema of it, each field checked, rejects with their places. No table, no landing.
"""
HEAD = "| format | bytes | ours | M events/s of a core | polars (ours is × of it) | DuckDB (ours is × of it) |"
Read = Callable[[str], Any]


def _duckdb(reader: str) -> Read:
    def read(path: str) -> pl.DataFrame:
        found = duckdb.connect().sql(f"SELECT * FROM {reader}('{path}')")
        assert found is not None
        frame: pl.DataFrame = found.pl()
        return frame

    return read


PEERS: dict[str, tuple[Read, Read]] = {
    "json": (pl.read_ndjson, _duckdb("read_json")),
    "csv": (pl.read_csv, _duckdb("read_csv")),
    "parquet": (pl.read_parquet, _duckdb("read_parquet")),
}


@dataclass(frozen=True)
class Sample:
    """A file of a format, how many events it holds, as what others read it, and the map that it needs."""

    name: str
    path: Path
    events: int
    peers: str = ""
    map: FieldMap | None = None


def samples(folder: Path, events: int) -> Iterator[Sample]:
    yield from _own(folder, events)
    for name, event in (("nginx", NGINX), ("envoy", ENVOY), ("cloudtrail", TRAIL), ("debezium", CHANGE)):
        numbered = (json.dumps({**event, "request_id": str(i)}).encode() for i in range(events))
        yield Sample(name, _lines(folder / f"{name}.jsonl", numbered), events, "json")
    pairs = ([span(3, "web", f"a{i}", ""), span(2, "pay", f"b{i}", f"a{i}")] for i in range(events // 2))
    documents = (json.dumps({"resourceSpans": pair}).encode() for pair in pairs)
    yield Sample("otlp, two spans a line", _lines(folder / "otlp.jsonl", documents), events // 2 * 2, "json")
    times = b"1769428800000000000,1769428800025000000,25000"
    rows = (b"t,a%d,root,pay-7f-x2,GET /,%s" % (i, times) for i in range(events))
    spans = _lines(folder / "spans.csv", iter([HEADER, *rows]))
    yield Sample("csv by a map", spans, events, "csv", load(MAPS / "spans.toml"))
    lines = (THREADS[0] for _ in range(events))
    yield Sample("text by a pattern", _lines(folder / "threads.log", lines), events, "", load(MAPS / "threads.toml"))
    tracking = (SAMPLES["chrony_tracking"][1] for _ in range(events))
    yield Sample("chrony", _lines(folder / "tracking.log", tracking), events)
    yield _avro(folder, events)


def _own(folder: Path, events: int) -> Iterator[Sample]:
    case = next(c for d, _, c in cases("fires_") if d == "duplicate_key" and "requests" in c.streams)
    some = case.streams["requests"][0].drop("offset", strict=False)
    whole = pl.concat([some] * -(-events // len(some))).head(events)
    yield Sample(
        "own JSON lines", _lines(folder / "requests.jsonl", iter(encode_json("requests", whole))), events, "json"
    )
    whole.write_parquet(folder / "requests.parquet")
    yield Sample("own Parquet", folder / "requests.parquet", events, "parquet")


def _lines(path: Path, records: Iterator[bytes]) -> Path:
    with path.open("wb") as out:
        out.writelines(record + b"\n" for record in records)
    return path


def _avro(folder: Path, events: int) -> Sample:
    (folder / "order.avsc").write_text(json.dumps(ORDER))
    (folder / "orders.toml").write_text(ORDER_MAP.replace('{ kind = "avro", schema = "order.avsc" }', '"json"'))
    order = {"at": 1_769_428_800_000, "service": "pay", "tries": 2, "tags": {"a": ["x"]}}
    with (folder / "orders.avro").open("wb") as out:
        write_avro(out, ORDER, (order for _ in range(events)))
    return Sample("Avro container", folder / "orders.avro", events, "", load(folder / "orders.toml"))


def ours(sample: Sample) -> int:
    file = look(sample.path, sample.path.name)
    maps = [sample.map] if sample.map else []
    found = [d for _, d in chunks(Recording(file), recognise(file, maps))]
    used = sum(len(d.events) for d in found)
    assert used == sample.events, f"{sample.name}: {used} of {sample.events}"
    return used


def cost_us(work: Callable[[], Any], events: int) -> float:
    """CPU of one event, the least of a few times."""

    def once() -> float:
        begin = cpu_s()
        work()
        return cpu_s() - begin

    return min(once() for _ in range(TIMES)) / events * 1e6


def row(sample: Sample) -> str:
    mine = cost_us(lambda: ours(sample), sample.events)
    told = f"| {sample.name} | {sample.path.stat().st_size / sample.events:,.0f} | {mine:.2f} | {1 / mine:.2f} |"
    if not sample.peers:
        return told + " | |"
    others = [cost_us(lambda read=read: read(str(sample.path)), sample.events) for read in PEERS[sample.peers]]  # type: ignore[misc]
    return told + "".join(f" {other:.2f} (× {mine / other:.1f}) |" for other in others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=float, default=200e3)
    events = int(parser.parse_args().events)
    print(ABOUT)
    print(HEAD)
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for sample in samples(Path(folder), events):
            print(row(sample), flush=True)


if __name__ == "__main__":
    main()
