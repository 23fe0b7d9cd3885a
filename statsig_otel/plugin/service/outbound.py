"""Starts, reloads and stops what is behind the receivers: the queue, its senders, and the synchronous exporters."""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from statsig_otel._telemetry import NOT_CONFIGURED
from statsig_otel._times import AUDIT_LOG_CLOSING, BATCH_FINISH, COMMIT_TIMEOUT, SYNCHRONOUS_GRACE
from statsig_otel.config.configuration import Configuration
from statsig_otel.config.model import without_secrets
from statsig_otel.exporters.consumer import Batch, Receipt
from statsig_otel.exporters.delivery.facts import ExporterFacts, sender_facts, with_history
from statsig_otel.exporters.delivery.guarded import StartError
from statsig_otel.exporters.delivery.sender import QueueSender
from statsig_otel.exporters.delivery.synchronous import SynchronousConsumer, SynchronousExporter
from statsig_otel.exporters.exporter import Exporter
from statsig_otel.exporters.network.renewable import RenewableExporter
from statsig_otel.exporters.paths import directory_option
from statsig_otel.exporters.queue.directory import CONTROL, QueueDirectory
from statsig_otel.exporters.queue.errors import QueueError
from statsig_otel.exporters.queue.queue import DEFAULT_MIN_FREE, DurableQueue
from statsig_otel.exporters.queue.recovery.recovery import Recovery
from statsig_otel.exporters.routing import CurrentRouting
from statsig_otel.exporters.wording import counted
from statsig_otel.plugin.control.handlers import handlers
from statsig_otel.plugin.control.socket import Handler
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.service.dispatch import ServiceConsumer
from statsig_otel.plugin.service.lifecycle import in_thread
from statsig_otel.plugin.settings.catalog import create_exporter, destination
from statsig_otel.plugin.settings.exporters import ConfiguredExporter, ExporterObject
from statsig_otel.plugin.settings.reading import configured_exporters, routing
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from statsig_otel.plugin.settings.storage import FileStorageSettings

if TYPE_CHECKING:
    from statsig_otel.plugin.service.audit_log_check import AuditLogCheck

_logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Applied:
    """What a reload, or a reading of files, has applied, and what it could not. All sentences begin with the place."""

    changes: list[str]
    failures: list[str]


