"""Narrow: whatever was read before, a batch is read as the whole struct would read it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.events import STREAMS, Request, decode_json
from detectors.narrow import Narrow
from tests.events import as_json, rows

REQUEST = {"timestamp": 1769414400, "service_name": "payment", "node_id": "payment-1"}


def request_with(**more: Any) -> bytes:
    return json.dumps(REQUEST | more).encode()


@pytest.mark.parametrize("stream", STREAMS)
@settings(max_examples=15)
@given(data=st.data())
def test_each_batch_is_read_as_the_whole_struct_reads_it(stream: str, data: st.DataObject) -> None:
    narrow, whole = Narrow(STREAMS[stream]), msgspec.json.Decoder(STREAMS[stream])
    for some in data.draw(st.lists(rows(stream), min_size=1, max_size=3)):
        records = [as_json(stream, row) for row in some]
        for got, record in zip(narrow.decode(records), records, strict=True):
            want = msgspec.structs.asdict(whole.decode(record))
            have = msgspec.structs.asdict(got)
            assert have == {n: want[n] for n in have}
            assert all(want[f.name] == f.default for f in narrow.fields.values() if f.name not in have)


def test_a_field_is_in_the_struct_once_a_record_has_it() -> None:
    narrow = Narrow(Request)
    narrow.decode([request_with()])
    assert set(narrow.struct.__struct_fields__) == REQUEST.keys()
    narrow.decode([request_with(), request_with(region="eu")])
    assert set(narrow.struct.__struct_fields__) == {*REQUEST, "region"}


def test_fields_that_are_none_of_ours_are_passed_over() -> None:
    narrow = Narrow(Request)
    (got,) = narrow.decode([request_with(colour="red")])
    assert (type(got), got.service_name) == (Request, "payment")
    assert narrow.decode([request_with()]) == [msgspec.json.decode(request_with(), type=Request)]


def test_a_bad_record_after_a_new_field_is_a_reject_and_the_others_stay() -> None:
    records = [request_with(), request_with(caller="shop"), request_with(status="fine"), request_with(seq=3)]
    found = decode_json("requests", records)
    assert found.rejects.select("offset", "field").rows() == [(2, "status")]
    assert found.events.select("offset", "caller", "seq").rows() == [(0, None, None), (1, "shop", None), (3, None, 3)]
