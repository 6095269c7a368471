"""Pages in a real browser: they load, zoom and filter, ask no outside host, and complain of nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import expect

from streams.landing.state import open_readable
from streams.report.found import Filter, Span, span_of
from streams.report.timeline import Entry, Timeline, timeline
from streams.report.timeline_forms import page
from tests.browser import Opened, Unavailable, opened

pytestmark = pytest.mark.xdist_group("browser")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Opened]:
    try:
        with opened() as browser:
            yield browser
    except Unavailable as why:
        if os.environ.get("ASYNCHEALTH_NO_SKIP"):
            raise
        pytest.skip(str(why))


def rows(browser: Opened) -> list[str]:
    return [r.inner_text() for r in browser.page.locator("#rows tr").all()]


def bars(browser: Opened) -> int:
    return browser.page.locator("#chart [data-i]").count()


def test_the_timeline_loads_filters_and_zooms(demo_state: Path, tmp_path: Path, chromium: Opened) -> None:
    with open_readable(demo_state) as con:
        span = span_of(con, "")
        known = timeline(con, span, Filter())
    (tmp_path / "t.html").write_text(page(known, span))
    chromium.visit(tmp_path / "t.html")
    assert len(rows(chromium)) == bars(chromium) == len(known.entries) > 50
    chromium.page.fill("#filter", "order/cart conflicts")
    some = rows(chromium)
    assert 0 < len(some) < 5 and all("order/cart" in r and "conflicts" in r for r in some)
    chromium.page.fill("#filter", "")
    chromium.page.uncheck("[data-kind=event]")
    assert len(rows(chromium)) == sum(e.what != "event" for e in known.entries)
    chromium.page.check("[data-kind=event]")
    for _ in range(3):
        chromium.page.click("#in")
    assert 0 < len(rows(chromium)) < len(known.entries)
    chromium.page.click("#all")
    assert len(rows(chromium)) == len(known.entries)
    box = chromium.page.locator("#chart").bounding_box()
    assert box
    chromium.page.mouse.move(box["x"] + 600, box["y"] + 100)
    for _ in range(4):
        chromium.page.mouse.wheel(0, -400)
    expect(chromium.page.locator("#rows tr")).not_to_have_count(len(known.entries))
    chromium.page.click("#all")
    chromium.page.locator("#chart rect[data-i]").first.click()
    assert chromium.page.locator("tr.chosen").count() == 1
    assert chromium.outside == [] and chromium.complaints == []


def test_what_a_log_holds_runs_nowhere(tmp_path: Path, chromium: Opened) -> None:
    at = datetime(2026, 1, 26, 8, tzinfo=UTC)
    evil = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    entry = Entry(at, "event", evil, evil, (evil,), node=evil)
    late = replace(entry, at=at + timedelta(days=1), what="note")
    with_evil = Timeline((entry, late), (), None)
    (tmp_path / "t.html").write_text(page(with_evil, Span(at, late.at)))
    chromium.visit(tmp_path / "t.html")
    assert len(rows(chromium)) == 2 and evil in rows(chromium)[0]
    assert chromium.page.title().startswith("Timeline")
    assert chromium.outside == [] and chromium.complaints == []
