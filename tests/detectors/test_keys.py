"""The table of keys says the same as a plain loop over every pair of uses, and each verdict is what its name says."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.detector import Settings
from detectors.engine import MatchState, match, reduce
from detectors.tables.keys import KEYS, TTL_US, one_line, ttl_us
from detectors.windows import DAY_US, MINUTE_US, WINDOW_US
from tests.cases import Case, at, partitions
from tests.harness import Memory, placed

Row = dict[str, Any]
DAY_S = DAY_US // 1_000_000
COMPARED = (
    "verdict",
    "certain",
    "number",
    "partners",
    "stored",
    "gap_us",
    "overlapping",
    "witness",
    "earlier",
    "attempt",
    "witness_attempt",
    "earlier_attempt",
)


def line(start_s: float, **more: Any) -> Row:
    took_s = more.pop("took_s", 0.1)
    return {
        "timestamp": at(start_s),
        "arrival": at(start_s + took_s + more.pop("delay_s", 1)),
        "duration_ms": took_s * 1000,
        "service_name": "payment",
        "node_id": "payment-1",
        "side": "server",
        "idempotency_key": "k",
        **more,
    }


def table(rows: list[Row]) -> pl.DataFrame:
    log = placed(Case({"requests": partitions("requests", rows)}))
    news = [reduce([KEYS], "requests", part) for part in log["requests"]]
    last = max(int(part["t"].max()) for part in log["requests"] if len(part))  # type: ignore[arg-type]
    return match([KEYS], MatchState(), news, last + WINDOW_US, Memory())[0].get("keys", pl.DataFrame())


def seen(rows: list[Row]) -> list[Row]:
    """Every row that counts, as the loop below sees it, in the order in which the table sorts."""
    log = placed(Case({"requests": partitions("requests", rows)}))
    all_rows = pl.concat(log["requests"]).filter(pl.col("fate") != "late", pl.col("idempotency_key").is_not_null())
    return sorted(all_rows.iter_rows(named=True), key=lambda r: (r["t"], r["coord"]))


def kind_of_line(r: Row) -> str:
    return "client" if r["side"] == "client" else "server"


def effect(r: Row) -> int:
    if r["applied"] is not None:
        return 2 if r["applied"] else 0
    presumed = kind_of_line(r) == "server" and r["status"] == "ok" and r["cache"] != "hit"
    return 1 if presumed else 0


def began(r: Row) -> int:
    took_us: int = round(r["duration_ms"] * 1000)
    return int(r["t"]) - took_us


def overlap(r: Row, p: Row) -> bool:
    both_ran = all(kind_of_line(x) == "server" and x["cache"] != "hit" and x["status"] != "rejected" for x in (r, p))
    return both_ran and began(r) < p["t"]


def name(r: Row) -> str | None:
    known = r["request_id"] is not None and r["retry_count"] is not None
    return f"{r['request_id']}#{r['retry_count']}" if known else None


def use(r: Row, partners: list[Row]) -> Row:
    """What the table should say of one use, from its earlier partners in order."""
    first = partners[0]
    applied = [p for p in partners if effect(p)]
    told = [p for p in partners if effect(p) == 2]
    other = [p for p in partners if None not in (p["payload_hash"], first["payload_hash"])]
    other = [p for p in other if p["payload_hash"] != first["payload_hash"]]
    during = [p for p in partners if overlap(r, p)]
    stamped = [p for p in during if p["node_id"] == r["node_id"] and "used" == p["fate"] == r["fate"]]
    doubled = max(len(applied) - 1, 0)
    if effect(r) and applied:
        sure = bool(effect(r) == 2 and told)
        verdict = ("applied_twice", sure, 1 + doubled, (told if sure else applied)[-1])
    elif None not in (r["payload_hash"], first["payload_hash"]) and r["payload_hash"] != first["payload_hash"]:
        verdict = ("other_payload", True, 1 + doubled + len(other), first)
    elif during:
        before = [p for i, p in enumerate(partners) if any(overlap(p, q) for q in partners[:i])]
        verdict = ("concurrent", bool(stamped), 1 + doubled + len(before), (stamped or during)[-1])
    else:
        verdict = ("replay", True, 1 + doubled, partners[-1])
    return {
        "verdict": verdict[0],
        "certain": verdict[1],
        "number": verdict[2],
        "earlier": verdict[3]["coord"],
        "earlier_attempt": name(verdict[3]),
        "partners": len(partners),
        "stored": sum(p["status"] not in ("rejected", "error", "cancelled") for p in partners),
        "gap_us": began(r) - partners[-1]["t"],
        "overlapping": bool(during),
        "witness": first["coord"],
        "witness_attempt": name(first),
        "attempt": name(r),
    }


def brute_force(rows: list[Row]) -> dict[int, Row]:
    said = {}
    ordered = seen(rows)
    for i, r in enumerate(ordered):
        partners = [
            p
            for p in ordered[:i]
            if all(p[n] == r[n] for n in ("environment", "tenant", "service_name", "idempotency_key"))
            and kind_of_line(p) == kind_of_line(r)
            and r["t"] // WINDOW_US - p["t"] // WINDOW_US <= DAY_US // WINDOW_US
        ]
        if partners:
            said[r["coord"]] = use(r, partners)
    return said


def often(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([usual] * 5 + [*others])


lines = st.builds(
    line,
    st.sampled_from([0, 1, 2, 9, DAY_S - 1, DAY_S, DAY_S + 2, DAY_S + 9, DAY_S + 12, DAY_S + 15]),
    took_s=st.sampled_from([0, 0.5, 3, 8, 14]),
    delay_s=often(1, 40, -90),
    side=often("server", None, "client", "client"),
    node_id=st.sampled_from(["payment-1", "payment-2"]),
    idempotency_key=often("k", None, "other"),
    tenant=often("", "t"),
    status=st.sampled_from(["timeout", "timeout", None, "ok", "rejected", "error"]),
    cache=often(None, "hit", "miss"),
    applied=often(None, True, True, False),
    payload_hash=st.sampled_from([None, "p", "p", "q"]),
    request_id=often("r1", None),
    retry_count=st.sampled_from([0, 1]),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(lines, min_size=6, max_size=16))
def test_every_use_is_judged_as_a_loop_over_all_pairs_would_judge_it(rows: list[Row]) -> None:
    wanted = brute_force(rows)
    told = table(rows)
    got = {r["coord"]: {n: r[n] for n in COMPARED} for r in told.iter_rows(named=True)}
    assert got == {c: {n: r[n] for n in COMPARED} for c, r in wanted.items()}


def verdicts(*rows: Row) -> list[tuple[Any, ...]]:
    told = table(list(rows))
    return told.select("verdict", "certain").rows() if len(told) else []


DONE = {"status": "ok", "cache": "miss"}


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (DONE | {"applied": True}, DONE | {"applied": True}, ("applied_twice", True)),
        (DONE, DONE | {"applied": True}, ("applied_twice", False)),
        ({"status": "ok"}, {"status": "ok"}, ("applied_twice", False)),
        (DONE, {"status": "ok", "cache": "hit"}, ("replay", True)),
        (DONE | {"applied": True}, DONE | {"applied": False}, ("replay", True)),
        ({}, {}, ("replay", True)),
        (DONE, {"status": "timeout"}, ("replay", True)),
        (DONE | {"payload_hash": "a"}, {"status": "rejected", "payload_hash": "b"}, ("other_payload", True)),
        (DONE | {"payload_hash": "a"}, {"status": "rejected"}, ("replay", True)),
        (DONE | {"payload_hash": "a"}, DONE | {"payload_hash": "b"}, ("applied_twice", False)),
        ({"status": "error"}, {"status": "ok"}, ("replay", True)),
    ],
)
def test_the_worst_that_can_be_said_of_two_uses_one_after_the_other(
    first: Row, second: Row, verdict: tuple[str, bool]
) -> None:
    assert verdicts(line(0, **first), line(20, **second)) == [verdict]


@pytest.mark.parametrize(
    ("later", "verdict"),
    [
        ({}, ("concurrent", True)),
        ({"node_id": "payment-2"}, ("concurrent", False)),
        ({"cache": "hit"}, ("replay", True)),
        ({"status": "rejected"}, ("replay", True)),
        ({"side": "client"}, None),
        ({"took_s": 1}, ("replay", True)),
    ],
)
def test_two_executions_at_once_are_concurrent_for_certain_by_one_clock_only(
    later: Row, verdict: tuple[str, bool] | None
) -> None:
    """first   |=====|              0 .. 5
    later       |=========|         3 .. 12, or |=| 11 .. 12 when it takes 1 s
    """
    first = line(0, took_s=5, status="timeout")
    took_s = later.get("took_s", 9)
    rows = [first, line(12 - took_s, **{"status": "timeout", "took_s": took_s} | later)]
    assert verdicts(*rows) == ([verdict] if verdict else [])


def test_a_key_that_is_applied_again_and_again_is_numbered_so_that_it_counts_once() -> None:
    told = table([line(20 * i, **DONE) for i in range(4)])
    assert told.select("verdict", "number", "partners").rows() == [("applied_twice", i, i) for i in (1, 2, 3)]


def test_what_overlapped_beyond_the_horizon_is_not_counted_any_more() -> None:
    """window   0          1       ...   8641
    a       |=====|                       |        a is no partner of d any more, so b overlaps nobody that d knows
    b          |=======|                  |
    c                                     |=====|
    d                                       |======|
    """
    spans = [(0, 9), (5, 8), (DAY_S + 11, 4), (DAY_S + 12, 5)]
    told = table([line(start, took_s=took, status="timeout") for start, took in spans])
    assert told.select("verdict", "number", "partners").rows()[-1] == ("concurrent", 1, 2)


def test_the_lines_of_both_sides_of_one_attempt_do_not_meet() -> None:
    assert verdicts(line(0, **DONE), line(0, side="client", status="ok")) == []


def test_keys_of_two_services_or_tenants_do_not_meet() -> None:
    assert verdicts(line(0, **DONE), line(5, service_name="orders", **DONE), line(9, tenant="b", **DONE)) == []


def test_a_use_a_day_later_meets_and_one_two_days_later_does_not() -> None:
    assert verdicts(line(0, **DONE), line(DAY_S, **DONE)) == [("applied_twice", False)]
    assert verdicts(line(0, **DONE), line(2 * DAY_S, **DONE)) == []


def test_client_lines_count_where_their_service_has_had_no_server_line_for_ten_minutes() -> None:
    minutes = [0, 9, 10]
    rows = pl.DataFrame(
        {
            "window": [m * MINUTE_US for m in minutes] * 2,
            "environment": [""] * 6,
            "tenant": [""] * 6,
            "service_name": ["a"] * 3 + ["b"] * 3,
            "line": ["client"] * 6,
        }
    )
    calls = rows[:1].with_columns(side=pl.lit("server"))
    left = one_line(rows, pl.col("line") == "server", calls)
    assert sorted(left.select("service_name", "window").rows()) == [
        ("a", 10 * MINUTE_US),
        *(("b", m * MINUTE_US) for m in minutes),
    ]


def test_a_service_remembers_keys_as_long_as_its_settings_say_or_else_a_day() -> None:
    rows = pl.DataFrame({"service_name": ["a", "b"]})
    assert rows.select(ttl_us(Settings())).item(0, 0) == TTL_US
    assert rows.select(ttl_us(Settings(ttl_us={"a": 5}))).to_series().to_list() == [5, TTL_US]