class Outbound:
    """Exporters, queue and senders of one configuration. The constructor opens nothing; it resolves a relative path.

    Args:
        configuration: The configuration.
        directory: The queue's directory.
        failed: Run, in another thread, with the error if the queue can't go on.

    Attributes:
        has_lost: Whether acknowledged changes may be lost, after the shutdown.

    Raises:
        ConfigError: The distribution that adds an exporter's type can't create it from its settings.
    """

    def __init__(
        self, configuration: Configuration, directory: Path, *, failed: Callable[[QueueError], None] = lambda _: None
    ) -> None:
        self.has_lost: bool = False
        self._directory = directory.absolute()
        configured = configured_exporters(configuration)
        self._routing = CurrentRouting(routing(configuration))
        self._queue = self._create_queue(configuration, failed) if self._routing.now.exporters else None
        self._recovery = Recovery(self._queue) if self._queue else None
        self._exporters = {name: create_exporter(name, one.settings) for name, one in configured.items()}
        self._destinations = {name: destination(one.settings) for name, one in configured.items()}
        unqueued = {
            name: SynchronousExporter(self._exporters[name], one.timeout)
            for name, one in configured.items()
            if not one.is_queued
        }
        self._synchronous = SynchronousConsumer(unqueued)
        self._senders = self._create_senders(configured, self._exporters)
        self._leaving: dict[str, QueueSender] = {}  # senders that a reload under way replaces
        self._audit_log_checks: list[AuditLogCheck] = []

    def _create_queue(self, configuration: Configuration, failed: Callable[[QueueError], None]) -> DurableQueue:
        storage = configuration.extension(FileStorageSettings)
        min_free_bytes = storage.min_free_bytes if storage else DEFAULT_MIN_FREE
        return DurableQueue(self._directory, self._routing, min_free_bytes=min_free_bytes, failed=failed)

    def _create_senders(
        self, configured: Mapping[str, ConfiguredExporter], exporters: Mapping[str, Exporter]
    ) -> dict[str, QueueSender]:
        return {
            name: QueueSender(self._queue.cursor(name), exporters[name], one.delivery())
            for name, one in configured.items()
            if one.is_queued and self._queue
        }

    def open(self, consumer: ServiceConsumer) -> None:
        """Let a consumer pass batches on to these exporters. Only after `start`."""
        consumer.open(self._synchronous, self._queue, self._routing)

    @property
    def socket(self) -> Path | None:
        """The path of the control socket; None without a queue."""
        return None if self._queue is None else self._directory / CONTROL

    def refusal_reasons(self) -> dict[str, str]:
        """Why the queue refuses batches now: a sentence for each reason."""
        return {} if self._queue is None else self._queue.refusal_reasons()

    def exporters(self) -> list[ExporterFacts]:
        """The state of each exporter, also of one that left the configuration while records wait for it."""
        waiting, ages = (self._queue.waiting(), self._queue.ages()) if self._queue is not None else ({}, {})
        found = [
            ExporterFacts(name=name, state=state, hint=hint, waiting=None)
            for name, (state, hint) in self._synchronous.states().items()
        ]
        for name, sender in list(self._senders.items()):
            found.append(sender_facts(sender, waiting=waiting.get(name, 0), oldest=ages.get(name)))
        for name in self._left(waiting):
            left = ExporterFacts(name=name, state=NOT_CONFIGURED, waiting=waiting[name], oldest=ages.get(name))
            found.append(left)
        return with_history(replace(one, destination=self._destinations.get(one.name, "")) for one in found)

    def _left(self, waiting: Collection[str]) -> list[str]:
        """The exporters that are in the configuration neither with a queue nor without one."""
        queue = self._queue
        return [one for one in waiting if queue and one not in self._exporters and not queue.serves(one)]

    def dead_letters(self) -> int:
        """The number of dead letters that are kept."""
        return 0 if self._queue is None else sum(self._queue.dead_letters().values())

    def set_aside(self) -> list[str]:
        """The names of databases that were set aside, for as long as they are kept."""
        if self._queue is None:
            return []
        kept = QueueDirectory(self._directory).set_aside_files
        try:
            found = (*kept("corrupt"), *kept("salvaged"), *kept("unreadable"))
        except OSError:  # the directory is gone, which `condition` says
            return []
        return [file.name for file in found]

    @property
    def database(self) -> Path | None:
        """The file of the queue; None without one."""
        return None if self._queue is None else self._queue.database

    def patience(self, receiver: str) -> float:
        """Seconds within which a receiver's batch should be accepted or refused."""
        return self._synchronous.longest_answer(self._routing.now.route(receiver)) + COMMIT_TIMEOUT

    def handlers(self, intakes: Mapping[str, Intake], *, before_resume: Callable[[], None]) -> dict[str, Handler]:
        """The handlers of the control socket's commands, as configured now; none without a queue.

        `before_resume` is called before an exporter tries again by command.
        """
        if self._queue is None:
            return {}
        return handlers(
            self._queue,
            senders=self._senders,
            intakes=intakes,
            routing=self._routing.now,
            synchronous=self._synchronous,
            before_resume=before_resume,
        )

    def start(self) -> None:
        """Open the queue and start the exporters. If something fails, everything is closed again.

        Raises:
            DirectoryInUseError: The queue's directory belongs to another process. Nothing was started, so it may be
                tried again.
            QueueError: The queue's file can't be used.
            StartError: An exporter can't be started, for example since a file can't be opened.
            OSError: A file of the queue can't be opened.
        """
        if self._queue is not None:
            self._queue.start()  # if this fails it has closed everything itself
        try:
            self._synchronous.start()
            if self._queue is not None and self._recovery is not None:
                self._recovery.start()
                waiting = sum(self._queue.cursor(name).waiting for name in self._senders)
                _logger.info("The queue is in %s; waiting: %s", self._directory, counted(waiting, "record"))
                self._warn_of_unused_cursors(self._queue)
            for name, sender in self._senders.items():
                try:
                    sender.start()
                except (OSError, ValueError) as error:
                    raise StartError(name, error) from error
        except BaseException:
            self.shutdown(drain=0.0)
            raise

    def needing_restart(self, current: Configuration, wanted: Configuration) -> Iterator[str]:
        """The changes of exporters that only a restart can apply, each with its place and why.

        They are about synchronous exporters: webhooks wait for them, so they can't be replaced as queued exporters are.
        """
        before, after = configured_exporters(current), configured_exporters(wanted)
        for name, old in before.items():
            new = after.get(name)
            if new is None:
                if not old.is_queued:
                    yield f"exporters::{name}: is gone, and had no sending queue"
            elif old.is_queued is not new.is_queued:
                yield f"exporters::{name}::sending_queue::enabled: has changed"
            elif not new.is_queued:
                for key in self._changed_keys(name, old, new):
                    yield f"exporters::{name}::{key}: has changed, and the exporter has no sending queue"
        for name, new in after.items():
            if name not in before and not new.is_queued:
                yield f"exporters::{name}: is new, and has no sending queue"
            elif name not in before and self._queue is None:
                yield f"exporters::{name}::sending_queue: there has been no queue so far"

    def reconfigure(
        self, current: Configuration, wanted: Configuration, *, applied: Callable[[], None] = lambda: None
    ) -> Applied:
        """Apply other exporters and pipelines while it runs. No change may be one of `needing_restart`.

        A queued exporter that changed finishes its batch, and another one goes on from its cursor. One that can't be
        started is blocked. OTLP exporters use renewed certificates and secrets by themselves. All try at once what they
        could not deliver.

        Args:
            current: The configuration of before.
            wanted: The configuration to apply.
            applied: Called when the change can't fail as a whole any more, before exporters that may hang are waited
                for.

        Raises:
            ConfigError: An exporter can't be created from its settings. Nothing has changed.
            QueueError: The queue can't be written. Nothing has changed.
        """
        before, after = configured_exporters(current), configured_exporters(wanted)
        unstarted = {name for name, sender in self._senders.items() if not sender.is_started}
        same = {name for name in after if name in before and not self._changed_keys(name, before[name], after[name])}
        same -= unstarted
        created = {name: create_exporter(name, one.settings) for name, one in after.items() if name not in same}
        if self._queue is not None:
            # Of what comes after the exporters are created only this can fail, and a new sender needs its cursor.
            self._queue.reconfigure(routing(wanted))
        else:
            self._routing.now = routing(wanted)
        coming = self._exchange(after, created)
        applied()
        renewed, failures = self._renew(after, [name for name in after if name in same])
        leaving = self._leaving
        _stop(leaving.values(), finish=BATCH_FINISH)
        self._leaving = {}
        for name, sender in coming.items():
            try:
                sender.start(instead_of=leaving.get(name))
            except (OSError, ValueError) as error:
                sender.start_blocked(error)
                failures.append(f"exporters::{name}: can't be started: {error}")
        for name in same & set(self._senders):
            self._senders[name].resume(renewed=name in renewed)
        if self._queue is not None:
            self._warn_of_unused_cursors(self._queue)
        started = {name for name in unstarted & set(coming) if coming[name].is_started}
        return Applied(list(_changes(current, wanted, renewed=renewed, started=started)), failures)

    def compare_audit_logs(
        self, receivers: Mapping[str, StatsigReceiverSettings], consume: Callable[[Batch], Future[Receipt]]
    ) -> None:
        """Compare the audit logs, for each receiver that has one. Its HTTP client is loaded only then. After `open`.

        Args:
            receivers: The settings of the receivers, with all of their resource.
            consume: Takes what is made of the logs.
        """
        for name, settings in receivers.items():
            if self._queue and settings.audit_log:
                from statsig_otel.plugin.service.audit_log_check import AuditLogCheck  # noqa: PLC0415 - see above

                check = AuditLogCheck(name, self._queue, settings, consume)
                check.start()
                self._audit_log_checks.append(check)

    def use_audit_logs(self, receivers: Mapping[str, StatsigReceiverSettings]) -> None:
        """Read the audit logs as these settings say, from the next comparison on."""
        for check in self._audit_log_checks:
            check.use(receivers[check.receiver])

    def renew_certificates(self, configuration: Configuration) -> Applied:
        """Let exporters use the content of their PEM files that has changed, and try at once."""
        configured = configured_exporters(configuration)
        renewed, failures = self._renew(configured, configured)
        for name in renewed & set(self._senders):
            self._senders[name].resume(renewed=True)
        changes = [f"exporters::{name}::tls: its files have changed" for name in configured if name in renewed]
        return Applied(changes, failures)

    def _renew(self, configured: Mapping[str, ConfiguredExporter], names: Iterable[str]) -> tuple[set[str], list[str]]:
        """Let exporters renew their certificates and secrets; those that did, and why others could not."""
        renewed: set[str] = set()
        failures: list[str] = []
        for name in names:
            try:
                exporter = _renewable(self._exporters[name], configured[name])
                if exporter is not None and exporter.renew(configured[name].settings):
                    renewed.add(name)
            except (OSError, ValueError) as error:
                failures.append(f"exporters::{name}: its certificates and secrets were not renewed: {error}")
        return renewed, failures

    def _changed_keys(self, name: str, before: ConfiguredExporter, after: ConfiguredExporter) -> list[str]:
        """The keys of an exporter that have changed, except for secrets that it renews by itself."""
        if before == after:
            return []
        old, new = _values(before), _values(after)
        renews = _renewable(self._exporters[name], after) is not None
        if renews:
            old, new = without_secrets(old), without_secrets(new)
        changed = [key for key in new if key not in old or old[key] != new[key]]
        # Settings of another distribution may also differ in private attributes. Then any key may be meant.
        return changed if changed or renews else list(new)

    def _exchange(
        self, configured: Mapping[str, ConfiguredExporter], created: Mapping[str, Exporter]
    ) -> dict[str, QueueSender]:
        """Put new exporters in the places of others, and return their senders, which are not started yet."""
        before = self._senders
        coming = self._create_senders({name: configured[name] for name in created}, created)
        senders, exporters = before | coming, {**self._exporters, **created}
        self._senders = {name: senders[name] for name, one in configured.items() if one.is_queued}
        self._leaving = {name: one for name, one in before.items() if self._senders.get(name) is not one}
        self._exporters = {name: exporters[name] for name in configured}
        self._destinations = {name: destination(one.settings) for name, one in configured.items()}
        return coming

    def close(self, grace: float = SYNCHRONOUS_GRACE.longest) -> None:
        """Refuse what waits for a synchronous exporter; sends under way get `grace` seconds more. Returns at once.

        A reload that waits for senders goes on.
        """
        self._synchronous.close(grace)
        for sender in self._leaving.values():
            in_thread(sender.shutdown, "stop sender")

    def shutdown(self, drain: float = 0.0, *, grace: float = SYNCHRONOUS_GRACE.longest, until: float = 0.0) -> bool:
        """Stop the exporters and close the queue. Safe to call twice.

        Args:
            drain: Seconds to spend sending what waits.
            grace: Seconds for sends of synchronous exporters.
            until: When to give up what only this process can still read of the queue, by the monotonic clock.

        Returns:
            Whether nothing waits any more, and no exporter hangs.
        """
        _stop(self._senders.values(), drain=drain)
        ended = self._synchronous.shutdown(grace)
        if self._queue is None or self._recovery is None:
            return ended
        for check in self._audit_log_checks:
            check.end()
        until_joined = time.monotonic() + AUDIT_LOG_CLOSING
        for check in self._audit_log_checks:
            check.join(max(until_joined - time.monotonic(), 0.0))
        self._recovery.stop()
        # Before the sizes are read: it finishes what was handed to it.
        self.has_lost = not self._queue.shutdown(until - time.monotonic())
        sizes = self._queue.sizes()
        waiting = {name: sizes[name] for name in self._senders if sizes[name]}
        for name, records in waiting.items():
            stays = counted(records, "record")
            if self.has_lost:
                _logger.error("%s: up to %s may be lost, for the reason that the queue has logged", name, stays)
            else:
                _logger.info("%s: the queue keeps %s, to be sent after the next start", name, stays)
        return ended and not waiting and not any(one.has_abandoned for one in self._senders.values())

    def _warn_of_unused_cursors(self, queue: DurableQueue) -> None:
        for state in queue.unconfigured_exporters():
            _logger.warning(
                "%s %s; the queue keeps its place, with %s of %s, until `statsig-otel queue remove %s %s`",
                state.name,
                "has no sending queue any more" if state.name in self._exporters else "is in no pipeline any more",
                counted(state.waiting, "record"),
                counted(state.bytes, "byte"),
                state.name,
                directory_option(queue.directory.path),
            )


