"""Reloads the configuration of a running service: at a signal, at a command, and when a secret's file changes."""

import copy
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any, Final

from statsig_otel.config.configuration import Configuration
from statsig_otel.config.document import NOWHERE, Document
from statsig_otel.config.errors import ConfigError, Path, SettingError, render
from statsig_otel.config.grammar import check
from statsig_otel.config.model import replaced
from statsig_otel.config.opaque import Opaque, reveal
from statsig_otel.config.substitution import FileBacked
from statsig_otel.exporters.queue.errors import QueueError
from statsig_otel.plugin.control.socket import ControlError
from statsig_otel.plugin.doctor.resources import check_files
from statsig_otel.plugin.server.tls import digest
from statsig_otel.plugin.service.assembly import Assembly
from statsig_otel.plugin.service.outbound import Applied, exporter_changed
from statsig_otel.plugin.service.restart import RestartNeededError
from statsig_otel.plugin.settings.audit_log import check_key
from statsig_otel.plugin.settings.catalog import COMPONENTS, EXPORTERS
from statsig_otel.plugin.settings.doubts import doubts
from statsig_otel.plugin.settings.reading import configured_pem_files, receiver_settings
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings, check_secret
from statsig_otel.plugin.webhook.secret import doubt_of_secret

_logger: Final = logging.getLogger(__name__)

_CERTIFICATES: Final = "certificates"
_RENEWED: Final = {
    "headers": "headers", "password": "password", **dict.fromkeys(("ca_pem", "cert_pem", "key_pem"), _CERTIFICATES),
}  # fmt: skip
"""The keys of exporters' strings whose files are watched, and what to call these strings."""

_WATCHED: Final = frozenset({"signing_secrets", "api_key", *_RENEWED})
"""All keys of such strings."""

_INTERVAL: Final = 1.0
"""Seconds between two readings of the files of secrets and certificates."""

REFUSALS: Final = (ConfigError, RestartNeededError, QueueError)
"""The errors of a reload that has changed nothing."""


class PartlyAppliedError(OSError, ValueError):
    """A reload was applied except for some exporters or certificates, which the message names, each with the reason."""

    def __init__(self, applied: Applied) -> None:
        super().__init__("; ".join(applied.failures))
        self.applied: Final = applied


