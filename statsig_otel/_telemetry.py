"""Every instrument of this package and its name, declared once.

The names are the OpenTelemetry Collector's where it has one for the same thing, so that dashboards made for it work;
all others begin with `statsig_otel_`. Only opentelemetry-api is used: without a MeterProvider nothing is counted and
nothing is paid for.
"""

from opentelemetry.metrics import get_meter

from statsig_otel import __version__

_meter = get_meter("statsig_otel", __version__)

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
    description="Databases of the queue that could not be read and were set aside.",
)
dead_letters = _meter.create_counter(
    "statsig_otel_dead_letters",
    unit="{letters}",
    description="Dead letters that were written. Attributes: kind (item, body, record, batch), owner.",
)
