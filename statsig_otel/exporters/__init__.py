"""From a record to a backend: the seams `Consumer` and `Exporter`, outcomes, and the exporters themselves.

Names are loaded when they are first used, so that importing this package loads neither grpc nor an HTTP client.
"""

from typing import TYPE_CHECKING

from statsig_otel._lazy import exports

if TYPE_CHECKING:
    from statsig_otel.exporters.consumer import Batch as Batch
    from statsig_otel.exporters.consumer import Change as Change
    from statsig_otel.exporters.consumer import Consumer as Consumer
    from statsig_otel.exporters.consumer import Invalid as Invalid
    from statsig_otel.exporters.consumer import Receipt as Receipt
    from statsig_otel.exporters.consumer import RefusedError as RefusedError
    from statsig_otel.exporters.debug import DebugExporter as DebugExporter
    from statsig_otel.exporters.debug import DebugSettings as DebugSettings
    from statsig_otel.exporters.exporter import Exporter as Exporter
    from statsig_otel.exporters.exporter_type import ExporterType as ExporterType
    from statsig_otel.exporters.file import FileExporter as FileExporter
    from statsig_otel.exporters.file import FileSettings as FileSettings
    from statsig_otel.exporters.logger_provider import LoggerProviderConsumer as LoggerProviderConsumer
    from statsig_otel.exporters.otlp_grpc import OtlpGrpcExporter as OtlpGrpcExporter
    from statsig_otel.exporters.otlp_http import OtlpHttpExporter as OtlpHttpExporter
    from statsig_otel.exporters.otlp_settings import ClientTlsSettings as ClientTlsSettings
    from statsig_otel.exporters.otlp_settings import GrpcTlsSettings as GrpcTlsSettings
    from statsig_otel.exporters.otlp_settings import KeepaliveSettings as KeepaliveSettings
    from statsig_otel.exporters.otlp_settings import OtlpGrpcSettings as OtlpGrpcSettings
    from statsig_otel.exporters.otlp_settings import OtlpHttpSettings as OtlpHttpSettings
    from statsig_otel.exporters.outcome import Blocked as Blocked
    from statsig_otel.exporters.outcome import Delivered as Delivered
    from statsig_otel.exporters.outcome import Outcome as Outcome
    from statsig_otel.exporters.outcome import PartiallyRejected as PartiallyRejected
    from statsig_otel.exporters.outcome import Rejected as Rejected
    from statsig_otel.exporters.outcome import RetryLater as RetryLater
    from statsig_otel.exporters.queue.directory import DirectoryInUseError as DirectoryInUseError
    from statsig_otel.exporters.queue.errors import QueueError as QueueError
    from statsig_otel.exporters.synchronous import Route as Route
    from statsig_otel.exporters.synchronous import SynchronousConsumer as SynchronousConsumer
else:  # a checker would take whatever name for one that there is
    __getattr__, __dir__ = exports(
        __name__,
        {
            "Batch": "consumer",
            "Blocked": "outcome",
            "Change": "consumer",
            "ClientTlsSettings": "otlp_settings",
            "Consumer": "consumer",
            "DebugExporter": "debug",
            "DebugSettings": "debug",
            "Delivered": "outcome",
            "DirectoryInUseError": "queue.directory",
            "Exporter": "exporter",
            "ExporterType": "exporter_type",
            "FileExporter": "file",
            "FileSettings": "file",
            "GrpcTlsSettings": "otlp_settings",
            "Invalid": "consumer",
            "KeepaliveSettings": "otlp_settings",
            "LoggerProviderConsumer": "logger_provider",
            "OtlpGrpcExporter": "otlp_grpc",
            "OtlpGrpcSettings": "otlp_settings",
            "OtlpHttpExporter": "otlp_http",
            "OtlpHttpSettings": "otlp_settings",
            "Outcome": "outcome",
            "PartiallyRejected": "outcome",
            "QueueError": "queue.errors",
            "Receipt": "consumer",
            "RefusedError": "consumer",
            "Rejected": "outcome",
            "RetryLater": "outcome",
            "Route": "synchronous",
            "SynchronousConsumer": "synchronous",
        },
    )
