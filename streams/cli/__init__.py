"""The command line: parse, call, print. Heavy imports wait until a command needs them, so that --help is instant."""

from __future__ import annotations

import os
import sys

import typer

from streams.cli import after, doctor, incident, live, look, map, notify, oncall, up, work
from streams.problems import Exit, Problem

app = typer.Typer(
    name="asynchealth",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Says, with evidence, what went wrong in asynchronous services: from the logs they already write.",
)
work.register(app)
look.register(app)
incident.register(app)
after.register(app)
oncall.register(app)
doctor.register(app)
map.register(app)
live.register(app)
up.register(app)
notify.register(app)


def main() -> None:
    os.environ.setdefault("_RJEM_MALLOC_CONF", "narenas:1")  # polars' allocator, which keeps less for later
    try:
        app(standalone_mode=True)
    except Problem as problem:
        sys.stderr.write(f"{work.typed(str(problem))}\n")
        sys.exit(problem.code)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # who reads has enough: typer ends with 1, as if it had found
            _unread()
            sys.exit(Exit.FINE)
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _unread()
        raise
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the state is as it was before\n")
        sys.exit(130)


def _unread() -> None:
    """What is left to be written goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
