"""Assessments enter, episodes leave: a finding begins where its first contributing row lies and ends when it is quiet.

The fold is over windows in order, one subject at a time, and looks only at what is above a threshold or still open;
how the windows are batched does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import polars as pl
import xxhash

from detectors.detector import PROOF_KEPT, Detector, Settings, Threshold, complete, pack
from detectors.table import SPACE
from detectors.windows import HOUR_US, WINDOW_US

QUIET_US = 12 * WINDOW_US  # under warn this long: resolved
LOST_US = HOUR_US  # unknown this long: closed as lost
LEVELS = ("", "warn", "page")
SHADOW = "shadow"  # the level of all that a detector finds of whose findings nobody is told

Key = tuple[str, str, str, str]  # environment, tenant, kind, subject


@dataclass(frozen=True)
class Episode:
    """One subject over its threshold. Times are window starts in µs; last is the end of the last contributing one."""

    onset: int
    last: int
    level: int
    certain: bool
    value: float
    peak: float
    peak_at: int
    threshold: float
    count: int
    facts: dict[str, Any]
    proof: tuple[int, ...]
    resolved: int | None = None
    lost: bool = False
    quiet_since: int | None = None
    unknown_since: int | None = None
    before: str = ""  # while it is in a hole: how it stood before, hot, quiet or unknown


@dataclass(frozen=True)
class Episodes:
    """What a detector has open, and until when each subject's last episode lasted.

    held: the last assessment of a subject in a hole, which counts once the hole is behind it.
    """

    open: dict[Key, Episode] = field(default_factory=dict)
    ended: dict[Key, int] = field(default_factory=dict)
    held: dict[Key, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """An episode that opened, rose, resolved or was lost, and the window with which that was final."""

    key: Key
    episode: Episode
    window: int


def levels(detector: Detector, assessed: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """Assessments with their level (0 none, 1 warn, 2 page) and the threshold behind it: the one place that compares.

    opens: whether an episode may open with it; one that is open goes by the level alone. Only what is certain or
    irreversible pages; what is over a page threshold and merely possible is a warning.
    """

    of, wanted = partial(_of_level, detector), partial(_wanted, detector, settings)

    def all_of(some: list[Threshold]) -> pl.Expr:
        above = [~_meant(t) | _over(t, wanted(t)) for t in some]
        return pl.all_horizontal(above) if above else pl.lit(True)

    def reached(level: str) -> pl.Expr:
        own = of(level)
        if not own:
            return pl.lit(False)
        return pl.any_horizontal(_meant(t) for t in own) & all_of([*own, *of("both")])

    first: dict[str, pl.Expr] = {}
    for t in reversed(detector.thresholds):
        first[t.level] = pl.when(_meant(t)).then(wanted(t)).otherwise(first.get(t.level, pl.lit(None)))
    over_page = reached("page").fill_null(False)
    page = over_page & (pl.col("certain") | pl.lit(detector.irreversible)) & ~pl.col("unknown")
    warn = (reached("warn").fill_null(False) | over_page) & ~pl.col("unknown")
    level = pl.when(page).then(2).when(warn).then(1).otherwise(0).cast(pl.Int64)
    at_page = first.get("page", pl.lit(None))
    threshold = pl.when(page).then(at_page).otherwise(first.get("warn", at_page)).cast(pl.Float64)
    opens = all_of(of("open")).fill_null(False)
    return pack(complete(assessed).with_columns(level=level, opens=opens, threshold=threshold))


def _of_level(detector: Detector, level: str) -> list[Threshold]:
    return [t for t in detector.thresholds if t.level == level]


def _wanted(detector: Detector, settings: Settings, threshold: Threshold) -> pl.Expr:
    return settings.threshold(detector.name, threshold, detector.subject_kind)


def _meant(threshold: Threshold) -> pl.Expr:
    return pl.lit(True) if not threshold.kind else pl.col("kind") == threshold.kind


def _over(threshold: Threshold, wanted: pl.Expr) -> pl.Expr:
    """The comparison."""
    return pl.col(threshold.of) > wanted


# ---- near misses ----------------------------------------------------------------------------------------------------

WHO = [*SPACE, "kind", "subject"]
JUST_OVER = math.nextafter(1.0, 2.0)
NEAR: dict[str, Any] = {
    "near": pl.Float64,  # amount / wanted of the threshold furthest from being reached; above 1 if all are
    "by": pl.String,  # that threshold
    "amount": pl.Float64,
    "wanted": pl.Float64,
    "window": pl.Int64,
    "certain": pl.Boolean,
}


def nearness(detector: Detector, assessed: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """Assessments as `levels` gives them, and how near each came to opening an episode: structs of NEAR, warn, page.

    near is above 1 if, and only if, `levels` has it over that level and lets it open. Null where it is unknown or
    there is no such level. Only what is certain or irreversible pages with it.
    """
    page, own = (_nearest(detector, level, settings) for level in ("page", "warn"))
    further = page.struct.field("near") > own.struct.field("near")
    warn = pl.when(own.is_null() | further.fill_null(False)).then(page).otherwise(own)  # a page is a warning, too
    known = [pl.when(~pl.col("unknown")).then(near).alias(n) for n, near in (("warn", warn), ("page", page))]
    return pl.concat([levels(detector, assessed, settings), complete(assessed).select(known)], how="horizontal")


def _nearest(detector: Detector, level: str, settings: Settings) -> pl.Expr:
    """The furthest of all the thresholds that an episode of this level needs to open."""
    own = _of_level(detector, level)
    if not own:
        return pl.lit(None, dtype=pl.Struct(NEAR))
    some = [*own, *_of_level(detector, "both"), *_of_level(detector, "open")]
    ratios = [_near(t, _wanted(detector, settings, t)) for t in some]
    furthest = pl.min_horizontal(ratios)
    nearest: pl.Expr = pl.lit(None, dtype=pl.Struct(NEAR))
    for t, ratio in reversed([*zip(some, ratios, strict=True)]):
        amount, wanted = pl.col(t.of).cast(pl.Float64), _wanted(detector, settings, t).cast(pl.Float64)
        said = pl.struct(
            furthest.alias("near"), pl.lit(t.name).alias("by"), amount.alias("amount"), wanted.alias("wanted"),
            "window", "certain",
        )  # fmt: skip
        nearest = pl.when(_meant(t) & (ratio == furthest)).then(said).otherwise(nearest)
    return pl.when(pl.any_horizontal(_meant(t) for t in own)).then(nearest)


def _near(threshold: Threshold, wanted: pl.Expr) -> pl.Expr:
    """amount / wanted; above 1 where it is over, whatever rounding says, and without bound where any is too many."""
    amount = pl.col(threshold.of).cast(pl.Float64)
    over = _over(threshold, wanted).fill_null(False)
    ratio = amount * (1.0 / wanted)  # polars divides one row and many rows by a constant differently
    ratio = pl.when(wanted > 0).then(ratio).otherwise(pl.when(over).then(math.inf).otherwise(0.0))
    above = pl.max_horizontal(ratio.fill_nan(math.inf), pl.lit(JUST_OVER))
    below = ratio.fill_null(0.0).clip(0.0, 1.0)
    return pl.when(_meant(threshold)).then(pl.when(over).then(above).otherwise(below)).otherwise(math.inf)


def one_a_subject(near: pl.DataFrame) -> pl.DataFrame:
    """Of what `nearness` gives: the nearest that each subject came to each level, the first time that it did.

    judged, unknown: how many assessments there are, and how many for want of data; best: the highest level with which
    an episode may have opened.
    """
    best = pl.when("opens").then("level").otherwise(0).alias("best")
    counted = pl.lit(1, dtype=pl.Int64).alias("judged"), pl.col("unknown").cast(pl.Int64)
    return joined([near.select(*WHO, *counted, best, "warn", "page")])


def joined(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Of what `one_a_subject` gives for several spans: the same for all of them."""

    def first(level: str) -> pl.Expr:
        by = [pl.col(level).struct.field(n) for n in ("near", "amount", "window")]
        return pl.col(level).sort_by(by, descending=[True, True, False], nulls_last=True).first()

    sums = pl.col("judged", "unknown").sum()
    return pl.concat(parts).group_by(WHO).agg(sums, pl.col("best").max(), first("warn"), first("page")).sort(WHO)


