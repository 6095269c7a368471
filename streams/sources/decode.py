"""Recordings enter, typed chunks leave: bytes to rows of one stream, with offsets, rejects and where the file broke.

What is in our own schema is decoded as it is; all else is unfolded to events (formats) whose fields a map names.
"""

from __future__ import annotations

import codecs
import shlex
from collections import deque
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from detectors.events import REJECTS, SCHEMA, Decoded, conform, decode_json, excerpt, fields
from streams.privacy import Privacy
from streams.problems import Exit, Problem
from streams.sources.decoders import OF_MAPS
from streams.sources.fieldmap import FieldMap, Given, shipped
from streams.sources.files import File, Recording, line_numbers, stream_of
from streams.sources.formats import (
    Cells,
    NotOne,
    Unfold,
    Unfolded,
    grouped,
    of_file,
    of_json,
    of_messages,
    of_otlp,
    of_text,
    quoted,
)
from streams.sources.mapping import Kin, about_of, column_of, column_text, kin_of, mapped, texts

CHUNK = 200_000  # records
LOOKED_AT = 100  # records, for one that tells what the file is of
TAR = slice(257, 262)  # where one says that it is one
LINES = 5_000  # that are looked at for bytes that no text has


class Reading(NamedTuple):
    """What a recording is read as: our own schema, or what a field map makes of it, and what nobody may keep of it."""

    stream: str
    map: FieldMap | None = None
    private: Privacy | None = None

    @property
    def by(self) -> str:
        """What it was read by: another map, or privacy, makes other rows of it."""
        return (self.map.digest if self.map else "") + (f"+{self.private.by}" if self.private else "")

    @property
    def format(self) -> str:
        """The map's name."""
        return self.map.name if self.map else ""

    @property
    def ordered(self) -> bool:
        """Whether its rows have an order, and no time."""
        return self.map is not None and self.map.ordered

    def kept(self, decoded: Decoded) -> Decoded:
        """What may be kept, before anything is written or shown."""
        if self.private is None:
            return decoded
        foreign = self.map.kind if self.map and self.map.kind not in OF_MAPS else ""
        return self.private.kept(self.stream, decoded, foreign)


def chunks(recording: Recording, reading: Reading, skip: int = 0) -> Iterator[tuple[int, Decoded]]:
    """(records in the chunk, what they hold), from record number `skip` on."""
    if reading.map:
        reading = reading._replace(map=reading.map.within(recording.file.place))
    if recording.file.format == "parquet":
        found = _parquet(recording, reading, skip)
    elif reading.map:
        found = _mapped(recording, reading.map, skip)
    else:
        found = _own(recording, reading.stream, skip)
    yield from ((count, reading.kept(decoded)) for count, decoded in found)


def _own(recording: Recording, stream: str, skip: int) -> Iterator[tuple[int, Decoded]]:
    offset = 0
    for lines in recording.lines():
        fresh = lines[max(0, skip - offset) :]
        for start in range(0, len(fresh), CHUNK):
            some = fresh[start : start + CHUNK]
            yield len(some), decode_json(stream, some, offset + len(lines) - len(fresh) + start)
        offset += len(lines)


def _mapped(recording: Recording, given: FieldMap, skip: int) -> Iterator[tuple[int, Decoded]]:
    """A row's parent and children may come after it: where a map takes from them, all is read before a row leaves."""
    number, before, waiting = 0, list[pl.DataFrame](), deque[tuple[int, Decoded]]()
    for end, found in _unfolded(recording, given):
        fresh, told = end - max(number, skip), _told(given, found.since(skip))
        if given.kin:
            before.append(texts(given, found.before(skip)))
            waiting.append((max(fresh, 0), told))
        elif fresh > 0:
            yield fresh, _rows(given, told)
        number = end
    kin = kin_of(given, [*before, *(told.events for _, told in waiting)]) if waiting else None
    while waiting:
        fresh, told = waiting.popleft()
        if fresh:
            yield fresh, _rows(given, told, kin)


def messages(reading: Reading, values: Sequence[bytes | None]) -> Decoded:
    """Records of a topic, numbered from 0. What one of them holds does not depend on those that came with it."""
    if reading.map is None:
        return reading.kept(decode_json(reading.stream, [b"null" if v is None else v for v in values]))
    decoded = from_fields(reading.map, of_messages(unfold_of(reading.map), values))
    return reading.kept(replace(decoded, tombstones=int(empty(decoded, len(values)).sum())))


