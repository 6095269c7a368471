"""A number of events enters, Parquet files leave: a large recording in which every detector has something to find.

85 % requests (both sides of each attempt, three spans a trace, 500 edges, 95 % distinct idempotency keys), 5 %
heartbeats, 10 % writes, 10 M events an hour. Made in blocks of a minute, so that its size does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

START_US = 1_769_414_400_000_000  # 2026-01-26 08:00 UTC
MINUTE_US = 60_000_000
PER_MINUTE = 10_000_000 // 60
NODES, EDGES, SERVICES = 200, 500, 50
INSTANT = pl.Datetime("us", "UTC")


def write(folder: Path, events: int, seed: int = 7) -> dict[str, int]:
    """Four files; returns the rows of each stream."""
    folder.mkdir(parents=True, exist_ok=True)
    minutes = round(events / PER_MINUTE)
    rows = {}
    makers = {"requests": requests, "heartbeats": _heartbeats, "write_log": _writes, "signals": _signals}
    for name, make in makers.items():
        rng = np.random.default_rng([seed, len(name)])
        rows[name] = _save(folder / f"{name}-0.parquet", (make(rng, m) for m in range(minutes)))
    return rows


def _save(path: Path, blocks: Iterator[pl.DataFrame]) -> int:
    writer, rows = None, 0
    for block in blocks:
        table = block.sort("arrival").to_arrow()
        writer = writer or pq.ParquetWriter(path, table.schema, compression="lz4")
        writer.write_table(table)
        rows += len(block)
    assert writer is not None
    writer.close()
    return rows


def _instants(us: np.ndarray) -> pl.Series:
    return pl.Series(us).cast(INSTANT)


def _name(prefix: str, numbers: np.ndarray) -> pl.Series:
    return pl.select(pl.lit(prefix) + pl.Series(numbers).cast(pl.String)).to_series()


def requests(rng: np.random.Generator, minute: int) -> pl.DataFrame:
    n = int(PER_MINUTE * 0.85) // 2
    edge = np.where(rng.random(n) < 0.03, rng.integers(0, 4, n), rng.integers(0, EDGES, n))  # four are busy
    place = np.arange(n)
    again = (rng.random(n) < 0.05) & (place > 1000)
    before = np.where(again, place - rng.integers(1, 1000, n), place)
    edge = edge[before]  # a key is used again on the edge where it was used first
    start = START_US + minute * MINUTE_US + rng.integers(0, MINUTE_US, n)
    bad = (edge < 4) & (minute % 20 >= 12) & (minute % 20 < 17)
    retry = np.where(rng.random(n) < np.where(bad, 0.5, 0.01), 1, 0)
    timeout = rng.random(n) < np.where(bad, 0.4, 0.002)
    took = np.where(timeout, 2_000_000, rng.lognormal(10.5, 0.8, n).clip(200, 1_500_000)).astype(np.int64)
    number, key = minute * n + place, minute * n + before
    caller, service = edge // 10, edge % SERVICES
    common = {
        "caller": _name("svc-", caller),
        "service_name": _name("svc-", service),
        "request_id": _name("r", number),
        "trace_id": _name("t", number // 3),
        "status": pl.Series(np.where(timeout, "timeout", "ok")),
        "retry_count": pl.Series(retry),
        "timeout_ms": pl.Series(np.full(n, 2000.0)),
        "idempotency_key": _name("k", key),
        "payload_hash": _name("p", key % 1000),
    }
    client_node, server_node = _name("n", caller * 4 + number % 4), _name("n", service * 4 + number % 4)
    client = pl.DataFrame(
        {
            **common,
            "timestamp": _instants(start),
            "node_id": client_node,
            "peer_node": server_node,
            "side": pl.Series(["client"] * n),
            "span_id": _name("c", number),
            "parent_span_id": pl.Series([None] * n, dtype=pl.String),
            "duration_ms": pl.Series(took / 1000),
            "cache": pl.Series([None] * n, dtype=pl.String),
            "applied": pl.Series([None] * n, dtype=pl.Boolean),
            "arrival": _instants(start + took + rng.integers(1000, 2_000_000, n)),
        }
    )
    ahead = np.where((service == 7) & (number % 4 == 1), 900_000, 0)
    inner = (took * 0.9).astype(np.int64)
    doubled = again & (rng.random(n) < 0.02)
    missed = again & (doubled | (rng.random(n) < np.where(minute % 20 >= 12, 0.5, 0.05)))
    far = (number % 400_000 == 17) * 2_300_000_000_000_000
    server = pl.DataFrame(
        {
            **common,
            "status": pl.Series(["ok"] * n),
            "timestamp": _instants(start + 300 + ahead + far),
            "node_id": server_node,
            "peer_node": client_node,
            "side": pl.Series(["server"] * n),
            "span_id": _name("s", number),
            "parent_span_id": _name("c", number),
            "duration_ms": pl.Series(inner / 1000),
            "cache": pl.Series(np.where(again & ~missed, "hit", "miss")),
            "applied": pl.Series(~again | doubled),
            "arrival": _instants(start + inner + rng.integers(1000, 2_000_000, n)),
        }
    )
    return pl.concat([client, server.select(client.columns)])


def _heartbeats(rng: np.random.Generator, minute: int) -> pl.DataFrame:
    n = int(PER_MINUTE * 0.05)
    node = np.arange(n) % NODES
    keep = ~((node == 3) & (minute % 20 >= 10))  # this one falls silent
    sent = START_US + minute * MINUTE_US + np.arange(n) * MINUTE_US // n
    wrong = np.where(node == 29, 900_000, 0)
    received = sent + rng.integers(200, 5_000, n)
    frame = pl.DataFrame(
        {
            "node_id": _name("n", node),
            "client_time": _instants(sent + wrong),
            "server_time": _instants(received),
            "arrival": _instants(received + rng.integers(1000, 500_000, n) - (minute % 20 == 5) * 3_000_000),
        }
    )
    return frame.filter(pl.Series(keep))


def _writes(rng: np.random.Generator, minute: int) -> pl.DataFrame:
    n = int(PER_MINUTE * 0.10)
    number = minute * n + np.arange(n)
    at = START_US + minute * MINUTE_US + np.arange(n) * MINUTE_US // n
    entity = np.arange(n) % 2000  # each written a few times a minute, each time knowing the last version
    version = number // 2000 + 1
    blind = (entity < 5) & (rng.random(n) < 0.3)
    return pl.DataFrame(
        {
            "timestamp": _instants(at),
            "node_id": _name("n", number % 7),
            "entity_type": pl.Series(["order"] * n),
            "entity_id": _name("", entity),
            "version": pl.Series(version),
            "base_version": pl.Series(np.where(blind, np.maximum(version - 2, 0), version - 1)),
            "arrival": _instants(at + rng.integers(1000, 2_000_000, n)),
        }
    )


def _signals(rng: np.random.Generator, minute: int) -> pl.DataFrame:
    at = START_US + minute * MINUTE_US + rng.integers(0, MINUTE_US, 2)
    return pl.DataFrame(
        {
            "timestamp": _instants(at),
            "subject": pl.Series(["svc-1", "svc-2"]),
            "kind": pl.Series(["change", "gauge"]),
            "name": pl.Series(["deploy", "queued"]),
            "arrival": _instants(at + 1000),
        }
    )
