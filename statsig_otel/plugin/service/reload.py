"""Reloads the configuration of a running service: at a signal, at a command, and when a secret's file changes."""

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Final

from statsig_otel.config.configuration import Configuration
from statsig_otel.config.document import NOWHERE, Document
from statsig_otel.config.errors import ConfigError, Path, SettingError, render
from statsig_otel.config.grammar import check
from statsig_otel.config.substitution import Template
from statsig_otel.config.values import Opaque, reveal
from statsig_otel.exporters.queue.errors import QueueError
from statsig_otel.plugin.control.socket import ControlError
from statsig_otel.plugin.doctor.resources import check_files
from statsig_otel.plugin.server.tls import digest
from statsig_otel.plugin.service.assembly import Assembly
from statsig_otel.plugin.service.restart import RestartNeededError
from statsig_otel.plugin.settings.catalog import COMPONENTS, EXPORTERS
from statsig_otel.plugin.settings.reading import configured_pem_files, receiver_settings
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings, check_secret
from statsig_otel.plugin.settings.remarks import remarks

_logger: Final = logging.getLogger(__name__)

_INTERVAL: Final = 1.0
"""Seconds between two looks at the files of signing secrets, certificates and exporters' headers."""

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
        self._emptied: set[Path] = set()  # secrets whose files were found empty once
        self._pem = self._pem_seen = b""  # the PEM files that are used, and those of the last look
        self._ended = threading.Event()
        assembly.before_resume = self.look_at_secrets
        assembly.offer("reload", lambda _: {"changes": self._answer()})

    @property
    def document(self) -> Document:
        """The document of the current configuration."""
        return self._document

    @property
    def has_files(self) -> bool:
        """Whether the configuration was read from files, or other locations."""
        return self._read is not None

    def start(self) -> None:
        """Use changed files of secrets, certificates and exporters' headers from now on.

        Raises:
            RuntimeError: No thread can be started.
        """
        self._ended = threading.Event()
        if not self.has_files and not configured_pem_files(self._assembly.configuration):
            return  # and a reload can't add any
        self._pem = self._pem_seen = self._read_pem()
        threading.Thread(target=self._watch, args=(self._ended,), name="watched files", daemon=True).start()

    def shutdown(self) -> None:
        """Look at no more files. Returns at once; safe to call twice, and without `start`."""
        self._ended.set()

    def reload(self) -> list[str]:
        """Apply the configuration that the files have now, log the changes, and return them as sentences.

        Raises:
            ConfigError: See `Assembly.reconfigure` for this and the others.
            RestartNeededError: As above.
            QueueError: As above.
            OSError: As above.
            ValueError: As above.
        """
        with self._lock, self._during():
            try:
                changes = self._apply()
            except FAILURES as error:
                _logger.error("Reload: %s", _told(error))  # noqa: TRY400 - the message says it all
                raise
            _logger.info("Reload: %s", "; ".join(changes) or "nothing has changed")
            for sentence in remarks(self._assembly.configuration, self._document) if changes else ():
                _logger.warning("%s", sentence)
            return changes

    def look_at_secrets(self) -> None:
        """Use changed files of signing secrets and of exporters' headers. One that can't be used changes nothing.

        Nothing else is read, so that the rotation of a secret does not apply a configuration that is being edited.
        """
        with self._lock:
            before, faults, exporters = _secrets(self._assembly.configuration), list[str](), list[str]()
            try:
                self._assembly.change_secrets(self._with_secrets)
            except ValueError as error:
                faults.append(str(error))
            try:
                exporters = self._change_headers()
            except FAILURES as error:
                faults.append(str(error))
            unusable, self._unusable = self._unusable, "; ".join(faults)
            if faults and self._unusable != unusable:
                _logger.error("%s; the secrets stay as they were", self._unusable)
            for path, secret in _secrets(self._assembly.configuration).items():
                if secret != before[path]:
                    what = "a new secret, valid from now on" if reveal(secret) else "empty now"
                    _logger.info("%s: is %s", render(path), what)
            for name in exporters:
                _logger.info("%s: the files of its headers have changed, and count from now on", name)

    def look_at_certificates(self) -> None:
        """Use changed PEM files once they are the same at two looks: a certificate and its key are two files.

        Files that can't be used change nothing.
        """
        with self._lock:
            now = self._read_pem()
            is_settled, self._pem_seen = now == self._pem_seen, now
            if not is_settled or now == self._pem:
                return
            try:
                changes = self._assembly.renew_certificates()
            except RestartNeededError:
                return  # the service has not started yet, or ends
            except (ConfigError, OSError, ValueError) as error:
                self._pem = now
                _logger.error("%s; the certificates stay as they were", error)  # noqa: TRY400 - the message says it all
                return
            self._pem = now
            for change in changes:
                _logger.info("%s, and count from the next connection on", change)

    def _read_pem(self) -> bytes:
        return digest(configured_pem_files(self._assembly.configuration))

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(_INTERVAL):
            if any("signing_secrets" in path or "headers" in path for path in self._document.templates):
                self.look_at_secrets()
            self.look_at_certificates()

    def _change_headers(self) -> list[str]:
        """Use exporters' headers from files that have changed; the exporters.

        Raises:
            ValueError: A file can't be used; nothing has changed. For the others see `Assembly.reconfigure`.
        """
        texts = {
            path: self._text(path, template)
            for path, template in self._document.templates.items()
            if path[:1] == ("exporters",) and "headers" in path
        }
        changed = {path: text for path, text in texts.items() if text != _value(self._document.values, path)}
        if not changed or not self._assembly.is_open:
            return []
        document = replace(self._document, values=_with_texts(self._document.values, changed))
        names = sorted({str(path[1]) for path in changed})
        checked = check(document, COMPONENTS).exporters
        before = self._assembly.configuration
        self._assembly.reconfigure(
            replace(before, exporters={**before.exporters, **{name: checked[name] for name in names}})
        )
        self._document = document
        return names

    def _answer(self) -> list[str]:
        try:
            return self.reload()
        except FAILURES as error:
            raise ControlError(_told(error)) from error

    def _apply(self) -> list[str]:
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

    def _secret(self, path: Path, before: str | Opaque) -> str | Opaque:
        template = self._document.templates.get(path)
        if template is None:
            return before
        text = self._text(path, template)
        if not text and reveal(before) and path not in self._emptied:
            self._emptied.add(path)  # perhaps it is just being written: the next look decides
            return before
        self._emptied.discard(path)
        try:
            return check_secret(Opaque(text))
        except SettingError as error:
            raise ValueError(f"{render(path)}: {error.message}") from error

    def _text(self, path: Path, template: Template) -> str:
        """A value with the present content of its files.

        Raises:
            ValueError: A file can't be used.
        """
        text, faults = template.expand()
        if faults:
            raise ValueError(f"{render(path)}: {faults[0].message}")
        return text


def _value(values: Any, path: Path) -> object:
    """The value at a path; None if there is none."""
    for key in path:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _with_texts(values: Mapping[str, object], texts: Mapping[Path, str]) -> dict[str, object]:
    """A copy of values, with other strings at some paths that exist."""
    copied = copy.deepcopy(dict(values))
    for (*above, key), text in texts.items():
        holder: Any = _value(copied, tuple(above))
        holder[key] = text
    return copied


def _secrets(configuration: Configuration) -> dict[Path, str | Opaque]:
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
    """Why a configuration was not applied, and what that means."""
    match error:
        case ConfigError():
            return f"the configuration has errors, and nothing has changed\n{error}"
        case RestartNeededError():
            return f"nothing has changed, since only a restart can apply this: {error}"
        case QueueError():
            return f"nothing has changed, since the queue can't be written now: {error}"
    return f"everything is applied except an exporter that can't be started: {error}"
