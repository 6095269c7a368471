"""A folder of many formats under names that tell nothing, some packed: each is known by what is in it, or refused with
the reason and the next command, and what is refused costs none of the others."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import zstandard
from fastavro import writer

from streams.problems import Exit
from tests.fuzz import CHANGE, SAMPLES
from tests.records import ENVOY, NGINX, TRAIL
from tests.streams.sources.test_files import unreadable
from tests.streams.tape import accounting, asynchealth, lines, storm

T = "2026-01-26T12:00:00Z"
BEAT = {"node_id": "n1", "client_time": T, "server_time": T}
WRITE = {"timestamp": T, "node_id": "n1", "entity_type": "order", "entity_id": "7", "version": 1, "base_version": 0}
SIGNALS = f"timestamp,subject,kind,name,value\n{T},pay,gauge,size,5\n{T},pay,gauge,size,6\n".encode()
REQUESTS = f"timestamp;service_name;node_id;status\n{T};pay;n1;ok\n{T};pay;n1;timeout\n".encode()
CALL = {"timestamp": T, "service_name": "pay", "node_id": "n1"}
AVRO = {"type": "record", "name": "Call", "fields": [{"name": n, "type": "string"} for n in CALL]}
ARRAY = json.dumps([NGINX, NGINX], indent=1).encode()
SYSLOG = b"Jan 26 12:00:00 web-1 sshd[312]: Accepted publickey for deploy\n"
ODD = b'{"level": "info", "msg": "started", "pid": 7}\n'


def _json(*events: object) -> bytes:
    return b"".join(json.dumps(e).encode() + b"\n" for e in events)


def _tar(content: bytes) -> bytes:
    out, member = io.BytesIO(), tarfile.TarInfo("requests.jsonl")
    member.size = len(content)
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _parquet(path: Path) -> None:
    pl.DataFrame([WRITE] * 3).write_parquet(path)


def _avro(path: Path) -> None:
    with path.open("wb") as out:
        writer(out, AVRO, [CALL] * 4)


def _zst(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


KNOWN: list[tuple[str, bytes | Callable[[Path], None], str, int]] = [
    ("f01.jsonl", lines(storm(5)), "", 5),
    ("f02.json.gz", gzip.compress(_json(BEAT, BEAT)), "", 2),
    ("f03.parquet", _parquet, "", 3),
    ("f04.csv", SIGNALS, "csv → signals", 2),
    ("f05.csv.zst", _zst(REQUESTS), "csv → requests", 2),
    ("f06.json", SAMPLES["otlp"][0] + b"\n", "otlp → requests", 2),
    ("f07.log", _json(ENVOY, ENVOY), "envoy → requests", 2),
    ("f08.log.gz", gzip.compress(_json(NGINX, NGINX)), "nginx → requests", 2),
    ("f09.json.gz", gzip.compress(_json({"Records": [TRAIL, TRAIL]})), "cloudtrail → requests", 2),
    ("f10.json.zst", _zst(_json(CHANGE, {"schema": {}, "payload": CHANGE})), "debezium → write_log", 2),
    ("f11.log", b"\n".join(SAMPLES["chrony_tracking"]) + b"\n", "chrony_tracking → signals", 2),
    ("f12.log", b"\n".join(SAMPLES["chrony_statistics"]) + b"\n", "chrony_statistics → signals", 1),
    ("f13.avro", _avro, "avro → requests", 4),
]
REFUSED = [
    ("g01.log", SYSLOG * 3, "not recognised", "Next: draft a field map: asynchealth map --infer"),
    ("g02.json", ODD * 3, "not recognised", "Next: name the file requests*.jsonl"),
    ("g03.json", ARRAY, "a JSON array over several lines", "jq -c '.[]'"),
    ("g04.json", json.dumps(NGINX).encode("utf-16"), "UTF-16, not UTF-8", "iconv -f UTF-16"),
    ("g05.log", b"", "empty", "leave it out"),
    ("g06.parquet", b"PAR1 and then nothing", "not a whole Parquet file", ""),
    ("g13.json", b'{"Records": []}\n', "holds no event, only an empty list of cloudtrail", "leave it out"),
    ("g14.json", b'{"resourceSpans": []}\n', "holds no event, only an empty list of otlp", "leave it out"),
    ("g07.tar", _tar(lines(storm(5))), "a tar archive", "tar -xf"),
    ("g08.tgz", gzip.compress(_tar(lines(storm(5)))), "a tar archive", "tar -xf"),
    ("g09.bz2", bz2.compress(lines(storm(5))), "packed by bzip2", "bzcat"),
    ("g10.xz", lzma.compress(lines(storm(5))), "packed by xz", "xzcat"),
    ("g11.zip", b"PK\x03\x04 and so on", "a zip archive", "unzip"),
    ("g15.lz4", b"\x04\x22\x4d\x18\x60\r\x82", "packed by lz4", "lz4 -dc"),
    ("g16.log", b"\xff\r\xfe\n", "not recognised", "map --infer"),
    ("g12.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary: it holds no lines of text", "file "),
]


def _filled(folder: Path, *parts: list[tuple[str, bytes | Callable[[Path], None]]]) -> Path:
    folder.mkdir()
    for name, content in (one for part in parts for one in part):
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            content(folder / name)
    return folder


@pytest.mark.parametrize("ending", [True, False], ids=["with endings", "without"])
def test_every_file_of_a_folder_is_known_by_what_is_in_it_or_refused_with_the_next_command(
    tmp_path: Path, ending: bool
) -> None:
    def called(name: str) -> str:
        return name if ending else name.partition(".")[0]

    files = [*((n, c) for n, c, *_ in KNOWN), *((n, c) for n, c, *_ in REFUSED)]
    folder = _filled(tmp_path / "logs", [(called(name), content) for name, content in files])
    (folder / "_SUCCESS").touch()
    done = asynchealth("replay", folder, "--state", tmp_path / "state")
    said = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == Exit.FINE, said
    for name, _, form, events in KNOWN:
        assert not form or f"{called(name)}: {form}, {events} event" in said, (name, said)
    for name, _, reason, then in REFUSED:
        (at,) = (i for i, line in enumerate(said.splitlines()) if line.startswith(f"{called(name)}: "))
        told, following = said.splitlines()[at : at + 2]
        assert reason in told, told
        assert following.startswith("Next: ") and then in following, following
    assert "passed over 1 that are hidden, marks, checksums or settings by their names: _SUCCESS" in said
    assert accounting(tmp_path / "state")["used"] == sum(n for *_, n in KNOWN)


@pytest.mark.parametrize(("name", "content", "form", "events"), KNOWN, ids=[n for n, *_ in KNOWN])
def test_each_is_known_alone_too(
    tmp_path: Path, name: str, content: bytes | Callable[[Path], None], form: str, events: int
) -> None:
    folder = _filled(tmp_path / "logs", [(name, content)])
    done = asynchealth("replay", folder / name, "--state", tmp_path / "state")
    assert done.returncode == Exit.FINE, done.stdout + done.stderr
    assert accounting(tmp_path / "state")["used"] == events


def test_a_file_whose_damage_ends_other_readers_costs_none_of_ten_good_ones(tmp_path: Path) -> None:
    folder = _filled(tmp_path / "logs")
    for i in range(10):
        pl.DataFrame([{**WRITE, "entity_id": str(i)}] * 3).write_parquet(folder / f"f{i:02}.parquet")
    unreadable(folder / "f055.parquet", [WRITE] * 3)
    done = asynchealth("replay", folder, "--state", tmp_path / "state")
    said = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == Exit.FINE, said
    assert "f055.parquet: damaged: Invalid page header (negative number of values)" in said
    assert accounting(tmp_path / "state")["read"] == 30
