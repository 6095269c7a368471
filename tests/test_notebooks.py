"""Every notebook, run on the demo's state, on a bundle in an empty folder, and where there is nothing to show."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jupytext
import polars as pl
import pytest
from IPython.display import Markdown
from nbclient import NotebookClient
from typer.testing import CliRunner

from streams.cli import app
from streams.landing.state import build, open_readable
from streams.report.damage import damage
from streams.report.found import all_findings
from tests.notebooks import NOTEBOOKS, charts, shown
from tests.streams.report.states import of_rows

CHARTS = {"1_incident": 1, "2_retry_storm": 4, "3_double_effects": 1, "4_clocks": 2, "5_tune": 1}
INCIDENT, STORM, DOUBLE, CLOCKS, TUNE = NOTEBOOKS
pytestmark = pytest.mark.xdist_group("notebooks")


@pytest.fixture(scope="module")
def bundle(demo_state: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storm's incident, in a folder where nothing else is."""
    to = tmp_path_factory.mktemp("bundle") / "storm.zip"
    with open_readable(demo_state) as con:
        sql = (
            "SELECT incident_id FROM incident_findings JOIN findings USING (finding_id) WHERE detector = 'retry_storm'"
        )
        ((incident,),) = con.execute(sql).fetchall()
    done = CliRunner().invoke(app, ["bundle", incident, "--out", str(to), "--state", str(demo_state)])
    assert done.exit_code == 0, done.output
    return to


@pytest.fixture(params=["state", "bundle"])
def given(
    request: pytest.FixtureRequest, demo_state: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """What the notebooks read; the working folder holds the bundle, and nothing but that when they have run."""
    monkeypatch.chdir(bundle.parent)
    yield demo_state if request.param == "state" else bundle
    assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]


def texts(some: list[Any]) -> str:
    return "\n".join(str(s.data) for s in some if isinstance(s, Markdown))


def rows(chart: Any) -> int:
    """Of the largest layer's data."""
    return max(len(data) for data in chart.to_dict()["datasets"].values())


def test_the_incident_with_its_chain_its_bars_and_its_timeline(given: Path) -> None:
    cells, names = shown(INCIDENT, str(given))
    (gantt,) = charts(cells)
    assert {f.detector for f in names["found"]} >= {"timeout_budget", "retry_storm", "duplicate_key"}
    assert rows(gantt) == len(names["found"]) == 5
    assert gantt.title.text == "timeout_budget payment explains 4 other findings, within 7 min"
    assert "since callers try again what timed out" in texts(cells)
    happened = cells[-1]
    assert set(happened["what"]) >= {"finding"} and happened["at"].is_sorted() and len(happened) >= 10


def test_the_storm_by_windows_and_by_tries_counts_what_the_finding_counts(given: Path) -> None:
    cells, names = shown(STORM, str(given))
    storm, calls, tries = names["storm"], names["calls"], names["tries"]
    anatomy, retries, amplification, by_try = charts(cells)
    assert calls["a_minute"].max() == storm.peak and f"{storm.peak:,.0f} a minute" in retries.title.text
    inside = calls.filter(pl.col("at").is_between(storm.onset, storm.last, closed="left"))
    assert inside["retries"].sum() == tries["attempts"].sum() == storm.count > 2000
    assert rows(anatomy) == 4 * len(calls) and rows(by_try) == len(tries)
    assert names["levels"].rows() == [("warn", 100.0, "retries/min"), ("page", 500.0, "retries/min")]
    assert "1.8 times" in amplification.title.text and "tr-6aa9 timeout_ratio" in texts(cells)


def test_the_damage_list_and_both_attempts_with_their_error(given: Path, demo_state: Path) -> None:
    cells, names = shown(DOUBLE, str(given))
    with open_readable(demo_state) as con:
        assert names["rows"] == damage(con, all_findings(con))
    (proof,) = charts(cells)
    drawn = names["attempts"]
    assert len(names["listed"]) == 23 and drawn["key"].n_unique() == 4 and rows(proof) == len(drawn) == 16
    assert drawn.group_by("key").agg(pl.col("effect").sum())["effect"].to_list() == [2] * 4
    assert drawn["half_ms"].is_between(0.1, 10).all()
    assert proof.title.text == "23 effects made twice, all of them certain"


