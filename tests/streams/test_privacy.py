"""A mark stands in every text of every log; once [privacy] names the fields it is in no file and on no screen."""

from __future__ import annotations

import gzip
import io
import random
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import fastavro
import msgspec
import polars as pl
import pytest

from detectors.detector import Settings
from detectors.events import SCHEMA, STREAMS, Decoded, decode_json
from streams.catalog import all_detectors
from streams.cli.map import map_
from streams.live.canary import signal
from streams.live.numbered import unpack
from streams.live.reduce import Point, Poisoned, Reducer
from streams.privacy import HASHED, KEY, Privacy, privacy
from streams.problems import Problem
from streams.replay import replay
from streams.settings import load, private
from streams.sources import decode, fieldmap
from streams.sources.decode import Reading, messages
from streams.sources.files import READABLE
from streams.sources.named import sources
from streams.sources.topics import Log, _openings
from tests.cases import Case
from tests.streams.landing.pieces import landed
from tests.streams.live.chain import Chain, until
from tests.streams.tape import T0, asked, lines

MARK = "MARK-7f3a"
SECRET = "a key that nobody else has"
DROP = ["requests.error", "signals.text", "cache", "duration_ms", "heartbeats.timestamp", "write_log.op"]
NAMES = sorted({n for s in STREAMS for n, kind in SCHEMA[s].items() if kind == pl.String()})
WORDS = {"side", "status", "cache", "kind"}  # one of a few each
HASH = [n for n in NAMES if n not in WORDS | {"error", "text", "op"}]
CONFIG = f"[privacy]\ndrop = {DROP}\nhash = {HASH}\nkey_file = 'privacy.key'\n"


def text(name: str, i: int = 0) -> str:
    return f"{name}-{MARK}-{i}"


def every_text(stream: str, i: int) -> dict[str, str]:
    """Each text of the schema with the mark, in one of three values."""
    own = {n: text(n, i % 3) for n, kind in SCHEMA[stream].items() if kind == pl.String() and n not in WORDS}
    return {**own, "event_id": text("event", i), "tenant": text("tenant"), "environment": text("environment")}


