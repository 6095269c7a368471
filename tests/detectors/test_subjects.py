"""Other names are another subject, and the names come back from it; simple ones stand there as they are."""

from __future__ import annotations

import duckdb
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from detectors.subjects import ARROW, EDGE, SLASH, edge, entity, names, service
from streams.report.library import query

NAMES = st.text(r"a?/\->", max_size=6)


def subjects(expression: pl.Expr, columns: tuple[str, str], pairs: list[tuple[str | None, str]]) -> list[str]:
    frame = pl.DataFrame(pairs, schema=dict.fromkeys(columns, pl.String), orient="row")
    return frame.select(expression.alias("subject")).to_series().to_list()


@given(st.lists(st.tuples(NAMES | st.none(), NAMES), min_size=2, max_size=20, unique=True))
def test_edges_of_other_names_are_others(pairs: list[tuple[str | None, str]]) -> None:
    told = subjects(edge(), ("caller", "service_name"), pairs)
    assert [names(s, ARROW) for s in told] == pairs
    callees = pl.DataFrame({"subject": told}).select(service("edge")).to_series().to_list()
    assert callees == [callee for _, callee in pairs]


@given(st.lists(st.tuples(NAMES | st.none(), NAMES), min_size=1, max_size=20))
def test_sql_names_an_edge_as_its_findings_do(pairs: list[tuple[str | None, str]]) -> None:
    with duckdb.connect() as con:
        con.execute("CREATE TABLE calls (caller VARCHAR, service_name VARCHAR)")
        con.executemany("INSERT INTO calls VALUES (?, ?)", pairs)
        named = [name for (name,) in con.execute(f"SELECT {EDGE} FROM calls ORDER BY rowid").fetchall()]
    assert named == subjects(edge(), ("caller", "service_name"), pairs)
    assert EDGE in query("timeouts_by_edge").text


@given(st.lists(st.tuples(NAMES, NAMES), min_size=2, max_size=20, unique=True))
def test_entities_of_other_names_are_others(pairs: list[tuple[str | None, str]]) -> None:
    assert [names(s, SLASH) for s in subjects(entity(), ("entity_type", "entity_id"), pairs)] == pairs


def test_subjects_read_well() -> None:
    assert subjects(edge(), ("caller", "service_name"), [("gateway", "payment"), (None, "a/b"), ("a->b", "c")]) == [
        "gateway->payment",
        "?->a/b",
        r"a-\>b->c",
    ]
    pairs: list[tuple[str | None, str]] = [("order", "42"), ("order", "eu/1"), ("order/eu", "1")]
    assert subjects(entity(), ("entity_type", "entity_id"), pairs) == ["order/42", "order/eu/1", r"order\/eu/1"]
