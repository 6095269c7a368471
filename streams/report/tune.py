"""What other thresholds would have found enters, the screen of tune leaves: how many, what is lost, what to write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from detectors.detector import Detector
from streams.report.found import Invoke, Span
from streams.report.sentences import count
from streams.settings import CONFIG
from streams.tune import A_DAY, Backtest, Trial

SHOWN = 8
WHO = ["environment", "tenant", "kind", "subject"]


def screen(b: Backtest, span: Span, change: Sequence[str], invoke: Invoke) -> Iterator[str]:
    """change: of asynchealth.toml, for what is proposed."""
    name = b.detector.name
    yield f"{name}, {span.days}: {_levels(b.now)} with the thresholds as they are{_most(b.now)}."
    for t in b.trials:
        yield f"  {_levels(t.found):<20} with {_numbers(t.numbers)}{f' for {t.service} alone' if t.service else ''}"
    if b.proposed is None:
        yield _why_none(b)
        yield f"Next: {invoke(f'why-not {name}')}"
        return
    yield from _lost(b, b.proposed, span)
    yield from change
    if not b.proposed.service:
        sets = " ".join(f"--set {n}={v:g}" for n, v in b.proposed.numbers.items())
        yield f"Next: {invoke(f'rebuild {sets}')}"
    else:
        yield f"Next: {invoke('rebuild')}, once that is written"


def shadow(b: Backtest, span: Span, change: Sequence[str], invoke: Invoke) -> Iterator[str]:
    """change: of asynchealth.toml, so that it goes on finding and nobody is told; none where it does so already."""
    yield f"{b.detector.name}, {span.days}: {_levels(b.now)} with the thresholds as they are{_most(b.now)}."
    if not change:
        yield f"It is a shadow already: nobody is told. To end that, take it out of shadow.detectors in {CONFIG}."
        yield f"Next: {invoke('findings')}"
        return
    yield "As a shadow it finds the same, at a level of its own: no page, no warning, and nobody is told."
    yield from change
    yield f"Next: {invoke('rebuild')}, once that is written; workers and landers must be started again"


def _levels(found: pl.DataFrame) -> str:
    page, warn = (found.filter(level=level).height for level in ("page", "warn"))
    return f"{page:,} page, {warn:,} warn"


def _most(found: pl.DataFrame) -> str:
    """190 of them of gateway->payment."""
    by = found.group_by("subject").len().sort("len", "subject", descending=[True, False])
    subject, many = by.row(0) if len(by) else ("", 0)
    return f", {many:,} of them from {subject}" if len(by) > 1 and 2 * many > len(found) else ""


def _numbers(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{n.partition('.')[2]} = {v:g}" for n, v in numbers.items())


def _why_none(b: Backtest) -> str:
    if len(b.now) <= A_DAY * b.days:
        few = f"No change: that is {A_DAY} findings a day or fewer."
        return few if b.detector.irreversible else f"{few} Try one: --set {_example(b.detector)}"
    if b.detector.irreversible:
        return "No change: what can't be taken back is not tuned away. Look at the findings."
    return f"No change: none of these leaves {A_DAY} findings a day or fewer. Look at the findings."


def _example(detector: Detector) -> str:
    """One of its thresholds, as it can be typed: twice what it is by default."""
    one = detector.thresholds[0]
    return f"{detector.name}.{one.name}={min(2 * one.default or 1, one.high):g}"


def _lost(b: Backtest, trial: Trial, span: Span) -> Iterator[str]:
    """Of each subject what would not be found any more, and what would."""
    every = pl.concat([b.now.with_columns(n=-1), trial.found.with_columns(n=1)])
    by = every.group_by(WHO).agg(
        before=(pl.col("n") < 0).sum(),
        after=(pl.col("n") > 0).sum(),
        pages_before=((pl.col("n") < 0) & (pl.col("level") == "page")).sum(),
        pages_after=((pl.col("n") > 0) & (pl.col("level") == "page")).sum(),
        peak=pl.col("peak").filter(pl.col("n") < 0).max(),
        unit=pl.col("unit").first(),
    )
    differ = by.filter((pl.col("before") != pl.col("after")) | (pl.col("pages_before") != pl.col("pages_after")))
    rows = differ.sort(pl.col("before") - pl.col("after"), *WHO, descending=[True] + [False] * len(WHO)).to_dicts()
    for row in rows[:SHOWN]:
        worst = "" if row["peak"] is None else f", the worst at {row['peak']:,.3g} {row['unit']}"
        pages = f" ({row['pages_before']:,} → {row['pages_after']:,} page)"
        yield f"  {row['subject']}: {row['before']:,} → {count(row['after'], 'finding')}{pages}{worst}"
    if len(rows) > SHOWN:
        yield f"  and {count(len(rows) - SHOWN, 'subject')} more"
    if not rows:
        yield "  the same findings"
    kept, now = len(trial.found), len(b.now)
    yield f"{count(kept, 'finding')} instead of {now:,}."


def data(b: Backtest) -> dict[str, Any]:
    def of(found: pl.DataFrame) -> dict[str, Any]:
        subjects = found.group_by("subject").len().sort("len", "subject", descending=[True, False])
        return {
            "page": found.filter(level="page").height,
            "warn": found.filter(level="warn").height,
            "subjects": dict(subjects.iter_rows()),
        }

    def trial(t: Trial | None) -> dict[str, Any] | None:
        return {"set": dict(t.numbers), "service": t.service, **of(t.found)} if t else None

    return {
        "detector": b.detector.name,
        "days": b.days,
        "now": of(b.now),
        "trials": [trial(t) for t in b.trials],
        "proposed": trial(b.proposed),
    }
