"""A webhook and an Alertmanager over real HTTP, which keep what they get, and answer as they are told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jsonschema
import msgspec

# postableAlerts of Alertmanager's OpenAPI v2 (api/v2/openapi.yaml), which refuses nothing beyond it; we do
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
POSTABLE_ALERTS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["labels"],
        "properties": {
            "startsAt": {"type": "string", "format": "date-time"},
            "endsAt": {"type": "string", "format": "date-time"},
            "annotations": TEXTS,
            "labels": {**TEXTS, "propertyNames": {"pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}, "minProperties": 1},
            "generatorURL": {"type": "string", "format": "uri"},
        },
        "additionalProperties": False,
    },
}


def instant(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    assert at.tzinfo
    return at


FORMATS = jsonschema.FormatChecker(formats=())
FORMATS.checks("date-time", ValueError)(lambda text: bool(instant(text)))
VALIDATOR = jsonschema.Draft202012Validator(POSTABLE_ALERTS, format_checker=FORMATS)


def faults(alerts: Any) -> list[str]:
    """Of the schema, and what Alertmanager refuses beyond it."""
    found = [error.message for error in VALIDATOR.iter_errors(alerts)]
    if found:
        return found
    backward = [a for a in alerts if "endsAt" in a and instant(a["endsAt"]) < instant(a["startsAt"])]
    return [f"ends before it starts: {a}" for a in backward] + [
        f"no name or an empty label: {a}"
        for a in alerts
        if "alertname" not in a["labels"] or "" in a["labels"].values()
    ]


@dataclass
class Receiver:
    """answers: the codes of the next requests, then 200. A path of Alertmanager's API checks bodies.

    at: what is done when so many were taken, before the last of them is answered.
    """

    port: int = 0
    answers: list[int] = field(default_factory=list)
    got: list[tuple[str, Any]] = field(default_factory=list)  # path and body of what was taken
    headers: list[Mapping[str, str]] = field(default_factory=list)
    asked: int = 0
    refusals: list[str] = field(default_factory=list)
    at: dict[int, Callable[[], None]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def keys(self) -> list[str]:
        """Of notifications, in the order in which they were taken."""
        bodies = [body for _, body in list(self.got) if body is not None]
        return [b["key"] for b in bodies if isinstance(b, dict)] + [
            a["annotations"]["key"] for b in bodies if isinstance(b, list) for a in b if "key" in a["annotations"]
        ]

    def take(self, path: str, body: Any) -> tuple[int, str]:
        self.asked += 1
        code = self.answers.pop(0) if self.answers else 200
        if code == 200 and path.endswith("/api/v2/alerts") and (wrong := faults(body)):
            self.refusals += wrong
            return 400, wrong[0]
        if code == 200:
            self.got.append((path, body))
            self.at.get(len(self.got), lambda: None)()
        return code, "as it was told to"


@contextmanager
def receiving() -> Iterator[Receiver]:
    """port is where it listens."""
    receiver = Receiver()

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self._answer(msgspec.json.decode(self.rfile.read(int(self.headers["Content-Length"]))))

        def do_GET(self) -> None:
            self._answer(None)

        def _answer(self, body: Any) -> None:
            receiver.headers.append(dict(self.headers))
            code, said = receiver.take(self.path, body)
            with suppress(ConnectionError):  # who asked may have been killed
                self.send_response(code)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said.encode())

        def log_message(self, *_: object) -> None:
            """Tests look at what was got."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    receiver.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
