"""The repository itself enters; what must leave is that it keeps its rules: arrow, lock, wheel, manners."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGES = ("detectors", "streams")
SCREEN = 60  # lines
ALLOWED_LIBRARIES = {"detectors", "msgspec", "numpy", "polars", "polars_hash", "scipy", "xxhash"}
REFUSED_STDLIB = {"io", "logging", "os", "pathlib", "random", "shutil", "socket", "subprocess", "tempfile", "time"}
REFUSED_CALLS = re.compile(r"open|print|input|now|utcnow|today|(read|scan|write|sink)_(csv|ndjson|json|parquet|ipc)")
IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
for name in ("streams", "duckdb", "faust", "kafka", "pyarrow"):
    sys.modules[name] = None  # any import of it now raises
import detectors
for module in pkgutil.walk_packages(detectors.__path__, "detectors."):
    print(importlib.import_module(module.name).__file__)
"""
ABSOLUTE = re.compile(r"(?<![\w./-])/(?:home|root|work|Users)/\w")


def tracked() -> list[Path]:
    """What git knows and the disk has; a file somebody has just removed is neither right nor wrong."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [path for name in names.split("\0") if (path := ROOT / name).is_file()]


def parsed(package: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        yield path.relative_to(ROOT), ast.parse(path.read_text())


def impurities(tree: ast.Module) -> Iterator[str]:
    """Imports and calls of one module through which a file, a clock, a log or the shell could reach `detectors`."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                roots = [alias.name.split(".")[0] for alias in names]
            case ast.ImportFrom(module=str(module), level=0):
                roots = [module.split(".")[0]]
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if REFUSED_CALLS.fullmatch(name):
                yield f"line {node.lineno}: {name}()"
                continue
            case _:
                continue
        for root in roots:
            if root in REFUSED_STDLIB or root not in ALLOWED_LIBRARIES | sys.stdlib_module_names:
                yield f"line {node.lineno}: import {root}"


@pytest.mark.parametrize(
    "source",
    [
        "import streams.cli",
        "from streams import cli",
        "import pyarrow.parquet as pq",
        "def f():\n    import duckdb",
        "from time import monotonic",
        "import os.path",
        "open('x')",
        "datetime.now(tz)",
        "pl.scan_parquet('x')",
        "frame.write_csv('x')",
    ],
)
def test_an_impurity_is_seen_wherever_it_hides(source: str) -> None:
    assert list(impurities(ast.parse(source)))


def test_detectors_touch_no_file_clock_log_or_database() -> None:
    modules = list(parsed("detectors"))
    assert modules
    assert {str(path): found for path, tree in modules if (found := list(impurities(tree)))} == {}


def test_detectors_can_be_imported_where_the_shell_and_its_libraries_do_not_exist() -> None:
    command = [sys.executable, "-c", IMPORT_EVERYTHING]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True)
    assert run.returncode == 0, run.stderr
    imported = {Path(line).relative_to(ROOT) for line in run.stdout.splitlines()}
    assert imported
    assert imported == {path for path, _ in parsed("detectors")} - {Path("detectors/__init__.py")}


WALL_CLOCK = re.compile(r"time\.time|datetime\.(now|utcnow|today)|date\.today|time\.(gmtime|localtime|ctime)")
MAY_ASK = {  # when a run was, when a person speaks or reads, a file's age, what is old news, where a past begins
    *("streams/replay.py", "streams/landing/lander.py", "streams/landing/lake.py", "streams/rejudge.py"),
    *("streams/live/up.py", "streams/cli/incident.py", "streams/notebooks/opened.py"),
    *("streams/watch/notify.py", "streams/watch/send.py", "streams/cli/notify.py", "streams/cli/up.py"),
}


def wall_clocks(tree: ast.Module) -> set[str]:
    """Where a module could learn what this host's clock says: by these names, or by taking them out of their module."""
    names = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    taken = {
        f"{n.module}.{a.name}"
        for n in ast.walk(tree)
        if isinstance(n, ast.ImportFrom) and n.module == "time"
        for a in n.names
    }
    return {n for n in names | taken if WALL_CLOCK.fullmatch(n)}


