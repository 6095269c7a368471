"""Slices that are lost on the way: what is found without them was there, and nothing ends because of the hole."""

from __future__ import annotations

import random

import polars as pl
import pytest

from detectors.windows import SECOND_US, SLICE_US
from streams.laws.case import T0
from streams.live.judge import Judge
from tests.cases import Case, cases
from tests.harness import Result, one_pass
from tests.streams.live.chain import Chain, until

SHORTEST: dict[str, Case] = {}
for name, _, some in sorted(cases("fires_"), key=lambda c: -sum(len(p) for ps in c[2].streams.values() for p in ps)):
    SHORTEST[name] = some
T0_US = int(T0.timestamp()) * SECOND_US
WHO = ["detector", "kind", "subject"]


def holes(case: Case, dice: random.Random) -> dict[tuple[str, int], list[int]]:
    """Of one partition of each stream some slices in a row, anywhere."""
    found = {}
    for stream, parts in case.streams.items():
        p = dice.randrange(len(parts))
        numbers = (parts[p]["arrival"].cast(pl.Int64) // SLICE_US).unique().sort().to_list()
        at, n = dice.randrange(len(numbers) // 3, len(numbers)), dice.choice([1, 5, 20])
        found[stream, p] = numbers[at : at + n]
    return found


def appeared(lossy: Result, whole: Result) -> list[tuple[str, ...]]:
    ours = pl.col("detector") == "pipeline"
    return lossy.findings.filter(~ours).join(whole.findings, on=WHO, how="anti").select(WHO).rows()


def ended_early(lossy: Result, whole: Result) -> list[tuple[str, ...]]:
    """Ended, though it goes on or ended later where nothing is lost; closed as lost is another thing."""
    both = lossy.findings.join(whole.findings, on=["finding_id"], suffix="_whole").filter(~pl.col("lost"))
    later = pl.col("resolved_whole").is_null() | (pl.col("resolved") < pl.col("resolved_whole"))
    return both.filter(pl.col("resolved").is_not_null() & later).select(WHO).rows()


def lossy(detector: str, case: Case, seed: int, kills: float) -> tuple[Result, dict[tuple[str, int], list[int]]]:
    dice = random.Random(seed)
    parked = holes(case, dice)
    chain = Chain(case, f"{detector}+pipeline", dice, queues=2, steps=(100, 500), parked=parked)
    return chain.run(kills, until(case)), parked


@pytest.mark.parametrize("detector", sorted(SHORTEST.keys() - {"pipeline"}))
def test_nothing_appears_and_nothing_ends_because_of_a_hole(detector: str) -> None:
    case = SHORTEST[detector]
    whole = one_pass(case, only=detector)
    assert whole.fired(detector) == case.expect
    found, parked = lossy(detector, case, seed=1, kills=0.1)
    assert (appeared(found, whole), ended_early(found, whole)) == ([], [])
    said = found.findings.filter(detector="pipeline", kind="parked", level="page")
    assert sorted(said["subject"].unique()) == sorted(f"{s}/{p}" for s, p in parked)


def by_node(case: Case, stream: str) -> Case:
    """All rows of a node in one partition, so that a hole takes all that it said."""
    whole = pl.concat(case.streams[stream]).sort("arrival", maintain_order=True)
    first = pl.col("node_id").rank("dense") % 2 == 0
    return Case({stream: [whole.filter(first), whole.filter(~first)]}, case.expect)


HOLES = {  # seconds; in the first nodes beat, in the second an edge is at its worst
    ("heartbeat_loss", "heartbeats"): (200, 245),
    ("retry_storm", "requests"): (243, 399),
}


@pytest.mark.parametrize("heeded", [True, False])
@pytest.mark.parametrize(("detector", "stream"), HOLES)
def test_a_hole_is_neither_silence_nor_quiet_but_would_be_if_nobody_said_lost(
    detector: str, stream: str, heeded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = by_node(SHORTEST[detector], stream)
    whole = one_pass(case, only=detector)
    assert whole.fired(detector) == case.expect
    numbers = range(*((T0_US + s * SECOND_US) // SLICE_US for s in HOLES[detector, stream]))
    parked = {(stream, p): numbers for p in range(2) if detector != "heartbeat_loss" or p == 0}
    if not heeded:
        monkeypatch.setattr(Judge, "_holes", lambda self: [])
    chain = Chain(case, f"{detector}+pipeline", random.Random(1), queues=1, steps=(200,), parked=parked)
    found = chain.run(0, until(case))
    assert bool(appeared(found, whole) + ended_early(found, whole)) != heeded
