"""Files: found by path, glob, folder or pipe; known by content; read up to where they are damaged."""

from __future__ import annotations

import gzip
import json
import os
import random
import threading
import zlib
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.parquet import ParquetFile, write_table

from streams.problems import Exit, Problem
from streams.sources.decode import Reading, chunks, recognise
from streams.sources.files import BLOCK, Known, Recording, find, look, read_before, stream_of
from tests.streams.tape import beats, lines, request, storm, write

PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def names(paths: list[str], state: Path = Path("nowhere")) -> list[str]:
    return [name for _, name in find(paths, state)]


def recording(path: Path) -> Recording:
    return Recording(look(path, path.name))


def read(path: Path, skip: int = 0) -> tuple[Recording, list[int], list[int]]:
    """The offsets of events and of rejects."""
    rec = recording(path)
    events: list[int] = []
    rejects: list[int] = []
    for _, decoded in chunks(rec, Reading("requests"), skip):
        events += decoded.events["offset"].to_list()
        rejects += decoded.rejects["offset"].to_list()
    return rec, events, rejects


def unreadable(path: Path, events: list[dict[str, Any]], after: int = 0) -> None:
    """A Parquet file with one bit changed, so that a page says a negative number of values: many a reader's end."""
    pl.DataFrame(events).write_parquet(path, row_group_size=10)
    whole = path.read_bytes()
    for at in range(4, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        rows = 0
        try:
            with ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    rows += file.read_row_group(group).num_rows
        except (OSError, pa.ArrowInvalid) as error:
            if rows == after and "negative number of values" in str(error):
                return
    raise AssertionError("no bit of it makes such a page")


# ---- finding them ---------------------------------------------------------------------------------------------------


def test_folders_and_globs_give_logs_by_name_and_no_state_folder(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json.gz", "sub/c.ndjson.zst", "sub/d.parquet", "readme.txt", "labels.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for inside in ("state/lake/e.parquet", "other/lake/f.parquet"):
        (tmp_path / inside).parent.mkdir(parents=True)
        (tmp_path / inside).write_bytes(b"x")
    (tmp_path / "other" / "asynchealth.duckdb").write_bytes(b"x")
    everything = ["a.json.gz", "b.jsonl", "readme.txt", "sub/c.ndjson.zst", "sub/d.parquet"]
    assert names([str(tmp_path)], tmp_path / "state") == everything
    assert names([str(tmp_path / "*.json*")]) == ["a.json.gz", "b.jsonl", "labels.json"]
    assert names([str(tmp_path / "s[u]b*")]) == ["c.ndjson.zst", "d.parquet"]
    assert names([str(tmp_path / "readme.txt"), str(tmp_path / "readme.txt")]) == ["readme.txt"]


def test_a_folder_gives_files_of_any_name_and_says_which_it_passes_over(tmp_path: Path) -> None:
    some = ["0", "access.log", "access.log-20260126.gz", "access.log.2.gz", "events", "part-00000", "x.bak"]
    over = [".git/config", ".hidden", "_SUCCESS", "a.crc", "maps/m.toml", "x.sha256"]
    for name in (*some, *over):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    *found, last = find([str(tmp_path)], tmp_path / "state")
    assert [name for _, name in found] == some
    with pytest.raises(Problem) as problem:
        look(*last)
    reason, then = str(problem.value).removeprefix(f"{tmp_path}: ").splitlines()
    named = "that are hidden, marks, checksums or settings by their names"
    assert reason == f"passed over 6 {named}: .git/config, .hidden, _SUCCESS and 3 more"
    assert then == f"Next: asynchealth replay {tmp_path / '.git/config'}, if it is one"
    assert problem.value.code == Exit.NOTHING
    assert names([str(tmp_path / "_SUCCESS")]) == ["_SUCCESS"]


def test_what_is_not_there_says_so_and_stops_no_other(tmp_path: Path) -> None:
    good = write(tmp_path / "requests.jsonl", lines(storm(3)))
    (tmp_path / "empty").mkdir()
    wanted = [str(tmp_path / "no*.jsonl"), str(tmp_path / "empty"), str(good), str(good / "below")]
    found = find(wanted, tmp_path / "state")
    assert len(found) == 4
    reasons = []
    for path, name in found:
        try:
            look(path, name)
        except Problem as problem:
            assert problem.code == Exit.NOTHING
            assert "\nNext: ls " in str(problem)
            reasons.append(str(problem).splitlines()[0].removeprefix(str(tmp_path)))
    assert reasons == [
        "/no*.jsonl: no such file or folder",
        "/empty: no files in this folder",
        "/requests.jsonl/below: not readable: Not a directory",
    ]


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "requests.jsonl", lines(storm(3)))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("permission bits do not hold for this user")
    with pytest.raises(Problem, match="not readable: Permission denied"):
        look(path, path.name)


def test_a_pipe_is_read_once_and_kept(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(lines(storm(3)),))
    writer.start()
    [(path, name)] = find([str(pipe)], tmp_path / "state")
    writer.join()
    assert name == str(pipe)
    assert read(path)[1] == [0, 1, 2]


# ---- what they are of -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "event", "stream"),
    [
        ("heartbeats-old.jsonl", {}, "heartbeats"),
        ("x.jsonl", beats(1)[0], "heartbeats"),
        ("x.jsonl", request(1), "requests"),
        ("x.jsonl", {"timestamp": 0, "node_id": "n", "entity_id": "e", "service_name": "s"}, "write_log"),
        ("x.jsonl", request(1) | {"version": 3}, "requests"),  # of the protocol, or of what was deployed
        ("x.jsonl", {"timestamp": 0, "node_id": "n", "version": 3, "op": "set", "service_name": "s"}, "write_log"),
        ("x.jsonl", {"timestamp": 0, "node_id": "n", "service_name": "s"}, "requests"),
        ("x.jsonl", {"timestamp": 0, "subject": "s", "kind": "change", "name": "n"}, "signals"),
    ],
)
def test_a_recording_is_of_the_stream_of_its_name_or_its_fields(
    tmp_path: Path, name: str, event: dict[str, object], stream: str
) -> None:
    path = write(tmp_path / name, lines([event]))
    assert recognise(look(path, name)) == Reading(stream)
    assert stream_of(look(path, name).name, columns=list(event)) == stream


