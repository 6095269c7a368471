"""asynchealth.toml and installed packages enter, all detectors there are leave: shipped ones and users' own.

detectors = ["./detectors"]   # folders, from where the file is; this line stands above the first [table]
[shadow]
detectors = ["retry_storm"]   # what they find is landed as `shadow`, and nobody is told

NAME.py with its runbook NAME.md beside it is a detector, as in `detectors/catalog`; a file that begins with an
underscore is there for the others to import (`from ._shared import …`). A package names the module of each under the
entry point group `asynchealth.detectors`. What could not run is refused here, before anything is read.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType

import polars as pl

from detectors.detector import Detector, Entry, Settings, View
from detectors.detector import catalog as shipped
from detectors.events import LANDED, SCHEMA, STREAMS
from detectors.finding import levels
from detectors.table import Meet, Table
from detectors.windows import LATENESS_US, WINDOW_US, place
from streams.live.canary import CANARY
from streams.problems import Problem, shell
from streams.settings import CONFIG, read

GROUP = "asynchealth.detectors"
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
AGAIN = "asynchealth detectors says whether it loads"
THRESHOLD = 'Threshold("warn_per_min", "warn", 100, "retries/min", 0, 1e9)'
TAKEN = {
    *("meta", "lake_parts", "recordings", "rejects", "accounting", "coverage", "detectors", "settings", "runs"),
    *("judged_with", "lost"),
    *(
        "removed",
        "recent",
        "findings",
        "finding_changes",
        "incidents",
        "incident_changes",
        "causes",
        "incident_findings",
    ),
    *("positions", "taken", "landed", CANARY.name),
    *STREAMS,
}  # tables and views of a state that are not measured


def catalog(path: Path = Path(CONFIG)) -> dict[str, Entry]:
    """All detectors by name, the shipped ones first."""
    return _catalog(path.resolve())


def all_detectors(path: Path = Path(CONFIG)) -> list[Detector]:
    return [e.detector for e in catalog(path).values()]


def file_of(entry: Entry) -> Path:
    return Path(entry.module.__file__ or entry.module.__name__)


def runbook_of(entry: Entry) -> Path:
    return file_of(entry).with_name(f"{entry.detector.name}.md")


@cache
def _catalog(path: Path) -> dict[str, Entry]:
    ours = shipped()
    own: dict[str, Entry] = {}
    for entry in [*_of_folders(path), *_of_packages()]:
        name, file = entry.detector.name, file_of(entry)
        if name in ours:
            raise Problem(str(file), f"{name} is the name of a shipped detector", f"rename file and detector; {AGAIN}")
        if name in own:
            raise Problem(f"{file_of(own[name])} and {file}", f"both are named {name}", f"rename one of them; {AGAIN}")
        for reason, then in _faults(entry):
            raise Problem(str(file), reason, then)
        own[name] = entry
    every = {**ours, **dict(sorted(own.items()))}
    _one_table_a_name(every)
    for entry in own.values():
        _try_out(entry)
    shaded = shadows(path, every)
    return {n: replace(e, detector=replace(e.detector, shadow=True)) if n in shaded else e for n, e in every.items()}


def shadows(path: Path, known: Collection[str]) -> list[str]:
    """The detectors of whose findings nobody is told."""
    given = read(path).get("shadow", {})
    names = given.get("detectors", []) if isinstance(given, dict) else None
    if not isinstance(names, list) or not isinstance(given, dict) or given.keys() - {"detectors"}:
        then = 'write it as in: shadow = { detectors = ["retry_storm"] }'
        raise Problem(f"{path}: shadow", "not a table with a list of detectors", then)
    for name in names:
        if name not in known:
            raise Problem(f"{path}: shadow.detectors: {name!r}", "no such detector", "asynchealth detectors")
    return names


# ---- where they come from ------------------------------------------------------------------------------------------


def _of_folders(path: Path) -> Iterator[Entry]:
    named = read(path).get("detectors", [])
    if not isinstance(named, list) or not all(isinstance(n, str) for n in named):
        raise Problem(f"{path}: detectors", "not a list of folders", 'write it as in: detectors = ["./detectors"]')
    for folder in dict.fromkeys((path.parent / n).resolve() for n in named):
        if not folder.is_dir():
            raise Problem(
                f"{path}: detectors", f"there is no folder {folder}", f"ls {shell(folder.parent)}, and mend {path}"
            )
        files = sorted(f for f in folder.glob("*.py") if not f.name.startswith("_"))
        if not files:
            raise Problem(str(folder), "no detector in it, which would be NAME.py with NAME.md", f"ls {shell(folder)}")
        package = _package(folder)
        for file in files:
            yield _entry(imported(f"{package}.{file.stem}", str(file), folder), file.stem, str(file))


def _package(folder: Path) -> str:
    """The folder as a package, under a name of its own, so that its files can import each other."""
    name = f"asynchealth_detectors_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    sys.modules[name] = module_from_spec(spec)
    return name


def _of_packages() -> Iterator[Entry]:
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        where = _spelt(point)
        module = imported(point.module, where, Path("/"))
        yield _entry(module, point.name, where)


def _spelt(point: EntryPoint) -> str:
    return f"{point.dist.name if point.dist else '?'}, entry point {point.name} = {point.value}"


def imported(name: str, where: str, within: Path) -> ModuleType:
    """A module of users'; what it raises is told with the innermost line of a file that lies within a folder."""
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        line, reason = _told(error, within)
        raise Problem(line or where, f"does not import: {reason}", f"mend it; {AGAIN}") from error


