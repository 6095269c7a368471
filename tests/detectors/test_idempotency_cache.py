"""Which look-ups count, and when a rise is a step."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import polars as pl
import pytest

from detectors.catalog.idempotency_cache import assess, idempotency_cache
from detectors.detector import Settings, View, complete
from detectors.windows import MINUTE_US, WINDOW_US
from tests.cases import Case, partitions
from tests.cases.idempotency_cache import calls, fires_emptied
from tests.harness import one_pass

Row = dict[str, Any]
LATER = timedelta(seconds=10)


def told(rows: list[Row], step: int = 10_000, settings: Settings | None = None) -> pl.DataFrame:
    """The assessments of all windows and five minutes after them, `step` windows at a time."""
    result = one_pass(Case({"requests": partitions("requests", rows)}))
    tables = [result.tables[n] for n in ("keys", "calls")]
    windows = tables[1]["window"].to_numpy()
    end, batches = int(windows.max()) + 6 * MINUTE_US, []
    for lo in range(int(windows.min()), end, step * WINDOW_US):
        to = min(lo + step * WINDOW_US, end)
        shown = (pl.col("window") >= lo - idempotency_cache.past_us) & (pl.col("window") < to)
        keys, edges = (t.filter(shown) for t in tables)
        batches.append(complete(assess(View(keys, {"calls": edges}, lo, to, to, settings or Settings()))))
    return pl.concat(batches).sort("window")


def test_assessments_do_not_depend_on_how_windows_are_batched() -> None:
    rows = calls(range(100, 200), 1, lasts_s=250)
    whole = told(rows)
    assert (whole["value"] > 0).any()
    assert told(rows, 1).equals(whole)
    assert told(rows, 7).equals(whole)


def test_emptying_the_cache_is_a_step_and_one_that_gets_worse_slowly_is_not() -> None:
    finding = one_pass(fires_emptied()).findings.filter(detector="idempotency_cache").row(0, named=True)
    assert json.loads(finding["facts"])["flush"] is True
    rows = calls(range(0), 1, per_s=1, lasts_s=1500)  # of its repeats one in 12 misses at first, one in 2 at last
    slowly = [r | {"cache": "miss"} if i // 2 % max(2, 12 - i // 240) == 0 else r for i, r in enumerate(rows)]
    findings = one_pass(Case({"requests": partitions("requests", slowly)})).findings
    finding = findings.filter(detector="idempotency_cache").row(0, named=True)
    assert finding["level"] == "page"
    assert json.loads(finding["facts"])["flush"] is False


def test_first_uses_miss_and_do_not_count() -> None:
    seen = told(calls(range(0), 1, lasts_s=120))
    assert (seen["lookups"] > 50).any()
    assert seen["value"].max() == 0


def test_below_fifty_look_ups_it_is_unknown_and_a_sampled_row_counts_as_one_of_them() -> None:
    """49 or 50 repeats, all missed, of which each stands for ten."""
    for repeats, known in ((49, False), (50, True)):
        rows = [r | {"weight": 10} for r in calls(range(2000), 1, lasts_s=repeats // 2 + 1)[: 2 * repeats]]
        last = told(rows).filter(pl.col("fresh") > 0).row(-1, named=True)
        assert (last["lookups"], last["value"]) == (10 * repeats, 1.0)
        assert last["unknown"] is not known


@pytest.mark.parametrize(("status", "counts"), [("ok", True), (None, True), ("timeout", True), ("error", False)])
def test_only_a_call_whose_outcome_a_cache_keeps_can_be_forgotten(status: str | None, counts: bool) -> None:
    rows = [r | {"status": r["status"] if r["retry_count"] else status} for r in calls(range(2000), 1, lasts_s=60)]
    assert (told(rows)["lookups"].sum() > 0) is counts


def test_a_miss_while_the_first_use_still_runs_is_a_miss() -> None:
    """first  |==============|      its line is written last, and its look-up was the one that had to miss
    again        |==|
    """
    rows = [
        r | {"cache": "miss"} | ({} if r["retry_count"] else {"duration_ms": 9000.0, "arrival": r["timestamp"] + LATER})
        for r in calls(range(0), 1, lasts_s=60)
    ]
    assert told(rows)["value"].max() == 1.0


def test_a_key_that_rested_longer_than_the_ttl_was_rightly_forgotten() -> None:
    """Keys rest about eight seconds."""
    rows = calls(range(2000), 1, lasts_s=60)
    assert told(rows)["value"].max() == 1.0
    assert told(rows, settings=Settings(ttl_us={"payment": 7_000_000}))["lookups"].sum() == 0


def test_what_clients_say_of_the_cache_counts_only_where_no_server_does() -> None:
    servers = calls(range(0), 1, lasts_s=60)
    clients = [r | {"side": "client", "cache": "miss", "applied": None} for r in servers]
    assert told(clients)["value"].max() == 1.0
    assert told(servers + clients)["value"].max() == 0
