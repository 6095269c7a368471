"""Notices go out over real HTTP: what a webhook and an Alertmanager get, and what is made of their answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from detectors.incidents import id_of
from streams.cli.notify import receivers
from streams.inventory import inventory
from streams.problems import Problem
from streams.watch.news import Cursor, News, Notice, notice
from streams.watch.send import Alertmanager, Webhook, ask, checked, posted, unheard
from tests.kafka import free_port
from tests.streams.tape import asynchealth
from tests.streams.watch.judged import Change, said
from tests.streams.watch.receivers import Receiver, faults, instant, receiving

WINDOW = 176_941_440  # 2026-01-26 08:00 UTC


def told(level: Any = "page", ends: bool = False) -> Notice:
    """Of one whose finding began, and perhaps rose or ended."""
    first: Any = "warn" if level == "warn" else "page"
    story = [Change(WINDOW, "RS-5f1c", first)] + [Change(WINDOW + 30, "RS-5f1c", level, True)] * ends
    news = News()
    for offset, message in enumerate(said(story, WINDOW, WINDOW + 31)):
        news.feed(offset, *message)
    return notice(news.items(Cursor(WINDOW, WINDOW + 31, WINDOW))[-1], inventory(Path("none")))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


def test_the_body_of_a_webhook_is_the_golden_one(golden: Callable[[str, str], None]) -> None:
    bodies = [posted(told()), posted(told("page", ends=True))]
    golden("webhook.json", "".join(msgspec.json.format(msgspec.json.encode(b)).decode() + "\n" for b in bodies))


def test_a_webhook_gets_one_post_with_the_key_that_tells_copies_apart(receiver: Receiver) -> None:
    assert Webhook(f"{receiver.url}/hook?token=1").send(told(), ["page"]) == ("taken", "200")
    assert receiver.got == [("/hook?token=1", posted(told()))]
    assert receiver.headers[0]["Idempotency-Key"] == f"{id_of('RS-5f1c')}/page/open/20260126T080000Z"
    assert receiver.headers[0]["Content-Type"] == "application/json"


def test_alertmanager_gets_alerts_of_its_schema_and_one_of_each_incident_fires(receiver: Receiver) -> None:
    way = Alertmanager(receiver.url + "/", (("installation", "eu."),))
    firing: dict[str, bool] = {}
    for what in (told("warn"), told("page"), told("page", ends=True)):
        assert way.send(what, ["warn", "page"]).outcome == "taken", receiver.refusals
        _, alerts = receiver.got[-1]
        now = datetime.now(UTC)
        firing |= {str(sorted(a["labels"].items())): instant(a["endsAt"]) > now for a in alerts}
        assert sum(firing.values()) == (what.state != "resolved"), "a warning that rose is over when its page begins"
    assert {a["labels"]["installation"] for _, alerts in receiver.got for a in alerts} == {"eu."}
    assert {p for p, _ in receiver.got} == {"/api/v2/alerts"}
    first = receiver.got[0][1][0]
    assert first["labels"]["alertname"] == "retry_storm" and first["labels"]["severity"] == "warn"
    assert instant(first["startsAt"]) == told().onset
    assert first["annotations"]["runbook"] == "asynchealth runbook retry_storm"


def test_what_is_open_is_renewed_and_the_dead_mans_alert_ends_by_itself(receiver: Receiver) -> None:
    way, now = Alertmanager(receiver.url), datetime.now(UTC)
    said = way.renew([told(), told("warn")], now), way.watchdog(now, "asynchealth lag")
    assert [answer.outcome for answer in said] == ["taken"] * 2, receiver.refusals
    (_, renewed), (_, (watchdog,)) = receiver.got
    assert [instant(a["endsAt"]) - now for a in renewed] == [timedelta(minutes=5)] * 2
    assert watchdog["labels"]["alertname"] == "asynchealth_watchdog"
    assert instant(watchdog["endsAt"]) - now == timedelta(minutes=3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": {"alertname": "x"}},
        [{"annotations": {}}],
        [{"labels": {}}],
        [{"labels": {"alertname": 1}}],
        [{"labels": {"alertname": "x"}, "startsAt": "yesterday"}],
        [{"labels": {"alertname": "x"}, "startsAt": "2026-01-26T08:00:00Z", "endsAt": "2026-01-26T07:00:00Z"}],
        [{"labels": {"alertname": "x", "name": ""}}],
        [{"labels": {"alertname": "x"}, "level": "page"}],
    ],
)
def test_the_stand_in_refuses_what_alertmanager_refuses(wrong: Any) -> None:
    assert faults(wrong)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [(200, "taken"), (204, "taken"), (429, "away"), (500, "away"), (503, "away"), (408, "away")]
    + [(c, "refused") for c in (301, 307, 400, 401, 404, 410)],
)
def test_what_an_answer_means(code: int, outcome: str, receiver: Receiver) -> None:
    receiver.answers = [code]
    found = ask(receiver.url, {"a": 1})
    assert found.outcome == outcome and str(code) in found.said


def test_nobody_who_listens_is_away() -> None:
    assert ask(f"http://127.0.0.1:{free_port()}/").outcome == "away"


@pytest.mark.parametrize("url", ["host:9093", "ftp://host", "http://", "https://host:port/", "http://[::1"])
def test_what_is_no_address_is_said(url: str) -> None:
    with pytest.raises(Problem, match="not an address of HTTP"):
        checked(url, "--webhook")


def test_where_nobody_listens_is_told_with_the_reason(receiver: Receiver) -> None:
    assert unheard("https://chat.invalid/secret") and unheard(f"http://{'a' * 64}/")
    assert unheard(f"http://127.0.0.1:{free_port()}/") == "Connection refused"
    assert unheard(receiver.url) == "" and receiver.asked == 0


def test_behind_a_proxy_the_proxy_knows_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    assert unheard("https://chat.invalid/") == ""
    monkeypatch.setenv("no_proxy", "chat.invalid")
    assert unheard("https://chat.invalid/")


def test_a_notifier_says_at_its_start_where_nobody_listens_and_goes_on() -> None:
    nobody, broker = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    command = [
        sys.executable,
        "-m",
        "streams.cli",
        "notify",
        "--broker",
        broker,
        "--webhook",
        f"http://{nobody}/secret",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as notifier:
        assert notifier.stderr
        first, second = notifier.stderr.readline(), notifier.stderr.readline()
        assert notifier.poll() is None
        notifier.terminate()
    assert first == f"--webhook {nobody}: Connection refused; tried again whenever there is something to send\n"
    assert f"{broker}: no Kafka answers" in second and notifier.returncode == 0


def test_options_are_stronger_than_the_file_and_slips_are_said(tmp_path: Path) -> None:
    file = tmp_path / "asynchealth.toml"
    file.write_text('[notify]\nalertmanager = "http://a:9093"\nlevel = "warn"\n')
    made = receivers(file, alertmanager="http://b:9093", level="")
    assert (made.alertmanager, made.level, made.webhook) == ("http://b:9093", "warn", "")
    for slip in ('[notify]\nwebhok = "http://a"\n', '[notify]\nlevel = "all"\n', "notify = 1\n"):
        file.write_text(slip)
        with pytest.raises(Problem, match="its names are webhook"):
            receivers(file)


def test_the_test_notification_says_what_each_receiver_answered(receiver: Receiver) -> None:
    ways = ("--webhook", f"{receiver.url}/hook", "--alertmanager", receiver.url)
    fine = asynchealth("notify", "--test", *ways)
    assert (fine.returncode, receiver.keys) == (0, ["test/page/firing"] * 2), fine.stderr
    here = f"127.0.0.1:{receiver.port}"
    assert f"webhook {here}: taken (200)\nalertmanager {here}: taken (200)\n".encode() in fine.stdout
    receiver.answers = [404]
    failed = asynchealth("notify", "--test", *ways)
    assert failed.returncode == 2
    assert f"webhook {here}: refused (404 as it was told to)".encode() in failed.stdout
    assert b"webhook: the test notification did not arrive" in failed.stderr
    assert f"alertmanager {here}: taken".encode() in failed.stdout


def test_nobody_to_tell_is_a_problem_with_the_options() -> None:
    refused = asynchealth("notify", "--broker", "nowhere:9092")
    assert refused.returncode == 2
    assert b"notify: nobody to tell\nNext: --webhook URL, --alertmanager URL" in refused.stderr
