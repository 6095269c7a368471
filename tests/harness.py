"""A case enters, its tables and findings leave: of the shipped detectors, all or one of them, in the ways of `runs`."""

from __future__ import annotations

from detectors.detector import Detector, catalog
from detectors.table import Table
from streams.laws import runs
from streams.laws.case import Case
from streams.laws.runs import Log, Memory, Result, Run, placed, tables_of

__all__ = ["Log", "Memory", "Result", "Run", "everything", "one_pass", "placed", "restarted", "sliced"]


def everything(only: str = "") -> tuple[list[Table], list[Detector]]:
    """All detectors of the catalog and their tables, or one of them with its tables."""
    detectors = [e.detector for n, e in catalog().items() if only in ("", n)]
    return tables_of(detectors), detectors


def one_pass(case: Case, log: Log | None = None, only: str = "") -> Result:
    return runs.one_pass(case, everything(only)[1], log)


def sliced(case: Case, seed: int, log: Log | None = None, often: float = 0.2, only: str = "") -> Result:
    return runs.sliced(case, everything(only)[1], seed, log, often)


def restarted(case: Case, seed: int, log: Log | None = None, only: str = "") -> tuple[Result, int, int]:
    return runs.restarted(case, everything(only)[1], seed, log)
