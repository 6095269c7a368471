"""[topics] of asynchealth.toml enters, the topics that hold a stream leave, each with the field map that reads it.

[topics]
otel-spans = "otlp"            # a map that comes with asynchealth
access-log = "maps/edge.toml"  # or a file of your own, from the folder of asynchealth.toml on

A topic of another name than its stream's that is in our own schema needs no map, only its stream:

[topics]
orders-audit = "write_log"
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from detectors.events import STREAMS
from streams.problems import Problem
from streams.settings import CONFIG, private, read
from streams.sources.decode import Reading
from streams.sources.fieldmap import ORDER, FieldMap, load, shipped

EXAMPLE = '[topics] otel-spans = "otlp", or = "maps/edge.toml", or = "requests" for our own schema'
OWN_ONLY = "signals"  # where our own canary goes


class SourceTopic(NamedTuple):
    name: str
    reading: Reading


def readings(path: Path = Path(CONFIG)) -> dict[str, Reading]:
    """What each topic that is named there is read as."""
    given = read(path).get("topics", {})
    if not isinstance(given, dict):
        raise Problem(f"{path}: topics", "not a table", EXAMPLE)
    hidden = private(path)
    return {topic: _reading(topic, how, path)._replace(private=hidden) for topic, how in given.items()}


def _reading(topic: str, how: object, path: Path) -> Reading:
    where = f"{path}: topics.{topic}"
    if not isinstance(how, str) or not how:
        raise Problem(where, f"{how!r} is no name of a map, of a file with one, or of a stream", EXAMPLE)
    if how in STREAMS:
        return Reading(how)
    ours = {m.name: m for m in shipped()}
    if how not in ours and not how.endswith(".toml"):
        known = ", ".join((*ours, *STREAMS))
        raise Problem(where, f"no map {how!r}: known are {known}, and files that end with .toml", EXAMPLE)
    return reading(ours[how] if how in ours else load(path.parent / how), topic, where)


def reading(given: FieldMap, topic: str, where: str) -> Reading:
    """A map for a topic's messages, each of which must tell by itself what it holds."""
    if given.kind == "csv":
        then = "write JSON to the topic, or read it as text with a pattern: asynchealth replay --map"
        raise Problem(where, "a message of Kafka has no line of names before it, and CSV needs one", then)
    if given.ordered:
        reason = f'timestamp = {{ from = "{ORDER}" }} is for files: between partitions messages have no order'
        raise Problem(where, reason, "take a time that the messages hold, or write them to a file and replay that")
    return Reading(given.stream, given.within(topic))


def sources(prefix: str = "", path: Path = Path(CONFIG)) -> list[SourceTopic]:
    """The topic of each stream: the one that is named for it, else the prefix and the stream."""
    named: dict[str, str] = {}
    every = readings(path)
    for topic, how in every.items():
        if how.stream == OWN_ONLY:
            reason = f"{OWN_ONLY} are read from {prefix}{OWN_ONLY} only, where a canary of our own goes through, too"
            raise Problem(f"{path}: topics.{topic}", reason, f"send yours to {prefix}{OWN_ONLY}")
        if how.stream in named:
            reason = f"{how.stream} come from {named[how.stream]} already, and a stream has one topic"
            raise Problem(f"{path}: topics.{topic}", reason, "an installation of its own: --prefix")
        named[how.stream] = topic
    hidden = private(path)
    return [
        SourceTopic(topic, every.get(topic, Reading(stream, None, hidden)))
        for stream, topic in {s: named.get(s, prefix + s) for s in STREAMS}.items()
    ]
