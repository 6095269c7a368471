"""What can't be seen enters, and why; the doctor's screen leaves: coverage, delay, gaps, stamps, sampling, versions."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from detectors.detector import Detector
from streams.again import lateness_of
from streams.coverage import Seen, seen, unlocks
from streams.landing.state import formats_of, has
from streams.problems import few
from streams.report.coverage import WIDTH, in_short
from streams.report.found import NO_TIMES, Filter, Invoke, Sight, Span, is_time
from streams.report.reach import cannot_say
from streams.report.sentences import count, duration, share
from streams.report.sources import STEP_US, Delay, Source, grouped, lateness_us, sources, span_words

SHOWN = 12  # sources with the longest delays, and gaps
UNITS = {"s": "1 s", "ms": "1 ms", "us": "1 µs"}
US = 1_000_000


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found. seen: over all sources; of_group: of sources that are alike, each detector that reads
    them; late_us: the lateness in use, proposed_us: the one that hardly any row exceeds, if arrivals tell."""

    seen: Sequence[Seen]
    of_group: Sequence[tuple[Sequence[Source], Sequence[Seen]]]
    sources: Sequence[Source]
    formats: dict[str, set[str]]
    unsaid: Sequence[str]
    late_us: int
    proposed_us: int | None
    live: bool
    versions: dict[str, str]
    clashes: Sequence[tuple[str, str]]


def diagnose(
    con: duckdb.DuckDBPyConnection,
    detectors: Sequence[Detector],
    sight: dict[str, Sight],
    span: Span,
    installed: tuple[dict[str, str], Sequence[tuple[str, str]]],
    live: bool,
) -> Diagnosis:
    """installed: versions and clashes; live: whether a lander feeds the state."""
    filled = {
        (s, f): (n, k) for s, f, n, k in con.execute("SELECT stream, field, rows, filled FROM coverage").fetchall()
    }
    every = sources(con, span.last)
    groups = []
    for some in grouped(every):
        mine = [d for d in detectors if some[0].stream in d.reads.streams]
        groups.append((some, [seen(d, some[0].covered) for d in mine]))
    return Diagnosis(
        seen=[seen(d, filled, lambda table: has(con, table)) for d in detectors],
        of_group=groups,
        sources=every,
        formats=formats_of(con),
        unsaid=_unsaid(con, sight),
        late_us=lateness_of(con),
        proposed_us=lateness_us(every),
        live=live,
        versions=installed[0],
        clashes=installed[1],
    )


def screen(d: Diagnosis, span: Span, invoke: Invoke) -> Iterator[str]:
    yield from in_short(d.seen, d.formats)
    yield from _coverage(d)
    yield from (f"Cannot say: {line}" for line in d.unsaid)
    yield ""
    yield from _fields(d)
    yield ""
    yield from _delays(d, invoke)
    yield ""
    yield from _gaps(d, span)
    yield from _stamps(d)
    yield from _sampling(d)
    yield from _rejected(d, invoke)
    yield from _installed(d)
    yield "blind = it can't judge there; degraded = it judges, and sees less; % = of a source's rows that fill it."
    yield f"Next: {invoke('why-not')}"


def _unsaid(con: duckdb.DuckDBPyConnection, sight: dict[str, Sight]) -> list[str]:
    """What detectors that are not blind could not judge."""
    blind = tuple(f"{s.detector} (" for s in sight.values() if s.blind)
    return [said for said in cannot_say(con, sight, Filter()) if not said.startswith(blind)]


# ---- coverage -------------------------------------------------------------------------------------------------------


def _coverage(d: Diagnosis) -> Iterator[str]:
    """Of each detector where it runs, and where not or with less, for want of which field."""
    yield "DETECTOR              SEES      WHERE, AND FOR WANT OF WHAT"
    for whole in d.seen:
        for i, line in enumerate(_of_detector(d, whole)):
            yield f"{'' if i else whole.detector:<20}  {line}"


def _of_detector(d: Diagnosis, whole: Seen) -> Iterator[str]:
    parts = [(some, s) for some, several in d.of_group for s in several if s.detector == whole.detector]
    if whole.state == "blind" and all(s.state != "blind" for _, s in parts):  # for want of a stream, or of any row
        yield f"{'blind':<8}  no {', '.join(whole.missing)} in any source"
        return
    for state, want in sorted({(s.state, _want(s)) for _, s in parts}, key=lambda x: (x[0] != "runs", x)):
        alike = [(some, s) for some, s in parts if (s.state, _want(s)) == (state, want)]
        told = f"{state:<8}  {', '.join(label(some) for some, _ in alike)}{': ' if want else ''}{want}"
        yield from textwrap.wrap(told, WIDTH - 22, subsequent_indent=" " * 10, break_on_hyphens=False)
        formats = {some[0].stream: {some[0].format} for some, _ in alike}
        if state != "runs":
            yield from (f"{'':<10}{u.words}" for u in unlocks([s for _, s in alike], formats) if u.line)


