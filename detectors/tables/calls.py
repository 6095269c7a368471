"""Request lines enter, attempts and their outcomes by edge, side and window leave."""

import polars as pl
from polars import col

from detectors.table import Low, Rows, Sum, Table


def _where(condition: pl.Expr) -> Low:
    return Low(pl.when(condition).then(col("coord")))


RETRY = col("retry_count") > 0
TIMEOUT = col("status") == "timeout"
UNKEYED_RETRY = RETRY & col("idempotency_key").is_null()

CALLS = Table(
    name="calls",
    key=("caller", "service_name", "side"),
    sources=(Rows(stream="requests"),),
    columns={
        "rows": Sum(weighted=False),
        "attempts": Sum(),
        "retries": Sum(RETRY),
        "timeouts": Sum(TIMEOUT),
        "rejected": Sum(col("status") == "rejected"),
        "errors": Sum(col("status") == "error"),
        "ok": Sum(col("status") == "ok"),
        "keyed": Sum(col("idempotency_key").is_not_null()),
        "unkeyed_retries": Sum(UNKEYED_RETRY),
        "retries_proof": _where(RETRY),
        "timeouts_proof": _where(TIMEOUT),
        "unkeyed_retries_proof": _where(UNKEYED_RETRY),
    },
)
