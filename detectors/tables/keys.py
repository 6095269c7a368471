"""Request lines with an idempotency key enter, every later use of a key leaves: what it has to do with earlier uses.

Verdicts by severity: applied_twice (this use and an earlier one had an effect), other_payload (than the first use had),
concurrent (this execution overlaps an earlier one), replay (fine). Whether the service's TTL had passed depends on a
setting: the table says how long the key had rested, and detectors compare.
Only the server knows effects; client lines meet among themselves, for services that have no others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from polars import col

from detectors.detector import Settings
from detectors.table import SPACE, Ints, Meet, Meeting, Table, meeting
from detectors.windows import DAY_US, MINUTE_US

Flags = npt.NDArray[np.bool_]

BACK_US = DAY_US
TTL_US = DAY_US  # of a service whose settings name none
ON = ("service_name", "idempotency_key", "line")
VERDICTS = pl.Series(["applied_twice", "other_payload", "concurrent", "replay"])

CLIENT = (col("side") == "client").fill_null(False)
NONE, PRESUMED, TOLD = 0, 1, 2  # effects
HIT = (col("cache") == "hit").fill_null(False)
OK = (col("status") == "ok").fill_null(False)
EFFECT = (
    pl.when("applied").then(TOLD).when(col("applied").is_null() & ~CLIENT & OK & ~HIT).then(PRESUMED).otherwise(NONE)
)
FAILED = col("status").is_in(["rejected", "error", "cancelled"]).fill_null(False)


def match_keys(rows: pl.DataFrame) -> pl.DataFrame:
    """One row for each use of a key that has partners: earlier uses, of the same kind of line, within a day."""
    met = meeting(rows, BACK_US)
    t, effect = rows["t"].to_numpy(), rows["effect"].to_numpy()
    start, previous = t - rows["took_us"].to_numpy(), np.maximum(met.at - 1, 0)

    told, before = met.last(effect == TOLD), met.last(effect > NONE)
    applied, surely = (effect > NONE) & (before >= 0), (effect == TOLD) & (told >= 0)
    doubled = np.maximum(met.before((effect > NONE).astype(np.int64)) - 1, 0)
    other, others = _payloads(rows, met)
    during, on_one_node, overlaps = _executions(rows, met, start)

    verdicts: list[Flags] = [applied, other, during >= 0]
    earlier = np.select(verdicts, [np.where(surely, told, before), met.first, during], previous)
    columns: dict[str, Any] = {
        "verdict": VERDICTS[np.select(verdicts, [0, 1, 2], 3)],
        "certain": np.select(verdicts, [surely, True, on_one_node], True),
        "number": 1 + doubled + np.select(verdicts, [0, others, overlaps], 0),
        "partners": met.at - met.first,
        "stored": met.before((~rows["failed"].to_numpy()).astype(np.int64)),
        "gap_us": start - t[previous],
        "overlapping": during >= 0,
    }
    attempt = pl.concat_str("request_id", pl.lit("#"), "retry_count")
    named = rows.select("coord", attempt=attempt)
    first, proof = named[met.first], named[earlier]
    return (
        rows.select("window", *SPACE, *ON, "coord", "t", "weight", "cache", "now")
        .with_columns(
            attempt=named["attempt"],
            witness=first["coord"],
            witness_attempt=first["attempt"],
            earlier=proof["coord"],
            earlier_attempt=proof["attempt"],
            **{n: pl.Series(v) for n, v in columns.items()},
        )
        .filter(pl.Series(met.has) & col("now"))
        .drop("now")
    )


def _payloads(rows: pl.DataFrame, met: Meeting) -> tuple[Flags, Ints]:
    """(whether the payload is another than the first partner's, how many partners' were so already)."""
    code = rows["payload_hash"].rank("dense").cast(pl.Int64).fill_null(0).to_numpy()  # 0: not told
    wanted = code[met.first]
    differs = (code != wanted) & (code > 0) & (wanted > 0)
    n, at, first = len(code), met.at[differs], met.first[differs]
    places, of = np.sort(code * n + met.at), wanted[differs] * n
    equal = np.searchsorted(places, of + at) - np.searchsorted(places, of + first)
    before = np.zeros(n, np.int64)
    before[differs] = met.before((code > 0).astype(np.int64))[differs] - equal
    return differs, before


def _executions(rows: pl.DataFrame, met: Meeting, start: Ints) -> tuple[Ints, Flags, Ints]:
    """(the partner whose execution this one overlaps, or -1; whether one clock says so; how many partners did so).

    Rows are sorted by their end, so that a row overlaps an earlier one exactly if it began before the last one's end.
    A look-up that hit, and a call that was refused because another is under way, executed nothing.
    """
    t, ran = rows["t"].to_numpy(), rows["ran"].to_numpy()
    last = np.where(ran, met.last(ran), -1)
    last[start >= t[last]] = -1
    mates = (
        rows.select("group", "node_id", at=pl.int_range(pl.len(), dtype=pl.Int64))
        .filter(rows["ran"] & rows["stamped"])
        .select("at", mate=col("at").shift(1).over("group", "node_id"))
        .drop_nulls()
    )
    mate = np.full(len(rows), -1, np.int64)
    mate[mates["at"].to_numpy()] = mates["mate"].to_numpy()
    on_one_node = (mate >= met.first) & (last >= 0) & (start < t[mate])
    total = np.concatenate([[0], np.cumsum(last >= 0)])
    ran_at = np.append(np.flatnonzero(ran), len(rows))
    opening = ran_at[np.searchsorted(ran_at, met.first)]  # what this one overlaps is beyond this row's horizon
    return np.where(on_one_node, mate, last), on_one_node, total[met.at] - total[np.minimum(opening + 1, met.at)]


KEYS = Table(
    name="keys",
    key=("service_name",),
    sources=(
        Meet(
            stream="requests",
            where=col("idempotency_key").is_not_null(),
            project={
                "line": pl.when(CLIENT).then(pl.lit("client")).otherwise(pl.lit("server")),
                "effect": EFFECT.cast(pl.Int8),
                "ran": ~CLIENT & ~HIT & (col("status") != "rejected").fill_null(True),
                "failed": FAILED,
                "took_us": (col("duration_ms") * 1000).round().cast(pl.Int64).fill_null(0),
                "stamped": col("fate") == "used",  # t is the end by the node's own clock
            },
            on=ON,
            carry=(
                *("effect", "ran", "failed", "took_us", "stamped"),
                *("cache", "payload_hash", "node_id", "request_id", "retry_count"),
            ),
            back_us=BACK_US,
            match=match_keys,
        ),
    ),
)


def one_line(
    rows: pl.DataFrame, server: pl.Expr, calls: pl.DataFrame, lookback_us: int = 10 * MINUTE_US
) -> pl.DataFrame:
    """Server lines, and client lines only where their service had no server line for lookback_us: never both.

    Effects happen at the server; that is why this is the other way round than for edges.
    """
    key = [*SPACE, "service_name"]
    seen = calls.filter(col("side").ne_missing("client")).select(*key, "window", seen="window").unique().sort("window")
    alone = (
        rows.filter(~server)
        .sort("window")
        .join_asof(seen, on="window", by=key, strategy="backward", check_sortedness=False)
        .filter(col("seen").is_null() | (col("window") - col("seen") >= lookback_us))
    )
    return pl.concat([rows.filter(server), alone.select(rows.columns)])


def ttl_us(settings: Settings) -> pl.Expr:
    """How long the row's service remembers a key."""
    known = dict(settings.ttl_us)
    if not known:
        return pl.lit(TTL_US)
    return col("service_name").replace_strict(known, default=TTL_US, return_dtype=pl.Int64)