def request(i: int) -> dict[str, Any]:
    """Pairs of one key, each applied: every second one is a double effect."""
    at = {"timestamp": T0 + i, "arrival": T0 + i + 1}
    effect = {"idempotency_key": text("key", i // 2), "payload_hash": text("same"), "applied": True, "status": "ok"}
    names = {"service_name": text("pay"), "caller": text("gate"), "node_id": text("node", i % 2)}
    return every_text("requests", i) | at | effect | names | {"duration_ms": 20, "ssn": MARK}


def record(i: int) -> dict[str, Any]:
    """Two nodes write one entity, and neither knows of the other."""
    mine = text("node", i % 2)
    at = {"timestamp": T0 + i, "arrival": T0 + i + 1, "node_id": mine, "vector_clock": {mine: i // 2 + 1}}
    own = dict.fromkeys(("event_id", "request_id", "idempotency_key"), text("write", i))
    return every_text("write_log", 0) | at | own


def beat(i: int) -> dict[str, Any]:
    times = {"client_time": T0 + i, "server_time": T0 + i + 0.01, "timestamp": T0 + i, "arrival": T0 + i + 1}
    return every_text("heartbeats", i) | times | {"node_id": text("node", i % 2), "observer": text("node", 2)}


def said(i: int) -> dict[str, Any]:
    return every_text("signals", i) | {"timestamp": T0 + i, "arrival": T0 + i + 1, "kind": "change"}


OWN = {"requests": request, "heartbeats": beat, "write_log": record, "signals": said}


def wrong(stream: str) -> list[bytes]:
    """Records that are refused, each in another way."""
    good = OWN[stream](0)
    required = "subject" if stream == "signals" else "node_id"
    changed: list[dict[str, Any]] = [
        {"arrival": MARK},
        {"weight": MARK},
        {"seq": -1},
        {required: None},
        {"status": MARK, "kind": MARK, "term": MARK},
        {"vector_clock": {MARK: -1}, "client_time": MARK, "value": MARK, "retry_count": -5},
    ]
    bad = [msgspec.json.encode(good | c) for c in changed]
    return [*bad, f"no JSON but {MARK}".encode(), b"[" + bad[0] + b"," + msgspec.json.encode(OWN[stream](1)) + b"]"]


def records(stream: str, n: int = 60) -> list[bytes]:
    return [*(msgspec.json.encode(OWN[stream](i)) for i in range(n)), *wrong(stream)]


def parquet() -> bytes:
    out = io.BytesIO()
    rows = [
        r | {"vector_clock": [{"key": k, "value": n} for k, n in r["vector_clock"].items()]}
        for r in map(record, range(9))
    ]
    pl.DataFrame([*rows, rows[0] | {"version": -1}], infer_schema_length=None).write_parquet(out)
    return out.getvalue()


def container() -> bytes:
    out = io.BytesIO()
    names = ["service_name", "node_id", "caller", "status"]
    fields = [{"name": "timestamp", "type": "double"}, *({"name": n, "type": "string"} for n in names)]
    rows = [{"timestamp": T0 + 0.5, **{n: text(n) for n in names}, "status": s} for s in ("ok", MARK)]
    fastavro.writer(out, {"type": "record", "name": "r", "fields": fields}, rows)
    return out.getvalue()


CSV = f"at,pod,verdict\n{T0},{text('pod')},ok\nnever-{MARK},{text('pod')},ok\n{T0},{MARK}\n"
OTLP = {
    "resourceSpans": [
        {
            "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": text("shop")}}]},
            "scopeSpans": [
                {
                    "spans": [
                        {"traceId": MARK, "spanId": MARK, "kind": 2, "startTimeUnixNano": str(T0 * 10**9)},
                        {"traceId": MARK, "spanId": MARK, "kind": 2, "startTimeUnixNano": MARK},
                    ]
                }
            ],
        }
    ]
}
SPELT = 'stream = "requests"\n[fields]\ntimestamp = "ts"\nservice_name = "svc"\nnode_id = "host"\n'
MAPS = {
    "cells": 'stream = "requests"\nformat = "csv"\nfiles = "*cells.csv"\n[fields]\n'
    'timestamp = { from = "at", unit = "s" }\nservice_name = "pod"\nnode_id = "pod"\nstatus = "verdict"\n',
    "plain": 'stream = "signals"\nformat = "text"\nfiles = "*plain.log"\nline = "(?P<at>\\\\S+) (?P<who>\\\\S+) .*"\n'
    '[fields]\ntimestamp = "at"\nsubject = "who"\nname = "who"\nkind = { value = "change" }\n',
}


def logs(folder: Path) -> list[fieldmap.FieldMap]:
    """A folder of recordings in several formats; the maps for those that need one."""
    folder.mkdir()
    for stream in STREAMS:
        whole = b"\n".join(records(stream)) + b"\n"
        (folder / f"{stream}.jsonl").write_bytes(whole + f'{{"half": "{MARK}'.encode())
    (folder / "requests-old.jsonl.gz").write_bytes(
        gzip.compress(b"\n".join(wrong("requests")[:1] + records("requests")[:3]))
    )
    names = [n for n in beat(0) if n != "arrival"]
    rows = [",".join(str(beat(i)[n]) for n in names) for i in range(9)]
    (folder / "heartbeats.csv").write_text("\n".join([",".join(names), *rows, f"{MARK}," * len(names)]) + "\n")
    (folder / "write_log.parquet").write_bytes(parquet())
    (folder / "requests.avro").write_bytes(container())
    (folder / "spans.jsonl").write_bytes(lines([OTLP]) + lines([{"resourceSpans": MARK}]))
    (folder / "cells.csv").write_text(CSV)
    (folder / "plain.log").write_text(f"{T0} {text('who')} said {MARK}\n{MARK}\n{MARK} {MARK} {MARK}\n")
    return [fieldmap.parse(toml, name, name) for name, toml in MAPS.items()]


