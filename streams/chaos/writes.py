"""A plan enters, the write log in true time leaves: entities whose every write knows the last, and the two that do not.

Half of the entities carry version and base_version, the others a vector clock. The fault: two nodes read the same
version and write over each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from detectors.events import CLOCK
from detectors.windows import SECOND_US
from streams.chaos.plan import Plan
from streams.chaos.topology import NODES, NONE, SERVICES, Ints, moments


@dataclass(frozen=True)
class Entities:
    """Entities of one type, written by the nodes of one service."""

    type: str
    service: str
    ids: tuple[str, ...]
    per_min: float
    vector: bool = False


def _numbered(prefix: str, n: int) -> tuple[str, ...]:
    return tuple(f"{prefix}-{i}" for i in range(1, n + 1))


CART, PROFILE = Entities("order", "order", ("cart",), 3), Entities("user", "user", ("profile",), 2)
WRITTEN = (
    CART,
    PROFILE,
    Entities("order", "order", _numbered("o", 40), 20),
    Entities("user", "user", _numbered("u", 40), 15),
    Entities("balance", "payment", _numbered("account", 30), 25),
    Entities("stock", "inventory", _numbered("sku", 20), 20, vector=True),
    Entities("item", "catalog", _numbered("item", 20), 15, vector=True),
)


def writes(rng: np.random.Generator, plan: Plan) -> pl.DataFrame:
    frames = []
    for of in WRITTEN:
        t = moments(rng, of.per_min * plan.scale, plan.start_us, plan.end_us)
        node, group = plan.pick(rng, of.service, t), np.full(len(t), NONE)
        if plan.faults and of in (CART, PROFILE):
            t, node, group = _with_conflicts(rng, plan, of, t, node)
        entity = rng.integers(0, len(of.ids), len(t))
        order = np.lexsort((t, entity))
        frames.append(_knowing(of, t[order], node[order], entity[order], group[order]))
    frame = pl.concat(frames).sort("start", "entity_type", "entity_id", "node")
    took = rng.integers(1_000, 15_000, len(frame))
    return frame.with_columns(took=pl.Series(took), op=pl.lit("put"))


def _with_conflicts(rng: np.random.Generator, plan: Plan, of: Entities, t: Ints, node: Ints) -> tuple[Ints, Ints, Ints]:
    """Pairs (and a trio, if the number is odd) of writes by two nodes upon one version; calm writes keep away."""
    f = plan.faults
    assert f is not None
    names, total = (f.cart_nodes, f.cart_conflicts) if of is CART else (f.profile_nodes, f.profile_conflicts)
    sizes = np.full(total // 2, 2)
    sizes[0] += total % 2
    span = plan.end_us - plan.start_us
    place = (np.arange(len(sizes)) + rng.uniform(0.2, 0.6, len(sizes))) / len(sizes)
    begin = plan.start_us + (span * (0.03 + 0.92 * place)).astype(np.int64)
    group = np.repeat(np.arange(len(sizes)), sizes)
    rank = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    at = begin[group] + rank * rng.integers(300_000, 900_000, total)
    writers = np.array([NODES.index(n) for n in names])[rank % 2]
    away = np.ones(len(t), dtype=np.bool_)
    for b in begin:
        away &= (t < b - SECOND_US) | (t > b + 10 * SECOND_US)
    calm = np.full(int(away.sum()), NONE)
    return np.concatenate([t[away], at]), np.concatenate([node[away], writers]), np.concatenate([calm, group])


def _knowing(of: Entities, t: Ints, node: Ints, entity: Ints, group: Ints) -> pl.DataFrame:
    """Rows sorted by (entity, time): each write knows all before it, but for those of its own conflict group."""
    n = len(t)
    same = np.concatenate([[False], (group[1:] == group[:-1]) & (group[1:] != NONE)]) if n else np.zeros(0, np.bool_)
    step = np.cumsum(~same)
    start = np.searchsorted(entity, entity, side="left")
    version = step - step[start] + 1
    frame = pl.DataFrame({"node": node, "start": t, "group": group}).with_columns(
        service_name=pl.lit(of.service),
        entity_type=pl.lit(of.type),
        entity_id=pl.Series(of.ids).gather(pl.Series(entity)),
    )
    if of.vector:
        clock = pl.Series(_vector_clocks(of, node, start), dtype=CLOCK)
        none = pl.lit(None, dtype=pl.Int64)
        return frame.with_columns(version=none, base_version=none, vector_clock=clock)
    return frame.with_columns(
        version=pl.Series(version), base_version=pl.Series(version - 1), vector_clock=pl.lit(None, dtype=CLOCK)
    )


def _vector_clocks(of: Entities, node: Ints, start: Ints) -> list[list[dict[str, object]]]:
    """How many writes of this entity each node has made, this one included: what a writer knows."""
    own = [NODES.index(f"{of.service}-{i}") for i in range(1, SERVICES[of.service] + 1)]
    counted = np.vstack([np.zeros((1, len(own)), np.int64), np.cumsum(node[:, None] == np.array(own), axis=0)])
    known = counted[1:] - counted[start]
    names = [NODES[i] for i in own]
    return [[{"key": k, "value": v} for k, v in zip(names, row, strict=True) if v] for row in known.tolist()]
