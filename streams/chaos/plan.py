"""A seed enters, the hour's plan leaves: which faults strike whom, when and how hard, and which service is deployed.

Seed DEMO_SEED has the hour that the screens show; any other seed moves every fault to other nodes, times and sizes,
each above its threshold by a clear margin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detectors.windows import MINUTE_US, SECOND_US
from streams.chaos.topology import (
    NODES,
    SERVICES,
    Bools,
    Clocks,
    Floats,
    Ints,
    natural_clocks,
    nodes_of,
)

DEMO_SEED = 1
FAULTS_NEED_MIN = 40  # minutes: the last fault of a drawn plan begins after half an hour

RESTART_EVERY_US = 75 * SECOND_US
RESTART_TAKES_US = 60 * SECOND_US
DRAIN_US = 3 * SECOND_US
COLD_US = 2 * MINUTE_US  # how long a restarted service's cache stays cold


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Times are µs after the start of the hour; nodes are names."""

    step_node: str
    step_at_us: int
    step_us: int
    ahead_node: str
    ahead_us: int
    dated_node: str
    dated_at_us: int
    dated_rows: int
    storm_at_us: int
    storm_us: int
    slow: float  # at the storm's height: share of calls that the server answers after the client gave up
    dropped: float  # and of calls that it never sees
    doubled: int  # keys
    cart_nodes: tuple[str, str]
    cart_conflicts: int  # writes
    profile_nodes: tuple[str, str]
    profile_conflicts: int
    rejected: int  # records


DEMO = Faults(
    step_node="payment-3",
    step_at_us=15 * MINUTE_US,
    step_us=847_450,  # a fact shows it less the shortest delay: "847 ms or more"
    ahead_node="search-2",
    ahead_us=127_450,
    dated_node="search-4",
    dated_at_us=31 * MINUTE_US,
    dated_rows=12,
    storm_at_us=18 * MINUTE_US,
    storm_us=6 * MINUTE_US,
    slow=0.2,
    dropped=0.29,
    doubled=23,
    cart_nodes=("order-2", "order-5"),
    cart_conflicts=17,
    profile_nodes=("user-1", "user-4"),
    profile_conflicts=3,
    rejected=12,
)


@dataclass(frozen=True)
class Restart:
    """A node says goodbye, is gone, and is back."""

    node: int
    leaves_us: int
    back_us: int


@dataclass(frozen=True)
class Plan:
    """Absolute times in true µs. faults is None in a calm hour."""

    start_us: int
    end_us: int
    scale: float
    faults: Faults | None
    deployed: str
    deploy_us: int
    restarts: tuple[Restart, ...]
    clocks: Clocks

    def storm(self, t_us: Ints) -> Floats:
        """0 in peace, 1 at the height of the storm."""
        if self.faults is None:
            return np.zeros(len(t_us))
        course = (t_us - self.start_us - self.faults.storm_at_us) / self.faults.storm_us
        height = np.interp(course, [0.0, 0.33, 0.45, 1.0], [0.3, 1.0, 1.0, 0.2])
        return np.where((course >= 0) & (course < 1), height, 0.0)

    def cold(self, service: str, t_us: Ints) -> Bools:
        """While a deploy of the service is under way and shortly after."""
        if service != self.deployed:
            return np.zeros(len(t_us), dtype=np.bool_)
        return np.asarray((t_us >= self.deploy_us) & (t_us < self.restarts[-1].back_us + COLD_US))

    def pick(self, rng: np.random.Generator, service: str, t_us: Ints) -> Ints:
        """A node of the service that is up."""
        own = nodes_of(service)
        node = own[rng.integers(0, len(own), len(t_us))]
        if service == self.deployed:
            for r in self.restarts:
                gone = (node == r.node) & (t_us >= r.leaves_us - DRAIN_US) & (t_us < r.back_us)
                node[gone] = own[(np.searchsorted(own, r.node) + 1) % len(own)]
        return node


def make_plan(rng: np.random.Generator, seed: int, *, calm: bool, start_us: int, end_us: int, scale: float) -> Plan:
    minutes = (end_us - start_us) / MINUTE_US
    if not calm and minutes < FAULTS_NEED_MIN:
        raise ValueError(f"the faults need {FAULTS_NEED_MIN} minutes or more; a calm stretch may be shorter")
    faults = None if calm else DEMO if seed == DEMO_SEED else _draw(rng)
    clocks = natural_clocks(rng)
    if faults:
        _set_wrong(clocks, faults, start_us)
    if calm:
        deployed = str(rng.choice(["payment", "order", "search"]))
        deploy_us = start_us + int(rng.uniform(0.15, 0.7) * (end_us - start_us))
    else:  # the storm is over by then: the deploy is no cause of it
        deployed, deploy_us = "payment", start_us + 40 * MINUTE_US
    restarts = tuple(
        Restart(int(n), at := deploy_us + (i + 1) * RESTART_EVERY_US, at + RESTART_TAKES_US)
        for i, n in enumerate(nodes_of(deployed))
    )
    return Plan(start_us, end_us, scale, faults, deployed, deploy_us, restarts, clocks)


def _set_wrong(clocks: Clocks, faults: Faults, start_us: int) -> None:
    """The two sick clocks; what else they do stays small, so that the label's number holds to half a ms."""
    step, ahead = NODES.index(faults.step_node), NODES.index(faults.ahead_node)
    clocks.swing_us[[step, ahead]] = 50
    clocks.base_us[step] = 0
    clocks.step_us[step] = faults.step_us
    clocks.step_at_us[step] = start_us + faults.step_at_us
    clocks.base_us[ahead] = faults.ahead_us


def _draw(rng: np.random.Generator) -> Faults:
    def some(service: str, n: int = 1) -> list[str]:
        return [f"{service}-{i + 1}" for i in rng.permutation(SERVICES[service])[:n]]

    def whole(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    ahead, dated = some("search", 2)
    cart, profile = some("order", 2), some("user", 2)
    storm_min = whole(14, 26)
    return Faults(
        step_node=some("payment")[0],
        step_at_us=whole(6, storm_min - 3) * MINUTE_US,
        step_us=whole(600, 900) * 1_000,
        ahead_node=ahead,
        ahead_us=whole(115, 300) * 1_000,
        dated_node=dated,
        dated_at_us=whole(30, 38) * MINUTE_US,
        dated_rows=whole(6, 14),
        storm_at_us=storm_min * MINUTE_US + whole(0, 59) * SECOND_US,
        storm_us=whole(5, 8) * MINUTE_US,
        slow=float(rng.uniform(0.18, 0.25)),
        dropped=float(rng.uniform(0.29, 0.35)),
        doubled=whole(12, 40),
        cart_nodes=(cart[0], cart[1]),
        cart_conflicts=whole(14, 28),
        profile_nodes=(profile[0], profile[1]),
        profile_conflicts=whole(2, 7),
        rejected=whole(6, 20),
    )