def tables(file: Path) -> Iterator[tuple[str, pl.DataFrame]]:
    """What a file of a state holds, behind whatever packs it."""
    if file.suffix == ".parquet":
        yield file.name, pl.read_parquet(file)
    if file.suffix == ".duckdb":
        con = duckdb.connect(str(file), read_only=True)
        try:
            names = con.execute("SELECT table_name FROM information_schema.tables").fetchall()
            yield from ((f"{file.name} {n}", con.sql(f'FROM "{n}"').pl()) for (n,) in names)
        finally:
            con.close()


def places(folder: Path, what: str) -> set[str]:
    """Where in a state a text can be found: files by their bytes, tables by what their columns say."""
    files = [f for f in folder.rglob("*") if f.is_file()]
    assert any(f.suffix == ".duckdb" for f in files) and any(f.suffix == ".parquet" for f in files)
    raw = {f.name for f in files if what.encode() in f.read_bytes() or what in f.name}
    return raw | {
        f"{name}.{c}" for f in files for name, t in tables(f) for c in t.columns if what in str(t[c].to_list())
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a key."""
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "privacy.key").write_text(SECRET + "\n")
    return tmp_path


def hidden(folder: Path, toml: str = CONFIG) -> Privacy:
    (folder / "asynchealth.toml").write_text(toml)
    found = private()
    assert found
    return found


FOUND = "SELECT detector, kind, subject_kind, level, certainty, onset, last, value, count FROM findings ORDER BY ALL"
SUMS = ", ".join(f"sum({n})" for n in ("read", "used", "rejected", "repeated", "tombstones"))
READ = f"SELECT stream, {SUMS} FROM accounting GROUP BY ALL ORDER BY ALL"


def test_the_mark_is_in_no_file_of_a_state_and_what_is_found_stays_the_same(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = logs(here / "logs")
    piped = lines([request(i) | {"event_id": None} for i in range(100, 104)]) + b"\n".join(wrong("requests")) + b"\n"

    def read(name: str) -> Path:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(piped)))
        replay([str(here / "logs"), "-"], here / name, Settings(), maps=maps)
        return here / name

    plain = read("plain")
    seen = places(plain, MARK)
    assert {
        "asynchealth.duckdb rejects.raw",
        "asynchealth.duckdb rejects.reason",
        "asynchealth.duckdb findings.subject",
    } <= seen
    columns = {place.rpartition(".")[2] for place in seen if place.startswith("asynchealth.duckdb")}
    assert columns >= {*NAMES} - WORDS | {"vector_clock"}, "each text of the schema is marked"
    hidden(here)
    quiet = read("quiet")
    assert places(quiet, MARK) == set()
    assert places(quiet, SECRET) == set()
    assert asked(quiet, READ) == asked(plain, READ)
    found = asked(quiet, FOUND)
    assert found == asked(plain, FOUND) and {"duplicate_key", "concurrent_writers"} <= {row[0] for row in found}
    assert asked(quiet, "SELECT count(error) + count(duration_ms) FROM requests") == [(0,)]
    assert asked(quiet, "SELECT count(*) FROM rejects WHERE raw <> ''") == [(0,)]
    nodes = {n for (n,) in asked(quiet, "SELECT DISTINCT node_id FROM requests")}
    clocks = {n for (n,) in asked(quiet, "SELECT DISTINCT unnest(map_keys(vector_clock)) FROM write_log")}
    assert clocks and clocks < nodes and all(map(HASHED.fullmatch, nodes)), "a node has one name wherever it stands"


def test_what_was_read_under_other_rules_is_read_again(here: Path) -> None:
    (here / "requests.jsonl").write_bytes(b"\n".join(records("requests", 4)) + b"\n")
    for rules in (CONFIG, CONFIG.replace("requests.error", "region")):
        hidden(here, rules)
        done = replay(["requests.jsonl"], here / "state", Settings())
    assert done.notes == ["requests.jsonl: read again with other privacy than before"]
    shown = {place for place in places(here / "state", MARK) if place.startswith(READABLE)}
    assert shown == {f"{READABLE} requests.error"}, "which is no longer dropped"


def test_live_the_mark_is_in_no_message_and_in_no_file(here: Path) -> None:
    def run(name: str, rules: Privacy | None) -> Chain:
        case = Case({s: [decode_json(s, [msgspec.json.encode(OWN[s](i)) for i in range(60)]).events] for s in STREAMS})
        chain = Chain(case, "duplicate_key+concurrent_writers", random.Random(1), steps=(30,), first=0, private=rules)
        for stream in STREAMS:
            values = records(stream)
            stamps = [(T0 + min(i, 59) + 1) * 10**6 for i in range(len(values))]
            chain.source[stream, 0] = ([*range(len(values))], stamps, values)
        chain.run(0, until(case))
        assert list(landed(here / name, chain, random.Random(2), kills=0)) == []
        return chain

    def told(chain: Chain) -> str:
        by_queue = [m for log in (*chain.slices, *chain.kept) for m in log]
        every = [*by_queue, *chain.events, *chain.windows, *chain.found]
        frames = [frame.rows() for _, value in every for frame in unpack(value).values()]
        return f"{every} {frames}"

    plain, quiet = run("plain", None), run("quiet", hidden(here))
    assert MARK in told(plain) and places(here / "plain", MARK)
    assert MARK not in told(quiet) and SECRET not in told(quiet)
    assert places(here / "quiet", MARK) == set()
    assert asked(here / "quiet", FOUND) == asked(here / "plain", FOUND) != []


def test_each_topic_is_read_under_the_rules(here: Path) -> None:
    rules = hidden(here, CONFIG + '[topics]\nspans = "otlp"\n')
    assert [s.reading.private for s in sources()] == [rules] * len(STREAMS)
    log: Any = Log(None, "host", None, "", 0, 0, 9)
    (partition,) = _openings([log], "requests", "arrival", "", Reading("requests"))
    assert partition.open().reading.private == rules  # type: ignore[attr-defined]


def test_a_slice_that_nobody_can_measure_does_not_tell_what_it_held(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Decoded:
        raise ValueError(MARK)

    monkeypatch.setattr(decode, "decode_json", broken)
    for rules, quotes in ((None, True), (hidden(here), False)):
        reducer = Reducer("requests", 0, [], 1, Point(0), reading=Reading("requests", None, rules))
        with pytest.raises(Poisoned) as poisoned:
            reducer.feed([0], [T0 * 10**6], [b"{}"])
        assert (MARK in poisoned.value.reason) == quotes == (poisoned.value.__cause__ is not None)
        assert "ValueError" in poisoned.value.reason


def test_what_a_decoder_of_others_says_is_not_kept(here: Path) -> None:
    (here / "s.avsc").write_text('{"type": "record", "name": "r", "fields": [{"name": "who", "type": "string"}]}')
    (here / "map.toml").write_text(
        'stream = "signals"\nformat = { kind = "avro", schema = "s.avsc" }\n[fields]\ntimestamp = { value = 1 }\n'
        'subject = "who"\nname = "who"\nkind = { value = "change" }\n'
    )
    given, bad = fieldmap.load(here / "map.toml"), [b"\0\0\0\0\1" + b"\xff" + MARK.encode(), MARK.encode()]
    plain = messages(Reading("signals", given), bad).rejects
    quiet = messages(Reading("signals", given, hidden(here)), bad).rejects
    assert MARK in str(plain.rows()) and len(plain) == len(quiet) == 2
    assert quiet["reason"].to_list() == ["not avro"] * 2 and MARK not in str(quiet.rows())


def test_a_map_is_drafted_and_tried_without_the_mark(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = here / "strange.jsonl"
    rows = [{"ts": T0 + i, "svc": text("svc", i % 2), "host": text("host"), "odd": text("odd", i)} for i in range(30)]
    path.write_bytes(lines([*rows, {"ts": MARK, "svc": MARK}]))
    (here / "m.toml").write_text(SPELT)
    for quiet in (False, True):
        if quiet:
            hidden(here)
        map_(infer=path)
        map_(path, check=Path("m.toml"))
        map_(path, check=Path("m.toml"), json=True)
        out, err = capsys.readouterr()
        assert (MARK not in out + err) == quiet and out.count("service_name") >= 3, out


def test_equal_texts_stay_equal_and_other_keys_give_other_hashes(here: Path) -> None:
    one, same = hidden(here), hidden(here)
    (here / "privacy.key").write_text(SECRET + "!")
    other = hidden(here)
    assert one.name("a") == same.name("a") != one.name("b") and one.by == same.by
    assert one.name("a") != other.name("a") and one.by != other.by
    assert one.name("") == "" and SECRET not in repr(one)


def test_the_canary_is_known_under_any_rules(here: Path) -> None:
    mine, others = signal("me", 7, datetime.now(UTC)), records("signals", 1)[:1]
    rows = messages(Reading("signals", None, hidden(here)), [mine, *others]).events
    assert rows["tenant"].to_list()[0] == "asynchealth" and rows["name"].to_list()[0] == "me"
    assert HASHED.fullmatch(rows["tenant"].to_list()[1])


def test_thresholds_of_a_service_are_found_under_its_hash(here: Path) -> None:
    services = "[services.payment]\nthresholds = { timeout_budget.warn_pct = 70 }\n"
    rules = hidden(here, CONFIG + services)
    settings = load(all_detectors())
    assert [*settings.per_service] == [rules.name("payment")]
    (here / "asynchealth.toml").write_text(CONFIG + services.replace("payment", rules.name("payment")))
    assert load(all_detectors()) == settings, "as a screen shows it"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"drop": ["requests.node_id"]}, 'requests need it, so it can\'t be dropped\nNext: hash = ["node_id"]'),
        ({"drop": ["timestamp"]}, "requests need it, so it can't be dropped\nNext: leave it out"),
        ({"drop": ["requests.user"]}, "no such field; there are timestamp, service_name"),
        ({"drop": ["orders.user"]}, "no stream 'orders'; there are requests"),
        ({"hash": ["duration_ms"]}, 'no text, and only texts can be hashed\nNext: drop = ["duration_ms"]'),
        (
            {"hash": ["requests.side"]},
            'one of client, server, and only texts can be hashed\nNext: drop = ["requests.side"]',
        ),
        ({"hash": ["signals.kind"]}, "only texts can be hashed\nNext: leave it out"),
        ({"hash": "node_id"}, "not a list of fields"),
        ({"key": SECRET}, f"the key itself stands in that file or in {KEY}"),
        ({"hash": ["node_id"]}, "there is no key for the hashes\nNext: head -c 32 /dev/urandom"),
        ({"hash": ["node_id"], "key_file": "none"}, "none is not readable: No such file"),
        ({"hash": ["node_id"], "key_file": "short"}, "can be guessed"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_next_step(here: Path, given: Mapping[str, Any], says: str) -> None:
    (here / "short").write_text("abc")
    with pytest.raises(Problem) as refused:
        privacy({"privacy": given}, Path("asynchealth.toml"), {})
    assert says in str(refused.value) and str(refused.value).startswith(("asynchealth.toml: privacy", "short"))
    assert SECRET not in str(refused.value)


def test_nothing_is_asked_for_where_nothing_is_named(here: Path) -> None:
    assert privacy({}, here, {}) is None and privacy({"privacy": {"drop": []}}, here, {}) is None
    only = privacy({"privacy": {"drop": ["requests.error"]}}, here, {})
    assert only and [f.name for f in only.dropped["requests"]] == ["error"] and not only.hashed["requests"]
