"""A real Apache Kafka: fetched with Maven, kept between runs, and started as one broker or several.

The jars lie in the user's cache directory ($XDG_CACHE_HOME, else ~/.cache), under statsig-otel-tests/kafka-VERSION.
They need Maven to be fetched (44 MB), and Java 17 or newer to run. A broker takes 330 MB.
"""

import os
import re
import shlex
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final, Self

from confluent_kafka import ConsumerGroupState, KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from tests.e2e.otelcol import UnavailableError, locked
from tests.e2e.processes import Restartable, clean_environment
from tests.peers.certs import Authority
from tests.peers.ports import free_port

_POM: Final = Path(__file__).with_suffix(".pom.xml")
_VERSION: Final = "4.3.1"
_FETCH_TIMEOUT: Final = 10 * 60.0
_CLUSTER_ID: Final = "c3RhdHNpZy1vdGVsLXRlcw"
_PASSWORDS: Final = {"writer": "w-secret", "stranger": "s-secret"}
"""The users of the SASL listeners. Only the writer may write."""

_SCRIPTS: Final = {
    "kafka-topics.sh": "org.apache.kafka.tools.TopicCommand",
    "kafka-consumer-groups.sh": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
}
"""The classes that Kafka's scripts run."""

COMPRESSIONS: Final = ("none", "gzip", "snappy", "lz4", "zstd")
"""In the order of their numbers."""

TEST_TIMEOUT: Final = 15 * 60.0
"""Seconds for a test that may have to fetch the jars first, or to wait for another worker that does."""


@cache
def fetch() -> Path:
    """The folder with the jars. Several processes may ask at a time.

    Raises:
        UnavailableError: There is no Java or no Maven, or the jars can't be had.
    """
    java, maven = shutil.which("java"), shutil.which("mvn")
    if java is None:
        raise UnavailableError("java is not on the PATH")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < 17:
        raise UnavailableError(f"Java 17 or newer is needed: {said.splitlines()[0]}")
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache_folder / "statsig-otel-tests" / f"kafka-{_VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        jars, pom = folder / "jars", folder / "pom.xml"
        if not (jars.is_dir() and pom.exists() and pom.read_bytes() == _POM.read_bytes()):
            if maven is None:
                raise UnavailableError("mvn is not on the PATH")
            pom.unlink(missing_ok=True)
            goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
            try:
                ran = subprocess.run(
                    [maven, "--batch-mode", "--quiet", "--file", str(_POM), *goal],
                    capture_output=True, text=True, check=False, timeout=_FETCH_TIMEOUT,
                )  # fmt: skip
            except subprocess.TimeoutExpired as error:
                raise UnavailableError(f"Maven took more than {_FETCH_TIMEOUT / 60:.0f} minutes") from error
            if ran.returncode:
                raise UnavailableError(f"the jars can't be had:\n{(ran.stdout + ran.stderr)[-2000:]}")
            pom.write_bytes(_POM.read_bytes())
    return jars


