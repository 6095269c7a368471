"""Copies that differ from the first of their number enter, rows of the accounts leave: a finding about ourselves.

Copies are equal by construction, unless those who said them were not: workers of two versions, or with other maps. Each
is told with the window that it is of, or with the first that is not said yet; a successor that reads it again tells it
again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import polars as pl

from detectors.table import SPACE, Sum
from detectors.tables.accounts import ACCOUNTS, DIFFERING

COLUMNS = ACCOUNTS.columns or {}
SCHEMA = {n: pl.String if n in (*SPACE, "stream") else pl.Int64 for n in (*ACCOUNTS.full_key, *COLUMNS)}
NONE = dict.fromkeys(SPACE, "") | {n: 0 if isinstance(c, Sum) else None for n, c in COLUMNS.items()}
NONE["step_back_us"] = 0  # as where a row stands for records that were lost


def accounts(differing: Iterable[tuple[int, str, int]]) -> pl.DataFrame:
    """differing: of each such copy the window (its µs), and the partition that it tells of."""
    rows = [
        {"window": window, "stream": stream, "partition": partition, DIFFERING: n}
        for (window, stream, partition), n in sorted(Counter(differing).items())
    ]
    return completed(pl.DataFrame(rows, schema={n: SCHEMA[n] for n in ("window", *ACCOUNTS.key, DIFFERING)}))


def completed(told: pl.DataFrame) -> pl.DataFrame:
    """Rows of the accounts that have some of the columns."""
    others = [pl.lit(v).alias(n) for n, v in NONE.items() if n not in told.columns]
    return told.with_columns(others).select(pl.col(n).cast(t) for n, t in SCHEMA.items())
