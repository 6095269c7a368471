"""Bytes enter, events as nested values leave: what one record holds in each format, whatever its fields mean.

A record of a file is a line, or several where a field map or an open quote says so; one of Kafka is a message. The
events of a file are numbered one by one, since one document may hold more of them than a message can.
"""

from __future__ import annotations

import csv
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any, NamedTuple

import msgspec

from detectors.events import LIST_MAX, TOO_MANY, UNREADABLE, excerpt, reason_of

Bad = tuple[int, int, str, str, str]  # offset, sub, reason, field, raw: see detectors.events.REJECTS
DELIMITERS = ",;\t|"
CSV_CELL = 1 << 24
OPEN = "unexpected end of data"  # as csv says it of a quote
csv.field_size_limit(CSV_CELL)


class NotOne(ValueError):
    """A record that is not of its format; its text is the reason for people."""


Unfold = Callable[[bytes], list[Any]]  # a record to its events; raises UNREADABLE or NotOne


@dataclass
class Unfolded:
    """Events with their coordinates, what could not be read, and the offsets of records that held no event."""

    events: list[Any] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    subs: list[int] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)

    def since(self, offset: int) -> Unfolded:
        """Of events in their order those from an offset on."""
        first = bisect_left(self.offsets, offset)
        bad = [b for b in self.bad if b[0] >= offset]
        empty = [at for at in self.empty if at >= offset]
        return Unfolded(self.events[first:], self.offsets[first:], self.subs[first:], bad, empty)

    def before(self, offset: int) -> Unfolded:
        """Of events in their order those before an offset."""
        first = bisect_left(self.offsets, offset)
        return Unfolded(self.events[:first], self.offsets[:first], self.subs[:first])


def of_messages(unfold: Unfold, records: Iterable[bytes | None], first_offset: int = 0) -> Unfolded:
    """An event's offset is that of its record, its sub the place in it."""
    found = Unfolded()
    for offset, record in enumerate(records, first_offset):
        try:
            events = [] if record is None else unfold(record)
        except (*UNREADABLE, NotOne) as error:
            found.bad.append((offset, 0, _why(error), "", excerpt(record or b"")))
            continue
        found.empty += [] if events else [offset]
        found.events += events[:LIST_MAX]
        found.subs += range(len(events[:LIST_MAX]))
        found.offsets += [offset] * len(events[:LIST_MAX])
        found.bad += [(offset, sub, TOO_MANY, "", "") for sub in range(LIST_MAX, len(events))]
    return found


def of_file(unfold: Unfold, records: Iterable[bytes], first_number: int = 0) -> tuple[int, Unfolded]:
    """(the number after the last, events): a record that holds none, or can't be read, takes a number, too."""
    found, number = Unfolded(), first_number
    for record in records:
        try:
            events = unfold(record)
        except (*UNREADABLE, NotOne) as error:
            found.bad.append((number, 0, _why(error), "", excerpt(record)))
            number += 1
            continue
        found.empty += [] if events else [number]
        found.events += events
        found.offsets += range(number, number + len(events))
        number += max(len(events), 1)
    found.subs = [0] * len(found.events)
    return number, found


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, NotOne) else reason_of(error)[0]


# ---- where values lie in an event ------------------------------------------------------------------------------------


class Paths:
    """Paths of values, looked up in one walk of an event. A key may hold dots itself, as attributes' do: of the keys
    that a path can be read as the one with the longest rest counts."""

    def __init__(self, paths: Iterable[str], under: str = "") -> None:
        self.under = under
        self.whole = {path: under + path for path in paths}
        self.tails: dict[str, list[str]] = {}
        for path in self.whole:
            head, dot, tail = path.partition(".")
            if dot:
                self.tails.setdefault(head, []).append(tail)
        self.heads: dict[str, Paths] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.whole)

    def of(self, event: Any) -> dict[str, Any]:
        """By path what lies there, of those at which something does."""
        found: dict[str, Any] = {}
        todo = [(self, event)]
        for paths, value in todo:
            if isinstance(value, dict):
                for key, inside in value.items():
                    if key in paths.whole:
                        found.setdefault(paths.whole[key], inside)
                    if key in paths.tails:
                        todo.append((paths._below(key), inside))
        return found

    def _below(self, head: str) -> Paths:
        """Made when an object is met there, for a key may be all dots."""
        if head not in self.heads:
            self.heads[head] = Paths(self.tails[head], f"{self.under}{head}.")
        return self.heads[head]


