"""A map's table [format] enters, what unfolds its records leaves: by decoders that are shipped or that packages bring.

    [project.entry-points."asynchealth.formats"]
    orders = "ours.orders:decoder"

A decoder is called with the texts of the schemas that the map names, by id ("" where there is one for all), and with
the map's options; what it returns takes the bytes of one record and gives its events as nested values. A ValueError of
the first is what is wrong with the map, whatever the second raises what is wrong with that record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import msgspec

from detectors.events import UNREADABLE
from streams.problems import Problem, shell
from streams.sources.formats import NotOne, Unfold

GROUP = "asynchealth.formats"
SHIPPED = {"avro": EntryPoint("avro", "streams.sources.avro:confluent", GROUP)}
OF_MAPS = ("json", "otlp", "csv", "text")  # read by the words of the map itself

Decoder = Callable[[Mapping[str, str], Mapping[str, Any]], Unfold]


class Format(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """kind: json, otlp, csv, text, avro, or the name of a decoder that a package brings.

    schema: a file beside the map, or a table with one for each id; once the map is loaded, their texts by id. options:
    whatever else the decoder takes.
    """

    kind: str
    schema: str | dict[str, str] = ""
    options: dict[str, Any] = {}

    def loaded(self, folder: Path, where: str) -> Format:
        """With the texts of the schemas, so that a map whose schema has changed is another map."""
        files = self.schema if isinstance(self.schema, dict) else {"": self.schema} if self.schema else {}
        return msgspec.structs.replace(self, schema={i: _text(folder / f, where) for i, f in files.items()})


def _text(path: Path, where: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Problem(
            f"{where}: format.schema", f"{path} is not readable: {reason}", f"ls -l {shell(path.parent)}"
        ) from None


def decoders() -> dict[str, EntryPoint]:
    """All by name; what is shipped comes before what packages call the same."""
    found = {p.name: p for p in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value), reverse=True)}
    return {**found, **SHIPPED}


def decoder(given: Format) -> Unfold:
    """How its records are read; a ValueError says what is wrong with the map."""
    known = decoders()
    if given.kind not in known:
        raise ValueError(f"there is no format {given.kind!r}; there are {', '.join(sorted({*OF_MAPS, *known}))}")
    point = known[given.kind]
    schemas = given.schema if isinstance(given.schema, dict) else {}
    try:
        made: Unfold = point.load()(schemas, given.options)
    except ValueError:
        raise
    except (Exception, SystemExit) as error:
        whose = f"{point.dist.name if point.dist else 'asynchealth'}, entry point {point.name} = {point.value}"
        raise ValueError(f"{whose} does not load: {type(error).__name__}: {error}") from error
    return _held(made, given.kind)


def _held(unfold: Unfold, kind: str) -> Unfold:
    """Whatever a decoder does with a record costs no other."""

    def held(record: bytes) -> list[Any]:
        try:
            events = unfold(record)
        except (*UNREADABLE, NotOne):
            raise
        except Exception as error:
            raise NotOne(f"not {kind}: {type(error).__name__}: {error}") from error
        if not isinstance(events, list):
            raise NotOne(f"the decoder {kind} gave {type(events).__name__}, not a list of events")
        return events

    return held
