"""What stands behind the receivers: the durable queue, a sender for each exporter, and the synchronous exporters."""

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from statsig_otel.config.configuration import Configuration
from statsig_otel.config.model import without_secrets
from statsig_otel.exporters.consumer import Consumer
from statsig_otel.exporters.delivery.pipeline import Pipeline
from statsig_otel.exporters.delivery.sender import QueueSender
from statsig_otel.exporters.delivery.synchronous import SynchronousConsumer, SynchronousExporter
from statsig_otel.exporters.exporter import Exporter
from statsig_otel.exporters.otlp.exporter import OtlpExporter
from statsig_otel.exporters.queue.directory import CONTROL
from statsig_otel.exporters.queue.queue import DEFAULT_MIN_FREE, DurableQueue
from statsig_otel.exporters.queue.recovery.client import Recovery
from statsig_otel.exporters.routing import CurrentRouting
from statsig_otel.plugin.control.handlers import handlers
from statsig_otel.plugin.control.socket import Handler
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.service.lifecycle import in_thread
from statsig_otel.plugin.settings.catalog import create_exporter
from statsig_otel.plugin.settings.delivery import ConfiguredExporter, ExporterObject
from statsig_otel.plugin.settings.reading import (
    configured_exporters,
    routing,
)
from statsig_otel.plugin.settings.storage import file_storage

_logger: Final = logging.getLogger(__name__)

_COMMIT: Final = 10.0
"""Seconds for a commit: a refusal may be the loss of a change, since Statsig documents no retry."""

_FINISH: Final = 30.0
"""Seconds for the batch of an exporter that a reload replaces; its backend may be what hangs."""

_GRACE: Final = 3.0
"""Seconds for the send of a synchronous exporter that is under way at the end."""


