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
    try:
        app(standalone_mode=True)
    except Problem as problem:
        sys.stderr.write(f"{work.typed(str(problem))}\n")
        sys.exit(problem.code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.FINE)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the state is as it was before\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
