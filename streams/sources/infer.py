"""Columns of a log that nobody described enter, a draft of its field map leaves: what each field may be, and why.

A field is chosen by its name and by what it holds: a rule is tried on the sample by the code that will read the whole
log, and one of a field that is not required is only in the draft if it refuses nothing. What a person has to decide, or
to check since names and values can't tell it, is a todo.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from statistics import median
from typing import Any, Literal, NamedTuple

import msgspec
import polars as pl

from detectors.events import INSTANT, SCHEMA, STREAMS, Decoded, Field, fields
from streams.sources.fieldmap import FieldMap, Given, Rule, Unit, is_duration
from streams.sources.mapping import NS_PER, about_of, held_in, mapped, value_of
from streams.sources.words import CODES, END, FAILURE, IDS, NOTHING, OF_GRPC, OF_HTTP, START, Match, matched, meaning

NUMBER = re.compile(r"\d+(\.\d*)?")
PORT = re.compile(r"\S+:\d+")
POD = re.compile(r"[a-z0-9-]+-[a-z0-9]{5,10}-[a-z0-9]{5}")  # Deployment, ReplicaSet, and five letters of its own
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
SPELT = re.compile(r"(\d+(?:\.\d+)?)(ns|µs|us|ms|s)")  # durations as Go writes them
UNITS: tuple[Unit, ...] = ("s", "ms", "us", "ns")
FIRST, LAST = datetime(2000, 1, 1), datetime(2100, 1, 1)  # a number outside these years is no time
SHOWN = 32  # characters of a value
MOST = 0.9  # of the values of a required field must be readable
FEW = frozenset({"service_name", "node_id", "caller", "environment", "tenant", "region", "entity_type", "op", "error"})
CLASS_CHARS = 80  # an error's class; what is longer is its message
TELLING = {  # fields that only a record of this stream has, and how much each says
    "requests": dict.fromkeys(SCHEMA["requests"].keys() - SCHEMA["write_log"].keys() | {"service_name"}, 1),
    "write_log": dict.fromkeys(SCHEMA["write_log"].keys() - SCHEMA["requests"].keys(), 1),
    "heartbeats": {"client_time": 2, "server_time": 2, "observer": 1, "reply_sent": 1, "reply_received": 1},
    "signals": {"subject": 2, "kind": 2, "name": 2},
}
ONE_OF = {"write_log": {"entity_id", "version", "base_version", "vector_clock"}}  # without one of them it is none
FORMATS = {  # texts of times that need a format, and whether it says the zone
    "%d/%b/%Y:%H:%M:%S %z": True,
    "%a, %d %b %Y %H:%M:%S GMT": True,
    "%a, %d %b %Y %H:%M:%S %z": True,
    "%Y-%m-%d %H:%M:%S%.f %z": True,
    "%Y%m%dT%H%M%SZ": True,
    "%Y-%m-%d %H:%M:%S,%3f": False,
    "%Y/%m/%d %H:%M:%S%.f": False,
    "%d.%m.%Y %H:%M:%S%.f": False,
    "%d/%m/%Y %H:%M:%S%.f": False,
    "%m/%d/%Y %H:%M:%S%.f": False,
    "%a %b %e %H:%M:%S %Y": False,
    "%d %b %Y %H:%M:%S%.f": False,
}


@dataclass(frozen=True)
class Column:
    """What a sample holds at one path: its texts, without those that say nothing."""

    path: str
    texts: pl.Series

    @cached_property
    def values(self) -> list[str]:
        return self.texts.drop_nulls().to_list()

    @cached_property
    def counts(self) -> Counter[str]:
        return Counter(self.values)

    @property
    def share(self) -> str:
        """Of the rows that have it."""
        part = "all" if len(self.values) == len(self.texts) else f"{len(self.values):,} of"
        return f"in {part} {len(self.texts):,} rows"

    @cached_property
    def times(self) -> Times | None:
        """How most of its values can be read as times."""
        return _times(self) if self.values else None

    def times_of(self, most: float) -> Times | None:
        """The same, if that is this share of its values or more."""
        return self.times if self.times and self.times.read >= most * len(self.values) else None

    def all_match(self, pattern: re.Pattern[str]) -> bool:
        return all(map(pattern.fullmatch, self.counts))


@dataclass(frozen=True)
class Choice:
    """Rules for a field, why they were chosen, and what only a person can tell."""

    path: str
    rules: list[Rule]
    why: list[str]
    todo: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Draft:
    """A field map to be checked by a person.

    missing: required fields that nothing looks like. doubts: why a path was not taken though it is named so. tried:
    what the map makes of the sample; None where it is not whole.
    """

    stream: str
    format: Literal["json", "csv"]
    members: str
    nothing: list[str]
    columns: dict[str, Column]
    choices: dict[str, Choice]
    missing: list[str]
    doubts: dict[str, str]
    tried: Decoded | None = None

    @property
    def map(self) -> FieldMap:
        named: dict[str, Given] = {name: [*choice.rules] for name, choice in self.choices.items()}
        stream: Any = self.stream
        return FieldMap(stream=stream, format=self.format, members=self.members, nothing=self.nothing, fields=named)

    @property
    def score(self) -> int:
        """How much in it tells of its stream."""
        if not self.choices.keys() & ONE_OF.get(self.stream, self.choices.keys()):
            return 0
        return sum(much for name, much in TELLING[self.stream].items() if name in self.choices)

    @property
    def unused(self) -> list[Column]:
        taken = {p for c in self.choices.values() for r in c.rules for p in [*r.paths, r.parent]}
        return [c for path, c in self.columns.items() if path not in taken and c.values]

    @property
    def usable(self) -> bool:
        """Whether it makes any row of the sample."""
        return self.tried is not None and len(self.tried.events) > 0


def infer(sample: pl.DataFrame, paths: Sequence[str], format_: Literal["json", "csv"], members: str = "") -> Draft:
    """sample: the columns of these paths, as mapping.columns_of gives them."""
    seen = {v for p in paths for v in sample[held_in(p)].unique().to_list()}
    nothing = [word for word in NOTHING if word in seen]
    said = about_of(FieldMap(stream="requests", fields={p: p for p in paths}, nothing=nothing), sample)
    columns = {p: Column(p, said[held_in(p)]) for p in paths}
    drafts = [_Search(stream, columns, said).draft(format_, members, nothing) for stream in STREAMS]
    eligible = [d for d in drafts if d.stream in ("requests", "write_log") or len(d.missing) == 0]
    best = max(eligible, key=lambda d: (d.score, not d.missing))
    return best if best.missing else replace(best, tried=mapped(best.map, about_of(best.map, sample)))


class _Search:
    """Of one stream the fields that have a column, the required ones first."""

    def __init__(self, stream: str, columns: Mapping[str, Column], sample: pl.DataFrame) -> None:
        self.stream, self.every, self.sample = stream, columns, sample
        self.columns = {p: c for p, c in columns.items() if c.values}
        self.choices: dict[str, Choice] = {}
        self.doubts: dict[str, str] = {}

    def draft(self, format_: Literal["json", "csv"], members: str, nothing: list[str]) -> Draft:
        known = fields(self.stream)
        for one in sorted(known, key=lambda f: not f.required):
            self._look_for(one)
        self._from_others()
        missing = [f.name for f in known if f.required and f.name not in self.choices]
        order = {f.name: self.choices[f.name] for f in known if f.name in self.choices}
        return Draft(self.stream, format_, members, nothing, {**self.every}, order, missing, self.doubts)

    def _look_for(self, one: Field) -> None:
        taken = {c.path for c in self.choices.values()}
        named = ((matched(one.name, path), c) for path, c in self.columns.items() if path not in taken)
        for match, column in sorted(((m, c) for m, c in named if m), key=lambda pair: pair[0].rank):
            found = self._judged(one, column, match)
            if isinstance(found, Choice):
                self.choices[one.name] = found
                return
            self.doubts.setdefault(column.path, f"named as {one.name} is, but {found}")
        if by_value := BY_VALUE.get(one.name):
            free = (c for path, c in self.columns.items() if path not in taken)
            if told := next(filter(None, map(by_value, free)), None):
                self.choices[one.name] = told

    def _judged(self, one: Field, column: Column, match: Match) -> Choice | str:
        """The choice, or what is wrong with it."""
        found = _choice(one, column, match)
        if isinstance(found, str) or (one.required and one.dtype == INSTANT):
            return found
        wrong = self._refused(one, found.rules)
        return wrong or replace(found, why=[f"named as {one.name} is", *found.why])

    def _refused(self, one: Field, rules: list[Rule]) -> str:
        """What the code that will read the log says of a rule, tried on the rows that have a value."""
        others: dict[str, Any] = {
            f.name: Rule(value="2026-01-01T00:00:00Z" if f.dtype == INSTANT else (*f.values, "x")[0])
            for f in fields(self.stream)
            if f.required
        }
        given = FieldMap(stream=self.stream, fields={**others, one.name: [*rules]})  # type: ignore[arg-type]
        rows = self.sample.filter(pl.any_horizontal(pl.col(held_in(p)).is_not_null() for r in rules for p in r.paths))
        rejects = mapped(given, rows).rejects
        if rejects.is_empty():
            return ""
        reason, raw = rejects.row(0, named=True)["reason"], rejects.row(0, named=True)["raw"]
        return f"{len(rejects):,} of {len(rows):,} values are not ({reason}): {raw}"

    def _from_others(self) -> None:
        """What a log does not say in a field of its own, but in others."""
        if self.stream == "requests":
            _service_of_pods(self.choices, self.columns)
            _node_of_service(self.choices, self.columns)
            _caller_of_parents(self.choices, self.columns)
            _duration_of_end(self.choices, self.columns)
            _start_of_end(self.choices)
        _other_clocks(self.choices, self.columns)


# ---- one column as one field ----------------------------------------------------------------------------------------


def _choice(one: Field, column: Column, match: Match) -> Choice | str:
    if one.dtype == INSTANT:
        return _as_time(column, MOST if one.required else 1.0)
    if is_duration(one.name):
        return _as_duration(column, match.unit)
    if one.name == "status":
        return _as_status(column, match.name)
    if one.values:
        return _as_words(one, column)
    if one.name == "retry_count":
        return _as_retries(column, match.name)
    if one.dtype == pl.String():
        return _as_text(one, column)
    return Choice(column.path, [Rule(source=column.path)], [column.share])


class Times(NamedTuple):
    """How a column is read as times: by which rule, how many of its values, from when to when."""

    rule: Rule
    read: int
    first: datetime
    last: datetime
    others: list[str]  # formats that read the same texts as other times


def _attempts(path: str) -> Iterator[Rule]:
    yield from (Rule(source=path, unit=unit) for unit in UNITS)
    yield Rule(source=path)
    yield Rule(source=path, zone="UTC")
    yield from (Rule(source=path, format=f, zone="" if "%z" in f else "UTC") for f in FORMATS)


def _times(column: Column) -> Times | None:
    """By the first of the rules that read most of its values as times of our years."""
    if not any(sum(map(str.isdigit, v)) >= 6 for v in column.values[:20]):
        return None
    rules = [*_attempts(column.path)]
    texts = column.texts.drop_nulls().to_frame(held_in(column.path))
    read = texts.select(value_of(rule, "timestamp", INSTANT).alias(str(i)) for i, rule in enumerate(rules))
    read = read.select(
        pl.when(pl.all().dt.replace_time_zone(None).is_between(FIRST, LAST, closed="left")).then(pl.all())
    )
    counts = [read[str(i)].count() for i in range(len(rules))]
    best = counts.index(max(counts))
    if not counts[best]:
        return None
    times: Any = read[str(best)]
    whole = [i for i, n in enumerate(counts) if n == counts[best] and rules[best].format and rules[i].format]
    others = [rules[i].format for i in whole if i != best and not read[str(i)].equals(times)]
    return Times(rules[best], counts[best], times.min(), times.max(), others)


def _as_time(column: Column, most: float) -> Choice | str:
    found = column.times_of(most)
    if not found:
        return f"not times from {FIRST.year} on: {column.values[0]}"
    rule, told = found.rule, bool(FORMATS.get(found.rule.format))
    why = [f"{_kind(rule)}, {found.first:%Y-%m-%d %H:%M:%S} to {found.last:%Y-%m-%d %H:%M:%S}", column.share]
    todo = []
    if rule.zone and not told:
        todo.append('zone: the times have none; "UTC" is a guess. Write that of the log: UTC, -04:00, Europe/Berlin')
    if found.others:
        todo.append(f"format: all values can also be read as {', '.join(found.others)}")
    if unread := len(column.values) - found.read:
        todo.append(f"{unread:,} values can't be read so; their rows will be rejects")
    return Choice(column.path, [rule], why, todo)


def _kind(rule: Rule) -> str:
    if rule.unit:
        return f"numbers that are an epoch in {rule.unit}"
    if rule.format:
        return f"times as {rule.format}"
    return "times without a zone" if rule.zone else "RFC 3339 times with a zone"


def _by_value_time(column: Column) -> Choice | None:
    found = _as_time(column, 1.0)
    return replace(found, why=["no name tells", *found.why]) if isinstance(found, Choice) else None


def _as_duration(column: Column, unit: Unit | None) -> Choice | str:
    path = column.path
    if column.all_match(SPELT):
        units = dict.fromkeys(SPELT.fullmatch(v)[2] for v in column.counts)  # type: ignore[index]
        rules = [Rule(source=path, capture=f"^([0-9.]+){u}$", unit="us" if u == "µs" else u) for u in units]  # type: ignore[arg-type]
        return Choice(path, rules, [f"numbers with their unit ({', '.join(units)})", column.share])
    if other := next((v for v in column.counts if not NUMBER.fullmatch(v)), None):
        return f"no number: {other}"
    numbers = sorted(map(float, column.values))
    low, mid, high = numbers[0], median(numbers), numbers[-1]
    why = [f"{_short(low)} to {_short(high)}, median {_short(mid)}", column.share]
    if unit:
        return Choice(path, [Rule(source=path, unit=unit)], [f"in {unit} by its name", *why])
    guess: Unit = "ms" if mid <= MINUTE else "us" if mid <= MINUTE * 1_000 else "ns"
    if mid < 1 and high < 600 and any("." in v for v in column.counts):
        guess = "s"
    todo = f'{GUESSED}; "{guess}" is a guess, by which half of the calls took {_short(mid)} {guess} or more'
    return Choice(path, [Rule(source=path, unit=guess)], why, [todo])


MINUTE = 60_000  # ms: of few services does half of the calls take longer
GUESSED = "unit: the name has none"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 1_000 else f"{number:.3g}"


def _as_retries(column: Column, name: str) -> Choice | str:
    path = column.path
    if {*column.counts} <= {"true", "false"}:
        values = {"true": "1", "false": "0"}
        return Choice(path, [Rule(source=path, values=values)], ["true for a retry, however often", column.share])
    if other := next((v for v in column.counts if not re.fullmatch(r"\d{1,6}", v)), None):
        return f"no whole number: {other}"
    low, high = min(map(int, column.counts)), max(map(int, column.counts))
    why = [f"{low} to {high}", column.share]
    if low == 0 or not name.startswith(("attempt", "try", "retry_attempt")):
        return Choice(path, [Rule(source=path)], why)
    values = {str(n): str(n - 1) for n in range(1, max(high, 10) + 1)}
    if high > 50:
        return f"counts up to {high:,}: more attempts than a call has"
    return Choice(path, [Rule(source=path, values=values)], [*why, "attempts count from 1, retries from 0"])


def _as_text(one: Field, column: Column) -> Choice | str:
    path, distinct = column.path, len(column.counts)
    if one.name in FEW and distinct > 20 and distinct * 2 > len(column.values):
        return f"{distinct:,} different values in {len(column.values):,} rows are too many"
    if one.name == "error" and (long := max(column.counts, key=len)) and len(long) > CLASS_CHARS:
        return "it holds messages, and only an error's class is kept"
    if one.name == "event_id" and distinct < 0.95 * len(column.values):
        return f"only {distinct:,} of {len(column.values):,} are different, and rows of one event_id count once"
    many = f"{distinct:,} value{'' if distinct == 1 else 's'}"
    why = [many if one.name in IDS else f"{many}: {_some(column)}", column.share]
    if one.name == "trace_id" and column.all_match(TRACEPARENT):
        rule = Rule(source=path, capture="^[0-9a-f]{2}-([0-9a-f]{32})-")
        return Choice(path, [rule], ["values look like W3C traceparent", *why])
    if one.name in ("service_name", "caller"):
        rule, what = _service_rule(column)
        return Choice(path, [rule], [*what, *why])
    return Choice(path, [Rule(source=path)], why)


def _service_rule(column: Column) -> tuple[Rule, list[str]]:
    """A service's name without what changes with each of its nodes."""
    if column.all_match(PORT):
        return Rule(source=column.path, capture="^(.+):\\d+$"), ["a host and a port, of which the host is taken"]
    if column.all_match(POD):
        return Rule(source=column.path, drop_dashes=2), ["values look like pods: less their last two dash groups"]
    return Rule(source=column.path), []


