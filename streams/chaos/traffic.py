"""A plan enters, request lines in true time leave: calls, their attempts and retries, and what each side saw of them.

A trace: edge -> gateway -> a front service -> perhaps a service behind it. A keyed call that comes again (a retry whose
first attempt took effect, a user who submits twice) is answered from the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from streams.chaos.plan import Plan
from streams.chaos.topology import CHILDREN, FRONT, NODES, NONE, ROOT, Bools, Edge, Floats, Ints, moments

FINE, RESET, FAILED, LOST, SLOW = range(5)  # what became of an attempt
ATTEMPTS = 3
AGAIN = 0.028  # of keyed calls are submitted once more by the user
COLD_MISS = 0.04  # of those that a cold cache does not know; the database does, so nothing is applied
SLOW_BY_US = 280_000  # a slow server answers so much after the client gave up: always before the retry comes
STATUS = ["ok", "error", "timeout"]
OK, ERROR, TIMEOUT = range(3)
CACHE = ["hit", "miss"]
HIT, MISS = range(2)


@dataclass
class Calls:
    """Logical calls of one edge: when they start, who makes them, whether their key took effect before."""

    start: Ints
    caller: Ints
    known: Bools


@dataclass
class Attempts:
    """One entry an attempt, as it truly was. call: index into the calls; server_* hold where reached."""

    call: Ints
    number: Ints
    start: Ints
    took: Ints
    caller: Ints
    callee: Ints
    outcome: Ints
    server_start: Ints
    server_took: Ints
    cache: Ints
    applied: Ints  # 1, 0 or NONE
    doubled: Bools

    @property
    def reached(self) -> Bools:
        return np.isin(self.outcome, (FINE, FAILED, SLOW))

    @property
    def server_end(self) -> Ints:
        return self.server_start + self.server_took

    def where(self, keep: Bools | Ints) -> Attempts:
        return Attempts(*(getattr(self, f.name)[keep] for f in fields(self)))


def joined(parts: list[Attempts]) -> Attempts:
    return Attempts(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Attempts)))


def network(rng: np.random.Generator, n: int) -> Ints:
    """One way, in µs."""
    return 120 + rng.exponential(250, n).astype(np.int64)


def work(rng: np.random.Generator, edge: Edge, n: int) -> Ints:
    """What a healthy server takes, in µs: heavy-tailed, under 72 % of the timeout but for the slow path."""
    ms: Floats = np.minimum(rng.lognormal(np.log(edge.median_ms), edge.spread, n), edge.timeout_ms * 0.72)
    share, low, high = edge.slow_path
    ms = np.where(rng.random(n) < share, rng.uniform(low, high, n), ms)
    return (ms * 1_000).astype(np.int64)


def play(rng: np.random.Generator, plan: Plan, edge: Edge, calls: Calls) -> Attempts:
    """All attempts of the calls: each failed one is tried again after a jittered, growing pause, twice at most."""
    live, start, known, parts = np.arange(len(calls.start)), calls.start, calls.known.copy(), []
    for number in range(ATTEMPTS):
        part = _attempt(rng, plan, edge, number, live, start, calls.caller[live], known[live], calls.known[live])
        known[live] |= part.applied == 1
        parts.append(part)
        again = part.outcome != FINE
        pause = rng.uniform(1.2e6, 1.9e6, int(again.sum())) * 1.5**number
        live, start = live[again], (part.start + part.took)[again] + pause.astype(np.int64)
    return joined(parts)


def _outcome(rng: np.random.Generator, plan: Plan, edge: Edge, start: Ints, known: Bools, sure: Bools) -> Ints:
    """sure: a second submission, which is answered whatever the weather."""
    stormy = plan.storm(start) if edge.service == "payment" else np.zeros(len(start))
    slow = plan.faults.slow * stormy * ~known if plan.faults else 0 * stormy
    lost = edge.lost + (plan.faults.dropped * stormy if plan.faults else 0 * stormy)
    failed = edge.failed * ~known
    bounds = np.cumsum([np.full(len(start), edge.reset), failed, lost, slow], axis=0)
    dice = rng.random(len(start))
    kinds = np.array([RESET, FAILED, LOST, SLOW, FINE])
    outcome = kinds[(dice >= bounds).sum(axis=0)]
    return np.where(sure, FINE, outcome)


def _attempt(
    rng: np.random.Generator,
    plan: Plan,
    edge: Edge,
    number: int,
    call: Ints,
    start: Ints,
    caller: Ints,
    known: Bools,
    sure: Bools,
) -> Attempts:
    n, timeout = len(start), edge.timeout_ms * 1_000
    outcome = _outcome(rng, plan, edge, start, known, sure)
    cold = known & plan.cold(edge.service, start) & (rng.random(n) < COLD_MISS)
    hit = known & ~cold & bool(edge.keyed)
    took = np.where(hit, rng.integers(2_000, 9_000, n), work(rng, edge, n))
    took = np.where(outcome == SLOW, timeout + rng.integers(20_000, SLOW_BY_US, n), took)
    there, back = network(rng, n), network(rng, n)
    seen = np.where(outcome == RESET, rng.integers(1_000, 10_000, n), there + took + back)
    seen = np.where(np.isin(outcome, (LOST, SLOW)), timeout, seen)
    looked_up = np.isin(outcome, (FINE, FAILED, SLOW)) & bool(edge.keyed)
    effect = looked_up & ~known & (outcome != FAILED)
    return Attempts(
        call=call,
        number=np.full(n, number),
        start=start,
        took=seen,
        caller=caller,
        callee=plan.pick(rng, edge.service, start),
        outcome=outcome,
        server_start=start + there,
        server_took=took,
        cache=np.where(looked_up, np.where(hit, HIT, MISS), NONE),
        applied=np.where(looked_up, effect.astype(np.int64), NONE),
        doubled=np.zeros(n, dtype=np.bool_),
    )


def double(rng: np.random.Generator, plan: Plan, edge: Edge, a: Attempts) -> None:
    """The fault: the first attempt still runs when the second looks the key up, misses, and applies it as well."""
    assert plan.faults is not None
    f, span = plan.faults, (0.15, 0.9)
    low, high = (plan.start_us + f.storm_at_us + int(x * f.storm_us) for x in span)
    first = np.flatnonzero((a.number == 0) & (a.outcome == SLOW) & (a.start >= low) & (a.start < high))
    second = np.flatnonzero((a.number == 1) & (a.outcome == FINE) & (a.cache == HIT))
    both, i, j = np.intersect1d(a.call[first], a.call[second], return_indices=True)
    chosen = np.sort(rng.permutation(len(both))[: f.doubled])
    one, two = first[i[chosen]], second[j[chosen]]
    a.cache[two], a.applied[two] = MISS, 1
    extra = work(rng, edge, len(two)) - a.server_took[two]
    a.server_took[two] += extra
    a.took[two] += extra
    a.server_took[one] = a.server_end[two] + rng.integers(400_000, 1_200_000, len(one)) - a.server_start[one]
    a.doubled[one] = a.doubled[two] = True


def again(rng: np.random.Generator, plan: Plan, edge: Edge, calls: Calls, a: Attempts) -> tuple[Calls, Ints]:
    """Users who submit twice, some seconds after the first answer: the second calls, and the first of each."""
    at = np.flatnonzero((a.number == 0) & (a.outcome == FINE) & (rng.random(len(a.call)) < AGAIN) & bool(edge.keyed))
    first = a.call[at]
    start = a.server_end[at] + rng.integers(2_000_000, 40_000_000, len(at))
    caller = plan.pick(rng, edge.caller, start)
    return Calls(start, caller, np.ones(len(at), dtype=np.bool_)), first


class Lines:
    """Collects lines as integer columns and hands out span, request, trace and key numbers."""

    def __init__(self) -> None:
        self.frames: list[pl.DataFrame] = []
        self.spans = self.requests = self.traces = self.keys = 0

    def take(self, what: str, n: int) -> Ints:
        first = int(getattr(self, what))
        setattr(self, what, first + n)
        return np.arange(first, first + n)

    def add(self, edge: Edge, a: Attempts, **ids: Ints) -> Ints:
        """Both sides' lines; returns the span that the callee's own calls have as parent."""
        client = self.take("spans", len(a.call))
        status = np.select([np.isin(a.outcome, (LOST, SLOW)), a.outcome == FINE], [TIMEOUT, OK], ERROR)
        shared: dict[str, npt.NDArray[Any]] = {**ids, "number": a.number, "outcome": a.outcome, "doubled": a.doubled}
        none = np.full(len(a.call), NONE)
        self._frame(
            edge, "client", shared, node=a.caller, peer=a.callee, start=a.start, took=a.took, span=client,
            status=status, cache=none, applied=none,
        )  # fmt: skip
        if not edge.both_sides:
            return client
        server, at = self.take("spans", len(a.call)), a.reached
        ended = np.where(a.outcome == FAILED, ERROR, OK)
        shared = {k: v[at] for k, v in (shared | {"parent": client}).items()}
        self._frame(
            edge, "server", shared, node=a.callee[at], peer=a.caller[at], start=a.server_start[at],
            took=a.server_took[at], span=server[at], status=ended[at], cache=a.cache[at], applied=a.applied[at],
        )  # fmt: skip
        return server

    def _frame(self, edge: Edge, side: str, shared: dict[str, npt.NDArray[Any]], **columns: Ints) -> None:
        fixed = {"service_name": edge.service, "caller": edge.caller, "side": side, "timeout_ms": edge.timeout_ms}
        frame = pl.DataFrame(shared | columns)
        self.frames.append(frame.with_columns(pl.lit(v).alias(k) for k, v in fixed.items()))


def traffic(rng: np.random.Generator, plan: Plan) -> pl.DataFrame:
    """All request lines, in true time: node and peer as indices, start and took in µs."""
    lines = Lines()
    for edge in FRONT:
        start = moments(rng, edge.per_min * plan.scale, plan.start_us, plan.end_us)
        n = len(start)
        calls = Calls(start, plan.pick(rng, edge.caller, start), np.zeros(n, dtype=np.bool_))
        a = play(rng, plan, edge, calls)
        if plan.faults and edge.service == "payment":
            double(rng, plan, edge, a)
        keys = lines.take("keys", n) if edge.keyed else np.full(n, NONE)
        _traces(rng, plan, lines, edge, calls, a, keys)
        if edge.keyed:
            repeats, first = again(rng, plan, edge, calls, a)
            _traces(rng, plan, lines, edge, repeats, play(rng, plan, edge, repeats), keys[first])
    return _decoded(rng, lines)


def _traces(
    rng: np.random.Generator, plan: Plan, lines: Lines, edge: Edge, calls: Calls, a: Attempts, key: Ints
) -> None:
    """The lines of whole traces: the root call around all attempts, the attempts, and the calls behind them."""
    n = len(calls.start)
    trace = lines.take("traces", n)
    root = _roots(rng, plan, calls, a)
    none = np.full(len(root.call), NONE)
    span = lines.add(
        ROOT, root, trace=trace[root.call], request=lines.take("requests", n)[root.call], parent=none, key=none
    )
    real = np.zeros(n, dtype=np.int64)
    real[root.call] = span  # a call's last entry is its real attempt
    request = lines.take("requests", n)
    span = lines.add(edge, a, trace=trace[a.call], request=request[a.call], parent=real[a.call], key=key[a.call])
    child = CHILDREN[edge.service]
    at = np.flatnonzero((a.outcome == FINE) & (a.cache != HIT) & ~a.doubled & (rng.random(len(a.call)) < child.share))
    b = _children(rng, plan, child, a.where(at))
    none = np.full(len(b.call), NONE)
    request = lines.take("requests", len(at))
    lines.add(child, b, trace=trace[a.call[at]][b.call], request=request[b.call], parent=span[at][b.call], key=none)


def _simple(n: int, outcome: int, **columns: Ints) -> Attempts:
    """Attempts of an edge whose server lines nobody logs."""
    none = np.full(n, NONE)
    return Attempts(
        outcome=np.full(n, outcome), server_start=none, server_took=none, cache=none, applied=none,
        doubled=np.zeros(n, dtype=np.bool_), **columns,
    )  # fmt: skip


def _roots(rng: np.random.Generator, plan: Plan, calls: Calls, a: Attempts) -> Attempts:
    """Around each call its root at the gateway; before some an attempt that broke off or that nobody answered."""
    n = len(calls.start)
    start = calls.start - network(rng, n) - rng.integers(100, 900, n)
    end = np.zeros(n, dtype=np.int64)
    np.maximum.at(end, a.call, a.start + a.took)
    fine = np.zeros(n, dtype=np.bool_)
    fine[a.call[a.outcome == FINE]] = True
    caller, dice = plan.pick(rng, "edge", start), rng.random(n)
    broke = dice < ROOT.lost + ROOT.reset
    call = np.arange(n)
    number = broke.astype(np.int64)
    took = end - start + network(rng, n) + rng.integers(100, 900, n)
    real = _simple(n, FINE, call=call, number=number, start=start, took=took, caller=caller, callee=calls.caller)
    real.outcome[~fine] = FAILED
    m = int(broke.sum())
    lost = dice[broke] < ROOT.lost
    pause = rng.integers(1_200_000, 1_900_000, m)
    spent = np.where(lost, ROOT.timeout_ms * 1_000, rng.integers(1_000, 10_000, m))
    before = start[broke] - pause - spent
    first = _simple(
        m, RESET, call=call[broke], number=np.zeros(m, dtype=np.int64), start=before, took=spent,
        caller=caller[broke], callee=plan.pick(rng, "gateway", before),
    )  # fmt: skip
    first.outcome[lost] = LOST
    return joined([first, real])


def _children(rng: np.random.Generator, plan: Plan, edge: Edge, parent: Attempts) -> Attempts:
    """Calls inside the parent's server time; some fail at once and are tried again."""
    n = len(parent.call)
    call, caller = np.arange(n), parent.callee
    start = parent.server_start + (rng.uniform(0.1, 0.3, n) * parent.server_took).astype(np.int64)
    took = (rng.uniform(0.2, 0.5, n) * parent.server_took).astype(np.int64)
    callee = plan.pick(rng, edge.service, start)
    broke = rng.random(n) < edge.reset
    early = parent.server_start[broke] + 100
    first = _simple(
        int(broke.sum()), RESET, call=call[broke], number=np.zeros(int(broke.sum()), dtype=np.int64), start=early,
        took=(0.05 * parent.server_took[broke]).astype(np.int64), caller=caller[broke], callee=callee[broke],
    )  # fmt: skip
    number = broke.astype(np.int64)
    second = _simple(n, FINE, call=call, number=number, start=start, took=took, caller=caller, callee=callee)
    return joined([first, second])


