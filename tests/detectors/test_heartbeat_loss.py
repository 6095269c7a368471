"""Silence is what a plain loop over the beats says it is, wherever the windows are cut into batches."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.catalog.heartbeat_loss import GAPS_KEPT, GAPS_NEEDED, OVERDUE, assess, heartbeat_loss
from detectors.detector import Settings, View, complete
from detectors.engine import MatchState, match, reduce
from detectors.tables.beats import BEATS
from detectors.windows import HOUR_US, SECOND_US, WINDOW_US
from tests.cases import Case, at, partitions
from tests.harness import Memory, placed

Row = dict[str, Any]
T0_US = int(at(0).timestamp()) * SECOND_US
HOUR = HOUR_US // WINDOW_US
KEY = ["window", "subject"]


def beat(node: str, t: float, observer: str = "o", **more: Any) -> Row:
    return {"node_id": node, "observer": observer, "client_time": at(t), "server_time": at(t), "arrival": at(t)} | more


def table(rows: list[Row]) -> pl.DataFrame:
    parts = placed(Case({"heartbeats": partitions("heartbeats", rows)}))["heartbeats"]
    news = [reduce([BEATS], "heartbeats", p) for p in parts if len(p)]
    last = max(int(p["arrived"].max()) for p in parts if len(p))  # type: ignore[arg-type]
    return match([BEATS], MatchState(), news, last + WINDOW_US, Memory())[0]["beats"]


def judged(beats: pl.DataFrame, lo: int, to: int, heard_us: int) -> pl.DataFrame:
    """As the engine calls it: only rows that the detector says it looks back at, and none of the future."""
    rows = beats.filter(pl.col("window") >= lo - heartbeat_loss.past_us, pl.col("window") < to)
    return complete(assess(View(rows, {}, lo, to, heard_us, Settings()))).sort(KEY)


def ago(windows: int) -> int:
    return T0_US + windows * WINDOW_US


# ---- a plain loop ----------------------------------------------------------------------------------------------------


def link_at(mine: list[Row], everyone: list[Row], w: int, heard_us: int) -> Row | None:
    """What one link's beats up to the end of window w say; None where the node is not known any more."""
    us = {id(r): round((r["arrival"] - at(0)).total_seconds() * 1e6) + T0_US for r in [*mine, *everyone]}
    by_window: dict[int, list[Row]] = {}
    for r in mine:
        by_window.setdefault(us[id(r)] // WINDOW_US * WINDOW_US, []).append(r)
    known = sorted(v for v in by_window if w - HOUR_US < v <= w)
    if not known:
        if w - HOUR_US in by_window:
            last_us = max(us[id(r)] for r in by_window[w - HOUR_US])
            goodbye = any(r.get("role") == "leaving" and us[id(r)] == last_us for r in by_window[w - HOUR_US])
            return {"last": last_us, "goodbye": goodbye, "value": None}
        return None
    last = {v: max(us[id(r)] for r in by_window[v]) for v in known}
    gaps = [(last[b] - last[a]) // len(by_window[b]) for a, b in pairwise(known)][-GAPS_KEPT:]
    latest = by_window[known[-1]]
    last_us = last[known[-1]]
    silence = max(min(w + WINDOW_US, heard_us) - last_us, 0)
    heard = max(us[id(r)] for r in everyone if us[id(r)] < w + WINDOW_US)
    interval = sorted(gaps)[(len(gaps) - 1) // 2] if len(gaps) >= GAPS_NEEDED else 0
    deaf = silence > OVERDUE * interval and heard <= last_us + OVERDUE * interval
    blind = interval == 0 or any(r.get("weight", 1) > 1 for r in latest) or deaf
    goodbye = any(r.get("role") == "leaving" and us[id(r)] == last_us for r in latest)
    return {"last": last_us, "goodbye": goodbye, "value": None if blind else silence / interval}


def node_at(links: list[Row]) -> float | None:
    """The smallest silence of the links that can tell; 0 after a goodbye; None: unknown."""
    goodbye = max((k["last"] for k in links if k["goodbye"]), default=-1)
    telling = [k for k in links if k["last"] > goodbye]
    values = [k["value"] for k in telling if k["value"] is not None]
    if values:
        return float(min(values))
    return 0.0 if len(telling) < len(links) else None


@st.composite
def recordings(draw: st.DrawFn) -> list[Row]:
    """Runs of steady beats, with pauses of up to more than an hour between them."""
    rows = []
    for node in "abc":
        for observer in draw(st.sampled_from(["o", "p", "op"])):
            t = draw(st.integers(0, 30))
            for _ in range(draw(st.integers(1, 3))):
                every, role = draw(st.integers(1, 40)), draw(st.sampled_from([None, None, "leaving"]))
                weight = draw(st.sampled_from([1, 1, 1, 2]))
                count = draw(st.integers(1, 45))
                for i in range(count):
                    last = {"role": role} if i == count - 1 else {"role": None}
                    rows.append(beat(node, t + i * every + 0.25, observer, weight=weight, **last))
                t += count * every + draw(st.sampled_from([0, 20, 300, 3590, 3700]))
    return rows


@given(recordings(), st.data())
@settings(max_examples=25, deadline=None)
def test_it_says_what_a_plain_loop_says_in_any_batches(rows: list[Row], data: st.DataObject) -> None:
    beats = table(rows)
    first, last = int(beats["window"].min()), int(beats["window"].max())  # type: ignore[arg-type]
    to = min(last + data.draw(st.integers(1, 400)) * WINDOW_US, first + 1200 * WINDOW_US)
    heard = min(to + data.draw(st.integers(-30, 0)) * SECOND_US, to)
    whole = judged(beats, first, to, heard)
    cuts = sorted({first, to, *(first + c * WINDOW_US for c in data.draw(st.lists(st.integers(1, 1200), max_size=4)))})
    cuts = [c for c in cuts if c <= to]
    parts = pl.concat(judged(beats, a, b, heard) for a, b in pairwise(cuts))
    assert parts.sort(KEY).equals(whole)
    sampled = [first + i * WINDOW_US for i in data.draw(st.lists(st.integers(0, 1200), min_size=8, max_size=8))]
    agrees(rows, whole, [w for w in sampled if w < to], heard)


def agrees(rows: list[Row], whole: pl.DataFrame, at_windows: Iterable[int], heard_us: int) -> None:
    """What was said last of each node is what the loop says of it."""
    for node in "abc":
        told = whole.filter(subject=node).select("window", pl.when(~pl.col("unknown")).then("value")).rows()
        for w in at_windows:
            links = []
            for o in "op":
                mine = [r for r in rows if r["node_id"] == node and r["observer"] == o]
                links.append(link_at(mine, [r for r in rows if r["observer"] == o], w, heard_us))
            known = [k for k in links if k]
            if known:  # what was said last still holds
                assert [value for window, value in told if window <= w][-1] == node_at(known)


# ---- edges -----------------------------------------------------------------------------------------------------------

OTHERS = [beat("b", i * 5 + 1) for i in range(900)]


def values(rows: list[Row], to: int, node: str = "a") -> dict[int, tuple[float, bool]]:
    """By window, counted from the beginning."""
    found = judged(table(rows), T0_US, ago(to), ago(to)).filter(subject=node)
    return {(w - T0_US) // WINDOW_US: (v, u) for w, v, u in found.select("window", "value", "unknown").iter_rows()}


def test_a_node_is_known_after_five_gaps_and_not_before() -> None:
    seen = values([*OTHERS, *(beat("a", i * 10) for i in range(6))], 20)
    assert [w for w, (_, unknown) in seen.items() if unknown] == [0, 1, 2, 3, 4]
    assert seen[10] == (6.0, False)


def test_a_silence_of_an_hour_is_unknown_once_and_then_forgotten() -> None:
    seen = values([*OTHERS, *(beat("a", i * 10) for i in range(20))], 400)
    assert seen[14 + HOUR] == (0.0, True)
    assert max(seen) == 14 + HOUR
    assert not seen[13 + HOUR][1]


def test_a_node_that_returns_after_its_goodbye_is_watched_again() -> None:
    rows = [beat("a", i * 5, role="leaving" if i == 30 else None) for i in range(31)]
    back = [beat("a", 400 + i * 5) for i in range(20)]
    seen = values([*OTHERS, *rows, *back], 60)
    assert seen[39] == (0.0, False)
    assert seen[59][0] > 10


def test_a_goodbye_to_one_observer_counts_for_the_others() -> None:
    rows = [beat("a", i * 5 + d, o) for i in range(30) for o, d in (("o", 0), ("p", 1))]
    rows.append(beat("a", 147, "o", role="leaving"))
    others = [beat("b", i * 5 + 1, "p") for i in range(100)]
    assert {v for w, v in values([*OTHERS, *others, *rows], 50).items() if w > 20} == {(0.0, False)}


def test_a_goodbye_that_is_forgotten_leaves_what_the_others_know_which_may_be_nothing() -> None:
    """o heard the goodbye; p heard the node once more, and too little to know an interval: first 0, then unknown."""
    rows = [beat("a", i * 5, "o", role="leaving" if i == 30 else None) for i in range(31)]
    rows += [beat("a", 140, "p"), beat("a", 172, "p")]
    seen = values([*OTHERS, *rows], 500)
    assert seen[17] == (0.0, False)
    after = {w: v for w, v in seen.items() if w > 15 + HOUR}
    assert after == {16 + HOUR: (0.0, True)}, "said once, and it holds"
    whole = judged(table([*OTHERS, *rows]), T0_US, ago(500), ago(500))
    agrees([*OTHERS, *rows], whole, map(ago, range(500)), ago(500))


def test_where_arrivals_are_not_told_silence_is_unknown() -> None:
    rows = [*OTHERS, *(beat("a", i * 5) for i in range(30))]
    parts = placed(Case({"heartbeats": partitions("heartbeats", rows)}), arrivals=False)["heartbeats"]
    tables, _ = match([BEATS], MatchState(), [reduce([BEATS], "heartbeats", p) for p in parts], ago(60), Memory())
    found = judged(tables["beats"], T0_US, ago(60), ago(60))
    assert len(found) > 60
    assert found["unknown"].all()


def test_the_beats_that_were_missed_are_counted_once_each() -> None:
    rows = [*OTHERS, *(beat("a", i * 4) for i in range(30))]
    found = judged(table(rows), ago(12), ago(40), ago(40)).filter(subject="a")
    assert found["total"][-1] == (400 - 116) // 4
    assert found["fresh"].sum() == found["total"][-1] - 1 + 1 - (120 - 116) // 4
    assert found["first"].unique().to_list() == [ago(11)]
    assert found["proof"].list.len().unique().to_list() == [1]
