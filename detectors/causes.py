"""Findings enter, "this explains that" leaves, each edge with its reason; also what is ruled out, by which numbers.

The rules are data, and no path of rules leads back to where it began, so no chain of findings does either. Rules name
detectors by their names, so those for detectors that are not there are never asked. What is a rule's cause is one only
where the subjects are related and it began before the effect did, as far as windows can tell, and had not ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from detectors.detector import Settings
from detectors.finding import QUIET_US
from detectors.subjects import ARROW, OF_SERVICE, names
from detectors.tables.keys import TTL_US
from detectors.windows import HOUR_US

SLACK_US = QUIET_US  # an onset is the first of the rows that crossed a threshold: two detectors' are not that exact


@dataclass(frozen=True)
class Finding:
    """What causes go by of a finding. Times in µs; resolved: None while it is open."""

    finding_id: str
    detector: str
    kind: str
    subject_kind: str
    subject: str
    environment: str
    tenant: str
    level: str
    onset: int
    last: int
    resolved: int | None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def service(self) -> str | None:
        """The service that it is about: itself, or the one called."""
        if self.subject_kind not in OF_SERVICE:
            return None
        return names(self.subject, ARROW)[1] if self.subject_kind == "edge" else self.subject


@dataclass(frozen=True)
class Cause:
    """An edge. ruled_out: a cause that looks likely and that numbers exclude."""

    effect: str
    cause: str
    reason: str
    ruled_out: bool = False


# ---- how subjects are related ---------------------------------------------------------------------------------------


def _subject(f: Finding) -> str:
    return f"{f.subject_kind} {f.subject}"


def _service(f: Finding) -> str | None:
    return f.service


def _named_after(f: Finding) -> str | None:
    """The service that a node is told to be of by its name alone: payment-3 is one of payment's."""
    return (f.subject.rpartition("-")[0] or None) if f.subject_kind == "node" else None


def _longest(f: Finding) -> str | None:
    """Of a trace the hop that used its time up."""
    return f"edge {f.facts['longest']}" if f.facts.get("longest") else None


def _longest_called(f: Finding) -> str | None:
    return names(f.facts["longest"], ARROW)[1] if f.facts.get("longest") else None


class Related(NamedTuple):
    """By what the subjects of a cause and of an effect are the same; None is like nothing."""

    cause: Callable[[Finding], str | None]
    effect: Callable[[Finding], str | None]


SAME, SERVICE, SERVES = Related(_subject, _subject), Related(_service, _service), Related(_named_after, _service)
HOP, SLOW_HOP = Related(_subject, _longest), Related(_service, _longest_called)


# ---- what numbers rule out ------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """What the numbers of two findings say of a rule."""

    ruled_out: bool
    why: str = ""


def reaches(cause: Finding, effect: Finding, _: Settings) -> Told | None:
    """A clock can be no further off in a stamp than it is; None where its offset has no bound on that side."""
    side, bound = {"ahead": ("ahead", "upper_ms"), "old": ("behind", "lower_ms")}.get(effect.kind, ("", ""))
    if not side:
        return None
    off_s, limit_ms = effect.facts.get("off_by_s"), cause.facts.get(bound)
    if off_s is None or limit_ms is None:
        return None
    most_s = (limit_ms if side == "ahead" else -limit_ms) / 1e3
    clock = f"at most {_span(most_s)} {side}" if most_s > 0 else f"not {side}"
    return Told(most_s < off_s, f"its clock is {clock}, the stamps are off by {_span(off_s)}")


def outlives(cause: Finding, effect: Finding, settings: Settings) -> Told | None:
    """A key is forgotten early only where the clock is off by as much as the key lives."""
    bounds = [cause.facts.get(n) for n in ("lower_ms", "upper_ms")]
    if any(b is None for b in bounds):
        return None
    off_s = max(abs(b) for b in bounds if b is not None) / 1e3
    ttl_s = settings.ttl_us.get(effect.subject, TTL_US) / 1e6
    return Told(off_s < ttl_s, f"the keys' TTL of {_span(ttl_s)} is longer than the skew, {_span(off_s)} at most")


