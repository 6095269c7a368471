"""A finding enters, a sentence leaves. Words are made here and nowhere else: detectors give numbers and names.

Most sentences are templates over a finding's columns and facts; where words depend on a number there is a function. A
detector that has none here, as users' own, gets its value, unit and subject.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from detectors.subjects import UNTOLD
from detectors.windows import WINDOW_US
from streams.report.found import NO_TIME, Found, is_time

Words = str | Callable[[Found], str]


def count(n: float, one: str, many: str = "") -> str:
    """1 key, 23 keys."""
    return f"{n:,.0f} {one if n == 1 else many or one + 's'}"


def share(x: float) -> str:
    """41.5%, 10%."""
    return f"{x:.1%}".replace(".0%", "%")


def milliseconds(x: float) -> str:
    """847 ms, 2,000 ms, 0.4 ms."""
    return f"{x:,.0f} ms" if abs(x) >= 10 or x == round(x) else f"{x:.1f} ms"


def duration(seconds: float) -> str:
    """The largest unit that leaves at least two of it: 90 s, 12 min, 3 h, 73 years."""
    units = [(365.2425 * 86400, "years"), (86400, "days"), (3600, "h"), (60, "min")]
    for size, name in units:
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:,.0f} {name}"
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def stamp(at: datetime) -> str:
    """A time of day to the millisecond; the date too where it is not of this century's working days."""
    if not is_time(at):
        return NO_TIME
    day = f"{at:%Y-%m-%d} " if not 2000 < at.year < 2090 else ""
    return f"{day}{at:%H:%M:%S}.{at.microsecond // 1000:03d}"


def sentence(f: Found) -> str:
    """What was seen and, in brackets, what it was compared with."""
    words = SENTENCES.get(f.detector, _generic)
    said = words(f) if callable(words) else words.format_map(_names(f))
    return f"{said} ({f.level}: {limit(f)})"


def _names(f: Found) -> dict[str, Any]:
    return {**f.columns, **f.facts}


def limit(f: Found) -> str:
    """The threshold in its unit; "any" where one is enough."""
    if f.kind == "late_share":
        return f"{share(f.threshold)} of the rows"
    return "any" if f.threshold == 0 else amount(f, f.threshold)


def amount(f: Found, value: float) -> str:
    """A value of this finding in its unit: 10%, 95% of timeout, 500 retries/min."""
    if f.unit == "ratio":
        return share(value)
    return f"{value:,g}{f.unit}" if f.unit.startswith("%") else f"{value:,g} {f.unit}"


def _generic(f: Found) -> str:
    kind = f"{f.kind.replace('_', ' ')}: " if f.kind else ""
    return f"{kind}{amount(f, f.peak)} at {f.peak_at:%H:%M}"


def _duplicate_key(f: Found) -> str:
    keys = count(f.count, "key")
    match f.kind:
        case "applied_twice":
            return f"{keys} applied twice"
        case "other_payload":
            return f"{keys} used again with another payload"
        case "after_ttl":
            return f"{keys} used again after the TTL, and no longer known"
        case "concurrent":
            return f"{keys} in use twice at the same time"
        case "missing":
            return f"{count(f.count, 'retry', 'retries')} without a key, where other calls carry one"
        case _:
            return _generic(f)


def _concurrent_writers(f: Found) -> str:
    based = "same base_version" if f.facts["same_base"] == 1 else "by base_version"
    how = {"vector_clock": "by vector clocks", "base_version": based, "interval": "overlapping in time"}
    nodes = f.facts.get("nodes") or []
    who = f", {' and '.join(nodes)}" if len(nodes) == 2 else f", {', '.join(nodes)}" if nodes else ""
    return f"{count(f.peak, 'conflict')}/h{who}, {how[f.facts['how']]}"


def _idempotency_cache(f: Found) -> str:
    flush = ", all at once: emptied or restarted" if f.facts["flush"] else ""
    return f"{share(f.peak)} of {f.facts['lookups']:,} look-ups of known keys missed at {f.peak_at:%H:%M}{flush}"


def _clock_skew(f: Found) -> str:
    side = "ahead" if ahead(f) else "behind"
    assumed = ", if no message takes longer than assumed" if f.facts["assumes_delay"] else ""
    return f"{side} by {math.floor(f.peak):,} ms or more{assumed}{_whole_hours(f)}"


def _whole_hours(f: Found) -> str:
    """Where the bounds hold one number of whole hours, and hardly anything else."""
    low, high = f.facts["lower_ms"], f.facts["upper_ms"]
    if low is None or high is None or high - low >= MINUTE_MS:
        return ""
    hours = math.floor(high / HOUR_MS)
    return f": {abs(hours)} h fits, probably a time zone" if hours and low <= hours * HOUR_MS else ""


MINUTE_MS, HOUR_MS = 60_000, 3_600_000


def drift(f: Found) -> str:
    way, others = "forward" if f.facts["least"] > 0 else "back", f"{f.facts['nodes'] - 1} others"
    if f.kind == "step":
        return f"was set {way} by {f.peak:,.0f} ms or more, against {others}"
    way = "gains" if f.facts["least"] > 0 else "loses"
    return f"{way} {f.peak:.1f} ms or more a minute, against {others}"


def ahead(f: Found) -> bool:
    """Of a clock_skew finding: which side of the others the clock is on."""
    return (f.facts["lower_ms"] or 0) > 0


