"""Emits records through an OpenTelemetry LoggerProvider: the embedding program's, or the global one.

The log modules of the OpenTelemetry API and SDK are still private (`_logs`). Only this module imports them.
"""

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Final, TypeAlias

from opentelemetry._logs import Logger, LoggerProvider, LogRecord, NoOpLogger, SeverityNumber, get_logger_provider
from opentelemetry._logs._internal import ProxyLogger
from opentelemetry.context import Context
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.trace import INVALID_SPAN, set_span_in_context
from opentelemetry.util.types import AnyValue

from statsig_otel._arguments import check_type, mistyped
from statsig_otel._futures import answered, failed
from statsig_otel.exporters.consumer import Batch, Receipt, RefusedError, log_invalid, refused

_logger: Final = logging.getLogger(__name__)

_NO_SPAN: Final = set_span_in_context(INVALID_SPAN, Context())
"""A change belongs to no trace, and certainly not to that of the request that reports it. An empty context would not
prevent that, because the SDK replaces it by the current one."""

_Emission: TypeAlias = tuple[Logger, LogRecord]


class LoggerProviderConsumer:
    """Emits each record as an event through a LoggerProvider, with its processors and exporters.

    The event has the record's event name, timestamps, severity, body, attributes (including `log.record.uid`) and
    instrumentation scope. The resource is the provider's; the resource of a receiver or an encoder does not apply. The
    provider's limits for attributes apply, and its processors may change or drop a record.

    **Nothing here is durable.** The receipt, and so a 200, only means that the processors received the records. A batch
    processor loses its records if the process ends, if its queue is full, or if its exporter gives up. Duplicates are
    not recognised: a redelivery is emitted again, with the same uid. Invalid items are only logged. If you need more,
    use the durable queue instead.

    The consumer has no thread and no state. The processors run in the caller's thread, which under ASGI is that of the
    event loop. Use a batch processor there, as `opentelemetry-instrument` does: a simple processor would block the loop
    until each record is sent. Stop the server before the provider: a provider that was shut down drops records.

    Args:
        provider: The provider. With None the global provider is looked up for each batch, so it may be set later.
        show_invalid: Whether the log shows the content of invalid items. Use False if users are hashed or left out; the
            log then shows only the size.

    Raises:
        TypeError: The provider is not a LoggerProvider.

    Example:
        >>> from opentelemetry.sdk._logs import LoggerProvider
        >>> from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
        >>> from statsig_otel.plugin import Mapper, parse
        >>> exporter, provider = InMemoryLogRecordExporter(), LoggerProvider()
        >>> provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
        >>> body = b'''{"data": [{"eventName": "statsig::config_change", "timestamp": 1739400185198,
        ...     "metadata": {"type": "Gate", "name": "layout_v2", "action": "updated"}}]}'''
        >>> mapped = Mapper().map(parse(body), observed_ns=1739400185400000000)
        >>> consumer = LoggerProviderConsumer(provider)
        >>> consumer.consume(Batch("statsig", mapped.changes, mapped.invalid)).result()
        Receipt(accepted=1, duplicates=0)
        >>> exporter.get_finished_logs()[0].log_record.event_name
        'statsig.config_change'
    """

    def __init__(self, provider: LoggerProvider | None = None, *, show_invalid: bool = True) -> None:
        if provider is not None and not callable(getattr(provider, "get_logger", None)):
            raise TypeError(mistyped("provider", provider, "a LoggerProvider"))
        self._provider = provider
        self._show_invalid = show_invalid

    def consume(self, batch: Batch) -> Future[Receipt]:
        """Emit the records of a batch. The future is done when this returns.

        The future fails with `RefusedError` if there is no provider, if none of its processors accepts such events, or
        if a processor raises. In the last case some records may have been emitted, and are emitted again by a
        redelivery.

        Args:
            batch: The changes and invalid items of one request.

        Raises:
            TypeError: It is not a `Batch`.
        """
        check_type("batch", batch, Batch)
        log_invalid(_logger, batch, hidden=not self._show_invalid)
        try:
            self._emit(batch)
        except RefusedError as error:
            return failed(error)
        except Exception as error:  # noqa: BLE001 - a processor may raise anything
            return refused(f"a processor of the LoggerProvider failed: {error!r}", reason="logger_provider_failed")
        return answered(Receipt(accepted=len(batch.changes)))

    def _emit(self, batch: Batch) -> None:
        provider = self._provider or get_logger_provider()
        encoded = (record for change in batch.changes for record in change.records)
        emissions = [emission for record in encoded for emission in _emissions(provider, record)]
        for logger, record in emissions:
            if not _is_enabled(logger, record):
                message = "no LoggerProvider is set, it is disabled, or none of its processors accepts the events"
                raise RefusedError(message, reason="no_logger_provider")
        for logger, record in emissions:
            logger.emit(record)


def _emissions(provider: LoggerProvider, encoded: bytes) -> Iterator[_Emission]:
    """The log records in one encoded request, each with the logger of its scope."""
    request = logs_service_pb2.ExportLogsServiceRequest.FromString(encoded)
    for resource_logs in request.resource_logs:
        for scope_logs in resource_logs.scope_logs:
            scope = scope_logs.scope
            logger = provider.get_logger(scope.name, scope.version or None, scope_logs.schema_url or None)
            for record in scope_logs.log_records:
                yield logger, _log_record(record)


def _log_record(record: logs_pb2.LogRecord) -> LogRecord:
    return LogRecord(
        timestamp=record.time_unix_nano,
        observed_timestamp=record.observed_time_unix_nano,
        context=_NO_SPAN,
        severity_text=record.severity_text or None,
        severity_number=SeverityNumber(record.severity_number),
        body=_value(record.body),
        attributes=_mapping(record.attributes),
        event_name=record.event_name,
    )


def _is_enabled(logger: Logger, record: LogRecord) -> bool:
    """Whether the logger passes the record on, as far as the API can tell."""
    if isinstance(logger, NoOpLogger | ProxyLogger):  # the API returns a proxy until a provider is set
        return False
    if not hasattr(logger, "enabled"):  # older versions of the API lack the method
        return True
    return logger.enabled(context=record.context, severity_number=record.severity_number, event_name=record.event_name)


def _mapping(attributes: Iterable[common_pb2.KeyValue]) -> dict[str, AnyValue]:
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _value(value: common_pb2.AnyValue) -> AnyValue:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(element) for element in value.array_value.values]
    if kind == "kvlist_value":
        return _mapping(value.kvlist_value.values)
    found: str | bool | int | float | bytes = getattr(value, kind)
    return found
