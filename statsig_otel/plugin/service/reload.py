"""Reloads the configuration of a running service: at a signal, at a command, and when a secret's file changes."""

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from statsig_otel.config.configuration import Configuration
from statsig_otel.config.errors import ConfigError, SettingError, render
from statsig_otel.config.grammar import check
from statsig_otel.config.model import Opaque, reveal
from statsig_otel.config.source import NOWHERE, Document
from statsig_otel.exporters.queue.errors import QueueError
from statsig_otel.plugin.control.socket import ControlError
from statsig_otel.plugin.doctor.machine_checks import check_files
from statsig_otel.plugin.server.tls import digest
from statsig_otel.plugin.service.assembly import Assembly
from statsig_otel.plugin.service.restart import RestartNeededError
from statsig_otel.plugin.settings.catalog import COMPONENTS, EXPORTERS
from statsig_otel.plugin.settings.reading import pem_files, receiver_settings
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings, check_secret
from statsig_otel.plugin.settings.remarks import remarks

_logger: Final = logging.getLogger(__name__)

_INTERVAL: Final = 1.0
"""Seconds between two looks at the files of signing secrets and certificates."""

FAILURES: Final = (ConfigError, RestartNeededError, QueueError, OSError, ValueError)
"""The errors of a reload that could not be carried out as a whole."""


