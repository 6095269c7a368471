"""Idempotency keys of a service that did not protect: their work was done twice, or could have been.

Formula: keys (each counted once, when it first earns the verdict) over the last six windows of 10 s; earlier uses are
known for 24 h. Kinds, from the worst on, each use under the worst that is true of it:
- applied_twice: this use and an earlier one had an effect. Certain where both lines say `applied`; without that field
  a server's line with status ok and cache other than hit counts as applied, possible. Pages at any, since a double
  charge can't be waited out;
- other_payload: the payload's hash is not the one of the first use;
- after_ttl: the key had rested longer than the service's TTL (24 h unless settings name one) and was not in the cache.
  A TTL that reaches the 24 h horizon makes this `unknown`;
- concurrent: two executions overlap; certain where one node's clock says so;
- missing: a retry without a key at a service where, of at least 100 lines of the trailing hour, over 95 % have one.
Server lines count; client lines only of services that have no others. A sampled row counts as one: a lower bound.
Facts: key (one of them), and how many of the keys overlapped an earlier execution, missed the cache, outlived the TTL.
False alarms: a key that is meant to be used again (one per day or per batch); a line shipped twice without event_id;
services that log neither `applied` nor `cache` and answer repeats from memory with status ok.
Misses: keys more than 24 h apart; effects of calls that failed half way; calls without keys at services that use few.
Use idempotency_cache to see whether the cache forgets; retry_storm for what makes keys come again at all.
Source: the operators' playbook, 4.3; DESIGN of the Idempotency-Key header, draft-ietf-httpapi-idempotency-key-header.
"""

import polars as pl
from polars import col

from detectors.detector import PROOF_KEPT, Detector, Threshold, View, complete, trailing
from detectors.table import SPACE
from detectors.tables.calls import CALLS
from detectors.tables.keys import BACK_US, KEYS, one_line, ttl_us
from detectors.windows import AHEAD_US, HOUR_US, MINUTE_US

UNSAFE = ("applied_twice", "other_payload", "after_ttl", "concurrent")
COUNTED = ("keys", "sure", "overlapping", "missed", "past_ttl")
CARRIES_KEYS = 0.95  # share of a service's lines
LEAST_LINES = 100
PAST_US = HOUR_US + 10 * MINUTE_US
WHO = [*SPACE, "subject"]
KEY = [*SPACE, "service_name", "idempotency_key"]


def assess(view: View) -> pl.DataFrame:
    assessed = [_missing(view)]
    if KEYS.name in view.also:
        uses = _uses(view)
        assessed += [_unsafe(view, uses.filter(kind=kind), kind) for kind in UNSAFE]
        assessed.append(_unseen(view, uses))
    doubled = pl.when(col("kind") == "applied_twice").then("value")
    return pl.concat(map(complete, assessed), how="diagonal").with_columns(applied_twice=doubled)


def _uses(view: View) -> pl.DataFrame:
    """Later uses of keys with their kind, and `counts` where it is the first time that the key earns it."""
    rested, ttl = col("gap_us"), ttl_us(view.settings)
    past_ttl = (rested > ttl) & (ttl < BACK_US) & col("cache").ne_missing("hit")
    expired = past_ttl & col("verdict").is_in(["concurrent", "replay"])
    return one_line(view.also[KEYS.name], col("line") == "server", view.rows).with_columns(
        kind=pl.when(expired).then(pl.lit("after_ttl")).otherwise("verdict"),
        counts=expired | (col("number") == 1),
        certain=pl.when(expired).then(rested > ttl + AHEAD_US).otherwise("certain"),
        past_ttl=past_ttl,
        ttl=ttl,
    )


def _unsafe(view: View, uses: pl.DataFrame, kind: str) -> pl.DataFrame:
    counted = uses.filter("counts").with_columns(
        keys=pl.lit(1, dtype=pl.Int64),
        sure=col("certain").cast(pl.Int64),
        overlapping=col("overlapping").cast(pl.Int64),
        missed=(col("cache") == "miss").fill_null(False).cast(pl.Int64),
        past_ttl=col("past_ttl").cast(pl.Int64),
        proof="coord",
    )
    seen = trailing(view, counted, col("service_name"), COUNTED, "keys", MINUTE_US)
    value = col("keys").cast(pl.Float64)
    return (
        seen.join(_proofs(view, seen, counted), on=["window", *WHO], how="left", maintain_order="left")
        .with_columns(kind=pl.lit(kind), value=value, certain=col("sure") > 0, proof="proven")
        .select(pl.exclude("keys", "sure", "proven", "^before_.*$"))
    )


