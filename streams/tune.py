"""Landed tables and other thresholds enter; what these would have found leaves, and the change of asynchealth.toml."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from detectors.detector import Detector, Settings, Threshold
from detectors.subjects import ARROW, OF_SERVICE, names
from streams.again import Landed
from streams.problems import Problem
from streams.settings import CONFIG, EXAMPLE

FACTORS = (1.5, 2, 3, 5, 10)  # of the thresholds as they are
OF_NONE = (1, 2, 5, 10, 20)  # where any is too many
A_DAY = 3  # findings of one detector that people can look at
LEAST, MOST_OF_ONE = 4, 0.5  # findings, of which so large a share are of one service: then only its thresholds change


@dataclass(frozen=True)
class Trial:
    """Other numbers, of all or of one service, and what they would have found: rows of FINDING."""

    numbers: Mapping[str, float]
    service: str
    found: pl.DataFrame

    def level(self, level: str) -> int:
        return self.found.filter(level=level).height


@dataclass(frozen=True)
class Backtest:
    """now: what the thresholds that are set find; trials: what others would; proposed: the mildest that is enough."""

    detector: Detector
    days: float
    now: pl.DataFrame
    trials: Sequence[Trial]
    proposed: Trial | None


def tried(landed: Landed, detector: Detector, settings: Settings, numbers: Mapping[str, float]) -> Backtest:
    """With the numbers that somebody asks for."""
    trial = trial_of(landed, settings, numbers, "")
    return Backtest(detector, landed.days, landed.found(settings), [trial], trial)


def proposed(landed: Landed, detector: Detector, settings: Settings) -> Backtest:
    """Higher thresholds, step by step: of the one service that most findings are of, if they are, else of all.

    Of what can't be taken back nothing is tuned away.
    """
    now, days = landed.found(settings), landed.days
    many = A_DAY * days
    trials: list[Trial] = []
    if len(now) > many and not detector.irreversible:
        for service in [*_noisiest(detector, now), ""]:
            for numbers in steps(detector, settings, service):
                trials.append(trial_of(landed, settings, numbers, service))
                if len(trials[-1].found) <= many:
                    return Backtest(detector, days, now, trials, trials[-1])
    return Backtest(detector, days, now, trials, None)


def trial_of(landed: Landed, settings: Settings, numbers: Mapping[str, float], service: str) -> Trial:
    return Trial(numbers, service, landed.found(changed(settings, numbers, service)))


def changed(settings: Settings, numbers: Mapping[str, float], service: str) -> Settings:
    if not service:
        return Settings({**settings.values, **numbers}, settings.per_service, settings.ttl_us)
    own = {**settings.per_service, service: {**settings.per_service.get(service, {}), **numbers}}
    return Settings(settings.values, own, settings.ttl_us)


def steps(detector: Detector, settings: Settings, service: str = "") -> Iterator[dict[str, float]]:
    """Higher and higher thresholds, all in one measure, so that a warning stays below its page."""
    own = [t for t in detector.thresholds if t.level in ("warn", "page")]
    some = [t for t in own if t.of == "value"] or own
    before: dict[str, float] = {}
    for factor, few in zip(FACTORS, OF_NONE, strict=True):
        numbers = {
            f"{detector.name}.{t.name}": _higher(t, _set(detector, settings, t, service), factor, few) for t in some
        }
        if numbers != before:
            yield numbers
        before = numbers


def _set(detector: Detector, settings: Settings, threshold: Threshold, service: str) -> float:
    own = settings.per_service.get(service, {})
    name = f"{detector.name}.{threshold.name}"
    return own.get(name, settings.get(detector.name, threshold.name, threshold.default))


def _higher(threshold: Threshold, now: float, factor: float, few: float) -> float:
    return min(float(f"{now * factor:.3g}") if now > 0 else few, threshold.high)


def _noisiest(detector: Detector, found: pl.DataFrame) -> list[str]:
    """The service that most of the findings are of, where there are several subjects."""
    if detector.subject_kind not in OF_SERVICE or len(found) < LEAST:
        return []
    services = [service_of(detector, s) for s in found["subject"]]
    most = max(sorted({*services}), key=services.count)
    return [most] if MOST_OF_ONE * len(services) < services.count(most) < len(services) else []


def service_of(detector: Detector, subject: str) -> str:
    return names(subject, ARROW)[1] if detector.subject_kind == "edge" else subject


# ---- asynchealth.toml -----------------------------------------------------------------------------------------------


def difference(trial: Trial, path: Path = Path(CONFIG)) -> list[str]:
    """The change of the file as a unified diff; where it can't be written line by line, what to put in."""
    before = path.read_text() if path.exists() else ""
    after = with_numbers(before, trial.numbers, trial.service)
    if after is None:
        where = f"services.{_key(trial.service)}.thresholds" if trial.service else "thresholds"
        return [f"in {path}: {where}.{name} = {value:g}" for name, value in trial.numbers.items()]
    told = difflib.unified_diff(before.splitlines(), after.splitlines(), str(path), str(path), n=1, lineterm="")
    return [*told]


