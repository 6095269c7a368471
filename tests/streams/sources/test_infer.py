"""Logs that nobody described: what a draft makes of names and values, what it asks, and that it is a map at once."""

from __future__ import annotations

import csv
import io
import json
import tomllib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.problems import Exit, Problem
from streams.sources.decode import Reading, chunks
from streams.sources.draft import rule, toml, written
from streams.sources.fieldmap import FieldMap, Rule, load, parse
from streams.sources.files import Recording, look
from streams.sources.infer import Draft
from streams.sources.sample import drafted
from streams.sources.words import matched, meaning, snake

NOON = datetime(2026, 1, 26, 12, tzinfo=UTC)
CALL = {"time": "2026-01-26T12:00:00Z", "service": "pay", "host": "pay-1"}


def saved(path: Path, events: Sequence[Any]) -> Path:
    if path.suffix == ".csv":
        text = io.StringIO(newline="")
        cells = csv.DictWriter(text, [*dict.fromkeys(k for e in events for k in e)], lineterminator="\n")
        cells.writeheader()
        cells.writerows(events)
        path.write_text(text.getvalue())
    else:
        path.write_text("".join(json.dumps(e) + "\n" for e in events))
    return path


def draft_of(path: Path) -> tuple[Draft, str]:
    _, draft = drafted(look(path, path.name))
    return draft, "\n".join(written(draft, path.name, "asynchealth map --check MAP.toml LOG", "some events"))


def of(tmp_path: Path, events: Sequence[Any], name: str = "x.jsonl") -> tuple[Draft, str]:
    return draft_of(saved(tmp_path / name, events))


def only(draft: Draft, field: str) -> Rule:
    (one,) = draft.choices[field].rules
    return one


