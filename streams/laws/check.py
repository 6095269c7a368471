"""A detector with its cases enters, a line for each law leaves: what it was tried on, and where it breaks.

The cases stand beside it: `cases/NAME.py`, with functions fires_* and quiet_* that give a Case.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

import polars as pl

from detectors.detector import Detector, Entry
from detectors.windows import WINDOW_US
from streams.catalog import file_of, imported
from streams.laws.case import Case, cases_of
from streams.laws.runs import one_pass, placed, restarted, sliced, tables_of
from streams.problems import Problem

SEEDS = range(3)
OFTEN = (0.05, 0.2, 1.0)  # how often windows are closed: hardly ever, and after each slice
LEAST_WINDOWS, LEAST_PARTITIONS = 3, 2


@dataclass(frozen=True)
class Law:
    """What was tried, and each place where it did not hold."""

    words: str
    broken: Sequence[str] = field(default=())


def check(entry: Entry) -> Iterator[Law]:
    """Each law over all cases of one detector; where cases are not as they say, the rest is not tried."""
    module = cases_beside(entry)
    firing, quiet = cases_of(module, "fires_"), cases_of(module, "quiet_")
    where = module.__file__ or module.__name__
    for prefix, some in (("fires_", firing), ("quiet_", quiet)):
        if not some:
            raise Problem(where, f"no case {prefix}…", "docs/detectors.md has one of each")
    d = entry.detector
    about_cases = [
        Law("its cases are large enough to prove something", list(_over(firing, d, _small))),
        Law("it fires as its cases say, with proof", list(_over(firing, d, _other))),
        Law("it is quiet on its quiet cases", list(_over(quiet, d, _loud))),
    ]
    yield from about_cases
    if any(law.broken for law in about_cases):
        return  # what such cases show of the rest proves nothing
    yield Law("slices, batches, order and producers do not matter", list(_over(firing, d, _sliced)))
    yield Law("repeats and kills do not matter", list(_over(firing, d, _restarted)))
    yield Law("it leaves what it reads as it was", list(_over(firing, d, _changed)))


def cases_beside(entry: Entry) -> ModuleType:
    name, file = entry.detector.name, file_of(entry)
    path = file.parent / "cases" / f"{name}.py"
    if not path.is_file():
        raise Problem(str(file), f"no cases {path}", "docs/detectors.md has some to copy")
    package = entry.module.__package__ or ""
    importlib.invalidate_caches()
    return imported(f"{package}.cases.{name}", str(path), file.parent)


Breaks = Callable[[Detector, Case], Iterator[str]]


def _over(some: Mapping[str, Case], detector: Detector, breaks: Breaks) -> Iterator[str]:
    for name, case in some.items():
        rows = sum(len(p) for parts in case.streams.values() for p in parts)
        yield from (f"{name}: {words}" for words in (breaks(detector, case) if rows else ["it has no rows"]))


def _small(detector: Detector, case: Case) -> Iterator[str]:
    streams = {s for t in detector.tables for s in t.streams}
    parts = [p for stream, some in case.streams.items() if stream in streams for p in some if len(p)]
    if len(parts) < LEAST_PARTITIONS:
        yield f"{len(parts)} partitions with rows that it reads, of {LEAST_PARTITIONS} or more"
        return
    spread = pl.concat([p["arrival"] for p in parts]).cast(pl.Int64) // WINDOW_US
    if spread.n_unique() < LEAST_WINDOWS:
        yield f"{spread.n_unique()} windows of 10 s, of {LEAST_WINDOWS} or more"


def _other(detector: Detector, case: Case) -> Iterator[str]:
    result = one_pass(case, [detector])
    fired = result.fired(detector.name)
    if not case.expect:
        yield "it expects nothing: expect = {(subject, kind, level)}"
    elif fired != case.expect:
        yield f"expected {sorted(case.expect)}, found {sorted(fired)}"
    elif (result.findings["proof"].list.len() == 0).any():
        yield "a finding without proof: no row to show for it"


def _loud(detector: Detector, case: Case) -> Iterator[str]:
    result = one_pass(case, [detector])
    if not result.tables:
        yield "it has nothing to judge: none of its tables has a row"
    if fired := result.fired(detector.name):
        yield f"found {sorted(fired)}"


def _sliced(detector: Detector, case: Case) -> Iterator[str]:
    whole = one_pass(case, [detector])
    for seed in SEEDS:
        if differs := sliced(case, [detector], seed, often=OFTEN[seed]).differs(whole):
            yield f"{', '.join(differs)} differ (seed {seed})"


def _restarted(detector: Detector, case: Case) -> Iterator[str]:
    whole, kills = one_pass(case, [detector]), 0
    for seed in SEEDS:
        result, killed, _ = restarted(case, [detector], seed)
        kills += killed
        if differs := result.differs(whole):
            yield f"{', '.join(differs)} differ (seed {seed})"
    if not kills:
        yield "too short to be killed in the middle: give it more slices of 2 s"


def _changed(detector: Detector, case: Case) -> Iterator[str]:
    log = placed(case)
    before = {s: [p.clone() for p in parts] for s, parts in log.items()}
    one_pass(case, [detector], log)
    if not all(a.equals(b) for s in log for a, b in zip(log[s], before[s], strict=True)):
        yield f"rows that {', '.join(t.name for t in tables_of([detector]))} read are not what they were"
