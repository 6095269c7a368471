"""Which keys count, how often, and what proves it."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest

from detectors.catalog.duplicate_key import assess, duplicate_key
from detectors.detector import Settings, View, complete
from detectors.windows import DAY_US, MINUTE_US, WINDOW_US
from tests.cases import Case
from tests.cases.duplicate_key import attempt, case, fires_applied_twice, fires_every_warning, line, ordinary
from tests.harness import Result, one_pass, placed

Row = dict[str, Any]


def found(rows: list[Row], settings: Settings | None = None) -> pl.DataFrame:
    return one_pass(case(rows, settings=settings)).findings.filter(detector="duplicate_key")


def view(result: Result, lo: int, to: int, settings: Settings) -> View:
    """What the engine shows for the windows lo ≤ w < to: nothing later, and of what is earlier as much as is needed."""
    kept = (pl.col("window") >= lo - duplicate_key.past_us) & (pl.col("window") < to)
    calls, keys = (result.tables[n].filter(kept) for n in ("calls", "keys"))
    return View(calls, {"keys": keys}, lo, to, to, settings)


def assessed(given: Case, result: Result, step: int) -> pl.DataFrame:
    """All windows of a case and two minutes after it, `step` windows at a time."""
    windows = result.tables["calls"]["window"].to_numpy()
    end = int(windows.max()) + 3 * MINUTE_US
    batches = [
        complete(assess(view(result, lo, min(lo + step * WINDOW_US, end), given.settings)))
        for lo in range(int(windows.min()), end, step * WINDOW_US)
    ]
    return pl.concat(batches, how="diagonal").sort("window", "kind", "subject")


@pytest.mark.parametrize("make", [fires_applied_twice, fires_every_warning])
def test_assessments_do_not_depend_on_how_windows_are_batched(make: Any) -> None:
    given = make()
    result = one_pass(given)
    whole = assessed(given, result, 10_000)
    assert (whole["value"] > 0).any()
    assert assessed(given, result, 1).equals(whole)
    assert assessed(given, result, 7).equals(whole)


def test_a_key_applied_twice_is_proven_by_both_effects_and_the_clients_lines_of_the_same_attempts() -> None:
    given = fires_applied_twice()
    finding = one_pass(given).findings.filter(detector="duplicate_key").row(0, named=True)
    rows = pl.concat(placed(given)["requests"])
    proof = pl.DataFrame({"coord": finding["proof"][:4]}).join(rows, on="coord", maintain_order="left")
    assert proof["idempotency_key"].unique().to_list() == [json.loads(finding["facts"])["key"]]
    assert proof["side"].to_list() == ["server", "server", "client", "client"]
    assert proof["applied"].to_list() == [True, True, None, None]
    assert sorted(proof["retry_count"][:2]) == sorted(proof["retry_count"][2:]) == [0, 1]


def test_every_key_counts_once_and_the_facts_say_why_it_could_happen() -> None:
    finding = one_pass(fires_applied_twice()).findings.filter(detector="duplicate_key").row(0, named=True)
    assert (finding["count"], finding["peak"], finding["certainty"]) == (23, 23.0, "certain")
    facts = json.loads(finding["facts"])
    assert (facts["overlapping"], facts["missed"], facts["past_ttl"]) == (23, 23, 0)


def test_a_key_applied_five_times_is_one_key() -> None:
    rows = ordinary(range(400))
    for again in range(5):
        rows += attempt(50 + 7 * again, 1_000_000, retry_count=again)
    assert found(rows).select("kind", "count", "level").rows() == [("applied_twice", 1, "page")]


def test_what_is_only_possible_pages_too_because_a_double_charge_can_not_be_waited_out() -> None:
    rows = ordinary(range(400)) + [line("server", s, 0.1, 1_000_000, cache=None) for s in (50, 65)]
    assert found(rows).select("certainty", "level").rows() == [("possible", "page")]


@pytest.mark.parametrize(
    ("ttl_s", "cache", "kinds"),
    [(60, "miss", ["after_ttl"]), (60, None, ["after_ttl"]), (60, "hit", []), (120, "miss", []), (None, "miss", [])],
)
def test_a_reuse_counts_when_the_key_rested_longer_than_the_ttl_and_the_cache_had_lost_it(
    ttl_s: int | None, cache: str | None, kinds: list[str]
) -> None:
    """The key rests 100 s."""
    rows = ordinary(range(800)) + attempt(20, 1_000_000)
    rows += attempt(120.2, 1_000_000, cache=cache, status="error", applied=False)
    settings = Settings(ttl_us={"payment": ttl_s * 1_000_000} if ttl_s else {})
    assert found(rows, settings)["kind"].to_list() == kinds


@pytest.mark.parametrize(("ttl_us", "blind"), [(DAY_US, True), (2 * DAY_US, True), (DAY_US // 2, False)])
def test_a_ttl_that_reaches_the_horizon_makes_its_overrun_unknown_not_clear(ttl_us: int, blind: bool) -> None:
    given = case(ordinary(range(400)), settings=Settings(ttl_us={"payment": ttl_us}))
    result = one_pass(given)
    assert len(result.tables["keys"])
    told = assessed(given, result, 10_000)
    assert told.filter("unknown").select("kind", "subject").unique().rows() == [("after_ttl", "payment")] * blind


@pytest.mark.parametrize(
    ("keyed", "unkeyed", "kinds"),
    [(99, 1, ["missing"]), (98, 1, []), (190, 10, []), (191, 9, ["missing"])],
)
def test_a_retry_without_a_key_counts_where_more_than_95_percent_of_100_lines_have_one(
    keyed: int, unkeyed: int, kinds: list[str]
) -> None:
    rows = [line("server", n / 2, 0.1, n, cache="miss", applied=True) for n in range(keyed)]
    rows += [
        line("server", 100 + n / 10, 0.1, 1_000_000 + n, retry_count=1, idempotency_key=None) for n in range(unkeyed)
    ]
    assert found(rows)["kind"].to_list() == kinds


def test_a_first_call_without_a_key_is_no_retry_that_lacks_one() -> None:
    rows = [*ordinary(range(400)), line("server", 60, 0.1, 1000000, idempotency_key=None)]
    assert found(rows).is_empty()


def test_a_service_that_never_sees_a_key_again_is_still_judged_for_missing_ones() -> None:
    rows = [r for r in ordinary(range(400)) if r["retry_count"] == 0]
    result = one_pass(case([*rows, line("server", 60, 0.1, 1000000, idempotency_key=None, retry_count=1)]))
    assert "keys" not in result.tables
    assert result.fired("duplicate_key") == {("payment", "missing", "warn")}
