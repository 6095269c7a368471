"""Lines in true time enter, the tape's partitions leave: stamped by their node's clock, shipped, cut at the hour's end.

A node with a wrong clock stamps every line it writes by it. Arrival is true time: the end of what the line tells of
plus what shipping took.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from detectors.events import INSTANT, SCHEMA
from detectors.windows import DAY_US, MINUTE_US, SECOND_US
from streams.chaos.plan import Plan
from streams.chaos.topology import COLLECTOR, NODES, NONE, Ints

PARTITIONS = {"requests": 2, "heartbeats": 1, "write_log": 1, "signals": 1}
LATE_PER_MIN = 34 / 60
LATE_US = (35 * SECOND_US, 4 * MINUTE_US)
USUAL_US, LONGEST_US = 200_000, 8 * SECOND_US  # of one line; each waits for its node's lines before it
YEARS_73_US = 26_663 * DAY_US  # from a January of 2026 to the same day of 2099

Frames = dict[str, pl.DataFrame]


def stamped(frames: Frames, plan: Plan) -> Frames:
    """True times to what the lines say. `end` stays: when the line was truly written; `kept`: never shipped late."""

    def shown(node: Ints, t: Ints) -> pl.Series:
        return pl.Series(t + plan.clocks.offset(node, t), dtype=pl.Int64).cast(INSTANT)

    requests, beats, writes, signals = (frames[s] for s in SCHEMA)
    node, start = requests["node"].to_numpy(), requests["start"].to_numpy()
    sender, sent = beats["node"].to_numpy(), beats["start"].to_numpy()
    received = sent + beats["took"].to_numpy()
    writer, begun = writes["node"].to_numpy(), writes["start"].to_numpy()
    finished = shown(writer, begun) + pl.Series(writes["took"]).cast(pl.Duration("us"))
    return {
        "requests": requests.with_columns(
            timestamp=shown(node, start),
            duration_ms=pl.Series(requests["took"].to_numpy() / 1_000),
            end=pl.col("start") + pl.col("took"),
            kept=pl.col("doubled"),
        ),
        "heartbeats": beats.with_columns(
            client_time=shown(sender, sent),
            server_time=shown(np.full(len(beats), COLLECTOR), received),
            end=pl.Series(received),
            kept=pl.col("node").is_in([r.node for r in plan.restarts]),  # no beat comes after the goodbye
        ),
        "write_log": writes.with_columns(
            timestamp=shown(writer, begun),
            finished=finished,
            end=pl.col("start") + pl.col("took"),
            kept=pl.col("group") != NONE,
        ),
        "signals": signals.with_columns(
            timestamp=pl.col("start").cast(INSTANT), end="start", kept=pl.lit(True), node=pl.lit(COLLECTOR)
        ),
    }


def misdated(frames: Frames, plan: Plan) -> Frames:
    """The fault: within a minute some lines of one node are dated 73 years ahead."""
    if plan.faults is None:
        return frames
    f, node = plan.faults, NODES.index(plan.faults.dated_node)
    begin = plan.start_us + f.dated_at_us
    requests = frames["requests"].with_row_index("row")
    of_node = requests.filter(pl.col("node") == node, pl.col("end") >= begin, pl.col("side") == "server")
    chosen = of_node.sort("end", "row")["row"].head(2 * f.dated_rows).gather_every(2)
    hit = pl.col("row").is_in(chosen.implode())
    ahead = pl.col("timestamp") + pl.duration(microseconds=YEARS_73_US)
    dated = requests.with_columns(timestamp=pl.when(hit).then(ahead).otherwise("timestamp"), kept=pl.col("kept") | hit)
    return frames | {"requests": dated.drop("row")}


def shipped(rng: np.random.Generator, frames: Frames, plan: Plan) -> dict[str, list[pl.DataFrame]]:
    """Partitions in the order of arrival, with what arrived within the hour."""
    delay = {s: _usual(rng, f) for s, f in frames.items()}
    _make_late(rng, frames, delay, plan)
    tape: dict[str, list[pl.DataFrame]] = {}
    for stream, frame in frames.items():
        inside = pl.col("arrival").is_between(plan.start_us, plan.end_us, closed="left")
        arrival = (pl.col("end") + pl.Series(delay[stream])) // 1_000 * 1_000  # brokers stamp milliseconds
        arrived = frame.with_columns(arrival=arrival).filter(inside)
        arrived = arrived.with_columns(
            pl.col("arrival").cast(INSTANT),
            partition=pl.col("node") % PARTITIONS[stream],
            **({"node_id": pl.Series([*NODES, ""]).gather(arrived["node"])} if stream != "signals" else {}),
        ).sort("arrival", maintain_order=True)
        columns = [n for n in SCHEMA[stream] if n in arrived.columns]
        hidden = [n for n in ("doubled", "group", "start") if n in arrived.columns]
        parts = arrived.partition_by("partition", maintain_order=True, as_dict=True)
        tape[stream] = [parts[p,].select(*columns, *hidden) for p in range(PARTITIONS[stream]) if (p,) in parts]
    return tape


def _usual(rng: np.random.Generator, frame: pl.DataFrame) -> Ints:
    """A node ships its lines in the order in which they were written."""
    own = np.minimum(20_000 + rng.exponential(USUAL_US, len(frame)), LONGEST_US).astype(np.int64)
    alone = frame.select("node", "end", ready=pl.col("end") + pl.Series(own))
    in_turn = pl.col("ready").cum_max().over("node", order_by="end")
    return alone.select(in_turn - pl.col("end")).to_series().to_numpy().copy()


def _make_late(rng: np.random.Generator, frames: Frames, delay: dict[str, Ints], plan: Plan) -> None:
    """A shipper that stalled: a few rows of any stream come after half a minute or more."""
    wanted = round(LATE_PER_MIN * (plan.end_us - plan.start_us) / MINUTE_US * plan.scale)
    total = sum(map(len, frames.values()))
    for stream, frame in frames.items():
        open_ = frame.select((pl.col("end") + LATE_US[1] < plan.end_us) & ~pl.col("kept")).to_series()
        may = np.flatnonzero(open_.to_numpy())
        n = min(round(wanted * len(frame) / total), len(may))
        delay[stream][rng.choice(may, n, replace=False)] = rng.integers(*LATE_US, n)