class Backend:
    """Exporters, queue and senders of one configuration. The constructor opens nothing.

    Args:
        configuration: A checked configuration.
        directory: The queue's directory. A relative one is that of now, wherever the program may go later.
    """

    def __init__(self, configuration: Configuration, directory: Path) -> None:
        self._configuration = configuration
        self._directory = directory.absolute()
        configured = configured_exporters(configuration)
        self._routing = CurrentRouting(routing(configuration))
        self._queue = self._create_queue() if self._routing.now.exporters else None
        self._recovery = Recovery(self._queue) if self._queue else None
        self._exporters = {name: create_exporter(name, one.settings) for name, one in configured.items()}
        unqueued = {
            name: SynchronousExporter(self._exporters[name], one.timeout)
            for name, one in configured.items()
            if not one.is_queued
        }
        self._synchronous = SynchronousConsumer(unqueued)
        self._senders = {
            name: QueueSender(self._queue.cursor(name), self._exporters[name], one.delivery())
            for name, one in configured.items()
            if one.is_queued and self._queue
        }
        self._pipeline = Pipeline(self._synchronous, self._queue, self._routing)
        self._failed: frozenset[str] = frozenset()  # what could not be started at the last reload
        self._leaving: tuple[QueueSender, ...] = ()  # of a reload that is under way

    def _create_queue(self) -> DurableQueue:
        storage = file_storage(self._configuration)
        min_free_bytes = storage.min_free_bytes if storage else DEFAULT_MIN_FREE
        return DurableQueue(self._directory, self._routing, min_free_bytes=min_free_bytes)

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
        return self._synchronous.longest_answer(self._routing.now.route(receiver)) + _COMMIT

    def handlers(self, intakes: Mapping[str, Intake]) -> dict[str, Handler]:
        """What answers the commands about the queue, as configured now; nothing where there is no queue."""
        if self._queue is None:
            return {}
        return handlers(
            self._queue,
            senders=self._senders,
            intakes=intakes,
            routing=self._routing.now,
            synchronous=self._synchronous,
        )

    def start(self) -> None:
        """Open the queue and start the exporters. Where something fails, all is closed again.

        Raises:
            QueueError: The queue's directory belongs to another process, or its file can't be used.
            OSError: A file can't be opened.
            ValueError: A file holds something else than it should.
        """
        try:
            self._synchronous.start()
            if self._queue is not None and self._recovery is not None:
                self._queue.start()
                self._recovery.start()
                self._tell_of(self._queue)
            for sender in self._senders.values():
                sender.start()
        except BaseException:
            self.shutdown(drain=0.0)
            raise

    def needing_restart(self, configuration: Configuration) -> Iterator[str]:
        """What differs that only a restart can take over, each with its place and why.

        That is all about synchronous exporters: webhooks wait for them, so they can't be replaced as those behind the
        queue are.
        """
        before, after = configured_exporters(self._configuration), configured_exporters(configuration)
        for name in {**before, **after}:
            old, new = before.get(name), after.get(name)
            if old is not None and new is not None and old.is_queued is not new.is_queued:
                yield f"exporters::{name}::sending_queue::enabled: has changed"
            elif old is not None and new is not None and not new.is_queued:
                for key in self._changed_keys(name, new):
                    yield f"exporters::{name}::{key}: has changed, and the exporter has no sending queue"
            elif old is not None and new is None and not old.is_queued:
                yield f"exporters::{name}: is gone, and had no sending queue"
            elif old is None and new is not None and not new.is_queued:
                yield f"exporters::{name}: is new, and has no sending queue"
            elif old is None and self._queue is None:
                yield f"exporters::{name}::sending_queue: there has been no queue so far"

    def reconfigure(self, configuration: Configuration, *, taken: Callable[[], None] = lambda: None) -> list[str]:
        """Take over other exporters and pipelines while it runs; what the changes are, for people.

        A queued exporter that changed finishes its batch, and another one starts at its place. Certificates and secrets
        that were renewed are taken over by the exporters themselves, if they can do that. All try at once what they
        could not deliver.

        Args:
            configuration: A checked configuration, of which nothing is `needing_restart`.
            taken: Called once nothing can go back any more, before exporters that may hang are waited for.

        Raises:
            QueueError: The queue can't be written. Nothing has changed.
            OSError: An exporter can't open a file. All else has been taken over; what is for it waits, or goes on with
                the certificate of before.
            ValueError: A file of an exporter's holds something else than it should. As above.
        """
        before, after = self._configuration, configured_exporters(configuration)
        same = {name for name in after if name in self._exporters and not self._changed_keys(name, after[name])}
        same -= self._failed
        created = {name: create_exporter(name, one.settings) for name, one in after.items() if name not in same}
        if self._queue is not None:
            # First of all: it alone can fail, and a new sender needs its place.
            self._queue.reconfigure(routing(configuration))
        else:
            self._routing.now = routing(configuration)
        coming = self._exchange(configuration, created)
        taken()
        _stop(self._leaving, finish=_FINISH)
        self._leaving = ()
        failures: dict[str, Exception] = {}
        for name, sender in coming.items():
            try:
                sender.start()
            except (OSError, ValueError) as error:
                failures[name] = error
        self._failed = frozenset(failures)
        renewed: set[str] = set()
        for name in same:
            try:
                exporter = _renewable(self._exporters[name], after[name])
                if exporter is not None and exporter.renew(after[name].settings):
                    renewed.add(name)
            except (OSError, ValueError) as error:
                failures[name] = error
            if name in self._senders:
                self._senders[name].resume()
        if self._queue is not None:
            self._tell_of_forgotten(self._queue)
        if failures:
            raise next(iter(failures.values()))
        return list(_changes(before, configuration, renewed))

    def _changed_keys(self, name: str, after: ConfiguredExporter) -> list[str]:
        """The keys that differ from those of now, but for secrets that the exporter renews by itself."""
        before = configured_exporters(self._configuration)[name]
        if before == after:
            return []
        one, other = _values(before), _values(after)
        renews = _renewable(self._exporters[name], after) is not None
        if renews:
            one, other = without_secrets(one), without_secrets(other)
        changed = [key for key in other if key not in one or one[key] != other[key]]
        return changed if changed or renews else list(other)

    def _exchange(self, configuration: Configuration, created: Mapping[str, Exporter]) -> dict[str, QueueSender]:
        """Take the configuration over; the senders that come, which are not yet started."""
        configured, before = configured_exporters(configuration), self._senders
        coming = {
            name: QueueSender(self._queue.cursor(name), exporter, configured[name].delivery())
            for name, exporter in created.items()
            if self._queue
        }
        every = {**before, **coming}
        self._senders = {name: every[name] for name, one in configured.items() if one.is_queued}
        self._leaving = tuple(sender for name, sender in before.items() if self._senders.get(name) is not sender)
        exporters = {**self._exporters, **created}
        self._exporters = {name: exporters[name] for name in configured}
        self._configuration = configuration
        return coming

    def close(self, grace: float = _GRACE) -> None:
        """Refuse what waits for a synchronous exporter; sends under way get `grace` seconds more. Returns at once.

        What a reload is waiting for ends, too.
        """
        self._synchronous.close(grace)
        for sender in self._leaving:
            in_thread(sender.shutdown, "stop sender")

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
        if self._queue is None or self._recovery is None:
            return True
        self._recovery.stop()
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
                "has no sending queue any more" if state.name in self._exporters else "is in no pipeline any more",
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


def _values(one: ConfiguredExporter) -> dict[str, Any]:
    """What is written of an exporter, key by key."""
    return {**dict(one.settings), **{key: getattr(one, key) for key in one.shared_keys()}}


def _renewable(exporter: Exporter, one: ConfiguredExporter) -> OtlpExporter[Any] | None:
    """The exporter where it takes over by itself what was renewed; one that was made in code is somebody else's."""
    return exporter if isinstance(exporter, OtlpExporter) and not isinstance(one.settings, ExporterObject) else None


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