def _span(seconds: float) -> str:
    units = [(365.2425 * 86400, "years"), (HOUR_US / 1e6, "h"), (60, "min"), (1, "s")]
    size, unit = next(((n, u) for n, u in units if seconds >= 2 * n), (1e-3, "ms"))
    return f"{seconds / size:,.3g} {unit}" if seconds / size < 1e3 else f"{seconds / size:,.0f} {unit}"


# ---- the rules ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """cause and effect: detector, detector.kind, or detector. with a dot for what has no kind.

    lasting_us: so long after its end a cause still works. numbers: if it is given and says nothing, there is no edge.
    """

    cause: str
    effect: str
    related: Related
    reason: str
    lasting_us: int = QUIET_US
    numbers: Callable[[Finding, Finding, Settings], Told | None] | None = None


DOUBLED = ("duplicate_key.applied_twice", "duplicate_key.concurrent")
RULES: tuple[Rule, ...] = (
    Rule("clock_drift.drift", "clock_skew", SAME, "a clock that drifts leaves the others"),
    Rule("clock_drift.step", "clock_skew", SAME, "a clock that was set is where it was set to"),
    Rule("clock_drift", "impossible_timestamp", SAME, "its lines are stamped by a clock that drifts"),
    Rule("clock_skew", "impossible_timestamp", SAME, "its lines are stamped by a clock that is wrong", numbers=reaches),
    Rule("heartbeat_loss", "ordering", SAME, "a node that was gone may come back without its count"),
    Rule("heartbeat_loss", "timeout_budget", SERVES, "a node of the service is gone, the others have its work"),
    Rule("heartbeat_loss", "timeout_ratio", SERVES, "calls wait for a node that is gone"),
    Rule("latency_shift", "timeout_budget", SERVICE, "it answers slower than it did"),
    Rule("timeout_budget", "timeout_ratio", SERVICE, "answers take as long as callers wait"),
    Rule("timeout_budget", "timeout_cascade", SLOW_HOP, "its longest hop takes as long as callers wait"),
    Rule("timeout_ratio", "timeout_cascade", HOP, "its longest hop times out"),
    Rule("timeout_ratio", "ack_loss", SAME, "who gave up does not hear the answer"),
    Rule("timeout_ratio", "retry_storm", SAME, "callers try again what timed out"),
    Rule("ack_loss", "retry_storm", SAME, "callers try again what was done and never confirmed"),
    Rule("retry_storm.", "retry_storm.metastable", SAME, "its retries are the load that is left"),
    *(Rule("timeout_ratio", e, SERVICE, "calls that timed out still ran when they were tried again") for e in DOUBLED),
    *(Rule("retry_storm", e, SERVICE, "calls that still ran were tried again") for e in DOUBLED),
    *(Rule("ack_loss", e, SERVICE, "what was done was tried again for want of an answer") for e in DOUBLED),
    Rule("timeout_ratio", "idempotency_cache", SERVICE, "what timed out looks its key up while its first use runs"),
    Rule("retry_storm", "idempotency_cache", SERVICE, "retries look a key up while its first use still runs"),
    *(
        Rule("idempotency_cache", f"duplicate_key.{k}", SERVICE, "the cache did not know keys that came again")
        for k in ("applied_twice", "after_ttl")
    ),
    *(
        Rule("clock_skew", f"duplicate_key.{k}", SERVES, "a clock that is off forgets keys early", numbers=outlives)
        for k in ("applied_twice", "after_ttl")
    ),
    Rule("duplicate_key.concurrent", "duplicate_key.applied_twice", SAME, "both executions of a key had an effect"),
    Rule("split_brain", "concurrent_writers", SAME, "two nodes held one lease, and both wrote"),
)


def _by_ends(rules: Iterable[Rule]) -> dict[tuple[str, str], list[Rule]]:
    found: dict[tuple[str, str], list[Rule]] = {}
    for rule in rules:
        ends = rule.cause.partition(".")[0], rule.effect.partition(".")[0]
        found.setdefault(ends, []).append(rule)
    return found


BY_ENDS = _by_ends(RULES)


def causes(cause: Finding, effect: Finding, settings: Settings) -> Cause | None:
    """Whether one finding explains another, or is ruled out though it looks as if it did."""
    for rule in BY_ENDS.get((cause.detector, effect.detector), ()):
        if not (_of(rule.cause, cause) and _of(rule.effect, effect) and _near(rule, cause, effect)):
            continue
        told = rule.numbers(cause, effect, settings) if rule.numbers else Told(False)
        if told is not None:
            ends = effect.finding_id, cause.finding_id
            return Cause(*ends, told.why if told.ruled_out else rule.reason, told.ruled_out)
    return None


def _of(pattern: str, f: Finding) -> bool:
    return pattern in (f.detector, f"{f.detector}.{f.kind}")


def _near(rule: Rule, cause: Finding, effect: Finding) -> bool:
    who = rule.related.cause(cause)
    if _space(cause) != _space(effect) or who is None or who != rule.related.effect(effect):
        return False
    ended = cause.resolved is not None and cause.last + rule.lasting_us < effect.onset
    return cause.onset <= effect.onset + SLACK_US and not ended


def _space(f: Finding) -> tuple[str, str]:
    return f.environment, f.tenant


def between(some: Sequence[Finding], others: Sequence[Finding], settings: Settings) -> Iterator[Cause]:
    """The edges between those and these, either way, some of them twice; a finding may be in both."""
    by = {fn for rule in RULES for fn in rule.related}
    like: dict[tuple[Any, ...], list[Finding]] = {}
    for f in others:
        for fn in by:
            like.setdefault((f.detector, fn, _space(f), fn(f)), []).append(f)
    for f in some:
        for (cause, effect), rules in BY_ENDS.items():
            for related in dict.fromkeys(rule.related for rule in rules):
                if f.detector == cause:
                    them = like.get((effect, related.effect, _space(f), related.cause(f)), ())
                    yield from _told((f, other, settings) for other in them)
                if f.detector == effect:
                    them = like.get((cause, related.cause, _space(f), related.effect(f)), ())
                    yield from _told((other, f, settings) for other in them)


def _told(pairs: Iterable[tuple[Finding, Finding, Settings]]) -> Iterator[Cause]:
    edges = (causes(*pair) for pair in pairs)
    return (e for e in edges if e is not None and e.effect != e.cause)


# ---- chains ---------------------------------------------------------------------------------------------------------


def direct(edges: Iterable[Cause]) -> list[Cause]:
    """Of each effect the best causes: not those that are already the cause of another of its causes."""
    every = list(edges)
    explained: dict[str, set[str]] = {}
    for e in every:
        if not e.ruled_out:
            explained.setdefault(e.effect, set()).add(e.cause)
    behind = {effect: set().union(*(_behind(c, explained) for c in mine)) for effect, mine in explained.items()}
    return [e for e in every if e.ruled_out or e.cause not in behind[e.effect]]


def _behind(finding: str, explained: Mapping[str, set[str]]) -> set[str]:
    """All that explains it, directly or not."""
    found, left = set[str](), [finding]
    while left:
        fresh = explained.get(left.pop(), set()) - found
        found |= fresh
        left += fresh
    return found


def depths(findings: Iterable[str], edges: Iterable[Cause]) -> dict[str, int]:
    """How many steps of explanation lie before each finding, on the longest way; a root cause has none."""
    explained: dict[str, set[str]] = {f: set() for f in findings}
    for e in edges:
        if not e.ruled_out:
            explained[e.effect].add(e.cause)
    found: dict[str, int] = {}

    def depth(f: str) -> int:
        if f not in found:
            found[f] = max((depth(c) + 1 for c in explained[f]), default=0)
        return found[f]

    return {f: depth(f) for f in explained}
