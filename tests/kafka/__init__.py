"""A folder enters, a running Apache Kafka 4 leaves: one KRaft process from the artifacts that Maven brings.

No Docker, no installation: the jars go into `.kafka/libs` once, and each broker has a folder of its own.
"""

from __future__ import annotations

import fcntl
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

HERE = Path(__file__).parent
HOME = HERE.parent.parent / ".kafka"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
TRIES, TRY_S = 60, 1.0

PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={folder}/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
log.retention.check.interval.ms=1000
"""


class Unavailable(Exception):
    """Why no Kafka can be brought up here."""


def libs() -> Path:
    """The jars; brought once, whoever asks first."""
    for program in ("java", "mvn"):
        if not shutil.which(program):
            raise Unavailable(f"{program} is not installed")
    HOME.mkdir(exist_ok=True)
    whole = HOME / "libs"
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            aside = HOME / "libs.coming"
            shutil.rmtree(aside, ignore_errors=True)
            options = ["-DincludeScope=runtime", f"-DoutputDirectory={aside}"]
            command = ["mvn", "-q", "-B", "-f", str(HERE / "pom.xml"), COPY, *options]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Unavailable(f"Maven could not bring Kafka: {(done.stdout + done.stderr).strip()[-400:]}")
            aside.rename(whole)
    return whole


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _free(port: int) -> bool:
    """Else whoever listens there would answer in the new broker's place."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a killed broker may linger
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@dataclass
class Broker:
    """One process on 127.0.0.1; it keeps its folder and its port over stop, kill and start."""

    folder: Path
    port: int = field(default_factory=free_port)
    controller: int = field(default_factory=free_port)
    more: str = ""  # lines of server.properties, stronger than ours
    process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "broker.log"

    def start(self) -> None:
        """Returns when it answers."""
        if not _free(self.port):
            raise Unavailable(f"something listens on port {self.port} already")
        config = self.folder / "server.properties"
        if not config.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            ours = PROPERTIES.format(port=self.port, controller=self.controller, folder=self.folder)
            config.write_text(ours + self.more)
            identity = subprocess.run(_java("kafka.tools.StorageTool", "random-uuid"), capture_output=True, check=True)
            cluster = identity.stdout.decode().strip()
            formatting = _java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(config))
            subprocess.run(formatting, capture_output=True, check=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(_java("kafka.Kafka", str(config)), stdout=log, stderr=log)
        self._answers()

    def _answers(self) -> None:
        assert self.process
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        for _ in range(TRIES):
            try:
                admin.list_topics(timeout=TRY_S)
                return
            except KafkaException:
                if self.process.poll() is not None:
                    break
        self.kill()
        raise Unavailable(f"Kafka did not come up:\n{self.log.read_text()[-800:]}")

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self.process:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None


def _java(main: str, *arguments: str) -> list[str]:
    return ["java", "-Xmx512m", "-cp", f"{libs()}/*", main, *arguments]
