"""BOOTSTRAP TOPIC RETRIES enter: Pathway counts retries per service and minute; seconds, CPU and share leave.

One small task of what our worker does. Run by Pathway's own interpreter (see bench.live), which has nothing of ours.
What was counted before the first change was seen does not count as measured: share is that of the retries after it.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from typing import Any

import pathway as pw


class Call(pw.Schema):  # type: ignore[misc]
    timestamp: str
    service_name: str
    side: str | None = pw.column_definition(default_value=None)
    retry_count: int | None = pw.column_definition(default_value=None)


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Count:
    """Follows the counts until their sum is what was sent."""

    def __init__(self, retries: int) -> None:
        self.retries, self.seen, self.first = retries, 0, (0.0, 0.0, 0)

    def change(self, key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:
        self.seen += row["retries"] if is_addition else -row["retries"]

    def moment(self, at: int) -> None:
        """Pathway has told all changes of one of its times."""
        if not self.first[2]:
            self.first = (time.monotonic(), cpu_s(), self.seen)
        elif self.seen == self.retries:
            begun, cpu, before = self.first
            share = (self.seen - before) / self.seen
            os.write(1, f"{time.monotonic() - begun} {cpu_s() - cpu} {share}\n".encode())
            os._exit(0)


def main() -> None:
    bootstrap, topic, retries = sys.argv[1:]
    settings = {"bootstrap.servers": bootstrap, "group.id": f"pathway-{os.getpid()}", "auto.offset.reset": "earliest"}
    settings["fetch.queue.backoff.ms"] = "10"  # at a second, the default, it stands still for half of the time
    calls = pw.io.kafka.read(settings, topic=topic, format="json", schema=Call, autocommit_duration_ms=500)
    again = calls.filter((pw.this.side == "client") & (pw.coalesce(pw.this.retry_count, 0) > 0))
    named = again.select(pw.this.service_name, minute=pw.this.timestamp.str.slice(0, 16))
    counted = named.groupby(pw.this.service_name, pw.this.minute).reduce(
        pw.this.service_name, pw.this.minute, retries=pw.reducers.count()
    )
    count = Count(int(retries))
    pw.io.subscribe(counted, on_change=count.change, on_time_end=count.moment)
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)


if __name__ == "__main__":
    main()
