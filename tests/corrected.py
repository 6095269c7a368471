"""Simulated hours enter; whether the truth lies inside the error bars of every corrected time leaves.

    python -m tests.corrected [--seed N]

Exits 1 if it does not, for any event of a node whose clock never stepped. The truth is the true time as the reference's
clock shows it: the median of the clocks that are linked both ways, or the collector's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
from polars import col

from detectors.clocks import MAJORITY
from detectors.corrected import Reference
from streams.chaos.fleet import Tape, make_hour, write_tape
from streams.chaos.plan import Plan
from streams.chaos.topology import COLLECTOR, NODES, Clocks
from streams.report.corrected import reference_of, with_bars
from tests.truth import replayed

SEEDS = range(1, 4)
STAMPS = {"requests": "timestamp", "heartbeats": "client_time", "write_log": "timestamp"}
NAMES = [*NODES, "collector"]


@dataclass(frozen=True)
class Judged:
    """Events of one hour with their bars and the truth; stepped: of nodes whose clock changed faster than max_drift."""

    steady: pl.DataFrame
    stepped: pl.DataFrame
    impossible: int  # stamps that can't be true, known as such


def events_of(tape: Tape) -> pl.DataFrame:
    """Every stamp of the tape: who made it, what it says, when it arrived, and when it truly was."""
    parts = [
        part.select(
            pl.lit("").alias("environment"),
            pl.lit("").alias("tenant"),
            node="node_id",
            at_us=col(stamp).cast(pl.Int64),
            arrived_us=col("arrival").cast(pl.Int64),
            true_us="start",
        )
        for stream, stamp in STAMPS.items()
        for part in tape.marked[stream]
    ]
    return pl.concat(parts)


def truth(events: pl.DataFrame, clocks: Clocks, names: pl.Series, of: Reference) -> pl.Series:
    """What the reference's clock showed."""
    t = events["true_us"].to_numpy()
    members = [NAMES.index(names[int(i)]) for i in of.majority]
    shown = np.sort([clocks.offset(np.full(len(t), m), t) for m in members], axis=0)[(len(members) - 1) // 2]
    alone = clocks.offset(np.full(len(t), COLLECTOR), t)
    return pl.Series(t + np.where(events["reference"] == MAJORITY, shown, alone))


def judge(tape: Tape, con: duckdb.DuckDBPyConnection, events: pl.DataFrame) -> Judged:
    events = with_bars(con, events)
    plan = tape.plan
    names, of = reference_of(con, ("", ""), plan.start_us, plan.end_us - 1)
    said = events.with_columns(shown_us=truth(events, plan.clocks, names, of))
    impossible = (col("at_us") - col("true_us")).abs() > 3_600_000_000
    rows = said.filter(~impossible).with_columns(
        inside=(col("earliest_us") <= col("shown_us")).fill_null(True)
        & (col("latest_us") >= col("shown_us")).fill_null(True)
    )
    stepped = col("node").is_in([n for n, at in zip(NODES, plan.clocks.step_at_us, strict=False) if _within(at, plan)])
    wrong = said.filter(impossible)
    assert wrong["reference"].null_count() == len(wrong)
    return Judged(rows.filter(~stepped), rows.filter(stepped), len(wrong))


def _within(step_us: float, plan: Plan) -> bool:
    return plan.start_us < step_us < plan.end_us


def told(rows: pl.DataFrame) -> str:
    """How many are inside, and how wide bars are."""
    early, late, inside = rows["earliest_us"], rows["latest_us"], int(rows["inside"].sum())
    closed = (late - early).drop_nulls()
    width = f"median width {np.median(closed) / 1000:.1f} ms" if len(closed) else "no bar has two ends"
    no_first, no_last = early.null_count() / len(rows), late.null_count() / len(rows)
    return (
        f"{len(rows):>7,} events, inside: {'all' if inside == len(rows) else f'{inside:,}'}; "
        f"without earliest moment {no_first:.1%}, without latest {no_last:.1%}, {width}"
    )


def grade_hour(seed: int) -> bool:
    tape = make_hour(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tape(tape, folder / "tape")
        replayed(folder / "tape", folder / "state")
        with duckdb.connect(str(folder / "state" / "asynchealth.duckdb"), read_only=True) as con:
            con.execute("SET TimeZone='UTC'")
            found = judge(tape, con, events_of(tape))
    print(f"seed {seed}: {len(found.steady) + len(found.stepped) + found.impossible:,} events")
    print(f"  of clocks within max_drift    {told(found.steady)}")
    for (against,), rows in found.steady.partition_by("reference", as_dict=True).items():
        print(f"    against the {against or 'clock of nobody':<18}{told(rows)}")
    if len(found.stepped):
        print(f"  of clocks that stepped        {told(found.stepped)}")
    print(f"  {found.impossible} stamps that can't be true, known as such")
    return bool(found.steady["inside"].all())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, help="only this seed")
    seed = parser.parse_args().seed
    fine = [grade_hour(s) for s in ([seed] if seed is not None else SEEDS)]
    print(f"corrected: the truth inside every bar in {sum(fine)} hours of {len(fine)}")
    return int(not all(fine))


if __name__ == "__main__":
    sys.exit(main())
