"""What the exporters over gRPC and over HTTP share: they take over renewed certificates and secrets while they run."""

import logging
from threading import Lock
from typing import Final, Generic, TypeVar

from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.exporters.otlp.status import Success
from statsig_otel.exporters.otlp.tls import TlsMaterial

_logger: Final = logging.getLogger(__name__)

_S = TypeVar("_S", OtlpGrpcSettings, OtlpHttpSettings)


class OtlpExporter(Generic[_S]):
    """The base of both.

    Args:
        name: The exporter's id, such as `otlp_grpc/backend`; for the log.
        settings: What the user wrote.
    """

    def __init__(self, name: str, settings: _S) -> None:
        self._name = name
        self._settings: _S = settings
        self._material = TlsMaterial()
        self._lock = Lock()  # over the two above and the connection: renew() and shutdown() come from other threads
        self._renewed = False  # the connection is still the one of before
        self._last_warning = ""

    def renew(self, settings: _S) -> bool:
        """Take over what the PEM files contain now, and other secrets: headers and PEM texts. From any thread.

        A `send` that is under way ends as it began. The next one makes a new connection.

        Args:
            settings: The settings of now, which differ from those of before in secrets alone.

        Returns:
            Whether anything has changed.

        Raises:
            OSError: A file of `tls` can't be read. All stays as it was.
            ValueError: A file of `tls` does not contain what it has to. All stays as it was.
        """
        material = settings.tls.read() if settings.uses_tls else TlsMaterial()
        with self._lock:
            changed = (settings, material) != (self._settings, self._material)
            self._settings, self._material = settings, material
            self._renewed = self._renewed or changed
        return changed

    def _read_material(self) -> None:
        if self._settings.uses_tls:
            self._material = self._settings.tls.read()

    def _log_warning(self, answer: Success) -> None:
        if answer.warning and answer.warning != self._last_warning:
            _logger.warning("%s: the backend accepted the records with a warning: %s", self._name, answer.warning)
            self._last_warning = answer.warning
