"""python -m tests.streams.live.one_lander BOOTSTRAP PREFIX PARTITIONS STATE: a lander of what a played tape became."""

from __future__ import annotations

import sys
from pathlib import Path

from detectors.detector import catalog
from detectors.events import STREAMS
from streams.live.connect import Connection
from streams.live.land import Landing, run

if __name__ == "__main__":
    bootstrap, prefix, partitions, folder = sys.argv[1:5]
    sources = dict.fromkeys(STREAMS, int(partitions))
    detectors = [e.detector for e in catalog().values()]
    run(Landing(Path(folder), Connection(broker=bootstrap), detectors, sources, int(partitions), prefix))
