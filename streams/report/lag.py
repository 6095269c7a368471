"""How far behind the workers are enters, its screen leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from streams.live.lag import ADDED, Lag, Log
from streams.report.found import Invoke
from streams.report.sentences import count

STANDS = 3  # of partitions that hold up others
NORMAL_S = 60  # a window of 10 s, 30 s for rows that come late, and what the steps need
LEGEND = (
    "final = no row can change it any more; UNREAD = messages that no worker has accounted for; behind = 10 s windows",
    "that could be done; AGAIN = messages that a worker reads again when it starts. Ages are by this machine's clock.",
)


def screen(lag: Lag, where: str, invoke: Invoke) -> Iterator[str]:
    """where: the options that name the Kafka, for hints."""
    yield _verdict(lag)
    yield from _columns(("LOGS", "PARTITIONS", "UNREAD", "OLDEST", "READ UNTIL"), list(_logs(lag)))
    yield from _columns(("STEP", "FINAL UNTIL", "BEHIND", "MESSAGES"), list(_steps(lag)))
    yield from _trouble(lag)
    yield _workers(lag)
    whole = all(p.owner for p in lag.logs)
    idle = "there are more workers than partitions" if whole else "the work is being shared anew, for up to 2 min"
    for worker in sorted(lag.workers):
        owns = " ".join(spelled(topic, numbers) for topic, numbers in sorted(worker.owns.items()))
        yield f"  {worker.name} ({worker.host}): {owns or f'nothing: {idle}'}"
    yield from LEGEND
    yield f"Next: {_next(lag, where, invoke)}"


def _verdict(lag: Lag) -> str:
    if lag.final_until is None:
        return "Nothing is final yet: " + ("no worker runs" if not lag.workers else "the first minute, or see below")
    ago = age(lag.behind_s)
    return f"Final until {lag.final_until:%Y-%m-%d %H:%M:%S} UTC, {ago} ago: {_how_far(lag)}"


def _how_far(lag: Lag) -> str:
    """What is final may be as it should, and what is unread or not landed further behind, or not known."""
    if lag.behind_s is not None and lag.behind_s > NORMAL_S:
        return f"BEHIND (up to {NORMAL_S} s is normal)"
    if lag.worst_s is None:
        return "NOT ALL IS KNOWN, see what is blind"
    waits = f"BEHIND, what waits is {age(lag.worst_s)} old (up to {NORMAL_S} s is normal)"
    return "normal" if lag.worst_s <= NORMAL_S else waits


def _logs(lag: Lag) -> Iterator[tuple[str, ...]]:
    topics: dict[str, list[Log]] = {}
    for one in lag.logs:
        topics.setdefault(one.topic, []).append(one)
    for topic, some in topics.items():
        oldest = max((p.oldest_s for p in some if p.oldest_s is not None), default=None)
        until = min((p.read_until for p in some if p.read_until), default=None)
        yield topic, f"{len(some)}", f"{sum(p.unread for p in some):,}", age(oldest), _clock(until, lag)


def _steps(lag: Lag) -> Iterator[tuple[str, ...]]:
    for step in lag.steps:
        behind = "-" if step.behind_windows is None else count(step.behind_windows, "window")
        kind = "unread" if step.name == "land" else "again"
        yield step.name, _clock(step.final_until, lag), behind, f"{step.unread:,} {kind}"


def _trouble(lag: Lag) -> Iterator[str]:
    deleted = [p for p in lag.logs if p.deleted_unread]
    for p in deleted:
        yield f"LOST {p.topic}/{p.partition}: {p.deleted_unread:,} messages were deleted before they were read"
    for why in sorted({p.blind for p in lag.logs if p.blind}):
        yield f"Blind: {_names(p for p in lag.logs if p.blind == why)} ({why})"
    held = [p for p in lag.logs if p.held]
    stands = sorted({p.read_until for p in held if p.read_until})
    for until in stands[:STANDS]:
        some = [p for p in held if p.read_until == until]
        owners = ", ".join(sorted({p.owner or "nobody" for p in some}))
        unread = sum(p.unread for p in some)
        yield f"Held by {_names(iter(some))}: read until {_clock(until, lag)}, {unread:,} unread, of {owners}"
    if later := stands[STANDS:]:
        yield f"and {sum(p.read_until in later for p in held):,} more, which are read further"
    if lag.published_s is not None and lag.published_s > NORMAL_S:
        yield f"The readable file is {age(lag.published_s)} old: does the lander run?"


def _workers(lag: Lag) -> str:
    return f"{count(len(lag.workers), 'worker')}:" if lag.workers else "No worker runs: nothing is read."


def _next(lag: Lag, where: str, invoke: Invoke) -> str:
    if any(p.blind == ADDED for p in lag.logs):
        return f"asynchealth topics grow{where}"
    if not lag.workers:
        return f"asynchealth worker{where}"
    if any(p.blind and p.owner for p in lag.logs):
        return f"asynchealth topics check{where}"
    if any(p.held for p in lag.logs):
        return f"the log of {lag.logs[_oldest(lag)].owner or 'the workers'}, then asynchealth worker{where} again"
    return invoke("report")


def _oldest(lag: Lag) -> int:
    return min((i for i, p in enumerate(lag.logs) if p.held), key=lambda i: str(lag.logs[i].read_until))


def _names(some: Iterator[Log]) -> str:
    topics: dict[str, list[int]] = {}
    for p in some:
        topics.setdefault(p.topic, []).append(p.partition)
    return " ".join(spelled(topic, numbers) for topic, numbers in topics.items())


def spelled(topic: str, numbers: Sequence[int]) -> str:
    """requests/0-3,7"""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return f"{topic}/" + ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for span, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * span:
            return f"{seconds / span:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _clock(at: datetime | None, lag: Lag) -> str:
    if at is None:
        return "never"
    return f"{at:%H:%M:%S}" if at.date() == lag.at.date() else f"{at:%Y-%m-%d %H:%M:%S}"


def _columns(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(r[i]) for r in (heads, *rows)) for i in range(len(heads))]
    for row in (heads, *rows):
        yield "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