def hexes(rng: np.random.Generator, n: int, width: int, prefix: str = "") -> pl.Series:
    text = rng.bytes(n * width // 2).hex()
    return pl.Series([prefix + text[i : i + width] for i in range(0, n * width, width)], dtype=pl.String)


def _decoded(rng: np.random.Generator, lines: Lines) -> pl.DataFrame:
    """Numbers to the names and ids they stand for."""
    frame = pl.concat(lines.frames)

    def named(column: str, names: pl.Series) -> pl.Series:
        index = frame.select(pl.when(pl.col(column) != NONE).then(column)).to_series()
        return names.gather(index.cast(pl.UInt32))

    spans, payloads = hexes(rng, lines.spans, 12), hexes(rng, lines.keys, 8)
    keys, broken = hexes(rng, lines.keys, 10), pl.Series(["", "ConnectionReset", "Unavailable", "Timeout", "Timeout"])
    failing = frame.select(pl.when(pl.col("status") != OK).then("outcome")).to_series().cast(pl.UInt32)
    return frame.select(
        "node", "start", "took", "service_name", "caller", "side", "doubled",
        peer_node=named("peer", pl.Series(NODES)),
        request_id=named("request", hexes(rng, lines.requests, 12)),
        trace_id=named("trace", hexes(rng, lines.traces, 16)),
        span_id=named("span", spans),
        parent_span_id=named("parent", spans),
        status=named("status", pl.Series(STATUS)),
        retry_count=pl.col("number"),
        timeout_ms=pl.col("timeout_ms").cast(pl.Float64),
        idempotency_key=named("key", keys),
        payload_hash=named("key", payloads),
        cache=named("cache", pl.Series(CACHE)),
        applied=pl.when(pl.col("applied") != NONE).then(pl.col("applied") == 1),
        error=broken.gather(failing),
    ).with_columns(
        idempotency_key=pl.concat_str(pl.col("service_name").str.slice(0, 3), pl.lit("-"), "idempotency_key")
    )  # fmt: skip
