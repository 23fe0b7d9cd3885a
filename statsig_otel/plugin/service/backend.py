"""What stands behind the receivers: the durable queue, a sender for each exporter, and the synchronous exporters."""

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from statsig_otel.config.grammar import Configuration
from statsig_otel.exporters.consumer import Consumer
from statsig_otel.exporters.delivery.pipeline import Pipeline
from statsig_otel.exporters.delivery.sender import QueueSender
from statsig_otel.exporters.delivery.synchronous import SynchronousConsumer, SynchronousExporter
from statsig_otel.exporters.exporter import Exporter
from statsig_otel.exporters.queue.directory import CONTROL
from statsig_otel.exporters.queue.queue import DEFAULT_MIN_FREE, DurableQueue
from statsig_otel.exporters.queue.routing import QueuedExporter
from statsig_otel.plugin.control.handlers import handlers
from statsig_otel.plugin.control.socket import Handler
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.server.tls import digests
from statsig_otel.plugin.service.lifecycle import in_thread
from statsig_otel.plugin.settings.catalog import EXPORTERS, create_exporter
from statsig_otel.plugin.settings.delivery import ExporterObject
from statsig_otel.plugin.settings.reading import (
    configured_exporters,
    exporter_settings,
    queued_exporters,
    queued_receivers,
    receiver_settings,
    synchronous_exporters,
)
from statsig_otel.plugin.settings.storage import file_storage

_logger: Final = logging.getLogger(__name__)

_COMMIT: Final = 10.0
"""Seconds for a commit: a refusal may be the loss of a change, since Statsig documents no retry."""

_FINISH: Final = 30.0
"""Seconds for the batch of an exporter that a reload replaces; its backend may be what hangs."""

_GRACE: Final = 3.0
"""Seconds for the send of a synchronous exporter that is under way at the end."""


class RestartNeededError(Exception):
    """A change of the configuration that a running service can't take over; the message is its place and why.

    Example:
        >>> from statsig_otel.exporters import DebugSettings
        >>> from statsig_otel.plugin import RestartNeededError, Service, StatsigReceiverSettings
        >>> service = Service(
        ...     receivers={"statsig": StatsigReceiverSettings(signing_secrets=["webhook-..."])},
        ...     exporters={"debug": DebugSettings()},
        ...     directory="statsig-queue",
        ... )
        >>> try:
        ...     service.reconfigure(service.configuration)
        ... except RestartNeededError as error:
        ...     print(error)
        the service has not started
    """