def read_with(given: FieldMap, path: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    parts = [d for _, d in chunks(Recording(look(path, path.name)), Reading(given.stream, given))]
    return pl.concat([d.events for d in parts]), pl.concat([d.rejects for d in parts])


# ---- any names, any spelling: the draft loads, refuses nothing and reads what was meant -----------------------------

TIMES: dict[str, Callable[[datetime], Any]] = {
    "zoned": lambda t: t.isoformat(),
    "epoch s": lambda t: t.timestamp(),
    "epoch ms": lambda t: int(t.timestamp() * 1_000),
    "epoch us": lambda t: int(t.timestamp() * 1_000) * 1_000,
    "epoch ns as text": lambda t: str(int(t.timestamp() * 1_000) * 10**6),
    "no zone": lambda t: t.strftime("%Y-%m-%d %H:%M:%S.%f"),
    "logging": lambda t: t.strftime("%Y-%m-%d %H:%M:%S,") + f"{t.microsecond // 1_000:03}",
    "slashes": lambda t: t.strftime("%Y/%m/%d %H:%M:%S.%f"),
}
DURATIONS = {"durationMs": 1, "elapsed_seconds": 1_000, "latency.us": 1e-3, "responseTimeNs": 1e-6, "took": 1}
STATUS: dict[str, dict[Any, str]] = {
    "statusCode": {200: "ok", 204: "ok", 503: "rejected", 504: "timeout", 500: "error", 499: "cancelled"},
    "outcome": {"success": "ok", "Timed Out": "timeout", "throttled": "rejected", "FAILURE": "error"},
    "status": {"ok": "ok", "error": "error", "timeout": "timeout", "rejected": "rejected"},
    "success": {True: "ok", False: "error"},
}


def flat(event: dict[str, Any]) -> dict[str, Any]:
    return {k: {True: "true", False: "false"}.get(v, v) if isinstance(v, bool) else v for k, v in event.items()}


def nested(event: dict[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for path, value in event.items():
        *above, last = path.split(".")
        inside = whole
        for key in above:
            inside = inside.setdefault(key, {})
        inside[last] = value
    return whole


@settings(max_examples=25)
@given(data=st.data())
def test_a_draft_loads_refuses_nothing_and_reads_what_was_meant(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    def one_of(*names: str) -> str:
        return data.draw(st.sampled_from(names))

    when, how, took = one_of("ts", "startedAt", "@timestamp", "log.time"), one_of(*TIMES), one_of(*DURATIONS)
    service, node, status = (
        one_of("app", "service.name", "svc"),
        one_of("podName", "host", "meta.node"),
        one_of(*STATUS),
    )
    rows = data.draw(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 9_000)), min_size=3, max_size=20))
    codes = data.draw(st.lists(st.sampled_from([*STATUS[status]]), min_size=len(rows), max_size=len(rows)))
    events = [
        {
            **{when: TIMES[how](NOON + timedelta(milliseconds=after)), took: ms / DURATIONS[took]},
            **{
                service: ("pay", "cart")[i % 2],
                node: f"n-{i % 3}",
                status: codes[i],
                "traceId": f"{i:032x}",
                "note": "x",
            },
            **({} if i % 2 else {"retry_no": i % 4}),
        }
        for i, (after, ms) in enumerate(rows)
    ]
    name = one_of("x.csv", "x.jsonl", "doc.json")
    shaped = [flat(e) for e in events] if name == "x.csv" else [nested(e) for e in events]
    folder = tmp_path_factory.mktemp("drafts")
    path = saved(folder / name, [{"meta": {"n": 1}, "records": shaped}] if name == "doc.json" else shaped)
    draft, text = draft_of(path)
    (folder / "m.toml").write_text(text)
    found, rejects = read_with(load(folder / "m.toml"), path)
    assert rejects.is_empty(), (rejects, text)
    assert draft.stream == "requests" and len(found) == len(events)
    assert found["service_name"].to_list() == [e[service] for e in events]
    assert found["node_id"].to_list() == [e[node] for e in events]
    assert found["timestamp"].to_list() == [NOON + timedelta(milliseconds=after) for after, _ in rows]
    assert found["status"].to_list() == [STATUS[status][c] for c in codes]
    assert found["trace_id"].to_list() == [e["traceId"] for e in events]
    assert found["retry_count"].to_list() == [e.get("retry_no") for e in events]
    if took != "took":  # its unit can only be asked
        assert found["duration_ms"].to_list() == pytest.approx([ms for _, ms in rows], abs=0.002)
    assert ('zone = "UTC"' in text and "TODO zone" in text) == (how in ("no zone", "logging", "slashes"))


# ---- the stream -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "stream"),
    [
        (CALL, "requests"),
        ({"host": "a", "sent_at": 1769428800, "received_at": 1769428801, "state": "up"}, "heartbeats"),
        ({"node": "a", "client_time": 1769428800, "server_time": 1769428801, "latency_ms": 3}, "heartbeats"),
        ({"ts": 1769428800, "node": "a", "table": "users", "row_id": 7, "rev": 3, "action": "update"}, "write_log"),
        ({"ts": 1769428800, "host": "a", "key": "cart/1", "vclock": {"a": 1, "b": 2}}, "write_log"),
        ({**CALL, "version": "1.2.3", "status": 200}, "requests"),
        ({"timestamp": 1769428800, "subject": "pay", "kind": "change", "name": "deploy"}, "signals"),
    ],
)
def test_the_stream_is_told_by_the_fields(tmp_path: Path, event: dict[str, Any], stream: str) -> None:
    draft, text = of(tmp_path, [event, event])
    assert draft.stream == stream and parse(text, "draft").stream == stream
    assert draft.tried is not None and len(draft.tried.events) == 2


