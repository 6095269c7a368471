"""Every stamp is of the kind that a plain loop gives it, and pages only where many of many rows are wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.catalog.impossible_timestamp import assess, impossible_timestamp
from detectors.detector import Settings, View, complete
from detectors.engine import MatchState, match, reduce
from detectors.events import STREAMS
from detectors.tables.stamps import BACK_US, RACE_US, STAMPS
from detectors.windows import AHEAD_US, DAY_US, OLD_US, SECOND_US, WINDOW_US
from tests.cases import Case, at, partitions
from tests.harness import Memory, one_pass, placed

Row = dict[str, Any]
T0_US = int(at(0).timestamp()) * SECOND_US
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def us(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1)


def line(t: float, off_us: int = 0, node: str = "a", **more: Any) -> Row:
    stamp = at(t) + timedelta(microseconds=off_us)
    return {"timestamp": stamp, "arrival": at(t), "service_name": "s", "node_id": node, "duration_ms": 0.0} | more


def table(case: Case, to_us: int | None = None, *, arrivals: bool = True) -> pl.DataFrame:
    log = placed(case, arrivals=arrivals)
    news = [reduce([STAMPS], stream, p) for stream, parts in log.items() for p in parts if len(p)]
    last = max(int(p["arrived"].max()) for parts in log.values() for p in parts if len(p))  # type: ignore[arg-type]
    return match([STAMPS], MatchState(), news, last + WINDOW_US, Memory())[0]["stamps"]


def kinds(case: Case, *, arrivals: bool = True) -> dict[tuple[str, str, str], int]:
    """(stream, node, kind): rows."""
    rows = table(case, arrivals=arrivals).group_by("stream", "node_id", "kind").agg(pl.col("rows").sum())
    return {(s, n, k): r for s, n, k, r in rows.iter_rows()}


# ---- kinds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("off_us", "kind"),
    [
        (0, ""),
        (AHEAD_US, ""),
        (AHEAD_US + 1, "ahead"),
        (-OLD_US, ""),
        (-OLD_US - 1, "old"),
        (26_663 * DAY_US, "ahead"),
        (27_100 * DAY_US, "epoch"),
        (-us(at(5)), "epoch"),
        (-us(at(5)) + 10**15 - 1, "epoch"),
        (-us(at(5)) + 10**15, "old"),
    ],
)
def test_a_stamp_is_of_one_kind(off_us: int, kind: str) -> None:
    found = kinds(Case({"requests": partitions("requests", [line(5, off_us), line(6)])}))
    assert found == {("requests", "a", ""): 1 + (kind == "")} | ({("requests", "a", kind): 1} if kind else {})


def test_the_end_of_a_call_is_its_stamp() -> None:
    rows = [line(5, duration_ms=60_000.0), line(6, duration_ms=60_000.001)]
    assert kinds(Case({"requests": partitions("requests", rows)})) == {
        ("requests", "a", ""): 1,
        ("requests", "a", "ahead"): 1,
    }


def test_both_clocks_of_a_heartbeat_answer_for_their_own_stamp() -> None:
    far = at(0) + timedelta(hours=1)
    beats = [
        {"node_id": "a", "observer": "o", "client_time": far, "server_time": at(1), "arrival": at(1)},
        {"node_id": "a", "observer": "o", "client_time": at(2), "server_time": far, "arrival": at(2)},
    ]
    assert kinds(Case({"heartbeats": partitions("heartbeats", beats)})) == {
        ("heartbeats", n, k): 1 for n in "ao" for k in ("", "ahead")
    }


def test_a_signal_has_no_clock_to_blame() -> None:
    assert {s.stream for s in STAMPS.sources} == {*STREAMS} - {"signals"}


def test_without_arrivals_what_is_cut_off_from_the_recording_is_named() -> None:
    rows = [line(i) for i in range(300)] + [line(100.5, -2 * DAY_US, "b"), line(100.6, 2 * DAY_US, "c")]
    found = kinds(Case({"requests": partitions("requests", rows, 1)}), arrivals=False)
    assert found == {("requests", "a", ""): 300, ("requests", "b", "old"): 1, ("requests", "c", "ahead"): 1}


# ---- back ------------------------------------------------------------------------------------------------------------


@st.composite
def numbered(draw: st.DrawFn) -> list[Row]:
    rows = []
    for i in range(draw(st.integers(2, 30))):
        t = draw(st.integers(0, 150)) + i / 1000
        off = draw(st.sampled_from([0, 0, -RACE_US, -3 * SECOND_US, 61 * SECOND_US]))
        took = draw(st.sampled_from([0.0, 0.0, 2500.0]))
        scope = draw(st.sampled_from([None, "x"]))
        rows.append(
            line(t, off, draw(st.sampled_from("ab")), seq=draw(st.integers(0, 40)), seq_scope=scope, duration_ms=took)
        )
    return rows


def steps(rows: list[Row]) -> dict[tuple[int, str, str], tuple[int, int, int, int]]:
    """(window, node, scope): rows that go back, the largest step, and the pair with the smallest coordinate."""
    parts = placed(Case({"requests": partitions("requests", rows)}))["requests"]
    lines: dict[tuple[str, str], list[Row]] = {}
    for r in sorted(pl.concat(parts).iter_rows(named=True), key=lambda r: (r["arrived"], r["coord"])):
        r["start"] = us(r["timestamp"])
        r["end"] = r["start"] + round(r["duration_ms"] * 1000)
        if -OLD_US <= r["end"] - r["arrived"] <= AHEAD_US:
            lines.setdefault((r["node_id"], r["seq_scope"] or ""), []).append(r)
    found: dict[tuple[int, str, str], list[tuple[int, int, int]]] = {}
    for (node, scope), mine in lines.items():
        for a, b in pairwise(mine):
            wa, wb = (r["arrived"] // WINDOW_US * WINDOW_US for r in (a, b))
            back = min(a["start"] - b["start"], a["end"] - b["end"])
            if wb - wa <= BACK_US and b["seq"] > a["seq"] and back > RACE_US:
                found.setdefault((wb, node, scope), []).append((b["coord"], a["coord"], a["end"] - b["end"]))
    return {k: (len(v), max(step for *_, step in v), *min(v)[:2]) for k, v in found.items()}


@given(numbered())
@settings(max_examples=60, deadline=None)
def test_rows_go_back_where_a_plain_loop_sees_it(rows: list[Row]) -> None:
    found = table(Case({"requests": partitions("requests", rows)})).filter(kind="back")
    columns = ("window", "node_id", "scope", "rows", "off_us", "proof", "earlier")
    got = {tuple(r[:3]): tuple(r[3:]) for r in found.select(columns).iter_rows()}
    assert got == steps(rows)


def test_the_plain_loop_sees_rows_that_go_back() -> None:
    assert steps([line(8, seq=1), line(12, -5 * SECOND_US, seq=2)])


def test_a_pair_more_than_a_minute_apart_says_nothing() -> None:
    def back(gap: int) -> bool:
        rows = [line(5, seq=1), line(5 + gap, -(gap + 1) * SECOND_US, seq=2)]
        return ("requests", "a", "back") in kinds(Case({"requests": partitions("requests", rows)}))

    assert back(60)
    assert not back(70)


# ---- judged ----------------------------------------------------------------------------------------------------------


def test_assessments_do_not_depend_on_batches() -> None:
    rows = [line(i, AHEAD_US * 2 if i in (0, 61, 65, 300, 3650) else 0, "ab"[i % 2], seq=i) for i in range(4000)]
    rows += [
        line(i, -9 * SECOND_US, "c", seq=i) if i % 50 == 0 else line(i, node="c", seq=i) for i in range(0, 4000, 5)
    ]
    stamps = table(Case({"requests": partitions("requests", rows)}))
    assert {"ahead", "back"} <= {*stamps["kind"]}

    def judged(lo: int, to: int) -> pl.DataFrame:
        since = lo - impossible_timestamp.past_us
        rows = stamps.filter(pl.col("window") >= since, pl.col("window") < to)
        return complete(assess(View(rows, {}, lo, to, to, Settings())))

    order = ["window", "subject", "kind"]
    end = T0_US + 420 * WINDOW_US
    whole = judged(T0_US, end).sort(order)
    assert len(whole) > 20
    for step in (5, 100):
        cuts = [*range(T0_US, end, step * WINDOW_US), end]
        assert pl.concat(judged(a, b) for a, b in pairwise(cuts)).sort(order).equals(whole)


@pytest.mark.parametrize(("right", "wrong", "level"), [(988, 12, "page"), (987, 12, "warn"), (1990, 20, "warn")])
def test_it_pages_above_one_percent_of_a_thousand_rows(right: int, wrong: int, level: str) -> None:
    rows = [line(i * 0.2) for i in range(right)] + [line(right * 0.2 + i / 100, 3 * AHEAD_US) for i in range(wrong)]
    result = one_pass(Case({"requests": partitions("requests", rows)}))
    assert result.fired("impossible_timestamp") == {("a", "ahead", level)}
    assert result.findings.filter(detector="impossible_timestamp")["count"].to_list() == [wrong]


def test_the_proof_of_a_stamp_that_goes_back_is_both_rows() -> None:
    rows = [line(i, -4 * SECOND_US if i >= 20 else 0, seq=i) for i in range(40)]
    found = one_pass(Case({"requests": partitions("requests", rows)})).findings.filter(kind="back")
    log = pl.concat(placed(Case({"requests": partitions("requests", rows)}))["requests"])
    (proof,) = found["proof"].to_list()
    assert log.filter(pl.col("coord").is_in(proof))["seq"].sort().to_list() == [19, 20]
