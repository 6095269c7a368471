"""Replay: the same answer however recordings are cut, packed, repeated, grown, or the run is killed."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.detector import Settings
from detectors.windows import DAY_US
from streams.outcome import Outcome
from streams.replay import load, replay
from tests.streams.tape import (
    COMMAND,
    ROOT,
    T0,
    accounting,
    beats,
    contents,
    differing,
    lines,
    request,
    storm,
    write,
)


def run(folder: Path, *paths: Path, **options: Any) -> Outcome:
    return replay([str(p) for p in paths], folder, Settings(), **options)


@contextmanager
def somewhere() -> Iterator[Path]:
    """A folder for one example of hypothesis, which may not share a fixture."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def parquet(events: Sequence[dict[str, Any]]) -> bytes:
    """As somebody's own writer would: numbers for times, no column that is never filled."""
    out = io.BytesIO()
    pl.DataFrame(events, infer_schema_length=None).write_parquet(out)
    return out.getvalue()


# ---- mixtures -------------------------------------------------------------------------------------------------------

DELAYS = {"used": 1, "late": 31, "implausible": -61}  # s
KINDS = [*DELAYS, "rejected", "tombstones", "repeated"]


def mixed(kinds: Sequence[str], first: int = 0) -> list[Any]:
    """One record of each kind, at 10 s intervals; repeated: the event_id of a used row that comes first."""
    records: list[Any] = [request(0, event_id="once", timestamp=T0 + 10 * first, arrival=T0 + 10 * first + 1)]
    for i, kind in enumerate(kinds, first + 1):
        arrival = T0 + 10 * i
        match kind:
            case "tombstones":
                records.append(None)
            case "rejected":
                records.append(request(i, duration_ms=-1))
            case "repeated":
                records.append(request(i, event_id="once", arrival=arrival))
            case _:
                records.append(request(i, timestamp=arrival - DELAYS[kind], duration_ms=0, arrival=arrival))
    return records


kinds = st.lists(st.sampled_from(KINDS), max_size=12)


@settings(max_examples=8)
@given(kinds)
def test_every_row_read_is_accounted_for_once(some: list[str]) -> None:
    with somewhere() as tmp:
        run(tmp / "state", write(tmp / "requests.jsonl", lines(mixed(some))))
        expected = {kind: some.count(kind) + (kind == "used") for kind in KINDS if kind in [*some, "used"]}
        assert accounting(tmp / "state") == {"read": len(some) + 1, **expected}


@settings(max_examples=8)
@given(kinds, kinds, st.booleans())
def test_replay_a_then_b_is_replay_a_b(first: list[str], second: list[str], arrivals: bool) -> None:
    with somewhere() as tmp:
        halves = [mixed(first), mixed(second, first=100)]
        for half in halves:
            for record in half:
                if record and not arrivals:
                    del record["arrival"]
        a, b = (write(tmp / f"requests-{i}.jsonl", lines(half)) for i, half in enumerate(halves))
        run(tmp / "both", a, b)
        run(tmp / "one", a)
        run(tmp / "one", b)
        assert differing(contents(tmp / "one"), contents(tmp / "both")) == []
        assert accounting(tmp / "one")["repeated"] >= 1


def test_a_storm_cut_over_two_runs_is_found_as_in_one(tmp_path: Path) -> None:
    """The cut lies inside the storm, and inside a window."""
    events = storm()
    a = write(tmp_path / "requests-a.jsonl", lines(events[:5_813]))
    b = write(tmp_path / "requests-b.parquet", parquet(events[5_813:]))
    run(tmp_path / "both", a, b)
    run(tmp_path / "one", a)
    run(tmp_path / "one", b)
    both = contents(tmp_path / "both")
    assert both["findings"]["detector"].to_list() == ["retry_storm"]
    assert differing(contents(tmp_path / "one"), both) == []


