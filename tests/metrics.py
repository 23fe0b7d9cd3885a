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
        self.reader = reader

    def all(self) -> dict[str, Metric]:
        data = self.reader.get_metrics_data()
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
    """Collect within the block."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with forgotten():
        make_instruments(provider.get_meter("tests"))
        collecting.has_begun = True
        yield Collected(reader)
        provider.shutdown()


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """At the end of the block, forget the meters that it has added."""
    histograms = [metric for metric in METRICS.values() if isinstance(metric, Distribution)]
    numbers = [len(metric._instruments) for metric in histograms]
    try:
        yield
    finally:
        collecting.has_begun = False
        for metric, number in zip(histograms, numbers, strict=True):
            del metric._instruments[number:]
            metric.record = metric._instruments[0].record if number == 1 else metric._record_all
