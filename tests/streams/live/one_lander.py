"""python -m tests.streams.live.one_lander BOOTSTRAP PREFIX PARTITIONS STATE [SOURCES]: a lander of a played tape.

SOURCES: the partitions of each stream as JSON, where they are not PARTITIONS.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from detectors.detector import catalog
from detectors.events import STREAMS
from streams.live.connect import Connection
from streams.live.land import Landing, run

if __name__ == "__main__":
    bootstrap, prefix, partitions, folder = sys.argv[1:5]
    sources = json.loads(sys.argv[5]) if len(sys.argv) > 5 else dict.fromkeys(STREAMS, int(partitions))
    detectors = [e.detector for e in catalog().values()]
    run(Landing(Path(folder), Connection(broker=bootstrap), detectors, sources, int(partitions), prefix))