def test_a_vector_clock_is_one_value_and_read_as_one(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.jsonl", [{"ts": 1769428800, "host": "a", "key": "k", "clock": {"a": 1, "b": 2}}] * 2)
    found, _ = read_with(draft_of(path)[0].map, path)
    assert found["vector_clock"][0].to_list() == [{"key": "a", "value": 1}, {"key": "b", "value": 2}]


# ---- what a value can tell, and what it can't -----------------------------------------------------------------------


def test_times_without_a_zone_are_asked_about_and_so_are_days_that_may_be_months(tmp_path: Path) -> None:
    draft, text = of(tmp_path, [{**CALL, "time": f"03/{day:02}/2026 12:00:00"} for day in (1, 2, 3)])
    asked = draft.choices["timestamp"].todo
    assert asked[0].startswith("zone: ") and asked[1].startswith("format: all values can also be read as %m/%d/%Y")
    assert text.count("# TODO zone: ") == 1
    clear, _ = of(tmp_path, [{**CALL, "time": f"03/{day:02}/2026 12:00:00"} for day in (1, 2, 30)])
    assert only(clear, "timestamp").format.startswith("%m/%d/%Y") and len(clear.choices["timestamp"].todo) == 1


def test_a_small_number_is_no_time_whatever_its_name(tmp_path: Path) -> None:
    draft, _ = of(tmp_path, [{**CALL, "ts": 12, "time": 99, "seen": "2026-01-26T12:00:00Z"}] * 2)
    assert draft.choices["timestamp"].path == "seen"
    assert draft.doubts["time"] == "named as timestamp is, but not times from 2000 on: 99"


def test_a_duration_without_a_unit_is_asked_about(tmp_path: Path) -> None:
    for value, unit in ((0.25, "s"), (37, "ms"), (250_000, "us"), (250_000_000, "ns")):
        draft, text = of(tmp_path, [{**CALL, "took": value}] * 3)
        assert only(draft, "duration_ms").unit == unit and "# TODO unit: the name has none; " in text


def test_the_end_tells_the_unit_of_a_duration_and_stands_in_for_one(tmp_path: Path) -> None:
    spans = [
        {**CALL, "start": 1769428800 * 10**9, "end": 1769428800 * 10**9 + i * 10**6, "took": i * 1_000}
        for i in (1, 2, 3)
    ]
    draft, _ = of(tmp_path, spans)
    assert only(draft, "duration_ms").unit == "us" and not draft.choices["duration_ms"].todo
    path = saved(tmp_path / "bare.jsonl", [{k: v for k, v in s.items() if k != "took"} for s in spans])
    found, _ = read_with(draft_of(path)[0].map, path)
    assert found["duration_ms"].to_list() == [1.0, 2.0, 3.0]


def test_a_log_that_stamps_the_end_is_brought_back_to_the_start(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.jsonl", [{"end_time": "2026-01-26T12:00:02Z", "app": "a", "host": "h", "took_s": 2}] * 2)
    draft, _ = draft_of(path)
    found, _ = read_with(draft.map, path)
    assert found["timestamp"].to_list() == [NOON] * 2
    asked, _ = of(tmp_path, [{**CALL, "took_ms": 2}])
    assert 'add minus = "took_ms", minus_unit = "ms"' in asked.choices["timestamp"].todo[0]


def test_durations_may_carry_their_unit_in_each_value(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.jsonl", [{**CALL, "latency": v} for v in ("12ms", "1.5s", "250µs")])
    draft, text = draft_of(path)
    found, rejects = read_with(parse(text, "draft"), path)
    assert found["duration_ms"].to_list() == [12.0, 1500.0, 0.25] and rejects.is_empty()
    assert len(draft.choices["duration_ms"].rules) == 3


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ([1, 2, 3], [0, 1, 2]),
        ([0, 1, 0], [0, 1, 0]),
        ([True, False, None], [1, 0, None]),
        (["-", "1", "3"], [None, 0, 2]),
    ],
)
def test_attempts_count_from_one_and_retries_from_none(tmp_path: Path, values: list[Any], counts: list[Any]) -> None:
    path = saved(tmp_path / "x.jsonl", [{**CALL, "attempt": v} for v in values])
    _, text = draft_of(path)
    assert read_with(parse(text, "draft"), path)[0]["retry_count"].to_list() == counts


def test_a_consumer_of_a_queue_counts_deliveries_from_one_and_acknowledges(tmp_path: Path) -> None:
    said = [(1, "ack"), (1, "nack"), (2, "ack")]
    events = [{**CALL, "delivery_count": n, "processing_ns": 5_000_000, "outcome": word} for n, word in said]
    path = saved(tmp_path / "x.jsonl", events)
    found, _ = read_with(parse(draft_of(path)[1], "draft"), path)
    told = found.select("retry_count", "status", "duration_ms")
    assert told.rows() == [(0, "ok", 5.0), (0, "error", 5.0), (1, "ok", 5.0)]


@pytest.mark.parametrize(
    ("name", "values", "statuses"),
    [
        ("rpc.grpc_status", [0, 4, 14, 13], ["ok", "timeout", "rejected", "error"]),
        ("exit.code", [0, 1, 0, 7], ["ok", "error", "ok", "error"]),
        (
            "error_code",
            [None, "ThrottlingException", "RequestTimeout", "NoSuchKey"],
            ["ok", "rejected", "timeout", "error"],
        ),
        ("is_error", [False, True, False, False], ["ok", "error", "ok", "ok"]),
        ("status", ["200", "0", "429", "weird (x)"], ["ok", None, "rejected", None]),
        ("odd", [200, 204, 404, 503], ["ok", "ok", "error", "rejected"]),
        ("statusCode", [200, 409, 408, 499], ["ok", "error", "timeout", "cancelled"]),
    ],
)
def test_a_status_is_known_by_codes_words_and_names(
    tmp_path: Path, name: str, values: list[Any], statuses: list[Any]
) -> None:
    path = saved(tmp_path / "x.jsonl", [nested({**CALL, name: v}) for v in values])
    draft, text = draft_of(path)
    found, rejects = read_with(parse(text, "draft"), path)
    assert found["status"].to_list() == statuses and rejects.is_empty()
    unknown = [str(v) for v, s in zip(values, statuses, strict=True) if s is None]
    assert bool(unknown) == any(
        t.startswith("these have no status yet: 0, weird (x)") for t in draft.choices["status"].todo
    )


def test_what_is_named_as_a_field_and_cannot_be_read_as_one_is_left_out_with_the_reason(tmp_path: Path) -> None:
    events = [{**CALL, "retry_count": v, "status": f"row {i}", "region": f"r{i}"} for i, v in enumerate([1, "x"] * 20)]
    draft, text = of(tmp_path, events)
    assert {"retry_count", "status", "region"}.isdisjoint(draft.choices) and draft.tried is not None
    assert len(draft.tried.events) == 40
    assert '#   retry_count = "1" (named as retry_count is, but no whole number: x)' in text
    assert "(named as region is, but 40 different values in 40 rows are too many)" in text


def test_a_pod_tells_its_service_and_a_span_its_caller(tmp_path: Path) -> None:
    rows = [
        {"ts": 1769428800, "pod": "web-7f9c6d5b4-x2x4a", "spanId": "1", "parentId": None},
        {"ts": 1769428801, "pod": "pay-7f9c6d5b4-x2x4b", "spanId": "2", "parentId": "1"},
    ]
    path = saved(tmp_path / "x.jsonl", rows)
    found, _ = read_with(draft_of(path)[0].map, path)
    assert found.select("service_name", "caller").rows() == [("web", None), ("pay", "web")]


def test_ports_and_trace_headers_are_stripped(tmp_path: Path) -> None:
    header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    path = saved(
        tmp_path / "x.jsonl", [{**CALL, "service": "pay:80", "client": "10.0.0.9:5341", "traceparent": header}]
    )
    found, _ = read_with(draft_of(path)[0].map, path)
    assert found.select("service_name", "caller", "trace_id").row(0) == ("pay", "10.0.0.9", header[3:35])


# ---- what people read of it -----------------------------------------------------------------------------------------


def test_a_required_field_that_nothing_looks_like_is_named_and_makes_no_map(tmp_path: Path) -> None:
    draft, text = of(tmp_path, [{"service": "pay", "status": 200, "duration_ms": 3}] * 2)
    assert draft.missing == ["timestamp"] and draft.tried is None
    assert "# TODO timestamp is required, and no field of the log looks like it." in text
    with pytest.raises(Problem, match=r"fields\.timestamp: missing"):
        parse(text, "draft")


def test_rows_that_lack_a_required_field_are_counted_before_anybody_asks(tmp_path: Path) -> None:
    _, text = of(tmp_path, [CALL, CALL, {**CALL, "service": None}])
    assert "# As it is, 2 become rows and 1 are rejects (1 time service_name (from service): missing)." in text


def test_fields_that_are_not_used_are_listed_with_an_example_and_no_secret(tmp_path: Path) -> None:
    odd = {
        "note": 'a "b"\n\x1b[31m\\',
        "auth": {"token": "hunter2"},
        "session": {"status": "hunter2"},
        "empty": None,
        "long": "x" * 90,
    }
    _, text = of(tmp_path, [{**CALL, **odd}])
    assert '#   note = "a \\"b\\"\\u000a\\u001b[31m\\\\"' in text and "#   auth.token = not shown" in text
    assert "hunter2" not in text and "# Without a value in every row: empty." in text and "x" * 41 not in text
    assert parse(text, "draft").rules.keys() == {"timestamp", "service_name", "node_id"}


@pytest.mark.parametrize(
    "name", ["with space", "ma\"r'k", "back\\slash", "new\nline", "ünï", "a.b", "del\x7f", "#", "="]
)
def test_a_field_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / "x.jsonl", [{"time": CALL["time"], "host": "h", name: {"service": "pay"}}])
    if name == "a.b":  # a path leads through keys without dots, and may end in one with dots
        path = saved(path, [{"time": CALL["time"], "host": "h", "a.b.service": "pay"}])
    found, _ = read_with(parse(draft_of(path)[1], "draft"), path)
    assert found["service_name"].to_list() == ["pay"]


