"""Concurrent writes: a source enters, the section leaves."""

from __future__ import annotations

from streams.report.evidence import served_by
from streams.report.morning.section import Section, Source, first_of, level, of_service, unknown
from streams.report.reach import NOT_COMPARED, compared
from streams.report.sentences import count


def races(s: Source) -> Section:
    found = s.of("concurrent_writers")
    head = ("race_conditions", "🔀", "RACE CONDITIONS")
    if why := s.blind("concurrent_writers"):
        return unknown(head, why)
    if not found:
        served = f" OR {served_by(s.con, s.wanted.service)}" if s.wanted.service else ""
        asked = f"({of_service(s, 'service_name')}{served}) AND {s.time('arrival')}"
        why = s.not_kept() or ("" if compared(s.con) else NOT_COMPARED)
        written = compared(s.con, asked, s.arrived) if s.wanted.service else _written(s)
        if why := why or ("" if written else s.nothing("comparable write")):
            return unknown(head, why)
        return Section(*head, "ok", "None detected ✅", numbers={"incidents": 0})
    shown, more = first_of(found)
    lines = [(f"- {f.name}:", f"{count(f.peak, 'conflict')}/hour") for f in shown]
    conflicts = {f.subject: f.peak for f in found}
    numbers = {"incidents": len(found), "conflicts_per_hour": conflicts}
    incidents = count(len(found), "incident")
    return Section(*head, level(found), incidents, lines, found, numbers, "Review optimistic lock", more=more)


def _written(s: Source) -> bool:
    """Whether there was any write in this time."""
    sql = f"SELECT 1 FROM accounting WHERE stream = 'write_log' AND used > 0 AND {s.time('minute')} LIMIT 1"
    return bool(s.ask(sql))
