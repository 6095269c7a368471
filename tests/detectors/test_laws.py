"""What every table and every detector obeys, stated once and run over every case; first each sees something fire."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.resources import files

import polars as pl
import pytest

from detectors import table as table_module
from detectors.detector import catalog
from detectors.engine import reduce
from detectors.events import INSTANT
from detectors.table import Meet
from detectors.windows import WINDOW_US, us_of
from tests.cases import T0, Case, cases
from tests.harness import Log, Result, everything, one_pass, placed, restarted, sliced

FIRING = [pytest.param(d, c, id=f"{d}-{n}") for d, n, c in cases("fires_")]
OFTEN = (0.05, 0.2, 1.0)  # how often windows are closed: hardly ever, and after each slice
SEEDS = int(os.environ.get("ASYNCHEALTH_SEEDS", "1"))  # of chance for each case, 3 in `make evidence`
SEEDED = [
    pytest.param(d, c, (i + k) % len(OFTEN), id=f"{(i + k) % len(OFTEN)}-{d}-{n}")
    for i, (d, n, c) in enumerate(cases("fires_"))
    for k in range(SEEDS)
]  # neighbours begin with different ones, so that a detector's cases see them all
QUIET = [pytest.param(d, c, id=f"{d}-{n}") for d, n, c in cases("quiet_")]
CENTURY = datetime(2099, 1, 1, tzinfo=UTC)
OWN = "zz-2099"
READ_US = us_of(T0 + timedelta(days=365))


def fired(detector: str, case: Case) -> Result:
    """The single pass of a detector and its tables over a case, which must have fired as it says."""
    result = one_pass(case, only=detector)
    assert case.expect
    assert result.fired(detector) == case.expect
    return result


# ---- each detector ----------


def test_every_detector_has_firing_and_quiet_cases() -> None:
    names = set(catalog())
    assert len(names) >= 10
    assert {p.values[0] for p in FIRING} == names
    assert {p.values[0] for p in QUIET} == names


@pytest.mark.parametrize(("detector", "case"), FIRING)
def test_it_fires_and_its_case_is_large_enough_to_prove_something(detector: str, case: Case) -> None:
    fired(detector, case)
    streams = {s.stream for t in catalog()[detector].detector.tables for s in t.sources}
    parts = [p for stream, some in case.streams.items() if stream in streams for p in some]
    assert len(parts) >= 2
    assert min(len(p) for p in parts) > 100
    instants = pl.concat([p["arrival"] for p in parts]).cast(pl.Int64) // WINDOW_US
    assert instants.n_unique() >= 3


@pytest.mark.parametrize(("detector", "case"), QUIET)
def test_it_is_quiet_on_its_near_misses(detector: str, case: Case) -> None:
    log = placed(case)
    tables = catalog()[detector].detector.tables
    assert any(reduce(tables, stream, pl.concat(parts)) for stream, parts in log.items())  # it had something to judge
    result = one_pass(case, log, only=detector)
    assert result.fired(detector) == frozenset()


@pytest.mark.parametrize("name", sorted(catalog()))
def test_it_explains_itself(name: str) -> None:
    entry = catalog()[name]
    assert entry.detector.name == name
    for word in ("Formula", "False alarms", "Misses", "Source"):
        assert f"{word}:" in entry.doc, word
    page = (files("detectors.catalog") / f"{name}.md").read_text()
    assert "1." in page
    assert "asynchealth" in page
    for t in entry.detector.thresholds:
        assert t.unit
        assert t.low <= t.default <= t.high


# ---- the same answer however it is computed ----------


@pytest.mark.parametrize(("detector", "case", "seed"), SEEDED)
def test_slices_batches_order_and_producers_do_not_matter(detector: str, case: Case, seed: int) -> None:
    assert sliced(case, seed, often=OFTEN[seed], only=detector).differs(fired(detector, case)) == []


@pytest.mark.parametrize(("detector", "case", "seed"), SEEDED)
def test_repeats_and_restarts_do_not_matter(detector: str, case: Case, seed: int) -> None:
    """The next seeds are taken until it was killed and something came again."""
    expected = fired(detector, case)
    kills = repeats = 0
    for chance in range(seed, seed + 9, 3):
        result, killed, dropped = restarted(case, chance, only=detector)
        assert result.differs(expected) == []
        kills, repeats = kills + killed, repeats + dropped
        if kills and repeats:
            return
    raise AssertionError("never killed, or nothing came again: the case proves nothing")


DIGEST = """
import hashlib
from tests.cases import cases
from tests.harness import one_pass
h = hashlib.sha256()
for detector, name, case in cases("fires_"):
    result = one_pass(case)
    assert result.fired(detector), name
    for table in sorted(result.tables):
        h.update(table.encode() + result.tables[table].write_json().encode())
    h.update(result.findings.write_json().encode())