class Backend:
    """Exporters, queue and senders of one configuration. The constructor opens nothing.

    Args:
        configuration: A checked configuration.
        directory: The queue's directory. A relative one is that of now, wherever the program may go later.
    """

    def __init__(self, configuration: Configuration, directory: Path) -> None:
        self._configuration = configuration
        self._directory = directory.absolute()
        self._queue = _queue(configuration, self._directory) if queued_exporters(configuration) else None
        exporters = _created(configuration, configuration.exporters)
        self._routes = {
            name: _route(configuration, name, exporters[name]) for name in _unqueued_exporters(configuration)
        }
        delivered = synchronous_exporters(configuration)
        self._synchronous = SynchronousConsumer(self._routes, delivered, private=_private(configuration))
        self._senders = (
            {
                name: _sender(self._queue, configuration, name, exporters[name])
                for name in queued_exporters(configuration)
            }
            if self._queue
            else {}
        )
        self._pipeline = Pipeline(self._synchronous, self._queue, delivered=delivered)
        self._pem: dict[str, bytes] = {}  # what the exporters' certificates and keys were
        self._failed: frozenset[str] = frozenset()  # what could not be started at the last reload
        self._leaving: tuple[QueueSender, ...] = ()  # of a reload that is under way

    @property
    def configuration(self) -> Configuration:
        """What it works by now."""
        return self._configuration

    @property
    def consumer(self) -> Consumer:
        """Where the receivers' batches go."""
        return self._pipeline

    @property
    def socket(self) -> Path | None:
        """Where the commands about the queue are answered; None where there is no queue."""
        return None if self._queue is None else self._directory / CONTROL

    def patience(self, receiver: str) -> float:
        """Seconds within which each batch of a receiver should be taken over or refused."""
        return self._synchronous.longest_answer(receiver) + _COMMIT

    def handlers(self, intakes: Mapping[str, Intake]) -> dict[str, Handler]:
        """What answers the commands about the queue, as configured now; nothing where there is no queue."""
        if self._queue is None:
            return {}
        return handlers(
            self._queue,
            senders=self._senders,
            intakes=intakes,
            receivers=queued_receivers(self._configuration),
            synchronous=self._synchronous,
            delivered=synchronous_exporters(self._configuration),
        )

    def start(self) -> None:
        """Open the queue and start the exporters. Where something fails, all is closed again.

        Raises:
            QueueError: The queue's directory belongs to another process, or its file can't be used.
            OSError: A file can't be opened.
            ValueError: A file holds something else than it should.
        """
        # First: what changes from here on is seen by a reload.
        self._pem = digests(exporter_settings(self._configuration))
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

    def reconfigure(self, configuration: Configuration, *, taken: Callable[[], None] = lambda: None) -> list[str]:
        """Take over other exporters and pipelines while it runs; what the changes are, for people.

        An exporter that changed, or whose certificates did, finishes its batch, and another one starts at its place.
        All others try at once what they could not deliver.

        Args:
            configuration: A checked configuration.
            taken: Called once nothing can go back any more, before exporters that may hang are waited for.

        Raises:
            RestartNeededError: It needs a restart. Nothing has changed.
            QueueError: The queue can't be written. Nothing has changed.
            OSError: An exporter can't open a file. All else has been taken over; what is for it waits or is refused.
            ValueError: A file of an exporter's holds something else than it should. As above.
        """
        queued = queued_exporters(configuration)
        if queued and self._queue is None:
            raise RestartNeededError(f"exporters::{queued[0]}::sending_queue: there has been no queue so far")
        before = self._configuration
        same = {name for name, keys in configuration.exporters.items() if before.exporters.get(name) == keys}
        pem = digests(exporter_settings(configuration))
        renewed = {name for name in same if pem.get(name) != self._pem.get(name)}
        same -= self._failed | renewed
        exporters = _created(configuration, [name for name in configuration.exporters if name not in same])
        if self._queue is not None:
            # First of all: it alone can fail, and a new sender needs its place.
            self._queue.reconfigure(receivers=queued_receivers(configuration), exporters=_queued(configuration))
        leaving, coming = self._exchange_senders(configuration, exporters)
        self._pem = pem
        taken()
        failures = self._exchange_routes(configuration, exporters, leaving)
        _stop(leaving.values(), finish=_FINISH)
        self._leaving = ()
        for sender in coming:
            try:
                sender.start()
            except (OSError, ValueError) as error:
                failures.append(error)
        for name in same & set(self._senders):
            self._senders[name].resume()
        if self._queue is not None:
            self._tell_of_forgotten(self._queue)
        self._failed = frozenset(exporters if failures else ())
        if failures:
            raise failures[0]
        return list(_changes(before, configuration, renewed))

    def close(self, grace: float = _GRACE) -> None:
        """Refuse what waits for a synchronous exporter; sends under way get `grace` seconds more. Returns at once.

        What a reload is waiting for ends, too.
        """
        self._synchronous.close(grace)
        for sender in self._leaving:
            in_thread(sender.shutdown, "stop sender")

    def _exchange_senders(
        self, configuration: Configuration, exporters: Mapping[str, Exporter]
    ) -> tuple[dict[str, QueueSender], list[QueueSender]]:
        """Take the configuration over, with senders that are not yet started; those that leave, and those that come."""
        before = self._senders
        senders: dict[str, QueueSender] = {}
        if self._queue is not None:
            for name in queued_exporters(configuration):
                came = exporters.get(name)
                senders[name] = _sender(self._queue, configuration, name, came) if came else before[name]
        self._configuration, self._senders = configuration, senders
        leaving = {name: sender for name, sender in before.items() if senders.get(name) is not sender}
        self._leaving = tuple(leaving.values())
        return leaving, [sender for name, sender in senders.items() if before.get(name) is not sender]

    def _exchange_routes(
        self, configuration: Configuration, exporters: Mapping[str, Exporter], leaving: Mapping[str, QueueSender]
    ) -> list[Exception]:
        """Take over other synchronous exporters; why some could not be started."""
        self._routes = {
            name: _route(configuration, name, exporters[name]) if name in exporters else self._routes[name]
            for name in _unqueued_exporters(configuration)
        }
        delivered = synchronous_exporters(configuration)
        # A file that was behind the queue is let go before somebody else opens it.
        files = [leaving[name] for name, route in self._routes.items() if route.exclusive and name in leaving]
        try:
            self._synchronous.reconfigure(
                self._routes,
                delivered,
                private=_private(configuration),
                switch=lambda: self._pipeline.reconfigure(delivered=delivered),
                release=lambda: _stop(files, finish=_FINISH),
            )
        except (OSError, ValueError) as error:
            return [error]
        return []

    def shutdown(self, drain: float = 0.0, *, grace: float = _GRACE) -> bool:
        """Send what waits for a while, stop the exporters, close the queue. Safe to call twice.

        Args:
            drain: Seconds in which what waits is still sent; the rest is sent after the next start.
            grace: Seconds for what synchronous exporters are sending.

        Returns:
            Whether nothing waits any more.
        """
        _stop(self._senders.values(), drain=drain)
        self._synchronous.shutdown(grace)
        if self._queue is None:
            return True
        self._queue.shutdown()  # first: it finishes what was handed to it
        sizes = self._queue.sizes()
        waiting = {name: sizes[name] for name in self._senders if sizes[name]}
        for name, records in waiting.items():
            _logger.info("%s: %d records stay in the queue, and are sent after the next start", name, records)
        return not waiting

    def _tell_of(self, queue: DurableQueue) -> None:
        waiting = sum(queue.cursor(name).waiting for name in self._senders)
        _logger.info("The queue is in %s; %d records wait", self._directory, waiting)
        self._tell_of_forgotten(queue)

    def _tell_of_forgotten(self, queue: DurableQueue) -> None:
        for state in queue.forgotten_exporters():
            _logger.warning(
                "%s %s; the queue keeps its place, with %d records of %d bytes, until `statsig-otel queue remove %s`",
                state.name,
                "has no sending queue any more" if state.name in self._routes else "is in no pipeline any more",
                state.waiting,
                state.bytes,
                state.name,
            )


