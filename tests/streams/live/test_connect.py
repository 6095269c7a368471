"""Every way to sign in, by each client, at a real Kafka that lets nobody else in; and every way to state it wrongly."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
from kafka import KafkaConsumer

from streams.live.connect import Access, Connection, Tokens, connection
from streams.live.topics import Topic, admin, create
from streams.problems import Problem
from tests.kafka import Broker, free_port
from tests.streams.conftest import started

pytestmark = pytest.mark.xdist_group("kafka")

USER, SECRET, TOPIC, WAIT_S = "asynchealth", "not the usual one", "requests", 30
MODULE = "org.apache.kafka.common.security"
MORE = """
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},{ours}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},{ours}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,SASL:SASL_PLAINTEXT,BOTH:SASL_SSL
ssl.keystore.type=PEM
ssl.keystore.location={folder}/both.pem
ssl.truststore.type=PEM
ssl.truststore.location={folder}/certificate.pem
listener.name.tls.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER
"""
LOGINS = """
listener.name.{name}.plain.sasl.jaas.config={module}.plain.PlainLoginModule required user_{user}="{secret}";
listener.name.{name}.scram-sha-256.sasl.jaas.config={module}.scram.ScramLoginModule required;
listener.name.{name}.scram-sha-512.sasl.jaas.config={module}.scram.ScramLoginModule required;
listener.name.{name}.oauthbearer.sasl.jaas.config={module}.oauthbearer.OAuthBearerLoginModule required \
unsecuredLoginStringClaim_sub="broker";
"""


class Doors:
    """Where one broker listens: TLS asks for a certificate, SASL for a name, BOTH for a name behind TLS."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("TLS", "SASL", "BOTH")}
        self.asked: list[str] = []  # of the token server, who signed in there

    def __getitem__(self, name: str) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    @property
    def certificate(self) -> str:
        """Signed by itself, so it is the authority, too; brokers and clients show the same."""
        return str(self.folder / "certificate.pem")

    @property
    def key(self) -> str:
        return str(self.folder / "key.pem")

    def certify(self) -> None:
        made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
        named = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", self.key, "-out", self.certificate]
        subprocess.run([*made, *named], check=True, capture_output=True)
        (self.folder / "both.pem").write_text(Path(self.key).read_text() + Path(self.certificate).read_text())

    def properties(self, port: int, controller: int) -> str:
        ours = ",".join(f"{name}://{self[name]}" for name in self.ports)
        logins = (LOGINS.format(name=n, module=MODULE, user=USER, secret=SECRET) for n in ("sasl", "both"))
        return MORE.format(port=port, controller=controller, ours=ours, folder=self.folder) + "".join(logins)


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    doors = Doors(tmp_path_factory.mktemp("doors"))
    doors.certify()
    port, controller = free_port(), free_port()
    broker = started(Broker(doors.folder / "kafka", port, controller, doors.properties(port, controller)))
    client = admin(Connection(broker=broker.bootstrap))
    create(client, [Topic(TOPIC, 1, 1_000_000)])
    for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
        user = UserScramCredentialUpsertion(USER, ScramCredentialInfo(mechanism, 4096), SECRET.encode())
        for done in client.alter_user_scram_credentials([user]).values():
            done.result()
    yield doors
    broker.kill()


