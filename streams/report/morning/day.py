"""Sections of today and of the day before enter, what changed leaves: each number that both of them have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from streams.report.found import NO_TIMES, Filter, Span, is_time
from streams.report.morning.section import Section

DAY = timedelta(days=1)
MEASURES: dict[str, tuple[str, str]] = {  # of a section's numbers: how they are called, and their unit
    "affected": ("nodes affected", ""),
    "max_skew_ms": ("max skew", "ms"),
    "storms": ("storms", ""),
    "incidents": ("incidents", ""),
    "used_pct": ("used", "%"),
    "headroom_s": ("headroom", "s"),
    "hit_pct": ("cache hits", "%"),
    "keys": ("keys in vain", ""),
}


@dataclass(frozen=True)
class Before:
    """The same hours of the day before: why nothing is known of them, or their sections and levels."""

    why: str
    span: Span | None = None
    levels: Mapping[str, int] = field(default_factory=dict)
    sections: Sequence[Section] = ()

    def of(self, section: Section) -> Section | None:
        return next((s for s in self.sections if s.name == section.name), None)


def day_before(span: Span, wanted: Filter) -> tuple[Filter | None, str]:
    """The filter for the same time, whole days earlier, or why nothing is known of it."""
    if not is_time(span.last):
        return None, NO_TIMES
    start, end = wanted.since or span.start, wanted.until or span.end
    back = DAY * max(1, -(-(end - start) // DAY))
    if start - back < span.start:
        return None, f"no data before {span.start:%Y-%m-%d %H:%M}"
    return replace(wanted, since=start - back, until=end - back), ""


def measures(section: Section) -> dict[str, float]:
    """The numbers of a section that can be compared; none of what is unknown."""
    found: dict[str, float] = {}
    if "why" in section.numbers:
        return found
    for name in MEASURES:
        match section.numbers.get(name):
            case int() | float() as number:
                found[name] = number
            case list() as some:
                found[name] = len(some)
            case dict() as counts:
                found[name] = sum(counts.values())
    return found


def changes(before: Section, now: Section) -> dict[str, tuple[float, float]]:
    """(then, now) by name, of what both know."""
    then, today = measures(before), measures(now)
    return {n: (then[n], today[n]) for n in MEASURES if n in then and n in today}


def words(before: Section | None, now: Section) -> str:
    """nodes affected 1→2 (+1), max skew 312→848ms (+536)."""
    changed = changes(before, now) if before else {}
    if not before or not changed:
        return f"unknown ({before.numbers['why'] if before and 'why' in before.numbers else 'no data'})"
    return ", ".join(_change(n, *pair) for n, pair in changed.items())


def _change(name: str, then: float, now: float) -> str:
    called, unit = MEASURES[name]
    same = round(now, 1) == round(then, 1)
    return f"{called} {_short(then)}→{_short(now)}{unit} ({'same' if same else f'{_short(now - then, plus=True)}'})"


def _short(x: float, plus: bool = False) -> str:
    return f"{round(x, 1):{'+' if plus else ''},.1f}".removesuffix(".0")


def data(before: Before, now: Section) -> Any:
    """What `--json` shows of a section's change."""
    then = before.of(now)
    if then is None:
        return None
    return {n: {"before": a, "now": b} for n, (a, b) in changes(then, now).items()}
