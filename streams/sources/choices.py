"""A column enters as what may be a field of ours, the rules for it leave with the reason, or what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import polars as pl

from detectors.events import INSTANT, Field
from streams.sources.columns import FIRST, FORMATS, Choice, Column
from streams.sources.fieldmap import Rule, is_duration
from streams.sources.meanings import as_status, as_words, by_value_status
from streams.sources.words import IDS, Match, Unit

NUMBER = re.compile(r"\d+(\.\d*)?")
PORT = re.compile(r"\S+:\d+")
POD = re.compile(r"[a-z0-9-]+-[a-z0-9]{5,10}-[a-z0-9]{5}")  # Deployment, ReplicaSet, and five letters of its own
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
SPELT = re.compile(r"(\d+(?:\.\d+)?)(ns|µs|us|ms|s)")  # durations as Go writes them
MOST = 0.9  # of the values of a required field must be readable
FEW = frozenset({"service_name", "node_id", "caller", "environment", "tenant", "region", "entity_type", "op", "error"})
CLASS_CHARS = 80  # an error's class; what is longer is its message


def choice_of(one: Field, column: Column, match: Match) -> Choice | str:
    if one.dtype == INSTANT:
        return _as_time(column, MOST if one.required else 1.0)
    if is_duration(one.name):
        return _as_duration(column, match.unit)
    if one.name == "status":
        return as_status(column, match.name)
    if one.values:
        return as_words(one, column)
    if one.name == "retry_count":
        return _as_retries(column, match.name)
    if one.dtype == pl.String():
        return _as_text(one, column)
    return Choice(column.path, [Rule(source=column.path)], [column.share])


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
    if low == 0 or not name.startswith(FROM_ONE):
        return Choice(path, [Rule(source=path)], why)
    if high > 50:
        return f"counts up to {high:,}: more attempts than a call has"
    return Choice(path, [Rule(source=path, less=1)], [*why, "attempts count from 1, retries from 0"])


FROM_ONE = ("attempt", "try", "retry_attempt", "deliver", "receive", "approximate_receive")  # counts of these do


def _as_text(one: Field, column: Column) -> Choice | str:
    path, distinct = column.path, len(column.counts)
    if one.name in FEW and distinct > 20 and distinct * 2 > len(column.values):
        return f"{distinct:,} different values in {len(column.values):,} rows are too many"
    if one.name == "error" and (long := max(column.counts, key=len)) and len(long) > CLASS_CHARS:
        return "it holds messages, and only an error's class is kept"
    if one.name == "event_id" and distinct < 0.95 * len(column.values):
        return f"only {distinct:,} of {len(column.values):,} are different, and rows of one event_id count once"
    many = f"{distinct:,} value{'' if distinct == 1 else 's'}"
    why = [many if one.name in IDS else f"{many}: {column.some()}", column.share]
    if one.name == "trace_id" and column.all_match(TRACEPARENT):
        rule = Rule(source=path, capture="^[0-9a-f]{2}-([0-9a-f]{32})-")
        return Choice(path, [rule], ["values look like W3C traceparent", *why])
    if one.name in ("service_name", "caller"):
        rule, what = service_rule(column)
        return Choice(path, [rule], [*what, *why])
    return Choice(path, [Rule(source=path)], why)


def service_rule(column: Column) -> tuple[Rule, list[str]]:
    """A service's name without what changes with each of its nodes."""
    if column.all_match(PORT):
        return Rule(source=column.path, capture="^(.+):\\d+$"), ["a host and a port, of which the host is taken"]
    if column.all_match(POD):
        return Rule(source=column.path, drop_dashes=2), ["values look like pods: less their last two dash groups"]
    return Rule(source=column.path), []


BY_VALUE: dict[str, Callable[[Column], Choice | None]] = {"timestamp": _by_value_time, "status": by_value_status}
