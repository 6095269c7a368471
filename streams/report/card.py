"""The emergency card: how a command is typed here and whom to call enter, a box to print and pin up leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from streams.inventory import Contact
from streams.report.found import Found, Invoke, Span
from streams.report.sentences import sentence

TITLE = "ASYNC EMERGENCY CARD"
CARD: dict[str, list[str]] = {
    "CLOCK SKEW": [
        "sudo chronyc makestep",
        "sudo ntpdate -b pool.ntp.org   # hosts without chrony",
        "# Not on a lease holder: fail it over first",
        "asynchealth triage timestamps",
    ],
    "TIMEOUT STORM": [
        "asynchealth triage timeouts",
        "# The longest hop first: open its breaker,",
        "# lengthen backoff, raise no retries",
        "# No rollout restart of a gateway:",
        "# its clients all retry at once",
    ],
    "DUPLICATE OPS": [
        "SELECT * FROM requests",
        "WHERE idempotency_key = 'XXX';",
        """asynchealth sql "SELECT * FROM requests WHERE idempotency_key = 'XXX'\"""",
        "asynchealth triage duplicates",
    ],
    "SPLIT BRAIN": [
        "etcdctl endpoint status --cluster -w table",
        "# Check leader IDs: one leader, one raft term",
        "asynchealth runbook concurrent_writers",
    ],
}
OURS = "asynchealth "


def card(everyone: Sequence[Contact], invoke: Invoke) -> Iterator[str]:
    """The box, as wide as its longest line."""
    lines: list[str] = []
    for heading, commands in CARD.items():
        typed = (invoke(c.removeprefix(OURS)) if c.startswith(OURS) else c for c in commands)
        lines += [f"{heading}:", *(f"  {c}" for c in typed), ""]
    lines += ["CALL:", *(f"  {line}" for line in _called(everyone))]
    width = max(len(line) for line in lines) + 2
    yield f"╔{'═' * width}╗"
    yield f"║{TITLE:^{width}}║"
    yield f"╠{'═' * width}╣"
    yield from (f"║ {line:<{width - 1}}║" for line in lines)
    yield f"╚{'═' * width}╝"


def _called(everyone: Sequence[Contact]) -> Iterator[str]:
    """The playbook's table: issue, team, escalation."""
    widths = [max(len(getattr(c, name)) for c in everyone) for name in ("of", "team")]
    yield from (f"{c.of:<{widths[0]}}  {c.team:<{widths[1]}}  {c.contact}" for c in everyone)


def now(every: Sequence[Found], about: Found | None, span: Span, invoke: Invoke) -> Iterator[str]:
    """The finding that is asked for, else the worst that is open, and the next command."""
    one = about or next((f for f in every if span.is_open(f)), None)
    if one is None:
        yield f"Now: nothing is open at {span.end:%Y-%m-%d %H:%M} UTC. Next: {invoke('findings')}"
        return
    when, during = ("Now", f"since {span.since(one)}") if span.is_open(one) else ("Found", span.between(one))
    yield f"{when}: {one.level.upper()} {one.detector} {one.name}, {sentence(one)}, {during}"
    yield f"Next: {invoke(f'triage {one.short}')}"