def paths_of(events: Iterable[Any], leaf: Callable[[str], bool] = lambda path: False) -> list[str]:
    """All paths at which an event holds a value that is no object, in the order in which they are met.

    leaf: of a path whether an object there is one value, as a vector clock is.
    """
    found: dict[str, None] = {}
    for event in events:
        found.update(dict.fromkeys(_paths(event, "", leaf)))
        if len(found) >= PATHS_MAX:
            break
    return [*found][:PATHS_MAX]


PATHS_MAX = 500  # a document with more has keys that are data
DEEPEST = 8


def _paths(value: Any, path: str, leaf: Callable[[str], bool]) -> Iterator[str]:
    if not isinstance(value, dict) or path.count(".") >= DEEPEST or (path and leaf(path)):
        yield from [path] if path else []
        return
    for key, inside in value.items():
        yield from _paths(inside, f"{path}.{key}" if path else key, leaf)


# ---- what a record holds --------------------------------------------------------------------------------------------


def of_json(members: str = "") -> Unfold:
    """An object, a list of them, or null.

    members: where an object may hold them instead, as CloudTrail's `Records` and the `payload` of Kafka Connect do.
    """
    held = Paths([members] if members else [])

    def unfold(record: bytes) -> list[Any]:
        document = msgspec.json.decode(record)
        value = held.of(document).get(members, document)
        return [] if value is None else value if isinstance(value, list) else [value]

    return unfold


def of_otlp(record: bytes) -> list[Any]:
    """Spans of OTLP/JSON (opentelemetry-proto, trace.proto), each with its attributes and its resource's as plain maps.

    Also a single resourceSpans entry, as some exporters write one per line.
    """
    document = msgspec.json.decode(record)
    if not isinstance(document, dict):
        raise NotOne("not OTLP: no object with resourceSpans")
    several = document.get("resourceSpans", [document] if "scopeSpans" in document else None)
    if several is None and document.keys() & {"resourceLogs", "resourceMetrics"}:
        return []
    if not isinstance(several, list):
        raise NotOne("not OTLP: no object with resourceSpans")
    return [*_spans(several)]


