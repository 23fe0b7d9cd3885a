"""What stands behind the receivers: the durable queue, a sender for each exporter, and the synchronous exporters."""

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

from statsig_otel.config.grammar import Configuration
from statsig_otel.exporters.consumer import Consumer
from statsig_otel.exporters.delivery import Sender
from statsig_otel.exporters.exporter import Exporter
from statsig_otel.exporters.pipeline import Pipeline
from statsig_otel.exporters.queue.control import ControlServer
from statsig_otel.exporters.queue.directory import CONTROL
from statsig_otel.exporters.queue.queue import DEFAULT_MIN_FREE, DurableQueue, QueuedExporter
from statsig_otel.exporters.synchronous import Route, SynchronousConsumer
from statsig_otel.plugin.components import create_exporter
from statsig_otel.plugin.control import handlers
from statsig_otel.plugin.delivery_settings import DeliveryKeys
from statsig_otel.plugin.intake import Intake
from statsig_otel.plugin.queue_configuration import queued_receivers, synchronous_exporters
from statsig_otel.plugin.settings import StatsigReceiverSettings
from statsig_otel.plugin.storage import file_storage

_logger: Final = logging.getLogger(__name__)

_DEFAULT_TIMEOUT: Final = 30.0
"""Seconds for one `send` of an exporter whose settings have no timeout."""

_COMMIT: Final = 10.0
"""Seconds for a commit: a refusal may be the loss of a change, since Statsig documents no retry."""

_DRAIN: Final = 5.0
"""Seconds after the last request in which what waits is still sent; the rest is sent after the next start."""


class Delivery:
    """Exporters, queue and senders of one configuration. The constructor opens nothing.

    Args:
        configuration: A checked configuration.
        directory: The queue's directory.
    """

    def __init__(self, configuration: Configuration, directory: Path) -> None:
        settings = cast("Mapping[str, DeliveryKeys]", configuration.exporters)
        exporters = {name: create_exporter(name, keys) for name, keys in settings.items()}
        queued = {name: keys for name, keys in settings.items() if keys.sending_queue.enabled}
        self._directory = directory
        self._receivers = queued_receivers(configuration)
        self._delivered = synchronous_exporters(configuration)
        self._queue = _queue(configuration, directory, queued) if queued else None
        self._synchronous = _synchronous(configuration, exporters, self._delivered)
        self._senders = (
            {name: _sender(self._queue, name, keys, exporters[name]) for name, keys in queued.items()}
            if self._queue
            else {}
        )
        self.consumer: Consumer = Pipeline(
            self._synchronous,
            self._queue,
            delivered=self._delivered,
            queued=self._receivers,
        )

    def patience(self, receiver: str) -> float:
        """Seconds within which each batch of a receiver should be taken over or refused."""
        return self._synchronous.longest_answer(receiver) + _COMMIT

    def control(self, intakes: Mapping[str, Intake]) -> ControlServer | None:
        """What answers the commands about the queue; None where there is no queue."""
        if self._queue is None:
            return None
        commands = handlers(
            self._queue,
            senders=self._senders,
            intakes=intakes,
            receivers=self._receivers,
            synchronous=self._synchronous,
            delivered=self._delivered,
        )
        return ControlServer(self._directory / CONTROL, commands)

    def start(self) -> None:
        """Open the queue and start the exporters. Where something fails, all is closed again.

        Raises:
            QueueError: The queue's directory belongs to another process, or its file can't be used.
            OSError: A file can't be opened.
            ValueError: A file holds something else than it should.
        """
        try:
            self._synchronous.start()
            if self._queue is not None:
                self._queue.start()
                self._tell_of(self._queue)
            for sender in self._senders.values():
                sender.start()
        except BaseException:
            self.shutdown(drain=0.0)
            raise

    def close(self) -> None:
        """Refuse what waits for a synchronous exporter; sends under way get a few seconds more. Returns at once."""
        self._synchronous.close()

    def shutdown(self, drain: float = _DRAIN) -> None:
        """Send what waits for a while, stop the exporters, close the queue. Safe to call twice."""
        stopping = [
            threading.Thread(target=sender.shutdown, args=(drain,), name=f"stop {name}")
            for name, sender in self._senders.items()
        ]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()
        self._synchronous.shutdown()
        if self._queue is not None:
            self._queue.shutdown()

    def _tell_of(self, queue: DurableQueue) -> None:
        waiting = sum(queue.lane(name).waiting for name in self._senders)
        at_once = {name for exporters in self._delivered.values() for name in exporters}
        _logger.info("The queue is in %s; %d records wait", self._directory, waiting)
        for state in queue.forgotten_exporters():
            _logger.warning(
                "%s %s; the queue keeps its place, with %d records of %d bytes, until `statsig-otel queue remove %s`",
                state.name,
                "has no sending queue any more" if state.name in at_once else "is in no pipeline any more",
                state.waiting,
                state.bytes,
                state.name,
            )


def _synchronous(
    configuration: Configuration, exporters: Mapping[str, Exporter], receivers: Mapping[str, tuple[str, ...]]
) -> SynchronousConsumer:
    settings = cast("Mapping[str, DeliveryKeys]", configuration.exporters)
    names = {name for wanted in receivers.values() for name in wanted}
    routes = {name: Route(exporters[name], _timeout(settings[name])) for name in names}
    senders = cast("Mapping[str, StatsigReceiverSettings]", configuration.receivers)
    # What a receiver hides in its records must not be in the log instead.
    private = [name for name, receiver in senders.items() if receiver.user != "full"]
    return SynchronousConsumer(routes, receivers, private=private)


def _queue(configuration: Configuration, directory: Path, queued: Mapping[str, DeliveryKeys]) -> DurableQueue:
    storage = file_storage(configuration)
    return DurableQueue(
        directory,
        receivers=queued_receivers(configuration),
        exporters={
            name: QueuedExporter(keys.sending_queue.queue_size, keys.sending_queue.start_at == "oldest")
            for name, keys in queued.items()
        },
        min_free_bytes=storage.min_free_bytes if storage else DEFAULT_MIN_FREE,
    )


def _sender(queue: DurableQueue, name: str, keys: DeliveryKeys, exporter: Exporter) -> Sender:
    return Sender(queue.lane(name), exporter, keys.delivery(_timeout(keys)))


def _timeout(settings: DeliveryKeys) -> float:
    return float(getattr(settings, "timeout", _DEFAULT_TIMEOUT))
