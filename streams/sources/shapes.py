"""The first lines of a log enter, how its records are read leaves: for lines of text the pattern that reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from streams.sources.formats import of_file, of_text

Kind = Literal["json", "csv", "text"]


class Shape(NamedTuple):
    """How a log is read, in the words of a map; why: what lines of that pattern are."""

    format: Kind = "json"
    members: str = ""
    line: str = ""
    why: str = ""


QUOTED = r'"(?P<{}>(?:[^"\\]|\\.)*)"'
ACCESS = (
    r"(?P<remote_addr>\S+) \S+ (?P<remote_user>\S+) \[(?P<time_local>[^\]]+)\] "
    + QUOTED.format("request")
    + r" (?P<status>\d{3}) (?P<bytes>\d+|-)"
)
COMBINED = f"{ACCESS} {QUOTED.format('referer')} {QUOTED.format('user_agent')}"
TOOK = r" (?P<request_time>\d+(?:\.\d+)?)"
TIMED = (
    r"\[?(?P<time>\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?: ?(?:Z|[+-]\d\d:?\d\d))?)\]?"
    r"(?: +\[?(?P<level>TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|CRITICAL|FATAL|SEVERE)\]?)?"
    r"(?: +\[(?P<thread>[^\]]*)\])?[ :-]+(?P<pairs>[^ :-].*=.*)"
)
BALANCER = (  # its own time is a request's end; when it began stands behind it
    r"(?:https?|h2|wss?|grpcs?) (?P<end_time>\S+) (?P<balancer>\S+) (?P<client>\S+) (?P<server>\S+) \S+"
    r" (?:-[\d.]+|(?P<service_time_s>[\d.]+)) \S+ (?P<status>\d{3}|-) \S+ \d+ \d+ "
    + f"{QUOTED.format('request')} {QUOTED.format('user_agent')}"
    + r' \S+ \S+ (?:-|\S*targetgroup/(?P<backend>[^/\s]+)\S*) "(?P<trace>[^"]*)" "[^"]*" "[^"]*" \S+'
    r" (?P<start_time>\S+) .*"
)
PAIRS = r"(?P<pairs>[A-Za-z_][\w.-]*=.*\s[A-Za-z_][\w.-]*=.*)"
KNOWN = (
    Shape("text", line=COMBINED + TOOK, why="lines of an access log in the combined format, and a request's time"),
    Shape("text", line=COMBINED, why="lines of an access log in the combined format"),
    Shape("text", line=ACCESS + TOOK, why="lines of an access log in the common format, and a request's time"),
    Shape("text", line=ACCESS, why="lines of an access log in the common format"),
    Shape("text", line=BALANCER, why="lines of an application load balancer of AWS"),
    Shape("text", line=TIMED, why="lines of a time, perhaps a level and a name in brackets, and key=value"),
    Shape("text", line=PAIRS, why="lines of key=value"),
)
FITS = 0.95  # of the lines that begin a record
GOES_ON = re.compile(rb"\s|(Caused by|Suppressed): |Traceback \(|[\w.$]+(Exception|Error)\b")  # as a stack trace does


def shape_of(lines: Sequence[bytes]) -> Shape | None:
    """That of the first pattern that reads nearly all lines; those of stack traces between them are none."""
    begun = [line for line in lines if not GOES_ON.match(line)]
    return next((known for known in KNOWN if begun and fitting(known, begun) >= FITS * len(begun)), None)


def fitting(known: Shape, lines: Sequence[bytes]) -> int:
    """How many lines it reads."""
    _, found = of_file(of_text(known.line), lines)
    return len(found.events)


def nearest(lines: Sequence[bytes]) -> str:
    """Of lines that no pattern fits, what fits the most."""
    most, known = max(((fitting(known, lines), known) for known in KNOWN), key=lambda pair: pair[0])
    return f"{most:,} are {known.why}, and {FITS:.0%} are needed" if most else "no known pattern of text fits one"
