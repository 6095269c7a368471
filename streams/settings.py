"""asynchealth.toml and --set enter, checked Settings leave: what logs cannot say.

[thresholds]
retry_storm.warn_per_min = 150
[services.payment]
idempotency_ttl = "48h"
kind = "internal"   # or "database", "external": where triage leads when it is slow
thresholds = { timeout_budget.warn_pct = 90 }   # also of the edges that call it; nodes, entities, … have no service
[lake]
keep_days = 14
max_gb = 200

The table [privacy] is read in streams.privacy.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from detectors.detector import Detector, Settings, Threshold
from detectors.subjects import OF_SERVICE
from streams.privacy import Privacy, privacy
from streams.problems import Problem

CONFIG = "asynchealth.toml"
EXAMPLE = 'services.payment = { idempotency_ttl = "48h", thresholds = { timeout_budget.warn_pct = 90 } }'
LONGEST_US = 10 * 366 * 86_400_000_000  # spans beyond ten years are slips, and overflow arithmetic in µs
SPANS_US = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}


KEEP_DAYS = 14
LONGEST_DAYS = 3660


@dataclass(frozen=True)
class Limits:
    """How long a lander keeps rows and tables, and in how much room: whole hours leave, the oldest first."""

    keep_days: float = KEEP_DAYS
    max_gb: float | None = None  # as much as there is


def limits(path: Path = Path(CONFIG)) -> Limits:
    """The table [lake]."""
    given = _table(read(path), "lake", str(path))
    highest = {"keep_days": LONGEST_DAYS, "max_gb": LARGEST}
    for name, value in given.items():
        where, then = f"{path}: lake.{name}", "write it as in: lake = { keep_days = 14, max_gb = 200 }"
        if name not in highest:
            raise Problem(where, f"no such setting; there are {', '.join(highest)}", then)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= highest[name]:
            raise Problem(where, f"{value!r} is not a number above 0, of at most {highest[name]:g}", then)
    return Limits(**given)


def private(path: Path = Path(CONFIG)) -> Privacy | None:
    """The table [privacy]."""
    return privacy(read(path), path)


def span_us(text: str) -> int:
    """ "90s", "10m", "48h", "30d" to µs."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m|h|d)", text.strip())
    span = round(float(found[1]) * SPANS_US[found[2]]) if found else LONGEST_US + 1
    if span > LONGEST_US:
        raise Problem(text, "not a span of time up to ten years", "write it like 30s, 10m, 48h or 7d")
    return span


def load(detectors: Iterable[Detector], overrides: Iterable[str] = (), path: Path = Path(CONFIG)) -> Settings:
    """The file where there is one, then each `detector.threshold=value` over it."""
    every = list(detectors)
    known = {f"{d.name}.{t.name}": t for d in every for t in d.thresholds}
    ranges = {f"{d.name}.{n}": Range(0, LARGEST, "") for d in every for n in d.numbers}
    ranges |= {name: Range(t.low, t.high, t.unit) for name, t in known.items()}
    config = read(path)
    services = _table(config, "services", str(path))
    hidden = privacy(config, path) if services else None
    own = {hidden.service(s) if hidden else s: _table(services, s, f"{path}, services") for s in services}
    values = _checked(ranges, _flat(_table(config, "thresholds", str(path))), str(path))
    given = dict(_split(o) for o in overrides)
    values |= _checked(ranges, given.items(), "--set")
    at = {s: f"{path}, services.{s}" for s in own}
    per_service = {s: _checked(ranges, _flat(_table(o, "thresholds", at[s])), at[s]) for s, o in own.items()}
    for s, mine in per_service.items():
        _of_services(every, mine, at[s])
    for where, mine in [("thresholds", values), *((at[s], values | v) for s, v in per_service.items())]:
        _in_order(known, mine, where)
    ttl = {s: span_us(str(o["idempotency_ttl"])) for s, o in own.items() if "idempotency_ttl" in o}
    return Settings(values, per_service, ttl)


