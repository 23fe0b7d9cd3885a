"""A consumer that hands records to an OpenTelemetry LoggerProvider: the embedder's own, or the global one.

The API's and the SDK's log names are private still (`_logs`): this is the only module that touches them.
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

from statsig_otel.exporters.consumer import Batch, Receipt, RefusedError, log_invalid

_logger: Final = logging.getLogger(__name__)

_NO_SPAN: Final = set_span_in_context(INVALID_SPAN, Context())
"""A change belongs to no trace; least of all to that of the request which reports it. An empty context would not do: it
is taken for none, and the current one is used."""

_Emission: TypeAlias = tuple[Logger, LogRecord]


class LoggerProviderConsumer:
    """Emits each record as an event through a LoggerProvider, with its processors and exporters.

    The event bears the record's event name, timestamps, severity, body and attributes, `log.record.uid` among them, and
    its instrumentation scope. The resource is the provider's: what a receiver or its encoder sets does not apply. The
    provider's limits for attributes apply too, and its processors may change or drop a record.

    **Nothing is durable here.** The receipt says that the processors have been handed the records; a 200 promises no
    more. What a batch processor holds is lost with the process, and where its queue is full, or its exporter gives up.
    No duplicate is recognised: a redelivery is emitted again, with the same uid. Invalid items are logged, and kept
    nowhere else. Where that is too little, put the durable queue in its place.

    It has no thread and no state: the processors run in the caller's thread, under ASGI that of the event loop. Use a
    batch processor there, as `opentelemetry-instrument` does; a simple one would send each record before anything else
    is served. Stop the server first and the provider after it: a provider that was shut down drops what it is given.

    Args:
        provider: Where the records go. None for the global one, looked up for each batch, so that it may be set later.
        show_invalid: False where users are hashed or left out: of an invalid item the log tells the size alone.

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
        self._provider = provider
        self._show_invalid = show_invalid

    def consume(self, batch: Batch) -> Future[Receipt]:
        """Emit a batch's records. The future is answered when this returns.

        It fails with `RefusedError` where there is no provider, where nothing of the provider takes such events, or
        where a processor raises; in the last case some records may have been emitted, and come again.

        Args:
            batch: What one request brought.
        """
        answer: Future[Receipt] = Future()
        answer.set_running_or_notify_cancel()
        log_invalid(_logger, batch, hidden=not self._show_invalid)
        try:
            self._emit(batch)
        except RefusedError as error:
            answer.set_exception(error)
        except Exception as error:  # noqa: BLE001 - a processor may raise anything
            message = f"a processor of the LoggerProvider failed: {error!r}"
            answer.set_exception(RefusedError(message, reason="logger_provider_failed"))
        else:
            answer.set_result(Receipt(accepted=len(batch.changes)))
        return answer

    def _emit(self, batch: Batch) -> None:
        provider = self._provider or get_logger_provider()
        encoded = (record for change in batch.changes for record in change.records)
        emissions = [emission for record in encoded for emission in _emissions(provider, record)]
        for logger, record in emissions:
            if not _takes(logger, record):
                message = "no LoggerProvider is set up, it is switched off, or none of its processors takes the events"
                raise RefusedError(message, reason="no_logger_provider")
        for logger, record in emissions:
            logger.emit(record)


def _emissions(provider: LoggerProvider, encoded: bytes) -> Iterator[_Emission]:
    """What to emit for one encoded record, each with the logger of its scope."""
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


def _takes(logger: Logger, record: LogRecord) -> bool:
    """Whether the logger leads anywhere, as far as it says."""
    if isinstance(logger, NoOpLogger | ProxyLogger):  # a proxy stands where nobody has set a provider yet
        return False
    if not hasattr(logger, "enabled"):  # older versions of the API can't tell
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
