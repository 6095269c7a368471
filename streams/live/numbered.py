"""Bodies under absolute numbers enter, each (producer, number) leaves once: the one protocol between live processes.

A number is a slice or a window, so it means the same whoever says it. A message says that its producer's numbers
lo ≤ n < hi are complete: hi - 1 holds its body, those before it hold nothing; `lost` where the log was gone before it
could be read. A reader keeps the first copy and acts on a number once every producer has delivered it. So repeats,
zombies, restarts and reordering between producers need no fencing, no high-water marks and no transactions.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import msgspec
import polars as pl
import xxhash

from detectors.windows import WINDOW_US

PROTOCOL = 5  # 1: bodies as IPC files; 2: no canaries, no losses, no callees; 3: no incidents; 4: no strays
PART_BYTES = 900_000  # a broker takes a message of 1 MiB, unless it is told otherwise

Kind = Literal["rows", "empty", "lost", "state"]  # state: how the producer stands before hi, of which the last counts
Frames = dict[str, pl.DataFrame]


class Head(msgspec.Struct, frozen=True, kw_only=True, tag_field="protocol", tag=PROTOCOL):
    """The key of a message; a body that is too large for one travels as part of parts.

    digest: of the whole body where it has parts, since those of two copies that are packed otherwise must not be mixed.
    of: what was lost, where the producer does not say it: streams, or tables that could not be merged.
    """

    producer: str
    lo: int
    hi: int
    kind: Kind
    part: int = 0
    parts: int = 1
    digest: int = 0
    of: tuple[str, ...] = ()


class OtherProtocol(Exception):
    """A message that another version or epoch wrote: to guess at it would be worse than to stop."""


_HEADS = msgspec.json.Decoder(Head)
_PROTOCOL = msgspec.json.Decoder(dict[str, msgspec.Raw])


def head_of(key: bytes | None) -> Head:
    try:
        return _HEADS.decode(key or b"")
    except msgspec.DecodeError as error:
        try:
            other = bytes(_PROTOCOL.decode(key or b"")["protocol"]).decode()
        except (msgspec.DecodeError, KeyError):
            raise OtherProtocol(f"a message that no asynchealth wrote: key {key!r:.80}") from error
        raise OtherProtocol(f"written by protocol {other}, this version reads {PROTOCOL}") from error


def messages(head: Head, body: bytes = b"", limit: int = PART_BYTES) -> list[tuple[bytes, bytes]]:
    """(key, value) of each part."""
    parts = max(1, -(-len(body) // limit))
    digest = xxhash.xxh3_64_intdigest(body) if parts > 1 else 0
    cut = [msgspec.structs.replace(head, part=i, parts=parts, digest=digest) for i in range(parts)]
    return [(msgspec.json.encode(h), body[h.part * limit : (h.part + 1) * limit]) for h in cut]


def pack(frames: Mapping[str, pl.DataFrame]) -> bytes:
    """Frames by name, those without rows left out; nothing at all packs to nothing."""
    packed = {}
    for name, frame in sorted(frames.items()):
        if len(frame):
            out = io.BytesIO()
            frame.rechunk().write_ipc_stream(out, compression="zstd")  # small frames: five times as quick as a file
            packed[name] = out.getvalue()
    return msgspec.msgpack.encode(packed) if packed else b""


def unpack(body: bytes) -> Frames:
    packed = msgspec.msgpack.decode(body, type=dict[str, bytes]) if body else {}
    return {name: pl.read_ipc_stream(io.BytesIO(ipc)) for name, ipc in packed.items()}


def by_window(frames: Frames) -> dict[int, Frames]:
    """By window (its index) the rows of frames that have a window, each in its order."""
    found: dict[int, Frames] = {}
    for name, frame in frames.items():
        for (window,), rows in frame.partition_by("window", as_dict=True, maintain_order=True).items():
            found.setdefault(int(window) // WINDOW_US, {})[name] = rows
    return found


def _print(frames: Mapping[str, pl.DataFrame]) -> int:
    """What the frames say, for comparing copies in one process: equal rows may be packed into other bytes."""
    said = xxhash.xxh3_64()
    for name, frame in sorted(frames.items()):
        said.update(name.encode())
        said.update(frame.hash_rows().to_numpy().tobytes())
    return said.intdigest()


class Ranges:
    """A set of integers, as ranges lo ≤ n < hi in ascending order that do not touch."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self.ranges: list[tuple[int, int]] = []
        for lo, hi in ranges:
            self.add(lo, hi)

    def add(self, lo: int, hi: int) -> None:
        if lo >= hi:
            return
        apart = [r for r in self.ranges if r[1] < lo or r[0] > hi]
        touching = [r for r in self.ranges if not (r[1] < lo or r[0] > hi)]
        whole = (min([lo, *(r[0] for r in touching)]), max([hi, *(r[1] for r in touching)]))
        self.ranges = sorted([*apart, whole])

    def missing(self, lo: int, hi: int) -> list[tuple[int, int]]:
        gaps = []
        for a, b in self.ranges:
            if b <= lo or a >= hi:
                continue
            if a > lo:
                gaps.append((lo, a))
            lo = max(lo, b)
        return [*gaps, (lo, hi)] if lo < hi else gaps

    def upto(self, lo: int) -> int:
        """The first number from lo on that is not in the set."""
        return next((b for a, b in self.ranges if a <= lo < b), lo)

    def overlaps(self, lo: int, hi: int) -> bool:
        return bool(self.between(lo, hi))

    def between(self, lo: int, hi: int) -> list[tuple[int, int]]:
        """Those of its numbers that lie there."""
        return [(max(a, lo), min(b, hi)) for a, b in self.ranges if max(a, lo) < min(b, hi)]

    def inside(self, lo: int, hi: int) -> list[int]:
        """The edges of ranges that lie between two numbers."""
        return [edge for r in self.ranges for edge in r if lo < edge < hi]

    def forget(self, below: int) -> None:
        self.ranges = [(max(a, below), b) for a, b in self.ranges if b > below]


