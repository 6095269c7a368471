"""The grader passes a perfect list of findings and catches each way in which a list can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.truth import Grade, grade

FIRST = datetime(2026, 1, 26, 8, 19, 7, 104_000, tzinfo=UTC)
ONSET = datetime(2026, 1, 26, 8, 19, 0, tzinfo=UTC)  # the window that FIRST lies in


@dataclass
class Hour:
    findings: list[dict[str, Any]]
    doubled: set[str]
    totals: dict[str, int]
    labels: dict[str, Any]

    def grade(self) -> Grade:
        return grade(self.findings, self.doubled, self.totals, self.labels)


def perfect() -> Hour:
    duplicate = {
        "detector": "duplicate_key",
        "kind": "applied_twice",
        "subject_kind": "service",
        "subject": "payment",
        "level": "page",
    }
    skew = {"detector": "clock_skew", "kind": "", "subject_kind": "node", "subject": "search-2", "level": "warn"}
    storm = {
        "detector": "retry_storm",
        "kind": "",
        "subject_kind": "edge",
        "subject": "gateway->payment",
        "level": "warn",
    }
    label: dict[str, Any] = {"onset_first_row": FIRST.isoformat(), "keys": [], "count": None}
    totals = {"read": 100, "used": 90, "late": 3, "implausible": 4, "rejected": 3}
    return Hour(
        findings=[
            duplicate | {"finding_id": "dk-1", "onset": ONSET, "count": 2},
            skew | {"finding_id": "cs-1", "onset": ONSET, "count": 70},
            storm | {"finding_id": "rs-1", "onset": ONSET, "count": 70},
        ],
        doubled={"pay-a", "pay-b"},
        totals=totals | {"repeated": 0},
        labels={
            "faults": [
                duplicate | label | {"keys": ["pay-a", "pay-b"], "count": 2},
                skew | label | {"kind": None},
            ],
            "allowed": [{"detector": "retry_storm", "subject": "gateway->payment", "max_level": "page"}],
            "totals": totals,
        },
    )


def test_a_perfect_list_passes() -> None:
    assert perfect().grade() == Grade(found=2, faults=2, pages=1, misses=())


@pytest.mark.parametrize("seconds", [-10, 10])
def test_an_onset_within_ten_seconds_of_the_first_rows_window_passes(seconds: int) -> None:
    hour = perfect()
    hour.findings[0]["onset"] += timedelta(seconds=seconds)
    assert hour.grade() == perfect().grade()


def test_what_may_follow_from_a_fault_may_page_and_may_be_missing() -> None:
    hour = perfect()
    hour.findings[2]["level"] = "page"
    assert hour.grade().misses == ()
    del hour.findings[2]
    assert hour.grade().misses == ()


def test_the_right_one_of_two_episodes_of_a_subject_stands_for_the_fault() -> None:
    hour = perfect()
    earlier = hour.findings[1] | {"finding_id": "cs-0", "onset": ONSET - timedelta(minutes=9)}
    hour.findings.insert(0, earlier)
    assert hour.grade().misses == ()


def missing(hour: Hour) -> None:
    del hour.findings[1]


def other_subject(hour: Hour) -> None:
    hour.findings[1]["subject"] = "search-3"


def other_kind(hour: Hour) -> None:
    hour.findings[0]["kind"] = "different_payload"


def lower_level(hour: Hour) -> None:
    hour.findings[0]["level"] = "warn"


def higher_level(hour: Hour) -> None:
    hour.findings[1]["level"] = "page"


def early(hour: Hour) -> None:
    hour.findings[1]["onset"] -= timedelta(seconds=20)


def behind(hour: Hour) -> None:
    hour.findings[1]["onset"] += timedelta(seconds=20)


def one_too_many(hour: Hour) -> None:
    hour.findings[0]["count"] = 3


@pytest.mark.parametrize(
    "spoil", [missing, other_subject, other_kind, lower_level, higher_level, early, behind, one_too_many]
)
def test_a_fault_that_is_not_found_as_labelled_is_a_miss(spoil: Callable[[Hour], None]) -> None:
    hour = perfect()
    spoil(hour)
    result = hour.grade()
    assert result.found == 1
    assert result.misses


def second_episode(hour: Hour) -> None:
    hour.findings.append(hour.findings[0] | {"finding_id": "dk-2", "onset": ONSET + timedelta(minutes=9)})


def another_page(hour: Hour) -> None:
    hour.findings.append(hour.findings[1] | {"finding_id": "cs-2", "subject": "user-1", "level": "page"})


def over_what_is_allowed(hour: Hour) -> None:
    hour.labels["allowed"][0]["max_level"] = "warn"
    hour.findings[2]["level"] = "page"


def key_missed(hour: Hour) -> None:
    hour.doubled.remove("pay-b")


def key_invented(hour: Hour) -> None:
    hour.doubled.add("pay-c")


def key_confused(hour: Hour) -> None:
    hour.doubled = {"pay-a", "pay-c"}


def row_lost(hour: Hour) -> None:
    hour.totals["read"] -= 1


def row_never_counted(hour: Hour) -> None:
    del hour.totals["late"]


@pytest.mark.parametrize(
    "spoil",
    [
        second_episode,
        another_page,
        over_what_is_allowed,
        key_missed,
        key_invented,
        key_confused,
        row_lost,
        row_never_counted,
    ],
)
def test_what_else_is_wrong_is_a_miss_though_all_faults_were_found(spoil: Callable[[Hour], None]) -> None:
    hour = perfect()
    spoil(hour)
    result = hour.grade()
    assert result.found == 2
    assert result.misses


def test_a_warning_without_a_fault_is_no_miss() -> None:
    hour = perfect()
    hour.findings.append(hour.findings[1] | {"finding_id": "cs-3", "subject": "user-1"})
    assert hour.grade() == perfect().grade()


def test_a_page_in_a_calm_hour_is_a_miss() -> None:
    hour = perfect()
    hour.labels = deepcopy(hour.labels) | {"faults": [], "allowed": []}
    hour.doubled = set()
    assert len(hour.grade().misses) == 1
    del hour.findings[0]
    assert hour.grade() == Grade(found=0, faults=0, pages=0, misses=())
