"""A timeline has what happened in the order in which it did, and as of a moment only what could be read then."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from detectors.detector import Settings
from streams.chaos.fleet import make_hour, write_tape
from streams.landing.state import open_readable
from streams.problems import Problem
from streams.replay import replay
from streams.report import timeline_forms as forms
from streams.report.found import Filter, Span, all_findings, span_of
from streams.report.notes import notes_of
from streams.report.timeline import Entry, Timeline, timeline
from tests.cases import at as after
from tests.cases.duplicate_key import ordinary, slow_and_retried
from tests.streams.report.states import of_rows

HOUR = datetime(2026, 1, 26, 8, tzinfo=UTC)


def of(state: Path, wanted: Filter | None = None, as_of: datetime | None = None) -> tuple[Timeline, Span]:
    with open_readable(state) as con:
        span = span_of(con, "")
        return timeline(con, span, wanted or Filter(), as_of=as_of), span


def test_the_storm_begins_gets_worse_and_is_over(demo_state: Path) -> None:
    known, _ = of(demo_state)
    storm = " | ".join(e.words for e in known.entries if e.detector == "retry_storm")
    assert re.fullmatch(r"rs-\w+ retry_storm begins: .*is worse: .*is at its worst: 611 retries/min .*: over", storm)
    placed = [e.placed or e.at for e in known.entries]
    assert placed == sorted(placed)
    assert {e.what for e in known.entries} == {"finding", "signal", "event"}
    assert all(e.evidence for e in known.entries)


def test_a_row_that_is_dated_2099_stands_where_it_arrived(demo_state: Path) -> None:
    known, span = of(demo_state)
    dated = [e for e in known.entries if "its stamp can't be true" in e.words]
    assert dated and all(e.at.year == 2099 and e.placed and span.first <= e.placed <= span.last for e in dated)


def test_a_row_of_a_clock_that_is_ahead_stands_at_its_corrected_time(demo_state: Path) -> None:
    known, _ = of(demo_state)
    ahead = [e for e in known.entries if e.node == "payment-3" and " ± " in e.corrected]
    assert ahead
    for e in ahead:
        assert e.earliest and e.latest and e.placed and e.earliest <= e.placed <= e.latest
        assert timedelta(milliseconds=800) < e.at - e.placed < timedelta(milliseconds=900)


def test_a_filter_leaves_out_what_is_of_others(demo_state: Path) -> None:
    known, _ = of(demo_state, Filter(HOUR + timedelta(minutes=10), HOUR + timedelta(minutes=30), service="payment"))
    assert {e.detector for e in known.entries} >= {"retry_storm", "timeout_ratio", "duplicate_key"}
    assert not any(e.subject == "order/cart" for e in known.entries)


def test_signals_are_of_the_findings_environment_and_tenant_and_none_is_missing(tmp_path: Path) -> None:
    """However many were logged before."""
    calls = sorted([*ordinary(range(800)), *slow_and_retried({})], key=lambda r: r["arrival"])
    rows = [r | {"tenant": "acme"} for r in calls]
    change: dict[str, Any] = {"subject": "payment", "kind": "change", "tenant": "acme"}
    said = [(n / 100, {"name": "restart"}) for n in range(1_100)]
    said += [(40.0, {"name": f"deploy of {t}", "tenant": t}) for t in ("acme", "other", "")]
    signals = [change | {"timestamp": after(s), "arrival": after(s)} | more for s, more in said]
    with open_readable(of_rows(tmp_path, requests=rows, signals=signals)) as con:
        chosen, span = [f.finding_id for f in all_findings(con)], span_of(con, "")
        assert chosen
        for wanted, many in ((Filter(), 1_101), (Filter(after(30)), 1)):
            told = [e.words for e in timeline(con, span, wanted, chosen).entries if e.what == "signal"]
            assert len(told) == many and told[-1] == "deploy of acme"


def cut(tape: Path, to: Path, at: datetime) -> None:
    """The records that had arrived by then; JSON lines each tell their arrival."""
    to.mkdir()
    seen = 0
    for file in tape.glob("*.jsonl"):
        lines = [line for line in file.read_text().splitlines() if _arrived(line) <= at]
        seen += len(lines)
        (to / file.name).write_text("".join(line + "\n" for line in lines))
    assert seen > 10_000


def _arrived(line: str) -> datetime:
    try:
        said = json.loads(line)["arrival"]
    except (ValueError, KeyError):
        return HOUR  # a reject tells nothing
    return datetime.fromisoformat(said)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's faults in forty minutes with a fifth of the calls: tape and state."""
    folder = tmp_path_factory.mktemp("small")
    write_tape(make_hour(1, minutes=40, scale=0.2), folder / "tape")
    replay([str(folder / "tape")], folder / "state", Settings())
    return folder


