"""What detectors can see enters, its lines on the screens leave: in short below a replay, whole for the doctor."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence

from streams.coverage import Seen, Unlock, unlocks
from streams.report.sentences import count

WIDTH = 118


def in_short(every: Sequence[Seen], formats: Mapping[str, Collection[str]], doctor: str = "") -> Iterator[str]:
    """How many run, which are blind for want of what, what would unlock those. doctor: the command that says all."""
    blind = [s for s in every if s.state == "blind"]
    less = sum(s.state == "degraded" for s in every)
    said = f"Runs: {len(every) - len(blind)} of {count(len(every), 'detector')}"
    said += f", {less} with less than {'it' if less == 1 else 'they'} could use" if less else ""
    yield f"{said}. More: {doctor}" if doctor and (less or blind) else f"{said}."
    if blind:
        reasons = f"Blind, as no source has it: {', '.join(_reasons(blind))}"
        yield from textwrap.wrap(reasons, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        yield from unlock_lines(unlocks(blind, formats))


def _reasons(blind: Sequence[Seen]) -> Iterator[str]:
    """Those that lack the same together."""
    for missing in dict.fromkeys(s.missing for s in blind):
        names = ", ".join(s.detector for s in blind if s.missing == missing)
        yield f"{names} ({', '.join(missing)})"


def unlock_lines(every: Sequence[Unlock]) -> Iterator[str]:
    """The lines of each format; of what people write as they like, the names of the fields."""
    for form in dict.fromkeys(u.format for u in every):
        mine = [u for u in every if u.format == form]
        head = f"  unlock with {form}: "
        if own := ", ".join(u.field for u in mine if not u.line):
            yield from textwrap.wrap(f"{head}the fields {own}", WIDTH, subsequent_indent="    ")
        for i, u in enumerate(u for u in mine if u.line):
            yield f"{' ' * len(head) if i else head}{u.line}"
