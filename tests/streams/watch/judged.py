"""Stories of findings enter, the messages that judge would have written leave: for tests of what reads its log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

import polars as pl

from detectors.detector import Settings
from detectors.engine import INSTANT, findings
from detectors.incidents import Memory, change, encoded, fold, id_of, news
from detectors.windows import MINUTE_US, WINDOW_US
from streams.live.judge import PRODUCER
from streams.live.numbered import Head, messages, pack

Numbered = dict[int, pl.DataFrame]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Messages = list[tuple[bytes, bytes]]
Level = Literal["warn", "page", "shadow"]


class Change(NamedTuple):
    """A finding begins, rises or ends with a window."""

    window: int
    finding_id: str
    level: Level
    ends: bool = False

    @property
    def incident(self) -> str:
        """Of a finding that nothing else explains."""
        return id_of(self.finding_id)

    @property
    def key(self) -> str:
        return f"{self.incident}/{self.level}/{'resolved' if self.ends else 'open'}/{self.stamp}"

    @property
    def stamp(self) -> str:
        """From when on it was so."""
        return f"{EPOCH + timedelta(microseconds=self.window * WINDOW_US):%Y%m%dT%H%M%SZ}"


def row(change: Change, onset: int) -> dict[str, Any]:
    at = change.window * WINDOW_US
    return {
        "finding_id": change.finding_id,
        "detector": "retry_storm",
        "version": 1,
        "config": "none",
        "kind": "",
        "subject_kind": "edge",
        "subject": f"gateway->{change.finding_id}",
        "environment": "prod",
        "tenant": "",
        "level": change.level,
        "certainty": "certain",
        "onset": onset * WINDOW_US,
        "last": at + WINDOW_US,
        "resolved": at + WINDOW_US if change.ends else None,
        "lost": False,
        "value": 847.0,
        "peak": 847.0,
        "peak_at": onset * WINDOW_US + MINUTE_US,
        "unit": "retries/min",
        "threshold": 500.0 if change.level == "page" else 100.0,
        "count": 847,
        "facts": '{"attempts":2041,"share":0.415}',
        "proof": [1, 2],
    }


def onsets(changes: Iterable[Change]) -> dict[str, int]:
    first: dict[str, int] = {}
    for c in sorted(changes):
        first.setdefault(c.finding_id, c.window)
    return first


def incidents_of(story: Iterable[Change], to: int) -> tuple[Memory, Numbered, Numbered]:
    """What judge keeps of incidents, says of them, and that people must hear, by window."""
    began = onsets(story)
    told = [change(row(c, began[c.finding_id]), c.window * WINDOW_US) for c in sorted(story) if c.window < to]
    every = [replace(c, number=c.at // WINDOW_US) for c in told]
    memory, rows = fold((), every, Settings())
    return memory, dict(rows), dict(news((), rows))


def said(story: Iterable[Change], lo: int, to: int, canaries: Mapping[int, tuple[str, int]] | None = None) -> Messages:
    """What judge says of the windows lo ≤ n < to, its state last. canaries: by window, whose and the how manieth."""
    every, flown = sorted(story), canaries or {}
    began = onsets(every)
    memory, joined, told = incidents_of(every, to)
    out: Messages = []
    at = lo
    for window in sorted({w for w in (*(c.window for c in every), *flown) if lo <= w < to}):
        some = [row(c, began[c.finding_id]) for c in every if c.window == window]
        final_at = pl.Series("final_at", [window * WINDOW_US] * len(some), dtype=pl.Int64).cast(INSTANT)
        frames = {"changes": findings(some).with_columns(final_at).sort("finding_id", "final_at", "level")}
        if window in joined:
            frames["incidents"] = joined[window]
        if window in told:
            frames |= {"news": told[window], "told": known(every, window + 1)}
        if window in flown:
            frames["canary"] = pl.DataFrame([flown[window]], schema=["name", "number"], orient="row")
        out += messages(Head(producer=PRODUCER, lo=at, hi=window + 1, kind="rows"), pack(frames))
        at = window + 1
    if at < to:
        out += messages(Head(producer=PRODUCER, lo=at, hi=to, kind="empty"))
    state = Head(producer=PRODUCER, lo=lo, hi=to, kind="state")
    saved = pl.DataFrame({"saved": [encoded(memory)]})
    open_ = findings([row(c, began[c.finding_id]) for c in open_at(every, to)])
    return out + messages(state, pack({"incidents": saved, "known": known(every, to), "open": open_}))


def known(story: Iterable[Change], to: int) -> pl.DataFrame:
    """Every finding as it stood."""
    began = onsets(story)
    last = {c.finding_id: c for c in sorted(story) if c.window < to}
    return findings([row(c, began[i]) for i, c in sorted(last.items())])


def open_at(story: Iterable[Change], to: int) -> list[Change]:
    last: Mapping[str, Change] = {c.finding_id: c for c in sorted(story) if c.window < to}
    return [c for c in last.values() if not c.ends]
