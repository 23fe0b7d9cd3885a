"""`sending_queue` and `retry_on_failure` as the sender takes them."""

from collections.abc import Mapping

from statsig_otel.exporters import DebugSettings
from statsig_otel.plugin import SendingQueueSettings
from statsig_otel.plugin.settings.exporters import BatchSettings, ConfiguredExporter

MIB = 1 << 20


def limits(queue: SendingQueueSettings | Mapping[str, object]) -> tuple[int, int]:
    """The most records and the most bytes of one request."""
    exporter = ConfiguredExporter.model_validate({"settings": DebugSettings(), "sending_queue": queue})
    return exporter.delivery().max_records, exporter.delivery().max_bytes


def test_a_batch_is_limited_by_records_or_by_bytes() -> None:
    assert limits({}) == (512, 2 * MIB)
    assert limits({"batch": {}}) == (512, 2 * MIB)
    assert limits({"batch": {"max_size": 10}}) == (10, 2 * MIB)
    assert limits({"batch": {"sizer": "bytes"}}) == (100_000, 2 * MIB)
    assert limits({"batch": {"sizer": "bytes", "max_size": "4_000_000"}}) == (100_000, 4_000_000)
    assert limits({"batch": {"max_size": 5000, "sizer": "items"}}) == (5000, 2 * MIB)


def test_a_batch_counts_as_its_queue_does() -> None:
    """As in the Collector, unless it says otherwise or is not there."""
    assert limits({"sizer": "bytes", "batch": {"max_size": 4_000_000}}) == (100_000, 4_000_000)
    assert limits({"batch": {"max_size": 4_000_000}, "sizer": "bytes"}) == (100_000, 4_000_000)
    assert limits({"sizer": "bytes", "batch": {"max_size": 100, "sizer": "items"}}) == (100, 2 * MIB)
    assert limits({"sizer": "bytes"}) == (512, 2 * MIB)
    assert limits(SendingQueueSettings(sizer="bytes", batch=BatchSettings(flush_timeout=0.5))) == (100_000, 2 * MIB)
    assert limits(SendingQueueSettings(batch=BatchSettings(sizer="bytes", max_size=4_000_000))) == (100_000, 4_000_000)