@pytest.mark.parametrize("form", ["requests.parquet", "requests.jsonl.gz", "requests.jsonl.zst"])
def test_the_same_events_in_another_form_are_the_same_answer(tmp_path: Path, form: str) -> None:
    events = storm()
    run(tmp_path / "plain", write(tmp_path / "requests.jsonl", lines(events)))
    other = parquet(events) if form.endswith("parquet") else lines(events)
    run(tmp_path / "other", write(tmp_path / form, other))
    plain = contents(tmp_path / "plain")
    assert len(plain["findings"]) == 1
    assert differing(contents(tmp_path / "other"), plain, but=["source"]) == []


# ---- the same again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["requests.jsonl", "copy.jsonl", "requests-copy.jsonl.gz"])
def test_a_recording_is_read_once_whatever_it_is_called(tmp_path: Path, again: str) -> None:
    content = lines(storm(400))
    first = write(tmp_path / "requests.jsonl", content)
    second = write(tmp_path / again, content)
    run(tmp_path / "once", first)
    once = contents(tmp_path / "once")
    outcome = run(tmp_path / "twice", first, second)
    assert outcome.notes == ([] if first == second else [f"{again}: read before as requests.jsonl, nothing new in it"])
    assert differing(contents(tmp_path / "twice"), once) == []
    outcome = run(tmp_path / "once", second)
    assert outcome.notes == [f"{again}: read before as requests.jsonl, nothing new in it"]
    assert differing(contents(tmp_path / "once"), once) == []


def test_a_parquet_file_is_read_once(tmp_path: Path) -> None:
    file = write(tmp_path / "requests.parquet", parquet(storm(400)))
    for _ in range(2):
        run(tmp_path / "state", file)
        assert accounting(tmp_path / "state") == {"read": 400, "used": 400}


def test_recordings_that_share_only_their_beginning_are_two(tmp_path: Path) -> None:
    events = storm(400)
    a = write(tmp_path / "requests-a.jsonl", lines(events))
    b = write(tmp_path / "requests-b.jsonl", lines([*events[:399], request(400)]))
    run(tmp_path / "state", a, b)
    assert accounting(tmp_path / "state") == {"read": 800, "used": 800}


def test_an_event_id_counts_once_per_tenant_wherever_it_was_shipped(tmp_path: Path) -> None:
    """The one that arrived first stays, also when it is read last; without an id nothing is a repeat."""
    late = [request(5, event_id="x"), request(6, event_id="x"), request(7, event_id=""), request(8, event_id="")]
    early = [request(1, event_id="x"), request(2, event_id="x", tenant="t"), request(3), request(4)]
    run(tmp_path / "state", write(tmp_path / "requests-a.jsonl", lines(late)))
    assert accounting(tmp_path / "state") == {"read": 4, "used": 3, "repeated": 1}
    run(tmp_path / "state", write(tmp_path / "requests-b.jsonl", lines(early)))
    assert accounting(tmp_path / "state") == {"read": 8, "used": 6, "repeated": 2}
    rows = contents(tmp_path / "state")["requests"]
    assert rows.filter(pl.col("event_id") == "x").select("partition", "offset").sort("offset").rows() == [
        (1, 0),
        (1, 1),
    ]


# ---- recordings that grow -------------------------------------------------------------------------------------------


def growing(arrivals: bool) -> bytes:
    """Two hundred rows, some bad, one stamp that steps back, and at its end one dated 2099."""
    events: list[Any] = [request(20 * i) for i in range(200)]
    events[60] = None
    events[100]["duration_ms"] = -1
    events[150]["arrival"] = T0
    events[170]["event_id"] = events[190]["event_id"] = "x"
    events.append(request(20 * 201, timestamp="2099-01-01T00:00:00Z"))
    events.append(request(20 * 202))
    if not arrivals:
        for event in events:
            if event:
                del event["arrival"]
    return lines(events)


def slipped(*bad: tuple[int, Any], n: int = 200) -> list[Any]:
    """A call a second; some have another arrival."""
    events: list[Any] = [request(20 * i) for i in range(n)]
    for i, arrival in bad:
        events[i]["arrival"] = arrival
    return events