@pytest.mark.parametrize(
    "source", ["x = time.time()", "from time import time", "f(clock=time.time)", "datetime.now(UTC)"]
)
def test_a_look_at_the_wall_clock_is_seen(source: str) -> None:
    assert wall_clocks(ast.parse(source))


def divided(tree: ast.Module) -> Iterator[int]:
    """Lines that divide a column by a constant."""
    for n in ast.walk(tree):
        if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Div):
            columns = any(
                isinstance(c, ast.Call) and ast.unparse(c.func) in ("col", "pl.col") for c in ast.walk(n.left)
            )
            if columns and (isinstance(n.right, ast.Constant) or ast.unparse(n.right).isupper()):
                yield n.lineno


def test_no_detector_divides_a_column_by_a_constant() -> None:
    """polars multiplies by the reciprocal where there are several rows, and divides where there is one."""
    assert [*divided(ast.parse("pl.col('us').max() / 1_000\ncol('us') / MS_US\ncol('us') / col('n')"))] == [1, 2]
    assert [f"{path}:{line}" for path, tree in parsed("detectors") for line in divided(tree)] == []


def test_only_who_must_looks_at_the_hosts_clock_and_no_stage_does() -> None:
    """A worker on a host whose clock is an hour wrong says what the others say."""
    asking = {path.as_posix() for path, tree in parsed("streams") if wall_clocks(tree)}
    assert asking, "the notifier decides by it what is old news"
    assert asking - MAY_ASK == set()
    stages = {f"streams/live/{n}.py" for n in ("reduce", "match", "judge", "worker", "numbered", "ticks", "transport")}
    assert stages.isdisjoint(asking) and stages <= {path.as_posix() for path, _ in parsed("streams")}


def test_the_lock_holds_hashes_and_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^\S+==\S+.*?(?=^\S|\Z)", lock, re.MULTILINE | re.DOTALL)
    assert pins
    assert all("--hash=sha256:" in pin for pin in pins)
    assert "".join(pins) == lock, "a line of the lock is neither a pin nor its hashes"
    assert not re.search(r"https?:|://|(^|\s)/", lock)


def test_the_lock_satisfies_every_dependency_the_project_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]
    versions: dict[str, list[str]] = {}
    for name, version in re.findall(r"^(\S+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE):
        versions.setdefault(name, []).append(version)
    assert named
    for requirement in named:
        locked = versions.get(canonicalize_name(requirement.name), [])
        assert locked, f"{requirement.name} is not in the lock: make lock"
        assert all(version in requirement.specifier for version in locked), f"{requirement} != {locked}: make lock"


def test_the_wheel_carries_every_file_of_both_packages_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    carried = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {str(path.relative_to(ROOT)) for path in tracked() if path.relative_to(ROOT).parts[0] in PACKAGES}
    assert {f"{package}/py.typed" for package in PACKAGES} <= wanted
    assert wanted <= carried
    assert {name.split("/")[0] for name in carried} == set(PACKAGES)


def test_no_tracked_file_names_a_place_on_somebodys_machine() -> None:
    texts = {path: data.decode() for path in tracked() if b"\0" not in (data := path.read_bytes())}
    assert texts
    assert {str(path): found.group() for path, text in texts.items() if (found := ABSOLUTE.search(text))} == {}


def test_no_link_is_tracked() -> None:
    """It would lead to a place on somebody's machine."""
    staged = subprocess.run(["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    modes = {line.split("\t")[1]: line.split()[0] for line in staged.splitlines()}
    assert modes
    assert [name for name, mode in modes.items() if mode == "120000"] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_function_fits_a_screen(package: str) -> None:
    lines = {
        f"{path}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path, tree in parsed(package)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert lines
    assert {name: length for name, length in lines.items() if length > SCREEN} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is_for(package: str) -> None:
    modules = list(parsed(package))
    assert modules
    assert [str(path) for path, tree in modules if not ast.get_docstring(tree)] == []


@pytest.mark.xdist_group("house")
def test_a_group_is_written_where_the_scheduler_reads_it(request: pytest.FixtureRequest) -> None:
    """Else nothing fails, and each worker has a Kafka of its own and makes what a group shares."""
    distributed = getattr(request.config.option, "loadgroup", False)
    assert request.node.nodeid.endswith("@house") == distributed
