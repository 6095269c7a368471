"""python -m tests.streams.live.one_worker BOOTSTRAP PREFIX PARTITIONS ENDS_US FOLDER [SOURCES]: a worker of a tape.

SOURCES: the partitions of each stream as JSON, where they are not PARTITIONS. DIES_AFTER=n: see Mortal.
COMMIT_S: between two commits; AHEAD_S: by which its clock is wrong.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectors.detector import Settings
from streams.catalog import all_detectors
from streams.live.connect import Connection
from streams.live.reduce import Out
from streams.live.transport import app
from streams.live.worker import Worker, group
from streams.settings import CONFIG


@dataclass
class Mortal(Worker):
    """Killed when its n-th batch of messages is acknowledged: they are published, and nothing of it is committed."""

    dies_after: int = 0

    async def _publish(self, topic: str, messages: Sequence[tuple[int, Out]]) -> list[Any]:
        acknowledged = await super()._publish(topic, messages)
        self.dies_after -= bool(messages)
        if self.dies_after == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return acknowledged


if __name__ == "__main__":
    ahead, now = float(os.environ.get("AHEAD_S", "0")), time.time
    time.time = lambda: now() + ahead  # the clock of this host is wrong
    bootstrap, prefix, partitions, ends_us, folder = sys.argv[1:6]
    sources = json.loads(sys.argv[6]) if len(sys.argv) > 6 else {}
    mine = Path(folder) / str(os.getpid())
    made = app(
        group(prefix),
        bootstrap,
        mine / "faust",
        broker_commit_interval=float(os.environ.get("COMMIT_S", "0.3")),
        broker_session_timeout=6.0,
        broker_heartbeat_interval=0.5,
        broker_rebalance_timeout=8.0,
    )
    detectors = all_detectors(Path(os.environ.get("CONFIG", CONFIG)))
    after = int(os.environ.get("DIES_AFTER", "0"))
    at = Connection(broker=bootstrap)
    given = (made, at, int(partitions), detectors, Settings(), mine, prefix, True, int(ends_us), sources)
    Mortal(*given, dies_after=after)
    sys.argv = [sys.argv[0], "worker", "-l", "error", "--without-web"]
    made.main()
