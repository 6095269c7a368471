"""Simulated hours enter, findings beside their labels leave: is what replay finds what was done to the fleet?

    python -m tests.truth [--seed N]

Without a seed: five hours with faults and ten calm ones. Exits 1 if anything was missed or anything else paged.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from streams.chaos.fleet import make_hour, write_tape

FAULT_SEEDS = range(1, 6)
CALM_SEEDS = range(101, 111)
WINDOW = timedelta(seconds=10)
TOLERANCE = timedelta(seconds=10)


@dataclass(frozen=True)
class Grade:
    """One hour's result: how many faults were found of how many, how many findings page, and all that was wrong."""

    found: int
    faults: int
    pages: int
    misses: tuple[str, ...]


def grade(findings: list[dict[str, Any]], doubled: set[str], totals: dict[str, int], labels: dict[str, Any]) -> Grade:
    """findings: rows of the table `findings`; doubled: keys that were found applied twice; totals: accounting."""
    misses: list[str] = []
    claimed: set[str] = set()
    for fault in labels["faults"]:
        wrong, finding_id = _look_for(fault, findings)
        misses += wrong
        claimed |= {finding_id} if finding_id else set()
    found = len(labels["faults"]) - len(misses)  # so far each miss is a fault's
    may_page = {(a["detector"], a["subject"]) for a in labels["allowed"] if a["max_level"] == "page"}
    pages = [f for f in findings if f["level"] == "page"]
    for f in pages:
        if f["finding_id"] not in claimed and (f["detector"], f["subject"]) not in may_page:
            misses.append(f"page without a fault: {f['detector']} {f['subject']} {f['kind']} from {f['onset']}")
    want = {k for fault in labels["faults"] for k in fault["keys"] or ()}
    misses += [f"key was applied twice, not found: {k}" for k in sorted(want - doubled)]
    misses += [f"key was not applied twice, but found so: {k}" for k in sorted(doubled - want)]
    for name, number in labels["totals"].items():
        if totals.get(name) != number:
            misses.append(f"{name}: {totals.get(name)}, the label says {number}")
    return Grade(found, len(labels["faults"]), len(pages), tuple(misses))


def _look_for(fault: dict[str, Any], findings: list[dict[str, Any]]) -> tuple[list[str], str | None]:
    """At most one thing wrong with how a fault was found, and the finding that stands for it."""
    what = f"{fault['detector']} {fault['subject']}"
    same = ("detector", "subject_kind", "subject") + (("kind",) if fault["kind"] else ())
    about = [f for f in findings if all(f[n] == fault[n] for n in same)]
    if not about:
        return [f"not found: {what}"], None
    due = _window(datetime.fromisoformat(fault["onset_first_row"]))
    timely = [f for f in about if abs(f["onset"] - due) <= TOLERANCE]
    if not timely:
        onsets = ", ".join(str(f["onset"]) for f in about)
        return [f"{what}: onset {onsets}, due {due}"], None
    finding = min(timely, key=lambda f: (f["level"] != fault["level"], abs(f["onset"] - due)))
    finding_id = str(finding["finding_id"])
    if finding["level"] != fault["level"]:
        return [f"{what}: level {finding['level']}, the label says {fault['level']}"], finding_id
    if fault["count"] is not None and finding["count"] != fault["count"]:
        return [f"{what}: count {finding['count']}, the label says {fault['count']}"], finding_id
    return [], finding_id


def _window(time: datetime) -> datetime:
    """The start of the window that a row of this time lies in: what a finding gives as its onset."""
    return time - (time - datetime.fromtimestamp(0, UTC)) % WINDOW


def replayed(tape: Path, state: Path) -> tuple[list[dict[str, Any]], set[str], dict[str, int]]:
    """What an operator's replay of the folder says."""
    command = [sys.executable, "-m", "streams.cli", "replay", str(tape), "--state", str(state)]
    subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return told(state)


def told(state: Path) -> tuple[list[dict[str, Any]], set[str], dict[str, int]]:
    """What a readable file says: findings, keys applied twice, accounting."""
    with duckdb.connect(str(state / "asynchealth.duckdb"), read_only=True) as con:
        con.execute("SET TimeZone='UTC'")
        findings = _rows(con, "SELECT * FROM findings")
        keys = _rows(con, "SELECT DISTINCT idempotency_key FROM keys WHERE verdict = 'applied_twice'")
        names = ("read", "used", "late", "implausible", "rejected", "repeated")
        sums = ", ".join(f"sum({n})::BIGINT AS {n}" for n in names)
        return findings, {r["idempotency_key"] for r in keys}, _rows(con, f"SELECT {sums} FROM accounting")[0]


def _rows(con: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    result = con.execute(sql)
    names = [d[0] for d in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def grade_hour(seed: int, *, calm: bool) -> Grade:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tape = make_hour(seed, calm=calm)
        write_tape(tape, folder / "tape")
        return grade(*replayed(folder / "tape", folder / "state"), tape.labels)


def report(hours: Iterable[tuple[int, bool]]) -> int:
    """Grades each (seed, calm), prints a line for each, and gives the exit code."""
    grades: list[tuple[bool, Grade]] = []
    for seed, calm in hours:
        g = grade_hour(seed, calm=calm)
        grades.append((calm, g))
        print(f"seed {seed:>4} {'calm  ' if calm else 'faults'}  {g.found} of {g.faults} found, {g.pages} pages")
        for miss in g.misses:
            print(f"    {miss}")
    calm_pages = [g.pages for calm, g in grades if calm]
    found, faults = sum(g.found for _, g in grades), sum(g.faults for _, g in grades)
    print(f"truth: {found} faults of {faults} found, {sum(calm_pages)} pages in {len(calm_pages)} calm hours")
    return int(any(g.misses for _, g in grades))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, help="only this seed, once with faults and once calm")
    seed = parser.parse_args().seed
    if seed is not None:
        return report([(seed, False), (seed, True)])
    return report([*((s, False) for s in FAULT_SEEDS), *((s, True) for s in CALM_SEEDS)])


if __name__ == "__main__":
    sys.exit(main())