Spans = Sequence[tuple[int, int]]


def fold(
    state: Episodes, judged: pl.DataFrame, lo: int, to: int, holes: Spans = (), fires: bool = False
) -> tuple[Episodes, list[Change]]:
    """The assessments of windows lo ≤ w < to onto the open episodes; changes in the order (window, key).

    holes: spans in which nothing is known. fires: what is over a threshold there is so all the same.
    """
    key = [*SPACE, "kind", "subject"]
    hot = judged.filter("opens", pl.col("level") > 0).select(key).unique()
    known = pl.DataFrame([*{*state.open, *state.held}], schema=dict.fromkeys(key, pl.String), orient="row")
    wanted = pl.concat([hot, known]).unique()
    rows: dict[Key, list[dict[str, Any]]] = {k: [] for k in wanted.iter_rows()}
    for row in judged.join(wanted, on=key, how="semi").sort([*key, "window"]).iter_rows(named=True):
        rows[row["environment"], row["tenant"], row["kind"], row["subject"]].append(row)
    opened, ended, held, changes = dict(state.open), dict(state.ended), dict(state.held), []
    for who in sorted(rows):
        one = _Fold(opened.pop(who, None), ended.get(who, 0), held.pop(who, None), fires)
        one.run(rows[who], lo, to, holes)
        changes += [Change(who, e, w) for e, w in one.told]
        if one.episode is not None:
            opened[who] = one.episode
        if one.held is not None:
            held[who] = one.held
        if one.ended > to - 2 * HOUR_US:
            ended[who] = one.ended
    ended = {k: v for k, v in ended.items() if v > to - 2 * HOUR_US}
    return Episodes(opened, ended, held), sorted(changes, key=lambda c: (c.window, c.key))


