"""Takes records to backends: the protocols `Consumer` and `Exporter`, the queue between them, and the exporters.

The public names, each loaded when it is first used:

- Everyday: the settings of each exporter, with `ClientTlsSettings`; `QueueError` and `DirectoryInUseError`, which a
  service raises.
- Extending: `Consumer` with `Batch`, `Change`, `Invalid`, `Arrival`, `Receipt` and `RefusedError`;
  `Exporter` with its outcomes and `log_records`, and `ExporterType` for an exporter that a configuration file can name.
  `LoggerProviderConsumer` is a consumer.

The modules below are private, though `help` lists them: import from this package.
"""

from typing import TYPE_CHECKING

from statsig_otel._lazy import exports

if TYPE_CHECKING:
    from statsig_otel.exporters.arrival import Arrival as Arrival
    from statsig_otel.exporters.consumer import Batch as Batch
    from statsig_otel.exporters.consumer import Change as Change
    from statsig_otel.exporters.consumer import Consumer as Consumer
    from statsig_otel.exporters.consumer import Invalid as Invalid
    from statsig_otel.exporters.consumer import Receipt as Receipt
    from statsig_otel.exporters.consumer import RefusedError as RefusedError
    from statsig_otel.exporters.decoding import log_records as log_records
    from statsig_otel.exporters.exporter import Blocked as Blocked
    from statsig_otel.exporters.exporter import Delivered as Delivered
    from statsig_otel.exporters.exporter import Exporter as Exporter
    from statsig_otel.exporters.exporter import Outcome as Outcome
    from statsig_otel.exporters.exporter import PartiallyRejected as PartiallyRejected
    from statsig_otel.exporters.exporter import Rejected as Rejected
    from statsig_otel.exporters.exporter import RetryLater as RetryLater
    from statsig_otel.exporters.exporter_type import ExporterType as ExporterType
    from statsig_otel.exporters.kafka.settings import KafkaSettings as KafkaSettings
    from statsig_otel.exporters.local.debug import DebugSettings as DebugSettings
    from statsig_otel.exporters.local.file import FileSettings as FileSettings
    from statsig_otel.exporters.local.logger_provider import LoggerProviderConsumer as LoggerProviderConsumer
    from statsig_otel.exporters.network.tls import ClientTlsSettings as ClientTlsSettings
    from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings as OtlpGrpcSettings
    from statsig_otel.exporters.otlp.settings import OtlpHttpSettings as OtlpHttpSettings
    from statsig_otel.exporters.queue.errors import DirectoryInUseError as DirectoryInUseError
    from statsig_otel.exporters.queue.errors import QueueError as QueueError
else:  # type checkers would accept any name of a module with __getattr__
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "arrival": "Arrival",
            "consumer": "Batch Change Consumer Invalid Receipt RefusedError",
            "exporter": "Blocked Delivered Exporter Outcome PartiallyRejected Rejected RetryLater",
            "exporter_type": "ExporterType",
            "kafka.settings": "KafkaSettings",
            "local.debug": "DebugSettings",
            "local.file": "FileSettings",
            "local.logger_provider": "LoggerProviderConsumer",
            "network.tls": "ClientTlsSettings",
            "otlp.settings": "OtlpGrpcSettings OtlpHttpSettings",
            "decoding": "log_records",
            "queue.errors": "DirectoryInUseError QueueError",
        },
    )
