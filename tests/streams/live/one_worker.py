"""python -m tests.streams.live.one_worker BOOTSTRAP PREFIX PARTITIONS ENDS_US FOLDER: a worker on a played tape."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from detectors.detector import Settings, catalog
from streams.live.transport import app
from streams.live.worker import Worker

if __name__ == "__main__":
    bootstrap, prefix, partitions, ends_us, folder = sys.argv[1:6]
    mine = Path(folder) / str(os.getpid())
    made = app(
        f"{prefix}work",
        bootstrap,
        mine / "faust",
        broker_commit_interval=0.3,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=0.5,
        broker_rebalance_timeout=8.0,
    )
    detectors = [e.detector for e in catalog().values()]
    Worker(made, bootstrap, int(partitions), detectors, Settings(), mine, prefix, int(ends_us))
    sys.argv = [sys.argv[0], "worker", "-l", "error", "--without-web"]
    made.main()
