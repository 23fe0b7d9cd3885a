"""The settings of receivers, exporters, storage and telemetry that a user may write."""
