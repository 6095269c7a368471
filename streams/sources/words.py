"""A field's or a value's name in somebody's log enters, what it most likely means in ours leaves: tables of words.

Names are compared without case and marks, and with the path that leads to them: traceID, trace_id and trace.id are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Literal, NamedTuple

Unit = Literal["s", "ms", "us", "ns"]

END = ("end_time", "end", "ended_at", "ended", "finished_at", "finish_time", "completed_at", "stop_time", "stopped_at")
START = ("start_time", "start", "started_at", "started", "begin_time", "begin", "began_at")
FAILURE = ("error_code", "error_type", "error_class", "exception_type", "error", "exception", "is_error", "failed")
IDS = frozenset({"trace_id", "span_id", "parent_span_id", "request_id", "idempotency_key", "event_id", "payload_hash"})

NAMES: dict[str, tuple[str, ...]] = {  # besides a field's own name; the surer come first
    "timestamp": (
        *START,
        *("event_time", "request_start", "time", "ts", "datetime", "date_time", "occurred_at", "log_time", "logged_at"),
        *("created_at", "created", "time_local", "time_iso8601", "asctime", "when", "at", "date", "t", "epoch"),
        *("request_time", "record_time", "committed_at", "written_at"),
        *END,
    ),
    "service_name": (
        *("service", "svc", "svc_name", "app_name", "application_name", "application", "app", "component"),
        *("upstream_service", "upstream_name", "upstream_cluster", "target_service", "target", "destination_service"),
        *("destination", "callee", "backend", "backend_name", "container_name", "job", "event_source", "server_name"),
        *("microservice", "module", "system"),
    ),
    "node_id": (
        *("node", "node_name", "pod_name", "pod", "pod_id", "instance_id", "service_instance_id", "instance"),
        *("host_name", "host", "machine", "machine_name", "server", "container_id", "computer", "worker", "worker_id"),
        *("replica", "broker_id", "member", "thread"),
    ),
    "caller": (
        *("caller_service", "caller_name", "calling_service", "client_service", "client_name", "source_service"),
        *("from_service", "src_service", "downstream_service", "origin", "client", "consumer", "source", "src"),
        *("client_id", "remote_addr", "client_ip", "remote_ip", "client_address", "source_ip"),
    ),
    "peer_node": ("peer", "peer_address", "upstream_addr", "upstream_host", "remote_node", "peer_host", "target_host"),
    "side": ("span_kind", "kind", "direction"),
    "request_id": ("req_id", "x_request_id", "correlation_id", "call_id", "rid", "operation_id", "message_id"),
    "trace_id": ("trace", "b3_trace_id", "traceparent", "dd_trace_id"),
    "span_id": ("span",),
    "parent_span_id": ("parent_id", "parent_span", "parent"),
    "status": (
        *("status_code", "http_status", "http_status_code", "response_code", "response_status", "status_name"),
        *("outcome", "result", "grpc_code", "grpc_status", "grpc_status_code", "code", "state", "success", "succeeded"),
        *("successful", "ok"),
        *FAILURE,
    ),
    "retry_count": (
        *("retries", "retry_number", "retry_no", "n_retries", "num_retries", "resend_count", "retry"),
        *("retry_attempt", "attempt_number", "attempt_no", "attempt_count", "attempt", "attempts", "try", "try_number"),
        *("is_retry", "retried", "delivery_count", "delivery_attempt", "receive_count", "approximate_receive_count"),
        *("redelivered", "redelivery_count"),
    ),
    "duration_ms": (
        *("duration", "latency", "elapsed", "elapsed_time", "response_time", "request_duration", "request_time"),
        *("took", "time_taken", "processing_time", "dur", "total_time", "rt", "service_time", "runtime", "rtt"),
        *("processing", "processing_duration"),
    ),
    "timeout_ms": ("timeout", "request_timeout", "deadline", "time_limit", "time_budget"),
    "idempotency_key": (
        *("idempotence_key", "idem_key", "idempotency_token", "client_token", "client_request_token"),
        *("dedup_id", "dedup_key", "deduplication_id"),
    ),
    "payload_hash": ("body_hash", "request_hash", "payload_digest", "body_sha256", "payload_sha256"),
    "cache": ("cache_status", "cache_result", "cache_hit", "upstream_cache_status", "idempotency_cache"),
    "health_check": ("is_health_check",),
    "error": ("error_type", "error_class", "exception_type", "error_code", "exception"),
    "client_time": ("sent_at", "sent", "send_time", "sender_time", "node_time", "local_time", "sent_time"),
    "server_time": ("received_at", "received", "receive_time", "recv_time", "observed_at", "collector_time", "seen_at"),
    "observer": ("collector", "monitor", "observed_by", "received_by"),
    "entity_type": ("entity", "object_type", "resource_type", "table", "table_name", "collection", "aggregate_type"),
    "entity_id": (
        *("object_id", "resource_id", "record_id", "row_id", "document_id", "doc_id", "aggregate_id", "primary_key"),
        *("pk", "key"),
    ),
    "version": ("new_version", "revision", "rev", "object_version", "row_version"),
    "base_version": (
        *("old_version", "previous_version", "prev_version", "expected_version", "parent_version", "read_version"),
    ),
    "vector_clock": ("vclock", "vector", "clock", "version_vector"),
    "op": ("operation", "action", "op_type"),
    "started": START,
    "finished": END,
    "environment": ("env", "deployment_environment"),
    "tenant": ("tenant_id",),
    "region": ("aws_region", "cloud_region", "data_center", "dc"),
    "arrival": ("arrived_at", "ingested_at", "ingest_time", "ingestion_time", "append_time"),
}  # fmt: skip

UNITS: dict[str, Unit] = {
    **dict.fromkeys(("ms", "msec", "msecs", "millis", "milliseconds", "millisecond"), "ms"),
    **dict.fromkeys(("us", "usec", "usecs", "micros", "microseconds", "microsecond", "µs"), "us"),
    **dict.fromkeys(("ns", "nsec", "nsecs", "nano", "nanos", "nanoseconds", "nanosecond"), "ns"),
    **dict.fromkeys(("s", "sec", "secs", "seconds", "second"), "s"),
}
DEFINED: dict[str, Unit] = {"event.duration": "ns"}  # by the Elastic Common Schema
OF_TIMES = ("utc", "unix", "epoch", "gmt")


class Match(NamedTuple):
    """How a path is named as a field is: by which of its known names, at which of the path's ends, with which unit."""

    rank: tuple[int, int, int]  # the smaller, the surer
    name: str
    unit: Unit | None


