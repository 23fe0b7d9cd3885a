"""The declaration of a metric, and the instruments that are made of it.

Counters and gauges are observable instruments: they read plain numbers when somebody collects them, so a webhook pays
for no more than an addition. Histograms can't be read in this way. Without a MeterProvider theirs do nothing.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, TypeAlias

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]

Values: TypeAlias = tuple[str | int, ...]
"""The values of a metric's attributes, in the order of their declaration."""

Read: TypeAlias = Callable[[], Iterable[tuple[Values, float]]]
"""Returns the numbers that a metric has now, each with the values of its attributes."""

_SUFFIXES: Final = {"s": "_seconds", "By": "_bytes"}


class Metric:
    """The declaration of one metric.

    Attributes:
        name: The name in OpenTelemetry.
        kind: Whether it only grows, goes up and down, or counts values by their size.
        unit: The unit, as UCUM writes it; a count of things has their name in braces.
        description: One sentence.
        attributes: The names of its attributes.
        boundaries: Of a histogram: the upper limits of its buckets.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        unit: str,
        description: str,
        attributes: Sequence[str] = (),
        *,
        read: Read = lambda: (),
        boundaries: Sequence[float] = (),
    ) -> None:
        self.name: Final = name
        self.kind: Final = kind
        self.unit: Final = unit
        self.description: Final = description
        self.attributes: Final = tuple(attributes)
        self.boundaries: Final = tuple(boundaries)
        self.read: Final = read
        METRICS[name] = self

    @property
    def prometheus_name(self) -> str:
        """The name in Prometheus, by OpenTelemetry's rules: with the unit, and `_total` for a counter."""
        suffix = _SUFFIXES.get(self.unit, "")
        name = self.name if self.name.endswith(suffix) else f"{self.name}{suffix}"
        return f"{name}_total" if self.kind == "counter" else name

    def make(self, meter: Meter) -> None:
        """Make the instrument that a meter reads this metric with."""
        create = meter.create_observable_counter if self.kind == "counter" else meter.create_observable_gauge
        create(self.name, [self._observe], unit=self.unit, description=self.description)

    def _observe(self, _: CallbackOptions) -> Iterator[Observation]:
        collecting.has_begun = True
        for values, number in self.read():
            yield Observation(number, dict(zip(self.attributes, values, strict=True)))


METRICS: Final[dict[str, Metric]] = {}
"""All metrics by name, in the order of their declaration."""


class _Collecting:
    """Whether somebody collects metrics. What only they need, and costs more than an addition, waits for that."""

    has_begun = False


collecting: Final = _Collecting()

_lock = threading.RLock()  # over the numbers of all `Counter`s; re-entrant, for a signal handler


class Counter(Metric):
    """A counter that keeps its numbers itself."""

    def __init__(self, name: str, unit: str, description: str, attributes: Sequence[str] = ()) -> None:
        self._numbers: dict[Values, int] = {}
        super().__init__(name, "counter", unit, description, attributes, read=self._items)

    def _items(self) -> list[tuple[Values, float]]:
        return list(self._numbers.items())

    def add(self, number: int, *values: str | int) -> None:
        """Count something, with the values of its attributes. With 0 a series begins, so that it has a rate."""
        with _lock:
            self._numbers[values] = self._numbers.get(values, 0) + number


class Distribution(Metric):
    """A histogram.

    Attributes:
        record: Takes one value, and its attributes. Not worth a call before `collecting.has_begun`.
    """

    record: Callable[[float, Mapping[str, str]], None]

    def __init__(
        self, name: str, unit: str, description: str, attributes: Sequence[str] = (), *, boundaries: Sequence[float]
    ) -> None:
        super().__init__(name, "histogram", unit, description, attributes, boundaries=boundaries)
        self._instruments: list[Histogram] = []

    def make(self, meter: Meter) -> None:
        """Make the instrument that a meter reads this metric with."""
        made = meter.create_histogram(
            self.name, self.unit, self.description, explicit_bucket_boundaries_advisory=self.boundaries
        )
        self._instruments.append(made)
        self.record = made.record if len(self._instruments) == 1 else self._record_all

    def _record_all(self, value: float, attributes: Mapping[str, str]) -> None:
        for instrument in self._instruments:
            instrument.record(value, attributes)


def make_instruments(meter: Meter) -> None:
    """Make the instruments of all metrics. Each meter collects the same numbers."""
    for metric in METRICS.values():
        metric.make(meter)


def _renew_lock() -> None:
    """Another thread of the parent may hold it, and does not exist in the child."""
    global _lock  # noqa: PLW0603 - a lock can't be reset
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)
