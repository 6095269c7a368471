"""A path through a chart enters, the screen leaves: each question, the answer and its number, then what to do."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from streams.report.found import Found, Invoke
from streams.report.sentences import count, sentence
from streams.report.triage.chart import chart_of, charts
from streams.report.triage.walk import Path

OURS = "asynchealth "


def path(walked: Path, contacts: Sequence[str], invoke: Invoke) -> Iterator[str]:
    """The lines of one walk."""
    leaf, known = walked.leaf, walked.known
    about = f"   {walked.finding.short} {walked.finding.detector} {walked.finding.name}" if walked.finding else ""
    yield f"{walked.title}{about}"
    if walked.finding:
        yield f"  {sentence(walked.finding)}"
    width = max((len(s.asks) for s in walked.steps), default=0)
    for s in walked.steps:
        yield f"  {s.asks:<{width}}  {s.answer}: {s.says}"
    yield f"→ {leaf.finds.format_map(known)}"
    yield f"  {leaf.action.format_map(known)}"
    for label, commands in (("Do now:", leaf.do), ("Verify:", leaf.verify)):
        for number, command in enumerate(commands):
            yield f"  {'' if number else label:<8}{typed(command, known, invoke)}"
    yield from (f"  {'' if number else 'Call:':<8}{c}" for number, c in enumerate(contacts))


def typed(command: str, known: Mapping[str, Any], invoke: Invoke) -> str:
    """A command as it can be typed; what logs say is quoted, for a name may hold what a shell would run."""
    safe = {n: shlex.quote(str(v)) for n, v in known.items()}
    filled = command.format_map(safe)
    return invoke(filled.removeprefix(OURS)) if command.startswith(OURS) else filled


def menu(every: Sequence[Found], invoke: Invoke) -> Iterator[str]:
    """Which chart is for what, with the worst finding of each."""
    for name, chart in charts().items():
        mine = [f for f in every if chart_of(f.detector) == name]
        worst = f", the worst {mine[0].short} {mine[0].detector} {mine[0].name}" if mine else ""
        yield f"{chart.title:<32} {count(len(mine), 'finding')}{worst}"
        if mine or chart.questions:
            yield f"    {invoke(f'triage {mine[0].short if mine else name}')}"
