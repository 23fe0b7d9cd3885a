"""What a queue tells of itself, read by the SDK's own reader in a process of its own."""

import json
from pathlib import Path

from tests.exporters.queue.helpers import child, line_of


def test_a_queue_is_watched_from_its_start_to_its_end(tmp_path: Path) -> None:
    """Two exporters, one bounded to two records and away; the other took what was there. Two more were refused."""
    with child("metrics", tmp_path) as process:
        running = json.loads(line_of(process))
        stopped = json.loads(line_of(process))
    assert running == {
        "otelcol_exporter_queue_size": {"bounded logs": 2, "free logs": 0},
        "otelcol_exporter_queue_capacity": {"bounded logs": 2},
        "statsig_otel_queue_oldest_age": {"bounded logs": 90.0},
        "otelcol_exporter_enqueue_failed_log_records": {"bounded": 2, "free": 2},
    }
    assert stopped == {"otelcol_exporter_enqueue_failed_log_records": {"bounded": 2, "free": 2}}
