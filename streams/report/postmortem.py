"""An incident enters, its post-mortem leaves as Markdown: what it cost, what happened, why, and what is to be done.

Each part stands between two marks, with a hash of what was written there. Made again, a part that nobody changed is
renewed, one that somebody changed stays theirs, and so does all that stands outside.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.resources import files

import duckdb
import msgspec
import xxhash
from markdown_it import MarkdownIt

from streams.report.corrected import MS
from streams.report.damage import Damage, damage
from streams.report.evidence import Row, fetch, instant, rows_at
from streams.report.explain import uses_of
from streams.report.found import OPEN, UNKNOWN, Filter, Found, Invoke
from streams.report.incidents import BEFORE as CHANGED
from streams.report.incidents import Book, Incident, unknown
from streams.report.render import markdown, page
from streams.report.sentences import count, duration, sentence
from streams.report.timeline import SIGNALS_MOST, Entry, Timeline, spoken, timeline
from streams.said import Word

BEFORE = timedelta(minutes=10)  # signals so long before it are on its timeline
SHOWN = 20  # doubled effects that are listed; the CSV has all


@dataclass(frozen=True)
class PostMortem:
    """What the document is made of."""

    incident: Incident
    found: list[Found]
    timeline: Timeline
    damage: list[Damage]
    told: list[Word]  # whom, and when

    @property
    def gone(self) -> int:
        """How many doubled effects were found whose rows have left the state since."""
        return sum(f.count for f in self.found if _impact_name(f) == "duplicate_key.applied_twice") - len(self.damage)


def gather(con: duckdb.DuckDBPyConnection, i: Incident, book: Book, notes: Sequence[Entry] = ()) -> PostMortem:
    """notes: beside what people said of the incident itself."""
    found = book.of(i)
    since, until = lasted(found)
    wanted = Filter(since - BEFORE, until + timedelta(minutes=1))
    said = book.about(i)
    happened = timeline(con, book.span, wanted, [f.finding_id for f in found], [*spoken(said), *notes])
    return PostMortem(i, found, happened, damage(con, found), [w for w in said if w.what == "notified"])


def proof(con: duckdb.DuckDBPyConnection, p: PostMortem, since: datetime) -> list[Row]:
    """What a bundle needs of before its begin: rows that prove the findings, and changes that came shortly before."""
    uses = [u for f in p.found if f.detector == "duplicate_key" for u in uses_of(con, f)]
    records = {r for u in uses for r in (u.record, u.earlier)} | {r for f in p.found for r in f.proof}
    records |= {r for d in p.damage for r in d.client_records.split()}
    begun = lasted(p.found)[0] - CHANGED
    changes = f"kind = 'change' AND timestamp BETWEEN {instant(begun)} AND {instant(since)}"
    return rows_at(con, sorted(records)) + fetch(con, "signals", changes, limit=SIGNALS_MOST)


def lasted(found: Sequence[Found]) -> tuple[datetime, datetime]:
    """From the first onset until the last is known to be over."""
    ends = [f.resolved or f.last for f in found]
    return min(f.onset for f in found), max(ends)


# ---- its parts ------------------------------------------------------------------------------------------------------


def parts(p: PostMortem, book: Book) -> dict[str, str]:
    """Markdown by the name of the part, in the order of the document."""
    return {
        "summary": "\n".join(_summary(p, book)),
        "detection": "\n".join(_detection(p)),
        "timeline": "\n".join(_timeline(p, book.invoke)),
        "root cause": "\n".join(_causes(p, book)),
        "action items": "\n".join(_actions(p)),
        "damage": "\n".join(_damage(p, book.invoke)),
    }


def _summary(p: PostMortem, book: Book) -> Iterator[str]:
    i, found = p.incident, p.found
    begins, ends = min(f.onset for f in found), max(f.last for f in found)
    end = book.between(i)[1]
    more = {OPEN: " so far", UNKNOWN: " or more"}.get(end, "")
    yield "# Async Incident Post-Mortem"
    yield ""
    yield f"**Incident ID**: {i.incident_id}  "
    took = duration((ends - begins).total_seconds())
    until = end if more else _when(ends)
    yield f"**Duration**: {took}{more}, {_when(begins)} - {until} UTC  "
    yield f"**Impact**: {'; '.join(impact(found)) or 'nothing that was counted'}  "
    yield f"**Level**: {i.level}, {book.state(i)}  "
    for who in book.contacts(i)[:1]:
        yield f"**Called**: {markdown(who)}"


IMPACT = {
    "duplicate_key.applied_twice": ("effect made twice", "effects made twice"),
    "duplicate_key": ("unsafe use of a key", "unsafe uses of a key"),
    "retry_storm": ("retry", "retries"),
    "retry_storm.metastable": ("retry after the load was back", "retries after the load was back"),
    "timeout_ratio": ("attempt timed out", "attempts timed out"),
    "concurrent_writers": ("write that did not know of another", "writes that did not know of each other"),
    "impossible_timestamp": ("row with a stamp that can't be true", "rows with stamps that can't be true"),
}


def impact(found: Sequence[Found]) -> Iterator[str]:
    """How many of what they hit, what can't be undone first."""
    for name, words in IMPACT.items():
        for f in found:
            if _impact_name(f) == name:
                yield f"{count(f.count, *words)} ({markdown(f.name)})"