class Differing(NamedTuple):
    """A copy of this number, of which the first copy said something else."""

    producer: str
    number: int


class Taken(NamedTuple):
    """One number of one producer, with what it said."""

    producer: str
    number: int
    frames: Frames


@dataclass
class Reader:
    """First copies, by producer and number. copies and unequal count what came again, and what then differed.

    floor: numbers below it are of no use any more; what comes again of them is a copy that nobody compares.
    """

    producers: Sequence[str]
    floor: int = 0
    copies: int = 0
    unequal: int = 0
    cover: dict[str, Ranges] = field(init=False)
    lost: dict[str, Ranges] = field(init=False)
    lost_of: dict[str, Ranges] = field(default_factory=dict)  # by what was lost, of all producers
    differing: list[Differing] = field(default_factory=list)  # those that are not told yet
    state: Taken | None = None  # of a producer that says how it stands, the last: what was open before its number
    _fresh: list[Taken] = field(default_factory=list)
    _prints: dict[str, dict[int, int]] = field(init=False)  # by producer and number
    _compared: dict[str, int] = field(default_factory=dict)  # of each producer, the first number that copies must equal
    _parts: dict[Head, dict[int, tuple[int, bytes]]] = field(default_factory=dict)
    _offsets: list[tuple[int, int]] = field(default_factory=list)  # of each message, its last number and its offset

    def __post_init__(self) -> None:
        self.cover = {p: Ranges() for p in self.producers}
        self.lost = {p: Ranges() for p in self.producers}
        self._prints = {p: {} for p in self.producers}

    def take(self, offset: int, key: bytes | None, value: bytes | None) -> None:
        """One message as it was read. Raises OtherProtocol where it can't be understood."""
        head = head_of(key)
        if head.producer not in self.cover:
            known = f"none of this epoch's {len(self.producers)}"
            raise OtherProtocol(f"producer {head.producer!r} is {known}: after topics grow, start this process again")
        if head.hi <= self.floor:
            self.copies += head.part == 0
            return
        if (whole := self._joined(head, offset, value or b"")) is None:
            return
        first, body = whole
        frames = unpack(body)
        if head.kind == "state":
            if self.state is None or head.hi > self.state.number:
                self.state = Taken(head.producer, head.hi, frames)
                self._offsets.append((head.hi, first))
            return
        if head.hi > self._compared.get(head.producer, 0):
            self._compare(head, frames)
        missing = self.cover[head.producer].missing(head.lo, head.hi)
        if not missing:
            self.copies += 1
            return
        self.cover[head.producer].add(head.lo, head.hi)
        if head.kind == "lost":
            for lo, hi in missing:
                self.lost[head.producer].add(lo, hi)
                for what in head.of:
                    self.lost_of.setdefault(what, Ranges()).add(lo, hi)
        self._offsets.append((head.hi, first))
        if frames and missing[-1][1] == head.hi:
            self._fresh.append(Taken(head.producer, head.hi - 1, frames))

    def _joined(self, head: Head, offset: int, value: bytes) -> tuple[int, bytes] | None:
        """(the offset of the first part, the whole body) once all parts are there."""
        if head.parts == 1:
            return offset, value
        parts = self._parts.setdefault(msgspec.structs.replace(head, part=0), {})
        parts.setdefault(head.part, (offset, value))
        if len(parts) < head.parts:
            return None
        del self._parts[msgspec.structs.replace(head, part=0)]
        return min(o for o, _ in parts.values()), b"".join(parts[i][1] for i in range(head.parts))

    def _compare(self, head: Head, frames: Frames) -> None:
        """A number said before must say the same again; one that is empty has no print."""
        last, now = head.hi - 1, _print(frames) if frames else None
        prints = self._prints[head.producer]
        known = not self.cover[head.producer].missing(last, head.hi)
        few = range(head.lo, last) if last - head.lo < len(prints) else prints
        if (known and prints.get(last) != now) or any(head.lo <= n < last and n in prints for n in few):
            self.unequal += 1
            self.differing.append(Differing(head.producer, last))
        elif now is not None:
            prints[last] = now

    def upto(self, number: int) -> int:
        """Every producer has delivered the numbers from `number` to before this one."""
        return min(c.upto(number) for c in self.cover.values())

    def first(self) -> int | None:
        """The first number that every producer says something of; None while one is silent."""
        if any(not c.ranges for c in self.cover.values()):
            return None
        return max(c.ranges[0][0] for c in self.cover.values())

    def first_fresh(self) -> int | None:
        """The first number with a body that was not handed out yet."""
        return min((t.number for t in self._fresh), default=None)

    def is_lost(self, lo: int, hi: int) -> bool:
        return any(r.overlaps(lo, hi) for r in self.lost.values())

    def below(self, number: int) -> list[Taken]:
        """What was taken of numbers before this one and not handed out yet, in the order of numbers."""
        ready = sorted((t for t in self._fresh if t.number < number), key=lambda t: (t.number, t.producer))
        self._fresh = [t for t in self._fresh if t.number >= number]
        return ready

    def restore(self, producer: str, lo: int, hi: int, lost: bool = False) -> None:
        """Numbers that this reader's predecessor has taken."""
        (self.lost if lost else self.cover)[producer].add(lo, hi)
        self._compared[producer] = max(self._compared.get(producer, 0), hi)

    def drain(self, compared: int) -> list[Taken]:
        """All that was not handed out yet, for a reader that keeps it: nothing of it need be read again.

        Copies are still compared in the last `compared` numbers of each producer.
        """
        fresh, self._fresh, self._offsets = self._fresh, [], []
        for producer, cover in self.cover.items():
            last = cover.ranges[-1][1] if cover.ranges else 0
            self._compared[producer] = max(self._compared.get(producer, 0), last - compared)
        self._forget_prints(self._compared)
        return sorted(fresh, key=lambda t: (t.number, t.producer))

    def forget(self, below: int) -> None:
        self.floor = max(self.floor, below)
        self._offsets = [(hi, o) for hi, o in self._offsets if hi > self.floor]
        self._forget_prints(dict.fromkeys(self.producers, self.floor))
        self._parts = {h: p for h, p in self._parts.items() if h.hi > self.floor}
        for ranges in (*self.lost.values(), *self.lost_of.values()):
            ranges.forget(self.floor)

    def _forget_prints(self, below: Mapping[str, int]) -> None:
        self.differing = [d for d in self.differing if d.number >= below[d.producer]]
        self._prints = {p: {n: v for n, v in some.items() if n >= below[p]} for p, some in self._prints.items()}

    def restart(self, position: int) -> int:
        """The offset from which a successor must read: the first message that is still needed, else the position."""
        waiting = [o for parts in self._parts.values() for o, _ in parts.values()]
        return min([position, *waiting, *(o for _, o in self._offsets)])
