"""python -m tests.streams.live.copier BOOTSTRAP GROUP TOPIC FOLDER: a worker that writes down each record it takes.

One line a record: partition, offset, and how many records of the partition came before it, as its state says. What the
state says of a partition is committed with its offset, so a successor that goes on elsewhere shows it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faust.types import TP

from streams.live.transport import App, Chunk, Consumer, Held, app, fatal, fits, raw

PIECE = 500  # records between two looks at the disk


@dataclass
class Counts:
    """The store of this worker: position and number of records of each partition."""

    at: dict[TP, tuple[int, int]] = field(default_factory=dict)
    lost: list[TP] = field(default_factory=list)

    async def assigned(self, held: Mapping[TP, Held]) -> Mapping[TP, int]:
        self.at = {tp: self.at[tp] for tp in held if tp in self.at}
        for tp, (committed, metadata, start) in held.items():
            if tp not in self.at:
                self.at[tp] = (max(committed, start), int(metadata or 0))
                if start > max(committed, 0):
                    self.lost.append(tp)
                    say(f"lost {tp.partition} {max(committed, 0)} {start}")
        return {tp: position for tp, (position, _) in self.at.items()}

    def committable(self) -> Mapping[TP, tuple[int, str]]:
        return {tp: (position, str(count)) for tp, (position, count) in self.at.items()}


FOLDER = Path(sys.argv[4])


def say(line: str) -> None:
    with (FOLDER / f"{os.getpid()}.txt").open("a") as out:
        out.write(line + "\n")


def worker(bootstrap: str, group: str, topic: str, folder: Path) -> App:
    store = Counts()
    made = app(
        group,
        bootstrap,
        folder / f"faust-{os.getpid()}",
        broker_commit_interval=0.2,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=0.5,
        broker_rebalance_timeout=8.0,
        broker_max_poll_records=PIECE,
    )
    made.store = store

    async def copy(stream: Any) -> None:
        async for chunk in stream:
            await take(made, store, chunk)

    made.agent(raw(made, topic), name="copy")(fatal(made, copy))
    return made


async def take(made: App, store: Counts, chunk: Chunk) -> None:
    if chunk.tp not in store.at:
        return
    position, count = store.at[chunk.tp]
    match fits(chunk, position):
        case "gap":
            assert isinstance(made.consumer, Consumer)
            await made.consumer.seek_all({chunk.tp: position})
        case "next":
            fresh = [r for r in chunk.records if r.offset >= position]
            for i, record in enumerate(fresh):
                if record.value == b"poison":
                    raise ValueError("a record that nobody can take")
                say(f"took {chunk.tp.partition} {record.offset} {count + i}")
            store.at[chunk.tp] = (chunk.end, count + len(fresh))


if __name__ == "__main__":
    bootstrap, group, topic, folder = sys.argv[1:5]
    running = worker(bootstrap, group, topic, Path(folder))
    sys.argv = [sys.argv[0], "worker", "-l", "error", "--without-web"]
    running.main()
