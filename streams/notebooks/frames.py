"""An opened state enters, frames for charts leave: findings as bars, calls of an edge, lines of attempts, clocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import polars as pl

from detectors.subjects import ARROW, names
from detectors.tables.calls import CALLS
from detectors.windows import EPOCH, MINUTE_US, WINDOW_US, us_of
from streams.catalog import catalog
from streams.landing.state import has
from streams.notebooks.opened import Opened
from streams.report.corrected import MS, began, intervals
from streams.report.damage import COLUMNS, Damage
from streams.report.evidence import ENDED, Row, evidence
from streams.report.explain import lines_of, uses_of
from streams.report.found import Found, named
from streams.report.sentences import sentence
from streams.report.timeline import Entry

UTC = pl.Datetime("us", "UTC")
AROUND = timedelta(minutes=5)


def bars(o: Opened, found: Sequence[Found]) -> pl.DataFrame:
    """One row a finding: from its onset to its end, or to the end of the data."""
    shape = dict.fromkeys(("finding", "level", "words"), pl.String) | dict.fromkeys(("begins", "ends"), UTC)
    end = o.span.last
    rows = [
        (f"{f.detector} {f.name}", f.level, sentence(f), f.onset, end if o.span.is_open(f) else f.last) for f in found
    ]
    return pl.DataFrame(rows, schema=shape, orient="row")


def lines(entries: Iterable[Entry], *kinds: str) -> pl.DataFrame:
    """The lines of a timeline, of some kinds or of all."""
    shape = {"at": UTC} | dict.fromkeys(("what", "level", "subject", "words", "evidence"), pl.String)
    rows = [
        (e.at, e.what, e.level, e.subject, e.words, " ".join(e.evidence))
        for e in entries
        if not kinds or e.what in kinds
    ]
    return pl.DataFrame(rows, schema=shape, orient="row")


# ---- calls of an edge ------------------------------------------------------------------------------------------------


def calls(o: Opened, f: Found) -> pl.DataFrame:
    """The edge of a finding in windows of 10 s, from shortly before it to shortly after; the side that was judged."""
    caller, service = names(f.subject, ARROW)
    landed = o.landed(catalog(o.config)[f.detector].detector)
    rows = landed.read([CALLS], us_of(f.onset - AROUND), us_of(f.last + AROUND))[CALLS.name]
    mine = rows.filter(pl.col("caller").eq_missing(pl.lit(caller)), service_name=service)
    mine = mine.filter(environment=f.environment, tenant=f.tenant)
    clients = mine.filter(pl.col("side").ne_missing("server"))
    side = (
        (clients if len(clients) else mine)
        .group_by("window")
        .agg(pl.col("attempts", "retries", "timeouts", "ok").sum())
    )
    first = pl.col("attempts") - pl.col("retries")
    return side.sort("window").select(
        pl.from_epoch("window", time_unit="us").dt.replace_time_zone("UTC").alias("at"),
        "attempts", "retries", "timeouts", "ok",
        a_minute=pl.col("retries").rolling_sum(6, min_samples=1),
        load=pl.when(first > 0).then(pl.col("attempts") / first),
    )  # fmt: skip


def thresholds(o: Opened, name: str, of: str = "") -> pl.DataFrame:
    """What a detector's value is compared with, of one subject."""
    detector = catalog(o.config)[name].detector
    own = [t for t in detector.thresholds if t.of == "value" and t.level in ("warn", "page")]
    subject = pl.DataFrame({"subject": [of]})
    numbers = [subject.select(o.settings.threshold(name, t, detector.subject_kind)).item() for t in own]
    return pl.DataFrame({"level": [t.level for t in own], "at_least": numbers, "unit": [t.unit for t in own]})


def tries(o: Opened, f: Found) -> pl.DataFrame:
    """The rows behind a storm by window and number of the try."""
    placed = f"CASE WHEN fate = 'used' THEN {ENDED['requests']} ELSE arrival END"
    many = "retry_count AS try, status, count(*) AS attempts"
    sql = f"SELECT time_bucket(INTERVAL 10 SECONDS, {placed}) AS at, {many} FROM ({evidence(o.con, f).query})"
    found: pl.DataFrame = o.con.sql(f"{sql} GROUP BY ALL ORDER BY ALL").pl()
    return found


# ---- effects that were made twice ------------------------------------------------------------------------------------


def listed(some: Sequence[Damage]) -> pl.DataFrame:
    return pl.DataFrame([d.cells for d in some], schema=list(COLUMNS), orient="row")


def attempts(o: Opened, found: Sequence[Found], most: int) -> pl.DataFrame:
    """The lines of both attempts of some keys on corrected time, in ms from the first; half: of the error bar."""
    shape: dict[str, Any] = dict.fromkeys(("key", "line", "side", "status"), pl.String)
    shape |= dict.fromkeys(("begins_ms", "ends_ms", "half_ms"), pl.Float64) | {"effect": pl.Boolean}
    some = [(f, u) for f in found for u in uses_of(o.con, f)][:most]
    stories = [(u.key, lines_of(o.con, f, u)) for f, u in some]
    rows = [row for key, story in stories for row in _story(key, story)]
    return pl.DataFrame(rows, schema=shape, orient="row")


def _story(key: str, story: Sequence[Row]) -> Iterable[tuple[Any, ...]]:
    first = min((began(r) for r in story), default=EPOCH)
    for r in sorted(story, key=lambda r: (r["retry_count"] or 0, r["side"] or "")):
        side = r["side"] or "server"
        begins, half = (began(r) - first) / MS, r["bar"].half / MS if r["bar"].best else None
        line = f"try {r['retry_count'] or 0} {side} {r['node_id']}"
        yield key, line, side, r["status"], begins, begins + (r["duration_ms"] or 0), half, bool(r["applied"])


# ---- clocks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fleet:
    """intervals: of each node a minute, in ms ahead of the reference; a side that is open is null."""

    intervals: pl.DataFrame
    outside: dict[str, list[Found]]  # nodes whose clocks were found to be wrong


def clocks(o: Opened) -> Fleet:
    """The last hour of the data. Of several fleets (environments, tenants) each node is named with its own."""
    wrong = [f for f in o.found if f.detector in ("clock_skew", "clock_drift")]
    last = us_of(o.span.last) // WINDOW_US * WINDOW_US
    windows = range(max(us_of(o.span.first), last - 60 * MINUTE_US) // WINDOW_US * WINDOW_US, last + 1, MINUTE_US)
    sql = "SELECT DISTINCT environment, tenant FROM clocks ORDER BY ALL"
    spaces = o.con.execute(sql).fetchall() if has(o.con, "clocks") else []
    told = [_named(intervals(o.con, s, list(windows)), s) for s in spaces]
    shape: dict[str, Any] = {
        "node": pl.String,
        "at": UTC,
        "lower_ms": pl.Float64,
        "upper_ms": pl.Float64,
        "reference": pl.String,
    }
    outside = {n: [f for f in wrong if f.name == n] for n in sorted({f.name for f in wrong})}
    return Fleet(pl.concat([pl.DataFrame(schema=shape), *told]), outside)


def _named(known: pl.DataFrame, space: tuple[str, ...]) -> pl.DataFrame:
    suffix = named("", "/".join(n for n in space if n))
    return known.select(
        pl.col("node") + suffix,
        pl.from_epoch("window", time_unit="us").dt.replace_time_zone("UTC").alias("at"),
        lower_ms=pl.col("lower_us") * 0.001,
        upper_ms=pl.col("upper_us") * 0.001,
        reference="reference",
    )