@pytest.fixture(scope="module")
def token_url(doors: Doors) -> Iterator[str]:
    """Gives tokens without a signature, as the broker takes them in its development mode."""

    def part(content: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            signed = self.headers["Authorization"].removeprefix("Basic ")
            doors.asked.append(base64.b64decode(signed).decode())
            now = int(time.time())
            token = f"{part({'alg': 'none'})}.{part({'sub': USER, 'iat': now, 'exp': now + 600})}."
            body = json.dumps({"access_token": token, "expires_in": 600, "token_type": "Bearer"}).encode()
            self.send_response(200 if doors.asked[-1] == f"{USER}:{SECRET}" else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/token"
    server.shutdown()


WAYS = ("certificate", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "SCRAM-SHA-512 behind TLS")


def way(name: str, doors: Doors, token_url: str) -> Connection:
    values: dict[str, Any]
    if name == "certificate":
        values = {"broker": doors["TLS"], "certificate": doors.certificate, "key": doors.key}
    else:
        mechanism, _, behind = name.partition(" behind ")
        values = {"mechanism": mechanism, "username": USER, "password": SECRET, "broker": doors["SASL"]}
        values |= {"broker": doors["BOTH"]} if behind else {}
        values |= {"token_url": token_url} if mechanism == "OAUTHBEARER" else {}
    if values["broker"] != doors["SASL"]:
        values |= {"tls": True, "ca": doors.certificate}
    return Connection(**values)


def by_confluent(at: Connection) -> set[str]:
    client = AdminClient(at.confluent())
    return set(client.list_topics(timeout=WAIT_S).topics)


def by_kafka_python(at: Connection) -> set[str]:
    reader = KafkaConsumer(**at.kafka_python())
    found: set[str] = reader.topics()
    reader.close()
    return found


def by_aiokafka(at: Connection) -> set[str]:
    async def ask() -> set[str]:
        async with AIOKafkaConsumer(**at.aiokafka()) as reader:
            found: set[str] = await reader.topics()
            return found

    return asyncio.run(ask())


def by_faust(at: Connection) -> set[str]:
    """Faust's own translation to aiokafka, which its consumer and its producer go through."""
    auth = credentials_to_aiokafka_auth(at.faust().get("broker_credentials"))

    async def ask() -> set[str]:
        async with AIOKafkaConsumer(bootstrap_servers=at.broker, **auth) as reader:
            found: set[str] = await reader.topics()
            return found

    return asyncio.run(ask())


CLIENTS = (by_confluent, by_kafka_python, by_aiokafka, by_faust)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_gets_in_each_way(
    client: Callable[[Connection], set[str]], name: str, doors: Doors, token_url: str
) -> None:
    before = len(doors.asked)
    assert TOPIC in client(way(name, doors, token_url))
    if name == "OAUTHBEARER":
        assert f"{USER}:{SECRET}" in doors.asked[before:]


def test_a_wrong_password_is_named(doors: Doors, token_url: str) -> None:
    wrong = Connection(broker=doors["SASL"], mechanism="PLAIN", username=USER, password="a guess")
    with pytest.raises(Problem, match=r"no Kafka answers .*[Aa]uthentication failed.*\nNext: .*SASL_PLAINTEXT"):
        admin(wrong)


def test_an_authority_that_nobody_knows_is_named(doors: Doors) -> None:
    with pytest.raises(Problem, match=r"no Kafka answers .*(certificate|SSL)"):
        admin(Connection(broker=doors["TLS"], tls=True))


def test_a_token_is_asked_for_once_and_a_refusal_is_named(doors: Doors, token_url: str) -> None:
    tokens = Tokens(way("OAUTHBEARER", doors, token_url))
    before = len(doors.asked)
    assert tokens.token() == tokens.token() != ""
    assert len(doors.asked) == before + 1
    refused = Connection(broker="a:1", mechanism="OAUTHBEARER", username=USER, password="x", token_url=token_url)
    with pytest.raises(Problem, match="gave no token: HTTP Error 401"):
        Tokens(refused).token()


# ---- how it is stated ----

FILE = """
[kafka]
broker = "file:1"
tls = true
mechanism = "PLAIN"
username = "of the file"
password = "secret of the file"
"""


def test_an_option_is_stronger_than_the_environment_and_that_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "asynchealth.toml"
    path.write_text(FILE)
    at = connection("", (), {}, path)
    assert (at.broker, at.username, at.protocol) == ("file:1", "of the file", "SASL_SSL")
    environment = {"ASYNCHEALTH_KAFKA_USERNAME": "of the environment", "ASYNCHEALTH_KAFKA_TLS": "false"}
    at = connection("", (), environment, path)
    assert (at.broker, at.username, at.protocol) == ("file:1", "of the environment", "SASL_PLAINTEXT")
    at = connection("option:1", ["username=of the option"], environment, path)
    assert (at.broker, at.username, at.password) == ("option:1", "of the option", "secret of the file")


def test_a_secret_is_in_no_representation(tmp_path: Path) -> None:
    path = tmp_path / "asynchealth.toml"
    path.write_text(FILE)
    at = connection("", (), {}, path)
    assert at.password == "secret of the file"
    stated = Access(broker=at.broker, password=at.password)
    assert at.password not in f"{at!r} {at} {stated!r} {stated}"


@pytest.mark.parametrize(
    ("given", "environment", "said"),
    [
        (["username"], {}, "--kafka username: no value"),
        (["password=x"], {}, "ASYNCHEALTH_KAFKA_PASSWORD"),
        (["key_password=x"], {}, "ASYNCHEALTH_KAFKA_KEY_PASSWORD"),
        (["mechansim=PLAIN"], {}, "unknown field `mechansim`"),
        (["mechanism=KERBEROS"], {}, "Invalid enum value 'KERBEROS'"),
        ([], {"ASYNCHEALTH_KAFKA_TLS": "perhaps"}, "tls"),
        (["mechanism=PLAIN"], {}, "Kafka's mechanism: it needs username"),
        (["username=a"], {}, "Kafka's username: it needs mechanism"),
        (["ca=a.pem"], {}, "Kafka's ca: it needs tls"),
        (["tls=true", "key=a.pem"], {}, "Kafka's key: it needs certificate"),
        (
            ["mechanism=OAUTHBEARER", "username=a"],
            {"ASYNCHEALTH_KAFKA_PASSWORD": "x"},
            "it needs token_url",
        ),
    ],
)
def test_what_is_stated_wrongly_is_named(
    tmp_path: Path, given: list[str], environment: dict[str, str], said: str
) -> None:
    with pytest.raises(Problem) as problem:
        connection("a:1", given, environment, tmp_path / "none.toml")
    assert said in str(problem.value)
    assert "\nNext: " in str(problem.value)


def test_without_a_broker_people_are_told_where_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="no Kafka is named\nNext: --broker host:9092"):
        connection("", (), {}, tmp_path / "none.toml")


def test_a_certificate_that_is_not_there_is_named() -> None:
    with pytest.raises(Problem, match=r"nowhere\.pem: no certificates that can be read"):
        Connection(broker="a:1", tls=True, ca="nowhere.pem").kafka_python()
