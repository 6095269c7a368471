"""Options, environment and the table [kafka] of asynchealth.toml enter, one Connection leaves, in each client's words.

[kafka]
broker = "kafka-1:9093,kafka-2:9093"
tls = true
ca = "/etc/ssl/kafka-ca.pem"
mechanism = "SCRAM-SHA-512"
username = "asynchealth"

ASYNCHEALTH_KAFKA_USERNAME is stronger than the file, `--kafka username=…` stronger than both. A secret is no option,
since every process of a machine can read another's arguments: ASYNCHEALTH_KAFKA_PASSWORD, or the file.
"""

from __future__ import annotations

import asyncio
import base64
import os
import shlex
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import aiokafka.abc
import kafka.errors
import kafka.net.sasl.oauth
import msgspec

from streams.problems import Problem
from streams.settings import CONFIG
from streams.settings import read as read_config

if TYPE_CHECKING:
    from faust.types.auth import CredentialsT

ENVIRONMENT = "ASYNCHEALTH_KAFKA_"
SECRETS = ("password", "key_password")
BROKER_EXAMPLE = '--broker host:9092, or broker = "host:9092" under [kafka] in asynchealth.toml'
TOKEN_WAIT_S = 10
TOKEN_LIFE = 0.8  # of a token's life, after which another is fetched


