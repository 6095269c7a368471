"""A recording that comes again counts once, whatever it is called, packed or written as, and however it has grown."""

from __future__ import annotations

import gzip
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fastavro import parse_schema, writer
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.detector import Settings
from streams.outcome import Outcome
from streams.replay import rebuild, replay
from streams.sources.fieldmap import parse
from streams.sources.source import Recorded
from tests.streams.tape import T0, accounting, contents, differing, lines, request, storm, write

Rows = Sequence[dict[str, Any]]
AVRO = {str: "string", float: "double", int: "long"}
SAID = ("source", "reason", "field", "raw")  # of rejects formats have words of their own


def run(folder: Path, *paths: Path, **options: Any) -> Outcome:
    return replay([str(p) for p in paths], folder, Settings(), **options)


def parquet(rows: Rows, **how: Any) -> bytes:
    out = io.BytesIO()
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(out, **how)
    return out.getvalue()


def avro(rows: Rows) -> bytes:
    kinds = {name: type(value) for row in rows for name, value in row.items()}
    fields = [{"name": n, "type": ["null", AVRO[kind]], "default": None} for n, kind in kinds.items()]
    out = io.BytesIO()
    writer(out, parse_schema({"type": "record", "name": "Row", "fields": fields}), rows)
    return out.getvalue()


FORMS: dict[str, Callable[[Rows], bytes]] = {
    "jsonl": lines,
    "jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "parquet": parquet,
    "avro": avro,
}


def as_form(path: Path, form: str, rows: Rows) -> Path:
    file = path.with_name(f"{path.name}.{form}")
    file.write_bytes(FORMS[form](rows))
    return file


KINDS: dict[str, dict[str, Any]] = {
    "used": {},
    "late": {"arrival": 40.0},
    "implausible": {"arrival": -100.0},
    "rejected": {"duration_ms": -1},
    "repeated": {"event_id": "once"},
    "slip": {"arrival": 9e6},
}


def rows_of(kinds: Sequence[str], arrivals: bool) -> list[dict[str, Any]]:
    """A call each ten seconds; the first has the event_id that repeats."""
    made = []
    for i, kind in enumerate(["repeated", *kinds]):
        row = request(200 * i, duration_ms=0, weight=1 + i % 2) | KINDS[kind]
        row["arrival"] = row["timestamp"] + (row["arrival"] if "arrival" in KINDS[kind] else 1.0)
        made.append(row if arrivals else {k: v for k, v in row.items() if k != "arrival"})
    return made


@settings(max_examples=4)
@given(st.data(), st.lists(st.sampled_from([*KINDS]), min_size=2, max_size=20), st.booleans())
def test_a_recording_that_has_grown_in_any_form_is_as_if_read_at_once(
    data: st.DataObject, kinds: list[str], arrivals: bool
) -> None:
    rows = rows_of(kinds, arrivals)
    cut = data.draw(st.integers(1, len(rows)), "rows of the first file")
    first, then = (data.draw(st.sampled_from([*FORMS]), name) for name in ("first", "then"))
    together = data.draw(st.booleans(), "in one run")
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        short = as_form(tmp / "requests-a", first, rows[:cut])
        whole = as_form(tmp / "requests-b", then, rows)
        if together:
            run(tmp / "again", short, whole)
        else:
            run(tmp / "again", short)
            run(tmp / "again", whole)
        run(tmp / "again", short)
        run(tmp / "once", as_form(tmp / "requests", first, rows))
        assert accounting(tmp / "again") == accounting(tmp / "once")
        assert accounting(tmp / "once")["read"] == len(rows)
        assert differing(contents(tmp / "again"), contents(tmp / "once"), but=SAID) == []


def test_a_storm_that_goes_on_in_a_parquet_file_written_again_is_one_storm(tmp_path: Path) -> None:
    rows = storm()
    short, whole = (
        as_form(tmp_path / name, "parquet", rows[:n]) for name, n in (("requests-a", 5_813), ("requests", 8_000))
    )
    run(tmp_path / "again", short, whole)
    run(tmp_path / "once", whole)
    once = contents(tmp_path / "once")
    assert len(once["findings"]) == 1
    assert accounting(tmp_path / "again") == {"read": 8_000, "used": 8_000}
    assert differing(contents(tmp_path / "again"), once, but=["source"]) == []