def shaded(detector: Detector, path: Path = Path(CONFIG)) -> list[str]:
    """The change that makes a detector a shadow."""
    before = path.read_text() if path.exists() else ""
    after = with_shadow(before, detector.name)
    if after is None:
        return [f'in {path}: shadow.detectors must hold "{detector.name}"']
    return [*difflib.unified_diff(before.splitlines(), after.splitlines(), str(path), str(path), n=1, lineterm="")]


def with_shadow(text: str, name: str) -> str | None:
    """The file with one more shadow, or None where that can't be written into it line by line."""
    tree = tomllib.loads(text)
    names = [*tree.get("shadow", {}).get("detectors", []), name]
    line, kept = f"detectors = {json.dumps(names)}", text.splitlines()
    at = next((i for i, head in enumerate(kept) if head.strip() == "[shadow]"), None)
    if at is None:
        kept += [*([""] if kept else []), "[shadow]", line]
    else:
        kept[at + 1 : at + 2] = [line]
    after = "\n".join(kept) + "\n"
    try:
        return after if tomllib.loads(after) == tree | {"shadow": {"detectors": names}} else None
    except tomllib.TOMLDecodeError:  # the list stands there in other words
        return None


def with_numbers(text: str, numbers: Mapping[str, float], service: str) -> str | None:
    """The file with these numbers, or None where they can't be written into it line by line."""
    head = f"[services.{_key(service)}.thresholds]" if service else "[thresholds]"
    kept = text.splitlines()
    at = next((i for i, line in enumerate(kept) if line.strip() == head), None)
    fresh = [f"{name} = {value:g}" for name, value in numbers.items()]
    if at is None:
        kept += [*([""] if kept else []), head, *fresh]
    else:
        end = next((i for i, line in enumerate(kept) if i > at and line.lstrip().startswith("[")), len(kept))
        others = [line for line in kept[at + 1 : end] if line.partition("=")[0].strip() not in numbers]
        kept[at + 1 : end] = [*fresh, *others]
    after = "\n".join(kept) + "\n"
    try:
        return after if tomllib.loads(after) == _tree(text, numbers, service) else None
    except tomllib.TOMLDecodeError:  # the same numbers stand there in other words
        return None


def _tree(text: str, numbers: Mapping[str, float], service: str) -> dict[str, Any]:
    """What a file with these numbers must say."""
    tree = tomllib.loads(text)
    of = tree.setdefault("services", {}).setdefault(service, {}) if service else tree
    for name, value in numbers.items():
        detector, _, own = name.partition(".")
        of.setdefault("thresholds", {}).setdefault(detector, {})[own] = value
    return tree


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def of_detector(detector: Detector, settings: Settings, given: Sequence[str]) -> dict[str, float]:
    """What --set asks for, all of it about this detector."""
    asked = [text.partition("=")[0].strip() for text in given]
    for name in asked:
        if not name.startswith(f"{detector.name}."):
            raise Problem(f"--set {name}", f"tune {detector.name} tries numbers of {detector.name} alone", EXAMPLE)
    return {name: settings.values[name] for name in asked}