def _spans(several: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for one in _maps(several):
        resource = _attributes(one.get("resource"))
        for scope in _maps(one.get("scopeSpans") or one.get("instrumentationLibrarySpans")):
            for span in _maps(scope.get("spans")):
                span["attributes"] = _attributes(span)
                span["resource"] = resource
                yield span


def _maps(values: Any) -> list[dict[str, Any]]:
    return [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []


def _attributes(owner: Any) -> dict[str, Any]:
    """OTLP's list of {key, value: {stringValue: …}} as a map; 64-bit integers come as texts."""
    found = {}
    for pair in _maps(owner.get("attributes")) if isinstance(owner, dict) else ():
        key, value = pair.get("key"), pair.get("value")
        if isinstance(value, dict) and isinstance(key, str):
            found[key] = next(iter(value.values()), None)
    return found


def of_text(pattern: str) -> Unfold:
    """The named groups of a regular expression that the whole record matches; one called pairs holds key=value."""
    compiled = re.compile(pattern, re.DOTALL)

    def unfold(record: bytes) -> list[Any]:
        match = compiled.fullmatch(record.decode().rstrip("\r\n"))
        if not match:
            raise NotOne("the line does not match the map's pattern")
        said: dict[str, Any] = match.groupdict()
        if said.get("pairs"):
            said["pairs"] = {key: text if text is not None else word for key, text, word in _pairs(said["pairs"])}
        return [said]

    return unfold


PAIR = re.compile(r'(?<![\w.-])([A-Za-z_][\w.-]*)=(?:"((?:[^"\\]|\\.)*)"|(\S*?)[,;]?(?=\s|$))')


def _pairs(text: str) -> Iterator[tuple[str, str | None, str]]:
    """Each key with its text in quotes, or its word."""
    return ((m[1], m[2], m[3]) for m in PAIR.finditer(text))


def _cells(line: str, delimiter: str) -> list[str]:
    """None, where it can't be split by that."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


class Cells(NamedTuple):
    """How the rows of a CSV file are read: by its header."""

    delimiter: str
    header: list[str]

    @classmethod
    def of(cls, first: bytes) -> Cells | None:
        """By the first line, if it can be a header: several names, none twice, none a number or with a quote in it."""
        line = first.decode("utf-8", "replace").rstrip("\r\n")
        split = {d: _cells(line, d) for d in DELIMITERS}
        delimiter, names = max(split.items(), key=lambda item: len(item[1]))
        plausible = (
            len(names) > 1
            and len({*names}) == len(names)
            and all(re.search(r"[^\W\d]", n) and '"' not in n for n in names)
        )
        return cls(delimiter, names) if plausible and not line.lstrip().startswith(("{", "[")) else None

    def unfold(self, record: bytes) -> list[Any]:
        try:
            lines = StringIO(record.decode(), newline="")
            rows = [*csv.reader(lines, delimiter=self.delimiter, strict=True)]
        except csv.Error as error:
            reason = f"a quote opens and does not close within {OPEN_MAX:,} lines" if OPEN in str(error) else str(error)
            raise NotOne(f"not CSV: {reason}") from None
        if len(rows) != 1 or len(rows[0]) != len(self.header):
            cells = len(rows[0]) if rows else 0
            raise NotOne(f"{cells} cells, the header has {len(self.header)}")
        return [{name: cell or None for name, cell in zip(self.header, rows[0], strict=True)}]

    def reads(self, record: bytes) -> bool:
        try:
            return bool(self.unfold(record))
        except (*UNREADABLE, NotOne):
            return False


# ---- where records end ----------------------------------------------------------------------------------------------


OPEN_MAX = 1_000  # lines: a quote that is open for longer, with rows after it, is a stray one


def quoted(blocks: Iterable[list[bytes]]) -> Iterator[list[bytes]]:
    """Lines joined while a quote is open, as CSV has them; a stray one, that makes no row, costs its own line alone."""
    cells: Cells | None = None
    rest: list[bytes] = []
    for block in blocks:
        whole: list[bytes] = []
        for line in block:
            cells = cells or Cells.of(line)
            rest.append(line)
            if line.count(b'"') % 2 == (len(rest) > 1):
                whole += _joined(rest, cells)
                rest = []
            elif len(rest) == OPEN_MAX and len(lines := _joined(rest, cells)) > 1:
                whole += lines
                rest = []
        yield whole
    if rest:
        yield _joined(rest, cells)


def _joined(lines: list[bytes], cells: Cells | None) -> list[bytes]:
    """One record, unless it is none and lines of it are."""
    record = b"\n".join(lines)
    if len(lines) == 1 or cells is None or cells.reads(record) or not any(map(cells.reads, lines[1:])):
        return [record]
    return lines


def grouped(blocks: Iterable[list[bytes]], lines: int) -> Iterator[list[bytes]]:
    """So many lines as one record."""
    rest: list[bytes] = []
    for block in blocks:
        rest += block
        many = len(rest) // lines * lines
        yield [b"\n".join(rest[i : i + lines]) for i in range(0, many, lines)]
        rest = rest[many:]
    if rest:
        yield [b"\n".join(rest)]