print(h.hexdigest())
"""


def test_hash_seeds_and_threads_do_not_matter() -> None:
    digests = set()
    for seed, threads in (("0", "1"), ("77", "2")):
        env = os.environ | {"PYTHONHASHSEED": seed, "POLARS_MAX_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", DIGEST], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    assert len(digests) == 1


@pytest.mark.parametrize(("detector", "case"), FIRING)
def test_inputs_are_left_as_they_were(detector: str, case: Case) -> None:
    log = placed(case)
    before = {s: [p.clone() for p in parts] for s, parts in log.items()}
    assert one_pass(case, log).fired(detector) == case.expect
    assert all(a.equals(b) for s in log for a, b in zip(log[s], before[s], strict=True))


# ---- one row dated 2099 ----------

NAMES = ("service_name", "node_id", "caller", "peer_node", "observer", "entity_type", "entity_id", "subject")
CLEARED = ("request_id", "span_id", "parent_span_id", "trace_id", "idempotency_key", "seq", "event_id", "vector_clock")


def _added(part: pl.DataFrame, *, last: bool, arrival: pl.Expr | None = None) -> pl.DataFrame:
    """The partition with one more row, dated 2099, about subjects of its own, in front or at the end."""
    offsets = part.with_columns(offset=pl.int_range(1, len(part) + 1, dtype=pl.Int64, eager=True))
    row = offsets[-1:] if last else offsets[:1]
    stamps = [c for c, t in part.schema.items() if t == INSTANT and c != "arrival"]
    far = row.with_columns(
        *[pl.lit(OWN).alias(c) for c in NAMES if c in part.columns],
        *[pl.lit(None, dtype=part.schema[c]).alias(c) for c in CLEARED if c in part.columns],
        *[pl.when(pl.col(c).is_not_null()).then(pl.lit(CENTURY).cast(INSTANT)).alias(c) for c in stamps],
        arrival=pl.col("arrival") if arrival is None else arrival,
        offset=pl.lit(len(part) + 1 if last else 0, dtype=pl.Int64),
    )
    return pl.concat([offsets, far] if last else [far, offsets])


def _others(result: Result) -> pl.DataFrame:
    return result.findings.filter(~pl.col("subject").str.contains(OWN, literal=True))


@pytest.mark.parametrize(("detector", "case", "seed"), SEEDED)
@pytest.mark.parametrize("arrivals", [True, False], ids=["arrivals", "none"])
def test_a_row_dated_2099_changes_nothing_else(detector: str, case: Case, seed: int, arrivals: bool) -> None:
    """In front and at the end, in turn from partition to partition; without arrivals the other way round."""
    before = one_pass(case, placed(case, arrivals=arrivals))
    if arrivals:
        assert before.fired(detector) == case.expect
    for s, (stream, parts) in enumerate(case.streams.items()):
        for p, part in enumerate(parts):
            last = (seed + arrivals + s + p) % 2 == 0
            changed = {**case.streams, stream: [*parts[:p], _added(part, last=last), *parts[p + 1 :]]}
            after = one_pass(case, placed(replace(case, streams=changed), arrivals=arrivals))
            assert _others(after).equals(before.findings), (stream, p, last)


ARRIVED = (pl.lit(CENTURY).cast(INSTANT), pl.col("arrival") + timedelta(minutes=90))


@pytest.mark.parametrize(("detector", "case"), FIRING)
def test_a_row_dated_2099_that_says_it_arrived_later_than_it_did_is_none(detector: str, case: Case) -> None:
    """A file is read without it, and its other rows stand as they stood: so all tables and findings do."""
    before = placed(case)
    for arrival in (None, *ARRIVED):
        for last in (False, True):
            added = {s: [_added(p, last=last, arrival=arrival) for p in parts] for s, parts in case.streams.items()}
            read = placed(case if arrival is None else replace(case, streams=added), read_us=READ_US)
            for stream, parts in before.items():
                assert all(a.equals(b) for a, b in zip(read[stream], parts, strict=True)), (stream, str(arrival), last)


# ---- evidence ----------


def _only(log: Log, coords: set[int]) -> Log:
    return {s: [p.filter(pl.col("coord").is_in(list(coords))) for p in parts] for s, parts in log.items()}


@pytest.mark.parametrize(("detector", "case"), FIRING)
def test_existential_evidence_alone_still_fires(detector: str, case: Case) -> None:
    result = fired(detector, case)
    warn = [t for t in catalog()[detector].detector.thresholds if t.of == "value" and t.default == 0]
    for row in result.findings.filter(pl.col("detector") == detector).iter_rows(named=True):
        assert row["proof"], row["subject"]
        if warn and row["count"] <= 4:
            alone = one_pass(case, _only(placed(case), set(row["proof"])), only=detector)
            assert (row["subject"], row["kind"]) in {(s, k) for s, k, _ in alone.fired(detector)}


# ---- the laws can fail ----------


def _broken_somewhere(only: str = "") -> bool:
    """Whether the first law above notices, on any firing case; unbroken it holds on all of them, as was seen there."""
    for detector, _, case in cases("fires_"):
        if only not in ("", detector):
            continue
        result = one_pass(case, only=detector)
        if result.fired(detector) != case.expect or sliced(case, 0, only=detector).differs(result):
            return True
    return False


def test_a_minimum_that_is_only_the_first_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module.Low, "again", lambda self, name: pl.col(name).first())
    assert _broken_somewhere()


def test_a_sum_that_counts_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module.Sum, "again", lambda self, name: pl.col(name).count().cast(pl.Int64))
    assert _broken_somewhere("retry_storm")


def test_a_span_that_is_dropped_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    meets = [s for t in everything()[0] for s in t.sources if isinstance(s, Meet)]
    assert meets
    for source in meets:
        monkeypatch.setitem(source.__dict__, "back_us", 0)
    assert _broken_somewhere("duplicate_key")
