"""Incidents on the screen: the demo's, exactly; what people say of them, and that it stays."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from detectors.detector import Settings
from streams.cli.incident import book_of
from streams.problems import Exit, Problem
from streams.replay import rebuild, replay
from streams.report.incidents import listing
from streams.said import ACKS, Word, words_in, write
from tests.streams.cli.test_look import Screen

Golden = Callable[[str, str], None]


@pytest.fixture
def screen(demo_state: Path) -> Screen:
    return Screen(demo_state)


@pytest.fixture
def own(storm_state: Path) -> Screen:
    """A small state that a test may change."""
    return Screen(storm_state)


def every(screen: Screen) -> list[dict[str, Any]]:
    return [json.loads(line) for line in screen("incident", "list", "--json").splitlines()]


# ---- the demo --------------------------------------------------------------------------------------------------------


def test_the_storm_is_one_incident_with_its_chain_and_unrelated_faults_are_incidents_of_their_own(
    screen: Screen,
) -> None:
    found = {f["finding_id"]: f for f in map(json.loads, screen("findings", "--json").splitlines())}
    of = {i: f"{f['detector']} {f['subject']}" for i, f in found.items()}
    incidents = [[of[f["finding_id"]] for f in i["findings"]] for i in every(screen)]
    storm = [
        *("timeout_budget payment", "timeout_ratio gateway->payment"),
        *("retry_storm gateway->payment", "duplicate_key payment"),
    ]
    alone = [
        *("concurrent_writers order/cart", "clock_skew search-2", "concurrent_writers user/profile"),
        "impossible_timestamp search-4",
    ]
    clock = ["clock_drift payment-3", "clock_skew payment-3"]
    cascade = "timeout_cascade gateway"
    assert sorted(incidents) == sorted([[*storm[:3], cascade, storm[3]], clock, *([one] for one in alone)])
    (chain,) = (i["chain"] for i in every(screen) if len(i["findings"]) > 2)
    assert {(of[e["cause"]], of[e["effect"]], e["ruled_out"]) for e in chain} == {
        *((a, b, False) for a, b in pairwise(storm)),
        (storm[1], cascade, False),
        ("clock_skew payment-3", "duplicate_key payment", True),
    }
    explained = {of[i]: [of[c] for c in f["explained_by"]] for i, f in found.items()}
    links = {b: [a] for a, b in pairwise(storm)} | {cascade: [storm[1]], clock[1]: [clock[0]]}
    assert explained == links | {o: [] for o in [storm[0], clock[0], *alone]}
    assert {f["incident"] for f in found.values()} == {i["incident_id"] for i in every(screen)}


def test_the_screens_of_incidents_are_the_golden_ones(screen: Screen, golden: Golden) -> None:
    golden("incident_list.txt", screen("incident", "list"))
    (storm,) = (i["incident_id"] for i in every(screen) if len(i["findings"]) > 2)
    golden("incident_show.txt", screen("incident", "show", storm))
    assert screen("incident", "show", storm, "--ascii").isascii()


def test_an_incident_lasts_as_long_as_its_findings(screen: Screen) -> None:
    last = {f["finding_id"]: f["last"] for f in map(json.loads, screen("findings", "--json").splitlines())}
    assert len(last) == 11
    for i in every(screen):
        assert i["last"] == max(last[f["finding_id"]] for f in i["findings"])


def test_an_acknowledgement_of_an_incident_that_is_called_otherwise_now_is_still_listed(own: Screen) -> None:
    write(own.state, Word(at=datetime(2026, 1, 26, 8, 30, tzinfo=UTC), what="ack", about="in-0123", by="anna"))
    told = "in-0123 is not here since the rows were judged again. Acknowledged by anna at 2026-01-26 08:30 UTC\n"
    assert told in own("incident", "list")


def test_an_acknowledgement_of_an_incident_that_went_into_another_is_still_listed(demo_state: Path) -> None:
    with book_of(demo_state) as (some, book):
        one = some[0].incident_id
        young = replace(some[0], incident_id="in-0123", state="merged", findings=[], merged_into=one)
        word = Word(at=datetime(2026, 1, 26, 8, 30, tzinfo=UTC), what="ack", about="in-0123", by="anna")
        lines = [*listing([*some, young], replace(book, words=[word]))]
    assert f"in-0123 went into {one}. Acknowledged by anna at 2026-01-26 08:30 UTC" in lines
    assert len([line for line in lines if "Acknowledged" in line]) == 1


def test_tables_of_incidents_can_be_asked_in_sql(screen: Screen) -> None:
    asked = "SELECT count(*) FILTER (ruled_out) AS a, count(*) AS b FROM causes"
    assert json.loads(screen("sql", asked, "--json")) == {"a": 1, "b": 6}
    assert len(screen("sql", "SELECT incident_id, findings, chain FROM incidents", "--json").splitlines()) == 6


# ---- what people say -------------------------------------------------------------------------------------------------


def test_an_acknowledgement_is_shown_at_once_and_outlives_a_rebuild(own: Screen) -> None:
    (one,) = every(own)
    short = one["incident_id"][:7]
    assert one["said"] == []
    assert f"incident ack {short} --by NAME" in own("incident", "show", short)
    own("incident", "ack", short, "--by", "anna", "--note", "looking, see #12")
    shown = own("incident", "show", short)
    assert re.search(r"\nAcknowledged by anna at [-\d]+ [:\d]+ UTC: looking, see #12\n", shown)
    assert "incident ack" not in shown
    assert "acknowledged by anna" in own("incident", "list")
    rebuild(own.state, Settings())
    assert own("incident", "show", short) == shown
    told = own("timeline", "--json", "--all")
    assert told.count("acknowledged by anna: looking, see #12") >= 1 and "incident.ack" not in told
    assert "acknowledged" not in own("timeline", "--json", "--as-of", "08:05")
    (line,) = (own.state / ACKS).read_text().splitlines()
    assert json.loads(line) | {"timestamp": ""} == {
        "timestamp": "",
        "subject": one["incident_id"],
        "name": "incident.ack",
        "kind": "change",
        "text": '{"by":"anna","note":"looking, see #12"}',
    }


def test_a_silence_is_of_an_incident_or_of_all_that_begin_with_a_detector(own: Screen) -> None:
    (one,) = every(own)
    for what in ([one["incident_id"]], ["--detector", "retry_storm"]):
        assert " open " in own("incident", "list") or " resolved " in own("incident", "list")
        own("incident", "silence", *what, "--for", "2h", "--by", "bert")
        assert " silenced " in own("incident", "list")
        of = r" \(retry_storm\)" if "--detector" in what else ""
        told = rf"\nSilenced until [-\d]+ [:\d]+ UTC by bert at [-\d]+ [:\d]+ UTC{of}\n"
        assert re.search(told, own("incident", "show", "in-"))
        (own.state / ACKS).unlink()


def test_a_silence_ends_by_the_clock_of_who_reads_however_old_the_data_is(own: Screen) -> None:
    (one,) = every(own)
    now = datetime.now(UTC)
    for until, silenced in ((now - timedelta(minutes=1), False), (now + timedelta(hours=1), True)):
        assert until > datetime.fromisoformat(one["last"])
        about = one["incident_id"]
        write(own.state, Word(at=now - timedelta(hours=2), what="silence", about=about, until=until))
        assert (" silenced " in own("incident", "list")) == silenced
        assert f"\nSilenced until {until:%Y-%m-%d %H:%M} UTC at " in own("incident", "show", "in-")


def test_when_people_were_told_is_on_the_timeline_and_in_the_post_mortem(own: Screen) -> None:
    (one,) = every(own)
    assert "When people were told is not in this state" in own("postmortem", one["incident_id"])
    (entry, *_) = [json.loads(line) for line in own("timeline", "in-", "--json").splitlines() if '"finding"' in line]
    at = datetime.fromisoformat(min(entry["readable"], entry["datetime"])) + timedelta(minutes=20)
    known: dict[str, Any] = {"what": "notified", "about": one["incident_id"], "note": "page, open"}
    for way, later in (("webhook chat.example", 0), ("webhook chat.example", 7), ("alertmanager am:9093", 9)):
        said = Word(at=at + timedelta(seconds=later), by=way, event_id=f"k/{way}", **known)
        write(own.state, said)
        write(own.state, said)
    assert [w["by"] for w in every(own)[0]["said"]] == ["webhook chat.example", "alertmanager am:9093"], "each once"
    (line,) = [line for line in own("timeline", "--all").splitlines() if "told to webhook" in line]
    assert f"{at:%H:%M:%S}.000" in line and line.endswith("told to webhook chat.example: page, open  [signals]")
    review = own("postmortem", one["incident_id"])
    assert "is not in this state" not in review
    first = rf"\nPeople were first told at {at:%Y-%m-%d %H:%M:%S} UTC"
    assert re.search(rf"{first}, \d+ min after the first row, \d+ min after it could be read:\n", review)
    assert f"\n- **{at:%H:%M:%S}** - webhook chat.example: page, open\n" in review
    assert f"\nTold to webhook chat.example at {at:%Y-%m-%d %H:%M} UTC: page, open\n" in own("incident", "show", "in-")
    assert "incident ack" in own("incident", "show", "in-"), "nobody is on it yet"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["show", "in-nobody"], "no incident has an id that begins so"),
        (["silence"], "an incident or a detector"),
        (["silence", "in-", "--detector", "retry_storm"], "an incident or a detector"),
        (["silence", "--detector", "rety_storm"], "no such detector"),
        (["silence", "in-", "--for", "soon"], "not a span of time"),
        (["silence", "in-", "--for", "0m"], "a silence must last"),
        (["silence", "--detector", "retry_storm", "--for", "0.1us"], "a silence must last"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_next_command(words: list[str], why: str, screen: Screen) -> None:
    with pytest.raises(Problem, match=rf"{why}(.|\n)*Next: "):
        screen("incident", *words)


def test_an_id_that_several_begin_with_is_refused(screen: Screen) -> None:
    with pytest.raises(Problem, match=r"6 incidents have ids that begin so\nNext: .* incident list"):
        screen("incident", "show", "in-")


def test_what_cannot_be_written_or_read_is_a_problem_of_the_state(own: Screen) -> None:
    (own.state / ACKS).mkdir()
    with pytest.raises(Problem, match=r"acks.jsonl: can't be read") as refused:
        own("incident", "list")
    assert refused.value.code == Exit.STATE
    shutil.rmtree(own.state / ACKS)
    (own.state / ACKS).write_text('{"timestamp": "never"}\n')
    with pytest.raises(Problem, match=r"acks.jsonl: can't be read"):
        own("incident", "list")


def test_what_a_full_disk_cut_off_is_passed_over_and_makes_room_for_the_next(own: Screen) -> None:
    (one,) = every(own)
    own("incident", "ack", one["incident_id"], "--by", "anna")
    whole = (own.state / ACKS).read_bytes()
    (own.state / ACKS).write_bytes(whole + whole[:60])
    assert [w["by"] for w in every(own)[0]["said"]] == ["anna"]
    own("incident", "ack", one["incident_id"], "--by", "bert")
    assert [w["by"] for w in every(own)[0]["said"]] == ["anna", "bert"]
    (own.state / ACKS).write_bytes(whole.rstrip())  # as some editors leave it
    own("incident", "ack", one["incident_id"], "--by", "cleo")
    assert [w["by"] for w in every(own)[0]["said"]] == ["anna", "cleo"]


def test_a_signal_that_only_looks_like_a_word_of_ours_stops_nothing(own: Screen, tmp_path: Path) -> None:
    """Anybody may write one."""
    (one,) = every(own)
    like = {"timestamp": "2026-01-26T08:05:00Z", "subject": one["incident_id"], "kind": "change"}
    signals = [
        like | {"name": "incident.ack", "text": '{"by": 5}'},
        like | {"name": "incident.silence", "text": "{}", "value": 1e30},
        like | {"name": "incident.ack", "text": '{"by": "anna"}'},
    ]
    (tmp_path / "signals.jsonl").write_text("".join(json.dumps(s) + "\n" for s in signals))
    replay([str(tmp_path / "signals.jsonl")], own.state, Settings(), arrival="none")
    assert [w["by"] for w in every(own)[0]["said"]] == ["anna"]
    assert "acknowledged by anna" in own("incident", "list")
    assert words_in(json.dumps(signals).encode()) == words_in(json.dumps(signals[2]).encode()) != []
    (own.state / ACKS).write_text(json.dumps(signals[1]) + "\n")
    with pytest.raises(Problem, match=r"acks.jsonl: can't be read"):
        own("incident", "list")


def test_the_timeline_of_one_has_what_was_said_of_it_and_of_no_other(screen: Screen, tmp_path: Path) -> None:
    state = tmp_path / "state"
    shutil.copytree(screen.state, state)
    mine, other = (i["incident_id"] for i in every(screen)[:2])
    for about in (mine, other):
        write(state, Word(at=datetime(2026, 1, 26, 8, 30, tzinfo=UTC), what="ack", about=about, by=f"who has {about}"))
    told = Screen(state)("timeline", mine, "--json")
    assert f"who has {mine}" in told and other not in told
    assert f"who has {other}" in Screen(state)("timeline", "--json")


# ---- what came before ------------------------------------------------------------------------------------------------


def test_a_deploy_shortly_before_is_named_and_what_people_said_is_none(own: Screen, tmp_path: Path) -> None:
    (found,) = map(json.loads, own("findings", "--json").splitlines())
    explained = own("explain", found["finding_id"])
    assert "\nExplained by: unknown (no deploys or changes in the data)\n" in explained
    onset, service = datetime.fromisoformat(found["onset"]), found["subject"].partition("->")[2]
    own("incident", "ack", found["incident"])
    said = (own.state / ACKS).read_text()
    at = {"deploy": onset - timedelta(minutes=5), "rollback": onset + timedelta(minutes=1)}
    deploys = [{"timestamp": str(t), "subject": service, "kind": "change", "name": n} for n, t in at.items()]
    (tmp_path / "signals.jsonl").write_text(said + json.dumps(deploys[1]) + "\n")
    replay([str(tmp_path / "signals.jsonl")], own.state, Settings(), arrival="none")
    assert f"unknown (no change of {service} in the data of the 30 minutes" in own("explain", found["finding_id"])
    (own.state / ACKS).unlink()  # a live state has it as a row
    assert "\nAcknowledged at " in own("incident", "show", found["incident"])
    (tmp_path / "more.signals.jsonl").write_text(json.dumps(deploys[0] | {"text": "v41"}) + "\n")
    replay([str(tmp_path / "more.signals.jsonl")], own.state, Settings(), arrival="none")
    told = f"unknown; preceded by deploy v41 at {at['deploy']:%H:%M:%S} (possible)"
    assert f"\nExplained by: {told}\n" in own("explain", found["finding_id"])
    assert f"\n   Explained by: {told}\n" in own("incident", "show", found["incident"])


# ---- whom to call ----------------------------------------------------------------------------------------------------


def test_the_owner_of_the_service_is_called_first_and_contacts_are_configured(
    own: Screen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(r"\nCall: Gateway @gateway-oncall \(Timeout cascade\)\n", own("incident", "show", "in-"))
    service = json.loads(own("findings", "--json").splitlines()[0])["subject"].partition("->")[2]
    Path("asynchealth.toml").write_text(
        f'[services.{service}]\nowner = "Pay"\ncontact = "@pay"\n[contacts."Timeout cascade"]\ncontact = "@edge"\n'
    )
    said = own("incident", "show", "in-")
    assert f"\nCall: Pay @pay (owner of {service})\nCall: Gateway @edge (Timeout cascade)\n" in said
    Path("asynchealth.toml").write_text('[contacts."Storms"]\nteam = "S"\ndetectors = ["retry_storm"]\n')
    assert "\nCall: S (Storms)\n" in own("incident", "show", "in-")
    Path("asynchealth.toml").write_text('[contacts."Storms"]\nteam = 1\n')
    with pytest.raises(Problem, match="owners and contacts: Expected `str`, got `int`"):
        own("incident", "list")
