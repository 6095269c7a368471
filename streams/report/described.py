"""A landed row enters; whose it is and what it says, in one line, leaves."""

from __future__ import annotations

from collections.abc import Callable

from streams.report.evidence import Row
from streams.report.sentences import milliseconds


def described(row: Row) -> tuple[str, str]:
    """(subject, words)."""
    return DESCRIBED[row["stream"]](row)


def _request(row: Row) -> tuple[str, str]:
    called = f"{row['caller'] or '?'}->{row['service_name']}"
    lasted = "" if row["duration_ms"] is None else f" after {milliseconds(row['duration_ms'])}"
    said = [
        f"{row['side'] or 'call'} on {row['node_id']}:",
        f"try {row['retry_count']}" if row["retry_count"] is not None else "",
        f"{row['status'] or 'no status'}{lasted}",
        f"cache {row['cache']}" if row["cache"] else "",
        "applied" if row["applied"] else "",
        f"key {row['idempotency_key']}" if row["idempotency_key"] else "",
    ]
    return called, ", ".join(s for s in said if s).replace(":,", "")


def _heartbeat(row: Row) -> tuple[str, str]:
    sent, heard = row["client_time"], row["server_time"]
    leaving = ", says goodbye" if row["role"] == "leaving" else ""
    return row[
        "node_id"
    ], f"heartbeat sent at {sent:%H:%M:%S.%f}, heard by {row['observer']} at {heard:%H:%M:%S.%f}{leaving}"


def _write(row: Row) -> tuple[str, str]:
    entity = f"{row['entity_type']}/{row['entity_id']}" if row["entity_type"] else row["node_id"]
    version = "" if row["version"] is None else f" version {row['version']}"
    base = "" if row["base_version"] is None else f" on {row['base_version']}"
    return entity, f"{row['op'] or 'write'}{version}{base} by {row['node_id']}"


def _signal(row: Row) -> tuple[str, str]:
    value = row["text"] or ("" if row["value"] is None else f"{row['value']:g}")
    return row["subject"], f"{row['name']} {value}".strip()


DESCRIBED: dict[str, Callable[[Row], tuple[str, str]]] = {
    "requests": _request,
    "heartbeats": _heartbeat,
    "write_log": _write,
    "signals": _signal,
}
