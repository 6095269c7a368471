"""Findings of every firing case enter; what must leave is a sentence of their detector's own, in the users' words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from detectors.detector import catalog
from streams.cli import app
from streams.landing.state import open_readable
from streams.report.found import Found, all_findings
from streams.report.sentences import SENTENCES, amount, duration, sentence
from tests.cases import Case, cases, partitions, retry_storm
from tests.cases.clock_drift import beats
from tests.conftest import Once
from tests.streams.report.states import of_case

FIRING = cases("fires_")
INNER_WORDS = re.compile(r"\b(slices?|fates?|frontiers?|match(es)?|None(?! detected)|nan|inf)\b")
QUERY = re.compile(r'sql "[^"]*"')  # there `fate` is the name of a column


def found_in(state: Path) -> Iterator[Found]:
    con = open_readable(state)
    yield from all_findings(con)
    con.close()


def about(f: Found) -> list[list[str]]:
    """The filters that name what a finding is about."""
    match f.subject_kind:
        case "node" | "service":
            return [[f"--{f.subject_kind}", f.subject]]
        case "edge":
            return [["--service", name] for name in f.subject.split("->")]
        case _:
            return []


def answer(args: list[str], state: Path) -> str:
    result = CliRunner().invoke(app, [*args, "--state", str(state)])
    assert result.exit_code == 0, (args, result.exception)
    return result.output


def test_every_detector_of_the_catalog_has_a_sentence_and_a_firing_case() -> None:
    assert set(SENTENCES) == set(catalog())
    assert {detector for detector, _, _ in FIRING} == set(catalog())


@pytest.mark.parametrize(
    ("off_s", "zone"),
    [(3_600, ": 1 h fits, probably a time zone"), (-7_200, ": 2 h fits, probably a time zone"), (3_720, ""), (1, "")],
)
def test_a_clock_off_by_whole_hours_is_told_to_be_one_of_another_zone_where_its_bounds_are_tight(
    off_s: float, zone: str, tmp_path: Path
) -> None:
    rows = beats({"n0": lambda _: off_s}, 120)
    found = found_in(of_case(tmp_path, Case({"heartbeats": partitions("heartbeats", rows)}, frozenset())))
    (skew,) = [f for f in found if f.detector == "clock_skew"]
    assert sentence(skew).partition(" ms or more")[2] == f"{zone} (page: 500 ms)"


@pytest.mark.parametrize(("detector", "name", "case"), FIRING, ids=[f"{d}-{n}" for d, n, _ in FIRING])
def test_every_firing_case_can_be_read_on_every_screen(detector: str, name: str, case: Case, once: Once) -> None:
    state = once(f"{detector}-{name}", lambda folder: of_case(folder, case)) / "state"
    found = list(found_in(state))
    assert detector in {f.detector for f in found}, "nothing fired, so nothing was read"
    for command in (["report"], ["report", "--json"], ["findings"], *(["explain", f.finding_id] for f in found)):
        result = CliRunner().invoke(app, [*command, "--state", str(state)])
        assert result.exit_code == 0, (command, result.exception)
        shown = QUERY.sub("", result.output.replace(str(state.parent), ""))
        assert not INNER_WORDS.search(shown), shown
    for asked in {tuple(asked) for f in found for asked in about(f)}:
        for command in (["findings", "--json"], ["report", "--json"]):
            shown = answer([*command, *asked], state)
            assert all(f.finding_id in shown for f in found if [*asked] in about(f)), (command, asked)
    for f in found:
        assert sentence(f).endswith(")") and f.level in sentence(f)
        assert CliRunner().invoke(app, ["findings", f.finding_id, "--csv", "--state", str(state)]).exit_code == 0


@pytest.mark.parametrize(
    ("waits_s", "spread", "said"),
    [
        ((0.0, 0.0), 0.0, "; retried at once: add exponential backoff with jitter"),
        ((0.1, 0.1), 0.0, "; retried after a fixed 100 ms: add exponential backoff with jitter"),
        ((1.0, 1.0), 0.8, "; retried after about 610 ms each time: let the backoff grow"),
        ((0.1,), 0.0, "; retried after 100 ms without jitter: add it"),
        ((0.1, 0.2, 0.4), 0.0, "; exponential backoff of 100 ms, 200 ms, 400 ms without jitter: add it"),
        ((0.1, 0.2, 0.4), 1.0, ""),
    ],
)
def test_of_a_storm_it_is_said_what_callers_should_change_about_their_waits(
    waits_s: tuple[float, ...], spread: float, said: str, tmp_path: Path
) -> None:
    rows = retry_storm.waiting(waits_s, spread)
    state = of_case(tmp_path, Case({"requests": partitions("requests", rows)}, frozenset()))
    (f,) = [f for f in found_in(state) if f.detector == "retry_storm" and not f.kind]
    assert re.search(r"of [\d,]+ attempts(.*) \(\w+: \d+ retries/min\)$", sentence(f)).group(1) == said  # type: ignore[union-attr]
    flat = said.startswith("; retried at once") or "fixed" in said or "let the backoff grow" in said
    report = CliRunner().invoke(app, ["report", "--state", str(state)]).output
    assert ("Exponential backoff with jitter" in report) is flat
    assert ("Backoff multiplier 2→3" in report) is not flat


def test_a_share_of_rows_has_a_limit_that_is_one(tmp_path: Path) -> None:
    (case,) = (c for d, n, c in FIRING if (d, n) == ("pipeline", "fires_where_a_fifth_is_late"))
    said = {sentence(f) for f in found_in(of_case(tmp_path, case)) if f.kind == "late_share"}
    assert said and all(one.endswith("(warn: 10% of the rows)") for one in said), said


def test_a_detector_without_a_sentence_of_its_own_gets_its_value_unit_and_time(demo_state: Path) -> None:
    f = next(f for f in found_in(demo_state) if f.detector == "retry_storm")
    own = Found(**{**{n: getattr(f, n) for n in f.__dataclass_fields__}, "detector": "of_ours", "kind": "too_many"})
    assert sentence(own) == f"too many: {amount(f, f.peak)} at {f.peak_at:%H:%M} (page: {amount(f, f.threshold)})"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0.4 s"), (45, "45 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (3e5, "3 days"), (2.3e9, "73 years")],
)  # fmt: skip
def test_a_duration_is_told_in_the_largest_unit_it_fills_twice(seconds: float, said: str) -> None:
    assert duration(seconds) == said