def test_the_clocks_that_are_off_lie_outside_and_no_other_does(given: Path) -> None:
    cells, names = shown(CLOCKS, str(given))
    course, bars = charts(cells)
    assert set(names["fleet"].outside) == {"payment-3", "search-2"}
    assert bars.title.text.startswith("2 clocks of 48") and rows(bars) == 48
    assert rows(course) > 21 * 20
    after = names["known"].filter(pl.col("at") >= datetime(2026, 1, 26, 8, 17, tzinfo=UTC), node="payment-3")
    assert len(after) > 10 and (after["lower_ms"] <= 847).all() and (after["upper_ms"] >= 847).all()
    assert "was set forward by 838 ms or more" in texts(cells[-1:])


def test_other_thresholds_and_the_change_to_write(given: Path) -> None:
    cells, names = shown(TUNE, str(given))
    (swept,) = charts(cells)
    assert rows(swept) == 14
    found = dict(names["lasting"].select("value", "findings").iter_rows())
    assert found["100"] == 1 and found["1000"] == 0
    assert swept.title.text == "1 finding at 100 retries/min, as it is; 0 at 1000"
    tested = names["tune"].tried(names["landed"], names["detector"], names["o"].settings, names["numbers"](1000.0))
    assert "+retry_storm.warn_per_min = 1000" in names["tune"].difference(tested.proposed, names["o"].config)


# ---- where there is nothing to show ----


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred calls that went well."""
    start = datetime(2026, 1, 26, 8, tzinfo=UTC)
    calls = [
        {"timestamp": (start + timedelta(seconds=n)).isoformat(), "service_name": "shop", "node_id": f"shop-{n % 3}",
         "status": "ok", "retry_count": 0, "duration_ms": 5.0}
        for n in range(100)
    ]  # fmt: skip
    return of_rows(tmp_path_factory.mktemp("calm"), requests=calls)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = tmp_path_factory.mktemp("empty")
    with build(state):
        pass
    return state


@pytest.mark.parametrize("which", ["calm", "empty"])
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_where_nothing_is_wrong_a_sentence_says_so(
    notebook: Path, which: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cells, _ = shown(notebook, str(request.getfixturevalue(which)))
    assert charts(cells) == [] and all(isinstance(c, Markdown) for c in cells[1:])
    said = "There is no incident|there is no storm|No effect was seen|nothing can be said|None of these finds anything"
    assert sum(s in texts(cells) for s in said.split("|")) >= 1


def test_jupyter_runs_them_and_draws_pictures_without_a_browser(
    given: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ASYNCHEALTH_STATE", str(given))
    book = jupytext.read(STORM)
    NotebookClient(book, timeout=300, kernel_name="python3").execute(cwd=str(tmp_path))
    outputs = [o for c in book.cells if c.cell_type == "code" for o in c.outputs]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == CHARTS[STORM.stem]
    assert not [o for o in outputs if o.output_type in ("error", "stream")]


def test_where_no_state_is_a_notebook_says_so_and_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASYNCHEALTH_STATE", "asynchealth-state")
    book = jupytext.read(STORM)
    NotebookClient(book, timeout=300, kernel_name="python3", allow_errors=True).execute(cwd=str(tmp_path))
    errors = [o for c in book.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
    missing = f"{tmp_path / 'asynchealth-state'}: no state folder and no bundle is there"
    assert errors[0]["traceback"] == [f'{missing}\nNext: make notebooks STATE=demo-state, or another STATE = "…" above']


def test_each_draws_what_docs_show() -> None:
    drawn = {p.stem for p in (STORM.parents[1] / "docs" / "notebooks").glob("*.png")}
    assert drawn == {f"{name}-{n}" for name, many in CHARTS.items() for n in range(1, many + 1)}