def empty(decoded: Decoded, records: int) -> npt.NDArray[np.bool_]:
    """Of each record, numbered from 0, whether it holds nothing for us and nothing that is wrong."""
    nothing = np.ones(records, bool)
    nothing[decoded.events["offset"].to_numpy()] = nothing[decoded.rejects["offset"].to_numpy()] = False
    return nothing


def from_fields(given: FieldMap, found: Unfolded) -> Decoded:
    """Events of any format as those of a stream; rows that the map is not about count as empty."""
    return _rows(given, _told(given, found))


def _told(given: FieldMap, found: Unfolded) -> Decoded:
    """As events the texts of those that the map is about."""
    about = texts(given, found)
    bad = pl.DataFrame(found.bad, schema=REJECTS, orient="row")
    return Decoded(about, bad, len(found.empty) + len(found.events) - len(about))


def _rows(given: FieldMap, told: Decoded, kin: Kin | None = None) -> Decoded:
    decoded = mapped(given, told.events, kin)
    return replace(told, events=decoded.events, rejects=pl.concat([told.rejects, decoded.rejects]))


def _unfolded(recording: Recording, given: FieldMap) -> Iterator[tuple[int, Unfolded]]:
    """(the number after the last, events) of each block; in formats without a mark for it, a last line without an end
    may be half a line."""
    if recording.file.format == "avro":
        yield from _contained(recording)
        return
    number, unfold = 0, None if given.kind == "csv" else unfold_of(given)
    for records in _framed(recording, given):
        if unfold is None and records:
            unfold = _header(recording.file, records.pop(0)).unfold
        if unfold is None:
            continue
        cut = recording.torn and given.kind in ("csv", "text") and records
        number, found = of_file(unfold, records[:-1] if cut else records, number)
        if cut:
            found.bad.append((number, 0, NO_END, "", excerpt(records[-1])))
            number += 1
        yield number, found


def _contained(recording: Recording) -> Iterator[tuple[int, Unfolded]]:
    from streams.sources.avro import of_container  # none of the others needs its library

    with recording.open_whole() as source:
        try:
            for end, found in of_container(source):
                recording.reached = source.tell()
                yield end, found
        except NotOne as error:
            recording.broken = f"damaged: {error}"


def lines_of(file: File, given: FieldMap, numbers: Container[int]) -> dict[int, int]:
    """Of events that are known by their numbers the line, from 1, on which their record begins."""
    recording, found, number = Recording(file), dict[int, int](), 0
    unfold = None if given.kind == "csv" else unfold_of(given)
    places = line_numbers(file)
    for records in _framed(recording, given):
        for record in records:
            line, *_ = islice(places, 1 + record.count(b"\n"))
            if unfold is None:
                unfold = _header(file, record).unfold
                continue
            end, _ = of_file(unfold, [record], number)
            found |= {n: line for n in range(number, end) if n in numbers}
            number = end
    return found


def _header(file: File, first: bytes) -> Cells:
    if cells := Cells.of(first):
        return cells
    reason = "its first line is no header: several names, no two the same, none a number"
    raise Problem(file.name, reason, f"put a line of names before it: head -2 {shlex.quote(file.name)}", Exit.NOTHING)


def unfold_of(given: FieldMap) -> Unfold:
    """How its records are read; a CSV file needs its header, see formats.Cells."""
    match given.kind:
        case "json":
            return of_json(given.members)
        case "otlp":
            return of_otlp
        case "text":
            return of_text(given.line)
        case _:
            return given.decoder


NO_END = "the last line has no end, so it may be half a line: end the file with a newline if it is whole"


def _framed(recording: Recording, given: FieldMap) -> Iterator[list[bytes]]:
    if given.kind == "csv":
        return quoted(recording.lines())
    return grouped(recording.lines(), given.lines) if given.lines > 1 else recording.lines()


def _parquet(recording: Recording, reading: Reading, skip: int) -> Iterator[tuple[int, Decoded]]:
    """Only the columns that are wanted are read, so that no other type can be in the way."""
    from streams.sources.parquet import opened

    stream, table = reading.stream, opened(recording)
    if reading.map:
        wanted = [column_text(p, table.shape) for p in reading.map.paths]
        names = [n for p in reading.map.paths if (n := column_of(p, table.shape))]
    elif missing := [f.name for f in fields(stream) if f.required and f.name not in table.shape]:
        reason = f"has no column {', '.join(missing)}, which {stream} need"
        raise Problem(recording.file.name, reason, "rename the columns, or leave the file out", Exit.NOTHING)
    else:
        names = [n for n in SCHEMA[stream] if n in table.shape]
        wanted = [pl.col(n) for n in names]
    offset, size = skip, recording.file.path.stat().st_size
    try:
        for frame in table.frames(names, skip):
            number = pl.int_range(offset, offset + len(frame), dtype=pl.Int64).alias("offset")
            offset += len(frame)
            recording.reached = size * offset // table.rows
            yield len(frame), _of_columns(reading, frame.select(*wanted, number, pl.lit(0, pl.Int64).alias("sub")))
    except NotOne as error:
        recording.broken = f"damaged: {error}"