def _proofs(view: View, seen: pl.DataFrame, counted: pl.DataFrame) -> pl.DataFrame:
    """For each assessment one key that proves it: the two uses, and the client's lines of the same two attempts."""
    witness = counted.select("coord", "earlier", "attempt", "earlier_attempt", "service_name", "idempotency_key")
    shown = (
        seen.filter(col("proof").list.len() > 0)
        .select("window", *WHO, coord=col("proof").list.first())
        .join(witness, on="coord", maintain_order="left")
    )
    clients = view.also[KEYS.name].filter(line="client").join(shown, on=KEY, how="semi")
    lines = pl.concat(
        clients.select(*KEY, attempt=attempt, client=coord, known="window")
        for attempt, coord in (("attempt", "coord"), ("witness_attempt", "witness"))
    )
    same = (
        shown.select("window", "coord", *KEY, attempt=pl.concat_list("attempt", "earlier_attempt"))
        .explode("attempt")
        .join(lines, on=[*KEY, "attempt"])
        .filter(col("known") <= col("window"), col("known") > col("window") - PAST_US)
        .group_by("window", "coord")
        .agg(col("client").unique().sort())
    )
    four = pl.concat_list("earlier", "coord", col("client").fill_null([]))
    return shown.join(same, on=["window", "coord"], how="left", maintain_order="left").select(
        "window",
        *WHO,
        key="idempotency_key",
        proven=four.list.unique(maintain_order=True).list.head(PROOF_KEPT),
    )


def _unseen(view: View, uses: pl.DataFrame) -> pl.DataFrame:
    """A reuse after a TTL that reaches the horizon can't be seen."""
    now = (col("window") >= view.lo) & (col("window") < view.to)
    blind = uses.filter(now, col("ttl") >= BACK_US).select("window", *SPACE, subject="service_name").unique()
    return blind.with_columns(kind=pl.lit("after_ttl"), unknown=pl.lit(True))


def _missing(view: View) -> pl.DataFrame:
    """Only of services with such a retry in the trailing hour: of all others there is nothing to say."""
    who = [*SPACE, "service_name"]
    concerned = view.rows.join(view.rows.filter(col("unkeyed_retries") > 0), on=who, how="semi")
    rows = one_line(concerned, col("side").ne_missing("client"), concerned).with_columns(proof="unkeyed_retries_proof")
    sums = ("unkeyed_retries", "keyed", "attempts", "rows")
    seen = trailing(view, rows, col("service_name"), sums, "unkeyed_retries", MINUTE_US, HOUR_US)
    unkeyed, keyed, attempts, lines = (col(n) + col(f"before_{n}") for n in sums)
    carries = (keyed > CARRIES_KEYS * attempts) & (lines >= LEAST_LINES)
    return seen.filter(unkeyed > 0).select(
        pl.exclude(*sums, "^before_.*$"),
        kind=pl.lit("missing"),
        value=pl.when(carries).then("unkeyed_retries").otherwise(0).cast(pl.Float64),
    )


duplicate_key = Detector(
    name="duplicate_key",
    reads=CALLS,  # which has a row wherever KEYS has one; a service whose retries carry no keys has none in KEYS
    also=(KEYS,),
    assess=assess,
    subject_kind="service",
    unknown_when="its TTL reaches the 24 h for which uses are remembered",
    thresholds=(
        Threshold("warn_keys", "warn", 0, "keys", 0, 1e9),
        Threshold("page_keys", "page", 0, "keys", 0, 1e9, of="applied_twice"),
    ),
    unit="keys",
    past_us=PAST_US,
    needs=("idempotency_key",),
    lacks=(
        ("applied", "a server's ok counts as an effect: possible, not certain"),
        ("cache", "an answer from memory counts as an effect"),
        ("payload_hash", "another payload under one key is not seen"),
    ),
    irreversible=True,
    over_loss="fires",
)
