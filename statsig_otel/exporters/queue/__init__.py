"""The durable queue: records on disk, and a cursor for each exporter."""
