"""Memory is given out by polars' allocator as a command asks for it, unless the environment says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TELL = """
import os
from streams import cli
def app(**_):
    os.environ["_RJEM_MALLOC_CONF"] += ",stats_print:true"
    import polars
cli.app = app
cli.main()
"""


@pytest.mark.parametrize(("given", "arenas"), [({}, 1), ({"_RJEM_MALLOC_CONF": "narenas:3"}, 3)])
def test_polars_shares_out_memory_from_as_many_arenas_as_the_command_asks_for(
    given: dict[str, str], arenas: int
) -> None:
    free = {n: v for n, v in os.environ.items() if n != "_RJEM_MALLOC_CONF"}
    told = subprocess.run([sys.executable, "-c", TELL], env=free | given, capture_output=True, text=True, check=True)
    assert f"opt.narenas: {arenas}\n" in told.stdout + told.stderr
