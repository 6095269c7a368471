"""python -m tests.equality [--pace 3] [--faults 32]: is the live system's answer replay's, whatever happens to it?

A labelled hour of the fleet is replayed from files; then played through a real Kafka to one worker, to three, and to
three while workers, lander and broker are killed, stopped and restarted. Each state must equal replay's, row for row,
and its findings the labels.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import polars.selectors as cs

from streams.chaos.fleet import make_hour, write_tape
from streams.live.play import last_us, read_tape
from tests.equality.played import Outcome, Run, first_us, played
from tests.kafka import Broker
from tests.streams.tape import contents, differing
from tests.truth import grade, replayed, told

SHOWN = 5
AS_FILES = ["source"]  # a column that names files there and topics here


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=int, default=40, help="of the fleet's hour")
    parser.add_argument("--scale", type=float, default=1.6, help="times as many events")
    parser.add_argument("--pace", type=float, default=3.0, help="of the run with faults, times as fast as recorded")
    parser.add_argument("--faults", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1, help="of the faults")
    parser.add_argument("--only-faults", action="store_true", help="without the runs that nothing happens to")
    wanted = parser.parse_args()
    calm = [Run("one worker", 1), Run("three workers", 3)]
    struck = Run("three workers and faults", 3, wanted.pace, wanted.faults, wanted.seed)
    runs = [struck] if wanted.only_faults else [*calm, struck]
    with tempfile.TemporaryDirectory(prefix="asynchealth-equality-") as made:
        return _report(Path(made), wanted.minutes, wanted.scale, runs)


def _report(folder: Path, minutes: int, scale: float, runs: Sequence[Run]) -> int:
    tape = make_hour(1, minutes=minutes, scale=scale)
    write_tape(tape, folder / "tape")
    said = replayed(folder / "tape", folder / "replayed")
    expected = contents(folder / "replayed")
    logs = read_tape([str(folder / "tape")], folder / "none")
    faults, events = len(tape.labels["faults"]), sum(len(log.values) for log in logs)
    span_min = (last_us(logs) - first_us(logs)) / 60e6
    print(f"{events:,} events in {span_min:.0f} minutes of arrivals, {faults} labelled faults.\n", flush=True)
    wrong = [f"replay: {miss}" for miss in grade(*said, tape.labels).misses]
    broker = Broker(folder / "kafka")
    broker.start()
    try:
        for run in runs:
            outcome = played(run, logs, broker, folder / run.name)
            landed = {n: f for n, f in contents(outcome.state).items() if n in expected}
            differ = differing(landed, expected, but=AS_FILES)
            wrong += [
                f"{run.name}: {line}" for name in differ for line in _apart(name, landed.get(name), expected[name])
            ]
            graded = grade(*told(outcome.state), tape.labels)
            wrong += [f"{run.name}: {miss}" for miss in graded.misses]
            wrong += _nothing_happened(run, outcome)
            equal = f"{len(expected) - len(differ)} of {len(expected)} tables and views equal replay's row for row"
            labels = f"{graded.found} of {graded.faults} labelled faults found"
            print("\n".join([f"## {run.name}", f"{equal}; {labels}", *_told(outcome), ""]), flush=True)
    finally:
        broker.kill()
    print("\n".join(wrong) or "All equal.")
    return int(bool(wrong))


def _apart(name: str, ours: pl.DataFrame | None, theirs: pl.DataFrame) -> Iterator[str]:
    """Some of the rows that only one side has."""
    if ours is None:
        yield f"table {name} is not there"
        return
    flat = cs.by_dtype(pl.List(pl.Int64)).cast(pl.List(pl.String)).list.join(" ")
    structs = [n for n, kind in theirs.schema.items() if isinstance(kind, pl.List) and kind.inner == pl.Struct]
    texts = pl.col(structs).list.eval(pl.element().struct.json_encode()).list.join(" ")
    mine, yours = (f.drop(AS_FILES, strict=False).with_columns(flat, texts) for f in (ours, theirs))
    for side, rows, others in (("live", mine, yours), ("replay", yours, mine)):
        only = rows.join(others, on=rows.columns, how="anti", nulls_equal=True)
        yield f"table {name}: {len(rows)} rows by {side}, {len(only)} of them by it alone"
        yield from (f"    {row}" for row in only.head(SHOWN).to_dicts())


def _nothing_happened(run: Run, outcome: Outcome) -> Iterator[str]:
    """A run with faults that did no harm shows nothing."""
    if run.faults and not outcome.copies:
        yield f"{run.name}: nothing came twice"
    if run.faults and not outcome.ended["between published and committed"]:
        yield f"{run.name}: no worker died between published and committed"


def _told(outcome: Outcome) -> Iterator[str]:
    yield f"{outcome.wall_s:.0f} s; messages that came again and were dropped: {outcome.copies}"
    if outcome.struck:
        yield f"{outcome.struck.total()} faults: {_counts(outcome.struck)}"
        yield f"processes that ended: {_counts(outcome.ended)}"


def _counts(counted: Counter[str]) -> str:
    return ", ".join(f"{n} × {what}" for what, n in sorted(counted.items()))


if __name__ == "__main__":
    sys.exit(main())