def snake(key: str) -> str:
    """traceID, TraceId and trace-id as trace_id."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", key)
    return "_".join(re.findall(r"[^\W_]+", parted)).lower().removeprefix("http_x_").removeprefix("x_")


def matched(field: str, path: str) -> Match | None:
    """How surely a path is named as a field of ours is; None if it is not."""
    parts = [snake(p) for p in path.split(".")]
    ends = dict.fromkeys(["_".join(parts), parts[-1], "_".join(parts[-2:])])
    own = field.removesuffix("_ms")
    known = [*dict.fromkeys([field, own, *NAMES.get(field, ())])]
    found = (
        Match((place, end, len(parts)), name, DEFINED.get(path, unit))
        for end, text in enumerate(ends)
        for bare, unit in _bare(text)
        for place, name in enumerate(known)
        if bare.replace("_", "") == name.replace("_", "")
    )
    return min(found, default=None, key=lambda match: match.rank)


def _bare(text: str) -> Iterator[tuple[str, Unit | None]]:
    """A name as it is, and without the unit that it ends with: latency_ms, elapsedms, start_time_unix_nano."""
    unit = unit_of(text)
    yield text, unit
    words = text.split("_")
    while len(words) > 1 and (words[-1] in UNITS or words[-1] in OF_TIMES):
        words.pop()
        yield "_".join(words), unit
    for ending in UNITS:
        if len(ending) > 1 and len(words) == 1 and text.endswith(ending) and text != ending:
            yield text.removesuffix(ending), UNITS[ending]


def unit_of(text: str) -> Unit | None:
    """The unit that a name in words ends with."""
    return UNITS.get(text.rsplit("_", 1)[-1]) if "_" in text else None


NOTHING = ("", "-", "null", "NULL", "None", "nil", "N/A", "n/a", "(null)", "undefined", "<nil>")
SECRET = re.compile(r"pass(word|wd|phrase)|secret|token|authoriz|cookie|api_?key|credential|session|signature", re.I)

CODES = {f"{s.value}" for s in HTTPStatus} | {"499", *(f"{n}" for n in range(520, 528))}
STATUS_OF = {  # what was refused (4xx) did nothing, so it is not ok: that counts as applied
    "http": {"408|504": "timeout", "429|503": "rejected", "499": "cancelled", "[123]..": "ok", "[45]..": "error"},
    "grpc": {"0": "ok", "1": "cancelled", "4": "timeout", "8|14": "rejected", r"\d+": "error"},
}

MEANT: dict[str, dict[str, str]] = {  # by field: what a whole value means, in whatever case; the first that fits counts
    "status": {
        r".*(time.?d?.?out|deadline|expired).*": "timeout",
        r".*(reject|throttl|rate.?(limit|exceed)|exhaust|unavailable|overload|too.?many|slow.?down).*|shed": "rejected",
        r".*(cancel|abort|client.?closed).*": "cancelled",
        r".*(error|fail|exception|fault|crash|panic|invalid|denied|unauth|forbidden|not.?found|unsuccess).*": "error",
        r"err|false|no|internal|unknown|nack(ed)?|dead.?letter(ed)?": "error",
        r"ok(ay)?|ack(ed|nowledged)?|succe.*|complete.*|pass(ed)?|done|accepted|created|true|yes": "ok",
    },
    "side": {r".*(client|producer)|outbound|egress|out": "client", r".*(server|consumer)|inbound|ingress|in": "server"},
    "cache": {r"hit|true|yes|1": "hit", r"miss|expired|bypass|false|no|0": "miss"},
}


def meaning(field: str, value: str) -> str | None:
    """What a value of theirs is among the few values that a field of ours has; None where no word of it is known."""
    known = MEANT.get(field, {}).items()
    return next((meant for pattern, meant in known if re.fullmatch(pattern, value, re.I)), None)
