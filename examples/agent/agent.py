"""A small telemetry agent: reports its host's metrics, takes Statsig's webhooks beside them, sends both over OTLP.

The metrics go through the OpenTelemetry SDK. The changes go through a durable queue: what was answered with 200 is sent
after a restart, too, and the SDK's memory is not in its way. The plugin's own metrics are among the host's.
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

from statsig_otel.config import ConfigError, Opaque
from statsig_otel.exporters import OtlpHttpSettings, QueueError
from statsig_otel.plugin import Service, StatsigReceiverSettings

ENDS = {signal.SIGTERM, signal.SIGINT}

_logger = logging.getLogger("agent")


def main() -> None:
    """Run until SIGTERM or Ctrl-C."""
    options = read_options()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # Before there is another thread. A handler that sets an event could run just before the wait for it, and be missed.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    provider = report_metrics(options.otlp_endpoint)
    try:
        with create_service(options) as service:
            for url in service.urls.values():
                print(f"Webhook URL: {url}", flush=True)
            signal.sigwait(ENDS)
            # The end of the block finishes the webhooks in flight, and sends what waits for a few seconds.
    except (ConfigError, QueueError, OSError, ValueError) as error:
        sys.exit(f"agent: {error}")
    finally:
        provider.shutdown()  # after the service, whose last figures it sends
    _logger.info("Stopped")


def read_options() -> argparse.Namespace:
    """The command line; the environment has the endpoint where OpenTelemetry looks for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    parser.add_argument("--otlp-endpoint", default=default, help="where OTLP over HTTP is taken [%(default)s]")
    parser.add_argument("--listen", default="localhost:8080", help="where webhooks come in [%(default)s]")
    parser.add_argument("--directory", type=Path, default=Path("agent-queue"), help="of the queue [%(default)s]")
    return parser.parse_args()


def create_service(options: argparse.Namespace) -> Service:
    """The plugin. Nothing is opened yet.

    Raises:
        ConfigError: An option can't be used.
    """
    secret = os.environ.get("STATSIG_SIGNING_SECRET")  # without one it answers Statsig's URL verification only
    receiver = StatsigReceiverSettings(endpoint=options.listen, signing_secrets=[Opaque(secret)] if secret else [])
    return Service(
        receivers={"statsig": receiver},
        exporters={"otlp_http": OtlpHttpSettings(endpoint=options.otlp_endpoint)},
        directory=options.directory,
        environ=os.environ,  # OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME count for the changes, too
    )


def report_metrics(endpoint: str) -> MeterProvider:
    """Send the host's metrics from now on, every OTEL_METRIC_EXPORT_INTERVAL milliseconds."""
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=f"{endpoint.rstrip('/')}/v1/metrics"))
    resource = Resource.create({"service.name": "agent"})
    provider = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)
    set_meter_provider(provider)  # by which the plugin's own metrics are reported
    watch_host(provider.get_meter("agent"))
    return provider


def watch_host(meter: Meter) -> None:
    """Observe the host; the names are those of the semantic conventions, and of the Collector's hostmetrics."""

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
