"""python -m bench.nodes [--nodes N] [--every S] [--minutes M]: heartbeats of a large fleet, replayed: time and memory.

Every node sends one heartbeat in each interval, to one observer. One of a thousand falls silent half way, and one of a
thousand has a clock that is wrong, so that there is something to find.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from bench.__main__ import HEADER, cli
from bench.tape import INSTANT, START_US
from detectors.windows import SECOND_US
from streams.landing import state

BLOCK = 200_000  # heartbeats that are made at once


def beats(nodes: int, every_us: int, rounds: int, seed: int = 7) -> Iterator[pl.DataFrame]:
    rng = np.random.default_rng(seed)
    for number in range(rounds):
        for first in range(0, nodes, BLOCK):
            node = np.arange(first, min(first + BLOCK, nodes))
            node = node[(node % 1000 != 3) | (number < rounds // 2)]
            sent = START_US + number * every_us + node * every_us // nodes
            received = sent + rng.integers(200, 5_000, len(node))
            frame = pl.DataFrame(
                {
                    "node": node,
                    "client_time": sent + np.where(node % 1000 == 29, 900_000, 0),
                    "server_time": received,
                    "arrival": received + rng.integers(1000, 500_000, len(node)),
                }
            )
            name = pl.format("node-{}", pl.col("node")).alias("node_id")
            yield frame.sort("arrival").select(name, pl.col("client_time", "server_time", "arrival").cast(INSTANT))


def write(path: Path, blocks: Iterator[pl.DataFrame]) -> int:
    rows, block = 0, next(blocks).to_arrow()
    with pq.ParquetWriter(path, block.schema, compression="lz4") as writer:
        writer.write_table(block)
        rows += len(block)
        for frame in blocks:
            writer.write_table(frame.to_arrow())
            rows += len(frame)
    return rows


def found(folder: Path) -> str:
    con = state.open_readable(folder)
    counts = con.execute("SELECT detector, count(DISTINCT subject) FROM findings GROUP BY ALL ORDER BY ALL").fetchall()
    con.close()
    return "; ".join(f"{detector}: {subjects:,} subjects" for detector, subjects in counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=float, default=100e3)
    parser.add_argument("--every", type=float, default=10, help="seconds between two heartbeats of a node")
    parser.add_argument("--minutes", type=float, default=10)
    given = parser.parse_args()
    folder, nodes = Path(tempfile.mkdtemp(prefix="asynchealth-bench-")), int(given.nodes)
    try:
        rounds = round(given.minutes * 60 / given.every)
        tape = folder / "heartbeats-0.parquet"
        rows = write(tape, beats(nodes, int(given.every * SECOND_US), rounds))
        what = f"{nodes:,} nodes, every {given.every:g} s for {given.minutes:g} min: {rows / 1e6:.1f} M heartbeats"
        print(HEADER)
        print(cli("replay", str(tape), "--state", str(folder / "state")).row(what, rows), flush=True)
        print(f"\n{found(folder / 'state')}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
