"""A settings file enters; what it says must act, and what could not act is refused with where it stands and why."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from detectors.detector import catalog
from streams.problems import Problem
from streams.settings import load

DETECTORS = [e.detector for e in catalog().values()]


def written(folder: Path, service: str) -> Path:
    path = folder / "asynchealth.toml"
    path.write_text(f"[services.payment]\nthresholds = {{ {service} }}\n")
    return path


@pytest.mark.parametrize("name", sorted(f"{d.name}.{t.name}" for d in DETECTORS for t in d.thresholds))
def test_a_service_s_own_threshold_acts_or_is_refused(tmp_path: Path, name: str) -> None:
    detector, threshold = next((d, t) for d in DETECTORS for t in d.thresholds if name == f"{d.name}.{t.name}")
    path = written(tmp_path, f"{name} = {threshold.default}")
    subjects = {"service": ["payment", "search"], "edge": ["a->payment", "payment->search"]}.get(detector.subject_kind)
    if subjects is None:
        with pytest.raises(Problem, match=f"{detector.name} judges by {detector.subject_kind}") as refused:
            load(DETECTORS, path=path)
        assert f"{path}, services.payment: {name}" in str(refused.value)
        return
    settings = load(DETECTORS, [f"{name}={threshold.default}"], path=path)
    settings.per_service["payment"][name] = 17.0  # type: ignore[index]
    acts = settings.threshold(detector.name, threshold, detector.subject_kind)
    assert pl.DataFrame({"subject": subjects}).select(acts).to_series().to_list() == [17.0, threshold.default]


@pytest.mark.parametrize("name", ["retry_storm.min_volume", "timeout_ratio.max_drift_ppm", "clock_skew.min_volume"])
def test_a_number_that_its_detector_does_not_read_is_refused_with_those_it_does(name: str) -> None:
    detector = next(d for d in DETECTORS if name.startswith(d.name))
    with pytest.raises(Problem, match=f"no such setting; there are .*{detector.thresholds[0].name}"):
        load(DETECTORS, [f"{name}=5"])
    for number in detector.numbers:
        assert load(DETECTORS, [f"{detector.name}.{number}=5"]).values == {f"{detector.name}.{number}": 5.0}


def test_a_service_s_own_least_volume_is_for_what_is_judged_by_service(tmp_path: Path) -> None:
    assert load(DETECTORS, path=written(tmp_path, "timeout_ratio.min_volume = 5")).per_service["payment"]
    with pytest.raises(Problem, match="pipeline judges by partition"):
        load(DETECTORS, path=written(tmp_path, "pipeline.min_volume = 5"))
