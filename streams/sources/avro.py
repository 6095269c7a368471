"""Avro enters, events as nested values leave: messages as Confluent's serializers frame them, and container files.

A value is what is written: a timestamp-millis is a number of ms, a date one of days, a decimal is bytes. So a record
that no calendar has costs nothing, and nothing is rounded; what a number means is the field map's to say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from typing import Any, BinaryIO

from fastavro import block_reader, parse_schema, schemaless_reader

from streams.sources.formats import NotOne, Unfold, Unfolded

MAGIC = b"\0"
PREFIX = 5  # bytes: the magic one, and the schema's id
TOGETHER = 20_000  # records of a container that are mapped in one go

Read = Callable[[BytesIO], Any]


def confluent(schemas: Mapping[str, str], options: Mapping[str, Any]) -> Unfold:
    """A decoder (see decoders): a zero byte, four bytes of the schema's id, and a body by that schema."""
    if options:
        raise ValueError(f"avro takes no options, and there are {', '.join(options)}")
    known = {
        number: _reads(text, f"the schema of id {number}" if number else "the schema")
        for number, text in schemas.items()
    }

    def unfold(record: bytes) -> list[Any]:
        if len(record) < PREFIX or record[:1] != MAGIC:
            begins = record[:PREFIX].hex(" ") or "nothing"
            raise NotOne(
                f"no message in Confluent's frame: it begins with {begins}, not with 00 and the id of a schema"
            )
        number = int.from_bytes(record[1:PREFIX], "big")
        read = known.get(str(number), known.get(""))
        if read is None:
            raise NotOne(f"its schema is {number}, and the map has {', '.join(known) or 'none'}: [format] schema says")
        body = BytesIO(record[PREFIX:])
        try:
            event = read(body)
        except NotOne as error:
            raise NotOne(f"{error}; its schema is {number}") from None
        if left := len(record) - PREFIX - body.tell():
            raise NotOne(f"{left} bytes are left over: its schema, {number}, is not the one that the map has")
        return event if isinstance(event, list) else [] if event is None else [event]

    return unfold


def _reads(text: str, what: str) -> Read:
    """How one value of a schema is read; a ValueError says why that can't be."""
    try:
        schema = parse_schema(_plain(json.loads(text)))
    except Exception as error:
        raise ValueError(f"{what} is none of Avro: {type(error).__name__}: {error}") from error
    if name := _inside_itself(schema, frozenset()):
        raise ValueError(f"{what} has a type that holds itself, {name}: a record of it can be too deep to be read")

    def read(body: BytesIO) -> Any:
        try:
            return schemaless_reader(body, schema, None)
        except (EOFError, IndexError) as error:
            raise NotOne("not Avro of this schema: it ends too early") from error
        except Exception as error:
            raise NotOne(f"not Avro of this schema: {type(error).__name__}: {error}") from error

    return read


def _plain(schema: Any) -> Any:
    """Without what would make objects of values."""
    if isinstance(schema, list):
        return [_plain(s) for s in schema]
    return {k: _plain(v) for k, v in schema.items() if k != "logicalType"} if isinstance(schema, dict) else schema


def _inside_itself(schema: Any, open_: frozenset[str]) -> str:
    """The name of a type that holds itself: fastavro's reader ends the process where a record of it is too deep."""
    if isinstance(schema, str):
        return schema if schema in open_ else ""
    if isinstance(schema, list):
        inside = schema
    else:
        open_ = open_ | {schema["name"]} if schema.get("type") in ("record", "error") else open_
        inside = [f["type"] for f in schema.get("fields", [])]
        inside += [schema[k] for k in ("type", "items", "values") if isinstance(schema.get(k), str | list | dict)]
    return next(filter(None, (_inside_itself(s, open_) for s in inside)), "")


def of_container(source: BinaryIO) -> Iterator[tuple[int, Unfolded]]:
    """(the number after the last, events) of some blocks at a time; NotOne where the file can't be read on."""
    begun, number, found = 0, 0, Unfolded()
    try:
        blocks = _step(lambda: block_reader(source))
        read = _reads(blocks.metadata["avro.schema"], "its schema")
        while (block := _step(lambda: next(blocks, None))) is not None:
            number = _unblocked(block, read, number, found)
            if number - begun >= TOGETHER:
                yield number, found
                begun, found = number, Unfolded()
    except (NotOne, ValueError) as error:
        if number > begun:
            yield number, found
        raise NotOne(str(error)) from error
    yield number, found


def _unblocked(block: Any, read: Read, number: int, found: Unfolded) -> int:
    """The number after the block's last record. Where one can't be read nobody knows where the next begins."""
    for at in range(block.num_records):
        try:
            event = read(block.bytes_)
        except NotOne as error:
            lost = block.num_records - at - 1
            found.bad.append((number, 0, f"{error}, and {lost:,} records of its block are lost with it", "", ""))
            return number + 1
        if event is None:
            found.empty.append(number)
        else:
            found.events.append(event)
            found.offsets.append(number)
            found.subs.append(0)
        number += 1
    return number


def _step(do: Callable[[], Any]) -> Any:
    """What fastavro raises at damage has many names."""
    try:
        return do()
    except Exception as error:
        raise NotOne(str(error) or "it ends too early") from error
