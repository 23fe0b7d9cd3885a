"""Delivers records to backends: the interfaces `Consumer` and `Exporter`, the outcomes, and the exporters.

Names are loaded on first use, so that importing this package loads neither grpc nor an HTTP client.
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
    from statsig_otel.exporters.delivery.synchronous import SynchronousConsumer as SynchronousConsumer
    from statsig_otel.exporters.delivery.synchronous import SynchronousExporter as SynchronousExporter
    from statsig_otel.exporters.exporter import Blocked as Blocked
    from statsig_otel.exporters.exporter import Delivered as Delivered
    from statsig_otel.exporters.exporter import Exporter as Exporter
    from statsig_otel.exporters.exporter import Outcome as Outcome
    from statsig_otel.exporters.exporter import PartiallyRejected as PartiallyRejected
    from statsig_otel.exporters.exporter import Rejected as Rejected
    from statsig_otel.exporters.exporter import RetryLater as RetryLater
    from statsig_otel.exporters.exporter_type import ExporterType as ExporterType
    from statsig_otel.exporters.local.debug import DebugExporter as DebugExporter
    from statsig_otel.exporters.local.debug import DebugSettings as DebugSettings
    from statsig_otel.exporters.local.file import FileExporter as FileExporter
    from statsig_otel.exporters.local.file import FileSettings as FileSettings
    from statsig_otel.exporters.local.logger_provider import LoggerProviderConsumer as LoggerProviderConsumer
    from statsig_otel.exporters.otlp.grpc import OtlpGrpcExporter as OtlpGrpcExporter
    from statsig_otel.exporters.otlp.http import OtlpHttpExporter as OtlpHttpExporter
    from statsig_otel.exporters.otlp.settings import KeepaliveSettings as KeepaliveSettings
    from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings as OtlpGrpcSettings
    from statsig_otel.exporters.otlp.settings import OtlpHttpSettings as OtlpHttpSettings
    from statsig_otel.exporters.otlp.tls import ClientTlsSettings as ClientTlsSettings
    from statsig_otel.exporters.otlp.tls import GrpcTlsSettings as GrpcTlsSettings
    from statsig_otel.exporters.queue.directory import DirectoryInUseError as DirectoryInUseError
    from statsig_otel.exporters.queue.errors import QueueError as QueueError
else:  # type checkers would otherwise accept any name
    __getattr__, __dir__ = exports(
        __name__,
        {
            "Batch": "consumer",
            "Blocked": "exporter",
            "Change": "consumer",
            "ClientTlsSettings": "otlp.tls",
            "Consumer": "consumer",
            "DebugExporter": "local.debug",
            "DebugSettings": "local.debug",
            "Delivered": "exporter",
            "DirectoryInUseError": "queue.directory",
            "Exporter": "exporter",
            "ExporterType": "exporter_type",
            "FileExporter": "local.file",
            "FileSettings": "local.file",
            "GrpcTlsSettings": "otlp.tls",
            "Invalid": "consumer",
            "KeepaliveSettings": "otlp.settings",
            "LoggerProviderConsumer": "local.logger_provider",
            "OtlpGrpcExporter": "otlp.grpc",
            "OtlpGrpcSettings": "otlp.settings",
            "OtlpHttpExporter": "otlp.http",
            "OtlpHttpSettings": "otlp.settings",
            "Outcome": "exporter",
            "PartiallyRejected": "exporter",
            "QueueError": "queue.errors",
            "Receipt": "consumer",
            "RefusedError": "consumer",
            "Rejected": "exporter",
            "RetryLater": "exporter",
            "SynchronousExporter": "delivery.synchronous",
            "SynchronousConsumer": "delivery.synchronous",
        },
    )