def _of_columns(reading: Reading, numbered: pl.DataFrame) -> Decoded:
    if reading.map is None:
        return Decoded(*conform(reading.stream, numbered))
    about = about_of(reading.map, numbered)
    return replace(mapped(reading.map, about), tombstones=len(numbered) - len(about))


BLANK = b"\0"  # what no text has, and UTF-16 between the letters of field names
UNPACK = {"gz": "zcat", "zst": "zstdcat"}


def other_form(first: bytes) -> tuple[str, str] | None:
    """(what a file is by its first line, the command that makes lines of it), where it is not one event per line."""
    for mark, encoding in ENCODINGS.items():
        if first.startswith(mark):
            return f"{encoding}, not UTF-8", f"iconv -f {encoding} -t UTF-8"
    line = first.strip()
    if line.startswith(b"[") and (line in (b"[", b"[{") or line.endswith(b",")):
        return "a JSON array over several lines: one event per line is needed", "jq -c '.[]'"
    if line == b"{":
        return "JSON objects over several lines: one event per line is needed", "jq -c ."
    return None


ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # it begins as that of UTF-16 does
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    b"{\0": "UTF-16LE",
    b"\0{": "UTF-16BE",
}


def _to_lines(file: File, command: str, first: Sequence[bytes]) -> str:
    """The command that writes a file as it can be read, beside the one that is there."""
    name = _typed(file)
    given = f"{UNPACK[file.packed]} {name} | {command}" if file.packed else f"{command} {name}"
    return f"{given} > {stream_of(file.name, b''.join(first).replace(BLANK, b'')) or 'requests'}-lines.jsonl"


def _typed(file: File) -> str:
    return "FILE" if file.name == "-" else shlex.quote(str(file.path))


def recognise(file: File, maps: Sequence[FieldMap] = ()) -> Reading:
    """What a recording is read as, by its content, or a problem that says what was looked for.

    maps: given by people; one that names this file, or all files, goes before all that is recognised.
    """
    if asked := next((m for m in maps if fnmatch(file.name, m.files)), None):
        return Reading(asked.stream, asked)
    if file.format == "avro":
        found = _by_container(file)
    elif file.format == "parquet":
        from streams.sources.parquet import opened

        found = _by_columns(file, opened(Recording(file)).shape.names())
    else:
        found = _by_lines(file)
    if found:
        return found
    refuse_binary(file)
    raise Problem(
        file.name,
        "not recognised: its first records have none of the fields of requests (service_name), heartbeats "
        "(client_time, server_time), write_log (entity_id, version, …) or signals (subject, kind, name), nor of "
        + ", ".join(m.name for m in shipped() if m.has),
        _unknown(file),
        Exit.NOTHING,
    )


def _unknown(file: File) -> str:
    """What to do with a file that nothing tells the stream of; a name makes no JSON of lines that are none."""
    if file.format == "avro":
        return f"say with MAP.toml what is what: asynchealth replay {_typed(file)} --map MAP.toml"
    draft = f"draft a field map: asynchealth map --infer {_typed(file)} > MAP.toml"
    if file.format == "parquet" or not any(line.startswith((b"{", b"[")) for line in first_lines(file)):
        return draft
    return f"name the file requests*.jsonl, heartbeats*.jsonl, write_log*.jsonl or signals*.jsonl, or {draft}"


def first_lines(file: File) -> list[bytes]:
    """What tells what a file is of; a problem where they say that it can't be read as it is."""
    recording = Recording(file)
    first = list(islice((line for lines in recording.lines() for line in lines), LOOKED_AT))
    if first and first[0][TAR] == b"ustar":
        then = f"tar -xf {_typed(file)} -C DIR, then asynchealth replay DIR"
        raise Problem(file.name, "a tar archive", then, Exit.NOTHING)
    if len(first) == 1 and b"\r" in first[0].strip() and _is_text(first[0]):
        reason = "its lines end in CR alone: lines that end in LF, or CR and LF, are needed"
        raise Problem(file.name, reason, _to_lines(file, "sed 's/\\r/\\n/g'", first), Exit.NOTHING)
    if first and (form := other_form(first[0])):
        raise Problem(file.name, form[0], _to_lines(file, form[1], first), Exit.NOTHING)
    if not first or (recording.torn and len(first) == 1):
        reason = recording.broken or ("its only record has no end" if first else "empty")
        raise Problem(file.name, reason, "leave it out, or wait until it has records", Exit.NOTHING)
    return first


