"""The durable queue: webhooks on disk, and a cursor for each exporter."""
