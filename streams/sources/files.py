"""Paths enter, recordings leave: which files there are, what they hold by content, and whether they were read before.

A recording is known by the hash of its decoded bytes up to the known length, so a file that has grown is read on from
where it ended, and the same file under another name is not read twice.
"""

from __future__ import annotations

import glob
import gzip
import io
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
import polars as pl
import xxhash
import zstandard

from detectors.events import STREAMS
from streams.problems import Exit, Problem

ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet")
PACKED = ("", ".gz", ".zst")
BLOCK = 1 << 22
TRUNCATED = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)


@dataclass(frozen=True)
class File:
    """A file to read: its path, the name that people see, and its format by content."""

    path: Path
    name: str
    format: str  # jsonl | parquet
    packed: str  # "" | gz | zst


@dataclass(frozen=True)
class Known:
    """How much of a recording was read before: decoded bytes and their hash, records, its partition, null records."""

    stream: str
    name: str
    length: int
    digest: str
    records: int
    partition: int
    tombstones: int


def find(paths: Sequence[str], spool: Path) -> list[File]:
    """The files behind paths, globs, folders and `-` (standard input), in the order given; folders by name."""
    files: list[File] = []
    for given in paths:
        if given == "-":
            files.append(_recognise(_from_stdin(spool), "-"))
            continue
        path = Path(given)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and _is_log(p))
            if not inside:
                raise Problem(given, f"no {', '.join(ENDINGS)} files in this folder", code=Exit.NOTHING)
            files += [_recognise(p, str(p.relative_to(path))) for p in inside]
        elif path.exists():
            files.append(_recognise(path, path.name))
        elif matches := sorted(glob.glob(given, recursive=True)):
            files += [_recognise(Path(m), Path(m).name) for m in matches if Path(m).is_file()]
        else:
            raise Problem(given, "no such file or folder", f"ls {path.parent}", Exit.NOTHING)
    return files


def _is_log(path: Path) -> bool:
    return path.name != "labels.json" and any(path.name.endswith(e + p) for e in ENDINGS for p in PACKED)


def _from_stdin(spool: Path) -> Path:
    spool.mkdir(parents=True, exist_ok=True)
    path = spool / "stdin"
    with path.open("wb") as out:
        shutil.copyfileobj(sys.stdin.buffer, out)
    return path


def _recognise(path: Path, name: str) -> File:
    try:
        with path.open("rb") as f:
            head = f.read(4)
    except PermissionError:
        raise Problem(str(path), "not readable by this user", f"ls -l {path}", Exit.NOTHING) from None
    except OSError as error:
        raise Problem(str(path), f"not readable: {error.strerror}", code=Exit.NOTHING) from None
    if head == b"PAR1":
        return File(path, name, "parquet", "")
    packed = "gz" if head[:2] == b"\x1f\x8b" else "zst" if head == b"\x28\xb5\x2f\xfd" else ""
    return File(path, name, "jsonl", packed)


def open_decoded(file: File) -> BinaryIO:
    raw = file.path.open("rb")
    if file.packed == "gz":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if file.packed == "zst":
        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        return io.BufferedReader(reader, BLOCK)
    return raw


def stream_of(file: File, first: bytes = b"", columns: Sequence[str] = ()) -> str | None:
    """Which stream a recording is of: by its name, else by the fields of its first record."""
    name = file.name.rsplit("/", 1)[-1].lower()
    for stream in STREAMS:
        if name.startswith(stream):
            return stream
    has = {c for c in _FIELDS if f'"{c}"'.encode() in first} | set(columns)
    if {"client_time", "server_time"} <= has:
        return "heartbeats"
    if {"subject", "kind", "name"} <= has:
        return "signals"
    if {"entity_id", "vector_clock", "base_version", "version"} & has:
        return "write_log"
    if "service_name" in has:
        return "requests"
    return None


_FIELDS = (
    *("client_time", "server_time", "subject", "kind", "name"),
    *("entity_id", "vector_clock", "base_version", "version", "service_name"),
)


class Recording:
    """The records of one file, once, with the hash of what was read.

    When all is read, length and digest say how much it was and broken where a truncated file ends. torn: the last line
    has no end and is not JSON, so somebody may still be writing it; length and digest leave it out.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self.length = 0
        self.torn = False
        self.broken = ""
        self._hash = xxhash.xxh3_128()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def lines(self) -> Iterator[list[bytes]]:
        """Blocks of records; a blank line is none."""
        rest: list[bytes] = []
        with open_decoded(self.file) as f:
            while block := self._read(f):
                *whole, tail = block.split(b"\n")
                if whole:
                    self._took(b"".join(rest), block[: len(block) - len(tail)])
                    whole[0] = b"".join([*rest, whole[0]])
                    rest = []
                    yield [line for line in whole if line and not line.isspace()]
                rest.append(tail)
        last = b"".join(rest)
        if last and not last.isspace():
            self.torn = not _is_json(last)
            if not self.torn:
                self._took(last)
            yield [last]

    def _read(self, f: BinaryIO) -> bytes:
        try:
            return f.read(BLOCK)
        except TRUNCATED as error:
            self.broken = f"ends early ({error or 'truncated'})"
            return b""

    def _took(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._hash.update(piece)
            self.length += len(piece)

    def open_parquet(self) -> pl.LazyFrame:
        with self.file.path.open("rb") as f:
            while block := f.read(BLOCK):
                self._took(block)
        try:
            frame = pl.scan_parquet(self.file.path, glob=False)
            frame.collect_schema()
            return frame
        except (OSError, pl.exceptions.ComputeError) as error:
            reason = str(error).splitlines()[0]
            raise Problem(
                self.file.name, f"not a whole Parquet file: {reason}", "write it again, or leave it out", Exit.NOTHING
            ) from None


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def read_before(file: File, known: Sequence[Known]) -> Known | None:
    """The longest known recording that this file begins with; it has grown if it is longer."""
    size = None if file.packed else os.path.getsize(file.path)
    lengths = sorted({k.length for k in known if size is None or k.length <= size})
    if not lengths:
        return None
    found: Known | None = None
    digest, at = xxhash.xxh3_128(), 0
    with file.path.open("rb") if file.format == "parquet" else open_decoded(file) as f:
        for length in lengths:
            while at < length:
                try:
                    block = f.read(min(BLOCK, length - at))
                except TRUNCATED:
                    return found
                if not block:
                    return found
                digest.update(block)
                at += len(block)
            found = next((k for k in known if (k.length, k.digest) == (at, digest.hexdigest())), found)
    return found
