"""What a detector can see, from which fields are filled: it runs, sees less, or is blind, and what would change it."""

from __future__ import annotations

import json

import msgspec
import polars as pl
import pytest

from detectors.detector import catalog
from detectors.events import SCHEMA
from streams.coverage import MAPPED, OWN, filled_fields, format_of, seen, unlocks
from streams.sources.decode import from_fields, unfold_of
from streams.sources.fieldmap import shipped
from streams.sources.formats import of_messages
from tests.records import ENVOY

STORM = catalog()["retry_storm"].detector
CLOCKS = catalog()["clock_skew"].detector


@pytest.mark.parametrize(
    ("fields", "state", "wanted"),
    [
        ({"retry_count", "caller", "request_id"}, "runs", []),
        ({"retry_count"}, "degraded", ["request_id", "caller"]),
        ({"payload_hash", "caller", "request_id"}, "degraded", ["retry_count"]),
        ({"caller"}, "blind", ["retry_count or payload_hash"]),
    ],
)
def test_a_detector_runs_sees_less_or_is_blind_by_the_fields_that_are_filled(
    fields: set[str], state: str, wanted: list[str]
) -> None:
    filled = {("requests", f): (10, 10 if f in fields | {"timestamp"} else 0) for f in SCHEMA["requests"]}
    found = seen(STORM, filled)
    assert (found.state, found.wanted) == (state, wanted)


def test_without_its_stream_it_is_blind_for_want_of_the_stream() -> None:
    assert seen(STORM, {("heartbeats", "arrival"): (10, 10)}).missing == ("requests",)


def test_fields_that_do_not_help_leave_it_blind_where_nothing_was_measured() -> None:
    filled = {("requests", "span_id"): (10, 10)}
    assert seen(CLOCKS, filled).state == "runs"
    assert seen(CLOCKS, filled, lambda table: table != "clocks").missing == CLOCKS.nothing_without


def test_an_arrival_that_event_time_stands_in_for_is_none() -> None:
    shape = dict.fromkeys(SCHEMA["requests"], pl.lit(None, dtype=pl.String))
    rows = pl.DataFrame({"told": [True, False, True]}).with_columns(**{**shape, "arrival": pl.lit(1)})
    assert {f: (n, filled) for f, n, filled in filled_fields("requests", rows) if filled} == {"arrival": (3, 2)}


def test_each_format_in_use_unlocks_with_its_own_line() -> None:
    blind = [seen(STORM, {("requests", "status"): (10, 10)})]
    found = unlocks(blind, {"requests": {"nginx", "envoy", "otlp", OWN, MAPPED}, "heartbeats": {"nginx"}})
    lines = {u.format: u.line for u in found}
    assert "$http_x_retry_count" in lines["nginx"] and "%UPSTREAM_REQUEST_ATTEMPT_COUNT%" in lines["envoy"]
    assert "resend_count" in lines["otlp"] and lines[OWN] == lines[MAPPED] == ""
    assert {u.field for u in found} == {"retry_count"}


def test_what_unlocks_retries_of_envoy_takes_the_first_attempt_for_no_retry() -> None:
    (envoy,) = (m for m in shipped() if m.name == "envoy")
    (name,) = json.loads(envoy.unlock["retry_count"].partition("json_format: ")[2])
    unsaid = {k: v for k, v in ENVOY.items() if k != "upstream_request_attempt_count"}
    logged = [json.dumps({**unsaid, name: attempt}).encode() for attempt in (1, 2)]
    found = from_fields(envoy, of_messages(unfold_of(envoy), logged))
    assert found.events["retry_count"].to_list() == [0, 1]


def test_a_map_is_known_by_what_it_reads_and_not_by_what_it_says_to_people() -> None:
    for one in shipped():
        assert format_of(one.digest) == one.name
        assert msgspec.structs.replace(one, unlock={"caller": "another line"}).digest == one.digest
        assert msgspec.structs.replace(one, nothing=["?"]).digest != one.digest
    assert format_of("") == OWN and format_of("0123") == MAPPED


def test_a_field_that_a_detector_wants_is_one_of_its_streams() -> None:
    for name, entry in catalog().items():
        known = {f for s in entry.detector.reads.streams for f in SCHEMA[s]}
        wanted = {f for n in (*entry.detector.needs, *dict(entry.detector.lacks)) for f in n.split(" or ")}
        assert wanted <= known, name