def impossible(f: Found) -> str:
    """12 rows dated 2099."""
    rows = count(f.count, "row")
    off = timedelta(seconds=f.facts["off_by_s"])
    match f.kind:
        case "back":
            return f"{rows} stamped before the row that came before, by up to {duration(off / SECOND)}"
        case "epoch":
            return f"{rows} with a garbage epoch"
        case _ if off <= YEAR:
            return f"{rows} {duration(off / SECOND)} {'ahead of' if f.kind == 'ahead' else 'older than'} their arrival"
    return f"{rows} dated {_stamped(f, off).year}"


def _stamped(f: Found, off: timedelta) -> datetime:
    """The worst stamp, to within a window: its arrival lies in the window of the peak. The window's end is taken, since
    garbage is dated the first of January more often than the last seconds of December."""
    arrived = f.peak_at + timedelta(microseconds=WINDOW_US - 1)
    return arrived + off if f.kind == "ahead" else arrived - off


SECOND, YEAR = timedelta(seconds=1), timedelta(days=365.2425)


def _heartbeat_loss(f: Found) -> str:
    silent, interval = duration(f.facts["silence_s"]), duration(f.facts["interval_s"])
    return f"silent for {silent}, {f.peak:,.0f} of its intervals of {interval}, as {f.facts['observer']} heard it"


def _retry_storm(f: Found) -> str:
    often = f"{f.peak:,.0f} retries/min"
    if f.kind == "metastable":
        wanted = (
            f"{f.facts['wanted_per_min']:,} calls/min are wanted, no more than before {f.facts['surge_per_min']:,} were"
        )
        return f"{often} keep {share(1 - f.facts['goodput'])} of attempts failing at {f.peak_at:%H:%M}: {wanted}"
    many = f"{often} at {f.peak_at:%H:%M}, {f.facts['share']:.1%} of {f.facts['attempts']:,} attempts"
    through, times = [n or UNTOLD for n in f.facts.get("through") or []], f.facts.get("layers")
    above = f"; x{times:.1f} over {' -> '.join(through)}" if len(through) > 2 else ""
    return f"{many}{above}{_waits(f)}" + (
        "; told from equal calls after a failed one" if f.facts.get("guessed") else ""
    )


def _waits(f: Found) -> str:
    """What callers should change about their waits, as far as anybody can say; nothing where these grow with jitter."""
    waits_ms, spread, course = (f.facts.get(n) for n in ("waits_ms", "jitter", "backoff"))
    if not waits_ms:
        return ""
    match course:
        case "immediate":
            return "; retried at once: add exponential backoff with jitter"
        case "fixed" if spread:
            return f"; retried after about {milliseconds(waits_ms[-1])} each time: let the backoff grow"
        case "fixed":
            return f"; retried after a fixed {milliseconds(waits_ms[-1])}: add exponential backoff with jitter"
        case _ if spread:
            return ""
        case None:
            return f"; retried after {_each(waits_ms)} without jitter: add it"
        case _:
            return f"; {course} backoff of {_each(waits_ms)} without jitter: add it"


def _each(waits_ms: Sequence[int]) -> str:
    return ", ".join(map(milliseconds, waits_ms))


def _ordering(f: Found) -> str:
    of = "of an hour " if is_time(f.onset) else ""
    return f"{f.facts['back']:,} of {f.facts['lines']:,} lines {of}count fewer of its own events than the line before"


def _pipeline(f: Found) -> str:
    if f.kind == "late_share":
        return f"{count(f.count, 'row')} too late to be judged, {share(f.facts['late_share'])} of ten minutes' rows"
    if f.kind in ("parked", "deleted"):
        which = f"{count(f.count, 'record')} (offsets {f.facts['first_offset']} to {f.facts['last_offset']})"
        return f"{which} {'set aside: measuring raised' if f.kind == 'parked' else 'deleted before they were read'}"
    if f.kind == "stray":
        late = duration(f.facts["behind_s"])
        return f"{count(f.count, 'row')} came up to {late} after their time was closed: not judged"
    if f.kind == "copies":
        return f"workers said {count(f.count, 'part')} of 2 s in two ways: the first of each counts"
    return f"append time stepped back by {duration(f.facts['step_back_s'])}, {count(f.count, 'row')}"


def _timeout_cascade(f: Found) -> str:
    traces, hop = count(f.peak, "trace"), f.facts["longest"]
    if f.kind == "over_budget":
        slow = f"{traces}/min took over {milliseconds(f.facts['budget_ms'])} at {f.peak_at:%H:%M}"
        return f"{slow}; longest hop {hop}, {milliseconds(f.facts['typical_ms'])} an attempt"
    deep = f", {f.facts['depth']} deep" if f.facts["depth"] > 1 else ""
    where = f"; longest hop {hop}, {milliseconds(f.facts['elapsed_ms'])} a trace" if hop else ""
    return f"{traces}/min with timeouts{deep} at {f.peak_at:%H:%M}{where}"


SENTENCES: dict[str, Words] = {
    "retry_storm": _retry_storm,
    "timeout_ratio": "{peak:.1%} timed out at {peak_at:%H:%M}, {timeouts:,} of {attempts:,}",
    "duplicate_key": _duplicate_key,
    "concurrent_writers": _concurrent_writers,
    "idempotency_cache": _idempotency_cache,
    "clock_skew": _clock_skew,
    "clock_drift": drift,
    "impossible_timestamp": impossible,
    "timeout_cascade": _timeout_cascade,
    "timeout_budget": "p99 uses {peak:.0f}% of the timeout, {headroom_ms:,.0f} ms are left",
    "heartbeat_loss": _heartbeat_loss,
    "ordering": _ordering,
    "pipeline": _pipeline,
}
