"""Stages enter, the numbers that a worker shows of itself leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from faust.types import TP

from detectors.detector import Detector
from detectors.finding import LEVELS, named
from detectors.windows import SECOND_US, SLICE_US, WINDOW_US
from streams.live.judge import Judge
from streams.live.match import Matcher
from streams.live.reduce import Reducer
from streams.watch.metrics import Meter

Stage = Reducer | Matcher | Judge


def show(meter: Meter, stages: Mapping[TP, Stage], ends: Mapping[TP, int], detectors: Sequence[Detector]) -> None:
    """Where the partitions of this worker stand. ends: the end of each one's log."""
    _show_logs(meter, stages, ends)
    _show_steps(meter, [s for s in stages.values() if not isinstance(s, Reducer)])
    _show_findings(meter, [s for s in stages.values() if isinstance(s, Judge)], detectors)
    meter.reach(bool(stages))


def step_of(stage: Matcher | Judge) -> str:
    """As people call it."""
    return "judge" if isinstance(stage, Judge) else "merge"


def _show_logs(meter: Meter, stages: Mapping[TP, Stage], ends: Mapping[TP, int]) -> None:
    logs = {tp: s for tp, s in stages.items() if isinstance(s, Reducer)}
    blind = {(topic,): sum(not s.next for tp, s in logs.items() if tp.topic == topic) for topic, _ in logs}
    until = {_place(tp): s.next * SLICE_US / SECOND_US for tp, s in logs.items() if s.next}
    behind = {_place(tp): max(0, ends[tp] - s.position) for tp, s in stages.items()}
    meter.set("asynchealth_blind_partitions", blind)
    meter.set("asynchealth_read_until_timestamp_seconds", until)
    meter.set("asynchealth_lag_messages", behind)
    meter.set("asynchealth_assigned_partitions", {(): len(stages)})


def _place(tp: TP) -> tuple[str, str]:
    return tp.topic, str(tp.partition)


def _show_steps(meter: Meter, stages: Sequence[Matcher | Judge]) -> None:
    steps = {step_of(s): [other for other in stages if step_of(other) == step_of(s)] for s in stages}
    first = {n: min(s.next for s in some) for n, some in steps.items()}
    final = {(n,): window * WINDOW_US / SECOND_US for n, window in first.items() if window}
    meter.set("asynchealth_final_until_timestamp_seconds", final)
    meter.set("asynchealth_copies_total", {(n,): sum(s.reader.copies for s in some) for n, some in steps.items()})
    unequal = {(n,): sum(s.reader.unequal for s in some) for n, some in steps.items()}
    meter.set("asynchealth_copies_unequal_total", unequal)


def _show_findings(meter: Meter, judges: Sequence[Judge], detectors: Sequence[Detector]) -> None:
    """By the worker that judges; the others know of none."""
    open_ = {(d.name, named(d, n)): 0 for d in detectors for n in range(1, len(LEVELS))} if judges else {}
    for d, episodes in ((d, j.state.episodes[d.name]) for j in judges for d in detectors if d.name in j.state.episodes):
        for episode in episodes.open.values():
            open_[d.name, named(d, episode.level)] += 1
    meter.set("asynchealth_open_findings", open_)