def test_garbage_at_the_top_does_not_hide_what_a_recording_is_of(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", b"# exported today\n\nnull\n[]\n" + lines([request(1)]))
    assert recognise(look(path, "x.jsonl")) == Reading("requests")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (gzip.compress(b""), "empty"),
        (b'{"timestamp": 1', "its only record has no end"),
        (gzip.compress(lines(storm(100)))[:12], "damaged: the end is missing"),
        (b"a,b\n1,2\n", "not recognised: its first records have none of the fields of requests"),
        (b"PAR1", "not a whole Parquet file: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_holds_nothing_says_why(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(Problem) as problem:
        recognise(look(path, "x.jsonl"))
    assert str(problem.value).startswith(f"x.jsonl: {reason}")
    assert "\nNext: " in str(problem.value)
    assert problem.value.code == Exit.NOTHING


# ---- their records --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n \n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_marks_and_blank_lines_are_no_records(tmp_path: Path, bom: bytes, end: bytes, last: bool) -> None:
    records = lines(storm(5)).split(b"\n")[:5]
    path = write(tmp_path / "requests.jsonl", bom + end.join(records) + end * last)
    rec, events, rejects = read(path)
    assert (events, rejects) == ([0, 1, 2, 3, 4], [])
    assert not rec.torn
    assert rec.length == path.stat().st_size


@pytest.mark.parametrize("packed", PACKERS)
def test_a_line_longer_than_any_block_is_one_record(tmp_path: Path, packed: str) -> None:
    long = "x" * (5 * BLOCK // 2)
    content = lines([request(0), request(1, error=long)]) + long.encode() + b"\n" + lines([request(3)])
    rec, events, rejects = read(write(tmp_path / f"requests.jsonl{packed}", content))
    assert (events, rejects) == ([0, 1, 3], [2])
    assert rec.length == len(content)


@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_frames_one_behind_the_other_are_one_recording(tmp_path: Path, packed: str) -> None:
    pack = PACKERS[f".{packed}"]
    path = tmp_path / f"requests.jsonl.{packed}"
    path.write_bytes(b"".join(pack(lines([request(i)])) for i in range(40)) + (b"\0" * 9 if packed == "gz" else b""))
    rec, events, _ = read(path)
    assert events == list(range(40))
    assert not rec.broken


@pytest.mark.parametrize("packed", ["gz", "zst"])
@settings(max_examples=10)
@given(share=st.floats(0.05, 0.999))
def test_of_a_truncated_file_every_whole_record_is_read(
    tmp_path_factory: pytest.TempPathFactory, packed: str, share: float
) -> None:
    """As many as the packer's own tool can still decode."""
    dice = random.Random(1)
    content = lines([request(i, error=f"{dice.random()}") for i in range(3_000)])
    whole = PACKERS[f".{packed}"](content)
    cut = whole[: int(share * len(whole))]
    path = tmp_path_factory.mktemp("cut") / f"requests.jsonl.{packed}"
    path.write_bytes(cut)
    tool = zlib.decompressobj(31) if packed == "gz" else zstandard.ZstdDecompressor().decompressobj()
    readable = tool.decompress(cut)
    rec, events, rejects = read(path)
    assert rec.broken == "damaged: the end is missing"
    assert events == list(range(readable.count(b"\n")))
    assert rejects == ([len(events)] if readable and not readable.endswith(b"\n") else [])
    assert rec.length == readable.rfind(b"\n") + 1


@pytest.mark.parametrize("packed", ["gz", "zst"])
def test_garbage_behind_a_frame_costs_nothing_before_it(tmp_path: Path, packed: str) -> None:
    path = tmp_path / f"requests.jsonl.{packed}"
    path.write_bytes(PACKERS[f".{packed}"](lines(storm(50))) + b"garbage")
    rec, events, _ = read(path)
    assert events == list(range(50))
    assert rec.broken.startswith("damaged: ")


@pytest.mark.parametrize("skip", [0, 1, 399, 400])
def test_reading_begins_at_any_record(tmp_path: Path, skip: int) -> None:
    write(tmp_path / "requests.jsonl", lines(storm(400)))
    pl.DataFrame(storm(400)).write_parquet(tmp_path / "requests.parquet")
    for name in ("requests.jsonl", "requests.parquet"):
        assert read(tmp_path / name, skip)[1] == list(range(skip, 400))


@settings(max_examples=40)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_parquet_file_with_a_wrong_byte_gives_rows_or_a_reason_never_an_error(
    tmp_path_factory: pytest.TempPathFactory, at: float, flip: int
) -> None:
    path = tmp_path_factory.mktemp("wrong") / "requests.parquet"
    pl.DataFrame(storm(300)).write_parquet(path, row_group_size=100)
    content = bytearray(path.read_bytes())
    content[4 + int(at * (len(content) - 4))] ^= flip
    path.write_bytes(content)
    try:
        rec, events, rejects = read(path)
        assert rec.broken or sorted([*events, *rejects]) == list(range(300))
    except Problem as problem:
        assert problem.code == Exit.NOTHING


def test_row_groups_before_a_damaged_one_are_read(tmp_path: Path) -> None:
    path = tmp_path / "requests.parquet"
    unreadable(path, [{n: e[n] for n in ("timestamp", "service_name", "node_id")} for e in storm(30)], after=10)
    rec, events, rejects = read(path)
    assert (events, rejects) == ([*range(10)], [])
    assert rec.broken == "damaged: Invalid page header (negative number of values)"


def test_a_column_that_no_frame_holds_is_not_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "requests.parquet"
    odd = pa.array([Decimal("1.5")] * 3, pa.decimal256(60, 2))
    write_table(pl.DataFrame(storm(3)).to_arrow().add_column(0, "odd", odd), path)
    assert read(path)[1:] == ([0, 1, 2], [])


# ---- known by content -----------------------------------------------------------------------------------------------


def known(length: int, content: bytes) -> Known:
    return Known("requests", "x", length, xxhash.xxh3_128(content[:length]).hexdigest(), 1, 0, 0, None)


@pytest.mark.parametrize("packed", PACKERS)
@settings(max_examples=30)
@given(data=st.data())
def test_the_longest_known_beginning_is_found(
    tmp_path_factory: pytest.TempPathFactory, packed: str, data: st.DataObject
) -> None:
    content = lines(storm(30))
    lengths = data.draw(st.lists(st.integers(1, len(content)), max_size=6, unique=True))
    other = [known(n, b"y" + content) for n in data.draw(st.lists(st.integers(1, 2 * len(content)), max_size=3))]
    path = write(tmp_path_factory.mktemp("known") / f"requests.jsonl{packed}", content)
    found = read_before(look(path, "x"), [*other, *(known(n, content) for n in lengths)])
    assert (found.length if found else None) == max(lengths, default=None)


# ---- what is not one event per line ----------------------------------------------------------------------------------

ARRAY = "a JSON array over several lines: one event per line is needed"
EVENTS = storm(40)


def pretty(indent: int | None = 2) -> bytes:
    return json.dumps(EVENTS, indent=indent).encode()


@pytest.mark.parametrize(
    ("name", "content", "reason", "command"),
    [
        ("a.json", pretty(), ARRAY, "jq -c '.[]' {path} > requests-lines.jsonl"),
        ("requests.json.gz", pretty(), ARRAY, "zcat {path} | jq -c '.[]' > requests-lines.jsonl"),
        ("heartbeats.json.zst", pretty(), ARRAY, "zstdcat {path} | jq -c '.[]' > heartbeats-lines.jsonl"),
        ("a.json", b"\n[\n" + b",\n".join(lines(EVENTS).splitlines()) + b"\n]\n", ARRAY, "jq -c '.[]' {path}"),
        ("a.json", b"[" + b",\n".join(lines(EVENTS).splitlines()) + b"]\n", ARRAY, "jq -c '.[]' {path}"),
        ("a.json", json.dumps(EVENTS[0], indent=1).encode(), "JSON objects over several lines", "jq -c . {path}"),
        (
            "a.csv",
            b"timestamp,node_id\rx,y\r",
            "its lines end in CR alone",
            r"sed 's/\r/\n/g' {path} > requests-lines.jsonl",
        ),
        ("a.json.gz", lines(EVENTS).replace(b"\n", b"\r"), "its lines end in CR", r"zcat {path} | sed 's/\r/\n/g' >"),
        ("a.jsonl", lines(EVENTS).decode().encode("utf-16"), "UTF-16, not UTF-8", "iconv -f UTF-16 -t UTF-8 {path}"),
        ("a.jsonl", lines(EVENTS).decode().encode("utf-16-be"), "UTF-16BE, not", "iconv -f UTF-16BE -t UTF-8 {path}"),
        ("a.jsonl", lines(EVENTS).decode().encode("utf-32"), "UTF-32, not UTF-8", "iconv -f UTF-32 -t UTF-8 {path}"),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_command_that_mends_it(
    name: str, content: bytes, reason: str, command: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(Problem) as problem:
        recognise(look(path, name))
    assert problem.value.code == Exit.NOTHING
    assert str(problem.value).startswith(f"{name}: {reason}")
    assert f"\nNext: {command.format(path=path)}" in str(problem.value)


def test_of_a_folder_what_is_shut_or_linked_is_told_and_not_lost_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top, beside = tmp_path / "top", tmp_path / "beside"
    for folder in (top / "shut", top / "day", beside):
        folder.mkdir(parents=True)
        write(folder / "a.jsonl", lines(storm(3)))
    (top / "linked").symlink_to(beside)
    (top / "today").symlink_to(top / "day")
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "shut" and may(path, mode))
    found = find([str(top)], tmp_path / "state")
    assert [name for _, name in found if name != "shut/a.jsonl"] == ["day/a.jsonl", "linked/", "shut/"]
    with pytest.raises(Problem, match=f"linked/: a link to a folder.*\nNext: asynchealth replay {top}/linked"):
        look(*found[-2])
    with pytest.raises(Problem, match=f"shut/: not readable: Permission denied\nNext: ls -ld {top}/shut"):
        look(*found[-1])
    assert names([str(top / "linked")]) == ["a.jsonl"]


@pytest.mark.parametrize("content", [pretty(None), b"[ ]\n" + lines(EVENTS), b'{"half": \n' + lines(EVENTS)])
def test_lists_on_one_line_and_a_bad_first_line_stop_nothing(content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "requests.jsonl", content + b"\n")
    assert recognise(look(path, path.name)) == Reading("requests")
    _, events, rejects = read(path)
    assert len(events) == len(EVENTS) and len(rejects) <= 1
