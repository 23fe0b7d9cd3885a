"""Reads the metrics of this process as the SDK collects them, with a MeterProvider of a test's own."""

import contextlib
from collections.abc import Iterator

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric, NumberDataPoint

from statsig_otel import _telemetry  # noqa: F401 - declares the metrics
from statsig_otel._instruments import METRICS, Distribution, collecting, make_instruments


class Collected:
    """Collects what the metrics say now."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        self._reader = reader

    def all(self) -> dict[str, Metric]:
        data = self._reader.get_metrics_data()
        return {
            metric.name: metric
            for of_resource in (data.resource_metrics if data else ())
            for scope in of_resource.scope_metrics
            for metric in scope.metrics
        }

    def numbers(self, name: str, **attributes: str | int) -> dict[tuple[object, ...], float]:
        """The numbers of a metric, by the values of the attributes that are not given."""
        found: dict[tuple[object, ...], float] = {}
        metric = self.all().get(name)
        for point in metric.data.data_points if metric is not None else ():
            assert isinstance(point, NumberDataPoint)
            given = dict(point.attributes or {})
            if attributes.items() <= given.items():
                found[tuple(value for key, value in given.items() if key not in attributes)] = point.value
        return found


@contextlib.contextmanager
def collected() -> Iterator[Collected]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    make_instruments(provider.get_meter("tests"))
    collecting.has_begun = True
    try:
        yield Collected(reader)
    finally:
        provider.shutdown()
        collecting.has_begun = False
        for metric in METRICS.values():
            if isinstance(metric, Distribution):
                metric._instruments.pop()
                metric.record = metric._instruments[0].record
