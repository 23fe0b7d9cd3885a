"""Writes the metrics in the formats of Prometheus, and serves them at /metrics.

prometheus_client writes the formats. The OpenTelemetry exporter for Prometheus is not used: it is a beta whose labels
have changed with a version, its older versions repeat HELP lines, and it asks for the newest SDK.
"""

import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, Final, cast

import falcon.asgi
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, MetricsData, NumberDataPoint
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from statsig_otel import _instruments
from statsig_otel.plugin.server.asgi_types import AsgiApp
from statsig_otel.plugin.server.exchange import without_body

_REST: Final = 9
"""Between two collections there is nine times the time that the first one took: scrapes can't keep a processor busy."""

_OPENMETRICS: Final = "application/openmetrics-text;version=1.0.0"
_UNITS: Final = {"s": "seconds", "By": "bytes"}


def families(data: MetricsData | None) -> Iterator[Family]:
    """What was collected, as prometheus_client has it."""
    for of_resource in data.resource_metrics if data is not None else ():
        labels = {key.replace(".", "_"): str(value) for key, value in of_resource.resource.attributes.items()}
        yield InfoMetricFamily("target", "The service that these metrics are about.", value=labels)
        for scope in of_resource.scope_metrics:
            for metric in scope.metrics:
                yield _family(_instruments.METRICS[metric.name], metric.data.data_points)


def _family(metric: _instruments.Metric, points: Any) -> Family:
    name, text, labels = metric.prometheus_name, metric.description, metric.attributes
    unit = _UNITS.get(metric.unit, "")
    match metric.kind:
        case "counter":
            counter = CounterMetricFamily(name, text, labels=labels, unit=unit)
            for point in points:
                counter.add_metric(_values(metric, point), point.value)
            return counter
        case "gauge":
            gauge = GaugeMetricFamily(name, text, labels=labels, unit=unit)
            for point in points:
                gauge.add_metric(_values(metric, point), point.value)
            return gauge
        case "histogram":
            histogram = HistogramMetricFamily(name, text, labels=labels, unit=unit)
            for point in points:
                histogram.add_metric(_values(metric, point), list(_buckets(point)), sum_value=point.sum)
            return histogram


def _values(metric: _instruments.Metric, point: NumberDataPoint | HistogramDataPoint) -> list[str]:
    return [str((point.attributes or {})[name]) for name in metric.attributes]


def _buckets(point: HistogramDataPoint) -> Iterator[tuple[str, float]]:
    """The upper limit of each bucket, and how many values are not above it."""
    total = 0
    for limit, number in zip((*point.explicit_bounds, "+Inf"), point.bucket_counts, strict=True):
        total += number
        yield str(limit), total


class Scrapes:
    """What Prometheus gets. It is made again only after a rest, so that scrapes can't cost much."""

    def __init__(self, reader: InMemoryMetricReader, clock: Callable[[], float] = time.monotonic) -> None:
        self._reader = reader
        self._clock = clock
        self._lock = threading.Lock()
        self._families: list[Family] = []
        self._made: dict[str, bytes] = {}  # of these, by the type of their content
        self._next_at = 0.0

    def collect(self) -> list[Family]:
        """What was collected last, for the encoders of prometheus_client."""
        return self._families

    def answer(self, accept: str) -> tuple[str, bytes]:
        """What the metrics say now, or said a moment ago, and the type of that content.

        Args:
            accept: The types that a scraper accepts, as in the header.
        """
        encode, type_ = choose_encoder(_OPENMETRICS if "application/openmetrics-text" in accept else "")
        with self._lock:
            began = self._clock()
            if began >= self._next_at:
                self._made = {}
                self._families = list(families(self._reader.get_metrics_data()))
            if type_ not in self._made:
                self._made[type_] = encode(cast("Collector", self))
                ended = self._clock()
                self._next_at = max(self._next_at, ended + (ended - began) * _REST)
            return type_, self._made[type_]


class _Resource:
    def __init__(self, scrapes: Scrapes) -> None:
        self._scrapes = scrapes

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.content_type, resp.data = self._scrapes.answer(req.get_header("Accept") or "")

    on_head = on_get


def create_app(path: str, scrapes: Scrapes) -> AsgiApp:
    """The application that answers Prometheus. It blocks its event loop, which has to be its own."""

    def serialize_error(_: falcon.asgi.Request, resp: falcon.asgi.Response, error: falcon.HTTPError) -> None:
        resp.content_type = falcon.MEDIA_TEXT
        is_nowhere = error.status_code == HTTPStatus.NOT_FOUND
        resp.text = f"the metrics are at {path}\n" if is_nowhere else f"{error.status}\n"

    app = falcon.asgi.App()
    app.add_route(path, _Resource(scrapes))
    app.set_error_serializer(serialize_error)
    return without_body(app)
