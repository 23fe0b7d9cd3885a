"""Reloads the configuration of a running service: at a signal, at a command, and when a secret's file changes."""

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from statsig_otel.config.configuration import Configuration
from statsig_otel.config.errors import ConfigError, SettingError, render
from statsig_otel.config.grammar import check
from statsig_otel.config.model import Opaque
from statsig_otel.config.source import Document
from statsig_otel.exporters.queue.errors import QueueError
from statsig_otel.plugin.control.socket import ControlError
from statsig_otel.plugin.doctor.machine_checks import check_files
from statsig_otel.plugin.service.restart import RestartNeededError
from statsig_otel.plugin.service.service import Service
from statsig_otel.plugin.settings.catalog import COMPONENTS, EXPORTERS
from statsig_otel.plugin.settings.reading import receiver_settings
from statsig_otel.plugin.settings.receiver import check_secret

_logger: Final = logging.getLogger(__name__)


class ReloadError(ControlError):
    """The configuration was not taken over. The service goes on as before, or as the message says."""


class Reloader:
    """Reloads the configuration of a service, one reload at a time. Safe to use from several threads.

    `document` is that of the service's configuration, and `read` reads it again.
    """

    def __init__(self, service: Service, document: Document, read: Callable[[], Document]) -> None:
        self._service = service
        self._document = document
        self._read = read
        self._lock = threading.Lock()
        self._unusable = ""  # the last logged message about the secrets' files

    @property
    def watches(self) -> bool:
        """Whether a signing secret is in a file, so that `look_at_secrets` has something to do."""
        return any("signing_secrets" in path for path in self._document.templates)

    def reload(self) -> list[str]:
        """Take over the configuration as it is written now, log the changes, and return them as sentences.

        Raises:
            ReloadError: It could not be taken over; the message says why, and what that means.
        """
        with self._lock:
            try:
                changes = self._take_over()
            except ReloadError as error:
                _logger.error("Reload: %s", error)  # noqa: TRY400 - the message says it all
                raise
            _logger.info("Reload: %s", "; ".join(changes) or "nothing has changed")
            for sentence in self._service.unused_keys() if changes else ():
                _logger.warning("%s", sentence)
            return changes

    def look_at_secrets(self) -> None:
        """Take over changed files of signing secrets. A file that can't be used changes nothing.

        Nothing else is read, so that the rotation of a secret does not apply a configuration that is being edited.
        """
        with self._lock:
            try:
                configuration = self._with_secrets(self._service.configuration)
            except ValueError as error:
                if str(error) != self._unusable:
                    _logger.error("%s; the secrets stay as they were", error)  # noqa: TRY400 - the message says it all
                self._unusable = str(error)
                return
            self._unusable = ""
            if configuration != self._service.configuration:
                self._service.renew_secrets(configuration)
                _logger.info("The signing secrets have changed, and count from now on")

    def _take_over(self) -> list[str]:
        try:
            document = self._read()
            EXPORTERS.refresh()  # an exporter may have been installed meanwhile
            configuration = check_with_files(document)
            try:
                return self._service.reconfigure(configuration)
            finally:
                if self._service.configuration is configuration:
                    self._document = document  # also where an exporter could not be started
        except ConfigError as error:
            raise ReloadError(f"the configuration has errors, and nothing has changed\n{error}") from error
        except RestartNeededError as error:
            raise ReloadError(f"nothing has changed, since only a restart can take this over: {error}") from error
        except QueueError as error:
            raise ReloadError(f"nothing has changed, since the queue can't be written now: {error}") from error
        except (OSError, ValueError) as error:
            raise ReloadError(f"all is taken over but for an exporter that can't be started: {error}") from error

    def _with_secrets(self, configuration: Configuration) -> Configuration:
        """The configuration with the secrets that the files contain now.

        Raises:
            ValueError: A file can't be used.
        """
        receivers = dict(configuration.receivers)
        for name, settings in receiver_settings(configuration).items():
            path = ("receivers", name, "signing_secrets")
            secrets = [self._secret((*path, index), secret) for index, secret in enumerate(settings.signing_secrets)]
            if secrets != settings.signing_secrets:
                receivers[name] = settings.model_copy(update={"signing_secrets": secrets})
        return replace(configuration, receivers=receivers)

    def _secret(self, path: tuple[str | int, ...], before: Opaque) -> Opaque:
        template = self._document.templates.get(path)
        if template is None:
            return before
        text, faults = template.expand()
        if faults:
            raise ValueError(f"{render(path)}: {faults[0].message}")
        try:
            return check_secret(Opaque(text))
        except SettingError as error:
            raise ValueError(f"{render(path)}: {error.message}") from error


def check_with_files(document: Document) -> Configuration:
    """Check a document, and the files that it names.

    Raises:
        ConfigError: All problems.
    """
    configuration = check(document, COMPONENTS)
    if problems := check_files(configuration, document):
        raise ConfigError(problems)
    return configuration