def _some(column: Column, most: int = 3) -> str:
    shown = [value if len(value) <= SHOWN else value[:SHOWN] + "…" for value, _ in column.counts.most_common(most)]
    return ", ".join([*shown, *(["…"] if len(column.counts) > most else [])])


# ---- values that are words ------------------------------------------------------------------------------------------


def _as_words(one: Field, column: Column) -> Choice | str:
    """A field of ours that has few values, of a column whose values mean them."""
    path = column.path
    if {*column.counts} <= {*one.values}:
        return Choice(path, [Rule(source=path)], [f"values are ours: {_some(column, 5)}", column.share])
    meant = {value: meaning(one.name, value) for value in column.counts}
    if unknown := [value for value, means in meant.items() if means is None]:
        return f"{unknown[0]} is none of {', '.join(one.values)}"
    return Choice(path, [Rule(source=path, values=_patterns(meant))], [_counted(column), column.share])


def _patterns(meant: Mapping[str, str | None]) -> dict[str, str]:
    """Values by what they mean, as regular expressions of whole texts."""
    by: dict[str, list[str]] = {}
    for value, means in meant.items():
        if means:
            by.setdefault(means, []).append(re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", value))
    return {"|".join(sorted(values)): means for means, values in by.items()}


def _counted(column: Column, most: int = 8) -> str:
    seen = column.counts.most_common(most)
    rest = len(column.counts) - len(seen)
    shown = ", ".join(f"{value if len(value) <= SHOWN else value[:SHOWN] + '…'} ({n:,})" for value, n in seen)
    return "seen: " + shown + (f" and {rest:,} others" if rest else "")


def _as_status(column: Column, name: str) -> Choice | str:
    """Codes of HTTP or gRPC, booleans, our own words or others'."""
    path, why = column.path, [_counted(column), column.share]
    if {*column.counts} <= {"true", "false"}:
        ok, error = ("false", "true") if name in FAILURE else ("true", "false")
        return Choice(path, [Rule(source=path, values={ok: "ok", error: "error"})], why)
    if all(re.fullmatch(r"\d{1,2}", v) for v in column.counts) and "0" in column.counts:
        if "grpc" in path.lower():
            return Choice(path, [Rule(source=path, values=OF_GRPC)], ["gRPC's codes", *why])
        todo = ["0 is taken for ok and all else for an error: say which code is a timeout, which a rejection"]
        return Choice(path, [Rule(source=path, values={"0": "ok", ".*": "error"})], why, todo)
    if len(column.counts) > 50 and not {*column.counts} <= CODES:
        return f"{len(column.counts):,} different values are too many"
    if {*column.counts} <= {*STATUSES}:
        return Choice(path, [Rule(source=path)], ["values are ours", *why])
    return _by_meaning(column, name, why)


STATUSES = next(f.values for f in fields("requests") if f.name == "status")
WORTH = 0.5  # of the values must have a meaning, else it is no status


def _by_meaning(column: Column, name: str, why: list[str]) -> Choice | str:
    """Codes of HTTP by their ranges, other texts one by one; what fails is at least an error where the name says so."""
    meant = {v: meaning("status", v) for v in column.counts if v not in CODES}
    known = sum(n for v, n in column.counts.items() if v in CODES or meant[v])
    rows, failure = len(column.texts), name in FAILURE
    if known < WORTH * len(column.values) and not failure:
        return f"its values mean none of {', '.join(STATUSES)}: {_some(column)}"
    codes, todo = len(meant) < len(column.counts), []
    if codes:
        why = ["looks like HTTP's status codes", *why]
        todo.append("4xx are errors here; where the callers' mistakes are none of yours, let 4.. be ok")
    values = {**(OF_HTTP if codes else {}), **_patterns(meant)}
    if failure:
        if len(column.values) == rows:
            return "all rows have it, so no row would be ok"
        rule = Rule(source=column.path, values={**values, ".*": "error"}, missing="ok")
        return Choice(column.path, [rule], [*why, "rows without it are ok"], todo)
    if unknown := [v for v, means in meant.items() if not means]:
        todo.append(f"these have no status yet: {', '.join(unknown[:8])}")
    return Choice(column.path, [Rule(source=column.path, values=values)], why, todo)


def _by_value_status(column: Column) -> Choice | None:
    """Where no name tells: a column of HTTP's codes, of which some are the one that all know."""
    if not {"200"} <= {*column.counts} <= CODES:
        return None
    found = _by_meaning(column, "", [_counted(column), column.share])
    return replace(found, why=["no name tells", *found.why]) if isinstance(found, Choice) else None


BY_VALUE: dict[str, Callable[[Column], Choice | None]] = {"timestamp": _by_value_time, "status": _by_value_status}


# ---- what only several columns say ----------------------------------------------------------------------------------

Choices = dict[str, Choice]
Columns = Mapping[str, Column]


def _service_of_pods(choices: Choices, columns: Columns) -> None:
    node = choices.get("node_id")
    if node and "service_name" not in choices and columns[node.path].all_match(POD):
        rule, what = _service_rule(columns[node.path])
        choices["service_name"] = Choice(node.path, [rule], ["no field names a service", *what])


def _node_of_service(choices: Choices, columns: Columns) -> None:
    """One clock for all nodes of a service: less than could be known, and all that the log says."""
    service = choices.get("service_name")
    if service and "node_id" not in choices:
        todo = [
            "no field names a node: all nodes of a service count as one, and so do their clocks. Log the host or pod"
        ]
        choices["node_id"] = Choice(service.path, service.rules, ["the service stands in"], todo)


def _caller_of_parents(choices: Choices, columns: Columns) -> None:
    """Spans name their parent, and the parent's row its service."""
    if "caller" in choices or not {"span_id", "parent_span_id", "service_name"} <= choices.keys():
        return
    spans, parents = (columns[choices[n].path] for n in ("span_id", "parent_span_id"))
    known = sum(n for value, n in parents.counts.items() if value in spans.counts)
    (service,) = choices["service_name"].rules
    if known:
        rule = _of_parent(service)
        why = [f"the service of the row whose span is the parent, which {known:,} of {len(spans.texts):,} rows have"]
        choices["caller"] = Choice(service.source or "", [rule], why)


def _of_parent(rule: Rule) -> Rule:
    """The same rule for the parent's row."""
    return Rule(parent=rule.source, capture=rule.capture, drop_dashes=rule.drop_dashes)


def _start_of_end(choices: Choices) -> None:
    """A request's timestamp is its start; many logs write a line at its end."""
    when, took = choices.get("timestamp"), choices.get("duration_ms")
    if not when or not took or len(took.rules) > 1 or took.rules[0].capture:
        return
    (rule,), unit = when.rules, took.rules[0].unit or "ms"
    less = f'minus = "{took.path}", minus_unit = "{unit}"'
    match = matched("timestamp", when.path)
    if match and match.name in END:
        started = msgspec.structs.replace(rule, minus=took.path, minus_unit=unit)
        choices["timestamp"] = replace(when, rules=[started], why=[*when.why, "named as an end: less the duration"])
    elif not match or match.name not in START:
        todo = f"start or end? It must be when the call began; if it is when it was over, add {less}"
        choices["timestamp"] = replace(when, todo=[*when.todo, todo])


def _duration_of_end(choices: Choices, columns: Columns) -> None:
    """The end tells the unit of a duration that names none; or it is itself what a duration is made from."""
    when, took = choices.get("timestamp"), choices.get("duration_ms")
    taken = {c.path for c in choices.values()}
    ends = (c for p, c in columns.items() if p not in taken and (m := matched("finished", p)) and m.name in ENDED)
    if not when or (column := next(ends, None)) is None or not (end := column.times_of(1.0)):
        return
    start = columns[when.path]
    if took and any(t.startswith(GUESSED) for t in took.todo):
        spent = columns[took.path].texts.cast(pl.Float64, strict=False)
        times = (value_of(rule, "timestamp", INSTANT).cast(pl.Int64) for rule in (end.rule, when.rules[0]))
        ended, began = pl.DataFrame([column.texts, start.texts]).select(e=next(times), b=next(times))
        ratio = ((ended - began) * 1_000 / spent).median()
        unit = next((u for u in UNITS if isinstance(ratio, float) and abs(ratio / NS_PER[u] - 1) < ALIKE), None)
        if unit:
            why = [f"in {unit}, since that is the time from {start.path} to {column.path}", *took.why]
            choices["duration_ms"] = Choice(took.path, [Rule(source=took.path, unit=unit)], why)
    elif not took and when.rules[0].unit == end.rule.unit is not None and len(column.values) == len(start.values):
        rule = Rule(source=column.path, minus=start.path, unit=end.rule.unit)
        choices["duration_ms"] = Choice(column.path, [rule], [f"from {start.path} to {column.path}", column.share])


ENDED = ("finished", *END)
ALIKE = 0.05


def _other_clocks(choices: Choices, columns: Columns) -> None:
    """Which of several times is on which clock, no name tells for sure."""
    when = choices.get("timestamp")
    if not when or ((match := matched("timestamp", when.path)) and match.name in START):
        return
    taken = {p for c in choices.values() for r in c.rules for p in r.paths}
    free = (c for p, c in columns.items() if p not in taken and not ((m := matched("finished", p)) and m.name in ENDED))
    others = [c.path for c in free if c.times_of(1.0)]
    if others:
        todo = (
            "whose clock? It must be that of the node which node_id names; a collector's can be arrival. Times are in"
        )
        choices["timestamp"] = replace(when, todo=[*when.todo, f"{todo} {', '.join(others)}, too"])