@pytest.mark.parametrize("first", FORMS)
def test_the_same_rows_in_another_form_count_nothing(tmp_path: Path, first: str) -> None:
    rows = storm(300)
    a = as_form(tmp_path / "requests-a", first, rows)
    run(tmp_path / "state", a)
    once = contents(tmp_path / "state")
    same = [as_form(tmp_path / "requests-b", form, rows) for form in FORMS if form != first]
    some = [as_form(tmp_path / "requests-c", form, rows[:120]) for form in FORMS if form != "jsonl.gz"]
    notes = [f"{b.name}: read before as {a.name}, nothing new in it" for b in same]
    notes += [f"{c.name}: a shorter copy of {a.name}, nothing new in it" for c in some]
    assert run(tmp_path / "state", *same, *some).notes == notes
    assert differing(contents(tmp_path / "state"), once) == []


@pytest.mark.parametrize(
    "how",
    [
        {"row_group_size": 70},
        {"compression": "uncompressed"},
        {"compression": "gzip", "row_group_size": 10, "statistics": False},
    ],
)
def test_a_parquet_file_may_be_written_again_in_any_way(tmp_path: Path, how: dict[str, Any]) -> None:
    """Other row groups, another compression, other types, columns in another order and one that nobody reads."""
    rows = storm(300)
    run(tmp_path / "state", write(tmp_path / "requests.parquet", parquet(rows[:200])))
    turned = [{"shard": i % 7, **dict(reversed(row.items()))} for i, row in enumerate(rows)]
    run(tmp_path / "state", write(tmp_path / "requests.parquet", parquet(turned, **how)))
    assert accounting(tmp_path / "state") == {"read": 300, "used": 300}
    rebuild(tmp_path / "state", Settings())
    assert accounting(tmp_path / "state") == {"read": 300, "used": 300}


MAP = """stream = "requests"
format = "{kind}"
[fields]
timestamp = {{ from = "at", unit = "s" }}
arrival = {{ from = "seen", unit = "s" }}
service_name = "callee"
caller = "caller"
node_id = "pod"
side = "side"
status = "status"
retry_count = "tries"
duration_ms = "took"
"""
OTHER = {"timestamp": "at", "arrival": "seen", "service_name": "callee", "node_id": "pod", "retry_count": "tries"}


@pytest.mark.parametrize("kind", ["json", "csv", "avro"])
def test_rows_that_a_map_makes_are_the_same_rows(tmp_path: Path, kind: str) -> None:
    rows = storm(300)
    own = write(tmp_path / "requests.jsonl", lines(rows[:200]))
    foreign = [{OTHER.get(n, n if n != "duration_ms" else "took"): v for n, v in row.items()} for row in rows]
    if kind == "csv":
        content = pl.DataFrame(foreign).write_csv().encode()
    else:
        content = avro(foreign) if kind == "avro" else lines(foreign)
    other = write(tmp_path / "orders.log", content)
    maps = [parse(MAP.format(kind=kind), "map", "orders")]
    run(tmp_path / "state", own)
    run(tmp_path / "state", other, maps=maps)
    for again in (own, other):
        (note,) = run(tmp_path / "state", again, maps=maps if again == other else ()).notes
        assert note.endswith("nothing new in it")
    run(tmp_path / "once", write(tmp_path / "requests-all.jsonl", lines(rows)))
    assert differing(contents(tmp_path / "state"), contents(tmp_path / "once"), but=["source"]) == []


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_two_that_share_a_beginning_are_two_and_a_note_says_so(tmp_path: Path, form: str) -> None:
    """Said once, when the second is read; what changed within a file that has grown makes it another, too."""
    rows = storm(300)
    a = as_form(tmp_path / "requests-a", "jsonl", rows[:200])
    b = as_form(tmp_path / "requests-b", form, [*rows[:120], *rows[200:]])
    run(tmp_path / "state", a)
    (note, *_) = run(tmp_path / "state", b).notes
    assert note == (
        f"{b.name}: its first 120 records are in {a.name}, too, then the two differ: events without an event_id count "
        f"twice\nNext: if they are one log, asynchealth replay PATH… --fresh without {b.name} or {a.name}"
    )
    assert accounting(tmp_path / "state") == {"read": 420, "used": 420}
    assert all(n.endswith("nothing new in it") for n in run(tmp_path / "state", a, b).notes)
    run(tmp_path / "state", as_form(tmp_path / "requests-c", "parquet", [*rows[:120], *rows[200:], request(300)]))
    assert accounting(tmp_path / "state") == {"read": 421, "used": 421}