class Reloader:
    """Reloads the configuration of a service, one reload at a time. Safe to use from several threads.

    Args:
        assembly: The parts of the service.
        document: What the configuration was made from.
        read: Reads it again. None for a configuration that was made in code: only its certificates can be renewed.
        during: Makes the context in which each reload runs.
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
        self._unusable: list[str] = []  # what was said of the secrets' files at the last reading
        self._emptied: set[Path] = set()  # secrets whose files were found empty once
        self._pem = self._pem_seen = b""  # the PEM files that are used, and those of the last reading
        self._strings_seen: dict[str, dict[Path, str]] = {}  # changed strings of exporters at the last reading
        self._ended = threading.Event()
        assembly.before_resume = self.use_changed_secrets
        assembly.offer("reload", lambda _: asdict(self._answer()))

    @property
    def document(self) -> Document:
        """The document of the current configuration."""
        return self._document

    @property
    def has_files(self) -> bool:
        """Whether the configuration was read from files, or other locations."""
        return self._read is not None

    def start(self) -> None:
        """Use changed files of secrets and certificates from now on.

        Raises:
            RuntimeError: No thread can be started.
        """
        self._ended = threading.Event()
        if not self.has_files and not configured_pem_files(self._assembly.configuration):
            return  # and a reload can't add any
        self._pem = self._pem_seen = self._read_pem()
        threading.Thread(target=self._watch, args=(self._ended,), name="watched files", daemon=True).start()

    def shutdown(self) -> None:
        """Watch no more files. Returns at once; safe to call twice, and without `start`."""
        self._ended.set()

    def reload(self) -> list[str]:
        """Apply the configuration that the files have now, log the changes, and return them as sentences.

        Raises:
            ConfigError: See `Assembly.reconfigure` for this and the others.
            RestartNeededError: As above.
            QueueError: As above.
            PartlyAppliedError: An exporter can't be started, or certificates can't be renewed. All else is applied.
        """
        with self._lock, self._during():
            try:
                applied = self._apply()
            except REFUSALS as error:
                _logger.error("Reload: %s", _refusal(error))
                raise
            if applied.changes or not applied.failures:
                _logger.info("Reload: %s", "; ".join(applied.changes) or "nothing has changed")
            for failure in applied.failures:
                _logger.error("Reload: %s", failure)
            for sentence in doubts(self._assembly.configuration, self._document) if applied.changes else ():
                _logger.warning("%s", sentence)
            if applied.failures:
                raise PartlyAppliedError(applied)
            return applied.changes

    def use_changed_secrets(self) -> None:
        """Use changed files of receivers' and exporters' secrets. One that can't be used changes nothing.

        Nothing else is read, so that the rotation of a secret does not apply a configuration that is being edited.
        """
        with self._lock:
            before, failures = _secrets(self._assembly.configuration), list[str]()

            def changed(name: str, settings: StatsigReceiverSettings) -> StatsigReceiverSettings:
                try:
                    settings = self._with_secrets(name, settings)
                except ValueError as error:
                    failures.append(f"{error}; the secrets of {name} stay as they were")
                try:
                    return self._with_audit_log_key(name, settings)
                except ValueError as error:
                    failures.append(f"{error}; the key for the audit log of {name} stays as it was")
                    return settings

            self._assembly.change_secrets(changed)
            new = {
                render(path): reveal(secret)
                for path, secret in _secrets(self._assembly.configuration).items()
                if secret != before[path]
            }
            changes = [f"{path}: is {'a new secret, valid from now on' if new[path] else 'empty now'}" for path in new]
            exporters = self._change_exporters()
            unusable, self._unusable = self._unusable, [*failures, *exporters.failures]
            for failure in self._unusable:
                if failure not in unusable:
                    _logger.error("%s", failure)
            for change in [*changes, *exporters.changes]:
                _logger.info("%s", change)
            for path, secret in new.items():
                if "audit_log" not in path and (doubt := doubt_of_secret(secret)):
                    _logger.warning("%s: %s", path, doubt)

    def use_changed_certificates(self) -> None:
        """Use changed PEM files once two readings find the same: a certificate and its key are two files.

        Files that can't be used change nothing.
        """
        with self._lock:
            now = self._read_pem()
            is_settled, self._pem_seen = now == self._pem_seen, now
            if not is_settled or now == self._pem:
                return
            try:
                applied = self._assembly.renew_certificates()
            except RestartNeededError:
                return  # the service has not started yet, or ends
            self._pem = now
            for failure in applied.failures:
                _logger.error("%s", failure)
            for change in applied.changes:
                _logger.info("%s, and are used from the next connection on", change)

    def _read_pem(self) -> bytes:
        return digest(configured_pem_files(self._assembly.configuration))

    def _watch(self, ended: threading.Event) -> None:
        said = ""
        while not ended.wait(_INTERVAL):
            try:
                if any(_WATCHED.intersection(path) for path in self._document.file_backed):
                    self.use_changed_secrets()
                self.use_changed_certificates()
            except Exception as error:  # too little memory, no thread, or a bug of ours: the next reading may work
                if repr(error) != said:
                    said = repr(error)
                    _logger.exception("Changed files of secrets or certificates can't be used now")

    def _change_exporters(self) -> Applied:
        """Use exporters' headers, passwords and PEM strings from files that have changed, those of each by itself."""
        changes, failures = list[str](), list[str]()
        file_backed: dict[str, dict[Path, FileBacked]] = {}
        for path, string in self._document.file_backed.items():
            if path[:1] == ("exporters",) and _RENEWED.keys() & path:
                file_backed.setdefault(str(path[1]), {})[path] = string
        for name, of_one in file_backed.items():
            try:
                applied = self._use_strings(name, {path: self._text(path, one) for path, one in of_one.items()})
            except ConfigError as error:
                wrong = "; ".join(str(replace(problem, hint=None)) for problem in error.problems)
                failures.append(f"{wrong}; {name} keeps the {_kinds(of_one)} that it has")
            except (*REFUSALS, ValueError) as error:
                failures.append(f"{error}; {name} keeps the {_kinds(of_one)} that it has")
            else:
                changes += applied.changes
                failures += applied.failures
        return Applied(changes, failures)

    def _use_strings(self, name: str, texts: Mapping[Path, str]) -> Applied:
        """Use other values of an exporter's strings. PEM strings have to be the same in two readings, like PEM files.

        Raises:
            ConfigError: A value is not valid. For the others see `Assembly.reconfigure`.
        """
        changed = {path: text for path, text in texts.items() if text != _value(self._document.values, path)}
        seen, self._strings_seen[name] = self._strings_seen.get(name), changed
        is_settled = changed == seen or _CERTIFICATES not in _kinds(changed)
        if not changed or not is_settled or not self._assembly.is_open:
            return Applied([], [])
        document = replace(self._document, values=_with_texts(self._document.values, changed))
        before = self._assembly.configuration
        exporters = {**before.exporters, name: check(document, COMPONENTS).exporters[name]}
        applied = self._assembly.reconfigure(replace(before, exporters=exporters))
        self._document = document
        others = [change for change in applied.changes if change != exporter_changed(name)]
        changes = [f"exporters::{name}: the files of its {_kinds(changed)} have changed", *others]
        return Applied(changes, applied.failures)

    def _answer(self) -> Applied:
        """The answer to the command `reload`."""
        try:
            return Applied(self.reload(), [])
        except PartlyAppliedError as error:
            return error.applied
        except REFUSALS as error:
            raise ControlError(_refusal(error)) from error

    def _apply(self) -> Applied:
        if self._read is None:
            return self._assembly.renew_certificates()
        document = self._read()
        EXPORTERS.refresh()  # an exporter may have been installed meanwhile
        configuration = check_with_files(document)
        try:
            return self._assembly.reconfigure(configuration)
        finally:
            if self._assembly.configuration is configuration:
                self._document = document  # also if the rest of the reload failed

    def _with_secrets(self, name: str, settings: StatsigReceiverSettings) -> StatsigReceiverSettings:
        """The settings of a receiver with the secrets that the files contain now.

        Raises:
            ValueError: A file can't be used.
        """
        path = ("receivers", name, "signing_secrets")
        secrets = [self._secret((*path, index), secret) for index, secret in enumerate(settings.signing_secrets)]
        if secrets and not any(reveal(secret) for secret in secrets):
            raise ValueError(f"{render((*path, 0))}: is empty")
        return replaced(settings, signing_secrets=secrets)

    def _with_audit_log_key(self, name: str, settings: StatsigReceiverSettings) -> StatsigReceiverSettings:
        """The same with the key for its audit log.

        Raises:
            ValueError: The file can't be used.
        """
        log = settings.audit_log
        if log is None:
            return settings
        key = self._secret(("receivers", name, "audit_log", "api_key"), log.api_key, check_key)
        return replaced(settings, audit_log=replaced(log, api_key=key))

    def _secret(
        self, path: Path, before: str | Opaque, check: Callable[[Opaque], object] = check_secret
    ) -> str | Opaque:
        string = self._document.file_backed.get(path)
        if string is None:
            return before
        text = self._text(path, string)
        if not text and reveal(before) and path not in self._emptied:
            self._emptied.add(path)  # perhaps it is just being written: the next reading decides
            return before
        self._emptied.discard(path)
        secret = Opaque(text)
        try:
            check(secret)
        except SettingError as error:
            raise ValueError(f"{render(path)}: {error.message}") from error
        return secret

    def _text(self, path: Path, string: FileBacked) -> str:
        """A value with the present content of its files.

        Raises:
            ValueError: A file can't be used.
        """
        text, faults = string.expand()
        if faults:
            raise ValueError(f"{render(path)}: {faults[0].message}")
        return text


def _kinds(paths: Iterable[Path]) -> str:
    """What exporters' strings at these paths are."""
    return " and ".join(dict.fromkeys(_RENEWED[key] for path in paths for key in map(str, path) if key in _RENEWED))


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
    """The signing secrets, and the keys for audit logs, by their path."""
    found: dict[Path, str | Opaque] = {}
    for name, settings in receiver_settings(configuration).items():
        for index, secret in enumerate(settings.signing_secrets):
            found["receivers", name, "signing_secrets", index] = secret
        if settings.audit_log is not None:
            found["receivers", name, "audit_log", "api_key"] = settings.audit_log.api_key
    return found


def check_with_files(document: Document) -> Configuration:
    """Check a document, and the files that it names.

    Raises:
        ConfigError: All problems.
    """
    configuration = check(document, COMPONENTS)
    if problems := check_files(configuration, document):
        raise ConfigError(problems)
    return configuration


def _refusal(error: Exception) -> str:
    """Why a configuration was not applied."""
    match error:
        case ConfigError():
            return f"the configuration has errors, and nothing has changed\n{error}"
        case RestartNeededError():
            return f"nothing has changed: {error}"
    return f"nothing has changed, since the queue can't be written now: {error}"