@given(
    st.recursive(st.text() | st.booleans() | st.integers(0, 9), lambda v: st.lists(v) | st.dictionaries(st.text(), v))
)
def test_any_value_is_written_as_toml_reads_it(value: Any) -> None:
    assert tomllib.loads(f"x = {toml(value)}") == {"x": value}


def test_a_rule_is_written_with_what_it_says_and_no_more() -> None:
    assert rule(Rule(source="a")) == '"a"'
    assert rule(Rule(source="a", unit="ms", minus="b")) == '{ from = "a", unit = "ms", minus = "b" }'
    assert rule(Rule(parent="a", drop_dashes=2)) == '{ parent = "a", drop_dashes = 2 }'


# ---- other shapes ---------------------------------------------------------------------------------------------------


def test_parquet_is_drafted_from_its_columns_nested_ones_too(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    rows = {"at": [NOON, NOON], "who": [{"svc": "pay"}, {"svc": "cart"}], "took_s": [1.5, 2.0], "host": ["a", "b"]}
    pl.DataFrame(rows).write_parquet(path)
    found, rejects = read_with(parse(draft_of(path)[1], "draft"), path)
    assert found.select("service_name", "duration_ms").rows() == [("pay", 1500.0), ("cart", 2000.0)]
    assert found["timestamp"].to_list() == [NOON, NOON] and rejects.is_empty()


def test_a_document_that_holds_a_list_is_drafted_from_its_members(tmp_path: Path) -> None:
    draft, text = of(tmp_path, [{"written": "2026-01-26T13:00:00Z", "page": {"calls": [CALL, CALL, CALL]}}], "d.json")
    assert draft.shape.members == "page.calls" and 'members = "page.calls"' in text
    plain, _ = of(tmp_path, [{**CALL, "items": [{"when": "2026-01-26T13:00:00Z", "sku": 1}]}])
    assert plain.shape.members == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello\nworld\n", "2 of its first 2 records are no JSON"),
        (b"a,b\n1\n2,3,4\n", "2 of its first 2 records are no CSV (1 cells, the header has 2)"),
        (b"1\n2\n", "its records are no objects"),
        (b"null\nnull\n", "no record holds an event"),
        (b"\x7fELF\x00\x01\n\x00\x00", "binary: it holds no lines of text"),
        (b"PAR1....", "not a whole Parquet file"),
        (b"{\n", "JSON objects over several lines"),
    ],
)
def test_what_is_no_log_is_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(Problem) as problem:
        drafted(look(path, "x"))
    assert reason in str(problem.value) and "\nNext: " in str(problem.value) and problem.value.code == Exit.NOTHING


