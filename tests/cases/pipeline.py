"""Two partitions of requests; the way of their rows to us is at fault, not the system that they are about."""

from datetime import timedelta
from typing import Any

import polars as pl

from tests.cases import Case, at, partitions


def _rows(late: int, delay_s: float = 45.0) -> list[dict[str, Any]]:
    """Of every hundred rows in the middle of twenty minutes, so many are shipped late."""
    return [
        {
            "timestamp": at(i),
            "arrival": at(i + (delay_s if 300 <= i < 900 and i * 37 % 100 < late else 0.5)),
            "service_name": "cart",
            "node_id": f"cart-{i % 3}",
            "duration_ms": 5.0,
        }
        for i in range(1200)
    ]


def _stepped(part: pl.DataFrame, begin: int, end: int, back_s: float) -> pl.DataFrame:
    """The append times of records begin ≤ i < end, set back. A partition gets a record every 2 s."""
    record = pl.int_range(pl.len())
    inside = (record >= begin) & (record < end)
    return part.with_columns(pl.when(inside).then(pl.col("arrival") - timedelta(seconds=back_s)).otherwise("arrival"))


def fires_where_append_time_steps_back() -> Case:
    first, second = partitions("requests", _rows(0))
    return Case(
        {"requests": [_stepped(first, 200, 220, 9.0), second]}, frozenset({("requests/0", "append_back", "warn")})
    )


def fires_where_a_fifth_is_late() -> Case:
    late = frozenset((f"requests/{p}", "late_share", "warn") for p in range(2))
    return Case({"requests": partitions("requests", _rows(20))}, late)


def quiet_where_one_row_in_twelve_is_late() -> Case:
    return Case({"requests": partitions("requests", _rows(8))})


def quiet_where_rows_come_within_the_lateness() -> Case:
    return Case({"requests": partitions("requests", _rows(40, delay_s=29.0))})


def quiet_where_append_time_steps_back_by_two_seconds() -> Case:
    first, second = partitions("requests", _rows(0))
    return Case({"requests": [_stepped(first, 200, 201, 4.0), _stepped(second, 150, 151, 3.0)]})
