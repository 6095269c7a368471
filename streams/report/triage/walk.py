"""A state and a chart enter, the path through it leaves: each question with its answer and the number behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from streams.inventory import Inventory
from streams.landing.state import has
from streams.report.evidence import text
from streams.report.found import Found
from streams.report.incidents import services
from streams.report.sentences import duration
from streams.report.triage.chart import Chart, Leaf, Question, charts

TABLES = {  # what a query may read though nothing was measured: its columns then, without a row
    "clocks": "NULL::VARCHAR AS src, NULL::VARCHAR AS dst, NULL::BIGINT[] AS facts",
    "calls": "'' AS environment, '' AS tenant, NULL::VARCHAR AS caller, '' AS service_name, 0 AS attempts",
    "keys": (
        "'' AS environment, '' AS tenant, '' AS service_name, '' AS line, '' AS cache, '' AS verdict, 0 AS number, "
        "0 AS stored, 0 AS gap_us, false AS overlapping, TIMESTAMPTZ 'epoch' AS window_start"
    ),
}


NOBODY = {"finding": "ID", "detector": "NAME", "subject": "SUBJECT", "service": "SERVICE", "node": "NODE"}


@dataclass(frozen=True)
class Step:
    """One question that was asked, its answer, the words and numbers behind it."""

    asks: str
    answer: str
    says: str
    query: str
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class Path:
    """From a chart's beginning to a leaf. `known` is what was learnt on the way."""

    name: str
    title: str
    finding: Found | None
    steps: Sequence[Step]
    leaf_name: str
    leaf: Leaf
    known: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, Any]:
        """What `--json` shows."""
        return {
            "chart": self.name,
            "finding": self.finding and self.finding.finding_id,
            "path": [
                {"asks": s.asks, "answer": s.answer, "says": s.says, "query": s.query, "numbers": s.numbers}
                for s in self.steps
            ],
            "leaf": self.leaf_name,
            "finds": self.leaf.finds.format_map(self.known),
            "action": self.leaf.action.format_map(self.known),
        }


def walk(
    con: duckdb.DuckDBPyConnection, name: str, f: Found | None, every: Sequence[Found], kinds: Mapping[str, str]
) -> Path:
    """From where the finding enters the chart; without one from its beginning, over all that landed.

    kinds: what each service is, as asynchealth.toml says.
    """
    _prepare(con, f, kinds)
    chart, short = charts()[name], {e.finding_id: e.short for e in every}
    known: dict[str, Any] = dict(NOBODY)
    if f:
        known |= {"finding": f.short, "detector": f.detector, "subject": f.name}
    at, steps = _start(chart, f), []
    while at in chart.questions:
        question = chart.questions[at]
        branch, numbers = _asked(con, question, known)
        numbers = {n: short.get(v, v) if n == "finding" else v for n, v in numbers.items()}
        known |= {n: duration(v) if n.endswith("_s") else v for n, v in numbers.items() if v is not None}
        way = question.branches[branch] if branch is not None else None
        answer = way.answer.format_map(known) if way else "unknown"
        says = (way or question.unknown).says.format_map(known)
        steps.append(Step(question.asks, answer, says, question.query, numbers))
        at = (way or question.unknown).to
    return Path(name, chart.title, f, steps, at, chart.leaves[at], known)


def called(walked: Path, whom: Inventory) -> list[str]:
    """Whom to call: the owner of the service that the path leads to, then who is on call for what was found."""
    f, learnt = walked.finding, walked.known["service"]
    service = next(iter(services([f])), "") if f and learnt == NOBODY["service"] else learnt
    detector = f.detector if f else next(iter(charts()[walked.name].begin), "")
    return [str(c) for c in whom.contacts(service, detector)]


def _start(chart: Chart, f: Found | None) -> str:
    return chart.begin.get(f.detector, chart.first) if f else chart.first


def _prepare(con: duckdb.DuckDBPyConnection, f: Found | None, kinds: Mapping[str, str]) -> None:
    """What queries read beside the state: the finding `asked` about (or no row), and what each service is."""
    asked = text(f.finding_id) if f else "NULL"
    con.execute(f"CREATE OR REPLACE TEMP VIEW asked AS SELECT * FROM findings WHERE finding_id = {asked}")
    told = ", ".join(f"({text(n)}, {text(k)})" for n, k in kinds.items()) or "(NULL, NULL)"
    con.execute(f"CREATE OR REPLACE TEMP VIEW services AS FROM (VALUES {told}) AS told(name, kind)")
    for name, columns in TABLES.items():
        if not has(con, name):
            con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT {columns} WHERE false")


def _asked(
    con: duckdb.DuckDBPyConnection, question: Question, known: Mapping[str, Any]
) -> tuple[int | None, dict[str, Any]]:
    """(the first branch whose predicate holds, the answer); none where what it needs is not known."""
    cases = " ".join(f"WHEN {b.when} THEN {i}" for i, b in enumerate(question.branches))
    sql = f"SELECT *, CASE {cases} END AS branch FROM ({question.sql})"
    result = con.execute(sql, {n: known.get(n) for n in _parameters(sql)})
    names = [d[0] for d in result.description or ()]
    rows = result.fetchall()
    numbers = dict(zip(names, rows[0], strict=True)) if rows else {"branch": None}
    return numbers.pop("branch"), numbers


def _parameters(sql: str) -> Iterator[str]:
    return (m[1] for m in re.finditer(r"\$([a-z]\w*)", sql))
