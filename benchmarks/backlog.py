"""Fills a queue with waiting records, and writes the configuration of its service."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from benchmarks.measure import HOST
from statsig_otel.exporters.consumer import Batch, Change
from statsig_otel.exporters.delivery.sender import QueueSender
from statsig_otel.exporters.delivery.settings import DeliverySettings
from statsig_otel.exporters.exporter import Delivered, Outcome
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.routing import CurrentRouting, QueuedExporter, Route, Routing
from statsig_otel.plugin.demo.samples import RELEASE_MANAGER, config_change
from statsig_otel.plugin.record.change_event import ChangeEvent
from statsig_otel.plugin.record.record import LogRecordEncoder

RECEIVER, EXPORTER = "statsig", "otlp_grpc"
SECRET = "webhook-benchmark"
OBSERVED_NS = 1_700_000_000_000_000_000

_IN_ONE_COMMIT = 5000
_NO_UID = "0" * 32


def event(description: str) -> dict[str, object]:
    """A config change of about 1 KB as Statsig sends it."""
    return dict(
        config_change(
            OBSERVED_NS // 1_000_000,
            "Dynamic Config",
            "checkout_layout_v2",
            "updated",
            f"{description}\n" + "- Updated the rule for 10% of the users in Europe\n" * 13,
            environments=["production"],
            by=RELEASE_MANAGER,
        )
    )


def configuration(
    *,
    directory: Path,
    backend: str,
    port: int = 0,
    compression: str = "gzip",
    more: Sequence[str] = (),
    receiver: Mapping[str, object] | None = None,
    page: int = 0,
) -> str:
    """The configuration of a service with one receiver, and exporters with defaults. It is JSON, which is valid YAML.

    Args:
        directory: The queue's directory.
        backend: Where the exporter delivers to, as host:port.
        port: The port for webhooks.
        compression: The compression of all exporters.
        more: The backends of further exporters.
        receiver: Further settings of the receiver.
        page: The port of the live page; without it there is none.
    """
    extensions = {
        "file_storage": {"directory": str(directory)},
        **({"zpages": {"endpoint": f"{HOST}:{page}"}} if page else {}),
    }
    exporters = {
        EXPORTER if number == 0 else f"{EXPORTER}/{number}": {
            "endpoint": each,
            "tls": {"insecure": True},
            "compression": compression,
        }
        for number, each in enumerate((backend, *more))
    }
    return json.dumps(
        {
            "receivers": {RECEIVER: {"endpoint": f"{HOST}:{port}", "signing_secrets": [SECRET], **(receiver or {})}},
            "exporters": exporters,
            "extensions": extensions,
            "service": {
                "extensions": list(extensions),
                "pipelines": {"logs": {"receivers": [RECEIVER], "exporters": list(exporters)}},
            },
        }
    )


def open_queue(directory: Path) -> DurableQueue:
    """The queue of that service, not started."""
    routing = Routing({RECEIVER: Route((EXPORTER,))}, {EXPORTER: QueuedExporter()})
    return DurableQueue(directory, CurrentRouting(routing))


def records(count: int) -> Iterator[tuple[str, bytes]]:
    """Uids and encoded records, which differ only in their uid."""
    made = ChangeEvent.from_item(event("A record of a benchmark's backlog"))
    encoder = LogRecordEncoder()
    encoded = encoder.encode(encoder.default(made, uid=_NO_UID, original=""), made, observed_ns=OBSERVED_NS)
    before, found, behind = encoded.partition(_NO_UID.encode())
    assert found
    for number in range(count):
        # The uids are scattered like hashes. Ascending uids would make the index cheaper than in reality.
        uid = f"{(number * 0x9E3779B97F4A7C15F39CC0605CEDC835) % (1 << 128):032x}"
        yield uid, before + uid.encode() + behind


class _AcceptingExporter:
    """An exporter whose backend accepts everything."""

    def start(self) -> None:
        """Nothing to open."""

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:  # noqa: ARG002 - an exporter's signature
        return Delivered()

    def shutdown(self) -> None:
        """Nothing to close."""


def fill(directory: Path, count: int, *, delivered: bool = False) -> None:
    """Fill a queue with waiting records, and close it in order.

    Args:
        directory: The queue's directory.
        count: The number of records.
        delivered: Deliver the records, so that the queue only remembers their uids.
    """
    queue = open_queue(directory)
    queue.start()
    try:
        left = records(count)
        while changes := tuple(Change(uid, (record,)) for uid, record in islice(left, _IN_ONE_COMMIT)):
            assert queue.consume(Batch(RECEIVER, changes), Route((EXPORTER,))).result().accepted == len(changes)
        if delivered:
            settings = DeliverySettings(max_records=_IN_ONE_COMMIT, max_bytes=64 << 20)
            sender = QueueSender(queue.cursor(EXPORTER), _AcceptingExporter(), settings)
            sender.start()
            while queue.cursor(EXPORTER).waiting:
                time.sleep(0.01)
            sender.shutdown()
    finally:
        queue.shutdown()