def exporter_changed(name: str) -> str:
    """The sentence about an exporter whose configuration has changed."""
    return f"exporters::{name}: has changed"


def _changes(
    before: Configuration, after: Configuration, *, renewed: Collection[str], started: Collection[str]
) -> Iterator[str]:
    """The changes as sentences.

    Only the certificates of `renewed` exporters may have changed. Those that `started` could not be started before.
    """
    for name, keys in after.exporters.items():
        if name not in before.exporters:
            yield f"exporters::{name}: is new"
        elif keys != before.exporters[name]:
            yield exporter_changed(name)
        elif name in started:
            yield f"exporters::{name}: is started"
        elif name in renewed:
            yield f"exporters::{name}::tls: its files have changed"
    for name in before.exporters:
        if name not in after.exporters:
            yield f"exporters::{name}: is gone"
    if before.pipelines != after.pipelines:
        yield "service::pipelines: have changed"


def _values(one: ConfiguredExporter) -> dict[str, Any]:
    """An exporter's configuration, key by key."""
    return {**dict(one.settings), **{key: getattr(one, key) for key in one.shared_keys()}}


def _renewable(exporter: Exporter, one: ConfiguredExporter) -> RenewableExporter[Any] | None:
    """The exporter if it renews its certificates and secrets itself. One that was made in code belongs to the user."""
    return (
        exporter if isinstance(exporter, RenewableExporter) and not isinstance(one.settings, ExporterObject) else None
    )


def _stop(senders: Iterable[QueueSender], *, drain: float = 0.0, finish: float = 0.0) -> None:
    """Stop senders, all at the same time."""
    for thread in [in_thread(partial(one.shutdown, drain, finish=finish), "stop sender") for one in senders]:
        if thread is not None:
            thread.join()