class Broker(Restartable):
    """One broker, which is also a controller. It takes requests once the cluster is complete.

    Attributes:
        ports: Its ports on 127.0.0.1 by listener: PLAINTEXT, SASL, SSL, SASL_SSL and CONTROLLER.
    """

    def __init__(self, jars: Path, folder: Path, number: int, ports: Mapping[str, int]) -> None:
        self.ports = ports
        self._jars = jars
        self._folder = folder
        self._number = number
        super().__init__(f"broker {number}", java(jars, "kafka.Kafka", str(folder / "server.properties")), {})

    def configure(self, authority: Authority, controllers: str, size: int) -> None:
        """Write the broker's files and prepare its storage."""
        self._folder.mkdir(parents=True)
        certificate = authority.issue("127.0.0.1", "localhost")
        key = load_pem_private_key(certificate.key, None)  # Java reads one form only
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self._folder / "server.pem").write_bytes(pem + certificate.chain)
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required " + " ".join(
            f'user_{user}="{password}"' for user, password in _PASSWORDS.items()
        )
        sasl = {
            f"listener.name.{listener}.{mechanism}.sasl.jaas.config": module
            for listener in ("sasl", "sasl_ssl")
            for mechanism, module in {"scram-sha-256": scram, "scram-sha-512": scram, "plain": f"{plain};"}.items()
        }
        protocols = {"SASL": "SASL_PLAINTEXT", "CONTROLLER": "PLAINTEXT"}
        listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in self.ports.items())
        settings = {
            "process.roles": "broker,controller",
            "node.id": self._number,
            "controller.quorum.voters": controllers,
            "controller.listener.names": "CONTROLLER",
            "listeners": listeners,
            "advertised.listeners": ",".join(one for one in listeners.split(",") if "CONTROLLER" not in one),
            "listener.security.protocol.map": ",".join(f"{name}:{protocols.get(name, name)}" for name in self.ports),
            "inter.broker.listener.name": "PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            **sasl,
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self._folder / "server.pem",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "log.dirs": self._folder / "data",
            "auto.create.topics.enable": "true",  # Kafka's default
            "offsets.topic.replication.factor": size,
            "offsets.topic.num.partitions": 3,
            "transaction.state.log.replication.factor": size,
            "transaction.state.log.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "controlled.shutdown.enable": "false",
        }  # fmt: skip
        text = "".join(f"{key}={value}\n" for key, value in settings.items())
        (self._folder / "server.properties").write_text(text)
        users = [
            argument
            for user, password in _PASSWORDS.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for argument in ("--add-scram", f"{mechanism}=[name={user},password={password}]")
        ]
        subprocess.run(
            java(self._jars, "kafka.tools.StorageTool", "format", "--cluster-id", _CLUSTER_ID, *users,
                 "--config", str(self._folder / "server.properties")),
            env=clean_environment(), check=True, capture_output=True,
        )  # fmt: skip

    def compressions(self, topic: str) -> set[str]:
        """How the batches of a topic are compressed in the broker's files, as the producer has sent them."""
        found: set[str] = set()
        for path in (self._folder / "data").glob(f"{topic}-*/*.log"):
            log, begin = path.read_bytes(), 0
            while begin < len(log):  # Kafka's protocol, "Record Batch"
                (length,) = struct.unpack_from(">i", log, begin + 8)
                (attributes,) = struct.unpack_from(">h", log, begin + 21)
                found.add(COMPRESSIONS[attributes & 0x07])
                begin += 12 + length
        return found


def java(jars: Path, main: str, *arguments: str) -> list[str]:
    """A command that runs a class of these jars."""
    return [
        "nice", "-n", "10", "java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
        "-cp", f"{jars}/*", main, *arguments,
    ]  # fmt: skip


