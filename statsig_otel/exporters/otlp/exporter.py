"""The base of the OTLP exporters over gRPC and over HTTP: outcomes of success responses and of unexpected errors."""

import logging
from traceback import format_tb
from typing import ClassVar, Final, TypeVar

from statsig_otel.exporters.delivery.guarded import TOO_LITTLE_MEMORY
from statsig_otel.exporters.exporter import Blocked, Outcome, RetryLater
from statsig_otel.exporters.network.answers import PROTOBUF, one_line
from statsig_otel.exporters.network.renewable import RenewableExporter
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.exporters.otlp.status import success

_logger: Final = logging.getLogger(__name__)

_S = TypeVar("_S", bound=OtlpGrpcSettings | OtlpHttpSettings)


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
        """The outcome of an error that no backend can cause. Waiting does not help, so it is `Blocked`.

        Only too little memory counts as HTTP 500 does: parts of the batch are tried, and the rest later.
        """
        if isinstance(error, MemoryError):
            return RetryLater(TOO_LITTLE_MEMORY, may_be_data=True)
        # Not the error itself, which may quote a header.
        frames = "".join(format_tb(error.__traceback__))
        _logger.debug("%s: unexpected error of the %s library:\n%s", self._name, self._protocol, frames)
        reason = one_line(str(error), self._hide)
        return Blocked(f"unexpected {type(error).__name__} of the {self._protocol} library: {reason}")