def _changes(before: Configuration, after: Configuration, renewed: Collection[str]) -> Iterator[str]:
    """What differs, for people; `renewed` are the exporters of which only the certificates do."""
    for name, keys in after.exporters.items():
        if name not in before.exporters:
            yield f"exporters::{name}: is new"
        elif keys != before.exporters[name]:
            yield f"exporters::{name}: has changed"
        elif name in renewed:
            yield f"exporters::{name}::tls: its files have changed"
    for name in before.exporters:
        if name not in after.exporters:
            yield f"exporters::{name}: is gone"
    if before.pipelines != after.pipelines:
        yield "service::pipelines: have changed"


def _unqueued_exporters(configuration: Configuration) -> tuple[str, ...]:
    return tuple(name for name in configuration.exporters if name not in queued_exporters(configuration))


def _private(configuration: Configuration) -> list[str]:
    """The receivers that hide something in their records: it must not be in the log instead."""
    return [name for name, receiver in receiver_settings(configuration).items() if receiver.user != "full"]


def _queued(configuration: Configuration) -> dict[str, QueuedExporter]:
    return {
        name: QueuedExporter(one.sending_queue.queue_size, one.sending_queue.start_at == "oldest")
        for name, one in configured_exporters(configuration).items()
        if one.is_queued
    }


def _queue(configuration: Configuration, directory: Path) -> DurableQueue:
    storage = file_storage(configuration)
    return DurableQueue(
        directory,
        receivers=queued_receivers(configuration),
        exporters=_queued(configuration),
        min_free_bytes=storage.min_free_bytes if storage else DEFAULT_MIN_FREE,
    )


def _created(configuration: Configuration, names: Iterable[str]) -> dict[str, Exporter]:
    settings = exporter_settings(configuration)
    return {name: create_exporter(name, settings[name]) for name in names}


def _route(configuration: Configuration, name: str, exporter: Exporter) -> SynchronousExporter:
    one = configured_exporters(configuration)[name]
    exclusive = not isinstance(one.settings, ExporterObject) and EXPORTERS.is_exclusive(name)
    return SynchronousExporter(exporter, one.timeout, exclusive=exclusive)


def _sender(queue: DurableQueue, configuration: Configuration, name: str, exporter: Exporter) -> QueueSender:
    return QueueSender(queue.cursor(name), exporter, configured_exporters(configuration)[name].delivery())


def _stop(senders: Iterable[QueueSender], *, drain: float = 0.0, finish: float = 0.0) -> None:
    """Stop senders, all at the same time."""
    stopped = []
    for sender in senders:
        stopped.append(done := threading.Event())
        in_thread(partial(_stop_one, sender, done, drain, finish), "stop sender")
    for one in stopped:
        one.wait()


def _stop_one(sender: QueueSender, done: threading.Event, drain: float, finish: float) -> None:
    try:
        sender.shutdown(drain, finish=finish)
    finally:
        done.set()
