"""The demo's state enters, pictures of its pages leave, for docs/: python -m tests.screens STATE."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.browser import opened

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {"timeline": ["timeline"]}


def main(state: str) -> None:
    with tempfile.TemporaryDirectory() as folder, opened() as browser:
        for name, command in PAGES.items():
            page = Path(folder) / f"{name}.html"
            asked = [sys.executable, "-m", "streams.cli", *command, "--state", state, "--html", str(page)]
            subprocess.run(asked, check=True, stdout=subprocess.DEVNULL)
            browser.visit(page)
            browser.page.screenshot(path=DOCS / f"{name}.png")
            sys.stdout.write(f"docs/{name}.png\n")
        if browser.outside or browser.complaints:
            sys.exit(f"asked outside: {browser.outside}; complained: {browser.complaints}")


if __name__ == "__main__":
    main(sys.argv[1])