class Access(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What people state. With OAUTHBEARER, username and password are the client's id and secret."""

    broker: str  # host:port, or several with commas between them
    tls: bool = False
    ca: str = ""  # the file with the authority that signed the brokers' certificates; none: the system's
    certificate: str = ""  # of this client, where brokers ask for one
    key: str = ""
    key_password: str = ""
    mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = ""
    username: str = ""
    password: str = ""
    token_url: str = ""
    scope: str = ""

    def __repr__(self) -> str:
        return f"Access({self.broker})"


class Connection(Access, frozen=True, kw_only=True, dict=True):
    """How Kafka is reached. given: what came after each --kafka, which no file has."""

    given: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Connection({self.broker}, {self.protocol}, {self.mechanism or 'nobody signs in'})"

    def options(self, prefix: str = "") -> str:
        """Of a command that goes to this installation, as they can be typed here."""
        named = [word for one in self.given for word in ("--kafka", one)]
        return shlex.join(["--broker", self.broker, *named, *(["--prefix", prefix] if prefix else [])])

    @property
    def protocol(self) -> str:
        return ("SASL_" if self.mechanism else "") + ("SSL" if self.tls else "PLAINTEXT")

    @cached_property
    def context(self) -> ssl.SSLContext | None:
        """For the clients in Python."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key or None, self.key_password or None)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(filter(None, (self.ca, self.certificate, self.key)))
            raise Problem(files, f"no certificates that can be read: {error}", "name PEM files under [kafka]") from None
        return context

    def confluent(self) -> dict[str, Any]:
        """For confluent-kafka, which knows how to fetch tokens."""
        bearer = self.mechanism == "OAUTHBEARER"
        names = ("oauthbearer.client.id", "oauthbearer.client.secret") if bearer else ("username", "password")
        settings = {
            "bootstrap.servers": self.broker,
            "security.protocol": self.protocol,
            "sasl.mechanism": self.mechanism,
            "sasl.oauthbearer.method": "oidc" if bearer else "",
            "sasl.oauthbearer.token.endpoint.url": self.token_url,
            "sasl.oauthbearer.scope": self.scope,
            f"sasl.{names[0]}": self.username,
            f"sasl.{names[1]}": self.password,
            "ssl.ca.location": self.ca,
            "ssl.certificate.location": self.certificate,
            "ssl.key.location": self.key,
            "ssl.key.password": self.key_password,
        }
        return {name: value for name, value in settings.items() if value}

    def aiokafka(self) -> dict[str, Any]:
        return self._python(AsyncTokens(Tokens(self)))

    def kafka_python(self) -> dict[str, Any]:
        return self._python(SyncTokens(Tokens(self)))

    def consumer(self, **settings: Any) -> kafka.KafkaConsumer:
        """kafka-python's, which asks a broker as it begins."""
        try:
            return kafka.KafkaConsumer(**self.kafka_python(), **settings)
        except kafka.errors.KafkaError as error:
            then = "can each of its brokers be reached from here? The one inside asynchealth up is for that up alone"
            raise Problem(self.broker, f"no Kafka answers a consumer ({error})", then) from None

    def _python(self, tokens: Any) -> dict[str, Any]:
        """The two clients in Python have the same words."""
        settings: dict[str, Any] = {
            "bootstrap_servers": self.broker.split(","),
            "security_protocol": self.protocol,
            "ssl_context": self.context,
        }
        match self.mechanism:
            case "":
                return settings
            case "OAUTHBEARER":
                signing_in = {"sasl_oauth_token_provider": tokens}
            case _:
                signing_in = {"sasl_plain_username": self.username, "sasl_plain_password": self.password}
        return {**settings, "sasl_mechanism": self.mechanism, **signing_in}

    def faust(self) -> dict[str, CredentialsT]:
        """What the app needs beside the broker's address."""
        from faust import OAuthCredentials, SASLCredentials, SSLCredentials

        match self.mechanism:
            case "" if self.context is None:
                return {}
            case "":
                credentials: CredentialsT = SSLCredentials(self.context)
            case "OAUTHBEARER":
                credentials = OAuthCredentials(oauth_cb=AsyncTokens(Tokens(self)), ssl_context=self.context)
            case _:
                credentials = SASLCredentials(
                    username=self.username,
                    password=self.password,
                    ssl_context=self.context,
                    mechanism=self.mechanism,
                )
        return {"broker_credentials": credentials}


def connection(
    broker: str = "",
    given: Iterable[str] = (),
    environment: Mapping[str, str] = os.environ,
    path: Path = Path(CONFIG),
) -> Connection:
    """given: each `name=value`, as after --kafka."""
    given = tuple(given)
    values = dict(_table(path))
    prefix = len(ENVIRONMENT)
    values |= {name[prefix:].lower(): v for name, v in environment.items() if name.startswith(ENVIRONMENT)}
    values |= dict(map(_split, given))
    values |= {"broker": broker} if broker else {}
    if not values.get("broker"):
        raise Problem("--broker", "no Kafka is named", BROKER_EXAMPLE)
    try:
        made = msgspec.convert(values, Access, strict=False)
    except msgspec.ValidationError as error:
        raise Problem("[kafka]", str(error), f"its names are {', '.join(Access.__struct_fields__)}") from None
    _complete(made)
    return Connection(**msgspec.structs.asdict(made), given=given)


def _table(path: Path) -> Mapping[str, Any]:
    table = read_config(path).get("kafka", {})
    if not isinstance(table, Mapping):
        raise Problem(f"{path}: kafka", "not a table", 'write [kafka], and under it broker = "host:9092"')
    return table


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise Problem(f"--kafka {text}", "no value", "--kafka username=asynchealth")
    if name in SECRETS:
        raise Problem(f"--kafka {name}", "others can read it in the list of processes", f"{ENVIRONMENT}{name.upper()}")
    return name, value


def _complete(made: Access) -> None:
    """Whatever would not be used, or is missing, is said before any client starts."""
    needs = (
        (made.mechanism, ("username", "password"), "mechanism"),
        (made.mechanism == "OAUTHBEARER", ("token_url",), "mechanism = OAUTHBEARER"),
        (made.certificate, ("tls",), "certificate"),
        (made.ca, ("tls",), "ca"),
        (made.key, ("certificate",), "key"),
        (made.key_password, ("key",), "key_password"),
        (made.username, ("mechanism",), "username"),
        (made.password, ("mechanism",), "password"),
    )
    for stated, names, what in needs:
        for name in names:
            if stated and not getattr(made, name):
                where = f"{ENVIRONMENT}{name.upper()}, or {name} = … under [kafka] in {CONFIG}"
                raise Problem(f"Kafka's {what}", f"it needs {name}", where)


class _Granted(msgspec.Struct):
    access_token: str
    expires_in: float = 60


class Tokens:
    """One token at a time, fetched again before it ends."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.value, self.until = "", float("-inf")

    def token(self) -> str:
        if time.monotonic() >= self.until:
            granted = _granted(self.connection)
            self.value, self.until = granted.access_token, time.monotonic() + TOKEN_LIFE * granted.expires_in
        return self.value


def _granted(by: Connection) -> _Granted:
    """Client credentials, RFC 6749 section 4.4."""
    form = {"grant_type": "client_credentials"} | ({"scope": by.scope} if by.scope else {})
    signature = base64.b64encode(f"{by.username}:{by.password}".encode()).decode()
    asked = urllib.request.Request(
        by.token_url, urllib.parse.urlencode(form).encode(), {"Authorization": f"Basic {signature}"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=TOKEN_WAIT_S) as answer:
            return msgspec.json.decode(answer.read(), type=_Granted)
    except (urllib.error.URLError, TimeoutError, ValueError, msgspec.MsgspecError) as error:
        raise Problem(by.token_url, f"gave no token: {error}", "check token_url, username and password") from None


class AsyncTokens(aiokafka.abc.AbstractTokenProvider):  # type: ignore[misc]  # aiokafka publishes no types
    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    async def token(self) -> str:
        return await asyncio.to_thread(self.tokens.token)


class SyncTokens(kafka.net.sasl.oauth.AbstractTokenProvider):  # type: ignore[misc]  # neither does kafka-python
    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def token(self) -> str:
        return self.tokens.token()
