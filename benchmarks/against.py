"""Compares the service with a peer that makes the same records: what the scripts `against_...` share."""

import argparse
import contextlib
import http.client
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Final, Protocol

from benchmarks import measure, webhooks
from benchmarks.bare_server import BARE, bare_server
from benchmarks.load import Posted, post
from benchmarks.peers.least import Least
from benchmarks.service import Running, service
from benchmarks.sink import Record, Sink, sink
from benchmarks.webhooks import BATCH, CHANGE, EXPOSURES, Shape, Wire
from statsig_otel.plugin import DEFAULT_PATH

ROW: Final = [*measure.COMPARISON, "p99 of an answer, ms, A / B"]
"""The head of the table of `Compared.rows`."""

BATCH_CLIENTS: Final = 8
_SCALE_CLIENTS: Final = 64
"""Single changes from so many clients are compared with the bare server too."""

_OURS, _THEIRS, _LEAST = "statsig-otel", "peer", "least"

_SCALE: Final = {_LEAST: "the least program", BARE: "the bare server"}

_SAMPLE = 5
"""Requests of each kind. The service and a peer must make the same records from them."""

_MOMENT = 0.5
"""Seconds to wait for records that must not arrive."""

_DIFFERING = ("observedTimeUnixNano",)
"""The fields that differ between two deliveries of the same change."""


class Peer(Protocol):
    """Something else that receives webhooks and delivers records."""

    @property
    def wire(self) -> Wire:
        """How a webhook's body is sent to it."""

    def running(self, directory: Path, backend: str) -> AbstractContextManager[Running]:
        """Run it during the block, which begins once it listens.

        Args:
            directory: Where it may write; not created yet.
            backend: Where it exports to, as host:port.
        """


class Compared:
    """The running service, a peer, the least program and the bare server, with one sink.

    Attributes:
        busiest: The largest share of a CPU that the load generator used.
    """

    def __init__(self, directory: Path, backend: Sink, peer: Peer, stack: contextlib.ExitStack) -> None:
        self._backend = backend
        self._wires: dict[str, Wire] = {_THEIRS: peer.wire}
        self._running: dict[str, Running] = {
            _OURS: stack.enter_context(service(directory / "ours", backend.address)),
            _THEIRS: stack.enter_context(peer.running(directory / "theirs", backend.address)),
            _LEAST: stack.enter_context(Least().running(directory / "least", backend.address)),
            BARE: stack.enter_context(bare_server(BARE)),
        }
        self.busiest = 0.0

    def measure(self, name: str, shape: Shape, clients: int, seconds: float) -> Posted:
        """Post for some seconds, and wait until the sink has received everything."""
        wire = self._wires.get(name, "webhook")
        posted = post(self._running[name].port, shape, clients=clients, seconds=seconds, wire=wire)
        self.busiest = max(self.busiest, posted.busy)
        if name != BARE:
            self._backend.settle(posted.good * shape.changes)
        return posted

    def rows(self, given: argparse.Namespace) -> Iterator[list[str]]:
        """Events per second and the latency of answers, for single changes and for a batch."""
        for clients in given.clients:
            label = f"one change, 1 KB; clients: {clients}"
            scale = (_LEAST, BARE) if clients == _SCALE_CLIENTS else (_LEAST,)
            yield from self._rows(label, CHANGE, clients, given, scale)
        label = f"{BATCH.exposures} exposures and 1 change; clients: {BATCH_CLIENTS}"
        yield from self._rows(label, BATCH, BATCH_CLIENTS, given, (_LEAST, BARE))

    def _rows(
        self, label: str, shape: Shape, clients: int, given: argparse.Namespace, scale: Sequence[str]
    ) -> Iterator[list[str]]:
        """The rows of the service, and of the servers that are there for scale."""
        names = (_OURS, _THEIRS, *scale)
        events = shape.exposures + shape.changes
        rates: dict[str, list[float]] = defaultdict(list)
        slowest: dict[str, list[float]] = defaultdict(list)
        for name in measure.alternating(names, given.rounds):
            posted = self.measure(name, shape, clients, given.seconds)
            rates[name].append(posted.rate * events)
            slowest[name].append(posted.p99 * 1000)
        for name in names:
            if name != _THEIRS:
                p99 = " / ".join(measure.spread(slowest[which], ".1f")[1] for which in (name, _THEIRS))
                marked = label if name == _OURS else f"{label}; A: {_SCALE[name]}"
                yield [*measure.comparison(marked, rates[name], rates[_THEIRS]), p99]


# The records.


def check_records(peer: Peer, parent: Path) -> None:
    """Make the service and a peer deliver the same requests, and compare their records field by field.

    Raises:
        RuntimeError: The records differ.
    """
    with measure.working_directory(parent) as directory, sink() as backend:
        for shape in (CHANGE, Shape(exposures=20), EXPOSURES):
            bodies = list(islice(webhooks.bodies(shape), _SAMPLE))
            expected = _SAMPLE * shape.changes
            with service(directory / f"service-{shape}", backend.address) as running:
                ours = _delivered(running, bodies, "webhook", backend, expected)
            with peer.running(directory / f"peer-{shape}", backend.address) as running:
                theirs = _delivered(running, bodies, peer.wire, backend, expected)
            for mine, other in zip(ours, theirs, strict=True):
                if different := _differences(mine, other):
                    raise RuntimeError(f"the peer's records differ (ours, its): {different}")


def _delivered(running: Running, bodies: list[bytes], wire: Wire, backend: Sink, expected: int) -> list[Record]:
    for body in bodies:
        connection = http.client.HTTPConnection(measure.HOST, running.port, timeout=measure.START_TIMEOUT)
        with contextlib.closing(connection):
            headers, sent = webhooks.headers_and_body(body, wire)
            connection.request("POST", DEFAULT_PATH, sent, headers)
            if (status := connection.getresponse().status) != http.client.OK:
                raise RuntimeError(f"a body of {len(body)} bytes was answered with {status}")
    records: list[Record] = []
    latest = time.monotonic() + measure.START_TIMEOUT
    while len(records) < expected and time.monotonic() < latest:
        time.sleep(0.05)
        records += backend.records()
    if not expected:
        time.sleep(_MOMENT)  # no record may arrive
        records += backend.records()
    if len(records) != expected:
        raise RuntimeError(f"{len(records)} records were delivered instead of {expected}")
    return sorted(records, key=lambda record: str(record["attributes"]["change_event.label.description"]))


def _differences(one: Record, other: Record) -> dict[str, tuple[object, object]]:
    """The fields and attributes in which two records differ."""
    flat = [
        {name: value for name, value in record.items() if name not in (*_DIFFERING, "attributes")}
        | record["attributes"]
        for record in (one, other)
    ]
    pairs = {name: (flat[0].get(name), flat[1].get(name)) for name in flat[0].keys() | flat[1].keys()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
