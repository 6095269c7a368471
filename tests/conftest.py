"""Fixtures that several folders share: the demo's state, made once a session, and the golden files."""

from __future__ import annotations

import fcntl
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer.main
import typer.testing
from _pytest.nodeid import NodeId
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

GOLDEN = Path(__file__).parent / "golden"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A group's tests run in one worker. xdist 3.8 writes the group where pytest 9.2 no longer reads it: its #1386."""
    if getattr(config.option, "loadgroup", False):
        for item in items:
            group = item.get_closest_marker("xdist_group")
            if group and not item.nodeid.endswith(f"@{group.args[0]}"):
                item._id = NodeId.parse(f"{item.nodeid}@{group.args[0]}")


@pytest.fixture(scope="session", autouse=True)
def parsers_made_once() -> Iterator[None]:
    """typer makes the parsers of all our commands anew each time that one runs: a fifth of what `report` costs."""
    with pytest.MonkeyPatch.context() as patch:
        made = functools.cache(typer.main.get_command)
        patch.setattr(typer.main, "get_command", made)
        patch.setattr(typer.testing, "_get_command", made)
        yield


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """A folder by its name, to be read only. Workers of one session share it: the first makes it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.made"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def demo_state(once: Once) -> Path:
    """What `make demo` makes, seed 1; its tape is demo-tape beside it."""
    from detectors.detector import Settings
    from streams.chaos.fleet import make_hour, write_tape
    from streams.replay import replay

    def make(folder: Path) -> None:
        write_tape(make_hour(1), folder / "demo-tape")
        replay([str(folder / "demo-tape")], folder / "demo-state", Settings())

    return once("demo", make) / "demo-state"


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compares a screen with tests/golden; ASYNCHEALTH_GOLDEN=write makes it the new one, for git diff to show."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("ASYNCHEALTH_GOLDEN") == "write":
            path.write_text(text)
        assert text == path.read_text(), f"{name} changed; if rightly so: ASYNCHEALTH_GOLDEN=write pytest"

    return compare
