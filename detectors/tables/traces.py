"""Request lines with a trace and a span enter; of traces in which an attempt timed out, or whose root names no timeout,
the hops leave that took an eighth of the trace or more: each with how long, and what the whole trace was like.

A trace is told again in each window that brings a line of it, as it was known by the end of it: the last counts.
An attempt is both its lines, the client's and the server's. Its own time is that of its lines on the critical path less
what its callees explain: a hop that waits is not one that works. The critical path goes back from the end: of the calls
of one line the one that ended last, then the one that ended last before that one began, and so on.

root is the service that the trace enters, and rooted tells whether its first line, which ends last, is there. hop_us:
the own time of all attempts of a hop; typical_us: the median attempt's. depth: how many timed-out attempts lie in one
another. inverted: whether a call had a longer timeout than its caller had left. spans, beside the longest hop: the ≤ 8
lines that show it.

Source: Z. Zhang et al., "CRISP: Critical path analysis of large-scale microservice architectures", USENIX ATC 2022.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl
from polars import col

from detectors.table import SPACE, Ints, Meet, Table, hashed, meeting
from detectors.windows import MINUTE_US, NEVER

BACK_US = MINUTE_US
LEAST_US = 100_000  # of a root without a timeout; quicker ones are of no interest to anybody
PART = 8  # of the trace that a hop takes at least
KEPT = 8  # lines

Bools = npt.NDArray[np.bool_]

CLIENT, SERVER = 1, 2
WITHIN = (
    3  # a call of a service to itself, where no source tells sides: work inside it, or its end of a call to another
)
ITSELF = (col("caller") == col("service_name")).fill_null(False)
LINE = (
    pl.when(col("side") == "client")
    .then(CLIENT)
    .when(col("side") == "server")
    .then(SERVER)
    .when(ITSELF)
    .then(WITHIN)
    .otherwise(SERVER)
)
TIMED_OUT = (col("status") == "timeout").fill_null(False)
TOOK_US = (col("duration_ms") * 1000).round().cast(pl.Int64).fill_null(0)
ALLOWED_US = (col("timeout_ms") * 1000).round().cast(pl.Int64)
ROOT = col("parent_span_id").is_null()


def match_traces(rows: pl.DataFrame) -> pl.DataFrame:
    view, at, window = _views(rows)
    trees = Trees(rows[at], view, len(window))
    traces, hops = trees.traces(), trees.hops()
    said = (
        traces.join(hops, on="view", how="left", maintain_order="left")
        .with_columns(
            col("coord").fill_null(col("top")),
            longest=col("view").is_first_distinct(),
        )
        .filter("longest" | (col("hop_us") * PART >= col("elapsed_us")))
    )
    shown = trees.shown(said.filter("longest"))
    return said.join(shown, on="view", how="left", maintain_order="left").select(
        pl.Series("window", window[said["view"].to_numpy()]),
        *(*SPACE, "root", "trace_id", "caller", "service_name", "coord", "longest"),
        *("hop_us", "typical_us", "attempts", "elapsed_us", "rooted", "timeouts", "depth", "inverted"),
        spans=pl.when("longest").then("spans"),
    )


def _views(rows: pl.DataFrame) -> tuple[Ints, Ints, Ints]:
    """Each trace that matters, as it was known at the end of each window asked for: (number and row of each of its
    lines, window of each number)."""
    group, window, now = (rows[n].to_numpy() for n in ("group", "window", "now"))
    ends = np.ones(len(rows), bool)
    ends[:-1] = (group[1:] != group[:-1]) | (window[1:] != window[:-1])
    last = np.flatnonzero(ends & now)
    first = meeting(rows, BACK_US).first[last]
    told = np.concatenate([[0], np.cumsum(rows["worth"].to_numpy())])
    some = (told[last + 1] > told[first]) & (last > first)
    first, last = first[some], last[some]
    view, at = _ranges(first, last + 1 - first)
    return view, at, window[last]


def _ranges(first: Ints, size: Ints) -> tuple[Ints, Ints]:
    """(number of the range, position) of all positions in ranges that begin and have a size."""
    number = np.repeat(np.arange(len(first)), size)
    begin = np.concatenate([[0], np.cumsum(size)])[:-1]
    return number, np.arange(len(number)) - begin[number] + first[number]


def _parents(rows: pl.DataFrame, view: Ints) -> Ints:
    """For each line the position of the one that it names as its parent, in the same view, or -1."""
    lines = rows.select("span", "parent", view=pl.Series(view), at=pl.int_range(pl.len(), dtype=pl.Int64))
    spans = lines.select("view", "span", "at").unique(["view", "span"], keep="first", maintain_order=True)
    named = lines.select("view", span="parent").join(spans, on=["view", "span"], how="left", maintain_order="left")
    parent: Ints = named["at"].fill_null(-1).to_numpy().copy()
    parent[parent == np.arange(len(parent))] = -1
    return parent


class Trees:
    """The lines of views as trees: which two are one attempt, what is critical, and what each adds to the whole."""

    def __init__(self, rows: pl.DataFrame, view: Ints, views: int) -> None:
        self.rows, self.view, self.views = rows, view, views
        self.end, self.took, self.coord = (rows[n].to_numpy() for n in ("t", "took_us", "coord"))
        self.start = self.end - self.took
        self.parent = _parents(rows, view)
        self.child = self.parent >= 0
        self.line = rows["line"].to_numpy()
        self._pair(rows["timed_out"].to_numpy())
        self._frame(rows["root"].to_numpy())
        self._walk()

    def _pair(self, timed_out: Bools) -> None:
        """attempt: the position of the line that names it, the server's where there is one; answers: this is that."""
        only = np.bincount(self.parent[self.child], minlength=len(self.view)) == 1
        calls = self.child & only[self.parent] & np.isin(self.line[self.parent], (CLIENT, WITHIN))
        self.answers = calls & (self.line == SERVER)
        self.attempt = np.arange(len(self.view))
        self.attempt[self.parent[self.answers]] = np.flatnonzero(self.answers)
        self.timed_out = self._attempts(np.flatnonzero(timed_out))

    def _frame(self, root: Bools) -> None:
        """framed: the lines that are the trace's outermost, its roots or, where none is there, those without parent.

        A root without calls in it is no cascade, even if it timed out: nothing tells where its time went.
        """
        rooted = np.zeros(self.views, bool)
        rooted[self.view[root]] = True
        self.framed = np.where(rooted[self.view], root, ~self.child)
        calling = self._attempts(self.parent[self.child & ~self.answers])
        self.whole = self._attempts(np.flatnonzero(root))  # all else happens in it: no hop
        self.timed_out &= calling | ~self.whole

    def _attempts(self, lines: Ints) -> Bools:
        """The lines of the attempts that these lines are of."""
        mine = np.zeros(len(self.view), bool)
        mine[self.attempt[lines]] = True
        return mine[self.attempt]

    def _critical(self) -> Bools:
        """Whether a line lies on the critical path of its parent's."""
        calls = np.flatnonzero(self.child)
        latest_first = calls[np.lexsort([self.coord[calls], -self.start[calls], -self.end[calls]])]
        critical, until = np.zeros(len(self.view), bool), [NEVER] * len(self.view)
        columns = (latest_first, self.parent[latest_first], self.start[latest_first], self.end[latest_first])
        for at, parent, start, end in zip(*(c.tolist() for c in columns), strict=True):
            if end <= until[parent]:
                critical[at], until[parent] = True, start
        return critical

    def _levels(self) -> Iterator[Ints]:
        """Lines without parent, then their calls, then those of these; what calls itself in a circle is in none."""
        by_parent = np.argsort(self.parent, kind="stable")
        parents, level = self.parent[by_parent], np.flatnonzero(~self.child)
        while len(level):
            yield level
            first, last = (np.searchsorted(parents, level, side) for side in ("left", "right"))
            level = by_parent[_ranges(first, last - first)[1]]

    def _walk(self) -> None:
        """own: the time of each line that no call explains, 0 off the critical path; depth of timed-out attempts."""
        critical, lasted = self._critical(), self.took.copy()
        path, depth = self.framed.copy(), self.timed_out.astype(np.int64)
        inside = self.answers | ((self.line == WITHIN) & ~self.timed_out & (self.attempt == np.arange(len(depth))))
        for level in self._levels():
            calls = level[self.child[level]]
            parent = self.parent[calls]
            lasted[calls] = np.minimum(lasted[calls], lasted[parent])
            path[calls] = critical[calls] & path[parent]
            further = np.where(self.timed_out[calls], depth[parent] + 1, 0)
            depth[calls] = np.where(inside[calls], depth[parent], further)
        explained = np.zeros(len(depth), np.int64)
        calls = np.flatnonzero(path & self.child)
        np.add.at(explained, self.parent[calls], lasted[calls])
        self.path, self.depth = path, depth
        self.own = np.where(path, np.maximum(lasted - explained, 0), 0)

    def _inverted(self) -> Bools:
        """Whether a call had a longer timeout than its caller had left when it began."""
        allowed, parent = self.rows["allowed_us"].fill_null(0).to_numpy(), self.parent
        given = np.where((allowed == 0) & self.answers, allowed[parent], allowed)
        left = given[parent] - np.maximum(self.start - self.start[parent], 0)
        longer: Bools = self.child & ~self.answers & (given[parent] > 0) & (allowed > left)
        return longer

    def traces(self) -> pl.DataFrame:
        """One row a view: its outermost line, how long it took, and what timed out in it."""
        named = pl.when("root").then("service_name").otherwise(pl.coalesce("caller", "service_name"))
        lines = self.rows.select(*SPACE, "trace_id", root=named, is_root="root", top="coord").with_columns(
            **{n: pl.Series(v) for n, v in {"view": self.view, "start": self.start, "end": self.end}.items()},
            framed=pl.Series(self.framed),
            open=col("is_root") & self.rows["allowed_us"].is_null(),
            failed=pl.Series(self.timed_out & (self.attempt == np.arange(len(self.view)))),
            depth=pl.Series(self.depth),
            inverted=pl.Series(self._inverted()),
        )
        outer = lines.filter("framed").sort("view", "start", "top")
        whole = outer.group_by("view", maintain_order=True).agg(
            *(col(n).first() for n in (*SPACE, "root", "trace_id", "top")),
            elapsed_us=col("end").max() - col("start").min(),
            rooted=col("is_root").any(),
            open=col("open").any(),
        )
        within = lines.group_by("view").agg(
            timeouts=col("failed").sum().cast(pl.Int64), depth=col("depth").max(), inverted=col("inverted").any()
        )
        told = whole.join(within, on="view", how="left", maintain_order="left")
        return told.filter((col("timeouts") > 0) | col("open"))

    def hops(self) -> pl.DataFrame:
        """The hops of each view, the longest first, with the position `at` of the longest attempt of each."""
        on_path = np.flatnonzero(self.path & ~self.whole)
        own = pl.DataFrame({"at": self.attempt[on_path], "own": self.own[on_path]}).group_by("at").agg(col("own").sum())
        at = own["at"].to_numpy()
        attempts = own.with_columns(
            self.rows.select("caller", "service_name", "coord")[at], view=pl.Series(self.view[at])
        ).sort("view", -col("own"), "coord")
        return (
            attempts.group_by("view", "caller", "service_name", maintain_order=True)
            .agg(
                col("at", "coord").first(),
                hop_us=col("own").sum(),
                typical_us=col("own").get(pl.len() // 2),
                attempts=pl.len().cast(pl.Int64),
            )
            .sort("view", -col("hop_us"), "coord")
        )

    def shown(self, longest: pl.DataFrame) -> pl.DataFrame:
        """Of each view the lines that show it: the outermost, the deepest timed-out attempt with what it lies in, the
        longest attempt with what it lies in, other timed-out ones."""
        lines = pl.DataFrame({"view": self.view, "coord": self.coord, "start": self.start, "depth": self.depth})
        late = np.flatnonzero(self.timed_out)
        order = late[np.lexsort([self.coord[late], -self.depth[late], self.view[late]])]
        deepest = order[np.unique(self.view[order], return_index=True)[1]]
        top = np.full(self.views, -1)
        top[longest["view"].to_numpy()] = longest["top"].to_numpy()
        tops = self.coord == top[self.view]
        wanted = [tops, self._around(deepest), self._around(longest["at"].drop_nulls().to_numpy()), self.timed_out]
        rank = np.select(wanted, range(len(wanted)), len(wanted))
        return (
            lines.with_columns(rank=pl.Series(rank))
            .filter(col("rank") < len(wanted))
            .sort("view", "rank", -col("depth"), "start", "coord")
            .group_by("view", maintain_order=True)
            .agg(spans=col("coord").head(KEPT).sort())
        )

    def _around(self, lines: Ints) -> Bools:
        """These, the other line of their attempts, and all that they lie in."""
        found = self._attempts(lines)
        lines = np.flatnonzero(found)
        while len(lines):
            above = np.unique(self.parent[lines[self.child[lines]]])
            lines = above[~found[above]]
            found[lines] = True
        return found


TRACES = Table(
    name="traces",
    key=("root", "trace_id"),
    sources=(
        Meet(
            stream="requests",
            where=col("trace_id").is_not_null() & col("span_id").is_not_null(),
            project={
                "span": hashed(col("span_id")),
                "parent": hashed(col("parent_span_id")),
                "root": ROOT,
                "line": LINE.cast(pl.Int8),
                "timed_out": TIMED_OUT,
                "allowed_us": ALLOWED_US,
                "took_us": TOOK_US,
                "worth": TIMED_OUT | (ROOT & ALLOWED_US.is_null() & (TOOK_US >= LEAST_US)),
            },
            on=("trace_id",),
            carry=(
                *("span", "parent", "root", "line", "timed_out", "allowed_us", "took_us", "worth"),
                *("caller", "service_name"),
            ),
            matters="worth",
            back_us=BACK_US,
            match=match_traces,
        ),
    ),
)
