"""Statsig config changes as OpenTelemetry events.

The three floors, each importing only from those below it:

- `statsig_otel.plugin`: from a webhook to a stored record; the service and the command line.
- `statsig_otel.exporters`: from a stored record to a backend.
- `statsig_otel.config`: what the user writes, read and checked.
"""

__version__ = "0.1.0"
