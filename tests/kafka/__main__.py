"""python -m tests.kafka [--port N]: Apache Kafka 4 in the foreground, for trying things; Ctrl-C ends it."""

from __future__ import annotations

import argparse
import signal
import sys

from tests.kafka import HOME, Broker, Unavailable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9092)
    port = parser.parse_args().port
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no broker is left behind either way
    broker = Broker(HOME / f"broker-{port}", port, port + 1)
    try:
        broker.start()
    except Unavailable as why:
        sys.exit(f"no Kafka: {why}")
    print(f"Apache Kafka at {broker.bootstrap}; its data is in {broker.folder}. Ctrl-C ends it.", flush=True)
    assert broker.process
    try:
        broker.process.wait()
    except KeyboardInterrupt:
        broker.stop()


if __name__ == "__main__":
    main()
