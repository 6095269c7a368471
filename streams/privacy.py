"""The table [privacy] of asynchealth.toml enters, rows without what nobody may keep leave.

[privacy]
drop = ["requests.error", "text"]         # fields as STREAM.FIELD, or of all streams that have one of this name
hash = ["node_id", "idempotency_key"]     # texts; with each all that hold names of its kind
key_file = "privacy.key"                  # from here on; ASYNCHEALTH_PRIVACY_KEY is stronger

A hash is a function of key and text alone, so that what is equal stays equal wherever it stands. Of a rejected record
its place, its field and what is wrong remain, never what it held.
"""

from __future__ import annotations

import os
import re
from base64 import b32encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from detectors.events import CLOCK, STREAMS, Decoded, Field, fields
from streams.live import canary
from streams.problems import Problem

KEY = "ASYNCHEALTH_PRIVACY_KEY"
SHORTEST = 16  # characters of a key
EXAMPLE = 'write it as in: privacy = { drop = ["requests.error"], hash = ["node_id"], key_file = "privacy.key" }'
MAKE = "head -c 32 /dev/urandom | base64 > privacy.key"
DIGEST = 10  # bytes: of 10^8 names two share a hash once in 10^8 installations
HASHED = re.compile("h_[a-z2-7]{16}")
KINDS = (  # fields that may hold the same name
    ("node_id", "peer_node", "observer", "leader", "seq_scope", "vector_clock", "subject"),
    ("service_name", "caller", "subject"),
    ("span_id", "parent_span_id"),
)
QUOTED = "(?s)['\"].*"  # from here on a reason may say what stood in the record


@dataclass(frozen=True)
class Privacy:
    """By stream the fields that are dropped and those that are hashed. by: what tells these rules, and this key, from
    others."""

    dropped: Mapping[str, Sequence[Field]]
    hashed: Mapping[str, Sequence[Field]]
    key: bytes = field(repr=False)

    @property
    def by(self) -> str:
        rules = {s: [[f.name for f in some[s]] for some in (self.dropped, self.hashed)] for s in STREAMS}
        return blake2b(msgspec.json.encode(rules), key=self.key, digest_size=8).hexdigest()

    def name(self, text: str) -> str:
        """A text as it is kept; nothing stays nothing."""
        digest = blake2b(text.encode(), key=self.key, digest_size=DIGEST).digest()
        return f"h_{b32encode(digest).decode().lower()}" if text else ""

    def service(self, text: str) -> str:
        """A service of asynchealth.toml, under its name or as screens show it, as rows have it."""
        hides = any(f.name == "service_name" for f in self.hashed["requests"])
        return self.name(text) if hides and not HASHED.fullmatch(text) else text

    def kept(self, stream: str, decoded: Decoded, foreign: str = "") -> Decoded:
        """foreign: the format, where another's decoder read the records, whose reasons may say anything."""
        reason = pl.col("reason").str.replace(QUOTED, "…")
        if foreign:
            reason = pl.when(pl.col("field") == "").then(pl.lit(f"not {foreign}")).otherwise(reason)
        rejects = decoded.rejects.with_columns(reason.alias("reason"), raw=pl.lit(""))
        return replace(decoded, events=self._kept(stream, decoded.events), rejects=rejects)

    def _kept(self, stream: str, events: pl.DataFrame) -> pl.DataFrame:
        defaults = {f.name: _default(stream, f) for f in self.dropped[stream]}
        left = events.with_columns(**defaults)
        hidden = left.with_columns(self._hashed(left[f.name]) for f in self.hashed[stream])
        ours = canary.ours(stream)
        changed = (f.name for f in (*self.dropped[stream], *self.hashed[stream]))
        same = (pl.when(events.select(ours).to_series()).then(events[n]).otherwise(n).alias(n) for n in changed)
        return hidden.with_columns(same) if stream == canary.STREAM else hidden

    def _hashed(self, column: pl.Series) -> pl.Series:
        names = column if column.dtype == pl.String else column.explode().struct.field("key")
        known = names.unique().drop_nulls()
        hidden = pl.Series([self.name(n) for n in known], dtype=pl.String)

        def of(name: pl.Expr) -> pl.Expr:
            return name.replace_strict(known, hidden, default=None, return_dtype=pl.String)

        if column.dtype == pl.String:
            return column.to_frame().select(of(pl.col(column.name))).to_series()
        node, count = of(pl.element().struct.field("key")), pl.element().struct.field("value")
        ordered = pl.struct(key=node, value=count).sort_by(node)
        return column.to_frame().select(pl.col(column.name).list.eval(ordered)).to_series()


