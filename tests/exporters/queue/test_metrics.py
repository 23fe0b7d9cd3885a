"""What a queue tells of itself, read by the SDK's own reader in a process of its own."""

import json
from pathlib import Path

from tests.exporters.queue.helpers import child, line_of

DEAD_LETTERS = ["item statsig", "body statsig"] + [
    f"{kind} {exporter}" for kind in ("record", "batch", "damaged") for exporter in ("bounded", "free")
]


def test_a_queue_is_watched_from_its_start_to_its_end(tmp_path: Path) -> None:
    """Two exporters, one bounded to two records and away; the other took what was there. Two more were refused."""
    with child("metrics", tmp_path) as process:
        running = json.loads(line_of(process))
        stopped = json.loads(line_of(process))
    ours = {name: running[name] for name in running if "disk" not in name}
    assert ours == {
        "statsig_otel_dead_letters": dict.fromkeys(DEAD_LETTERS, 0),
        "statsig_otel_dead_letters_held": dict.fromkeys(DEAD_LETTERS, 0),
        "statsig_otel_queue_set_aside": {"": 0},
        "statsig_otel_queue_salvaged_log_records": {"bounded": 0, "free": 0},
        "otelcol_exporter_queue_size": {"bounded logs": 2, "free logs": 0},
        "otelcol_exporter_queue_capacity": {"bounded logs": 2},
        "statsig_otel_queue_oldest_age": {"bounded logs": 90.0},
        "otelcol_exporter_enqueue_failed_log_records": {"bounded": 2, "free": 2},
    }
    assert {*running} - {*stopped} == {
        "otelcol_exporter_queue_size",
        "otelcol_exporter_queue_capacity",
        "statsig_otel_queue_oldest_age",
        "statsig_otel_dead_letters_held",
        "statsig_otel_queue_disk_free",
        "statsig_otel_queue_disk_min_free",
    }
    assert stopped["otelcol_exporter_enqueue_failed_log_records"] == {"bounded": 2, "free": 2}
