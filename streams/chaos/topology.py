"""Who there is: 47 nodes of 11 services, who calls whom and how fast, the daily load, and what their clocks show.

Times are true time in µs since 1970 until shipping stamps them by a node's clock. Nodes are indices into NODES.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors.windows import DAY_US, HOUR_US, MINUTE_US, SECOND_US

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SERVICES = {
    "edge": 3,
    "gateway": 4,
    "payment": 6,
    "order": 6,
    "user": 5,
    "search": 6,
    "catalog": 5,
    "inventory": 4,
    "ledger": 3,
    "notify": 3,
    "shipping": 2,
}
NODES = [f"{service}-{i}" for service, n in SERVICES.items() for i in range(1, n + 1)]
NONE = -1  # in an integer column: no value
COLLECTOR = len(NODES)  # its clock's index


def nodes_of(service: str) -> Ints:
    return np.array([NODES.index(f"{service}-{i}") for i in range(1, SERVICES[service] + 1)], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Edge:
    """Calls of one service by another. Shares are of attempts; slow_path is what a slow, healthy call takes."""

    caller: str
    service: str
    per_min: float = 0.0  # first attempts on an average morning; children have `share` of their parent's calls instead
    share: float = 0.0
    median_ms: float = 40.0
    spread: float = 0.6  # sigma of the lognormal
    timeout_ms: int = 2_000
    both_sides: bool = False
    keyed: str = ""  # prefix of its idempotency keys
    reset: float = 0.011  # the connection breaks; the server never sees the call
    failed: float = 0.0  # the server looks the key up, then fails without effect
    lost: float = (
        0.0  # nobody answers; the client times out. Of 60 calls in a minute one is a p99 of 100 %: busy edges only
    )
    slow_path: tuple[float, float, float] = (0.0, 0.0, 0.0)  # share, from ms, to ms

    @property
    def name(self) -> str:
        return f"{self.caller}->{self.service}"


ROOT = Edge(caller="edge", service="gateway", timeout_ms=15_000, lost=0.0005)
FRONT = (
    # 3 % of the payments wait for a card network that answers after a second and a half: p99 is 78 % of the timeout.
    Edge(
        caller="gateway",
        service="payment",
        per_min=880,
        median_ms=90,
        both_sides=True,
        keyed="pay",
        failed=0.0018,
        slow_path=(0.03, 1_520, 1_570),
    ),
    Edge(caller="gateway", service="search", per_min=330, median_ms=70, spread=0.7, timeout_ms=1_500, both_sides=True),
    Edge(caller="gateway", service="order", per_min=60, median_ms=60, both_sides=True, keyed="ord", failed=0.0018),
    Edge(caller="gateway", service="user", per_min=80, median_ms=25, timeout_ms=1_000),
    Edge(caller="gateway", service="catalog", per_min=60, median_ms=30, timeout_ms=1_000),
)
CHILDREN = {
    "payment": Edge(caller="payment", service="ledger", share=0.05),
    "search": Edge(caller="search", service="catalog", share=0.15),
    "order": Edge(caller="order", service="inventory", share=1.0),
    "user": Edge(caller="user", service="notify", share=0.2),
    "catalog": Edge(caller="catalog", service="shipping", share=0.1),
}


def load(t_us: Ints) -> Floats:
    """The day's course, 1.0 at half past eight UTC: quietest at three in the morning, busiest twelve hours later."""
    hour = (t_us % DAY_US) / HOUR_US
    usual = 1 + 0.4 * np.sin(2 * np.pi * -0.5 / 24)
    return np.asarray((1 + 0.4 * np.sin(2 * np.pi * (hour - 9) / 24)) / usual, dtype=np.float64)


def moments(rng: np.random.Generator, per_min: float, start_us: int, end_us: int) -> Ints:
    """Sorted times of a Poisson process that follows the day's load: thinned from its peak."""
    peak = 1.6
    n = rng.poisson(per_min * peak * (end_us - start_us) / MINUTE_US)
    t = np.sort(rng.integers(start_us, end_us, n))
    return t[rng.random(n) * peak < load(t)]


@dataclass(frozen=True)
class Clocks:
    """What each node's clock shows beside the truth: an offset, a slow wander (≤ 11 ppm), and perhaps a step."""

    base_us: Floats
    swing_us: Floats
    period_us: Floats
    phase: Floats
    step_us: Floats
    step_at_us: Floats

    def offset(self, node: Ints, t_us: Ints) -> Ints:
        wander = self.swing_us[node] * np.sin(2 * np.pi * (t_us / self.period_us[node] + self.phase[node]))
        step = np.where(t_us >= self.step_at_us[node], self.step_us[node], 0.0)
        return np.floor(self.base_us[node] + wander + step).astype(np.int64)


def natural_clocks(rng: np.random.Generator) -> Clocks:
    """Disciplined clocks: within 4 ms of the truth, the collector's within 0.3 ms."""
    n = len(NODES) + 1
    base = rng.uniform(-3_000, 3_000, n)
    base[COLLECTOR] = rng.uniform(-200, 200)
    swing = rng.uniform(100, 800, n)
    swing[COLLECTOR] = 50
    period = rng.uniform(8, 20, n) * 60 * SECOND_US
    never = np.full(n, np.inf)
    return Clocks(base, swing, period, rng.random(n), np.zeros(n), never)