class Reloader:
    """Reloads the configuration of a service, one reload at a time. Safe to use from several threads.

    Args:
        assembly: The parts of the service.
        document: What the configuration was made from.
        read: Reads it again. None for a configuration that was made in code: only its certificates can be renewed.
        during: Each reload goes on within this block.
    """

    def __init__(
        self,
        assembly: Assembly,
        document: Document = NOWHERE,
        read: Callable[[], Document] | None = None,
        during: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._assembly = assembly
        self._document = document
        self._read = read
        self._during = during
        self._lock = threading.Lock()
        self._unusable = ""  # the last logged message about the secrets' files
        self._emptied: set[tuple[str | int, ...]] = set()  # secrets whose files were found empty once
        self._pem = self._pem_seen = b""  # the PEM files that were taken over, and those of the last look
        self._ended = threading.Event()
        assembly.offer("reload", lambda _: {"changes": self._answer()})

    @property
    def document(self) -> Document:
        """What the current configuration was made from."""
        return self._document

    @property
    def has_files(self) -> bool:
        """Whether the configuration was read from files, or other locations."""
        return self._read is not None

    def start(self) -> None:
        """Take over changed files of signing secrets and certificates from now on.

        Raises:
            RuntimeError: No thread can be started.
        """
        self._ended = threading.Event()
        if not self.has_files and not pem_files(self._assembly.configuration):
            return  # and a reload can't add any
        self._pem = self._pem_seen = self._read_pem()
        threading.Thread(target=self._watch, args=(self._ended,), name="watched files", daemon=True).start()

    def shutdown(self) -> None:
        """Look at no more files. Returns at once; safe to call twice, and without `start`."""
        self._ended.set()

    def reload(self) -> list[str]:
        """Take over the configuration as it is written now, log the changes, and return them as sentences.

        Raises:
            ConfigError: See `Assembly.reconfigure` for this and the others.
            RestartNeededError: As above.
            QueueError: As above.
            OSError: As above.
            ValueError: As above.
        """
        with self._lock, self._during():
            try:
                changes = self._take_over()
            except FAILURES as error:
                _logger.error("Reload: %s", _told(error))  # noqa: TRY400 - the message says it all
                raise
            _logger.info("Reload: %s", "; ".join(changes) or "nothing has changed")
            for sentence in remarks(self._assembly.configuration, self._document) if changes else ():
                _logger.warning("%s", sentence)
            return changes

    def look_at_secrets(self) -> None:
        """Take over changed files of signing secrets. A file that can't be used changes nothing.

        Nothing else is read, so that the rotation of a secret does not apply a configuration that is being edited.
        """
        with self._lock:
            before = _secrets(self._assembly.configuration)
            try:
                self._assembly.change_secrets(self._with_secrets)
            except ValueError as error:
                if str(error) != self._unusable:
                    _logger.error("%s; the secrets stay as they were", error)  # noqa: TRY400 - the message says it all
                self._unusable = str(error)
                return
            self._unusable = ""
            for path, secret in _secrets(self._assembly.configuration).items():
                if secret != before[path]:
                    what = "a new secret, which counts from now on" if reveal(secret) else "empty now"
                    _logger.info("%s: is %s", render(path), what)

    def look_at_certificates(self) -> None:
        """Take over changed PEM files, once they are the same at two looks: a certificate and its key are two files.

        Files that can't be used change nothing.
        """
        with self._lock:
            now = self._read_pem()
            is_settled, self._pem_seen = now == self._pem_seen, now
            if not is_settled or now == self._pem:
                return
            self._pem = now
            try:
                changes = self._assembly.renew_certificates()
            except (ConfigError, OSError, ValueError) as error:
                _logger.error("%s; the certificates stay as they were", error)  # noqa: TRY400 - the message says it all
                return
            for change in changes:
                _logger.info("%s, and count from the next connection on", change)

    def _read_pem(self) -> bytes:
        return digest(pem_files(self._assembly.configuration))

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(_INTERVAL):
            if any("signing_secrets" in path for path in self._document.templates):
                self.look_at_secrets()
            self.look_at_certificates()

    def _answer(self) -> list[str]:
        try:
            return self.reload()
        except FAILURES as error:
            raise ControlError(_told(error)) from error

    def _take_over(self) -> list[str]:
        if self._read is None:
            return self._assembly.renew_certificates()
        document = self._read()
        EXPORTERS.refresh()  # an exporter may have been installed meanwhile
        configuration = check_with_files(document)
        try:
            return self._assembly.reconfigure(configuration)
        finally:
            if self._assembly.configuration is configuration:
                self._document = document  # also where an exporter could not be started

    def _with_secrets(self, name: str, settings: StatsigReceiverSettings) -> StatsigReceiverSettings:
        """The settings of a receiver with the secrets that the files contain now.

        Raises:
            ValueError: A file can't be used.
        """
        path = ("receivers", name, "signing_secrets")
        secrets = [self._secret((*path, index), secret) for index, secret in enumerate(settings.signing_secrets)]
        if secrets and not any(reveal(secret) for secret in secrets):
            raise ValueError(f"{render((*path, 0))}: is empty")
        return settings.model_copy(update={"signing_secrets": secrets})

    def _secret(self, path: tuple[str | int, ...], before: str | Opaque) -> str | Opaque:
        template = self._document.templates.get(path)
        if template is None:
            return before
        text, faults = template.expand()
        if faults:
            raise ValueError(f"{render(path)}: {faults[0].message}")
        if not text and reveal(before) and path not in self._emptied:
            self._emptied.add(path)  # perhaps it is just being written: the next look decides
            return before
        self._emptied.discard(path)
        try:
            return check_secret(Opaque(text))
        except SettingError as error:
            raise ValueError(f"{render(path)}: {error.message}") from error


def _secrets(configuration: Configuration) -> dict[tuple[str | int, ...], str | Opaque]:
    """The signing secrets by their path."""
    return {
        ("receivers", name, "signing_secrets", index): secret
        for name, settings in receiver_settings(configuration).items()
        for index, secret in enumerate(settings.signing_secrets)
    }


def check_with_files(document: Document) -> Configuration:
    """Check a document, and the files that it names.

    Raises:
        ConfigError: All problems.
    """
    configuration = check(document, COMPONENTS)
    if problems := check_files(configuration, document):
        raise ConfigError(problems)
    return configuration


def _told(error: Exception) -> str:
    """Why a configuration was not taken over, and what that means."""
    match error:
        case ConfigError():
            return f"the configuration has errors, and nothing has changed\n{error}"
        case RestartNeededError():
            return f"nothing has changed, since only a restart can take this over: {error}"
        case QueueError():
            return f"nothing has changed, since the queue can't be written now: {error}"
    return f"all is taken over but for an exporter that can't be started: {error}"