@pytest.mark.xdist_group("moments")  # they share the small tape
@pytest.mark.parametrize("after_s", [1_171, 1_233.5, 1_605])
def test_as_of_a_moment_it_is_what_the_log_up_to_then_gives(small: Path, tmp_path: Path, after_s: float) -> None:
    """Replaying the records that had arrived: the same lines, no more and no fewer."""
    at = HOUR + timedelta(seconds=after_s)
    cut(small / "tape", tmp_path / "tape", at)
    replay([str(tmp_path / "tape")], tmp_path / "state", Settings())
    whole, then = of(small / "state", as_of=at)[0], of(tmp_path / "state", as_of=at)[0]
    assert sum(e.what == "finding" for e in then.entries) > 5
    assert whole.entries == then.entries
    assert len(whole.entries) < len(of(small / "state")[0].entries)


# ---- silences -------------------------------------------------------------------------------------------------------


def beat(second: float) -> dict[str, str]:
    at = (HOUR + timedelta(seconds=second)).isoformat()
    return {"node_id": "a-1", "client_time": at, "server_time": at, "arrival": at}


def test_a_silence_is_marked_and_as_of_its_middle_only_as_long_as_it_had_lasted(tmp_path: Path) -> None:
    state = of_rows(tmp_path, heartbeats=[beat(s) for s in (*range(0, 180, 2), *range(1_500, 1_800, 2))])
    (whole,) = (e for e in of(state)[0].entries if e.what == "silence")
    assert (whole.at, whole.until) == (HOUR + timedelta(minutes=3), HOUR + timedelta(minutes=25))
    middle = HOUR + timedelta(minutes=12, seconds=40)
    (then,) = (e for e in of(state, as_of=middle)[0].entries if e.what == "silence")
    assert (then.at, then.until) == (HOUR + timedelta(minutes=3), HOUR + timedelta(minutes=12))
    assert not [e for e in of(state, as_of=HOUR + timedelta(minutes=6))[0].entries if e.what == "silence"]


# ---- notes ----------------------------------------------------------------------------------------------------------


def test_notes_are_merged_in_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "ops.csv").write_text('time,what,who\n2026-01-26T09:22:00+01:00,"breaker opened, by hand",ana\n')
    (note,) = notes_of(tmp_path / "ops.csv")
    assert note == Entry(
        HOUR + timedelta(minutes=22), "note", "ana", "breaker opened, by hand", ("ops.csv:2",),
        readable=HOUR + timedelta(minutes=22),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "named", "then"),
    [
        ("when,what\n", "no column time or timestamp or datetime or at", "first line: time,what,subject"),
        ("time,what\n2026-01-26 08:22,x\n", "no time with a zone", "write 2026-01-26T08:22:00Z"),
        ("time,what\nnoon,x\n", "'noon' is no time", "write 2026-01-26T08:22:00Z"),
        ("", "no column time", "first line"),
        ("time,what\n9999-12-31T23:59:59-10:00,x\n", "no time with a zone", "write 2026-01-26T08:22:00Z"),
        ("time,what\n2026-01-26T08:22:00Z,restarted it, then waited\n", ":2: more cells", 'in "quotes"'),
    ],
)
def test_notes_that_tell_no_time_are_refused_by_line(tmp_path: Path, text: str, named: str, then: str) -> None:
    (tmp_path / "ops.csv").write_text(text)
    with pytest.raises(Problem) as refused:
        notes_of(tmp_path / "ops.csv")
    assert "ops.csv" in str(refused.value) and named in str(refused.value) and then in str(refused.value)


# ---- forms ----------------------------------------------------------------------------------------------------------


def test_csv_and_json_have_every_line(demo_state: Path) -> None:
    known, _ = of(demo_state)
    rows = list(csv.DictReader(io.StringIO("\n".join(forms.separated(known)))))
    objects = [json.loads(line) for line in forms.json_lines(known)]
    assert len(rows) == len(objects) == len(known.entries) > 50
    assert [r["words"] for r in rows] == [o["words"] for o in objects] == [e.words for e in known.entries]
    for one in objects:  # what Timesketch requires of a line
        assert one["message"] and one["timestamp_desc"] and datetime.fromisoformat(one["datetime"]).tzinfo
