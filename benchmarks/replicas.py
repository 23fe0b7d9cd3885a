"""What do replicas on Kafka cost, compared with one process and its queue on disk?

A is a number of replicas without a disk, which answer once three Apache Kafka brokers have the change, all with the
files of examples/kafka. B is `statsig-otel run` with its queue on disk and an OTLP/gRPC exporter. nginx stands before
both. Everything runs on this machine, the brokers too, so that the rates say little about several machines: the
processor time per webhook is what counts.

First changes are posted at a steady pace, and the time from the request to the backend is measured: for A it leads
through a topic and a Collector. So is the processor time of the replicas, the brokers and the Collectors. A send has
one webhook then, and the brokers need some time even for none, so it is more per webhook than under load.

Then changes are posted as fast as they are answered. For that, the Collectors are stopped; what B's exporter needs is
part of B's processor time. Batches of exposures, which are counted and ignored, never reach the brokers or the queue.

    python benchmarks/replicas.py [--rounds N] [--seconds S] [--replicas N ...] [--directory DIR] [--quick]
"""

import argparse
import contextlib
import os
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import backlog, latency, measure
from benchmarks.load import post, quantile
from benchmarks.service import service
from benchmarks.sink import Sink, sink
from benchmarks.webhooks import CHANGE, EXPOSURES, Shape
from tests.e2e.kafka_chain import Chain, balancer
from tests.e2e.otelcol import UnavailableError
from tests.peers.otlp_servers import HttpAnswer, HttpSink, Received

DISK = "disk"
_FEW = Shape(exposures=10, changes=0)
_PATIENCE = 120.0


@dataclass(frozen=True)
class Kind:
    """One kind of webhook.

    Attributes:
        label: What it is.
        shape: The shape of its body.
        clients: How many clients post it.
    """

    label: str
    shape: Shape
    clients: int


KINDS = (
    Kind("one change; 64 clients", CHANGE, 64),
    Kind("10 exposures; 8 clients", _FEW, 8),
    Kind("500 exposures; 8 clients", EXPOSURES, 8),
)


