"""Finds a queue, and carries out commands: in its running service, or in this process if none runs."""

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from statsig_otel.config.errors import ConfigError
from statsig_otel.exporters.paths import exists
from statsig_otel.exporters.queue import schema
from statsig_otel.exporters.queue.database import StoppedQueue
from statsig_otel.exporters.queue.directory import CONTROL, DATABASE, QueueDirectory
from statsig_otel.exporters.queue.errors import DirectoryInUseError, NewerSchemaError, QueueError
from statsig_otel.exporters.routing import Routing
from statsig_otel.plugin.control.handlers import stopped_handlers
from statsig_otel.plugin.control.socket import ControlError, ServiceNotRunningError, call

if TYPE_CHECKING:
    from statsig_otel.plugin.settings.audit_log import AuditLogSettings
    from statsig_otel.plugin.settings.reading import QueueConfiguration

Perform: TypeAlias = Callable[..., Any]
"""`perform(command, **arguments)`: the command's answer. Raises `ControlError`."""

_OWNER: Final = "only the service's own user, and root, can use its queue"
_INSTEAD: Final = "look at its live page (zpages), health checks and metrics"


class QueueAccess:
    """The queue in a directory, or else that of a configuration, or else the one in the default directory.

    Raises:
        ConfigError: The configuration is wrong, and no service runs on the queue.
        ControlError: There is no queue.
    """

    _wrong: ConfigError | None = None
    """What is wrong with the configuration."""

    def __init__(self, *, directory: Path | None, locations: tuple[str, ...], environ: Mapping[str, str]) -> None:
        # What reads configurations takes longer to load than everything else.
        self._configuration: QueueConfiguration | None = None
        if locations:
            directory = self._read(locations, environ, directory)
        elif directory is None:
            from statsig_otel.plugin.settings.storage import find_directory  # noqa: PLC0415 - see above

            directory = find_directory(None, environ)
        self.directory: Path = directory
        try:
            found = exists(self.directory / DATABASE)
        except PermissionError as error:
            raise ControlError(f"{self.directory} can't be read: {_OWNER}") from error
        except OSError as error:
            raise ControlError(f"{self.directory} can't be read: {error.strerror}") from error
        if self._wrong is not None and (not found or self.ask("queue") is None):
            raise self._wrong
        if not found and self.configured == ():
            raise ControlError(f"no exporter of this configuration has a sending queue: {_INSTEAD}")
        if not found:
            place = f"{self.directory} contains no queue: name the right place with --config or --directory"
            raise ControlError(f"{place}. If no exporter of the service has a sending queue, {_INSTEAD}")

    def _read(self, locations: tuple[str, ...], environ: Mapping[str, str], directory: Path | None) -> Path:
        """Read the configuration, and return the queue's directory.

        A running service knows its configuration, and this process may lack the variables that it names. So what is
        wrong with it is only kept, unless it is not known either where the queue is.
        """
        from statsig_otel.plugin.settings.reading import read, read_directory  # noqa: PLC0415 - it takes long to load

        try:
            self._configuration = read(locations, environ)
        except ConfigError as error:
            self._wrong = error
            try:
                return directory or read_directory(locations, environ)
            except ConfigError:
                raise error from None
        return directory or self._configuration.directory

    @property
    def configured(self) -> tuple[str, ...] | None:
        """The queued exporters of the configuration; None if none was read."""
        return None if self._configuration is None else tuple(self._configuration.routing.exporters)

    @property
    def audit_logs(self) -> "Mapping[str, AuditLogSettings]":
        """How the audit log of each receiver is read, by the configuration.

        Raises:
            ConfigError: The configuration is wrong; or a key is missing, since systemd makes it only while the service
                runs.
        """
        if self._wrong is not None:
            raise self._wrong
        if self._configuration is None:
            return {}
        if missing := [problem for problem in self._configuration.missing if "audit_log" in problem.path]:
            raise ConfigError(missing)
        return self._configuration.audit_logs

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for reading, while another process may write.

        Raises:
            ControlError: The file can't be read.
        """
        if self._has_no_index():
            raise ControlError(
                f"{self.directory / DATABASE}-shm was deleted while the service uses it, and without it nobody else "
                "can read the queue: restart the service"
            )
        try:
            with closing(schema.connect_reading(self.directory / DATABASE)) as connection:
                schema.check_version(connection, self.directory / DATABASE)
                yield connection
        except NewerSchemaError as error:
            raise ControlError(str(error)) from error
        except sqlite3.Error as error:
            raise ControlError(self._unreadable(error)) from error

    def ask(self, command: str, **arguments: Any) -> Any:
        """The answer of the running service; None if none runs.

        Raises:
            ControlError: It refuses or does not answer.
        """
        try:
            return call(self.directory / CONTROL, command, **arguments)
        except ServiceNotRunningError:
            return None

    @contextmanager
    def changing(self) -> Iterator[Perform]:
        """A function that carries out commands that change the queue.

        Raises:
            ConfigError: The configuration is wrong, and the service has stopped in the meantime.
            ControlError: The queue can't be opened.
        """
        if self.ask("queue") is not None:
            yield self._call
            return
        if self._wrong is not None:
            raise self._wrong
        with ExitStack() as stack:
            queue = self._open(stack)
            known = self._configuration
            handlers = stopped_handlers(
                queue,
                mappers=known.mappers if known else {},
                routing=known.routing if known else Routing(),
                configured=self.configured,
            )
            yield lambda command, **arguments: handlers[command](arguments)

    def _call(self, command: str, **arguments: Any) -> Any:
        try:
            return call(self.directory / CONTROL, command, **arguments)
        except ServiceNotRunningError as error:
            raise ControlError("the service has stopped in the meantime: give the command again") from error

    def _open(self, stack: ExitStack) -> StoppedQueue:
        try:
            return stack.enter_context(StoppedQueue(self.directory))
        except DirectoryInUseError as error:
            raise ControlError(f"{error}. Its control socket does not answer: is it starting, or stopping?") from error
        except QueueError as error:
            raise ControlError(str(error)) from error
        except PermissionError as error:
            raise ControlError(f"{self.directory} can't be changed: {_OWNER}") from error
        except (sqlite3.Error, OSError) as error:
            raise ControlError(self._unreadable(error)) from error

    def _has_no_index(self) -> bool:
        """Whether the running service uses an index that is gone: by another one, its commits would not be seen."""
        log, index = (Path(f"{self.directory / DATABASE}{suffix}") for suffix in ("-wal", "-shm"))
        return exists(log) and not exists(index) and QueueDirectory(self.directory).owner() is not None

    def _unreadable(self, error: Exception) -> str:
        if not os.access(self.directory / DATABASE, os.R_OK):
            return f"{self.directory} can't be read: {_OWNER}"
        return f"the queue in {self.directory} can't be read: {error}"
