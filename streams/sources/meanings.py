"""A column whose values are words or codes enters, which of the few values of ours each means leaves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from detectors.events import Field, fields
from streams.problems import few
from streams.sources.columns import Choice, Column
from streams.sources.fieldmap import Rule
from streams.sources.words import CODES, FAILURE, STATUS_OF, meaning

STATUSES = next(f.values for f in fields("requests") if f.name == "status")
WORTH = 0.5  # of the values must have a meaning, else it is no status


def as_words(one: Field, column: Column) -> Choice | str:
    """A field of ours that has few values, of a column whose values mean them."""
    path = column.path
    if {*column.counts} <= {*one.values}:
        return Choice(path, [Rule(source=path)], [f"values are ours: {column.some(5)}", column.share])
    meant = {value: meaning(one.name, value) for value in column.counts}
    if unknown := [value for value, means in meant.items() if means is None]:
        return f"{unknown[0]} is none of {', '.join(one.values)}"
    return Choice(path, [Rule(source=path, values=_patterns(meant))], [column.counted(), column.share])


def _patterns(meant: Mapping[str, str | None]) -> dict[str, str]:
    """Values by what they mean, as regular expressions of whole texts."""
    by: dict[str, list[str]] = {}
    for value, means in meant.items():
        if means:
            by.setdefault(means, []).append(re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", value))
    return {"|".join(sorted(values)): means for means, values in by.items()}


def as_status(column: Column, name: str) -> Choice | str:
    """Codes of HTTP or gRPC, booleans, our own words or others'."""
    path, why = column.path, [column.counted(), column.share]
    if {*column.counts} <= {"true", "false"}:
        ok, error = ("false", "true") if name in FAILURE else ("true", "false")
        return Choice(path, [Rule(source=path, values={ok: "ok", error: "error"})], why)
    if all(re.fullmatch(r"\d{1,2}", v) for v in column.counts) and "0" in column.counts:
        if "grpc" in path.lower():
            return Choice(path, [Rule(source=path, values=STATUS_OF["grpc"])], ["gRPC's codes", *why])
        todo = ["0 is taken for ok and all else for an error: say which code is a timeout, which a rejection"]
        return Choice(path, [Rule(source=path, values={"0": "ok", ".*": "error"})], why, todo)
    if len(column.counts) > 50 and not {*column.counts} <= CODES:
        return f"{len(column.counts):,} different values are too many"
    if {*column.counts} <= {*STATUSES}:
        return Choice(path, [Rule(source=path)], ["values are ours", *why])
    return _by_meaning(column, name, why)


def _by_meaning(column: Column, name: str, why: list[str]) -> Choice | str:
    """Codes of HTTP by their ranges, other texts one by one; what fails is at least an error where the name says so."""
    meant = {v: meaning("status", v) for v in column.counts if v not in CODES}
    known = sum(n for v, n in column.counts.items() if v in CODES or meant[v])
    rows, failure = len(column.texts), name in FAILURE
    if known < WORTH * len(column.values) and not failure:
        return f"its values mean none of {', '.join(STATUSES)}: {column.some()}"
    codes, todo = len(meant) < len(column.counts), list[str]()
    if codes:
        why = ["looks like HTTP's status codes; what was refused did nothing, so 4xx are errors", *why]
    values = {**(STATUS_OF["http"] if codes else {}), **_patterns(meant)}
    if failure:
        if len(column.values) == rows:
            return "all rows have it, so no row would be ok"
        rule = Rule(source=column.path, values={**values, ".*": "error"}, missing="ok")
        return Choice(column.path, [rule], [*why, "rows without it are ok"], todo)
    if unknown := [v for v, means in meant.items() if not means]:
        todo.append(f"these have no status yet: {few(unknown, 8)}")
    return Choice(column.path, [Rule(source=column.path, values=values)], why, todo)


def by_value_status(column: Column) -> Choice | None:
    """Where no name tells: a column of HTTP's codes, of which some are the one that all know."""
    if not {"200"} <= {*column.counts} <= CODES:
        return None
    found = _by_meaning(column, "", [column.counted(), column.share])
    return replace(found, why=["no name tells", *found.why]) if isinstance(found, Choice) else None