KEYS = st.sampled_from(["ts", "time", "status", "app", "host", "took", "attempt", "trace_id", "clock", "kind", "end"])
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
ANY = st.recursive(VALUES | st.integers(1_769_000_000, 1_770_000_000), lambda v: st.lists(v) | st.dictionaries(KEYS, v))


@settings(max_examples=20)
@given(st.lists(st.dictionaries(KEYS | st.text(), ANY), min_size=1, max_size=4))
def test_whatever_a_log_holds_a_draft_is_toml_and_a_map_unless_something_is_missing(
    tmp_path_factory: pytest.TempPathFactory, events: list[Any]
) -> None:
    path = tmp_path_factory.mktemp("any") / "x.jsonl"
    path.write_text("".join(json.dumps(e) + "\n" for e in events))
    try:
        draft, text = draft_of(path)
    except Problem as problem:
        assert "\nNext: " in str(problem)
        return
    assert tomllib.loads(text)["stream"] == draft.stream
    if not draft.missing:
        assert parse(text, "draft").rules == draft.map.rules, "the draft says what was tried"
        rows = len(next(iter(draft.columns.values())).texts)
        assert draft.tried is not None and len(draft.tried.events) + len(draft.tried.rejects) == rows
        assert draft.shape.members or rows == len(events)


