"""Paths enter, recordings leave: which files there are, what they hold by content, and whether they were read before.

A recording is known by the hash of its decoded bytes up to the known length, so a file that has grown is read on from
where it ended, and the same file under another name is not read twice. What bytes do not tell, records do (copies).
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import xxhash
import zstandard

from detectors.events import SCHEMA, STREAMS, UNREADABLE
from streams.problems import Exit, Problem, few, shell

NO_LOG = re.compile(r"[._].*|.*\.(crc|md5|sha1|sha256|sha512|sig|asc|toml)")  # _SUCCESS: of a job that has ended
TRUTH = "labels.json"  # of a simulated fleet, beside its logs
BLOCK = 1 << 22
PACKED_BLOCK = 1 << 16  # a packed byte may stand for a thousand
BOM = b"\xef\xbb\xbf"
MARKS = {b"PAR1": "parquet", b"Obj\x01": "avro"}  # of files that hold no lines
ARCHIVES = {
    b"PK\x03\x04": ("a zip archive", "unzip {0} -d DIR, then asynchealth replay DIR"),
    b"BZh": ("packed by bzip2", "bzcat {0} | asynchealth replay -"),
    b"\xfd7zX": ("packed by xz", "xzcat {0} | asynchealth replay -"),
    b"\x04\x22\x4d\x18": ("packed by lz4", "lz4 -dc {0} | asynchealth replay -"),
}
SHOWN = 3  # names
SPOOL = "spool"  # what is only needed while sources are read
DAMAGED = (EOFError, zlib.error, zstandard.ZstdError)
READABLE = "asynchealth.duckdb"  # a folder with this file is a state folder: what it holds is no recording


@dataclass(frozen=True)
class File:
    """A file to read: its path, the name that people see, and its format by content."""

    path: Path
    name: str
    format: str  # jsonl | parquet | avro
    packed: str  # "" | gz | zst

    @property
    def place(self) -> str:
        """Where people said it is: its path, or the name of what could be read only once."""
        path = self.path.as_posix()
        return path if path.endswith(self.name) else self.name


@dataclass(frozen=True)
class Known:
    """How much of a recording was read before: decoded bytes and their hash, records, null records, its partition.

    clock: where its arrivals stood at the end, in µs; None where it has none, or later rows may tell that they stood
    elsewhere. head: the hash of its first event.
    arrival: the column that held its arrivals, as asked for. by: the digest of the field map it was read with. Of a
    partition of Kafka, length is the offset at which it was first read, records the next one to read, head what it is
    known by; it has no digest.
    """

    stream: str
    name: str
    length: int
    digest: str
    records: int
    partition: int
    tombstones: int
    clock: int | None
    head: str = ""
    arrival: str = "arrival"
    by: str = ""


def find(paths: Sequence[str], state: Path) -> list[tuple[Path, str]]:
    """The files behind paths, globs, folders and `-` (standard input), each with the name that people see.

    In the order given, in folders by name. Where there is nothing behind a path it stays, for look() to say why.
    """
    found: list[tuple[Path, str]] = []
    for given in dict.fromkeys(paths):
        path = Path(given)
        if not given.strip():
            raise Problem("replay", "an empty path", "asynchealth replay PATH…, or - for standard input")
        if given == "-":
            if sys.stdin is None:
                raise Problem("-", "standard input is closed", "zcat LOG.gz | asynchealth replay -", Exit.NOTHING)
            found.append((_spooled(sys.stdin.buffer, state, len(found)), "-"))
        elif path.is_fifo():
            with path.open("rb") as pipe:
                found.append((_spooled(pipe, state, len(found)), given))
        elif path.exists() or not (matches := sorted(glob.glob(given, recursive=True))):
            found += _inside(path, state)
        else:
            found += [inside for match in matches for inside in _inside(Path(match), state)]
    return found


def _inside(path: Path, state: Path) -> list[tuple[Path, str]]:
    if not path.is_dir():
        return [(path, path.name if path.exists() else str(path))]
    every = sorted(path.rglob("*"))
    inside = [p for p in every if p.is_file() and p.name != TRUTH and not _in_state(p, path, state)]
    logs = [(p, str(p.relative_to(path))) for p in inside if not _is_none(p, path)]
    shut = [(p, f"{p.relative_to(path)}/") for p in every if _shut(p, path) and not _is_none(p, path)]
    found = [*logs, *shut]
    return found if found and len(logs) == len(inside) else [*found, (path, str(path))]


def _shut(folder: Path, top: Path) -> bool:
    """Whether it holds files that are not among those of the folder above: it can't be read, or is a link out of it."""
    if not folder.is_dir():
        return False
    return not _readable(folder) or (folder.is_symlink() and not folder.resolve().is_relative_to(top.resolve()))


