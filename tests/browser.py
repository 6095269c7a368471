"""A page enters; it is opened in a headless Chromium, and what it asked for and complained of is kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET = [*FLAGS, "--disable-sync", "--no-first-run"]


class Unavailable(Exception):
    """There is no browser here."""


@dataclass
class Opened:
    """page: to click on. outside: addresses it asked for that are not its own file; complaints: of its console."""

    page: Page
    outside: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def visit(self, path: Path) -> None:
        self.page.goto(path.resolve().as_uri())


@contextmanager
def opened(width: int = 1400, height: int = 1100, dark: bool = False) -> Iterator[Opened]:
    found = next((at for name in NAMES if (at := shutil.which(name))), None)
    if found is None:
        raise Unavailable("no Chromium: apt-get install chromium")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=QUIET)
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
        seen = Opened(page)
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else seen.outside.append(r.url))
        page.on("console", lambda m: seen.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: seen.complaints.append(str(e)))
        try:
            yield seen
        finally:
            browser.close()