KINDS = ("database", "external", "internal")


def kinds(path: Path = Path(CONFIG)) -> dict[str, str]:
    """What each service is, where the file says so."""
    services = _table(read(path), "services", str(path))
    told = {s: _table(services, s, f"{path}, services").get("kind") for s in services}
    for service, kind in told.items():
        if kind not in (None, *KINDS):
            where = f"{path}, services.{service}: kind"
            raise Problem(where, f"{kind!r} is none of {', '.join(KINDS)}", f'services.{service}.kind = "internal"')
    return {s: k for s, k in told.items() if k}


def _table(tree: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    value = tree.get(name, {})
    if not isinstance(value, dict):
        raise Problem(f"{where}: {name}", "not a table", f"write it as in: {EXAMPLE}")
    return value


def read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise Problem(str(path), f"not TOML: {error}", f"write it as in: {EXAMPLE}") from None


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise Problem(f"--set {text}", "no value", "--set retry_storm.warn_per_min=150")
    return name.strip(), value.strip()


class Range(NamedTuple):
    """What a number may be."""

    low: float
    high: float
    unit: str


def _checked(ranges: Mapping[str, Range], given: Iterable[tuple[str, Any]], where: str) -> dict[str, float]:
    values = {}
    for name, value in given:
        detector = name.partition(".")[0]
        mine = [n for n in ranges if n.startswith(detector + ".")]
        if not mine:
            raise Problem(f"{where}: {name}", "no such detector", "asynchealth detectors")
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise Problem(f"{where}: {name}", f"{value!r} is not a number", "asynchealth detectors") from None
        if name not in ranges:
            raise Problem(f"{where}: {name}", f"no such setting; there are {', '.join(mine)}", "asynchealth detectors")
        low, high, unit = ranges[name]
        if not low <= number <= high:
            wanted = f"{low:g} to {high:g} {unit}".strip()
            raise Problem(f"{where}: {name}", f"{number:g} is out of range ({wanted})", "asynchealth detectors")
        values[name] = number
    return values


def _of_services(detectors: Iterable[Detector], values: Iterable[str], where: str) -> None:
    """A service's own number for a subject that belongs to no service would change nothing."""
    kind = {d.name: d.subject_kind for d in detectors}
    for name in values:
        detector, _, own = name.partition(".")
        if kind[detector] not in OF_SERVICE:
            reason = f"{detector} judges by {kind[detector]}, and a {kind[detector]} belongs to no service"
            raise Problem(f"{where}: {name}", reason, f"for all: {detector}.{own} below [thresholds]")


def _in_order(known: Mapping[str, Threshold], values: Mapping[str, float], where: str) -> None:
    """A warning beyond the page would never be seen."""
    for name, threshold in known.items():
        page = name.replace(".warn_", ".page_")
        if threshold.level != "warn" or page not in known:
            continue
        low, high = (values.get(n, known[n].default) for n in (name, page))
        if low > high:
            reason = f"{name} = {low:g} is above {page} = {high:g}, so it would never warn"
            raise Problem(where, reason, f"--set {page}={low:g}, or a lower {name.partition('.')[2]}")


LARGEST = 1e12


def rows_of(settings: Settings) -> list[tuple[str, str, str]]:
    """What was set, as rows of a state's table `settings`: fingerprint, name and value. Defaults are not among them."""
    rows = {name: f"{value:g}" for name, value in settings.values.items()}
    for service, own in settings.per_service.items():
        rows |= {f"services.{service}.{name}": f"{value:g}" for name, value in own.items()}
    rows |= {f"services.{s}.idempotency_ttl": f"{us / SPANS_US['s']:g}s" for s, us in settings.ttl_us.items()}
    config = fingerprint(settings)
    return [(config, name, value) for name, value in sorted(rows.items())]


def fingerprint(settings: Settings) -> str:
    """What a finding was judged with: a short hash, equal for equal settings."""
    return hashlib.sha256(msgspec.json.encode(settings, order="sorted")).hexdigest()[:12]
