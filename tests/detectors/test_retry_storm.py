"""A storm lasts as long as its retries do: it does not become its own past, nor does a habit become a storm."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import polars as pl
import pytest

from detectors.detector import Settings
from detectors.events import MAX_WEIGHT
from tests.cases import Case, at, partitions
from tests.cases.retry_storm import overloaded, waiting
from tests.harness import one_pass


def stretch(
    since: int, until: int, per_s: float, one_in: int, weight: int = 1, who: tuple[str, str] = ("gateway", "payment")
) -> list[dict[str, object]]:
    """Calls from one second to another; one in so many is a retry."""
    return [
        {
            "timestamp": at(since + i / per_s),
            "arrival": at(since + i / per_s + 0.3),
            "service_name": who[1],
            "caller": who[0],
            "node_id": "gateway-1",
            "side": "client",
            "status": "ok",
            "retry_count": 1 if i % one_in == 0 else 0,
            "weight": weight,
        }
        for i in range(int((until - since) * per_s))
    ]


def found(*stretches: list[dict[str, object]], settings: Settings | None = None) -> pl.DataFrame:
    rows = [row for s in stretches for row in s]
    case = Case({"requests": partitions("requests", rows)}, settings=settings or Settings())
    result = one_pass(case, only="retry_storm")
    return result.findings.sort("onset")


def test_a_storm_longer_than_its_hour_is_one_finding_until_it_ends() -> None:
    minute = 60
    one = found(
        stretch(0, 10 * minute, 4, 100),
        stretch(10 * minute, 90 * minute, 4, 2),
        stretch(90 * minute, 100 * minute, 4, 100),
    )
    assert one.select("level", "certainty").rows() == [("warn", "certain")]
    assert at(600) <= one["onset"][0] < at(620)
    assert at(90 * minute) <= one["last"][0] <= at(90 * minute + 70)
    assert one["resolved"][0] is not None


def test_a_storm_that_was_there_before_the_recording_goes_on_to_its_end() -> None:
    one = found(stretch(0, 1500, 4, 2))
    assert one.select("level", "certainty", "resolved").rows() == [("warn", "possible", None)]
    assert one["onset"][0] == at(0)
    assert one["last"][0] >= at(1490)


def test_the_heaviest_rows_make_the_same_storm() -> None:
    def storm(weight: int) -> pl.DataFrame:
        own = {"retry_storm.warn_per_min": 100.0 * weight, "retry_storm.page_per_min": 500.0 * weight}
        rows = (stretch(*s, weight=weight) for s in ((0, 1200, 20, 100), (1200, 2400, 20, 2), (2400, 2600, 20, 100)))
        return found(*rows, settings=Settings(own))

    light, heavy = storm(1), storm(MAX_WEIGHT)
    assert light["level"].to_list() == ["page"]
    same = ("finding_id", "level", "onset", "last", "resolved")
    assert heavy.select(same).equals(light.select(same))
    assert heavy["count"][0] == light["count"][0] * MAX_WEIGHT


def test_a_storm_that_pauses_comes_again_although_most_of_its_past_is_storm() -> None:
    calm, storm = ((0, 600), (1800, 2000)), ((600, 1800), (2000, 2300))
    two = found(*(stretch(a, b, 4, 100) for a, b in calm), *(stretch(a, b, 4, 2) for a, b in storm))
    assert two["certainty"].to_list() == ["certain", "certain"]
    for onset, (since, _) in zip(two["onset"], storm, strict=True):
        assert timedelta(0) <= onset - at(since) < timedelta(seconds=20)


def test_a_storm_that_grows_long_after_its_onset_pages() -> None:
    one = found(stretch(0, 600, 4, 100), stretch(600, 4800, 4, 2), stretch(4800, 5100, 20, 2))
    assert one.select("level", "certainty").rows() == [("page", "certain")]
    assert one["threshold"][0] == 500


def test_a_habit_is_no_storm_when_the_load_rises_and_never_pages() -> None:
    """One in four, always: over the warning from the start, where nothing tells it from a storm; the load rises."""
    one = found(stretch(0, 900, 8, 4), stretch(900, 1800, 40, 4), stretch(1800, 2000, 8, 4))
    assert one.select("level", "certainty", "resolved").rows() == [("warn", "possible", None)]
    assert found(stretch(0, 900, 2, 4), stretch(900, 5400, 10, 4)).is_empty()


def test_a_storm_where_success_is_back_with_the_load_does_not_keep_itself_going() -> None:
    def kinds(*, recovers: bool) -> list[str]:
        return sorted(found(overloaded(recovers))["kind"])

    assert kinds(recovers=False) == ["", "metastable"]
    assert kinds(recovers=True) == [""]


def test_layers_that_retry_multiply_each_other_and_the_way_is_named() -> None:
    """Half of the attempts of each of three edges above one another are retries; a fourth caller repeats nothing."""
    edges = [("mobile", "web"), ("web", "gateway"), ("gateway", "payment")]
    storms = [r for who in edges for r in (*stretch(0, 600, 4, 100, who=who), *stretch(600, 900, 6, 2, who=who))]
    calm = stretch(0, 900, 9, 100, who=("batch", "gateway"))
    facts = {f["subject"]: json.loads(f["facts"]) for f in found(storms, calm).iter_rows(named=True)}
    assert [round(facts[f"{a}->{b}"]["load"], 2) for a, b in edges] == [2.0, 2.0, 2.0]
    assert [round(facts[f"{a}->{b}"]["layers"], 1) for a, b in edges] == [2.0, 4.0, 8.0]
    assert facts["gateway->payment"]["through"] == ["mobile", "web", "gateway", "payment"]
    assert facts["mobile->web"]["through"] == ["mobile", "web"]


def test_services_that_call_each_other_are_no_endless_tower() -> None:
    edges = [("a", "b"), ("b", "a")]
    storms = [r for who in edges for r in (*stretch(0, 600, 4, 100, who=who), *stretch(600, 900, 6, 2, who=who))]
    for f in found(storms).iter_rows(named=True):
        facts = json.loads(f["facts"])
        assert facts["layers"] == facts["load"]
        assert facts["through"] == f["subject"].split("->")


def test_who_calls_little_is_not_named_as_the_top_however_often_it_repeats() -> None:
    """web calls ten times a second and repeats nothing, cron twice a minute and repeats each call nine times."""
    calm = stretch(0, 900, 10, 100, who=("web", "gateway"))
    cron = [r | {"retry_count": i % 10} for i, r in enumerate(stretch(0, 900, 1 / 3, 2, who=("cron", "gateway")))]
    (one,) = found(stretch(0, 600, 4, 100), stretch(600, 900, 6, 2), calm, cron).iter_rows(named=True)
    facts = json.loads(one["facts"])
    assert (one["subject"], facts["through"]) == ("gateway->payment", ["gateway", "payment"])
    assert facts["layers"] == facts["load"]


def test_a_caller_that_nobody_told_is_named_as_one() -> None:
    edges: list[tuple[Any, str]] = [(None, "gateway"), ("gateway", "payment")]
    storms = [r for who in edges for r in (*stretch(0, 600, 4, 100, who=who), *stretch(600, 900, 6, 2, who=who))]
    through = {f["subject"]: json.loads(f["facts"])["through"] for f in found(storms).iter_rows(named=True)}
    assert through == {"?->gateway": ["?", "gateway"], "gateway->payment": ["?", "gateway", "payment"]}


def test_calls_a_minute_of_the_calm_are_those_of_an_edge_that_is_silent_in_most_of_it() -> None:
    bursts = [(60 * m, 60 * m + 10, 30, 100 if m < 15 else 2) for m in range(20)]
    (one,) = found(*(stretch(*b) for b in bursts)).iter_rows(named=True)
    assert json.loads(one["facts"])["calm_per_min"] == 297


# ---- backoff ---------------------------------------------------------------------------------------------------------


def backoff(rows: list[dict[str, object]]) -> tuple[str | None, bool | None, list[int] | None]:
    (one,) = found(rows).filter(pl.col("kind") == "").iter_rows(named=True)
    facts = json.loads(one["facts"])
    return facts["backoff"], facts["jitter"], facts["waits_ms"]


@pytest.mark.parametrize(
    ("waits_s", "shape", "waits_ms"),
    [
        ((0.0, 0.0), "immediate", [0, 0]),
        ((0.1, 0.1), "fixed", [100, 100]),
        ((0.1, 0.2), "growing", [100, 200]),
        ((0.1, 0.2, 0.3), "linear", [100, 200, 300]),
        ((0.1, 0.2, 0.4), "exponential", [100, 200, 400]),
        ((0.0, 0.1, 0.2, 0.4, 0.4), "exponential", [0, 100, 200, 400, 400]),
        ((0.1,), None, [100]),
        ((0.4, 0.1), None, [400, 100]),
    ],
)
def test_the_course_of_the_waits_between_attempts_is_told(
    waits_s: tuple[float, ...], shape: str | None, waits_ms: list[int]
) -> None:
    assert backoff(waiting(waits_s)) == (shape, False, waits_ms)


def test_jitter_is_told_from_the_spread_and_takes_no_course_away() -> None:
    assert backoff(waiting((1.0, 2.0, 4.0), spread=1.0))[:2] == ("exponential", True)
    assert backoff(waiting((1.0, 1.0, 1.0), spread=0.5))[:2] == ("fixed", True)
    assert backoff(waiting((1.0, 1.0, 1.0), spread=0.1))[:2] == ("fixed", False)


@pytest.mark.parametrize("name", ["request_id", "retry_count", "duration_ms", "status"])
def test_waits_are_unknown_where_the_attempt_before_is_not_told(name: str) -> None:
    """Without status only first attempts are unknown, and two retries of three are known."""
    told = waiting((0.1, 0.1, 0.1), payload_hash="same")
    assert backoff(told)[0] == "fixed"
    rows = [{**r, name: None} for r in told]
    if name == "retry_count":  # then what is equal to a call that was refused is taken for a retry
        rows = [{**r, "status": "rejected" if r["status"] == "error" else r["status"]} for r in rows]
    if name == "status":
        assert backoff(rows) == ("fixed", False, [100, 100])
    else:
        assert backoff(rows) == (None, None, None)


@pytest.mark.parametrize("waits_s", [(0.1, 0.2, 0.4), (0.5, 0.5, 0.5)])
def test_waits_are_unknown_by_stamps_in_whole_seconds(waits_s: tuple[float, ...]) -> None:
    rows = [{**r, "timestamp": str(r["timestamp"])[:19] + "Z"} for r in waiting(waits_s)]
    assert backoff(rows) == (None, None, None)


def test_waits_of_less_than_half_of_the_retries_are_not_said_of_all() -> None:
    def some(one_in: int) -> list[dict[str, object]]:
        return [r if int(str(r["request_id"])[1:]) % one_in == 0 else r | {"request_id": None} for r in told]

    told = waiting((0.1, 0.1))
    assert backoff(some(2)) == ("fixed", False, [100, 100])
    assert backoff(some(3)) == (None, None, None)


def test_server_lines_tell_the_waits_only_where_no_client_line_does() -> None:
    client, server = waiting((0.1, 0.1)), waiting((0.4, 0.4), side="server")
    assert backoff(server) == ("fixed", False, [400, 400])
    assert backoff(client + server) == ("fixed", False, [100, 100])


# ---- metastable ------------------------------------------------------------------------------------------------------


def failing(since: int, until: int, per_s: int, tries: int) -> list[dict[str, object]]:
    """Calls of which only the last try succeeds."""
    return [
        {**r, "retry_count": n, "status": "ok" if n == tries - 1 else "error"}
        for r in stretch(since, until, per_s, 100)
        for n in range(tries)
    ]


def kinds(*stretches: list[dict[str, object]]) -> dict[str, str]:
    return dict(found(*stretches).select("kind", "certainty").rows())


def test_what_the_load_led_to_and_outlives_it_is_metastable_but_never_certain() -> None:
    led = kinds(failing(0, 900, 2, 1), failing(900, 960, 4, 1), failing(960, 1020, 4, 4), failing(1020, 1800, 2, 4))
    assert led == {"": "certain", "metastable": "possible"}


@pytest.mark.parametrize("fine_s", [240, 1500])
def test_a_callee_that_breaks_when_a_surge_is_long_over_is_not_metastable(fine_s: int) -> None:
    over = 960 + fine_s
    broke = kinds(
        failing(0, 900, 2, 1), failing(900, 960, 4, 1), failing(960, over, 2, 1), failing(over, over + 300, 2, 4)
    )
    assert broke == {"": "certain"}


def test_a_callee_that_breaks_when_the_day_is_over_is_not_metastable() -> None:
    day = [failing(600 * i, 600 * i + 600, 6 - i, 1) for i in range(5)]
    assert kinds(*day, failing(3000, 3300, 2, 4)) == {"": "certain"}
