"""Recordings enter, typed chunks leave: bytes to rows of one stream, with offsets, rejects and where the file broke.

The seam for other formats: whatever gives columns under the schema's names goes through `conform` and is done.
"""

from __future__ import annotations

import codecs
import shlex
from collections.abc import Iterator, Sequence
from itertools import islice

import polars as pl

from detectors.events import SCHEMA, Decoded, conform, decode_json, fields
from streams.problems import Exit, Problem
from streams.sources.files import File, Recording, stream_of

CHUNK = 200_000  # records
LOOKED_AT = 100  # records, for one that tells what the file is of


def chunks(recording: Recording, stream: str, skip: int = 0) -> Iterator[tuple[int, Decoded]]:
    """(records in the chunk, what they hold), from record number `skip` on."""
    if recording.file.format == "parquet":
        yield from _parquet(recording, stream, skip)
        return
    offset = 0
    for lines in recording.lines():
        fresh = lines[max(0, skip - offset) :]
        for start in range(0, len(fresh), CHUNK):
            some = fresh[start : start + CHUNK]
            yield len(some), decode_json(stream, some, offset + len(lines) - len(fresh) + start)
        offset += len(lines)


def _parquet(recording: Recording, stream: str, skip: int) -> Iterator[tuple[int, Decoded]]:
    """Only the columns of the schema are read, so that no other type can be in the way."""
    frame = recording.open_parquet()
    there = set(frame.collect_schema().names())
    if missing := [f.name for f in fields(stream) if f.required and f.name not in there]:
        reason = f"has no column {', '.join(missing)}, which {stream} need"
        raise Problem(recording.file.name, reason, "rename the columns, or leave the file out", Exit.NOTHING)
    wanted = frame.select(n for n in SCHEMA[stream] if n in there).slice(skip)
    offset = skip
    for batch in _batches(recording, wanted):
        numbered = batch.with_columns(
            offset=pl.int_range(offset, offset + len(batch), dtype=pl.Int64), sub=pl.lit(0, dtype=pl.Int64)
        )
        events, rejects = conform(stream, numbered)
        yield len(batch), Decoded(events, rejects)
        offset += len(batch)


def _batches(recording: Recording, wanted: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """As many as can be read. At some damage polars panics, and at some it panics unseen and ends early."""
    left = int(wanted.select(pl.len()).collect().item())
    try:
        for batch in wanted.collect_batches(chunk_size=CHUNK, maintain_order=True):
            left -= len(batch)
            yield batch
    except (OSError, pl.exceptions.ComputeError, pl.exceptions.PanicException) as error:
        recording.broken = f"damaged: {str(error).splitlines()[0]}"
    if left and not recording.broken:
        recording.broken = f"damaged: {left:,} records can't be read"


BLANK = b"\0"  # what UTF-16 has between the letters of field names
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
    name = "FILE" if file.name == "-" else shlex.quote(str(file.path))
    given = f"{UNPACK[file.packed]} {name} | {command}" if file.packed else f"{command} {name}"
    return f"{given} > {stream_of(file.name, b''.join(first).replace(BLANK, b'')) or 'requests'}-lines.jsonl"


def recognise(file: File) -> str:
    """The stream of a recording, or a problem that says what was looked for."""
    recording = Recording(file)
    if file.format == "parquet":
        stream = stream_of(file.name, columns=recording.open_parquet().collect_schema().names())
    else:
        first = list(islice((line for lines in recording.lines() for line in lines), LOOKED_AT))
        if first and (form := other_form(first[0])):
            raise Problem(file.name, form[0], _to_lines(file, form[1], first), Exit.NOTHING)
        if not first or (recording.torn and len(first) == 1):
            reason = recording.broken or ("its only record has no end" if first else "empty")
            raise Problem(file.name, reason, "leave it out, or wait until it has records", Exit.NOTHING)
        stream = next(filter(None, (stream_of(file.name, line) for line in first)), None)
    if stream is None:
        raise Problem(
            file.name,
            "not recognised: its first records have none of the fields of requests (service_name), heartbeats "
            "(client_time, server_time), write_log (entity_id, version, …) or signals (subject, kind, name)",
            "name the file requests*.jsonl, heartbeats*.jsonl, write_log*.jsonl or signals*.jsonl",
            Exit.NOTHING,
        )
    return stream