def _want(s: Seen) -> str:
    if s.missing:
        return f"no {', '.join(s.missing)}"
    return "; ".join(f"no {field} ({so})" for field, so in s.lacks)


def label(some: Sequence[Source]) -> str:
    return some[0].name + (f" and {len(some) - 1} more" if len(some) > 1 else "")


def _fields(d: Diagnosis) -> Iterator[str]:
    yield "SOURCES AND THE FIELDS THEY FILL"
    for some, _ in d.of_group:
        first, rows = some[0], sum(s.rows for s in some)
        own = {f: sum(s.filled[f] for s in some) / rows for f in first.optional}
        told = ", ".join(f if x == 1 else f"{f} {_part(x)}" for f, x in own.items()) or "only what it must"
        head = f"{label(some)} ({first.format} → {first.stream}, {count(rows, 'row')}): "
        yield from textwrap.wrap(head + told, WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def _part(x: float) -> str:
    return share(x) if x >= 0.001 else "under 0.1%"


# ---- delay ----------------------------------------------------------------------------------------------------------


def _delays(d: Diagnosis, invoke: Invoke) -> Iterator[str]:
    told = [(s, s.delay) for s in d.sources if s.delay and s.delay.rows]
    if not told:
        yield "DELAY   unknown: no source records when its rows arrived, so none is late and silence can't be told"
        return
    shown = sorted(told, key=lambda t: (-t[1].p999_us, t[0].name))[:SHOWN]
    heads = ("DELAY (arrival - event time)", "ROWS", "MEDIAN", "99%", "99.9%", "MOST", f"OVER {span_words(d.late_us)}")
    yield from _columns(
        heads, [(s.name, f"{x.rows:,}", *_quantiles(x), f"{x.later_than(d.late_us):,}") for s, x in shown]
    )
    if len(told) > len(shown):
        yield f"  and {count(len(told) - len(shown), 'source')} with less"
    yield _proposal(d, [x for _, x in told], invoke)


def _quantiles(x: Delay) -> Iterator[str]:
    for us in (x.median_us, x.p99_us, x.p999_us, x.most_us):
        yield duration(us / US) if us >= 120 * US else f"{us / US:.1f} s"


def _proposal(d: Diagnosis, told: Sequence[Delay], invoke: Invoke) -> str:
    rows = sum(x.rows for x in told)
    late, then = (sum(x.later_than(us) for x in told) for us in (d.late_us, d.proposed_us or d.late_us))
    now = f"With the lateness of {span_words(d.late_us)}, {late:,} of {count(rows, 'row')} ({late / rows:.2%}) are late"
    if d.proposed_us is None or d.proposed_us == d.late_us:
        return f"{now}: enough."
    wanted = span_words(d.proposed_us)
    if d.proposed_us < d.late_us:
        return f"{now}; {wanted} would leave {then:,}: {invoke(f'rebuild --lateness {wanted}')}"
    if d.live:
        return f"{now}; {wanted} would leave {then:,}, but live it is {span_words(d.late_us)}: ship sooner, or replay kafka://"
    return f"{now}; {wanted} would leave {then:,}: {invoke(f'rebuild --lateness {wanted}')}"


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(r[i]) for r in (heads, *rows)) for i in range(len(heads))]
    for row in (heads, *rows):
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        yield "  ".join(cells).rstrip()


# ---- the rest -------------------------------------------------------------------------------------------------------


def _gaps(d: Diagnosis, span: Span) -> Iterator[str]:
    every = [(s, g) for s in d.sources for g in s.gaps]
    if not is_time(span.last):
        yield "GAPS      unknown: no source has times"
        return
    if not every:
        yield "GAPS      none: no source is silent for five minutes"
        return
    longest = sorted(every, key=lambda x: (x[1].since - x[1].until, x[0].name))
    for i, (s, g) in enumerate(longest[:SHOWN]):
        lasted = duration((g.until - g.since).total_seconds())
        ends = " to the end of the data" if g.until == span.last else f" - {span.clock(g.until)}"
        yield f"{'' if i else 'GAPS':<10}{s.name}: nothing for {lasted}, {span.clock(g.since)}{ends}"
    if len(longest) > SHOWN:
        yield f"{'':<10}and {len(longest) - SHOWN} shorter ones"


