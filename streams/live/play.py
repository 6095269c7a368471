"""A recorded tape enters, its records are in Kafka leave: each with its arrival as its stamp, and ticks that say so.

Partition p of the tape goes alone and in order to partition p of its topic, so that every record has the coordinates
it has in the files. A tick is sent when all records before its time are acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from confluent_kafka import Producer

from detectors.events import encode_json
from detectors.windows import AHEAD_US, LATENESS_US, SLICE_US, WINDOW_US, event_time
from streams.live.connect import Connection
from streams.live.ticks import tick
from streams.live.topics import names
from streams.problems import Exit, Problem, shell
from streams.sources.decode import Reading, chunks, recognise
from streams.sources.files import File, Recording, find, look
from streams.told import together

WAIT_S = 30.0
LINGER_MS = 5


class Log(NamedTuple):
    """The records of one partition in their order, with their arrivals, which never go back.

    row_us: the event time of the last row; a clock that is ahead dates rows after the last arrival.
    """

    stream: str
    partition: int
    stamps_ms: npt.NDArray[np.int64]
    values: Sequence[bytes]
    row_us: int

    def before(self, ms: int) -> int:
        """How many arrived before a time."""
        return int(np.searchsorted(self.stamps_ms, ms))


def read_tape(paths: Sequence[str], state: Path, say: Callable[[str], object] = str) -> list[Log]:
    """Recordings with arrivals, in the order in which replay numbers them. What replay passes over is said, as is what
    can't be played."""
    logs, told, known = list[Log](), list[str](), dict[tuple[str, str], str]()
    for path, name in find(paths, state):
        try:
            file = look(path, name)
            reading, recording = recognise(file), Recording(file)
            log = _log(recording, reading, sum(log.stream == reading.stream for log in logs))
        except Problem as problem:
            if problem.code != Exit.NOTHING:
                raise
            told.append(str(problem))
            continue
        if recording.broken:
            told.append(f"{name}: {recording.broken}; all records before were read")
        first = known.setdefault((reading.stream, recording.digest), name)
        if first == name:
            logs.append(log)
        else:
            told.append(f"{name}: read before as {first}, nothing new in it")
    if not logs:
        raise Problem("nothing to play", "\n".join(together(told)), code=Exit.NOTHING)
    for line in together(told):
        say(line)
    return logs


def _log(recording: Recording, reading: Reading, partition: int) -> Log:
    """A record that is no event has the arrival of the one before it."""
    stream, file = reading.stream, recording.file
    decoded = [some for _, some in chunks(recording, reading)]
    if not decoded:
        raise Problem(file.name, "holds no records", "leave it out, or wait until it has some", Exit.NOTHING)
    events = pl.concat([d.events for d in decoded])
    told = events.group_by("offset").agg(pl.col("arrival").max().dt.epoch("ms"))
    if told["arrival"].null_count() or told.is_empty():
        then = f"asynchealth replay {shell(file.path)}"
        raise Problem(file.name, "not every event has an arrival, so it can't be played", then, Exit.NOTHING)
    values = _values(file, reading, events)
    every = pl.DataFrame({"offset": np.arange(len(values))}).join(told, on="offset", how="left").sort("offset")
    stamps = every["arrival"].forward_fill().backward_fill().cum_max()
    return Log(stream, partition, stamps.to_numpy(), values, _last_row_us(events, stream))


def _last_row_us(events: pl.DataFrame, stream: str) -> int:
    times = events.select(t=event_time(stream), arrived=pl.col("arrival").cast(pl.Int64))
    plausible = times.filter(pl.col("t") - pl.col("arrived") <= AHEAD_US)
    return int(plausible["t"].max() or 0)  # type: ignore[arg-type]


def _values(file: File, reading: Reading, events: pl.DataFrame) -> list[bytes]:
    if file.format == "parquet" or reading.map:
        return encode_json(reading.stream, events.drop("offset", "sub"))
    return [line for lines in Recording(file).lines() for line in lines]


def last_us(logs: Sequence[Log]) -> int:
    """The last arrival of a tape."""
    return max(int(log.stamps_ms[-1]) for log in logs) * 1_000


def last_window_us(logs: Sequence[Log]) -> int:
    """The end of the last window of a tape, as replay takes it."""
    return (max(last_us(logs), *(log.row_us for log in logs)) // WINDOW_US + 1) * WINDOW_US


def final_us(window_end_us: int) -> int:
    """A time by which a window is final."""
    return window_end_us + LATENESS_US + SLICE_US


@dataclass
class Player:
    """Plays logs up to the times it is told."""

    connection: Connection
    logs: Sequence[Log]
    prefix: str = ""
    stamped: bool = True  # else the broker stamps, and nobody waits for ticks
    sent: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.sent = [0] * len(self.logs)
        quick = {"linger.ms": LINGER_MS, "compression.type": "lz4", "log_level": 0}
        ordered = {"enable.idempotence": True}  # else what is sent again may come twice, and behind what followed it
        self.producer = Producer({**self.connection.confluent(), **quick, **ordered})

    @property
    def left(self) -> int:
        return sum(len(log.values) - n for log, n in zip(self.logs, self.sent, strict=True))

    def play(self, to_ms: int) -> None:
        """All records that arrived before to_ms are in Kafka, and a tick says so."""
        for i, log in enumerate(self.logs):
            upto = log.before(to_ms)
            for value, stamp in zip(log.values[self.sent[i] : upto], log.stamps_ms[self.sent[i] : upto], strict=True):
                self._produce(self.prefix + log.stream, value, log.partition, int(stamp))
            self.sent[i] = upto
        self._flush()
        if self.stamped:
            self.tick(to_ms * 1_000)

    def tick(self, us: int) -> None:
        self._produce(names(self.prefix).ticks, tick(us), 0, us // 1_000)
        self._flush()

    def _produce(self, topic: str, value: bytes, partition: int, stamp_ms: int) -> None:
        send(self.producer, topic, value, partition, on_delivery=_delivered, timestamp=stamp_ms)

    def _flush(self) -> None:
        if left := self.producer.flush(WAIT_S):
            raise Problem(self.connection.broker, f"{left} records were not taken in {WAIT_S:.0f} s", code=Exit.STATE)


def send(producer: Producer, topic: str, value: bytes, partition: int, **more: Any) -> None:
    """Waits where librdkafka's queue is full."""
    while True:
        try:
            producer.produce(topic, value, partition=partition, **more)
            producer.poll(0)
            return
        except BufferError:
            producer.poll(1.0)


def _delivered(error: object, _message: object) -> None:
    if error is not None:
        raise Problem("a record of the tape", f"Kafka did not take it: {error}", code=Exit.STATE)


def steps(logs: Sequence[Log], most_bytes: int) -> Iterator[int]:
    """Times in ms that cut a tape, so that no partition gets more than most_bytes between two. The last is its end."""
    sizes = [np.cumsum([len(v) for v in log.values]) for log in logs]
    end = last_us(logs) // 1_000 + 1
    done = [0] * len(logs)
    while True:
        cuts = [end]
        for log, size, n in zip(logs, sizes, done, strict=True):
            begun = int(size[n - 1]) if n else 0
            over = int(np.searchsorted(size, begun + most_bytes, side="right"))
            if over < len(size):
                cuts.append(max(int(log.stamps_ms[over]), int(log.stamps_ms[n]) + 1))
        to = min(cuts)
        yield to
        if to == end:
            return
        done = [log.before(to) for log in logs]