def _readable(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.X_OK)


def _is_none(path: Path, top: Path) -> bool:
    """Whether its name, or that of a folder it is in, says that it is no log."""
    return any(NO_LOG.fullmatch(part) for part in path.relative_to(top).parts)


def _in_state(path: Path, top: Path, state: Path) -> bool:
    between = [top / p for p in path.relative_to(top).parents]
    return any((p / READABLE).exists() or p.resolve() == state.resolve() for p in between)


def _spooled(source: BinaryIO, state: Path, number: int) -> Path:
    """What can be read only once, as a file."""
    path = state / SPOOL / str(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        shutil.copyfileobj(source, out)
    return path


def look(path: Path, name: str) -> File:
    """A file with its format by content, or a problem that says why it can't be read."""
    if path.is_dir():
        raise _passed_over(path, name)
    try:
        with path.open("rb") as f:
            head = f.read(4)
    except FileNotFoundError:
        raise Problem(name, "no such file or folder", f"ls {shell(path.parent)}", Exit.NOTHING) from None
    except OSError as error:
        raise Problem(name, f"not readable: {error.strerror}", f"ls -l {shell(path)}", Exit.NOTHING) from None
    if head in MARKS:
        return File(path, name, MARKS[head], "")
    for mark, (what, command) in ARCHIVES.items():
        if head.startswith(mark):
            raise Problem(name, what, command.format(shell(path)), Exit.NOTHING)
    packed = "gz" if head[:2] == b"\x1f\x8b" else "zst" if head == b"\x28\xb5\x2f\xfd" else ""
    return File(path, name, "jsonl", packed)


def _passed_over(folder: Path, name: str) -> Problem:
    """What of a folder is not looked into, or that there is nothing."""
    named = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file() and _is_none(p, folder)]
    if not _readable(folder):
        return Problem(name, "not readable: Permission denied", f"ls -ld {shell(folder)}", Exit.NOTHING)
    if name.endswith("/"):
        then = f"asynchealth replay {shell(folder)}"
        return Problem(name, "a link to a folder, which is not followed", then, Exit.NOTHING)
    if not named:
        return Problem(name, "no files in this folder", f"ls {shell(folder)}", Exit.NOTHING)
    what = (
        f"passed over {len(named):,} that are hidden, marks, checksums or settings by their names: {few(named, SHOWN)}"
    )
    return Problem(name, what, f"asynchealth replay {shlex.quote(str(folder / named[0]))}, if it is one", Exit.NOTHING)


def decoded(file: File, reached: Callable[[int], None] = lambda _: None) -> Iterator[bytes]:
    """The file's bytes, unpacked, in blocks; one of DAMAGED is raised after the last good byte.

    reached: is told how many bytes of the file itself were read.
    """
    with file.path.open("rb") as raw:
        if not file.packed:
            while block := raw.read(BLOCK):
                reached(raw.tell())
                yield block
            return
        waiting, size = [], 0
        try:
            for piece in _unpacked(raw, file.packed):
                waiting.append(piece)
                size += len(piece)
                if size >= BLOCK:
                    reached(raw.tell())
                    yield b"".join(waiting)
                    waiting, size = [], 0
        except DAMAGED:
            yield b"".join(waiting)
            raise
        reached(raw.tell())
        yield b"".join(waiting)


def _unpacked(raw: BinaryIO, packed: str) -> Iterator[bytes]:
    """Decoded pieces of a file of one or more frames. Read by hand: gzip.open loses what it had decoded before an early
    end, and zstandard's reader takes one for the end."""
    frame, fresh = _frame(packed), True
    while block := raw.read(PACKED_BLOCK):
        while block:
            yield frame.decompress(block)
            block, fresh = (frame.unused_data.lstrip(b"\0"), True) if frame.eof else (b"", False)
            if fresh:
                frame = _frame(packed)
    if not fresh:
        raise EOFError("the end is missing")


