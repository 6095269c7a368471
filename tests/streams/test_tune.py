"""Other thresholds tried on what was measured: what they would have found is what rebuild finds with them."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from detectors.detector import Settings, catalog
from streams.again import Landed
from streams.cli import app
from streams.landing.state import open_readable
from streams.problems import Problem
from streams.replay import rebuild
from streams.tune import Backtest, changed, proposed, steps, with_numbers
from tests.streams.report.states import of_rows
from tests.streams.tape import T0, request


def shown(state: Path, *args: str) -> str:
    result = CliRunner().invoke(app, ["tune", *args, "--state", str(state)], catch_exceptions=True)
    if isinstance(result.exception, Problem):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def noisy(folder: Path, rounds: int = 8) -> Path:
    """One edge where an eighth of the calls times out for a minute again and again, one with a single real fault."""
    rows = [
        request(
            0, timestamp=T0 + k / 2, arrival=T0 + k / 2 + 1, caller=caller, service_name=service, node_id=f"{caller}-1",
            status="timeout" if every and k % every == 0 else "ok", duration_ms=10,
        )
        for k in range(rounds * 600)
        for caller, service, every in (
            ("chatty", "cart", 8 if k % 600 < 120 else 0),
            ("gateway", "payment", 2 if 1_000 <= k < 1_200 else 0),
        )
    ]  # fmt: skip
    return of_rows(folder, requests=rows)


def backtest(state: Path, detector: str) -> Backtest:
    con = open_readable(state)
    try:
        d = catalog()[detector].detector
        return proposed(Landed(con, [d], 30_000_000), d, Settings())
    finally:
        con.close()


def test_what_one_noisy_edge_makes_is_tuned_for_its_service_alone(tmp_path: Path) -> None:
    found = backtest(noisy(tmp_path), "timeout_ratio")
    assert found.now.filter(subject="chatty->cart").height == 8 and len(found.now) == 9
    assert found.proposed and found.proposed.service == "cart"
    assert [*found.proposed.found["subject"]] == ["gateway->payment"], "the real storm stays"
    assert all(len(t.found) > 3 for t in found.trials[:-1]), "the mildest that is enough"


def test_the_proposal_gives_what_rebuild_finds_once_it_is_written(tmp_path: Path) -> None:
    state = noisy(tmp_path)
    found = backtest(state, "timeout_ratio")
    assert found.proposed
    rebuild(state, changed(Settings(), found.proposed.numbers, found.proposed.service))
    con = open_readable(state)
    ids = {i for (i,) in con.execute("SELECT finding_id FROM findings WHERE detector = 'timeout_ratio'").fetchall()}
    con.close()
    assert ids == {*found.proposed.found["finding_id"]}


def test_the_screen_says_how_many_from_whom_and_what_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = noisy(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asynchealth.toml").write_text('[services.cart]\nidempotency_ttl = "48h"\n')
    text = shown(state, "timeout_ratio")
    assert "8 of them from chatty->cart" in text and "chatty->cart: 8 → 0 findings" in text
    assert "+[services.cart.thresholds]\n+timeout_ratio.warn_ratio = 0.15\n" in text
    assert "1 finding instead of 9." in text


def test_numbers_that_are_asked_for_are_tried(demo_state: Path, tmp_path: Path) -> None:
    found = json.loads(shown(demo_state, "retry_storm", "--set", "retry_storm.page_per_min=700", "--json"))
    assert found["now"] == {"page": 1, "warn": 0, "subjects": {"gateway->payment": 1}}
    assert found["proposed"]["page"] == 0 and found["proposed"]["warn"] == 1
    assert "+retry_storm.page_per_min = 700" in found["change"]
    copy = shutil.copytree(demo_state, tmp_path / "copy")
    levels = rebuild(copy, Settings({"retry_storm.page_per_min": 700})).levels
    assert levels["page"] == 5


def test_few_findings_and_double_charges_are_not_tuned_away(demo_state: Path) -> None:
    text = shown(demo_state, "retry_storm")
    assert "No change: that is 3 findings a day or fewer. Try one: --set retry_storm.warn_per_min=200\n" in text
    assert "Try one" not in shown(demo_state, "duplicate_key")
    assert catalog()["duplicate_key"].detector.irreversible


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nothing"], "nothing: no such detector"),
        (["retry_storm", "--set", "clock_skew.warn_ms=3"], "tries numbers of retry_storm alone"),
        (["retry_storm", "--set", "retry_storm.warn_per_min=600"], "is above retry_storm.page_per_min"),
    ],
)
def test_a_wrong_trial_is_refused(args: list[str], said: str, demo_state: Path) -> None:
    with pytest.raises(Problem, match=said.replace(".", r"\.")):
        shown(demo_state, *args)


@pytest.mark.parametrize("name", catalog())
def test_each_step_is_higher_in_range_and_in_order(name: str) -> None:
    detector = catalog()[name].detector
    some = [*steps(detector, Settings())]
    assert some
    by = {f"{name}.{t.name}": t for t in detector.thresholds}
    for before, numbers in zip([{n: by[n].default for n in some[0]}, *some], some, strict=False):
        assert any(numbers[n] > before[n] for n in numbers) and all(numbers[n] >= before[n] for n in numbers)
        assert all(by[n].low <= v <= by[n].high for n, v in numbers.items())


# --- asynchealth.toml

NAME = st.sampled_from(["retry_storm.warn_per_min", "retry_storm.page_per_min", "timeout_ratio.warn_ratio"])
FILE = """detectors = ["./detectors"]

[thresholds]
retry_storm.warn_per_min = 150  # since the spring
clock_skew.warn_ms = 90

[services.payment]
idempotency_ttl = "48h"

[services.cart.thresholds]
retry_storm.warn_per_min = 5
"""


@given(st.dictionaries(NAME, st.integers(1, 1000), min_size=1), st.sampled_from(["", "payment", "cart", "a b.c"]))
def test_a_file_with_the_numbers_says_them_and_all_it_said_before(numbers: dict[str, int], service: str) -> None:
    for text in ("", FILE):
        after = with_numbers(text, {n: float(v) for n, v in numbers.items()}, service)
        assert after is not None
        tree, before = tomllib.loads(after), tomllib.loads(text)
        of = tree["services"][service] if service else tree
        for name, value in numbers.items():
            detector, _, own = name.partition(".")
            assert of["thresholds"][detector].pop(own) == value
        assert tree.get("detectors") == before.get("detectors")
        assert with_numbers(after, {n: float(v) for n, v in numbers.items()}, service) == after


def test_a_file_that_writes_thresholds_in_another_way_is_left_to_its_owner() -> None:
    inline = "[services.payment]\nthresholds = { retry_storm.warn_per_min = 5 }\n"
    assert with_numbers(inline, {"retry_storm.warn_per_min": 7.0}, "payment") is None
