"""Every instrument of this package and its name, declared once.

The names are the OpenTelemetry Collector's where it has one for the same thing, so that dashboards made for it work;
all others begin with `statsig_otel_`. Only opentelemetry-api is used: without a MeterProvider nothing is counted and
nothing is paid for.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from opentelemetry.metrics import CallbackOptions, Observation, get_meter

from statsig_otel import __version__

_meter = get_meter("statsig_otel", __version__)


class ObservedQueue(Protocol):
    """A queue that is looked at whenever metrics are collected. Each mapping is by the exporter's id."""

    def sizes(self) -> Mapping[str, int]:
        """How many records wait."""

    def capacities(self) -> Mapping[str, int]:
        """How many may wait; nothing for an exporter that only the disk bounds."""

    def ages(self) -> Mapping[str, float]:
        """Seconds since the first record that waits was observed; nothing for an exporter for which none waits."""


queues: "weakref.WeakSet[ObservedQueue]" = weakref.WeakSet()
"""The queues that are looked at."""


def _of_queues(
    read: Callable[[ObservedQueue], Mapping[str, float]],
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        for queue in list(queues):
            for exporter, value in read(queue).items():
                yield Observation(value, {"exporter": exporter, "data_type": "logs"})

    return observe


receiver_accepted = _meter.create_counter(
    "otelcol_receiver_accepted_log_records",
    unit="{records}",
    description="Log records that the pipeline took over. Attributes: receiver, transport.",
)
receiver_refused = _meter.create_counter(
    "otelcol_receiver_refused_log_records",
    unit="{records}",
    description="Log records that the pipeline could not take over. Attributes: receiver, transport.",
)
exporter_sent = _meter.create_counter(
    "otelcol_exporter_sent_log_records",
    unit="{records}",
    description="Log records that a backend took. Attribute: exporter.",
)
exporter_send_failed = _meter.create_counter(
    "otelcol_exporter_send_failed_log_records",
    unit="{records}",
    description="Log records in failed attempts to send. Attribute: exporter.",
)
exporter_enqueue_failed = _meter.create_counter(
    "otelcol_exporter_enqueue_failed_log_records",
    unit="{records}",
    description="Log records that the durable queue refused, and the webhook with them. Attribute: exporter.",
)
requests = _meter.create_counter(
    "statsig_otel_receiver_requests",
    unit="{requests}",
    description="Answered webhook requests. Attributes: receiver, status (the HTTP status code), reason.",
)
items_ignored = _meter.create_counter(
    "statsig_otel_receiver_ignored_items",
    unit="{items}",
    description="Verified items that are no config change. Attribute: receiver.",
)
items_invalid = _meter.create_counter(
    "statsig_otel_receiver_invalid_items",
    unit="{items}",
    description="Verified config changes that no record could be made of. Attribute: receiver.",
)
items_duplicate = _meter.create_counter(
    "statsig_otel_receiver_duplicate_items",
    unit="{items}",
    description="Config changes that had been taken over before. Attribute: receiver.",
)
fields_left_out = _meter.create_counter(
    "statsig_otel_receiver_fields_left_out",
    unit="{fields}",
    description="Optional fields of config changes whose value had an unusable type. Attributes: receiver, field.",
)
queue_set_aside = _meter.create_counter(
    "statsig_otel_queue_set_aside",
    unit="{files}",
    description="Databases of the queue that could not be used any more and were set aside.",
)
queue_salvaged = _meter.create_counter(
    "statsig_otel_queue_salvaged_log_records",
    unit="{records}",
    description="Log records that were carried over from databases that were set aside. Attribute: exporter.",
)
dead_letters = _meter.create_counter(
    "statsig_otel_dead_letters",
    unit="{letters}",
    description="Dead letters that were written. Attributes: kind (item, body, record, batch, damaged), owner.",
)
_meter.create_observable_gauge(
    "otelcol_exporter_queue_size",
    [_of_queues(lambda queue: queue.sizes())],
    unit="{records}",
    description="Log records that wait in the durable queue. Attributes: exporter, data_type.",
)
_meter.create_observable_gauge(
    "otelcol_exporter_queue_capacity",
    [_of_queues(lambda queue: queue.capacities())],
    unit="{records}",
    description="Log records that may wait, where queue_size says so. Attributes: exporter, data_type.",
)
_meter.create_observable_gauge(
    "statsig_otel_queue_oldest_age",
    [_of_queues(lambda queue: queue.ages())],
    unit="s",
    description="Age of the first log record that waits, since its webhook came in. Attributes: exporter, data_type.",
)