def test_the_same_rows_are_read_again_where_another_column_is_their_arrival(tmp_path: Path) -> None:
    rows = storm(300)
    a, b = (as_form(tmp_path / "requests", form, rows) for form in ("jsonl", "parquet"))
    run(tmp_path / "again", a)
    outcome = run(tmp_path / "again", b, arrival="timestamp")
    assert outcome.notes == [f"{b.name}: read again with --arrival timestamp; before it was arrival"]
    run(tmp_path / "once", b, arrival="timestamp")
    assert differing(contents(tmp_path / "again"), contents(tmp_path / "once")) == []


def test_a_line_that_has_no_end_yet_is_read_when_the_rest_comes_as_parquet(tmp_path: Path) -> None:
    rows = storm(40)
    run(tmp_path / "state", write(tmp_path / "requests.jsonl", lines(rows[:30])[:-20]))
    assert accounting(tmp_path / "state") == {"read": 30, "used": 29, "rejected": 1}
    run(tmp_path / "state", as_form(tmp_path / "requests", "parquet", rows))
    assert accounting(tmp_path / "state") == {"read": 40, "used": 40}
    run(tmp_path / "state", write(tmp_path / "requests-b.jsonl", lines([*rows, request(40)])[:-20]))
    assert accounting(tmp_path / "state") == {"read": 41, "used": 40, "rejected": 1}


def test_writes_are_compared_in_all_that_they_say(tmp_path: Path) -> None:
    """Two vector clocks that differ in one count tell two recordings apart."""
    clock = {"node_id": "a", "entity_id": "e", "vector_clock": {"a": 1, "b": 2}}
    writes = [{"timestamp": T0 + i, "arrival": T0 + i + 1.0, **clock} for i in range(50)]
    run(tmp_path / "state", write(tmp_path / "write_log.jsonl", lines(writes[:40])))
    pairs = [{"key": "a", "value": 1}, {"key": "b", "value": 2}]
    run(tmp_path / "state", as_form(tmp_path / "write_log", "parquet", [w | {"vector_clock": pairs} for w in writes]))
    assert accounting(tmp_path / "state") == {"read": 50, "used": 50}
    other = [*writes[:49], writes[49] | {"vector_clock": {"a": 1, "b": 3}}]
    run(tmp_path / "state", write(tmp_path / "write_log-b.jsonl", lines(other)))
    assert accounting(tmp_path / "state") == {"read": 100, "used": 100}


def test_canaries_are_no_rows_to_compare(tmp_path: Path) -> None:
    signal = {"timestamp": T0, "subject": "payment", "kind": "change", "name": "deploy"}
    canary = signal | {"tenant": "asynchealth", "kind": "gauge", "value": 1}
    rows = [canary, *(signal | {"timestamp": T0 + i} for i in range(20)), canary]
    for form, many in (("jsonl", 10), ("jsonl.gz", 10), ("parquet", 22)):
        run(tmp_path / "state", as_form(tmp_path / "signals", form, rows[:many]))
        assert accounting(tmp_path / "state") == dict.fromkeys(("read", "used"), min(many - 1, 20))


def test_what_a_recording_is_known_by_is_the_same_in_every_form(tmp_path: Path) -> None:
    """Stored in states, so it may not change unless the schema does."""
    heads = set()
    for form in FORMS:
        source = Recorded(as_form(tmp_path / "requests", form, storm(3)), "requests")
        heads.add(source.head)
    assert heads == {"a85e4c09be68dd3d1e16481d300dd3c1"}
