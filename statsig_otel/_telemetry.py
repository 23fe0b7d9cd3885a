"""Declares every metric of this package: its name, unit and description.

Where the OpenTelemetry Collector has a metric for the same thing, its name is used, so that the Collector's dashboards
work. All other names begin with `statsig_otel_`. Only opentelemetry-api is imported: without a MeterProvider the
instruments do nothing and cost nothing.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from opentelemetry.metrics import CallbackOptions, Observation, get_meter

from statsig_otel import __version__

_meter = get_meter("statsig_otel", __version__)


class ObservedQueue(Protocol):
    """A queue whose metrics are read at each collection. The keys of each mapping are the exporters' ids."""

    def sizes(self) -> Mapping[str, int]:
        """The number of waiting records."""

    def capacities(self) -> Mapping[str, int]:
        """The largest number of waiting records. An exporter that only the disk limits is missing."""

    def ages(self) -> Mapping[str, float]:
        """Seconds since the oldest waiting record was observed. An exporter without waiting records is missing."""


queues: "weakref.WeakSet[ObservedQueue]" = weakref.WeakSet()
"""The queues whose metrics are collected."""


def _observe_queues(
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
    description="Log records that the pipeline accepted. Attributes: receiver, transport.",
)
receiver_refused = _meter.create_counter(
    "otelcol_receiver_refused_log_records",
    unit="{records}",
    description="Log records that the pipeline refused. Attributes: receiver, transport.",
)
exporter_sent = _meter.create_counter(
    "otelcol_exporter_sent_log_records",
    unit="{records}",
    description="Log records that a backend accepted. Attribute: exporter.",
)
exporter_send_failed = _meter.create_counter(
    "otelcol_exporter_send_failed_log_records",
    unit="{records}",
    description="Log records in failed attempts to send. Attribute: exporter.",
)
exporter_enqueue_failed = _meter.create_counter(
    "otelcol_exporter_enqueue_failed_log_records",
    unit="{records}",
    description="Log records that the durable queue refused; their webhooks were refused too. Attribute: exporter.",
)
requests = _meter.create_counter(
    "statsig_otel_receiver_requests",
    unit="{requests}",
    description="Answered webhook requests. Attributes: receiver, status (the HTTP status code), reason.",
)
items_ignored = _meter.create_counter(
    "statsig_otel_receiver_ignored_items",
    unit="{items}",
    description="Verified items that are not a config change, or that the filter drops. Attribute: receiver.",
)
items_invalid = _meter.create_counter(
    "statsig_otel_receiver_invalid_items",
    unit="{items}",
    description="Verified config changes that could not be mapped to a record. Attribute: receiver.",
)
items_duplicate = _meter.create_counter(
    "statsig_otel_receiver_duplicate_items",
    unit="{items}",
    description="Config changes that had been accepted before. Attribute: receiver.",
)
fields_left_out = _meter.create_counter(
    "statsig_otel_receiver_fields_left_out",
    unit="{fields}",
    description="Optional fields left out of a record because of their value's type. Attributes: receiver, field.",
)
timestamps_in_seconds = _meter.create_counter(
    "statsig_otel_receiver_timestamps_in_seconds",
    unit="{items}",
    description="Config changes whose timestamp has ten digits and was read as seconds. Attribute: receiver.",
)
queue_set_aside = _meter.create_counter(
    "statsig_otel_queue_set_aside",
    unit="{files}",
    description="Queue databases that were unusable and were set aside.",
)
queue_recovered = _meter.create_counter(
    "statsig_otel_queue_salvaged_log_records",
    unit="{records}",
    description="Log records recovered from databases that were set aside. Attribute: exporter.",
)
dead_letters = _meter.create_counter(
    "statsig_otel_dead_letters",
    unit="{letters}",
    description="Dead letters written. Attributes: kind (item, body, record, batch, damaged), owner.",
)
_meter.create_observable_gauge(
    "otelcol_exporter_queue_size",
    [_observe_queues(lambda queue: queue.sizes())],
    unit="{records}",
    description="Log records waiting in the durable queue. Attributes: exporter, data_type.",
)
_meter.create_observable_gauge(
    "otelcol_exporter_queue_capacity",
    [_observe_queues(lambda queue: queue.capacities())],
    unit="{records}",
    description="Limit of waiting log records, if queue_size sets one. Attributes: exporter, data_type.",
)
_meter.create_observable_gauge(
    "statsig_otel_queue_oldest_age",
    [_observe_queues(lambda queue: queue.ages())],
    unit="s",
    description="Time since the webhook of the oldest waiting log record arrived. Attributes: exporter, data_type.",
)