def _impact_name(f: Found) -> str:
    own = f"{f.detector}.{f.kind}"
    return own if own in IMPACT else f.detector


def _when(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"


def _detection(p: PostMortem) -> Iterator[str]:
    """From the first row that contributed to the moment when it could be read, and to those when people were told."""
    yield "## Detection"
    yield ""
    yield "| Finding | Subject | First row | Could be read | After |"
    yield "|---|---|---|---|---|"
    detected = [(f, *_detected(p, f)) for f in sorted(p.found, key=lambda f: f.onset)]
    for f, begun, read in detected:
        cells = (f"{f.short} {f.detector}", markdown(f.name), f"{begun:%H:%M:%S}", f"{read:%H:%M:%S}" if read else "-")
        yield f"| {' | '.join([*cells, _between(begun, read) if read else 'unknown'])} |"
    yield ""
    if not p.told:
        yield "When people were told is not in this state: the receiver of `asynchealth notify` knows."
        return
    first = p.told[0].at
    after = [f"{_between(min(begun for _, begun, _ in detected), first)} after the first row"]
    if could := [read for *_, read in detected if read]:
        after.append(f"{_between(min(could), first)} after it could be read")
    yield f"People were first told at {_when(first)} UTC, {', '.join(after)}:"
    yield ""
    yield from (f"- **{w.at:%H:%M:%S}** - {markdown(w.by)}: {markdown(w.note)}" for w in p.told)


def _detected(p: PostMortem, f: Found) -> tuple[datetime, datetime | None]:
    """When its first row was written, and when it could be read."""
    read = min((e.readable for e in p.timeline.entries if e.finding == f.finding_id and e.readable), default=None)
    rows = [e.at for e in p.timeline.entries if e.what == "event" and e.evidence[0] in f.proof]
    begun = max(f.onset, min(rows, default=f.onset))
    return (begun if read is None or begun <= read else f.onset), read  # its first rows may have left the state


def _between(begin: datetime, end: datetime) -> str:
    return duration((end - begin).total_seconds())


def _timeline(p: PostMortem, invoke: Invoke) -> Iterator[str]:
    yield "## Timeline"
    yield ""
    for e in p.timeline.entries:
        if e.what == "event":
            continue
        proof = f" ({e.evidence[0]})" if e.evidence else ""
        level = f"{e.level.upper()} " if e.level else ""
        yield f"- **{e.at:%H:%M:%S}** - {level}{markdown(e.subject)}: {markdown(e.words)}{proof}"
    rows = sum(e.what == "event" for e in p.timeline.entries)
    yield ""
    yield f"{count(rows, 'row')} that prove it: `{invoke(f'timeline {p.incident.short}')}`"


def _causes(p: PostMortem, book: Book) -> Iterator[str]:
    """The chain, root first: each with its numbers, and why it follows from the one before."""
    names = {f.finding_id: f for f in p.found}
    because = {e["effect"]: e for e in p.incident.chain if not e["ruled_out"] and e["cause"] in names}
    yield "## Root Cause"
    yield ""
    for number, f in enumerate(p.found, 1):
        why = because.get(f.finding_id)
        reason = f", since {why['reason']} ({names[why['cause']].short})" if why else ""
        yield f"{number}. **{f.detector} {markdown(f.name)}** ({f.short}): {markdown(sentence(f))}{reason}"
    yield ""
    yield f"Behind it: {markdown(unknown(book.con, p.found[0]))}"
    for e in p.incident.chain:
        if e["ruled_out"] and e["effect"] in names and e["cause"] in book.findings:
            other = book.findings[e["cause"]]
            said = f"{other.detector} {markdown(other.name)} ({other.short})"
            yield f"\nNot the cause of {names[e['effect']].short}: {said}, since {markdown(e['reason'])}"


class Action(msgspec.Struct, forbid_unknown_fields=True):
    priority: str
    text: str


def actions() -> dict[str, list[Action]]:
    """By detector, or detector.kind."""
    text = files("streams.report").joinpath("actions.toml").read_text()
    return msgspec.convert(tomllib.loads(text), dict[str, list[Action]])


def actions_for(found: Sequence[Found]) -> list[Action]:
    """Each once, the urgent ones first."""
    known = actions()
    mine: dict[str, Action] = {}
    for f in found:
        for a in known.get(f"{f.detector}.{f.kind}", known.get(f.detector, [])):
            said = a.text.format(subject=f.name)
            mine.setdefault(said, Action(a.priority, said))
    return sorted(mine.values(), key=lambda a: a.priority)


def _actions(p: PostMortem) -> Iterator[str]:
    yield "## Action Items"
    yield ""
    for a in actions_for(p.found):
        yield f"- [ ] {markdown(a.text)} ({a.priority})"


def _damage(p: PostMortem, invoke: Invoke) -> Iterator[str]:
    yield "## Damage"
    yield ""
    if p.gone:
        yield f"{count(p.gone, 'effect')} made twice can't be listed: their rows are not in this state any more."
    if not p.damage:
        yield from () if p.gone else ("No effect was seen to be made twice.",)
        return
    if p.gone:
        yield ""
    proven = sum(d.certain for d in p.damage)
    yield f"{count(len(p.damage), 'effect')} made twice, {proven} of them certain."
    yield ""
    yield "| Key | First effect | Second effect | Between, ± ms | Rows |"
    yield "|---|---|---|---|---|"
    for d in p.damage[:SHOWN]:
        ends = (f"{at:%H:%M:%S.%f}"[:-3] + f" {markdown(node)}" for at, node in _ends(d))
        rows = " ".join([d.first_record, d.second_record, d.client_records])
        error = "unknown" if d.error_ms is None else f"{d.error_ms:.0f}"
        between = f"{(d.second_applied - d.first_applied) / MS:,.0f} ± {error}"
        between += "" if d.order == "certain" else f", order {d.order}"
        yield f"| {markdown(d.idempotency_key)} | {next(ends)} | {next(ends)} | {between} | {rows} |"
    yield ""
    left = f"{len(p.damage) - SHOWN:,} more are not shown. " if len(p.damage) > SHOWN else ""
    yield f"{left}All as CSV: `{invoke(f'postmortem {p.incident.short} --damage damage.csv')}`"


def _ends(d: Damage) -> list[tuple[datetime, str]]:
    return [(d.first_applied, d.first_node), (d.second_applied, d.second_node)]


# ---- the document ---------------------------------------------------------------------------------------------------

PART = re.compile(r"<!-- (?P<name>[a-z ]+) (?P<hash>[0-9a-f]{16}) -->\n(?P<text>.*?)\n<!-- end -->", re.DOTALL)
OWN = "<!-- Yours: what stands outside of the marks, and each part that you change, stays when this is made again. -->"


def document(made: dict[str, str]) -> str:
    return "\n\n".join([OWN, *(_marked(name, text) for name, text in made.items())]) + "\n"


def _marked(name: str, text: str) -> str:
    return f"<!-- {name} {_hash(text)} -->\n{text}\n<!-- end -->"


def _hash(text: str) -> str:
    return xxhash.xxh3_64_hexdigest(text.encode())


def renewed(old: str, made: dict[str, str]) -> tuple[str, list[str], list[str]]:
    """(the document with the parts that nobody changed made anew, names of those that stay, names that are gone)."""
    kept: list[str] = []
    seen: list[str] = []

    def one(m: re.Match[str]) -> str:
        seen.append(m["name"])
        if m["name"] not in made:
            return m[0]
        if _hash(m["text"]) != m["hash"]:
            kept.append(m["name"])
            return m[0]
        return _marked(m["name"], made[m["name"]])

    text = PART.sub(one, old)
    return text, kept, [n for n in made if n not in seen]


def incident_in(document: str) -> str | None:
    """The id of the incident that a document is about; None where it has no marks."""
    if not PART.search(document):
        return None
    found = re.search(r"\*\*Incident ID\*\*: (\S+)", document)
    return found[1] if found else ""


def html(text: str, title: str) -> str:
    """The document, a person's words included, as one page; tags that somebody wrote are shown, not obeyed."""
    plain = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    boxed = re.sub(r"^(\s*[-*] )\[( |x)\]", lambda m: m[1] + ("☑" if m[2] == "x" else "☐"), plain, flags=re.MULTILINE)
    return page(title, MarkdownIt("commonmark", {"html": False}).enable("table").render(boxed))