def _told(error: BaseException, within: Path) -> tuple[str, str]:
    """The innermost line of a user's own file that raised, and what it said."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}", f"SyntaxError: {error.msg}"
    said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    theirs = [f for f in traceback.extract_tb(error.__traceback__) if _is_theirs(f.filename, within)]
    if not theirs:
        return "", said
    return f"{theirs[-1].filename}, line {theirs[-1].lineno}", f"{said} ({theirs[-1].line})"


def _is_theirs(file: str, within: Path) -> bool:
    return Path(file).is_relative_to(within) and file not in (__file__, importlib.__file__)


def _entry(module: ModuleType, name: str, where: str) -> Entry:
    found = getattr(module, name, None)
    if isinstance(found, Detector) and found.name == name and NAME.fullmatch(name):
        return Entry(found, module)
    others = {n: d.name for n, d in vars(module).items() if isinstance(d, Detector)}
    if not others:
        then = f'{name} = Detector(name="{name}", …), or _{name} if others import it; {AGAIN}'
        raise Problem(where, "no detector in it", then)
    listed = ", ".join(f'{n} (name="{d}")' for n, d in sorted(others.items()))
    reason = f"file, variable and name= must be one word of a-z, 0-9 and _; file {name}, but {listed}"
    raise Problem(where, reason, f"rename what differs; {AGAIN}")


# ---- whether they can run -------------------------------------------------------------------------------------------


def _faults(entry: Entry) -> Iterator[tuple[str, str]]:
    """What can be seen without running it: reason and next step."""
    d = entry.detector
    if not entry.doc.strip():
        yield "no docstring", 'begin it with """What it finds, in one line.""", which asynchealth detectors shows'
    if not runbook_of(entry).is_file():
        yield f"no runbook {d.name}.md beside it", f"write into {runbook_of(entry)} what to do, step by step"
    if not d.thresholds:
        yield "no threshold, so it would never find anything", f"thresholds=({THRESHOLD},)"
    for t in d.thresholds:
        if not t.unit.strip():
            yield f"threshold {t.name} has no unit", f"write it as in: {THRESHOLD}"
        if not t.low <= t.default <= t.high:
            reason = f"threshold {t.name} = {t.default:g} is out of its own range ({t.low:g} to {t.high:g})"
            yield reason, f"write it as in: {THRESHOLD}"
    streams = {s: t.name for t in d.tables for s in t.streams}
    for stream, table in streams.items():
        if stream not in STREAMS:
            yield f"its table {table} reads {stream}, which is no stream", f"one of {', '.join(STREAMS)}"
    known = {n for s in streams if s in STREAMS for n in SCHEMA[s]}
    for name in (n for needed in (*d.needs, *(lack for lack, _ in d.lacks)) for n in needed.split(" or ")):
        if name not in known:
            yield f"it needs {name}, which is no field of {', '.join(sorted(streams))}", "see needs="


def _one_table_a_name(every: Mapping[str, Entry]) -> None:
    known: dict[str, tuple[Table, Path]] = {}
    for entry in every.values():
        file = file_of(entry)
        for table in entry.detector.tables:
            if table.name in TAKEN or not NAME.fullmatch(table.name):
                reason = f"no measured table can be named {table.name!r}: one word of a-z, 0-9, _ that a state has not"
                raise Problem(str(file), reason, f"another name=; {AGAIN}")
            first, where = known.setdefault(table.name, (table, file))
            if first is not table:
                reason = f"its table {table.name} is another than the {table.name} of {where}"
                raise Problem(str(file), reason, f"import that one, or give yours another name; {AGAIN}")


def _try_out(entry: Entry) -> None:
    """Runs it once over nothing: a column that is not there is said now, not when the first rows come."""
    d = entry.detector
    try:
        frames = {t.name: _nothing_of(t) for t in d.tables if not any(isinstance(s, Meet) for s in t.sources)}
        if len(frames) == len({t.name for t in d.tables}):
            also = {t.name: frames[t.name] for t in d.also}
            view = View(frames[d.reads.name], also, 0, WINDOW_US, WINDOW_US, Settings())
            levels(d, d.assess(view), Settings())
    except Exception as error:
        file = file_of(entry)
        line, reason = _told(error, file.parent)
        raise Problem(line or str(file), f"fails on an empty table: {reason}", f"mend it; {AGAIN}") from error


def _nothing_of(table: Table) -> pl.DataFrame:
    """The table of no rows at all."""
    parts = []
    for source in table.sources:
        rows = place(pl.DataFrame(schema=LANDED[source.stream]), source.stream, LATENESS_US)
        parts.append(table.first(table.select(source, rows.lazy())).collect())
    return table.merge(pl.concat(parts))
