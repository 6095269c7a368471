"""The demo's state enters; its pages, pictures of them and the review of its worst incident leave, for docs/."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.browser import opened

DOCS = Path(__file__).parents[1] / "docs"


def asynchealth(state: str, *command: str) -> str:
    asked = [sys.executable, "-m", "streams.cli", *command, "--state", state]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout


def main(state: str) -> None:
    every = [json.loads(line) for line in asynchealth(state, "incident", "list", "--json").splitlines()]
    storm = max(every, key=lambda i: len(i["findings"]))["incident_id"]
    (DOCS / "postmortem.md").write_text(asynchealth(state, "postmortem", storm))
    asynchealth(state, "postmortem", storm, "--html", str(DOCS / "postmortem.html"))
    with tempfile.TemporaryDirectory() as folder, opened() as browser:
        timeline, report = (Path(folder) / f"{name}.html" for name in ("timeline", "report"))
        asynchealth(state, "timeline", "--html", str(timeline))
        report.write_text(asynchealth(state, "report", "--format", "html"))
        for page in (timeline, report, DOCS / "postmortem.html"):
            browser.visit(page)
            browser.page.screenshot(path=DOCS / f"{page.stem}.png")
            sys.stdout.write(f"docs/{page.stem}.png\n")
        if browser.outside or browser.complaints:
            sys.exit(f"asked outside: {browser.outside}; complained: {browser.complaints}")


if __name__ == "__main__":
    main(sys.argv[1])
