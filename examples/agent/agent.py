"""A small telemetry agent that reports its host's metrics, receives Statsig's webhooks, and sends both over OTLP.

The metrics go through the OpenTelemetry SDK, and so do the plugin's own metrics. The changes go through a durable queue
instead of the SDK's memory, so that a change that was answered with 200 is sent even after a restart.
"""

import argparse
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import CallbackOptions, Meter, Observation, set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from statsig_otel import Service
from statsig_otel.config import ConfigError
from statsig_otel.exporters import QueueError

ENDS = {signal.SIGTERM, signal.SIGINT}

_logger = logging.getLogger("agent")


def main() -> None:
    """Run until SIGTERM or Ctrl-C."""
    options = read_options()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # Block the signals before any thread starts. With a handler, a signal just before the wait could be missed.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    provider = report_metrics(options.otlp_endpoint)
    try:
        with create_service(options) as service:
            for url in service.urls.values():
                print(f"Webhook URL: {url}", flush=True)
            signal.sigwait(ENDS)
            # Leaving the block finishes the webhooks in flight, and sends waiting records for a few seconds.
    except (ConfigError, QueueError, OSError, ValueError) as error:
        sys.exit(f"agent: {error}")
    finally:
        provider.shutdown()  # after the service, so that its last metrics are sent
    _logger.info("Stopped")


def read_options() -> argparse.Namespace:
    """Read the command line. The endpoint's default is OpenTelemetry's environment variable."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    parser.add_argument("--otlp-endpoint", default=default, help="OTLP/HTTP endpoint [%(default)s]")
    parser.add_argument("--listen", default="localhost:8080", help="address for webhooks [%(default)s]")
    parser.add_argument("--directory", type=Path, default=Path("agent-queue"), help="the queue's [%(default)s]")
    return parser.parse_args()


def create_service(options: argparse.Namespace) -> Service:
    """Create the plugin's service without opening anything.

    Raises:
        ConfigError: An option can't be used.
    """
    secret = os.environ.get("STATSIG_SIGNING_SECRET")  # without a secret, only Statsig's URL verification is answered
    return Service(
        receivers={"statsig": {"endpoint": options.listen, "signing_secrets": [secret] if secret else []}},
        exporters={"otlp_http": {"endpoint": options.otlp_endpoint}},
        directory=options.directory,
        environ=os.environ,  # so that OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME apply to the changes too
    )


def report_metrics(endpoint: str) -> MeterProvider:
    """Start to send the host's metrics every OTEL_METRIC_EXPORT_INTERVAL milliseconds."""
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=f"{endpoint.rstrip('/')}/v1/metrics"))
    resource = Resource.create({"service.name": "agent"})
    provider = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)
    set_meter_provider(provider)  # the plugin reports its own metrics through it
    watch_host(provider.get_meter("agent"))
    return provider


def watch_host(meter: Meter) -> None:
    """Observe the host. The names are those of the semantic conventions and of the Collector's hostmetrics."""

    def load_average(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(os.getloadavg()[0])

    def filesystem_usage(_: CallbackOptions) -> Iterable[Observation]:
        usage = shutil.disk_usage("/")
        for state, size in (("used", usage.used), ("free", usage.free)):
            yield Observation(size, {"system.filesystem.mountpoint": "/", "system.filesystem.state": state})

    def memory_limit(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))

    meter.create_observable_gauge("system.cpu.load_average.1m", [load_average], "{thread}")
    meter.create_observable_up_down_counter("system.filesystem.usage", [filesystem_usage], "By")
    meter.create_observable_up_down_counter("system.memory.limit", [memory_limit], "By")


if __name__ == "__main__":
    main()
