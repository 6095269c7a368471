"""Canaries in a recording of the topic: what is replayed is as if they had not been there, also as a copy and grown."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import msgspec

from detectors.detector import Settings
from streams.landing import state
from streams.live.canary import TENANT, signal
from streams.replay import replay
from tests.cases import at


def lines(n: int, canaries: bool) -> bytes:
    """A deploy a minute, and half a minute after each a canary."""
    out = []
    for i in range(n):
        out.append(msgspec.json.encode({"timestamp": at(60 * i), "subject": "a", "kind": "change", "name": "deploy"}))
        if canaries:
            out.append(signal("me", i + 1, at(60 * i) + timedelta(seconds=30)))
    return b"\n".join(out) + b"\n"


def shown(folder: Path) -> list[list[tuple[object, ...]]]:
    """What people can read of signals, but for the places in the recording."""
    con = state.open_readable(folder)
    try:
        return [
            con.execute("SELECT timestamp, subject, name, tenant, fate FROM signals ORDER BY ALL").fetchall(),
            con.execute("SELECT sum(read), sum(used), sum(rejected) FROM accounting").fetchall(),
            con.execute("SELECT window_start, tenant, rows FROM accounts ORDER BY ALL").fetchall(),
            con.execute("SELECT * FROM coverage ORDER BY ALL").fetchall(),
        ]
    finally:
        con.close()


def test_recorded_canaries_are_in_nothing_that_people_read(tmp_path: Path) -> None:
    mine, without = tmp_path / "signals.jsonl", tmp_path / "signals-without.jsonl"
    without.write_bytes(lines(9, False))
    for n in (5, 9):  # it grows
        mine.write_bytes(lines(n, True))
        replay([str(mine)], tmp_path / "mine", Settings())
    replay([str(without)], tmp_path / "theirs", Settings())
    found = shown(tmp_path / "mine")
    assert found == shown(tmp_path / "theirs")
    assert len(found[0]) == 9 and TENANT not in str(found)
    copy = tmp_path / "signals-copy.jsonl"
    copy.write_bytes(lines(7, True))
    outcome = replay([str(copy)], tmp_path / "mine", Settings())
    assert any("shorter copy" in note for note in outcome.notes)
    assert shown(tmp_path / "mine") == found