WRONG = [0, T0 - 3 * 86_400, T0 + 5_400, T0 + 3 * 86_400, 9_999_999_999_999, "9999-12-31T00:00:00Z"]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("places", [[0], [7], [50, 51, 52], [199]])
def test_an_arrival_that_can_t_be_true_is_a_reject_or_swallowed_and_moves_no_clock(
    tmp_path: Path, wrong: Any, places: list[int]
) -> None:
    run(tmp_path / "state", write(tmp_path / "requests.jsonl", lines(slipped(*((i, wrong) for i in places)))))
    rejected = contents(tmp_path / "state")["rejects"]
    low = isinstance(wrong, int) and wrong < T0 and places != [0]  # behind its partition's clock, which stands in
    assert rejected.select("offset", "field").rows() == ([] if low else [(i, "arrival") for i in places])
    assert accounting(tmp_path / "state") == {"read": 200, "used": 200 if low else 200 - len(places)} | (
        {} if low else {"rejected": len(places)}
    )


@pytest.mark.parametrize("ahead", [T0 + 5_400, "2099-01-01T00:00:00Z"])
@pytest.mark.parametrize("place", [0, 5_000])
def test_one_false_arrival_hides_no_storm_though_its_stamp_confirms_it(tmp_path: Path, place: int, ahead: Any) -> None:
    rows = storm()
    rows.insert(place, request(place, timestamp=ahead, arrival=ahead, service_name="elsewhere", node_id="far"))
    outcome = run(tmp_path / "with", write(tmp_path / "requests.jsonl", lines(rows)))
    assert outcome.totals["used"] == 8_000
    assert outcome.notes == [
        "requests.jsonl: 1 row is rejected, whose arrival is not believed\n"
        f"Next: asynchealth sql @rejected_rows --state {tmp_path / 'with'}"
    ]
    found = contents(tmp_path / "with")["findings"]
    assert found.select("detector", "subject", "level").rows() == [("retry_storm", "gateway->payment", "page")]


def test_a_backlog_that_arrives_days_later_is_no_slip(tmp_path: Path) -> None:
    """Three days of outage; then the rows of its first minute, and those of now. An import of last year's rows."""
    day = 86_400
    backlog = [request(20 * i, arrival=T0 + 3 * day + i / 100) for i in range(100, 160)]
    now = [request(20 * i, timestamp=T0 + 3 * day + i, arrival=T0 + 3 * day + i + 1) for i in range(100)]
    run(tmp_path / "a", write(tmp_path / "requests-a.jsonl", lines([*slipped(n=100), *backlog, *now])))
    run(tmp_path / "b", write(tmp_path / "requests-b.jsonl", lines([r | {"timestamp": 1_700_000_000} for r in now])))
    for state in ("a", "b"):
        assert "rejected" not in accounting(tmp_path / state)


@settings(max_examples=8)
@given(st.integers(2, 199), st.sampled_from([[0], [120], [40, 150]]), st.sampled_from([T0 + 5_400, 9_999_999_999]))
def test_a_recording_with_slips_that_has_grown_is_as_if_read_at_once(cut: int, places: list[int], wrong: int) -> None:
    content = [line + b"\n" for line in lines(slipped(*((i, wrong) for i in places))).splitlines()]
    with somewhere() as tmp:
        for upto in (cut, 200):
            run(tmp / "grown", write(tmp / "requests.jsonl", b"".join(content[:upto])))
        run(tmp / "once", tmp / "requests.jsonl")
        assert accounting(tmp / "once")["rejected"] == len(places)
        assert differing(contents(tmp / "grown"), contents(tmp / "once")) == []


@settings(max_examples=8)
@given(st.booleans(), st.floats(0.1, 0.99), st.sampled_from(["", ".gz", ".zst"]))
def test_a_recording_that_has_grown_is_as_if_read_at_once(arrivals: bool, share: float, packed: str) -> None:
    """Cut anywhere, mostly inside a line. Without arrivals a row's place depends on rows that came later."""
    content = growing(arrivals)
    with somewhere() as tmp:
        name = f"requests.jsonl{packed}"
        run(tmp / "grown", write(tmp / name, content[: int(share * len(content))]))
        run(tmp / "grown", write(tmp / name, content))
        run(tmp / "once", tmp / name)
        assert accounting(tmp / "once")["implausible"] == 1
        assert differing(contents(tmp / "grown"), contents(tmp / "once")) == []


