"""A queue that is compared with an audit log, whose time does not go on by itself."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from statsig_otel._telemetry import counts_of
from statsig_otel.exporters.arrival import Arrival
from statsig_otel.exporters.consumer import Batch
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.routing import QueuedExporter, Route
from statsig_otel.plugin.service.audit_log_check import AuditLogCheck
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from tests.exporters.queue.helpers import PATIENCE, consume, reading, running, uid
from tests.peers.audit_log import KEY, AuditLogServer
from tests.plugin.record.record_helpers import plain, record_in

SINCE = 1_790_000_000
GRACE = 900
RECEIVER = "statsig/audited"


class Now:
    """The time of a test."""

    def __init__(self) -> None:
        self.seconds = float(SINCE)

    def __call__(self) -> float:
        return self.seconds


class Watched:
    """A queue, an audit log, and what compares them. The time does not go on by itself."""

    def __init__(self, directory: Path, log: AuditLogServer, now: Now, queue: DurableQueue, **settings: object) -> None:
        self.queue = queue
        self._log = log
        self._now = now
        self.check = AuditLogCheck(
            RECEIVER, queue, self._settings(settings), lambda batch: consume(queue, batch), clock=now
        )

    def _settings(self, given: Mapping[str, object]) -> StatsigReceiverSettings:
        """Settings of a receiver: those in `receiver` are its own, and all others those of `audit_log`."""
        own = given.get("receiver", {})
        log = {"api_key": KEY, "endpoint": self._log.url, **given}
        log.pop("receiver", None)
        assert isinstance(own, dict)
        return StatsigReceiverSettings.model_validate(
            {"signing_secrets": ["webhook-0123456789"], "audit_log": log, **own}
        )

    def use(self, **settings: object) -> None:
        """Use other settings, as a reload does."""
        self.check.use(self._settings(settings))

    def made(self) -> list[LogRecord]:
        """The records in the queue, in order."""
        with reading(self.queue.database) as connection:
            return [record_in(row[0]) for row in connection.execute("SELECT payload FROM records ORDER BY seq")]

    def filled_in(self) -> list[str]:
        """The names of the changes whose records are in the queue, in order."""
        return [told(record)["feature_flag.key"] for record in self.made()]

    def came(self, second: int, number: int, name: str = "gate") -> None:
        one = Arrival(uid(number), second, name, "u1", "Ada", "ada@example.com", "Gate", "updated", "Updated Gate")
        consume(self.queue, Batch(RECEIVER, arrivals=(one,))).result(PATIENCE)

    def compare(self, now: float) -> int | None:
        """The changes that are missed then."""
        self._now.seconds = now
        self.check.compare()
        return counts_of(RECEIVER).missed


@contextmanager
def watched(
    directory: Path,
    log: AuditLogServer,
    now: Now,
    *,
    window: float = 86_400.0,
    size: int | None = None,
    **settings: object,
) -> Iterator[Watched]:
    receivers = {RECEIVER: Route(("otlp",), window=window, remembered=30 * 86_400.0)}
    exporters = {"otlp": QueuedExporter(queue_size=size)}
    with running(directory, receivers=receivers, exporters=exporters, clock=now) as queue:
        one = Watched(directory, log, now, queue, **settings)
        yield one
        one.check.end()
        one.check.join(PATIENCE)


def told(record: LogRecord) -> dict[str, Any]:
    """The attributes of a record."""
    return {one.key: plain(one.value) for one in record.attributes}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