def _default(stream: str, of: Field) -> pl.Expr:
    """What stands where an event does not have the field."""
    if (stream, of.name) == ("heartbeats", "timestamp"):
        return pl.col("server_time")
    return pl.lit(of.default, dtype=of.dtype)


# ---- reading the table ----------------------------------------------------------------------------------------------


def privacy(config: Mapping[str, Any], path: Path, environment: Mapping[str, str] = os.environ) -> Privacy | None:
    """What the settings say, which stand at this path; None where they ask for nothing."""
    given, where = config.get("privacy"), f"{path}: privacy"
    if given is None:
        return None
    if not isinstance(given, dict):
        raise Problem(where, "not a table", EXAMPLE)
    if unknown := given.keys() - {"drop", "hash", "key_file"}:
        reason = (
            f"no such setting; there are drop, hash and key_file, and the key itself stands in that file or in {KEY}"
        )
        raise Problem(f"{where}.{min(unknown)}", reason, EXAMPLE)
    drop = {(s, f.name) for name in _names(given, "drop", where) for s, f in _dropped(name, f"{where}.drop")}
    hidden = {f for name in _names(given, "hash", where) for f in _hidden(name, f"{where}.hash")}
    if not drop and not hidden:
        return None
    key = _key(given.get("key_file", ""), path, environment) if hidden else b""
    dropped = {s: [f for f in fields(s) if (s, f.name) in drop] for s in STREAMS}
    hashed = {s: [f for f in fields(s) if f.name in hidden and f not in dropped[s] and _is_name(f)] for s in STREAMS}
    return Privacy(dropped, hashed, key)


def _names(given: Mapping[str, Any], what: str, where: str) -> list[str]:
    names = given.get(what, [])
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise Problem(f"{where}.{what}", "not a list of fields", EXAMPLE)
    return names


def _fields(name: str, where: str) -> Iterator[tuple[str, Field]]:
    stream, _, own = name.rpartition(".")
    if stream and stream not in STREAMS:
        raise Problem(f"{where}: {name}", f"no stream {stream!r}; there are {', '.join(STREAMS)}", EXAMPLE)
    found = [(s, f) for s in STREAMS for f in fields(s) if f.name == own and stream in ("", s)]
    if not found:
        every = dict.fromkeys(f.name for s in STREAMS for f in fields(s) if stream in ("", s))
        raise Problem(f"{where}: {name}", f"no such field; there are {', '.join(every)}", EXAMPLE)
    yield from found


def _dropped(name: str, where: str) -> Iterator[tuple[str, Field]]:
    for stream, one in _fields(name, where):
        if one.required:
            then = f'hash = ["{one.name}"]' if _is_name(one) else "leave it out: a row is none without it"
            raise Problem(f"{where}: {name}", f"{stream} need it, so it can't be dropped", then)
        yield stream, one


def _hidden(name: str, where: str) -> Iterator[str]:
    """The field and all that hold names of its kind."""
    for _, one in _fields(name, where):
        if not _is_name(one):
            what = f"one of {', '.join(one.values)}" if one.values else "no text"
            then = "leave it out: a row is none without it" if one.required else f'drop = ["{name}"]'
            raise Problem(f"{where}: {name}", f"it is {what}, and only texts can be hashed", then)
        yield one.name
        yield from (n for kind in KINDS if one.name in kind and one.name != "subject" for n in kind)


def _is_name(one: Field) -> bool:
    return (one.dtype == pl.String and not one.values) or one.dtype == CLOCK


def _key(file: object, path: Path, environment: Mapping[str, str]) -> bytes:
    """Of any length, as the 64 bytes that the hash takes."""
    where, text = KEY, environment.get(KEY, "")
    if not text and isinstance(file, str) and file:
        where = str(path.parent / file)
        try:
            text = Path(where).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise Problem(f"{path}: privacy.key_file", f"{where} is not readable: {reason}", MAKE) from None
    if not text:
        then = f'{MAKE}, and key_file = "privacy.key", or {KEY}'
        raise Problem(f"{path}: privacy.hash", "there is no key for the hashes", then)
    if len(text.strip()) < SHORTEST:
        raise Problem(where, f"a key of fewer than {SHORTEST} characters can be guessed", MAKE)
    return blake2b(text.strip().encode()).digest()