@pytest.mark.parametrize("arrivals", [True, False])
def test_a_longer_copy_beside_a_recording_is_the_same_recording(tmp_path: Path, arrivals: bool) -> None:
    content = growing(arrivals)
    short = write(tmp_path / "requests-a.jsonl", content[: len(content) // 2])
    long = write(tmp_path / "requests-b.jsonl", content)
    run(tmp_path / "both", short, long)
    run(tmp_path / "long", long)
    assert accounting(tmp_path / "long")["repeated"] == 1
    assert differing(contents(tmp_path / "both"), contents(tmp_path / "long"), but=["source"]) == []


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("arrivals", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_shorter_copy_beside_a_recording_counts_nothing(
    tmp_path: Path, arrivals: bool, packed: str, at_once: bool
) -> None:
    """A backup that broke off halfway, mostly inside a line or a packed frame, read after the whole file."""
    content = growing(arrivals)
    whole = write(tmp_path / "requests-a.jsonl", content)
    middle = 3 * len(content) // 5
    half = write(tmp_path / f"requests-b.jsonl{packed}", content[:middle])
    if packed:
        rest = write(tmp_path / f"rest.jsonl{packed}", content[middle:])
        half.write_bytes(half.read_bytes() + rest.read_bytes()[:-40])
    run(tmp_path / "whole", whole)
    if not at_once:
        run(tmp_path / "both", whole)
    outcome = run(tmp_path / "both", whole, half)
    assert accounting(tmp_path / "whole")["rejected"] == 1
    assert f"{half.name}: a shorter copy of {whole.name}, nothing new in it" in outcome.notes
    assert differing(contents(tmp_path / "both"), contents(tmp_path / "whole")) == []


def test_a_shorter_copy_of_a_recording_with_slips_is_one(tmp_path: Path) -> None:
    """The last row of the copy is one in it, where nothing comes after it, and another in the whole."""
    content = lines(slipped((40, T0 + 5_400), (120, T0 + 5_400)))
    run(tmp_path / "state", write(tmp_path / "requests-a.jsonl", content))
    before = contents(tmp_path / "state")
    half = write(tmp_path / "requests-b.jsonl", b"".join(content.splitlines(keepends=True)[:121]))
    outcome = run(tmp_path / "state", half)
    assert outcome.notes == ["requests-b.jsonl: a shorter copy of requests-a.jsonl, nothing new in it"]
    assert differing(contents(tmp_path / "state"), before) == []


@pytest.mark.parametrize("bad", [{"duration_ms": -1}, {"timestamp": "yesterday"}])
def test_a_shorter_copy_that_breaks_off_in_a_record_that_was_rejected_counts_nothing(
    tmp_path: Path, bad: dict[str, object]
) -> None:
    events = storm(400)
    events[99] |= bad
    run(tmp_path / "state", write(tmp_path / "requests-a.jsonl", lines(events)))
    before = contents(tmp_path / "state")
    half = write(tmp_path / "requests-b.jsonl", lines(events[:100])[:-30])
    assert run(tmp_path / "state", half).notes == [
        "requests-b.jsonl: a shorter copy of requests-a.jsonl, nothing new in it"
    ]
    assert differing(contents(tmp_path / "state"), before) == []


def test_a_shorter_recording_that_says_something_else_is_another(tmp_path: Path) -> None:
    """Equal in its first 99 records; the last one differs in one field, or could not be read in one of the two."""
    events = storm(400)
    whole = write(tmp_path / "requests-a.jsonl", lines(events))
    other = write(tmp_path / "requests-b.jsonl", lines([*events[:99], events[99] | {"region": "elsewhere"}]))
    bad = write(tmp_path / "requests-c.jsonl", lines([*events[:99], events[99] | {"duration_ms": -1}]))
    run(tmp_path / "state", whole, other, bad)
    assert accounting(tmp_path / "state") == {"read": 600, "used": 599, "rejected": 1}


def test_a_torn_last_line_is_rejected_once_and_read_when_it_is_whole(tmp_path: Path) -> None:
    content = lines(storm(40))
    file = write(tmp_path / "requests.jsonl", content[:-30])
    for _ in range(2):
        run(tmp_path / "state", file)
        assert accounting(tmp_path / "state") == {"read": 40, "used": 39, "rejected": 1}
    run(tmp_path / "state", write(file, content[:-1]))  # whole, but without its end of line
    assert accounting(tmp_path / "state") == {"read": 40, "used": 40}
    run(tmp_path / "state", write(file, content + lines([request(40)])))
    assert accounting(tmp_path / "state") == {"read": 41, "used": 41}


# ---- arrivals -------------------------------------------------------------------------------------------------------


def test_without_arrivals_every_plausible_row_is_used_and_2099_moves_nothing(tmp_path: Path) -> None:
    plain = [{k: v for k, v in e.items() if k != "arrival"} for e in storm()]
    far = plain[0] | {"timestamp": "2099-01-01T00:00:00Z", "service_name": "elsewhere", "node_id": "far-1"}
    run(tmp_path / "without", write(tmp_path / "requests.jsonl", lines(plain)))
    run(tmp_path / "with", write(tmp_path / "requests-far.jsonl", lines([*plain, far])))
    assert accounting(tmp_path / "with") == {"read": 8_001, "used": 8_000, "implausible": 1}
    found = [
        contents(tmp_path / n)["findings"].filter(pl.col("subject") == "gateway->payment") for n in ("with", "without")
    ]
    assert len(found[0]) == 1
    assert found[0].equals(found[1])
    row = contents(tmp_path / "with")["requests"].filter(pl.col("node_id") == "far-1")
    assert row.select("told", "fate").rows() == [(False, "implausible")]
    assert row["arrival"].item().year == 2026


def test_one_arrival_anywhere_makes_them_told(tmp_path: Path) -> None:
    events = [{k: v for k, v in e.items() if k != "arrival"} for e in storm(100)]
    events[50] |= {"arrival": T0 + 5}
    run(tmp_path / "state", write(tmp_path / "requests.jsonl", lines(events)))
    rows = contents(tmp_path / "state")["requests"]
    assert rows["told"].all()
    assert rows["arrival"].n_unique() == 1


def test_another_column_can_hold_the_arrival_and_none_can(tmp_path: Path) -> None:
    file = write(tmp_path / "heartbeats.jsonl", lines(beats(20)))
    run(tmp_path / "server", file, arrival="server_time")
    rows = contents(tmp_path / "server")["heartbeats"]
    assert (rows["arrival"] == rows["server_time"]).all()
    assert rows["told"].all()
    run(tmp_path / "none", file, arrival="none")
    assert not contents(tmp_path / "none")["heartbeats"]["told"].any()


@pytest.mark.parametrize("modes", [("arrival", "timestamp"), ("none", "arrival"), ("timestamp", "none")])
def test_a_recording_asked_for_with_another_arrival_is_read_again(tmp_path: Path, modes: tuple[str, str]) -> None:
    file = write(tmp_path / "requests.jsonl", lines([*storm(400), {"bad": 1}]))
    before, after = modes
    run(tmp_path / "changed", file, arrival=before)
    outcome = run(tmp_path / "changed", file, arrival=after)
    assert outcome.notes == [f"requests.jsonl: read again with --arrival {after}; before it was {before}"]
    run(tmp_path / "once", file, arrival=after)
    assert accounting(tmp_path / "once") == {"read": 401, "used": 400, "rejected": 1}
    assert differing(contents(tmp_path / "changed"), contents(tmp_path / "once")) == []


def test_another_lateness_is_as_if_it_had_been_asked_for_at_first(tmp_path: Path) -> None:
    a, b = (write(tmp_path / f"requests-{i}.jsonl", lines(mixed(["late", "used", "late"], i))) for i in (0, 50))
    run(tmp_path / "changed", a)
    run(tmp_path / "changed", b, lateness_us=600_000_000)
    run(tmp_path / "asked", a, b, lateness_us=600_000_000)
    assert "late" not in accounting(tmp_path / "asked")
    assert differing(contents(tmp_path / "changed"), contents(tmp_path / "asked")) == []


def test_stretches_of_several_days_without_arrivals_stay_where_they_are(tmp_path: Path) -> None:
    events = [{**request(i), "timestamp": T0 + i + (i // 50) * 2 * DAY_US / 1e6, "arrival": None} for i in range(100)]
    run(tmp_path / "state", write(tmp_path / "requests.jsonl", lines(events)))
    assert accounting(tmp_path / "state") == {"read": 100, "used": 100}


# ---- kill -9 --------------------------------------------------------------------------------------------------------


def exists(pattern: str) -> Callable[[Path], bool]:
    return lambda state: any(state.glob(pattern))


MOMENTS = {
    "the lock is taken": exists("lock"),
    "standard input is spooled": exists("spool/*"),
    "the second part is in the lake": lambda state: len(list((state / "lake").rglob("*.parquet"))) > 1,
    "the new file is begun": exists("asynchealth.duckdb.building"),
    "the new file has a log": exists("asynchealth.duckdb.building.wal"),
    "the horizon is there": exists("horizon"),
}


def killed_when(state: Path, moment: Callable[[Path], bool], command: list[str], content: bytes) -> bool:
    """Whether the command was killed at the moment, before it ended by itself."""
    with (state.parent / "pipe").open("w+b") as pipe:
        pipe.write(content)
        pipe.seek(0)
        child = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and not moment(state):
            time.sleep(0.001)
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
        return child.wait() == -signal.SIGKILL


def after(seconds: float) -> Callable[[Path], bool]:
    end = time.monotonic() + seconds
    return lambda _: time.monotonic() > end


def test_a_kill_at_any_moment_leaves_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    """At six moments seen in the folder, and at random ones until there were twelve kills."""
    start = write(tmp_path / "requests-0.jsonl", lines(storm(4_000)))
    more, piped = write(tmp_path / "requests-1.jsonl", lines(storm()[4_000:])), lines(beats())
    file = write(tmp_path / "heartbeats.jsonl", piped)  # the same from a file, which has another name only
    kept, state = tmp_path / "kept", tmp_path / "state"
    run(kept, start)
    shutil.copytree(kept, state)
    old = contents(kept)
    command = [*COMMAND, "replay", str(more), "-", "--state", str(state)]
    began = time.monotonic()
    assert not killed_when(state, lambda _: False, command, piped)
    lasted = time.monotonic() - began
    new = contents(state)
    assert differing(old, new)
    assert new["findings"].height > old["findings"].height
    dice, kills, met = random.Random(1), 0, {"old": 0, "new": 0}
    moments = list(MOMENTS.values())
    while kills < 12:
        shutil.rmtree(state)
        shutil.copytree(kept, state)
        (state / "lock").unlink()
        moment = moments.pop() if moments else after(dice.uniform(0.3, 1.0) * lasted)
        if not killed_when(state, moment, command, piped):
            lasted *= 0.9  # quicker than before
            continue
        kills += 1
        left = contents(state)
        same = "old" if not differing(left, old) else "new"
        assert same == "old" or not differing(left, new)
        met[same] += 1
        run(state, more, file)
        assert differing(contents(state), new, but=["source"]) == []
    assert met["old"] >= len(MOMENTS)
    nothing_is_left_over(state, start)


def nothing_is_left_over(state: Path, file: Path) -> None:
    """Ten minutes later, when no reader can still have an old part open."""
    (state / "asynchealth.duckdb.building.tmp").mkdir()  # where DuckDB spills
    (state / "asynchealth.duckdb.building.tmp" / "block").write_bytes(b"x")
    orphan = next((state / "lake" / "requests").glob("*.parquet")).with_name("2026-01-26T08-0123456789ab.parquet")
    orphan.write_bytes(b"half of a part")
    for path in (state / "lake").rglob("*.parquet"):
        os.utime(path, (0, 0))
    run(state, file)
    assert sorted(p.name for p in state.iterdir()) == ["asynchealth.duckdb", "lake", "lock"]
    there = {str(p.relative_to(state)) for p in (state / "lake").rglob("*.parquet")}
    assert there == {part.path for part in load(state).parts}