def _is_text(line: bytes) -> bool:
    try:
        return "\0" not in line.decode()
    except UnicodeDecodeError:
        return False


def refuse_binary(file: File) -> None:
    """What holds a zero byte is no text: the lines of its beginning are nothing to show."""
    if file.format != "jsonl":
        return
    every = (line for lines in Recording(file).lines() for line in lines)
    if any(BLANK in line for line in islice(every, LINES)):
        then = f"file {shlex.quote(str(file.path))} says what it is; text, Parquet, and .gz or .zst of text can be read"
        raise Problem(file.name, "binary: it holds no lines of text", then, Exit.NOTHING)


def _by_lines(file: File) -> Reading | None:
    first = first_lines(file)
    if given := shipped_of(first):
        return Reading(given.stream, given)
    if cells := Cells.of(first[0]):
        return _by_columns(file, cells.header, "csv")
    stream = next(filter(None, (stream_of(file.name, line) for line in first)), None)
    if stream is None and (of := next((m.name for m in shipped() if m.has and _empty(m, first)), None)):
        raise Problem(
            file.name,
            f"holds no event, only an empty list of {of}",
            "leave it out, or wait until it has some",
            Exit.NOTHING,
        )
    return Reading(stream) if stream else None


def _empty(given: FieldMap, first: Sequence[bytes]) -> bool:
    """Whether the first records are all of its format, and hold nothing."""
    return given.kind in ("json", "otlp") and len(of_messages(unfold_of(given), first).empty) == len(first)


def shipped_of(first: Sequence[bytes]) -> FieldMap | None:
    """The shipped map that recognises the first records."""
    known = (m for m in shipped() if m.kind != "csv")
    return next((m for m in known if any(map(m.recognises, _first_events(m, first)))), None)


def _by_container(file: File) -> Reading | None:
    """By a shipped map that knows its records, else by our own names."""
    recording = Recording(file)
    some = next(_contained(recording), None)
    if some is None:
        reason = f"not a whole Avro container file: {recording.broken}"
        raise Problem(file.name, reason, "write it again, or leave it out", Exit.NOTHING)
    events = some[1].events[:LOOKED_AT]
    for given in shipped():
        if given.kind == "json" and any(map(given.recognises, events)):
            return Reading(given.stream, given)
    names = dict.fromkeys(name for event in events if isinstance(event, dict) for name in event)
    stream = stream_of(file.name, columns=[*names])
    return _own_names(file, stream, [*names], "avro") if stream else None


def _first_events(given: FieldMap, records: Sequence[bytes]) -> list[Any]:
    return of_messages(unfold_of(given), records).events[:LOOKED_AT]


def _by_columns(file: File, columns: Sequence[str], format_: Literal["csv"] | None = None) -> Reading | None:
    """By a shipped map whose fields are columns, else by our own names."""
    named = dict.fromkeys(columns, "")
    for given in shipped():
        kind = given.kind
        if kind != "text" and (format_ is None or kind == format_) and given.recognises(named):
            return Reading(given.stream, given)
    stream = stream_of(file.name, columns=columns)
    if stream is None or format_ is None:
        return Reading(stream) if stream else None
    return _own_names(file, stream, columns, format_)


def _own_names(file: File, stream: str, columns: Sequence[str], name: str) -> Reading:
    """Our own fields, each under its name, in a form that is not ours."""
    own: dict[str, Given] = {n: n for n in SCHEMA[stream] if n in columns}
    if missing := [f.name for f in fields(stream) if f.required and f.name not in own]:
        reason = f"has no column {', '.join(missing)}, which {stream} need"
        draft = f"asynchealth map --infer {_typed(file)} > MAP.toml"
        then = draft if name == "csv" else "rename the columns, or say with --map MAP.toml what is what"
        raise Problem(file.name, reason, then, Exit.NOTHING)
    return Reading(stream, FieldMap(stream=stream, name=name, format=name, fields=own))  # type: ignore[arg-type]