class Arrivals:
    """A backend of the Collectors, which remembers when each change came first."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._lock = threading.Lock()
        self.sink = HttpSink()
        self.sink.answer = self._take

    def _take(self, received: Received) -> HttpAnswer:
        now = time.monotonic()
        uids = [
            one.value.string_value
            for record in received.records
            for one in record.attributes
            if one.key == "log.record.uid"
        ]
        with self._lock:
            for uid in uids:
                self._times.setdefault(uid, now)
        self.sink.requests.clear()
        return HttpAnswer()

    def arrivals(self) -> dict[str, float]:
        """When each change came, in seconds of time.monotonic()."""
        with self._lock:
            return dict(self._times)


class Peers:
    """The measured services, each behind an nginx of its own."""

    def __init__(self, folder: Path, counts: Sequence[int], stack: contextlib.ExitStack) -> None:
        self.kafka_backend = Arrivals()
        stack.enter_context(self.kafka_backend.sink)
        self.chain = Chain(folder / "chain", self.kafka_backend.sink.url, replicas=max(counts), secret=backlog.SECRET)
        stack.enter_context(self.chain)
        self.disk_backend: Sink = stack.enter_context(sink())
        disk = stack.enter_context(service(folder / "queue", self.disk_backend.address))
        replicas = self.chain.replicas
        self.pids = {DISK: [disk.pid], **{str(count): [one.pid for one in replicas[:count]] for count in counts}}
        self.ports: dict[str, int] = {}
        ports = {DISK: [disk.port], **{str(count): [one.port for one in replicas[:count]] for count in counts}}
        for name, those in ports.items():
            before = balancer(folder / f"nginx-{name}", those)
            stack.callback(before.stop)
            before.start()
            self.ports[name] = before.port
        self.broker_pids = [broker.pid for broker in self.chain.kafka.brokers]
        self.collector_pids = [collector.pid for collector in self.chain.consumers]


def used(pids: Sequence[int]) -> float:
    """The processor time of some processes in seconds."""
    return sum(map(measure.processor_time, pids))


def delays(peers: Peers, name: str, rate: float, number: int) -> list[float]:
    """The milliseconds from each request to the backend, at a steady pace."""
    backend = peers.disk_backend if name == DISK else peers.kafka_backend
    times = latency.post(peers.ports[name], rate, number)
    arrived: dict[str, float] = {}
    latest = time.monotonic() + _PATIENCE
    while not times.keys() <= arrived.keys():
        if time.monotonic() > latest:
            raise RuntimeError("acknowledged changes did not reach the backend")
        time.sleep(0.05)
        arrived |= backend.arrivals()
    return [(arrived[change] - sent) * 1000 for change, (sent, _) in times.items()]


def compare_delays(peers: Peers, name: str, given: argparse.Namespace) -> tuple[list[list[str]], list[list[str]]]:
    """The rows of the time from a request to the backend, and of the processors that A needs at that pace."""
    rows, loads = [], []
    groups = {"replicas": peers.pids[name], "brokers": peers.broker_pids, "Collectors": peers.collector_pids}
    for rate in given.rates:
        found: dict[tuple[str, int], list[float]] = defaultdict(list)
        shares: dict[str, list[float]] = defaultdict(list)
        for each in measure.alternating((name, DISK), given.rounds):
            began, before = time.monotonic(), {group: used(pids) for group, pids in groups.items()}
            took = delays(peers, each, rate, max(8, round(rate * given.seconds)))
            if each == name:
                for group, pids in groups.items():
                    shares[group].append((used(pids) - before[group]) / (time.monotonic() - began) * 100)
            for hundredths in (50, 99):
                found[each, hundredths].append(quantile(took, hundredths))
        rows += [
            measure.comparison(f"{rate} changes a second, p{part}", found[name, part], found[DISK, part], ".1f")
            for part in (50, 99)
        ]
        loads += [
            [f"{rate} changes a second, {group}", " / ".join(measure.spread(of_all, ".1f"))]
            for group, of_all in shares.items()
        ]
    return rows, loads


@dataclass(frozen=True)
class Cost:
    """What one measurement has found.

    Attributes:
        rate: Webhooks answered with 200 per second.
        service: The processor time of the service, in microseconds per webhook, of all replicas together.
        brokers: The same of all brokers.
    """

    rate: float
    service: float
    brokers: float


def cost(peers: Peers, name: str, kind: Kind, seconds: float) -> Cost:
    """Post for some seconds, and read the processor times before and after."""
    before, brokers_before = used(peers.pids[name]), used(peers.broker_pids)
    posted = post(peers.ports[name], kind.shape, clients=kind.clients, seconds=seconds)
    if name == DISK:
        peers.disk_backend.settle(posted.good * kind.shape.changes)
    service_time, brokers = used(peers.pids[name]) - before, used(peers.broker_pids) - brokers_before
    return Cost(posted.rate, service_time / posted.good * 1e6, brokers / posted.good * 1e6)


def compare_costs(peers: Peers, given: argparse.Namespace) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """The rows of the rates, of the services' processor time, and of the brokers' processor time."""
    rates, times, brokers = [], [], []
    counts = [str(count) for count in given.replicas]
    for kind in KINDS:
        names = counts if kind.shape.changes else counts[:1]
        found: dict[str, list[Cost]] = defaultdict(list)
        for name in measure.alternating((DISK, *names), given.rounds):
            found[name].append(cost(peers, name, kind, given.seconds))
        for name in names:
            label = f"{kind.label}; replicas: {name}"
            a, b = found[name], found[DISK]
            rates.append(measure.comparison(label, [one.rate for one in a], [one.rate for one in b]))
            times.append(measure.comparison(label, [one.service for one in a], [one.service for one in b]))
            if kind.shape.changes:
                brokers.append([label, " / ".join(measure.spread([one.brokers for one in a]))])
    return rates, times, brokers


def compare(given: argparse.Namespace) -> None:
    head = [f"{measure.machine(('confluent-kafka',))}.", measure.arguments(given, ("rounds", "seconds"))]
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(measure.working_directory(given.directory))
        try:
            peers = Peers(directory, given.replicas, stack)
        except UnavailableError as error:
            measure.publish("replicas", f"LEFT OUT: the chain with Kafka can't be run here: {error}.", *head)
            return
        load = os.getloadavg()[0]
        for name in (DISK, str(given.replicas[-1])):
            delays(peers, name, 8, 16)  # opens the connections
        late, loads = compare_delays(peers, str(given.replicas[-1]), given)
        for consumer in peers.chain.consumers:
            consumer.stop()
        rates, times, brokers = compare_costs(peers, given)
        disk = measure.file_system(directory)
    one = "A: replicas on Kafka; B: one process with its queue on disk."
    measure.publish(
        "replicas",
        f"nginx stands before all. {one} All of it, the brokers too, shares the processors of this machine.",
        *head,
        f"On {disk}. Load of the machine before: {load:.1f}.",
        f"Milliseconds from a request to the backend; A: {given.replicas[-1]} replicas, a topic and a Collector.",
        measure.table(measure.COMPARISON, late),
        "Percent of one processor that A needs at that pace, all processes of a kind together.",
        measure.table(("min / median / max", "A"), loads),
        "Webhooks answered with 200 per second.",
        measure.table(measure.COMPARISON, rates),
        "Microseconds of processor time of the service per webhook, of all replicas together.",
        measure.table(measure.COMPARISON, times),
        "Microseconds of processor time of the three brokers per webhook.",
        measure.table(("min / median / max", "A"), brokers),
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=5, quick={"rounds": 1, "seconds": 1.0, "replicas": [1, 2], "rates": [10]})
    parser.add_argument("--seconds", type=float, default=5.0, help="the length of one measurement")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rates", type=int, nargs="+", default=[1, 20], help="changes per second for the delays")
    measure.add_directory(parser)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
