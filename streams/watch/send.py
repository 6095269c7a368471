"""Notices enter, requests to a webhook and to Alertmanager leave; what a receiver answered comes back as one of three.

An address may be a secret, so no message shows more of it than its host.
"""

from __future__ import annotations

import http.client
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

import msgspec

from detectors.finding import LEVELS
from streams.problems import Problem
from streams.watch.news import Notice

WAIT_S = 5.0
READ_BYTES = 300  # of an answer, for the reason
FIRES_FOR = timedelta(minutes=5)  # an alert that nobody renews ends by itself
WATCHDOG_FOR = timedelta(minutes=3)
WATCHDOG = "asynchealth_watchdog"
PORTS = {"http": http.client.HTTP_PORT, "https": http.client.HTTPS_PORT}
AGAIN = (408, 425, 429)  # and all from 500 on: the receiver may take it later


class Answer(NamedTuple):
    """taken; refused: it never will be; away: it may be later."""

    outcome: Literal["taken", "refused", "away"]
    said: str


class Receiver(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def host(self) -> str: ...

    def send(self, notice: Notice, levels: Sequence[str]) -> Answer: ...


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A POST that is redirected would arrive as a GET without its body."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def ask(url: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
    """POST of JSON, or GET where there is no body."""
    data = None if body is None else ENCODER.encode(body)
    kind = {} if data is None else {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data, {"User-Agent": "asynchealth", **kind, **(headers or {})})
    try:
        with _OPENER.open(request, timeout=WAIT_S) as answer:
            return Answer("taken", f"{answer.status}")
    except urllib.error.HTTPError as error:
        with error:
            said = " ".join(error.read(READ_BYTES).decode(errors="replace").split())
        again = error.code >= 500 or error.code in AGAIN
        return Answer("away" if again else "refused", f"{error.code} {said or error.reason}")
    except (OSError, http.client.HTTPException) as error:
        return Answer("away", f"no answer: {getattr(error, 'reason', None) or error or type(error).__name__}")


ENCODER = msgspec.json.Encoder(order="deterministic")


def checked(url: str, option: str) -> str:
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        fine = False
    if not fine:
        raise Problem(option, "not an address of HTTP", f"{option} https://host/path")
    return url


def unheard(url: str) -> str:
    """Why nobody listens at an address; nothing where somebody does, or a proxy knows."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return ""
    try:
        socket.create_connection((host, parts.port or PORTS[parts.scheme]), WAIT_S).close()
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def host_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else f"{parts.hostname}"


def stamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True)
class Webhook:
    """One POST a notice."""

    url: str
    name: str = "webhook"

    @property
    def host(self) -> str:
        return host_of(self.url)

    def send(self, notice: Notice, levels: Sequence[str]) -> Answer:
        return ask(self.url, posted(notice), {"Idempotency-Key": notice.key})


def posted(notice: Notice) -> dict[str, Any]:
    """The body for a webhook. text is all of it, which chats show."""
    ended = notice.state == "resolved"
    return {
        "key": notice.key,
        "text": notice.text,
        "state": notice.state,
        "level": notice.level,
        "incident_id": notice.incident_id,
        "detector": notice.detector,
        "kind": notice.kind,
        "subject_kind": notice.subject_kind,
        "subject": notice.subject,
        "service": notice.service,
        "environment": notice.environment,
        "tenant": notice.tenant,
        "certainty": notice.certainty,
        "onset": stamp(notice.onset),
        "resolved": stamp(notice.since) if ended else None,
        "sentence": notice.sentence,
        "chain": list(notice.chain),
        "findings": list(notice.findings),
        "contacts": list(notice.contacts),
        "runbook": notice.commands[0],
        "next": list(notice.commands),
    }


@dataclass(frozen=True)
class Alertmanager:
    """API v2. own: labels of all our alerts, which tell two installations apart."""

    url: str
    own: tuple[tuple[str, str], ...] = ()
    name: str = "alertmanager"

    @property
    def host(self) -> str:
        return host_of(self.url)

    def send(self, notice: Notice, levels: Sequence[str]) -> Answer:
        """With the level is a label, so that alerts can be routed by it: one that rose ends the lower one with it."""
        return self.post([alert(notice), *(lower(notice, level) for level in levels if _below(level, notice))])

    def renew(self, notices: Sequence[Notice], now: datetime) -> Answer:
        return self.post([alert(n, now) for n in notices])

    def watchdog(self, now: datetime, then: str) -> Answer:
        """The dead man's alert: while it is renewed, all works. then: what to type once it is not."""
        said = f"A canary came through the whole chain. Where this alert ends, nothing is watched. Next: {then}"
        times = {"startsAt": stamp(now), "endsAt": stamp(now + WATCHDOG_FOR)}
        known = {"alertname": WATCHDOG, "severity": "none"}
        return self.post([{"labels": known, "annotations": {"summary": said}, **times}])

    def post(self, alerts: Sequence[Mapping[str, Any]]) -> Answer:
        own = dict(self.own)
        body = [{**a, "labels": {**a["labels"], **own}} for a in alerts]
        return ask(f"{self.url.rstrip('/')}/api/v2/alerts", body)


def _below(level: str, notice: Notice) -> bool:
    return notice.state != "resolved" and LEVELS.index(level) < LEVELS.index(notice.level)


def labels(notice: Notice) -> dict[str, str]:
    """What stays as it is while the incident is open at this level: Alertmanager knows an alert by its labels."""
    every = {
        "alertname": notice.detector,
        "detector": notice.detector,
        "kind": notice.kind,
        "severity": notice.level,
        "name": notice.name,
        "subject_kind": notice.subject_kind,
        "subject": notice.subject,
        "service": notice.service,
        "environment": notice.environment,
        "tenant": notice.tenant,
        "incident_id": notice.incident_id,
    }
    return {name: value for name, value in every.items() if value}


def alert(notice: Notice, now: datetime | None = None) -> dict[str, Any]:
    fires = (now or datetime.now(UTC)) + FIRES_FOR
    said = {
        "summary": notice.sentence,
        "description": "\n".join(notice.chain),
        "contacts": "\n".join(notice.contacts),
        "runbook": notice.commands[0],
        "next": "\n".join(notice.commands),
        "certainty": notice.certainty,
        "key": notice.key,
    }
    return {
        "labels": labels(notice),
        "annotations": {name: value for name, value in said.items() if value},
        "startsAt": stamp(notice.onset),
        "endsAt": stamp(notice.since if notice.state == "resolved" else fires),
    }


def lower(notice: Notice, level: str) -> dict[str, Any]:
    """The end of an alert whose incident is at a higher level now."""
    known = {**labels(notice), "severity": level}
    said = {"summary": f"now {notice.level}: {notice.sentence}"}
    return {"labels": known, "annotations": said, "startsAt": stamp(notice.onset), "endsAt": stamp(notice.since)}
