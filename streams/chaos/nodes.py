"""A plan enters, what nodes and platform say about themselves leaves: heartbeats and signals, in true time."""

from __future__ import annotations

import numpy as np
import polars as pl

from detectors.windows import MINUTE_US, SECOND_US
from streams.chaos.plan import Plan
from streams.chaos.topology import FRONT, NODES, Ints
from streams.chaos.traffic import network

BEAT_US = 5 * SECOND_US
JITTER_US = 50_000


def heartbeats(rng: np.random.Generator, plan: Plan) -> pl.DataFrame:
    """One beat of every node each 5 s; a node that is restarted says goodbye and is silent until it is back."""
    beats = np.arange(plan.start_us, plan.end_us, BEAT_US)
    node = np.repeat(np.arange(len(NODES)), len(beats))
    phase = rng.integers(0, BEAT_US - JITTER_US, len(NODES))
    sent = np.tile(beats, len(NODES)) + phase[node] + rng.integers(0, JITTER_US, len(node))
    up = np.ones(len(node), dtype=np.bool_)
    for r in plan.restarts:
        up &= (node != r.node) | (sent < r.leaves_us) | (sent >= r.back_us)
    goodbyes = np.array([r.node for r in plan.restarts]), np.array([r.leaves_us for r in plan.restarts])
    node, sent = np.concatenate([node[up], goodbyes[0]]), np.concatenate([sent[up], goodbyes[1]])
    leaving = np.arange(len(node)) >= up.sum()
    frame = pl.DataFrame({"node": node, "start": sent, "took": network(rng, len(node)), "leaving": leaving})
    return frame.select("node", "start", "took", role=pl.when("leaving").then(pl.lit("leaving")))


def signals(rng: np.random.Generator, plan: Plan) -> pl.DataFrame:
    """The deploy with its restarts, and a gauge of queued calls per front service and minute."""
    rows: list[tuple[int, str, str, str, float | None, str | None]] = [
        (plan.deploy_us, plan.deployed, "change", "deploy", None, "2.14.1 -> 2.15.0, rolling restart")
    ]
    for r in plan.restarts:
        rows.append((r.leaves_us, NODES[r.node], "change", "restart", None, f"for the deploy of {plan.deployed}"))
        rows.append((r.back_us, NODES[r.node], "change", "started", None, "2.15.0"))
    minutes: Ints = np.arange(plan.start_us + MINUTE_US // 2, plan.end_us, MINUTE_US)
    for edge in FRONT:
        stormy = plan.storm(minutes) * (edge.service == "payment")
        queued = zip(minutes.tolist(), rng.poisson(3 + 400 * stormy).tolist(), strict=True)
        rows += [(t, edge.service, "gauge", "queued", float(q), None) for t, q in queued]
    shape = {"start": pl.Int64, "subject": pl.String, "kind": pl.String, "name": pl.String}
    return pl.DataFrame(rows, schema=shape | {"value": pl.Float64, "text": pl.String}, orient="row")
