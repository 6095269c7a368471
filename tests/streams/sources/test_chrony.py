"""chrony's logs: known by what is in them, one signal a line, and none of the titles between the lines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.events import Decoded
from streams.sources.decode import Reading, chunks, from_fields, recognise
from streams.sources.fieldmap import parse, shipped
from streams.sources.files import Recording, look
from streams.sources.formats import of_messages, of_text
from tests.streams.tape import accounting, asynchealth

RULE = "=" * 120
TITLES = {
    "tracking": "   Date (UTC) Time     IP Address   St   Freq ppm   Skew ppm     Offset L Co  Offset sd Rem. corr. "
    "Root delay Root disp. Max. error",
    "statistics": "   Date (UTC) Time     IP Address    Std dev'n Est offset  Offset sd  Diff freq   Est skew  Stress  "
    "Ns  Bs  Nr Asym",
}
T0 = datetime(2026, 1, 26, 12, tzinfo=UTC)


def banner(log: str) -> list[str]:
    return [RULE, TITLES[log], RULE]


def tracking(at: datetime, offset: str, leap: str = "N", source: str = "192.0.2.7") -> str:
    """As chrony 4 prints it."""
    rest = "2.940e-03 -2.084e-04  1.534e-02  3.472e-04  8.304e-03"
    return f"{at:%Y-%m-%d %H:%M:%S} {source:<15} {2:2d} {-3.541:10.3f} {0.075:10.3f} {offset:>10} {leap} {2:2d}  {rest}"


def statistics(at: datetime, offset: str, source: str = "192.0.2.7") -> str:
    sums = f"{6.261e-3:10.3e} {offset:>10} {2.22e-3:10.3e} {1.874e-6:10.3e} {1.08e-6:10.3e} {0.078:7.1e}"
    return f"{at:%Y-%m-%d %H:%M:%S} {source:<15} {sums} {16:3d} {0:3d} {8:3d} {0:5.2f}"


def written(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read(path: Path, reading: Reading | None = None) -> Decoded:
    file = look(path, path.name)
    (only,) = [d for _, d in chunks(Recording(file), reading or recognise(file))]
    return only


def test_a_line_of_tracking_is_a_signal_and_titles_are_none_wherever_they_stand(tmp_path: Path) -> None:
    later = T0 + timedelta(seconds=64)
    lines = [
        *banner("tracking"),
        tracking(T0, "-8.621e-06"),
        *banner("tracking"),
        tracking(later, "2.5e-03", "+", "PPS"),
    ]
    path = written(tmp_path / "x.log", lines)
    assert recognise(look(path, "x.log")).format == "chrony_tracking"
    done = read(path)
    assert done.rejects.is_empty() and done.tombstones == 6
    assert done.events.select("timestamp", "kind", "name", "value", "text").rows() == [
        (T0, "clock", "clock_offset_s", -8.621e-06, "192.0.2.7"),
        (later, "clock", "clock_offset_s", 0.0025, "PPS"),
    ]


def test_a_clock_that_follows_nothing_has_no_offset(tmp_path: Path) -> None:
    done = read(written(tmp_path / "x.log", [tracking(T0, "0.000e+00", "?", "0.0.0.0")]))
    assert done.events.select("name", "value").rows() == [("clock_unsynchronised", None)]


def test_a_line_of_statistics_is_a_signal_of_one_source(tmp_path: Path) -> None:
    lines = [
        *banner("statistics"),
        statistics(T0, "-3.247e-03"),
        *banner("statistics"),
        statistics(T0, "1e-6", "2001:db8::1"),
    ]
    path = written(tmp_path / "x.log", lines)
    assert recognise(look(path, "x.log")).format == "chrony_statistics"
    done = read(path)
    assert done.rejects.is_empty() and done.tombstones == 6
    assert done.events.select("timestamp", "kind", "name", "value", "text").rows() == [
        (T0, "clock", "source_offset_s", -0.003247, "192.0.2.7"),
        (T0, "clock", "source_offset_s", 1e-6, "2001:db8::1"),
    ]


@pytest.mark.parametrize("log", TITLES)
def test_a_log_with_titles_only_is_known(tmp_path: Path, log: str) -> None:
    path = written(tmp_path / "x.log", banner(log))
    assert recognise(look(path, "x.log")).format == f"chrony_{log}"
    assert read(path).tombstones == 3


def test_chronys_other_logs_are_neither(tmp_path: Path) -> None:
    others = [
        "2016-11-09 05:40:50 203.0.113.15    N  2 111 111 1111  10 10 1.0 -4.966e-03  2.296e-01  1.577e-05  1.615e-01",
        "2022-05-01 02:01:20 203.0.113.15    * -----  377  1.00  4.228e+01 -1.575e-04  1.239e-04",
        "2009-11-30 14:33:27.000000 PPS2    7 N 1  4.900000e-07 -6.741777e-07  1.000e-06",
    ]
    maps = [m for m in shipped() if m.name.startswith("chrony_")]
    assert len(maps) == 2
    for one in maps:
        assert of_messages(of_text(one.line), [o.encode() for o in others]).events == []


def test_what_is_no_number_and_no_line_of_it_is_a_reject_and_costs_no_other(tmp_path: Path) -> None:
    lines = [tracking(T0, "-1e-6"), tracking(T0, "soon"), "half a li", tracking(T0, "2e-6")]
    done = read(written(tmp_path / "x.log", lines))
    assert done.events["value"].to_list() == [-1e-6, 2e-6]
    told = {(r["offset"], r["field"]): r["reason"] for r in done.rejects.rows(named=True)}
    assert told == {
        (1, "value (from offset, leap)"): "expected number",
        (2, ""): "the line does not match the map's pattern",
    }


@pytest.mark.parametrize(
    ("path", "node"),
    [
        ("web-1-tracking.log", "web-1"),
        ("logs/web-1.tracking.log", "web-1"),
        ("web-1/tracking.log", "web-1"),
        ("web-1/tracking.log.3", "web-1"),
        ("web-1/var/log/chrony/tracking.log", "web-1"),
    ],
)
def test_the_node_is_in_the_name_of_the_file_or_of_its_folder(tmp_path: Path, path: str, node: str) -> None:
    done = read(written(tmp_path / path, [tracking(T0, "1e-6")]))
    assert done.events["subject"].to_list() == [node]


def test_a_map_names_the_node_and_is_silent_about_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path / "a" / "tracking.log", [*banner("tracking"), tracking(T0, "1e-6")])
    named = parse('like = "chrony_tracking"\n[fields]\nsubject = { value = "db-7" }', "map", "mine")
    done = read(path, Reading("signals", named))
    assert done.events.select("subject", "name", "value").rows() == [("db-7", "clock_offset_s", 1e-6)]


def test_two_nodes_whose_logs_have_one_name_stay_two(tmp_path: Path) -> None:
    for node, offset in (("web-1", "1e-6"), ("web-2", "2e-6")):
        written(tmp_path / "logs" / node / "tracking.log", [tracking(T0, offset), tracking(T0, "3e-6")])
    screen = asynchealth("replay", tmp_path / "logs", "--state", tmp_path / "state").stdout.decode()
    assert "web-1/tracking.log: chrony_tracking → signals, 2 events" in screen
    assert {k: v for k, v in accounting(tmp_path / "state").items() if v} == {"read": 4, "used": 4}
    asked = asynchealth("sql", "SELECT subject, count(*) n FROM signals GROUP BY ALL", "--state", tmp_path / "state")
    assert {"web-1", "web-2"} <= {*asked.stdout.decode().split()}


@given(st.floats(-1e6, 1e6, allow_nan=False), st.integers(0, 2**31 - 1), st.sampled_from("N+-"))
def test_every_offset_that_chrony_can_print_is_read_as_it_stands(offset: float, second: int, leap: str) -> None:
    at = datetime.fromtimestamp(second, UTC)
    one = next(m for m in shipped() if m.name == "chrony_tracking")
    text = f"{offset:10.3e}"
    done = from_fields(
        one.within("a/tracking.log"), of_messages(of_text(one.line), [tracking(at, text, leap).encode()])
    )
    assert done.rejects.is_empty()
    assert done.events.select(pl.col("timestamp"), pl.col("value")).rows() == [(at, float(text))]
