"""Assembles the parts of one configuration, and opens, reconfigures and closes them: receivers, servers and exporters.

`Service` is the public face of an assembly.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from statsig_otel import _times
from statsig_otel._journal import journal
from statsig_otel.config.configuration import Configuration
from statsig_otel.exporters.queue.errors import DirectoryInUseError
from statsig_otel.plugin.control.socket import ControlError, ControlServer, Handler
from statsig_otel.plugin.record.serializer import AttributeValue
from statsig_otel.plugin.server.listening import InheritedSocket
from statsig_otel.plugin.server.server import HttpServer
from statsig_otel.plugin.service.dispatch import ServiceConsumer
from statsig_otel.plugin.service.inbound import Inbound, read_tls_again
from statsig_otel.plugin.service.outbound import Applied, Outbound
from statsig_otel.plugin.service.restart import RestartNeededError, needing_restart
from statsig_otel.plugin.settings.health_check import HealthCheckSettings
from statsig_otel.plugin.settings.reading import check_audit_logs, receiver_settings
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from statsig_otel.plugin.settings.telemetry import JournalSettings, TelemetrySettings
from statsig_otel.plugin.settings.zpages import ZpagesSettings
from statsig_otel.plugin.watch.facts import Facts, facts_of
from statsig_otel.plugin.watch.health import Condition, Health, HealthServer
from statsig_otel.plugin.watch.journal_json import journal_command
from statsig_otel.plugin.watch.status import status
from statsig_otel.plugin.watch.zpages import Zpages

_logger: Final = logging.getLogger(__name__)

_BETWEEN_ATTEMPTS: Final = 0.05
"""Seconds between two attempts to own a directory that another process owns."""

_LONG_WAIT: Final = _times.COMMIT_TIMEOUT
"""Seconds of waiting for the directory after which that is an error: the webhooks that were held first are refused."""


class Assembly:
    """The parts of a service, made from a checked configuration. The constructor opens and starts nothing.

    Args:
        configuration: The configuration.
        directory: The queue's directory; used if an exporter is queued, as all are by default.
        resource: Attributes of the records' resource. A receiver's own attributes override them.
        listen: Whether the receivers get servers at their endpoints.
        wait_for_directory: Whether `open` waits for the directory while another process owns it.
        url: What comes before the receivers' paths in the URLs that Statsig uses.
        ways_out: What to do if another process owns the directory.
        inherited: Listening sockets of a supervisor. The name of each is the id of a receiver.

    Attributes:
        inbound: The receivers and their servers.
        consumer: Takes the receivers' batches.
        directory: The queue's directory, as an absolute path.

    Raises:
        ConfigError: Receivers that share an endpoint don't agree, an exporter can't be made from its settings, or a
            receiver with an audit log has no queue.
        ValueError: The inherited sockets do not fit the receivers.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        directory: Path,
        resource: Mapping[str, AttributeValue],
        listen: bool = True,
        wait_for_directory: bool = False,
        url: str = "",
        ways_out: str = "",
        inherited: Sequence[InheritedSocket] = (),
    ) -> None:
        check_audit_logs(configuration)
        self._configuration = configuration
        self.directory: Final = directory.absolute()
        self._waits_for_directory = wait_for_directory
        self._ways_out = ways_out
        self.before_resume: Callable[[], None] = lambda: None  # looks at files before an exporter tries again
        self._commands: dict[str, Handler] = {"journal": journal_command, "status": lambda _: status(self.facts())}
        self.consumer: Final = ServiceConsumer()
        self.inbound: Final = Inbound(
            configuration, self.consumer, resource=resource, listen=listen, url=url, inherited=inherited
        )
        self._outbound = Outbound(configuration, self.directory, failed=self.inbound.server_thread.fail)
        self.inbound.use_patience(self._outbound.patience)
        self._make_servers()
        self._failed = False  # the last `open`, which has used up what it opened
        self._is_open = False
        self._since = self._since_monotonic = 0.0  # when it has opened, by the clock of the wall and the monotonic one
        self._closing = False
        self._reconfiguring = threading.Lock()  # a shutdown waits for a reload that is under way
        self._ending = threading.Event()  # a shutdown was asked for
        self._until = 0.0  # by the monotonic clock: the end of the shutdown
        self._drain = _times.QUEUE_DRAIN

    def _make_servers(self) -> None:
        """Make the servers for webhooks, health checks, the live page and commands, for the current `Outbound`."""
        health = Health(self)
        self.inbound.make_servers(health)
        checks = self._configuration.extension(HealthCheckSettings)
        self.health: HealthServer | None = None if checks is None else HealthServer(checks, health)
        zpages = self._configuration.extension(ZpagesSettings)
        self.zpages: Zpages | None = None if zpages is None else Zpages(zpages, self)
        socket = self._outbound.socket
        self._control = ControlServer(socket, {}) if socket else None
        self._renew_handlers()

    @property
    def configuration(self) -> Configuration:
        """The current configuration."""
        return self._configuration

    @property
    def is_open(self) -> bool:
        """Whether `open` has ended, and nothing has asked for the end."""
        return self._is_open and not self._ending.is_set()

    @property
    def has_lost(self) -> bool:
        """Whether acknowledged changes may be lost, after `close`."""
        return self._outbound.has_lost

    def condition(self) -> Condition:
        """Why webhooks are not taken now, and the state of each exporter while the service runs."""
        reasons = self._not_running()
        return Condition(reasons) if reasons else Condition(self._refusal_reasons(), self._outbound.exporters())

    def _not_running(self) -> dict[str, str]:
        if self._ending.is_set():
            return {"shutting_down": "the service is stopping"}
        if not self._is_open:
            return {"not_running": "the service has not started yet"}
        if self.inbound.has_failed:
            return {"not_running": "a server or the queue has failed: no more webhooks are accepted"}
        return {}

    def _refusal_reasons(self) -> dict[str, str]:
        """Why a service that runs takes no webhooks now: a sentence for each reason."""
        return {**self.inbound.refusal_reasons(), **self._outbound.refusal_reasons()}

    def facts(self) -> Facts:
        """The state of the service, for its live page and for `top`."""
        began = time.time() - (time.monotonic() - self._since_monotonic)
        if began < self._since - 1:  # The clock was put back. The journal has moved its entries a second further back.
            self._since = began - 1
        return facts_of(
            reasons=self._not_running() or self._refusal_reasons(),
            exporters=self._outbound.exporters(),
            receivers=self.inbound.facts(),
            dead_letters=self._outbound.dead_letters(),
            set_aside=self._outbound.set_aside(),
            since=self._since,
        )

    @property
    def database(self) -> Path | None:
        """The file of the queue; None without one."""
        return self._outbound.database

    def command(self, name: str, arguments: dict[str, Any]) -> Any:
        """Carry out a command of the control socket, in its turn.

        Raises:
            ControlError: It is refused.
        """
        if self._control is None:
            raise ControlError("this service has no queue")
        return self._control.carry_out(name, arguments)

    def ping(self) -> "Future[None] | None":
        """Done soon if the servers' thread lives; None if no server runs."""
        return self.inbound.server_thread.ping() if self.is_open and self.inbound.has_servers else None

    def offer(self, command: str, handler: Handler) -> None:
        """Answer one more command at the control socket, if there is one. The handler may shut the service down."""
        self._commands[command] = handler
        self._renew_handlers()

    def open(self, go_on: Callable[[], None] = lambda: None) -> None:
        """Open the queue, start the exporters and listen. If something fails, everything is closed again.

        After a failure it may be called again.

        Args:
            go_on: Called before this returns if webhooks are held while it waits for the directory.

        Raises:
            OSError: An address can't be listened on, or a file can't be opened.
            ValueError: The content of a file is not valid.
            QueueError: The queue's directory belongs to another process, or its file can't be used.
            ConfigError: On a second attempt, an exporter can't be made from its settings.
            RuntimeError: `begin_to_close` was called while this waited for the directory.
        """
        if self._failed:
            self._outbound = Outbound(self._configuration, self.directory, failed=self.inbound.server_thread.fail)
            self._make_servers()
        telemetry = self._configuration.telemetry
        sizes = telemetry.journal if isinstance(telemetry, TelemetrySettings) else JournalSettings()
        journal.keep(sizes.max_entries, sizes.max_bytes)
        try:
            # First, since what follows may take a while. But the process that is waited for may have the same port.
            if self.health is not None and not self._waits_for_directory:
                self.health.start()
            self._start_outbound(go_on)
            self._open_servers()
            self._is_open, self._since, self._since_monotonic = True, time.time(), time.monotonic()
        except BaseException as error:
            self._failed = True
            self._stop_watching()
            if self._ending.is_set():
                self.consumer.close("the service was shut down", reason="shutting_down")
            else:
                self.consumer.close(f"the service could not be started: {error}", reason="not_running")
            raise

    def _start_outbound(self, go_on: Callable[[], None]) -> None:
        """Open the queue and start the exporters, once no other process owns the directory."""
        since, has_complained = 0.0, False  # by the monotonic clock
        while True:
            try:
                self._outbound.start()
            except DirectoryInUseError as error:
                if error.is_own:
                    raise
                if not self._waits_for_directory:
                    raise DirectoryInUseError(self._with_ways_out(error)) from None
                if not since:
                    since = time.monotonic()
                    _logger.warning("Waiting for the queue's directory: %s", error.fact)
                    if not self.inbound.has_servers:
                        self.consumer.hold()
                        go_on()
                elif time.monotonic() > since + _LONG_WAIT and not has_complained:
                    has_complained = True
                    listens = self.inbound.has_servers
                    effect = "this service does not listen" if listens else "this process refuses all webhooks"
                    message = "Until the queue's directory is free, %s: %s"
                    _logger.error(message, effect, self._with_ways_out(error))
            else:
                return
            if self._ending.wait(_BETWEEN_ATTEMPTS):
                raise RuntimeError("this service was shut down before its directory was free")

    def _with_ways_out(self, error: DirectoryInUseError) -> str:
        return f"{error}; {self._ways_out}" if self._ways_out else str(error)

    def _open_servers(self) -> None:
        try:
            if self.health is not None and self._waits_for_directory:
                self.health.start()
            if self._control is not None:
                self._control.start()
            if self.zpages is not None:
                self.zpages.start()
            self.inbound.bind()
            self._outbound.open(self.consumer)
            self._outbound.compare_audit_logs(self.inbound.complete_settings, self.consumer.consume)
            if self.inbound.has_servers:
                self.inbound.server_thread.start()
        except BaseException:
            self._stop_watching()
            self.inbound.unbind()
            if self._control is not None:
                self._control.shutdown()
            self._outbound.shutdown()
            raise

    def begin_to_close(self, timeout: float, drain: float) -> None:
        """Say how long `close` may take, and how much of that it may spend on what waits. Only the first call counts.

        A command that calls this is not waited for.
        """
        if self._control is not None:
            self._control.let_go()
        self._ending.set()
        if not self._until:
            self._until, self._drain = time.monotonic() + min(timeout, _times.LONGEST_SHUTDOWN), drain

    def close(self) -> bool:
        """Close what `open` opened, within the time that is left. docs/architecture.md has the steps' budget.

        Returns:
            Whether everything was delivered, and nothing hangs.
        """
        self._closing = True
        timeout, begun = self._left(), time.monotonic()

        def left_of(share: _times.Share) -> float:
            return max(begun + share.of(timeout) - time.monotonic(), 0.0)

        # First of all, so that a request of a client that has connected is taken and not refused.
        self.inbound.server_thread.stop_accepting(_times.REQUEST_DRAIN.of(timeout))
        self._outbound.close(left_of(_times.SYNCHRONOUS_GRACE))
        self.inbound.close(left_of(_times.BODY_GRACE))
        self.inbound.join(lambda: left_of(_times.REQUEST_DRAIN))
        if self._control is not None:
            # Before the queue, which its handlers wait for.
            self._control.shutdown(self._left() * _times.COMMAND_SHARE + _times.SHUTDOWN_MARGIN)
        if self.zpages is not None:
            self.zpages.stop()  # only now, so that the page can answer that command
        is_alone = self._reconfiguring.acquire(timeout=self._left() + _times.SHUTDOWN_MARGIN)
        if self._waits_for_directory:
            self._stop_watching()  # before the directory is free: the process that waits for it needs the ports next
        try:
            grace = left_of(_times.SYNCHRONOUS_GRACE)
            drain = min(self._drain, self._left())
            return self._outbound.shutdown(drain, grace=grace, until=self._until) and is_alone
        finally:
            if is_alone:
                self._reconfiguring.release()
            self._stop_watching()

    def _stop_watching(self) -> None:
        """End the servers of the live page and of health checks. Safe to call twice, and before their start."""
        servers = [one for one in (self.zpages, self.health) if one is not None]
        until = time.monotonic() + _times.SERVER_CLOSING
        for server in servers:
            server.stop()
        for server in servers:
            server.join(max(until - time.monotonic(), 0.0))

    def _left(self) -> float:
        return max(self._until - time.monotonic(), 0.0)

    def reconfigure(self, configuration: Configuration) -> Applied:
        """Apply another configuration while everything is open. No connection ends, and no change is lost.

        Secrets, tolerance and mapping apply from the next request on, renewed TLS files of the servers from the next
        connection on. An exporter that changed finishes its batch before another one takes its place.

        Raises:
            ConfigError: Receivers that share an endpoint don't agree, or an exporter can't be made from its settings.
                Nothing has changed.
            RestartNeededError: A part of it needs a restart, or the service is not running. Nothing has changed.
            QueueError: The queue can't be written. Nothing has changed.
        """
        with self._reconfiguring:
            self._check_open()
            return self._apply(configuration)

    def _check_open(self) -> None:
        if self._closing:
            raise RestartNeededError("the service is shutting down, or was shut down")
        if not self._is_open:
            raise RestartNeededError("the service has not started")

    def _apply(self, configuration: Configuration) -> Applied:
        self.inbound.check(configuration)
        check_audit_logs(configuration)
        current = self._configuration
        needing = [*needing_restart(current, configuration), *self._outbound.needing_restart(current, configuration)]
        if needing:
            raise RestartNeededError(f"only a restart can apply this: {'; '.join(needing)}")
        use_receivers = self.inbound.prepare(configuration)
        renewed, failures = read_tls_again(self._tls_servers())

        def apply() -> None:
            self._configuration = configuration
            use_receivers()
            self._outbound.use_audit_logs(self.inbound.complete_settings)
            for use_tls in renewed.values():
                use_tls()
            self._renew_handlers()

        applied = self._outbound.reconfigure(current, configuration, applied=apply)
        self.inbound.use_patience(self._outbound.patience)
        before, after = receiver_settings(current), receiver_settings(configuration)
        changed = [f"receivers::{name}: has changed" for name in after if before[name] != after[name]]
        return Applied([*changed, *map(_tls_changed, renewed), *applied.changes], [*failures, *applied.failures])

    def _tls_servers(self) -> list[tuple[list[str], HttpServer]]:
        """The servers, each with the places in the configuration that its TLS settings have."""
        servers = self.inbound.tls_servers()
        if self.zpages is not None:
            servers.append((["extensions::zpages"], self.zpages.server))
        return servers

    def change_secrets(self, changed: Callable[[str, StatsigReceiverSettings], StatsigReceiverSettings]) -> None:
        """Use other signing secrets from the next request on. Works before `open` too.

        Args:
            changed: Returns the settings that a receiver shall have, which differ only in their signing secrets and in
                the key for their audit log. What it raises leaves everything unchanged.
        """
        with self._reconfiguring:
            before = receiver_settings(self._configuration)
            after = {name: changed(name, settings) for name, settings in before.items()}
            self._configuration = replace(self._configuration, receivers=dict(after))
            self.inbound.change_secrets(self._configuration)
            self._outbound.use_audit_logs(self.inbound.complete_settings)

    def renew_certificates(self) -> Applied:
        """Use the content of PEM files that has changed, of servers and of exporters.

        Raises:
            RestartNeededError: The service is not running. Nothing has changed.
        """
        with self._reconfiguring:
            self._check_open()
            renewed, failures = read_tls_again(self._tls_servers())
            for use_tls in renewed.values():
                use_tls()
            applied = self._outbound.renew_certificates(self._configuration)
            return Applied([*map(_tls_changed, renewed), *applied.changes], [*failures, *applied.failures])

    def _renew_handlers(self) -> None:
        if self._control is not None:
            handlers = self._outbound.handlers(self.inbound.intakes, before_resume=self.before_resume)
            self._control.handlers = {**handlers, **self._commands}


def _tls_changed(place: str) -> str:
    return f"{place}::tls: its files have changed"