class ApacheKafka:
    """A cluster of brokers on this machine, with the topic `otlp_logs`. A context manager.

    Args:
        jars: Of `fetch`.
        folder: A folder for its files.
        size: How many brokers.

    Attributes:
        brokers: The brokers.
        authority: Who has issued their certificates.
    """

    def __init__(self, jars: Path, folder: Path, size: int = 1) -> None:
        self._jars = jars
        self.authority = Authority()
        names = ("PLAINTEXT", "SASL", "SSL", "SASL_SSL", "CONTROLLER")
        self.brokers = [
            Broker(jars, folder / f"broker-{number}", number, {name: free_port() for name in names})
            for number in range(1, size + 1)
        ]
        self._size = size

    def __enter__(self) -> Self:
        voters = ",".join(f"{number}@127.0.0.1:{one.ports['CONTROLLER']}" for number, one in enumerate(self.brokers, 1))
        for broker in self.brokers:
            broker.configure(self.authority, voters, self._size)
        try:
            for broker in self.brokers:
                broker.start()
            self._wait()
            self.create_topic("otlp_logs", 6, {"min.insync.replicas": str(min(self._size, 2))})
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for broker in self.brokers:
            broker.kill()

    def addresses(self, listener: str = "PLAINTEXT") -> list[str]:
        """Where the brokers listen."""
        return [f"127.0.0.1:{broker.ports[listener]}" for broker in self.brokers]

    def create_topic(self, name: str, partitions: int = 3, settings: Mapping[str, str] | None = None) -> None:
        """Create a topic that has a replica on each broker, and that the user `writer` may write to."""
        topic = NewTopic(name, partitions, self._size, config=dict(settings or {}))
        acls = [
            AclBinding(
                ResourceType.TOPIC, name, ResourcePatternType.LITERAL, f"User:{user}", "*", operation,
                AclPermissionType.ALLOW,
            )
            for user, operation in (
                ("writer", AclOperation.WRITE), ("writer", AclOperation.DESCRIBE), ("stranger", AclOperation.DESCRIBE),
            )
        ]  # fmt: skip
        admin = self._admin()  # it has to last until the answers are there
        for future in [*admin.create_topics([topic]).values(), *admin.create_acls(acls).values()]:
            future.result(60)

    def run(self, command: str) -> str:
        """What a command of Kafka's prints, such as `kafka-topics.sh --list`. It asks these brokers, whatever it says.

        Raises:
            AssertionError: It fails.
        """
        script, *arguments = shlex.split(command.replace("\\\n", " "))
        if "--bootstrap-server" in arguments:
            arguments[arguments.index("--bootstrap-server") + 1] = ",".join(self.addresses())
        ran = subprocess.run(
            java(self._jars, _SCRIPTS[script], *arguments),
            env=clean_environment(), capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def delete_topic(self, name: str) -> None:
        """Delete a topic."""
        admin = self._admin()
        for future in admin.delete_topics([name]).values():
            future.result(60)

    def are_in_sync(self, topic: str) -> bool:
        """Whether each partition of a topic has a leader, and is on all brokers."""
        try:
            found = self._admin().list_topics(topic, timeout=5).topics[topic].partitions.values()
        except KafkaException:
            return False
        return bool(found) and all(one.leader in one.isrs and len(one.isrs) == self._size for one in found)

    def is_stable(self, group: str, members: int) -> bool:
        """Whether a consumer group has so many members, and each of them its partitions."""
        admin = self._admin()
        try:
            found = admin.describe_consumer_groups([group])[group].result(30)
        except KafkaException:
            return False
        return bool(found.state == ConsumerGroupState.STABLE) and len(found.members) == members

    def _admin(self) -> AdminClient:
        return AdminClient({
            "bootstrap.servers": ",".join(self.addresses()), "log_level": 0, "allow.auto.create.topics": False,
        })  # fmt: skip

    def _wait(self, within: float = 180.0) -> None:
        """Wait until all brokers have joined."""
        latest = time.monotonic() + within
        while True:
            try:
                if len(self._admin().list_topics(timeout=2).brokers) == self._size:
                    return
            except KafkaException:
                pass
            if time.monotonic() > latest or not all(broker.is_running for broker in self.brokers):
                lines = [line for broker in self.brokers for line in broker.output.splitlines()]
                faults = [line for line in lines if "ERROR" in line or line.startswith("Caused by")]
                raise AssertionError("the brokers do not start:\n" + "\n".join(faults or lines[-30:]))
            time.sleep(0.2)


def sasl(user: str, *, mechanism: str = "SCRAM-SHA-512", password: str | None = None) -> dict[str, dict[str, str]]:
    """The key `auth` of an exporter, with the user's password or another one."""
    secret = _PASSWORDS[user] if password is None else password
    return {"sasl": {"mechanism": mechanism, "username": user, "password": secret}}


@contextmanager
def running(folder: Path, size: int = 1) -> Iterator[ApacheKafka]:
    """A running cluster.

    Raises:
        UnavailableError: This machine can't run it.
    """
    with ApacheKafka(fetch(), folder, size) as cluster:
        yield cluster
