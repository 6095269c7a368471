"""The names of a row enter, a subject leaves: one text for people, which no other names give, and the names from it.

An edge is `caller->service`, with `?` for a caller that nobody told; an entity is `type/id`. Only the first name could
hide where the second begins, so only there a backslash stands before the sign that would.
"""

from __future__ import annotations

import re

import polars as pl
from polars import col

ARROW, SLASH, UNTOLD = "->", "/", "?"
OF_SERVICE = ("service", "edge")  # kinds of subjects that belong to a service: itself, or the one called
EDGE = (  # the same as edge() in DuckDB's SQL, of columns caller and service_name
    r"coalesce(if(caller = '?', '\?', replace(replace(caller, '\', '\\'), '->', '-\>')), '?') || '->' || service_name"
)


def edge(caller: str = "caller", service: str = "service_name") -> pl.Expr:
    name = _escaped(caller, ARROW, r"-\>")
    known = pl.when(col(caller) == UNTOLD).then(pl.lit("\\" + UNTOLD)).otherwise(name)
    return pl.concat_str(known.fill_null(UNTOLD), pl.lit(ARROW), col(service))


def entity(kind: str = "entity_type", number: str = "entity_id") -> pl.Expr:
    return pl.concat_str(_escaped(kind, SLASH, r"\/"), pl.lit(SLASH), col(number))


def _escaped(name: str, sign: str, instead: str) -> pl.Expr:
    return col(name).str.replace_all("\\", r"\\", literal=True).str.replace_all(sign, instead, literal=True)


def names(subject: str, sign: str) -> tuple[str | None, str]:
    """The two names of an edge (sign: ARROW) or of an entity (SLASH); None for a caller that nobody told."""
    signs = (m.start() for m in re.finditer(r"\\.|" + re.escape(sign), subject, re.DOTALL) if m[0] == sign)
    at = next(signs, len(subject))
    first, second = subject[:at], subject[at + len(sign) :]
    if sign == ARROW and first == UNTOLD:
        return None, second
    return re.sub(r"\\(.)", r"\1", first, flags=re.DOTALL), second


def service(subject_kind: str) -> pl.Expr:
    """The service that a subject of one of OF_SERVICE belongs to."""
    if subject_kind == "edge":
        return col("subject").str.splitn(ARROW, 2).struct.field("field_1")
    return col("subject")
