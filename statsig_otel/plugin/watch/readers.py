"""Runs the readers of `service::telemetry::metrics`: Prometheus reads them at an address, or OTLP is sent at intervals.

The SDK and all that it needs is loaded here, and so only where a reader is configured.
"""

import logging
import os
import threading
import time
from collections.abc import MutableMapping
from typing import Final

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader,
    MetricExporter,
    MetricReader,
    PeriodicExportingMetricReader,
)

from statsig_otel import __version__
from statsig_otel._instruments import collecting, make_instruments
from statsig_otel._telemetry import SCOPE
from statsig_otel._times import READERS_CLOSING
from statsig_otel.config.errors import Fault
from statsig_otel.plugin.server.listening import ListenError, host_port
from statsig_otel.plugin.server.server import HttpServer
from statsig_otel.plugin.server.thread import ServerThread
from statsig_otel.plugin.settings.metrics import (
    MetricsSettings,
    PeriodicReaderSettings,
    PrometheusReaderSettings,
)
from statsig_otel.plugin.watch.push import make_exporter, own_resource, without_variables

_logger: Final = logging.getLogger(__name__)

_MOST_CONNECTIONS: Final = 32

PATH: Final = "/metrics"
"""Where Prometheus reads."""


class ReaderError(Exception):
    """A reader can't be started.

    Attributes:
        position: Its position in `readers`.
        fault: Why, and what to do.
    """

    def __init__(self, position: int, error: OSError | ValueError) -> None:
        super().__init__(str(error))
        self.position: Final = position
        self.fault: Final = error.fault if isinstance(error, ListenError) else Fault(str(error))


class Readers:
    """The readers of a process, between `start` and `shutdown`. They collect the metrics of everything in it.

    Args:
        settings: Which readers there are.
        environ: The environment. The exporters of the SDK don't see its OTEL_* variables: these are about the records,
            and may contain the key of another backend.
    """

    def __init__(self, settings: MetricsSettings, environ: MutableMapping[str, str] = os.environ) -> None:
        self._settings = settings
        self._environ = environ
        self._provider: MeterProvider | None = None
        self._threads: list[ServerThread] = []

    @property
    def urls(self) -> list[str]:
        """Where Prometheus can read. Known after `start`."""
        return [f"http://{host_port(*server.address)}{PATH}" for one in self._threads for server in one.servers]

    def start(self) -> None:
        """Listen, and begin to send. If something fails, nothing is left open.

        Raises:
            ReaderError: An address can't be listened on, or a file can't be read.
        """
        pulls: list[tuple[InMemoryMetricReader, HttpServer]] = []
        pushes: list[tuple[PeriodicReaderSettings, MetricExporter]] = []
        for position, one in self._settings.active.items():
            try:
                if one.pull is not None:
                    reader = InMemoryMetricReader()
                    pulls.append((reader, _server(one.pull.exporter.prometheus, reader)))
                if one.periodic is not None:
                    with without_variables(self._environ):
                        pushes.append((one.periodic, make_exporter(one.periodic.exporter.otlp, "metric")))
            except (OSError, ValueError) as error:
                for _, server in pulls:
                    server.stop()
                for _, exporter in pushes:
                    exporter.shutdown()
                raise ReaderError(position, error) from error
        readers: list[MetricReader] = [
            PeriodicExportingMetricReader(exporter, settings.interval * 1000, settings.timeout * 1000)
            for settings, exporter in pushes
        ]
        readers += [reader for reader, _ in pulls]
        # A backend that is away is one line for each report, and not one for each attempt.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
        self._provider = MeterProvider(readers, resource=own_resource(), shutdown_on_exit=False)
        make_instruments(self._provider.get_meter(SCOPE, __version__))
        collecting.has_begun = True
        for _, server in pulls:
            thread = ServerThread([server], name="statsig-otel metrics", effect="Prometheus can't read any more")
            thread.start()
            self._threads.append(thread)

    def shutdown(self, timeout: float = READERS_CLOSING) -> None:
        """Send what the metrics say at the end, and stop. What hangs is left behind in daemon threads."""
        latest = time.monotonic() + timeout
        provider, self._provider = self._provider, None
        if provider is not None:
            closing = threading.Thread(
                target=_close, args=(provider, timeout), name="statsig-otel metrics shutdown", daemon=True
            )
            closing.start()
            closing.join(timeout)
        for thread in self._threads:
            thread.shutdown(max(latest - time.monotonic(), 0.0))
        self._threads = []


def _close(provider: MeterProvider, timeout: float) -> None:
    try:
        provider.shutdown(timeout * 1000)
    except Exception:  # noqa: BLE001 - the SDK's own, with what each of its readers has raised
        _logger.warning("The last metrics could not be sent within %g s", timeout)


def _server(settings: PrometheusReaderSettings, reader: InMemoryMetricReader) -> HttpServer:
    """A server that is bound.

    Raises:
        ListenError: The address can't be listened on.
    """
    from statsig_otel.plugin.watch.prometheus import Scrapes, create_app  # noqa: PLC0415 - loaded where it is used

    server = HttpServer(
        create_app(PATH, Scrapes(reader)),
        host=settings.host,
        port=settings.port,
        max_connections=_MOST_CONNECTIONS,
        takes_webhooks=False,
    )
    server.bind()
    return server
