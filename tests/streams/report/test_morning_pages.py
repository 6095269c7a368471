"""The demo's report enters in each of its formats, and days enter: what must leave can be read, parsed and compared."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from collections.abc import Callable
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import duckdb
import pytest
from typer.testing import CliRunner

from streams.cli import app
from streams.landing.state import open_readable
from streams.report.found import Filter, all_findings, sight_of, span_of
from streams.report.morning import gather
from streams.report.morning.schedule import schedule
from streams.report.render import page
from tests.cases import T0
from tests.streams.report.states import of_rows

Golden = Callable[[str, str], None]


def screen(state: Path, *args: str) -> str:
    result = CliRunner().invoke(app, [*args, "--state", str(state)])
    assert result.exit_code == 0, result.exception
    return result.output.replace(str(state), "demo-state")


# --- formats


class Tags(HTMLParser):
    """What a page opens and closes, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.words: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.fetched += [str(v) for n, v in attrs if n in ("src", "href", "action", "srcset", "data")]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_page_that_fetches_something_is_seen() -> None:
    assert Tags(page("t", '<img src="https://elsewhere.example/x.png">')).fetched


def test_the_report_as_a_page_is_the_golden_one_and_asks_nobody(demo_state: Path, golden: Golden) -> None:
    shown = screen(demo_state, "report", "--format", "html")
    golden("report.html", shown)
    tags = Tags(shown)
    assert tags.seen.count("section") == 6 and not tags.open
    assert not tags.fetched and not {"script", "link", "iframe"} & set(tags.seen)
    assert not re.search(r"https?://|@import|url\(", shown)


def test_the_report_as_markdown_is_the_golden_one(demo_state: Path, golden: Golden) -> None:
    shown = screen(demo_state, "report", "--format", "markdown")
    golden("report.md", shown)
    assert len(re.findall(r"^## ", shown, re.MULTILINE)) == 5
    assert shown.count("```") == 2


def test_every_format_says_the_same(demo_state: Path) -> None:
    lines = screen(demo_state, "report").splitlines()
    said = [x[23:] for x in lines if x.startswith("   ") and x[22:23] == " "]
    assert len(said) > 15
    web = "".join(Tags(screen(demo_state, "report", "--format", "html")).words)
    chat = screen(demo_state, "report", "--format", "markdown").replace("\\", "")
    assert [x for x in said if x not in web or x not in chat] == []
    assert screen(demo_state, "report", "--format", "json") == screen(demo_state, "report", "--json")


def test_a_name_in_a_log_is_no_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> *b* [x](http://y)"
    rows = calls(600, 1, caller=evil, retry_count=1)
    state = of_rows(tmp_path, requests=rows)
    assert evil in screen(state, "report")
    tags = Tags(screen(state, "report", "--format", "html"))
    assert "script" not in tags.seen and evil in "".join(tags.words)
    assert r"\<script\>alert(1)\</script\> \*b\* \[x\](http://y)" in screen(state, "report", "--format", "markdown")


def test_another_format_is_refused_with_those_there_are() -> None:
    assert "--format text, json, markdown or html" in str(
        CliRunner().invoke(app, ["report", "--format", "pdf"]).exception
    )


# --- against the day before


def calls(n: int, days: int, **more: Any) -> list[dict[str, Any]]:
    """Two calls a second, on each of so many days; 78 % of the timeout used on the last, 39 % before."""
    rows = []
    for day in range(days):
        for i in range(n):
            at = T0 + timedelta(days=day, seconds=i / 2)
            row = {"timestamp": at, "arrival": at + timedelta(seconds=1), "service_name": "payment", "status": "ok"}
            took = 780.0 if day == days - 1 else 390.0
            row |= {"caller": "gateway", "node_id": f"g{i % 3}", "duration_ms": took, "timeout_ms": 1000.0}
            rows.append(row | {"retry_count": 0} | more)
    return rows


@pytest.fixture(scope="module")
def three_days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return of_rows(tmp_path_factory.mktemp("days"), requests=calls(600, 3))


def test_a_day_is_compared_with_the_day_before(three_days: Path) -> None:
    shown = screen(three_days, "report", "--since", "24h")
    assert re.search(r"Day before: +01-26 08:06 - 01-27 08:06 UTC, 0 page, 0 warn", shown), shown
    assert "Day before:         used 39→78% (+39), headroom 0.6→0.2s (-0.4)" in shown
    assert "Day before:         storms 0→0 (same)" in shown
    told = json.loads(screen(three_days, "report", "--since", "24h", "--json"))
    assert told["sections"]["timeout_budget"]["change"]["used_pct"] == {"before": 39, "now": 78}
    assert told["day_before"]["why"] is None


def test_what_the_day_before_does_not_know_is_unknown_and_why(three_days: Path, tmp_path: Path) -> None:
    whole = screen(three_days, "report")
    assert re.findall("Day before: .*", whole) == ["Day before:         unknown (no data before 2026-01-26 08:00)"]
    told = json.loads(screen(three_days, "report", "--json"))
    assert told["day_before"]["why"] and {s["change"] for s in told["sections"].values()} == {None}
    rows = calls(600, 3)
    quiet = [r for r in rows if not T0 + timedelta(hours=23) < r["timestamp"] < T0 + timedelta(hours=25)]
    shown = screen(of_rows(tmp_path, requests=quiet), "report", "--since", "24h")
    assert "Day before:         unknown (no retry_count or payload_hash in any source in this time)" in shown
    assert "Day before:         unknown (no call with a timeout in any source in this time)" in shown


# --- what is read


def trapped(con: duckdb.DuckDBPyConnection, stream: str) -> None:
    """A look at any row of the stream is an error from now on."""
    shape = con.execute(f"DESCRIBE {stream}").fetchall()
    columns = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind, *_ in shape)
    con.execute(f"CREATE OR REPLACE TEMP VIEW {stream} AS SELECT {columns} FROM range(1) WHERE error('a row was read')")


