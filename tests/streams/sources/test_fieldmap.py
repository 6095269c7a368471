"""Field maps: each rule on its own, what can't be read, what a map may not say, and the formats that are shipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.events import Decoded
from streams.problems import Exit, Problem
from streams.sources.decode import Reading, chunks, from_fields, messages, recognise
from streams.sources.fieldmap import FieldMap, parse, shipped
from streams.sources.files import Recording, look
from streams.sources.formats import Unfolded
from streams.sources.mapping import column_text, held_in
from tests.records import ENVOY, NGINX, TRAIL
from tests.streams.tape import accounting, asynchealth

REQUEST = 'stream = "requests"\n[fields]\ntimestamp = "t"\nservice_name = "s"\nnode_id = { value = "n" }\n'
EVENT = {"t": "2026-01-26T08:00:00Z", "s": "pay"}
NOON = datetime(2026, 1, 26, 12, tzinfo=UTC)


def decoded(mapped: FieldMap, events: Sequence[Any]) -> Decoded:
    n = len(events)
    return from_fields(mapped, Unfolded([*events], [*range(n)], [0] * n))


def one(rules: str, event: dict[str, Any], name: str, stream_map: str = REQUEST) -> Any:
    done = decoded(parse(stream_map + rules, "map"), [{**EVENT, **event}])
    assert done.rejects.is_empty(), done.rejects
    return done.events[name][0]


@pytest.mark.parametrize(
    ("rule", "event", "name", "value"),
    [
        ('region = "a.b"', {"a": {"b": "eu"}}, "region", "eu"),
        ('region = ["x", "y"]', {"y": "eu"}, "region", "eu"),
        ('region = { concat = ["x", "y"], between = "/" }', {"x": "a", "y": "b"}, "region", "a/b"),
        ('region = { concat = ["x", "y"] }', {"x": "a"}, "region", None),
        ('region = { from = "x", capture = "^([^:]+)" }', {"x": "h:80"}, "region", "h"),
        ('region = { from = "x", drop_dashes = 2 }', {"x": "cart-svc-7f9-abc"}, "region", "cart-svc"),
        ('region = { from = "x", drop_dashes = 2 }', {"x": "cart-1"}, "region", "cart-1"),
        ('region = { value = "eu" }', {}, "region", "eu"),
        ('region = { from = "x", missing = "none" }', {}, "region", "none"),
        ('region = [{ from = "x", where = { y = "1|2" } }, "z"]', {"x": "a", "y": 2, "z": "b"}, "region", "a"),
        ('region = [{ from = "x", where = { y = "1|2" } }, "z"]', {"x": "a", "y": 12, "z": "b"}, "region", "b"),
        ('status = { from = "c", values = { "504" = "timeout", "5.." = "error" } }', {"c": 504}, "status", "timeout"),
        ('status = { from = "c", values = { "504" = "timeout", "5.." = "error" } }', {"c": "500"}, "status", "error"),
        ('status = { from = "c", values = { "504" = "timeout" } }', {"c": "5040"}, "status", None),
        ('status = { from = "c", values = { ".*" = "error" }, missing = "ok" }', {}, "status", "ok"),
        ('duration_ms = "d"', {"d": 12.5}, "duration_ms", 12.5),
        ('duration_ms = { from = "d", unit = "s" }', {"d": "0.123"}, "duration_ms", 123.0),
        (
            'duration_ms = { from = "e", minus = "b", unit = "ns" }',
            {"e": 10**18 + 2_500_000, "b": 10**18},
            "duration_ms",
            2.5,
        ),
        ('retry_count = "r"', {"r": "3"}, "retry_count", 3),
        ('applied = "a"', {"a": True}, "applied", True),
        ('timestamp = { from = "x", unit = "ms" }', {"x": 1769428800000}, "timestamp", NOON),
        (
            'timestamp = { from = "x", unit = "s" }',
            {"x": "1769428800.000001"},
            "timestamp",
            NOON + timedelta(microseconds=1),
        ),
        ('timestamp = { from = "x", zone = "-04:00" }', {"x": "2026-01-26 08:00:00"}, "timestamp", NOON),
        ('timestamp = { from = "x", zone = "Europe/Berlin" }', {"x": "2026-01-26T13:00:00"}, "timestamp", NOON),
        ('timestamp = { from = "x", zone = "Europe/Berlin" }', {"x": "2026-01-26T12:00:00Z"}, "timestamp", NOON),
        (
            'timestamp = { from = "x", format = "%d/%b/%Y:%H:%M:%S %z" }',
            {"x": "26/Jan/2026:07:00:00 -0500"},
            "timestamp",
            NOON,
        ),
        (
            'timestamp = { from = "x", format = "%Y-%m-%d %H:%M:%S%.f%#z" }',
            {"x": "2026-01-26 12:00:00+00"},
            "timestamp",
            NOON,
        ),
        ('timestamp = { from = "x", format = "%Y%m%d %H%M", zone = "UTC" }', {"x": "20260126 1200"}, "timestamp", NOON),
        (
            'timestamp = { from = "x", minus = "d", minus_unit = "s" }',
            {"x": "2026-01-26T12:00:01.5Z", "d": 1.5},
            "timestamp",
            NOON,
        ),
    ],
)
def test_a_rule_gives_a_value(rule: str, event: dict[str, Any], name: str, value: Any) -> None:
    base = REQUEST.replace('timestamp = "t"\n', "") if rule.startswith("timestamp") else REQUEST
    assert one(rule, event, name, base) == value


@pytest.mark.parametrize(
    ("rule", "place", "region"),
    [
        ("{ file = '([a-z]+)-logs' }", "x/eu-logs/1.json", "eu"),
        ("[{ file = '(us)' }, { file = '(eu)' }]", "eu.json", "eu"),
        ("{ file = '(us)' }", "eu.json", None),
        ("{ file = '(us)|eu' }", "eu.json", None),
        ("{ file = '(.*)', values = { 'eu.*' = 'europe' } }", "eu.json", "europe"),
    ],
)
def test_a_rule_takes_a_value_from_the_name_of_the_file(rule: str, place: str, region: str | None) -> None:
    mapped = parse(REQUEST + f"region = {rule}", "map")
    assert decoded(mapped.within(place), [EVENT]).events["region"].to_list() == [region]
    assert mapped.within(place).within("another") == mapped.within(place)


def test_a_map_says_only_what_is_other_than_in_a_shipped_one() -> None:
    mine = parse('like = "envoy"\n[fields]\ntenant = "customer"\nservice_name = { value = "pay" }', "map", "mine")
    envoy = next(m for m in shipped() if m.name == "envoy")
    assert (mine.name, mine.has, mine.digest != envoy.digest) == ("mine", envoy.has, True)
    assert {n: r for n, r in mine.rules.items() if envoy.rules.get(n) != r}.keys() == {"tenant", "service_name"}
    done = decoded(mine, [{**ENVOY, "customer": "acme"}])
    assert done.events.select("service_name", "tenant", "status").rows() == [("pay", "acme", "rejected")]


@pytest.mark.parametrize("path", ["offset", "sub", "*", "^t$", "span's own", ""])
def test_a_path_may_have_a_name_that_means_something_to_us(path: str) -> None:
    rules = f'region = "{path}"\nspan_id = "t"\nparent_span_id = "t"\ncaller = {{ parent = "{path}" }}\nseq = "n"'
    done = decoded(parse(REQUEST + rules, "map"), [{**EVENT, path: "eu", "n": 1}, {**EVENT, path: "eu", "n": "x"}])
    assert done.events.select("offset", "sub", "region", "caller").rows() == [(0, 0, "eu", "eu")]
    assert done.rejects.select("offset", "field").rows() == [(1, "seq (from n)")]


def test_a_unit_in_the_map_beats_the_rule_of_magnitude() -> None:
    number = {"t": 256824341944726}
    assert one("", number, "timestamp", REQUEST).year == 1978  # as µs, by its magnitude
    assert one("", number, "timestamp", REQUEST.replace('"t"', '{ from = "t", unit = "ns" }')).year == 1970


def test_a_hash_is_equal_exactly_where_its_parts_are() -> None:
    mapped = parse(REQUEST + 'payload_hash = { hash = ["a", "b"] }', "map")
    events: list[dict[str, Any]] = [
        {"a": {"x": 1}, "b": "2"},
        {"a": {"x": 1}, "b": "2"},
        {"a": {"x": 1}, "b": "3"},
        {"b": "2"},
    ]
    first, same, other, less = decoded(mapped, [{**EVENT, **e} for e in events]).events["payload_hash"]
    assert first == same and len({first, other, less}) == 3


def test_a_vector_clock_is_read_and_a_broken_one_is_told() -> None:
    writes = parse('stream = "write_log"\n[fields]\ntimestamp = "t"\nnode_id = "s"\nvector_clock = "c"', "map")
    good, bad = {**EVENT, "c": {"b": 2, "a": 1}}, {**EVENT, "c": {"a": "x"}}
    done = decoded(writes, [good, bad, {**EVENT, "c": '{"a": 3}'}])
    assert done.events["vector_clock"].to_list() == [
        [{"key": "a", "value": 1}, {"key": "b", "value": 2}],
        [{"key": "a", "value": 3}],
    ]
    assert done.rejects.row(0, named=True) == {
        "offset": 1,
        "sub": 0,
        "reason": "not a map of node to count",
        "field": "vector_clock (from c)",
        "raw": '{"a":"x"}',
    }


@pytest.mark.parametrize(
    ("event", "reason", "field"),
    [
        (
            {"t": "2026-01-26 08:00:00"},
            'not a time with a zone; if it has none add zone = "UTC" to the map',
            "timestamp (from t)",
        ),
        ({"t": None}, "missing", "timestamp (from t)"),
        ({"s": None}, "missing", "service_name (from s)"),
        ({"d": "soon"}, "not a number", "duration_ms (from d)"),
        ({"r": "x"}, "expected integer", "retry_count (from r)"),
        ({"r": -1}, "expected a number from 0", "retry_count (from r)"),
        ({"c": "fine"}, "expected one of cancelled, error, ok", "status (from c)"),
    ],
)
def test_what_cannot_be_read_is_a_reject_that_names_the_path(event: dict[str, Any], reason: str, field: str) -> None:
    mapped = parse(REQUEST + 'duration_ms = "d"\nretry_count = "r"\nstatus = "c"\n', "map")
    done = decoded(mapped, [EVENT, {**EVENT, **event}, EVENT])
    assert done.events["offset"].to_list() == [0, 2]
    (row,) = done.rejects.rows(named=True)
    assert row["offset"] == 1 and row["reason"].startswith(reason) and row["field"] == field


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stream = ", "map: not TOML"),
        ('stream = "calls"\n[fields]\n', "map: stream: Invalid enum value 'calls'; there are requests, heartbeats"),
        ('stream = "requests"\n[fields]\nservice_name = "s"\nnode_id = "n"', "map: fields.timestamp: missing"),
        (REQUEST + 'colour = "c"', "map: fields.colour: requests have no such field"),
        (
            REQUEST + 'region = { from = "x", to = "y" }',
            "fields.region: Object contains unknown field `to`; there are from, ",
        ),
        (REQUEST + "region = { capture = 'x' }", "one of from, value, concat, hash, file, parent, child is needed"),
        (REQUEST + 'region = { from = "x", value = "y" }', "and there are 2"),
        (REQUEST + "region = { from = 'x', capture = '(' }", "is no regular expression: missing )"),
        (REQUEST + "region = { from = 'x', capture = '(?<=a)b' }", "is no regular expression: look-around"),
        (REQUEST + "region = { from = 'x', drop_dashes = -1 }", "map: fields.region.drop_dashes: Expected `int` >= 0"),
        (
            REQUEST + "region = { from = 'x', values = 'htp' }",
            "map: fields.region.values: Expected `object`, got `str`; ",
        ),
        ("lines = 0\n" + REQUEST, "map: lines: Expected `int` >= 1"),
        ("colour = 1\n" + REQUEST, "map: Object contains unknown field `colour`; there are stream, fields"),
        (REQUEST + 'region = { from = "x", less = 1 }', "less is for counts"),
        (REQUEST + 'region = { from = "x", unit = "s" }', "unit and minus are for times and for durations"),
        (REQUEST + 'region = { from = "x", zone = "UTC" }', "zone and format are for times"),
        (REQUEST.replace('"t"', '{ from = "t", zone = "Mars" }'), "'Mars' is no zone"),
        (REQUEST.replace('"t"', '{ from = "t", unit = "m" }'), "Invalid enum value 'm'; there are s, ms, us, ns"),
        (REQUEST + 'status = { from = "c", values = "ftp" }', "Expected `object"),
        (REQUEST + "region = { file = 'web' }", "'web' has no group, in parentheses, to say which part"),
        ('like = "apache"\n' + REQUEST, "map: like: no shipped map 'apache'; there are chrony_statistics, "),
        (REQUEST + 'caller = { parent = "s" }', "need the fields span_id and parent_span_id"),
        (REQUEST.replace("[fields]", 'format = "text"\n[fields]'), "needs a pattern"),
        (REQUEST.replace("[fields]", "line = '(?P<t>x)'\n[fields]"), "no other has one"),
    ],
)
def test_a_map_that_can_do_nothing_is_refused_with_the_place_and_the_reason(text: str, message: str) -> None:
    with pytest.raises(Problem) as caught:
        parse(text, "map")
    assert message in str(caught.value) and "\nNext: write it as in: " in str(caught.value)


@given(st.integers(-(10**15), 10**15), st.sampled_from(["s", "ms", "us", "ns"]))
def test_a_number_with_a_unit_is_exact(us: int, unit: str) -> None:
    per = {"s": 10**6, "ms": 10**3, "us": 1}.get(unit)  # µs; of ns there are a thousand to one
    whole, rest = divmod(abs(us), per or 1)
    digits = len(str(per or 1)) - 1
    text = ("-" if us < 0 else "") + (f"{whole}.{rest:0{digits}d}".rstrip(".") if per else f"{abs(us)}000")
    mapped = parse(REQUEST.replace('"t"', f'{{ from = "t", unit = "{unit}" }}'), "map")
    assert decoded(mapped, [{**EVENT, "t": text}]).events["timestamp"].cast(pl.Int64)[0] == us


# ---- parents and children -------------------------------------------------------------------------------------------

SPANS = """stream = "requests"
[fields]
timestamp = "t"
service_name = "s"
node_id = "s"
span_id = "id"
parent_span_id = "of"
caller = { parent = "s" }
peer_node = { child = "s" }
"""


def test_a_row_takes_from_its_parent_and_its_child_wherever_they_stand(tmp_path: Path) -> None:
    spans = [("c", "b", "third"), ("b", "a", "second"), ("a", None, "first"), ("d", "gone", "orphan")]
    path = tmp_path / "spans.jsonl"
    filler = (json.dumps({**EVENT, "long": "x" * 10_000}).encode() + b"\n") * 500  # a block of decoded bytes apart
    rows = [json.dumps({**EVENT, "s": s, "id": i, "of": of}).encode() + b"\n" for i, of, s in spans]
    path.write_bytes(rows[0] + filler + b"".join(rows[1:]))
    reading = Reading("requests", parse(SPANS, "map"))
    parts = [d.events for _, d in chunks(Recording(look(path, "spans.jsonl")), reading)]
    assert len(parts) > 1, "else it does not cross a block"
    found = pl.concat(parts).filter(pl.col("span_id").is_not_null()).select("service_name", "caller", "peer_node")
    assert sorted(found.rows()) == [
        ("first", None, "second"),
        ("orphan", None, None),
        ("second", "first", "third"),
        ("third", "second", None),
    ]
    whole = pl.concat(parts)
    for skip in (1, 300, 502, 504):  # from where a file has grown: the parents may be behind it
        some = [*chunks(Recording(look(path, "spans.jsonl")), reading, skip)]
        assert sum(count for count, _ in some) == len(whole) - skip
        assert [*pl.concat([whole.clear(), *(d.events for _, d in some)]).rows()] == whole[skip:].rows()


# ---- files ----------------------------------------------------------------------------------------------------------


def span(kind: Any, name: str, number: str, parent: str, **attributes: Any) -> dict[str, Any]:
    own = [{"key": k, "value": {"stringValue": str(v)}} for k, v in attributes.items()]
    start = 1769428800 * 10**9
    times = {"startTimeUnixNano": str(start), "endTimeUnixNano": str(start + 25_000_000)}
    one = {"traceId": "t", "spanId": number, "parentSpanId": parent, "kind": kind, "attributes": own, **times}
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": name}}]}
    return {"resource": resource, "scopeSpans": [{"spans": [one]}]}


OTLP = {
    "resourceSpans": [
        span("SPAN_KIND_INTERNAL", "web", "i", ""),
        span("SPAN_KIND_CLIENT", "web", "a", "i", **{"http.request.resend_count": 1, "server.address": "10.1.1.1"}),
        span(2, "pay", "b", "a", **{"http.response.status_code": 503}),
    ]
}


@pytest.mark.parametrize(
    ("name", "content", "by", "rows"),
    [
        ("a.json", [NGINX], "nginx", [("pay", "10.0.0.9", "server", "timeout", 1000.0, None)]),
        ("b.log", [ENVOY], "envoy", [("pay", None, "client", "rejected", 12.0, 2)]),
        (
            "c.json",
            [{"Records": [TRAIL]}],
            "cloudtrail",
            [("s3.amazonaws.com", None, "server", "rejected", None, None)],
        ),
        (
            "d",
            [OTLP],
            "otlp",
            [("pay", "web", "client", "ok", 25.0, 1), ("pay", "web", "server", "rejected", 25.0, None)],
        ),
    ],
)
def test_a_shipped_format_is_known_by_its_fields(
    tmp_path: Path, name: str, content: list[Any], by: str, rows: list[tuple[Any, ...]]
) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"".join(json.dumps(c).encode() + b"\n" for c in content)))
    reading = recognise(look(path, name))
    assert reading.format == by
    (only,) = [d for _, d in chunks(Recording(look(path, name)), reading)]
    found = only.events.select("service_name", "caller", "side", "status", "duration_ms", "retry_count")
    assert found.rows() == rows and only.rejects.is_empty()
    assert only.events["timestamp"].unique().to_list() == [NOON]
    assert only.tombstones == (1 if by == "otlp" else 0)  # the span inside is no call


HTTP = {200: "ok", 304: "ok", 404: "error", 409: "error", 408: "timeout", 504: "timeout", 429: "rejected"}
HTTP |= {503: "rejected", 499: "cancelled", 500: "error"}


def test_a_code_of_http_has_one_meaning_in_all_maps() -> None:
    """What was refused is not ok: an ok line of a server with a key counts as an effect."""
    maps = {m.name: m for m in shipped()}
    span = {
        "spanId": "a",
        "kind": 2,
        "startTimeUnixNano": "1769428800000000000",
        "endTimeUnixNano": "1769428800000000000",
    }
    known: dict[str, list[dict[str, Any]]] = {
        "nginx": [{**NGINX, "status": code} for code in HTTP],
        "envoy": [{**ENVOY, "response_flags": "-", "response_code": code} for code in HTTP],
        "otlp": [{**span, "attributes": {"http.response.status_code": code}} for code in HTTP],
    }
    for name, events in known.items():
        done = decoded(maps[name], events)
        assert done.events["status"].to_list() == [*HTTP.values()] and done.rejects.is_empty(), name
    by_name = parse(REQUEST + 'status = { from = "c", values = "http" }', "map")
    assert decoded(by_name, [{**EVENT, "c": code} for code in HTTP]).events["status"].to_list() == [*HTTP.values()]
    failed = decoded(maps["otlp"], [{**span, "attributes": {"http.status_code": 200}, "status": {"code": 2}}])
    assert failed.events["status"].to_list() == ["error"]


@pytest.mark.parametrize("nothing", ["", "-"])
def test_variables_of_nginx_that_have_no_value_are_none_and_cost_no_row(nothing: str) -> None:
    nginx = next(m for m in shipped() if m.name == "nginx")
    empty = dict.fromkeys(("retry", "key", "http_x_timeout_ms", "upstream_cache_status", "request_id"), nothing)
    done = decoded(nginx, [{**NGINX, **empty}, {**NGINX, **empty, "retry": "2", "key": "k"}])
    assert done.rejects.is_empty(), done.rejects
    told = done.events.select("retry_count", "idempotency_key", "timeout_ms", "cache", "request_id").rows()
    assert told == [(None, None, None, None, None), (2, "k", None, None, None)]


def test_fields_called_as_our_coordinates_are_fields(tmp_path: Path) -> None:
    mapped = parse(REQUEST + 'retry_count = "offset"\nregion = "sub"\n', "map")
    done = decoded(mapped, [{**EVENT, "offset": 7, "sub": "eu"}, {**EVENT, "offset": 9, "sub": "us"}])
    said = done.events.select("offset", "sub", "retry_count", "region")
    assert said.rows() == [(0, 0, 7, "eu"), (1, 0, 9, "us")]
    path = tmp_path / "x.parquet"
    pl.DataFrame({**EVENT, "offset": [7, 9], "sub": ["eu", "us"]}).write_parquet(path)
    (only,) = [d for _, d in chunks(Recording(look(path, "x")), Reading("requests", mapped))]
    assert only.events.select(said.columns).equals(said)


def test_a_rule_that_does_not_hold_rejects_nothing() -> None:
    writes = 'stream = "write_log"\n[fields]\ntimestamp = "t"\nnode_id = "s"\n'
    mapped = parse(writes + 'finished = { from = "x", where = { kind = "end" } }', "map")
    done = decoded(mapped, [{**EVENT, "kind": "begin", "x": "no time"}, {**EVENT, "kind": "end", "x": "no time"}])
    assert done.events["offset"].to_list() == [0] and done.rejects["offset"].to_list() == [1]


def test_a_csv_file_without_a_header_is_refused_and_not_read_as_nothing(tmp_path: Path) -> None:
    path, given = tmp_path / "x.csv", tmp_path / "m.toml"
    path.write_bytes(b"".join(CSV.splitlines(keepends=True)[1:]).replace(b"pay;", b"pay;pay;"))
    given.write_text(CSV_MAP)
    done = asynchealth("replay", path, "--map", given, "--state", tmp_path / "state")
    assert done.returncode == Exit.NOTHING
    assert b"x.csv: its first line is no header: " in done.stderr + done.stdout


def test_every_shipped_map_says_what_it_is_known_by_and_how_to_unlock_what_it_may_lack() -> None:
    maps = shipped()
    assert {"cloudtrail", "envoy", "nginx", "otlp"} <= {m.name for m in maps}
    for one_of_ours in maps:
        assert one_of_ours.has and one_of_ours.unlock.keys() <= one_of_ours.rules.keys() | {"retry_count"}


CSV = b"when;who;what\n2026-01-26 12:00:00;pay;ok\n2026-01-26 12:00:01;pay;slow\n2026-01-26 12:00:02;pay\n"
CSV_MAP = """stream = "requests"
format = "csv"
[fields]
timestamp = { from = "when", zone = "UTC" }
service_name = "who"
node_id = "who"
status = "what"
"""


def test_replay_takes_a_map_says_what_it_read_and_reads_on_where_the_file_ended(tmp_path: Path) -> None:
    path, given, state = tmp_path / "x.csv", tmp_path / "m.toml", tmp_path / "state"
    path.write_bytes(CSV)
    given.write_text(CSV_MAP)
    arguments: list[str | Path] = ["replay", path, "--map", given, "--state", state]
    screen = asynchealth(*arguments).stdout.decode()
    assert "x.csv: m → requests, 1 events, 2 rejected (1 time: " in screen
    assert accounting(state)["read"] == 3
    path.write_bytes(CSV + b'2026-01-26 12:00:03;"p\na\ny";error\n')
    asynchealth(*arguments)
    assert {k: v for k, v in accounting(state).items() if v} == {"read": 4, "used": 2, "rejected": 2}
    assert "nothing new in it" in asynchealth(*arguments).stdout.decode()
    given.write_text(
        CSV_MAP.replace('status = "what"', 'status = { from = "what", values = { slow = "error", ".*" = "ok" } }')
    )
    assert "read again with another field map than before" in asynchealth(*arguments).stdout.decode()
    assert {k: v for k, v in accounting(state).items() if v} == {"read": 4, "used": 3, "rejected": 1}


def test_a_last_line_without_an_end_is_told_and_read_once_it_has_one(tmp_path: Path) -> None:
    path, given, state = tmp_path / "x.csv", tmp_path / "m.toml", tmp_path / "state"
    given.write_text(CSV_MAP)
    path.write_bytes(CSV + b"2026-01-26 12:00:03;pay;err")
    arguments: list[str | Path] = ["replay", path, "--map", given, "--state", state]
    assert asynchealth(*arguments).returncode == Exit.FINE
    assert {k: v for k, v in accounting(state).items() if v} == {"read": 4, "used": 1, "rejected": 3}
    path.write_bytes(CSV + b"2026-01-26 12:00:03;pay;error\n")
    asynchealth(*arguments)
    assert {k: v for k, v in accounting(state).items() if v} == {"read": 4, "used": 2, "rejected": 2}


def test_parquet_durations_are_ms_and_bytes_that_are_no_text_are_base64(tmp_path: Path) -> None:
    took = [timedelta(microseconds=5_250), timedelta(days=2), None]
    pl.DataFrame({"took": took, "key": [b"k1", b"\xff\x00", None]}).write_parquet(tmp_path / "odd.parquet")
    frame = pl.read_parquet(tmp_path / "odd.parquet")
    read = frame.select(column_text(p, frame.schema) for p in ("took", "key"))
    assert [float(t) for t in read[held_in("took")].drop_nulls()] == [5.25, 172_800_000]
    assert read[held_in("key")].to_list() == ["k1", "/wA=", None]


@pytest.mark.parametrize("kind", [pl.Datetime("us"), pl.Datetime("ms", "UTC")])
def test_a_day_of_parquet_that_no_calendar_has_is_a_reject(tmp_path: Path, kind: pl.DataType) -> None:
    path = tmp_path / "x.parquet"
    days = pl.Series([0, 2**63 - 1, 2 - 2**63]).cast(kind)
    pl.DataFrame({"at": days, "svc": ["pay"] * 3}).write_parquet(path)
    named = 'timestamp = { from = "at", zone = "UTC" }\nservice_name = "svc"\nnode_id = "svc"\n'
    mapped = parse(f'stream = "requests"\n[fields]\n{named}', "map")
    (only,) = [d for _, d in chunks(Recording(look(path, "x")), Reading("requests", mapped))]
    assert only.events["offset"].to_list() == [0]
    assert [raw.endswith(" beyond the calendar") for raw in only.rejects["raw"]] == [True, True]


def test_a_time_that_a_clock_shows_twice_or_never_is_a_reject_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("at,svc\n2026-03-29 02:30:00,a\n2026-10-25 02:30:00,b\n2026-10-25 03:30:00,c\nnoon,d\n")
    named = 'timestamp = { from = "at", zone = "Europe/Berlin" }\nservice_name = "svc"\nnode_id = "svc"\n'
    mapped = parse(f'stream = "requests"\nformat = "csv"\n[fields]\n{named}', "map")
    (only,) = [d for _, d in chunks(Recording(look(path, "x")), Reading("requests", mapped))]
    assert only.events["service_name"].to_list() == ["c"]
    unclear = "not one time: clocks of Europe/Berlin show it twice or never, as they are set"
    assert only.rejects["reason"].to_list() == [unclear, unclear, "not a time as the map says"]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "+02:00"])
def test_what_is_no_number_cannot_be_taken_off_and_no_clock_is_blamed(zone: str) -> None:
    start = f'{{ from = "at", zone = "{zone}", minus = "took", minus_unit = "s" }}'
    mapped = parse(
        f'stream = "requests"\n[fields]\ntimestamp = {start}\nservice_name = "svc"\nnode_id = "svc"\n', "map"
    )
    rows = [("2026-01-26 12:00:00", took) for took in ("0.5", "-", None)] + [("noon", None)]
    done = decoded(mapped, [{"at": at, "svc": "pay", "took": took} for at, took in rows])
    short = "took, which is to be taken off, is no number"
    assert done.events["offset"].to_list() == [0]
    assert done.rejects["reason"].to_list() == [short, short, "not a time as the map says"]


@pytest.mark.parametrize(
    ("attempts", "retries"), [("1", 0), ("0", 0), ("11", 10), ("4000", 3_999), (None, None), ("-", None)]
)
def test_envoys_attempts_are_retries_and_one(attempts: str | None, retries: int | None) -> None:
    (envoy,) = (m for m in shipped() if m.name == "envoy")
    line = json.dumps({**ENVOY, "upstream_request_attempt_count": attempts}).encode()
    assert messages(Reading(envoy.stream, envoy), [line]).events["retry_count"].to_list() == [retries]


def test_a_date_of_parquet_that_no_calendar_has_is_a_text() -> None:
    frame = pl.DataFrame({"on": pl.Series([0, 2**31 - 1], dtype=pl.Int32).cast(pl.Date)})
    read = frame.select(column_text("on", frame.schema))[held_in("on")]
    assert read.to_list() == ["1970-01-01", "2147483647 beyond the calendar"]


def test_parquet_columns_are_mapped_nested_ones_too(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    rows = {"at": [NOON, None], "who": [{"svc": "pay"}, {"svc": "cart"}], "took": [12.5, 1.0]}
    pl.DataFrame(rows, schema_overrides={"at": pl.Datetime("ns", "Europe/Berlin")}).write_parquet(path)
    named = 'timestamp = "at"\nservice_name = "who.svc"\nnode_id = "who.svc"\nregion = "not.there"\n'
    mapped = parse(f'stream = "requests"\n[fields]\n{named}duration_ms = {{ from = "took", unit = "s" }}', "map")
    (only,) = [d for _, d in chunks(Recording(look(path, "x")), Reading("requests", mapped))]
    assert only.events.select("timestamp", "service_name", "duration_ms", "region").rows() == [
        (NOON, "pay", 12_500.0, None)
    ]
    assert only.rejects["field"].to_list() == ["timestamp (from at)"]


def test_our_own_schema_may_come_as_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"timestamp,service_name,node_id,status,retry_count\n2026-01-26T12:00:00Z,pay,p-1,ok,\n")
    reading = recognise(look(path, "x.csv"))
    (only,) = [d for _, d in chunks(Recording(look(path, "x.csv")), reading)]
    assert reading.stream == "requests"
    assert only.events.select("timestamp", "status", "retry_count").rows() == [(NOON, "ok", None)]
    path.write_bytes(b"service_name,status\npay,ok\n")
    with pytest.raises(Problem, match="has no column timestamp, node_id, which requests need"):
        recognise(look(path, "x.csv"))
