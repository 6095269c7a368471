"""Fields that were chosen enter, with those that only several columns tell they leave: callers, starts, durations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec
import polars as pl

from detectors.events import INSTANT
from streams.sources.choices import GUESSED, POD, service_rule
from streams.sources.columns import UNITS, Choice, Column
from streams.sources.fieldmap import Rule
from streams.sources.mapping import NS_PER, value_of
from streams.sources.words import END, START, matched

Choices = dict[str, Choice]
Columns = Mapping[str, Column]


def add_from_others(stream: str, choices: Choices, columns: Columns) -> None:
    if stream == "requests":
        _service_of_pods(choices, columns)
        _node_of_service(choices, columns)
        _caller_of_parents(choices, columns)
        _duration_of_end(choices, columns)
        _start_of_end(choices)
    _other_clocks(choices, columns)


def _service_of_pods(choices: Choices, columns: Columns) -> None:
    node = choices.get("node_id")
    if node and "service_name" not in choices and columns[node.path].all_match(POD):
        rule, what = service_rule(columns[node.path])
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
    if not when or not took:
        return
    (rule,), unit = when.rules, took.rules[0].unit or "ms"
    alone = len(took.rules) == 1 and not took.rules[0].capture
    less = f'minus = "{took.path}", minus_unit = "{unit}"' if alone else f"minus: {BARE % took.path}"
    match = matched("timestamp", when.path)
    if match and match.name in END and alone:
        started = msgspec.structs.replace(rule, minus=took.path, minus_unit=unit)
        choices["timestamp"] = replace(when, rules=[started], why=[*when.why, "named as an end: less the duration"])
    elif not match or match.name not in START:
        todo = f"start or end? It must be when the call began; if it is when it was over, add {less}"
        choices["timestamp"] = replace(when, todo=[*when.todo, todo])


BARE = "it takes off what stands at a path, a number alone, which %s is not: log it as one, or give it a group in line"


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
