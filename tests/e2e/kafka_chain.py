"""The chain of examples/kafka on this machine: nginx, replicas, brokers and Collectors, each of which can be killed.

The tests, proofs/kafka_kills.py, benchmarks/replicas.py and the example itself use it. It runs with the files of the
example. Only the ports are others.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from tests.e2e.otelcol import UnavailableError, build
from tests.e2e.processes import Restartable
from tests.e2e.statsig_client import SECRET
from tests.peers.apache_kafka import ApacheKafka, fetch
from tests.peers.ports import free_port

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "kafka"
_BUILDER: Final = EXAMPLE / "collector-builder.yaml"
SCALING: Final = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
"""The page that says what the chain guarantees."""
TOPIC: Final = "otlp_logs"
GROUP: Final = "statsig-changes"
"""The consumer group of the Collectors."""


class Chain:
    """The whole chain. A context manager: all of it ends with the block.

    Args:
        folder: A folder for its files.
        backend: The URL of the backend, OTLP over HTTP.
        replicas: How many replicas of the service.
        secret: The signing secret.

    Raises:
        UnavailableError: This machine lacks a program of the chain, or can't get it.

    Attributes:
        kafka: The brokers.
        replicas: The replicas of the service.
        consumers: The Collectors.
        balancer: nginx.
        url: The webhook's URL, at nginx.
        access_log: What nginx has passed on, and to whom.
    """

    def __init__(self, folder: Path, backend: str, *, replicas: int = 3, secret: str = SECRET) -> None:
        _nginx()  # what is quickly found to be missing first
        self.kafka = ApacheKafka(fetch(), folder / "kafka", size=3)
        build(_BUILDER)
        self._environment = {
            "STATSIG_SIGNING_SECRET": secret,
            "BACKEND": backend,
            **{f"KAFKA_{number}": address for number, address in enumerate(self.kafka.addresses(), 1)},
        }
        self.replicas = [self.replica(str(number)) for number in range(1, replicas + 1)]
        self.consumers = [self.consumer(str(number)) for number in (1, 2)]
        self.access_log = folder / "nginx" / "access.log"
        self.balancer = balancer(folder / "nginx", [replica.port for replica in self.replicas])
        self.url = url(self.balancer)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.kafka)
            for part in (*self.replicas, *self.consumers, self.balancer):
                stack.callback(part.stop)
                part.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def replica(self, name: str, **environment: str) -> Restartable:
        """A replica that is not started.

        Args:
            name: Its number, or what it is for.
            environment: The variables of statsig-otel.yaml that are not those of the chain.
        """
        port = free_port()
        run = [sys.executable, "-m", "statsig_otel", "run", "--config", str(EXAMPLE / "statsig-otel.yaml")]
        others = {"HEALTH_ENDPOINT": "127.0.0.1:0", "METRICS_PORT": "0"}
        own = {**self._environment, **others, "WEBHOOK_ENDPOINT": f"127.0.0.1:{port}", **environment}
        return Restartable(f"replica {name}", run, own, "^Webhook URL: ", port)

    def consumer(self, name: str, **environment: str) -> Restartable:
        """A Collector that is not started.

        Args:
            name: Its number, or what it is for.
            environment: The variables of collector.yaml that are not those of the chain.
        """
        return collector(f"Collector {name}", {**self._environment, "METRICS_PORT": "0", **environment})

    @property
    def parts(self) -> list[Restartable]:
        """All processes but nginx."""
        return [*self.replicas, *self.kafka.brokers, *self.consumers]


def collector(name: str, environment: Mapping[str, str], config: Path = EXAMPLE / "collector.yaml") -> Restartable:
    """A Collector that reads Kafka. It is not started.

    Args:
        name: Its name.
        environment: The variables of its file.
        config: Its file.

    Raises:
        UnavailableError: It can't be built.
    """
    return Restartable(name, [str(build(_BUILDER)), "--config", str(config)], environment, "Everything is ready")


def url(part: Restartable) -> str:
    """The webhook's URL at nginx or a replica."""
    return f"http://127.0.0.1:{part.port}/api/v1/data/events/receiver/statsig"


def _nginx() -> str:
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        raise UnavailableError("nginx is not on the PATH (Debian: nginx)")
    return found


def balancer(folder: Path, ports: Sequence[int]) -> Restartable:
    """nginx with the example's file, before replicas on these ports. It is not started.

    Raises:
        UnavailableError: There is no nginx.
    """
    port = free_port()
    lines = (EXAMPLE / "nginx.conf").read_text().replace("127.0.0.1:8080", f"127.0.0.1:{port}").splitlines()
    first, *others = [line for line in lines if line.lstrip().startswith("server 127.0.0.1")]
    servers = "\n".join(first.replace("127.0.0.1:8081", f"127.0.0.1:{one}") for one in ports)
    text = "\n".join(servers if line == first else line for line in lines if line not in others)
    folder.mkdir(parents=True)
    (folder / "nginx.conf").write_text(text)
    own = "daemon off; user root;" if os.geteuid() == 0 else "daemon off;"
    command = [_nginx(), "-p", f"{folder}/", "-c", str(folder / "nginx.conf"), "-e", "stderr", "-g", own]
    return Restartable("nginx", command, {}, port=port)


def tries(access_log: Path) -> dict[str, int]:
    """To how many replicas nginx has passed the requests of each User-Agent."""
    found: dict[str, int] = {}
    for line in access_log.read_text().splitlines():
        _, agent, rest = line.split('"', 2)
        passed = rest.partition("[")[2].partition("]")[0].split(", ")
        found[agent] = found.get(agent, 0) + len(passed)
    return found