@dataclass
class _Fold:
    """One subject, window by window."""

    episode: Episode | None
    ended: int
    held: dict[str, Any] | None
    fires: bool
    told: list[tuple[Episode, int]] = field(default_factory=list)

    def run(self, rows: Sequence[dict[str, Any]], lo: int, to: int, holes: Spans) -> None:
        def inside(w: int) -> bool:
            return any(a <= w < b for a, b in holes)

        by_window = {row["window"]: row for row in rows}
        edges = {w for hole in holes for w in hole if lo < w < to}
        for w in sorted({lo, *edges, *by_window}):
            self._until(w)
            row = by_window.get(w)
            if inside(w):
                self._in_hole(w)
                if row and not (self.fires and row["level"] > 0):
                    self.held = row if self.episode or row["level"] > 0 else None
                elif row:
                    self.held = None
                    self._take(row)
                    self.episode = replace(self.episode, before="hot") if self.episode else None
            else:
                self._behind_hole(w, row)
                if row:
                    self._take(row)
        self._until(to)

    def _until(self, now: int) -> None:
        closed = _close(self.episode, now)
        if self.episode is not None and closed is not None:
            self.told.append((closed, closed.resolved or now))
            self.ended, self.episode = max(self.ended, closed.last), None

    def _take(self, row: dict[str, Any]) -> None:
        before = self.episode.level if self.episode else 0
        self.episode = _step(self.episode, self.ended, row)
        if self.episode is not None and self.episode.level > before:
            self.told.append((self.episode, row["window"]))

    def _in_hole(self, w: int) -> None:
        e = self.episode
        if e is None or e.before:
            return
        stood = "quiet" if e.quiet_since is not None else "unknown" if e.unknown_since is not None else "hot"
        self.episode = replace(e, before=stood, quiet_since=None, unknown_since=e.unknown_since or w)

    def _behind_hole(self, w: int, row: dict[str, Any] | None) -> None:
        """What was said last in the hole holds from here on, else what held before it; unless there is news."""
        e, held, self.held = self.episode, self.held, None
        if e is not None and e.before:
            quiet = w if e.before == "quiet" else None
            unknown = e.unknown_since if e.before == "unknown" else None
            self.episode = replace(e, before="", quiet_since=quiet, unknown_since=unknown)
        if held is not None and row is None:
            self._take({**held, "window": w, "fresh": 0})


def _close(episode: Episode | None, now: int) -> Episode | None:
    """The episode as it closed at or before `now`, if it did."""
    if episode is None:
        return None
    if episode.quiet_since is not None and now >= episode.quiet_since + QUIET_US:
        return replace(episode, resolved=episode.quiet_since + QUIET_US)
    if episode.unknown_since is not None and now >= episode.unknown_since + LOST_US:
        return replace(episode, resolved=episode.unknown_since + LOST_US, lost=True)
    return None


def _step(episode: Episode | None, ended: int, row: dict[str, Any]) -> Episode | None:
    w, level, proof = row["window"], row["level"], tuple(row["proof"] or ())
    if episode is None:
        if level == 0 or not row["opens"]:
            return None
        return Episode(
            onset=max(min(row["first"], w), ended),
            last=w + WINDOW_US,
            level=level,
            certain=row["certain"],
            value=row["value"],
            peak=row["value"],
            peak_at=w,
            threshold=row["threshold"],
            count=row["total"],
            facts=row["facts"] or {},
            proof=proof[:PROOF_KEPT],
        )
    if row["unknown"]:
        return replace(episode, unknown_since=episode.unknown_since or w, quiet_since=None)
    if level == 0:
        return replace(episode, value=row["value"], quiet_since=episode.quiet_since or w, unknown_since=None)
    told = row["opens"] or episode.certain  # else it is no graver and no surer than what opened it
    level, certain = (level, row["certain"]) if told else (min(level, episode.level), False)
    rises = level > episode.level
    higher = rises or (level == episode.level and row["value"] > episode.peak)
    return replace(
        episode,
        last=w + WINDOW_US if row["fresh"] else episode.last,
        level=max(level, episode.level),
        certain=certain if rises else episode.certain or (level == episode.level and certain),
        value=row["value"],
        peak=max(row["value"], episode.peak),
        peak_at=w if higher else episode.peak_at,
        threshold=row["threshold"] if rises else episode.threshold,
        count=episode.count + row["fresh"],
        facts=(row["facts"] or {}) if higher else episode.facts,
        proof=tuple(dict.fromkeys([*episode.proof, *proof]))[:PROOF_KEPT],
        quiet_since=None,
        unknown_since=None,
    )


def named(detector: Detector, level: int) -> str:
    """A level as it lands."""
    return SHADOW if detector.shadow else LEVELS[level]


def finding_id(detector: Detector, key: Key, onset: int) -> str:
    """Canonical: a hash of what the finding is about and when it began, behind the detector's initials."""
    environment, tenant, kind, subject = key
    parts = (detector.name, kind, environment, tenant, detector.subject_kind, subject, str(onset))
    return f"{detector.initials}-{xxhash.xxh3_64_hexdigest(chr(0).join(parts).encode())}"
