"""How old what waits is: for the commands, and for the gauge."""

import sqlite3

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel.exporters.queue import queries


def oldest_observed_ns(connection: sqlite3.Connection, place: queries.ExporterState) -> int | None:
    """When the first record that waits for an exporter was observed, in nanoseconds; None where it can't be told."""
    if place.waiting <= 0:
        return None
    routes = queries.routes_of(connection, place.id)
    for stored in queries.read_records(connection, routes, after=place.cursor, count=1, size=0):
        if not stored.intact:
            return None
        try:
            request = ExportLogsServiceRequest.FromString(stored.payload)
            return request.resource_logs[0].scope_logs[0].log_records[0].observed_time_unix_nano or None
        except (DecodeError, IndexError):
            return None
    return None
