"""Sends the spans of `service::telemetry::traces` as OTLP.

The SDK and all that it needs is loaded here, and so only where spans are sent.
"""

import logging
import os
import threading
from collections.abc import MutableMapping
from typing import Final

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from statsig_otel import _tracing
from statsig_otel._times import READERS_CLOSING
from statsig_otel.config.errors import Fault
from statsig_otel.plugin.settings.traces import TracesSettings
from statsig_otel.plugin.watch.push import make_exporter, own_resource, without_variables

_logger: Final = logging.getLogger(__name__)


class ProcessorError(Exception):
    """A processor can't be started.

    Attributes:
        position: Its position in `processors`.
        fault: Why.
    """

    def __init__(self, position: int, error: OSError | ValueError) -> None:
        super().__init__(str(error))
        self.position: Final = position
        self.fault: Final = Fault(str(error))


class Traces:
    """The processors of a process, between `start` and `shutdown`. They get the spans of everything in it.

    Args:
        settings: Where spans go.
        environ: The environment. The SDK does not see its OTEL_* variables: these are about the records.
    """

    def __init__(self, settings: TracesSettings, environ: MutableMapping[str, str] = os.environ) -> None:
        self._settings = settings
        self._environ = environ
        self._provider: TracerProvider | None = None

    def start(self) -> None:
        """Make spans from now on, and send them.

        Raises:
            ProcessorError: A file can't be read. Nothing is left open.
        """
        with without_variables(self._environ):
            provider = TracerProvider(resource=own_resource(), shutdown_on_exit=False)
            for position, one in self._settings.active.items():
                try:
                    exporter = make_exporter(one.batch.exporter.otlp, "trace")
                except (OSError, ValueError) as error:
                    provider.shutdown()
                    raise ProcessorError(position, error) from error
                batch = one.batch
                provider.add_span_processor(
                    BatchSpanProcessor(
                        exporter,
                        batch.max_queue_size,
                        batch.schedule_delay * 1000,
                        batch.max_export_batch_size,
                        batch.export_timeout * 1000,
                    )
                )
        # A backend that is away is one line for each batch, and not one for each attempt.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
        self._provider = provider
        _tracing.begin(provider)

    def shutdown(self, timeout: float = READERS_CLOSING) -> None:
        """Send the spans that wait, and stop. What hangs is left behind in a daemon thread."""
        provider, self._provider = self._provider, None
        if provider is None:
            return
        _tracing.tracing.tracer = None
        closing = threading.Thread(target=provider.shutdown, name="statsig-otel traces shutdown", daemon=True)
        closing.start()
        closing.join(timeout)
        if closing.is_alive():
            _logger.warning("The last spans could not be sent within %g s", timeout)