def _stamps(d: Diagnosis) -> Iterator[str]:
    """To what stamps are told, and those that seem to be of another zone."""
    timed = [s for s in d.sources if is_time(s.last)]
    units = {u: [s for s in timed if s.unit == u] for u in UNITS}
    told = [f"to {UNITS[u]}: {_names(some)}" for u, some in units.items() if some]
    ordered = [s for s in d.sources if s not in timed]
    yield f"STAMPS    {'; '.join([*told, *([f'{NO_TIMES}: {_names(ordered)}'] if ordered else [])])}"
    for s in d.sources:
        if s.delay and s.delay.zone_us:
            hours = abs(s.delay.zone_us) / 3600 / US
            side = "behind" if s.delay.zone_us > 0 else "ahead of"
            sign = "-" if s.delay.zone_us > 0 else "+"
            offset = f"{sign}{int(hours):02}:{round(hours % 1 * 60):02}"
            yield f'{"":<10}{s.name}: {hours:g} h {side} their arrival. Local times? In its map: zone = "{offset}"'


def _names(some: Sequence[Source]) -> str:
    return few([s.name for s in some], 4)


def _sampling(d: Diagnosis) -> Iterator[str]:
    some = [s for s in d.sources if s.sampled]
    if not some:
        yield "SAMPLING  none: every row has weight 1"
    for i, s in enumerate(some):
        each = f"{s.name}: {share(s.sampled / s.rows)} of its rows stand for others, up to {s.max_weight:,} each"
        yield f"{'' if i else 'SAMPLING':<10}{each}"
    if some:
        yield f"{'':<10}Counts are weighted. What happened once is a lower bound there, and silence is unknown."


def _rejected(d: Diagnosis, invoke: Invoke) -> Iterator[str]:
    some = [s for s in d.sources if s.rejected]
    for i, s in enumerate(sorted(some, key=lambda s: -s.rejected)[:SHOWN]):
        yield f"{'' if i else 'REJECTED':<10}{s.name}: {s.rejected:,}, most often {s.rejected_most}"
    if len(some) > SHOWN:
        yield f"{'':<10}and {count(len(some) - SHOWN, 'source')} with no more than that"
    if some:
        yield f"{'':<10}{invoke('sql @rejected_rows')}"


def _installed(d: Diagnosis) -> Iterator[str]:
    told = ", ".join(f"{n} {v}" for n, v in d.versions.items())
    yield from textwrap.wrap(f"VERSIONS  {told}", WIDTH, subsequent_indent=" " * 10, break_on_hyphens=False)
    if not d.clashes:
        yield "NAMES     no other package has modules named streams or detectors"
    for i, (module, who) in enumerate(d.clashes):
        head = "" if i else "NAMES"
        yield f"{head:<10}{who} has a module {module}, too: one hides the other; give asynchealth a venv of its own"


# ---- for machines ---------------------------------------------------------------------------------------------------


def data(d: Diagnosis) -> dict[str, Any]:
    return {
        "detectors": [
            {"detector": s.detector, "state": s.state, "missing": s.missing, "lacks": dict(s.lacks)} for s in d.seen
        ],
        "sources": [_source(s, d) for s in d.sources],
        "unlock": [{"field": u.field, "format": u.format, "line": u.line or None} for u in unlocks(d.seen, d.formats)],
        "cannot_say": d.unsaid,
        "lateness_s": d.late_us / US,
        "proposed_lateness_s": None if d.proposed_us is None else d.proposed_us / US,
        "versions": d.versions,
        "clashes": [{"module": m, "also_in": who} for m, who in d.clashes],
    }


def _source(s: Source, d: Diagnosis) -> dict[str, Any]:
    (several,) = [every for some, every in d.of_group if s in some]
    delay = s.delay and {
        "rows": s.delay.rows,
        "median_s": s.delay.median_us / US,
        "p99_s": s.delay.p99_us / US,
        "p999_s": s.delay.p999_us / US,
        "most_s": s.delay.most_us / US,
        "late": s.delay.later_than(d.late_us),
        "zone_s": s.delay.zone_us / US,
        "resolution_s": STEP_US / US,
    }
    return {
        "stream": s.stream,
        "source": s.name,
        "format": s.format,
        "rows": s.rows,
        "first": s.first if is_time(s.last) else None,
        "last": s.last if is_time(s.last) else None,
        "fields": s.optional,
        "detectors": {x.detector: {"state": x.state, "wanted": x.wanted} for x in several},
        "delay": delay,
        "gaps": [{"since": g.since, "until": g.until} for g in s.gaps],
        "stamps_to": UNITS[s.unit],
        "sampled": s.sampled,
        "max_weight": s.max_weight,
        "rejected": s.rejected,
    }
