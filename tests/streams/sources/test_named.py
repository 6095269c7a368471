"""[topics] of asynchealth.toml: which topic holds which stream, by which map; and what one message holds by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.events import STREAMS
from streams.problems import Problem
from streams.sources.decode import Reading, messages
from streams.sources.fieldmap import parse, shipped
from streams.sources.named import readings, sources

MAP = 'stream = "heartbeats"\n[fields]\nnode_id = "n"\nclient_time = "c"\nserver_time = "s"\n'


def configured(folder: Path, text: str) -> Path:
    (folder / "maps").mkdir()
    (folder / "maps" / "beats.toml").write_text(MAP)
    (folder / "maps" / "table.toml").write_text('format = "csv"\n' + MAP)
    path = folder / "asynchealth.toml"
    path.write_text(text)
    return path


def test_without_a_table_every_stream_has_its_own_topic(tmp_path: Path) -> None:
    found = sources("eu.", tmp_path / "none.toml")
    assert [(s.name, s.reading) for s in found] == [(f"eu.{s}", Reading(s)) for s in STREAMS]


def test_a_topic_is_read_by_a_shipped_map_by_a_file_or_as_our_own(tmp_path: Path) -> None:
    path = configured(tmp_path, '[topics]\notel = "otlp"\n"up.time" = "maps/beats.toml"\naudit = "write_log"\n')
    found = {s.reading.stream: (s.name, s.reading.format) for s in sources("eu.", path)}
    own = {"write_log": ("audit", ""), "signals": ("eu.signals", "")}
    assert found == {"requests": ("otel", "otlp"), "heartbeats": ("up.time", "beats"), **own}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("topics = 5", "not a table"),
        ("[topics]\na = 5", "5 is no name of a map"),
        ('[topics]\na = ""', "'' is no name of a map"),
        ('[topics]\na = "otpl"', "no map 'otpl': known are chrony_statistics, .*, otlp, requests"),
        ('[topics]\na = "maps/none.toml"', "not readable"),
        ('[topics]\na = "maps/table.toml"', "CSV needs one"),
        ('[topics]\na = "otlp"\nb = "requests"', "requests come from a already"),
        ('[topics]\na = "signals"', "signals are read from signals only"),
    ],
)
def test_what_can_not_be_read_so_is_refused_with_the_reason(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(Problem, match=reason):
        sources(path=configured(tmp_path, line))


def test_files_are_looked_for_beside_the_configuration(tmp_path: Path) -> None:
    path = configured(tmp_path, '[topics]\nbeats = "maps/beats.toml"')
    assert readings(path)["beats"].map == parse(MAP, "beats", "beats")


# ---- messages -------------------------------------------------------------------------------------------------------


def document(*spans: tuple[str, str, str, int]) -> bytes:
    """Spans: service, number, parent, kind."""
    start = 1_769_428_800 * 10**9
    times = {"startTimeUnixNano": str(start), "endTimeUnixNano": str(start + 25_000_000)}

    def one(service: str, number: str, parent: str, kind: int) -> dict[str, Any]:
        span = {"traceId": "t", "spanId": number, "parentSpanId": parent, "kind": kind, **times}
        own = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
        return {"resource": own, "scopeSpans": [{"spans": [span]}]}

    return json.dumps({"resourceSpans": [one(*span) for span in spans]}).encode()


OTLP = Reading("requests", next(m for m in shipped() if m.name == "otlp"))
WEB, PAY, INSIDE = ("web", "a", "", 3), ("pay", "b", "a", 2), ("pay", "c", "b", 1)
RECORDS = [document(WEB, PAY), document(WEB), document(PAY), document(INSIDE), document(), b"{", b"5", None, b"[]"]


def test_the_spans_of_one_message_know_of_each_other_and_those_of_another_do_not() -> None:
    found = messages(OTLP, RECORDS)
    rows = found.events.select("offset", "sub", "service_name", "caller").rows()
    assert rows == [(0, 0, "pay", "web"), (0, 1, "pay", "web"), (1, 0, "unknown", "web"), (2, 0, "pay", None)]
    assert found.rejects["offset"].to_list() == [5, 6, 8]
    assert found.tombstones == 3, "a span that is no call, a document without spans, and nothing"


@given(st.lists(st.sampled_from(RECORDS), min_size=1, max_size=12), st.integers(0, 12))
def test_what_a_message_holds_does_not_depend_on_those_it_came_with(records: list[bytes | None], cut: int) -> None:
    whole, (first, rest) = messages(OTLP, records), (messages(OTLP, records[:cut]), messages(OTLP, records[cut:]))
    at = min(cut, len(records))
    for name in ("events", "rejects"):
        parts = [getattr(first, name), getattr(rest, name).with_columns(offset=getattr(rest, name)["offset"] + at)]
        assert getattr(whole, name).sort("offset", "sub").equals(parts[0].vstack(parts[1]).sort("offset", "sub"))
    assert whole.tombstones == first.tombstones + rest.tombstones