def _frame(packed: str) -> Any:
    return zlib.decompressobj(wbits=31) if packed == "gz" else zstandard.ZstdDecompressor().decompressobj()


def stream_of(name: str, first: bytes = b"", columns: Sequence[str] = ()) -> str | None:
    """Which stream a recording is of: by its name, else by the fields of its first record."""
    own = name.rsplit("/", 1)[-1].lower()
    for stream in STREAMS:
        if own.startswith(stream):
            return stream
    has = {c for c in _FIELDS if f'"{c}"'.encode() in first} | set(columns)
    if {"client_time", "server_time"} <= has:
        return "heartbeats"
    if {"subject", "kind", "name"} <= has:
        return "signals"
    if "service_name" in has and len(has & _OF_REQUESTS) >= len(has & _OF_WRITES):
        return "requests"
    return "write_log" if {"entity_id", "vector_clock", "base_version", "version"} & has else None


_OF_REQUESTS = SCHEMA["requests"].keys() - SCHEMA["write_log"].keys() - {"service_name"}
_OF_WRITES = SCHEMA["write_log"].keys() - SCHEMA["requests"].keys()
_FIELDS = {"client_time", "server_time", "subject", "kind", "name", "service_name", *_OF_REQUESTS, *_OF_WRITES}


class Recording:
    """The records of one file, once, with the hash of what was read.

    When all is read, length and digest say how much it was and broken where a truncated file ends. torn: the last line
    has no end and is not JSON, so somebody may still be writing it; length and digest leave it out. reached: how many
    bytes of the file were read so far, or stand for the rows that were.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self.length = self.reached = 0
        self.torn = False
        self.broken = ""
        self._hash = xxhash.xxh3_128()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def lines(self) -> Iterator[list[bytes]]:
        """Blocks of records; a blank line is none."""
        rest: list[bytes] = []
        begun = False
        for block in self._blocks():
            *whole, tail = block.split(b"\n")
            if whole:
                self._took(*rest, block[: len(block) - len(tail)])
                whole[0] = b"".join([*rest, whole[0]])
                if not begun:
                    whole[0] = whole[0].removeprefix(BOM)
                begun, rest = True, []
                yield [line for line in whole if line and not line.isspace()]
            rest.append(tail)
        end = b"".join(rest)
        last = end if begun else end.removeprefix(BOM)
        if last and not last.isspace():
            self.torn = not _is_json(last)
            if not self.torn:
                self._took(end)
            yield [last]

    def _blocks(self) -> Iterator[bytes]:
        try:
            yield from decoded(self.file, self._reach)
        except DAMAGED as error:
            self.broken = f"damaged: {error}"

    def _reach(self, at: int) -> None:
        self.reached = at

    def _took(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._hash.update(piece)
            self.length += len(piece)

    def open_whole(self) -> BinaryIO:
        """For readers that find their own way in it."""
        for block in decoded(self.file):
            self._took(block)
        return self.file.path.open("rb")


def line_numbers(file: File) -> Iterator[int]:
    """Of each record that Recording.lines gives the number of its line, from 1; blank lines count, and are none."""
    number, says = 1, False
    with suppress(*DAMAGED):
        for at, block in enumerate(decoded(file)):
            first, *others = (block if at else block.removeprefix(BOM)).split(b"\n")
            says = says or not _blank(first)
            for line in others:
                if says:
                    yield number
                number, says = number + 1, not _blank(line)
    if says:
        yield number


def _blank(line: bytes) -> bool:
    return not line or line.isspace()


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except UNREADABLE:
        return False
    return True


def read_before(file: File, known: Sequence[Known]) -> Known | None:
    """The longest known recording that this file begins with; it has grown if it is longer."""
    by_content = {(k.length, k.digest): k for k in known}
    lengths = sorted({k.length for k in known})
    found: Known | None = None
    digest, at = xxhash.xxh3_128(), 0
    try:
        for block in decoded(file):
            rest = memoryview(block)
            while lengths and lengths[0] <= at + len(rest):
                upto = lengths.pop(0) - at
                digest.update(rest[:upto])
                rest, at = rest[upto:], at + upto
                found = by_content.get((at, digest.hexdigest()), found)
            if not lengths:
                break
            digest.update(rest)
            at += len(rest)
    except DAMAGED:
        pass  # what comes before the damage may well be known
    return found
