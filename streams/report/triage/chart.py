"""Chart files enter, checked charts leave: questions with branches, leaves with what to do, and where a finding begins.

A branch's `when` is a predicate in SQL over the answer of its question's query. What is not known is neither true nor
false there, so it leads to `unknown`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files

import msgspec

HERE = files("streams.report.triage")
ORDER = ("timestamps", "duplicates", "timeouts", "rest")
REST = ORDER[-1]


class Branch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an answer leads; `says` is the number behind it."""

    when: str
    answer: str
    says: str
    to: str


class Unknown(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where no answer leads, and why there is none."""

    says: str
    to: str


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked, and the name of the query that answers it."""

    asks: str
    query: str
    branches: list[Branch]
    unknown: Unknown

    @property
    def ways(self) -> list[str]:
        return [*(b.to for b in self.branches), self.unknown.to]

    @property
    def sql(self) -> str:
        return (HERE / f"{self.query}.sql").read_text()


class Leaf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What it is, what to do about it, and how to see that it helped."""

    finds: str
    action: str
    do: list[str]
    verify: list[str]


class Chart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A flowchart; `begin` says at which question a detector's finding enters it, the first is the chart's own."""

    title: str
    begin: dict[str, str]
    leaves: dict[str, Leaf]
    questions: dict[str, Question] = {}

    @property
    def first(self) -> str:
        return next(iter([*self.questions, *self.leaves]))

    def slips(self) -> Iterator[str]:
        """What keeps a walk from ending at a leaf, or a leaf from being reached."""
        places = self.questions.keys() | self.leaves.keys()
        ways = {name: q.ways for name, q in self.questions.items()}
        yield from (f"{name} leads to {to}, which is not there" for name, to in _pairs(ways) if to not in places)
        yield from (f"{d} begins at {at}, which is not there" for d, at in self.begin.items() if at not in places)
        reached: set[str] = set()
        todo: list[tuple[str, tuple[str, ...]]] = [(self.first, ())]
        while todo:
            name, before = todo.pop()
            if name in before:
                yield f"{name} is asked again after {before[-1]}"
                continue
            reached.add(name)
            todo += [(to, (*before, name)) for to in ways.get(name, [])]
        yield from (f"nothing leads to {name}" for name in sorted(places - reached))


def _pairs(ways: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    return ((name, to) for name, some in ways.items() for to in some)


@cache
def charts() -> dict[str, Chart]:
    """All charts by name, the one for the rest last."""
    return {n: msgspec.toml.decode((HERE / f"{n}.toml").read_bytes(), type=Chart) for n in ORDER}


def chart_of(detector: str) -> str:
    """The chart that a detector's findings enter."""
    return next((name for name, chart in charts().items() if detector in chart.begin), REST)