# ---- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "path", "unit"),
    [
        ("trace_id", "traceID", None),
        ("trace_id", "trace.id", None),
        ("trace_id", "TraceId", None),
        ("request_id", "headers.x-request-id", None),
        ("duration_ms", "latency_ms", "ms"),
        ("duration_ms", "elapsedms", "ms"),
        ("duration_ms", "http.responseTimeUs", "us"),
        ("duration_ms", "duration", None),
        ("duration_ms", "event.duration", "ns"),
        ("timestamp", "StartTimeUnixNano", "ns"),
        ("node_id", "kubernetes.pod.name", None),
        ("retry_count", "attributes.http.request.resend_count", None),
    ],
)
def test_a_path_is_known_by_its_name_and_tells_its_unit(field: str, path: str, unit: str | None) -> None:
    match = matched(field, path)
    assert match and match.unit == unit


@pytest.mark.parametrize(("field", "path"), [("trace_id", "race_id"), ("duration_ms", "ms"), ("service_name", "name")])
def test_a_name_that_is_only_alike_is_none(field: str, path: str) -> None:
    assert matched(field, path) is None


def test_words_and_what_they_mean() -> None:
    assert [snake(k) for k in ("HTTPStatusCode", "x-b3-traceid", "@timestamp")] == [
        "http_status_code",
        "b3_traceid",
        "timestamp",
    ]
    assert {
        v: meaning("status", v) for v in ("DEADLINE_EXCEEDED", "Rate exceeded", "OK", "Aborted", "NOT_FOUND", "up")
    } == {
        "DEADLINE_EXCEEDED": "timeout",
        "Rate exceeded": "rejected",
        "OK": "ok",
        "Aborted": "cancelled",
        "NOT_FOUND": "error",
        "up": None,
    }
    assert meaning("side", "SPAN_KIND_CLIENT") == "client" and meaning("cache", "MISS") == "miss"
