"""A command and a folder enter, what starts the report each morning leaves: cron's line, systemd's units."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

HOUR = 7


def schedule(program: Sequence[str], state: Path, folder: Path) -> Iterator[str]:
    """Ready to paste. program: how it is called, from the root on; folder: where asynchealth.toml is looked for."""
    command = [*program, "report", "--since", "24h", "--format", "html", "--state", str(state)]
    page = state / "report.html"
    yield "# crontab -e   (the host's time)"
    yield f"0 {HOUR} * * * cd {_cron(folder)} && {' '.join(map(_cron, command))} > {_cron(page)}"
    yield ""
    yield "# /etc/systemd/system/asynchealth-report.service"
    yield "[Unit]"
    yield "Description=The morning report of asynchealth"
    yield ""
    yield "[Service]"
    yield "Type=oneshot"
    yield f"WorkingDirectory={_plain(folder)}"
    yield f"ExecStart={' '.join(map(_systemd, command))}"
    yield f"StandardOutput=truncate:{_plain(page)}"
    yield ""
    yield "# /etc/systemd/system/asynchealth-report.timer"
    yield "[Unit]"
    yield "Description=The morning report of asynchealth, each morning"
    yield ""
    yield "[Timer]"
    yield f"OnCalendar=*-*-* {HOUR:02d}:00:00 UTC"
    yield "Persistent=true"
    yield ""
    yield "[Install]"
    yield "WantedBy=timers.target"
    yield ""
    yield "# Then: sudo systemctl daemon-reload && sudo systemctl enable --now asynchealth-report.timer"


def _cron(word: str | Path) -> str:
    """For a shell, on a line where a percent sign would end the command."""
    return shlex.quote(str(word)).replace("%", "\\%")


def _systemd(word: str) -> str:
    """One argument: percent and dollar signs stand for something else there."""
    safe = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{safe}"' if safe != word or " " in word else word


def _plain(path: Path) -> str:
    """A setting that is a path to its line's end."""
    return str(path).replace("%", "%%")
