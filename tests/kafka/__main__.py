"""python -m tests.kafka [--port N]: Apache Kafka 4 in the foreground, for trying things; Ctrl-C ends it."""

from __future__ import annotations

import argparse

from tests.kafka import HOME, Broker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9092)
    port = parser.parse_args().port
    broker = Broker(HOME / f"broker-{port}", port, port + 1)
    broker.start()
    print(f"Apache Kafka at {broker.bootstrap}; its data is in {broker.folder}. Ctrl-C ends it.", flush=True)
    assert broker.process
    try:
        broker.process.wait()
    except KeyboardInterrupt:
        broker.stop()


if __name__ == "__main__":
    main()
