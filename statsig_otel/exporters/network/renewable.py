"""The base of exporters over a network, which use renewed certificates and secrets without a restart."""

import logging
from threading import Lock
from typing import Final, Generic, Protocol, TypeVar

from statsig_otel.exporters.network.tls import ClientTlsSettings, TlsMaterial

_logger: Final = logging.getLogger(__name__)


class _TlsSettings(Protocol):
    @property
    def tls(self) -> ClientTlsSettings: ...
    @property
    def uses_tls(self) -> bool: ...


_T = TypeVar("_T", bound=_TlsSettings)


class RenewableExporter(Generic[_T]):
    """The base of exporters that use renewed certificates and secrets for their next batch.

    Args:
        name: The exporter's id, such as `otlp_grpc/backend`, for the log.
        settings: The exporter's settings.
    """

    def __init__(self, name: str, settings: _T) -> None:
        self._name = name
        self._settings: _T = settings
        self._material = TlsMaterial()
        self._lock = Lock()  # over settings, material and connection: renew() and shutdown() come from other threads
        self._renewed = False  # settings or material are newer than the connection

    def renew(self, settings: _T) -> bool:
        """Use the present content of the PEM files, and other secrets. May be called from any thread.

        A `send` in progress does not change. The next one makes a new connection.

        Args:
            settings: The new settings, which differ from the old ones only in secrets, such as headers or PEM strings.

        Returns:
            Whether anything has changed.

        Raises:
            OSError: A file of `tls` can't be read. Nothing has changed.
            ValueError: A file of `tls` does not contain what its key requires. Nothing has changed.
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

    def _say_where(self, where: str) -> None:
        _logger.info("%s sends to %s, %s TLS", self._name, where, "with" if self._settings.uses_tls else "without")