@pytest.mark.parametrize("hours", [(None, None), (8, 9), (30, 31)])
def test_the_report_reads_tables_and_no_row(hours: tuple[int | None, int | None], demo_state: Path) -> None:
    """However many there are: only a service, node, key or trace that is asked for leads to rows."""
    since, until = (T0.replace(hour=0) + timedelta(hours=h) if h else None for h in hours)
    with open_readable(demo_state) as con:
        every, span, sight = all_findings(con), span_of(con, ""), sight_of(con)
        for stream in ("requests", "heartbeats"):
            trapped(con, stream)
            with pytest.raises(duckdb.Error, match="a row was read"):
                con.execute(f"SELECT count(*) FROM {stream}").fetchall()
        report = gather(con, every, span, sight, Filter(since, until))
    assert len(report.sections) == 5


# --- every morning

AWKWARD = [
    ("/opt/ah/bin/asynchealth", "/var/lib/asynchealth", "/etc"),
    ("/opt/a b/asynchealth", "/data/100%/it's", "/x y"),
]
CRON = re.compile(r"([\d*]+) ([\d*]+) ([\d*]+) ([\d*]+) ([\d*]+) (.+)")


@pytest.mark.parametrize(("program", "state", "folder"), AWKWARD)
def test_the_cron_line_runs_the_report_of_this_state(program: str, state: str, folder: str) -> None:
    (line,) = [x for x in schedule([program], Path(state), Path(folder)) if x.startswith("0 ")]
    fields = CRON.fullmatch(line)
    assert fields and fields.groups()[:5] == ("0", "7", "*", "*", "*")
    assert not re.search(r"(?<!\\)%", fields[6]), "cron ends a command at a percent sign"
    words = shlex.split(fields[6].replace(r"\%", "%"))
    assert words[:3] == ["cd", folder, "&&"]
    assert words[3:] == [
        program,
        *["report", "--since", "24h", "--format", "html", "--state"],
        state,
        ">",
        f"{state}/report.html",
    ]


@pytest.mark.parametrize(("program", "state", "folder"), AWKWARD)
def test_the_units_can_be_parsed_and_name_the_same_command(program: str, state: str, folder: str) -> None:
    text = "\n".join(schedule([program], Path(state), Path(folder)))
    blocks = re.split(r"^# (?:/etc/systemd/system/(\S+)|.*)$", text, flags=re.MULTILINE)
    units = {name: body for name, body in zip(blocks[1::2], blocks[2::2], strict=True) if name}
    assert set(units) == {"asynchealth-report.service", "asynchealth-report.timer"}
    parsed = {}
    for name, body in units.items():
        parsed[name] = configparser.ConfigParser(interpolation=None, delimiters=("=",), strict=True)
        parsed[name].optionxform = str  # type: ignore[assignment, method-assign]
        parsed[name].read_string(body)
    service, timer = parsed["asynchealth-report.service"]["Service"], parsed["asynchealth-report.timer"]
    assert service["Type"] == "oneshot" and service["WorkingDirectory"].replace("%%", "%") == folder
    command = [re.sub(r"%%|\$\$", lambda m: m[0][0], x) for x in shlex.split(service["ExecStart"])]
    assert command == [program, *["report", "--since", "24h", "--format", "html", "--state"], state]
    assert service["StandardOutput"].replace("%%", "%") == f"truncate:{state}/report.html"
    assert re.fullmatch(r"\*-\*-\* \d\d:\d\d:\d\d UTC", timer["Timer"]["OnCalendar"])
    assert timer["Install"]["WantedBy"] == "timers.target"


def test_the_schedule_names_this_state_and_its_command_can_be_typed(demo_state: Path) -> None:
    shown = CliRunner().invoke(app, ["report", "--schedule", "--state", str(demo_state)]).output
    (command,) = re.findall(r"^ExecStart=\S+ (.+)$", shown, re.MULTILINE)
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 0 and result.output.startswith("<!DOCTYPE html>")
