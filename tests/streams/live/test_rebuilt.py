"""A state that was landed from a real Kafka is judged again: not while its lander runs, and that goes on afterwards."""

from __future__ import annotations

import uuid
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from detectors.detector import Settings
from detectors.events import encode_json
from streams.problems import Exit
from streams.replay import rebuild
from tests.cases import Case
from tests.streams.landing.pieces import LIVE_ONLY, published, unlike
from tests.streams.live.chain import until
from tests.streams.live.test_ourselves import calls
from tests.streams.live.test_worker import Play, landing, workers
from tests.streams.tape import asked, asynchealth, contents

pytestmark = pytest.mark.xdist_group("kafka-2")
HOURS = 3  # between the two parts of the tape: rows of the first are compacted then, its tables go to the lake


def later(case: Case, hours: int) -> Case:
    shifted = pl.col("timestamp", "arrival") + timedelta(hours=hours)
    return Case({stream: [p.with_columns(shifted) for p in parts] for stream, parts in case.streams.items()})


def both(a: Case, b: Case) -> Case:
    number = pl.int_range(pl.len(), dtype=pl.Int64)
    streams = {}
    for stream, parts in a.streams.items():
        whole = zip(parts, b.streams[stream], strict=True)
        streams[stream] = [pl.concat(two).with_columns(offset=number) for two in whole]
    return Case(streams)


def rows(case: Case) -> int:
    return sum(len(p) for parts in case.streams.values() for p in parts)


def hours_of(folder: Path) -> dict[str, list[int]]:
    """The hours of the parts of each stream and table."""
    found = asked(folder, "SELECT stream, first_arrival // 3_600_000_000 FROM lake_parts ORDER BY ALL")
    return {name: [hour for n, hour in found if n == name] for name, _ in found}


def test_it_is_refused_while_a_lander_runs_and_changes_nothing_but_by_whom_it_was_judged(
    kafka: str, tmp_path: Path
) -> None:
    first, second = calls(), later(calls(), HOURS)
    whole = both(first, second)
    play, folder = Play(kafka, whole, f"r{uuid.uuid4().hex[:8]}.", tmp_path), tmp_path / "state"
    play.produce(first)
    with workers(play, 1):
        play.wait(until(first))
        with landing(play, rows(first)) as running:
            refused = asynchealth("rebuild", "--state", folder)
            assert refused.returncode == Exit.STATE
            assert f"locked by another asynchealth (process {running.pid})" in refused.stderr.decode()
            assert f"Next: kill -INT {running.pid}, then asynchealth rebuild" in refused.stderr.decode()
        before = contents(folder)
        assert len(before["findings"])
        rebuild(folder, Settings())
        assert unlike(contents(folder), before) == ["landed"]
        play.send(second)
        play.wait()
        with landing(play, rows(whole)):
            pass
    before, of = contents(folder), hours_of(folder)
    hours = sorted(set(of["requests"]))
    assert len(hours) == 2 and of["requests"].count(hours[0]) == 1, "the first hour became one part"
    assert hours[0] in of["calls"], "and its tables went to the lake"
    rebuild(folder, Settings())
    after = contents(folder)
    assert set(unlike(after, before)) <= {"landed"}
    for p, part in enumerate(whole.streams["requests"]):
        lines = encode_json("requests", part.drop("offset"))
        (tmp_path / f"requests-{p}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    done = asynchealth("replay", *sorted(tmp_path.glob("requests-*.jsonl")), "--state", tmp_path / "replayed")
    assert done.returncode == 0, done.stderr
    assert unlike(published(folder), contents(tmp_path / "replayed")) == []
    with landing(play, rows(whole)):
        pass
    assert set(unlike(contents(folder), after)) <= LIVE_ONLY
