"""Records of each format: what they hold, where they end, and that a bad one costs nobody else anything."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.sources.formats import (
    Cells,
    Paths,
    Unfold,
    grouped,
    of_file,
    of_json,
    of_messages,
    of_otlp,
    of_text,
    quoted,
)

SPAN = {"traceId": "t1", "spanId": "s1", "kind": 3, "startTimeUnixNano": "1", "attributes": []}
SERVICE = [{"key": "service.name", "value": {"stringValue": "cart"}}, {"key": "n", "value": {"intValue": "7"}}]
OTLP = {"resourceSpans": [{"resource": {"attributes": SERVICE}, "scopeSpans": [{"spans": [SPAN, SPAN]}]}]}


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("unfold", "record", "events"),
    [
        (of_json(), b'{"a": 1}', [{"a": 1}]),
        (of_json(), b'[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
        (of_json(), b"null", []),
        (of_json("Records"), b'{"Records": [{"a": 1}, {"a": 2}]}', [{"a": 1}, {"a": 2}]),
        (of_json("Records"), b'{"a": 1}', [{"a": 1}]),
        (of_json("payload"), b'{"schema": 1, "payload": {"a": 1}}', [{"a": 1}]),
        (of_json("payload"), b'{"schema": null, "payload": null}', []),
        (of_json("payload"), b"null", []),
        (of_json("d.r"), b'{"d": {"r": []}}', []),
        (of_text(r"(?P<x>\d+) (?P<y>\w+)"), b"12 ab\r", [{"x": "12", "y": "ab"}]),
        (Cells(",", ["a", "b"]).unfold, b'1,"x, ""y""\nz"', [{"a": "1", "b": 'x, "y"\nz'}]),
        (Cells(",", ["a", "b"]).unfold, b"1,", [{"a": "1", "b": None}]),
        (of_otlp, encoded({"resourceLogs": []}), []),
    ],
)
def test_a_record_holds_events(unfold: Unfold, record: bytes, events: list[Any]) -> None:
    assert unfold(record) == events


def test_a_span_has_its_attributes_and_its_resource_as_maps() -> None:
    for document in (OTLP, OTLP["resourceSpans"][0]):
        first, second = of_otlp(encoded(document))
        assert first == second == {**SPAN, "attributes": {}, "resource": {"service.name": "cart", "n": "7"}}


def reads(unfold: Unfold, record: bytes) -> bool:
    return not of_messages(unfold, [record]).bad


@pytest.mark.parametrize(
    ("unfold", "record", "reason"),
    [
        (of_otlp, b"[]", "not OTLP: no object with resourceSpans"),
        (of_otlp, b'{"resourceSpans": 5}', "not OTLP"),
        (of_json(), b'{"a":', "not JSON: "),
        (of_json(), b"\xff", "not JSON: "),
        (of_json(), b"[" * 100_000, "nested too deeply"),
        (of_text("a+"), b"b", "the line does not match the map's pattern"),
        (of_text("a+"), b"\xff", "not UTF-8"),
        (Cells(",", ["a", "b"]).unfold, b"1,2,3", "3 cells, the header has 2"),
        (Cells(",", ["a", "b"]).unfold, b'1,"2', "not CSV: "),
    ],
)
def test_a_bad_record_is_told_with_its_reason_and_costs_no_other(unfold: Unfold, record: bytes, reason: str) -> None:
    good = next(g for g in (encoded(OTLP), b"[1, 2]", b"aa", b"1,2") if reads(unfold, g))
    alone = len(unfold(good))
    end, found = of_file(unfold, [good, record, good])
    assert [(offset, why[: len(reason)]) for offset, _, why, _, _ in found.bad] == [(alone, reason)]
    assert found.offsets == [*range(alone), *range(alone + 1, end)] and end == 2 * alone + 1
    messages = of_messages(unfold, [good, record, good], 5)
    assert {b[0] for b in messages.bad} == {6} and {*messages.offsets} == {5, 7}


def test_a_document_may_hold_more_events_than_a_message_can() -> None:
    many = encoded([{"i": i} for i in range(3_000)])
    end, found = of_file(of_json(), [many, b"null", many])
    assert end == 6_001 and len(found.events) == 6_000 and found.empty == [3_000]
    assert [*zip(found.offsets, found.subs, strict=True)][-1] == (6_000, 0)
    messages = of_messages(of_json(), [many, b"null"])
    assert len(messages.events) == 2_048 and messages.subs[-1] == 2_047
    assert len(messages.bad) == 3_000 - 2_048 and messages.empty == [1]


def test_events_from_a_number_on() -> None:
    _, found = of_file(of_json(), [b"1", b"null", b"oops", b"2", b"null"])
    rest = found.since(3)
    assert (rest.events, rest.offsets, rest.empty, rest.bad) == ([2], [3], [4], [])
    assert found.since(0).bad == found.bad != []


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=2)))
def test_what_is_written_as_csv_is_read_as_it_was(rows: list[list[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    blocks = [text.getvalue().encode().split(b"\n")[:-1]]
    unfold = Cells(",", ["a", "b"]).unfold
    found = [event for block in quoted(blocks) for record in block for event in unfold(record)]
    assert [[e["a"], e["b"]] for e in found] == [[cell or None for cell in row] for row in rows]


@given(st.lists(st.lists(st.binary(max_size=2), max_size=5), max_size=5), st.integers(1, 4))
def test_lines_are_grouped_across_blocks(blocks: list[list[bytes]], lines: int) -> None:
    every = [line for block in blocks for line in block]
    wanted = [b"\n".join(every[i : i + lines]) for i in range(0, len(every), lines)]
    assert [record for block in grouped(blocks, lines) for record in block] == wanted


@pytest.mark.parametrize(
    ("line", "delimiter", "header"),
    [
        (b"a,b,c", ",", ["a", "b", "c"]),
        (b"time;node id;x,y", ";", ["time", "node id", "x,y"]),
        (b'"a, b"\tc', "\t", ["a, b", "c"]),
    ],
)
def test_a_header_is_known(line: bytes, delimiter: str, header: list[str]) -> None:
    assert Cells.of(line) == Cells(delimiter, header)


@pytest.mark.parametrize("line", [b"one", b"1,2", b"a,a", b'{"a":1,"b":2}', b"[1,2]", b""])
def test_what_is_no_header_is_none(line: bytes) -> None:
    assert Cells.of(line) is None


@pytest.mark.parametrize(
    ("value", "path", "found"),
    [
        ({"a": {"b": 1}}, "a.b", 1),
        ({"attributes": {"http.request.resend_count": 2}}, "attributes.http.request.resend_count", 2),
        ({"a.b": 1, "a": {"b": 2}}, "a.b", 1),
        ({"a": 1}, "a.b", None),
        ({}, "a", None),
        ([1], "0", None),
        ({"a": None}, "a", None),
    ],
)
def test_a_path_leads_to_a_value_whose_key_may_hold_dots(value: Any, path: str, found: Any) -> None:
    assert Paths([path]).of(value).get(path) == found


ABSENT = object()


def at(value: Any, path: str) -> Any:
    """What one path leads to, key by key: the whole rest of it may be one."""
    while isinstance(value, dict):
        if path in value:
            return value[path]
        key, dot, path = path.partition(".")
        if not dot or key not in value:
            return ABSENT
        value = value[key]
    return ABSENT


KEYS = st.lists(st.sampled_from(["a", "b", ""]), min_size=1, max_size=4).map(".".join)
DOCUMENTS = st.recursive(
    st.sampled_from([None, 0, "x", [{"a": 1}]]), lambda inside: st.dictionaries(KEYS, inside, max_size=4), max_leaves=12
)


@given(st.dictionaries(KEYS, DOCUMENTS), st.lists(KEYS, min_size=1))
def test_paths_in_one_walk_lead_where_each_leads_alone(document: dict[str, Any], paths: list[str]) -> None:
    alone = {path: value for path in paths if (value := at(document, path)) is not ABSENT}
    assert Paths(paths).of(document) == alone


def test_some_random_paths_lead_somewhere() -> None:
    document = {"a.b": {"": 1}, "a": {"b": {"c": 2}, "b.c": 3}, "b": 4}
    assert Paths(["a.b", "a.b.c", "a.b.", "b", "b.a"]).of(document) == {"a.b": {"": 1}, "a.b.c": 3, "b": 4}
    assert Paths(["." * 50_000]).of({"." * 50_000: 5}) == {"." * 50_000: 5}


def records_of(lines: list[bytes]) -> list[bytes]:
    return [record for block in quoted([lines[:3], lines[3:]]) for record in block]


def test_a_stray_quote_costs_its_own_line_and_no_row_after_it() -> None:
    rows = [b'"%d",b' % n for n in range(40)]
    at_the_end = [b"a,b", *rows, b'"open,b', *rows]
    assert records_of(at_the_end) == at_the_end
    long = [b"a,b", b'"open,b', *rows * 3_000, b'"two', b'lines",b']
    assert records_of(long) == [*long[:-2], b'"two\nlines",b']


def test_a_cell_of_more_than_a_thousand_lines_is_one_cell_and_the_rows_after_it_are_read() -> None:
    cell = [b'"1', *(b"line %d" % n for n in range(2_000)), b'end",b']
    records = records_of([b"a,b", *cell, b"1,b", b"2,b"])
    assert records == [b"a,b", b"\n".join(cell), b"1,b", b"2,b"]
    assert Cells(",", ["a", "b"]).unfold(records[1])[0]["a"].count("\n") == 2_001


def test_such_a_cell_whose_lines_are_rows_themselves_costs_its_first_line_with_the_reason() -> None:
    lines = [b"a,b", b'"1', *(b"%d,b" % n for n in range(1_500)), b'end",b', b"1,b", b"2,b"]
    records = records_of(lines)
    assert records == lines
    _, found = of_file(Cells(",", ["a", "b"]).unfold, records[1:])
    assert len(found.events) == 1_503, "its last line is one, too"
    assert {reason for _, _, reason, *_ in found.bad} == {
        "not CSV: a quote opens and does not close within 1,000 lines"
    }


def test_a_mark_of_inches_opens_nothing() -> None:
    lines = [b"a,b", b'5" disk,b', b"1,b", b'6" disk,b', b"2,b", b'7" disk,b']
    cells = Cells(",", ["a", "b"])
    wanted = ['5" disk', "1", '6" disk', "2", '7" disk']
    assert [e["a"] for r in records_of(lines)[1:] for e in cells.unfold(r)] == wanted


def test_only_a_line_end_ends_a_line_of_csv() -> None:
    assert Cells(",", ["a", "b"]).unfold("x\u2028y,\x0c\x85".encode()) == [{"a": "x\u2028y", "b": "\x0c\x85"}]


@pytest.mark.parametrize("line", [b"a,b" + b"x" * (1 << 24), b"a,b\rc,d"])
def test_what_csv_cannot_split_is_no_header(line: bytes) -> None:
    assert Cells.of(line) is None
