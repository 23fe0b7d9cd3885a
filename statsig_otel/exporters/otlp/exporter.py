"""Shared by exporters over a network: renewed certificates and secrets; and by those over gRPC and HTTP: outcomes."""

import logging
from threading import Lock
from traceback import format_tb
from typing import ClassVar, Final, Generic, Protocol, TypeVar

from statsig_otel.exporters.exporter import Blocked, Outcome
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.exporters.otlp.status import PROTOBUF, one_line, success
from statsig_otel.exporters.otlp.tls import ClientTlsSettings, TlsMaterial

_logger: Final = logging.getLogger(__name__)


class _TlsSettings(Protocol):
    @property
    def tls(self) -> ClientTlsSettings: ...
    @property
    def uses_tls(self) -> bool: ...


_T = TypeVar("_T", bound=_TlsSettings)
_S = TypeVar("_S", bound=OtlpGrpcSettings | OtlpHttpSettings)


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


class OtlpExporter(RenewableExporter[_S]):
    """The base of the OTLP exporters over gRPC and over HTTP. See `RenewableExporter`."""

    _protocol: ClassVar[str]

    def __init__(self, name: str, settings: _S) -> None:
        super().__init__(name, settings)
        self._hide: tuple[str, ...] = ()  # strings that no reason may contain
        self._last_warning = ""

    def _success(
        self, body: bytes, count: int, *, content_type: str = PROTOBUF, is_complete: bool = True, url: str = ""
    ) -> Outcome:
        """The outcome of a success response. Its warning is logged, unless it is the same as the last one.

        Answers that are not OTLP count as the same, since each may contain another request's id.
        """
        answer = success(body, count, content_type=content_type, is_complete=is_complete, url=url, hide=self._hide)
        said = answer.warning if answer.is_otlp else "not OTLP"
        if said and said != self._last_warning:
            _logger.warning("%s: the backend accepted the records with a warning: %s", self._name, answer.warning)
            self._last_warning = said
        return answer.outcome

    def _unexpected(self, error: Exception) -> Outcome:
        """The outcome of an error that no backend can cause. Waiting does not help, so it is `Blocked`."""
        # Not the error itself, which may quote a header.
        frames = "".join(format_tb(error.__traceback__))
        _logger.debug("%s: unexpected error of the %s library:\n%s", self._name, self._protocol, frames)
        reason = one_line(str(error), self._hide)
        return Blocked(f"unexpected {type(error).__name__} of the {self._protocol} library: {reason}")
