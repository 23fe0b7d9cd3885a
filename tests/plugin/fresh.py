"""Lets a test begin with what a process that has just started knows: nothing was counted, and the journal is empty."""

from collections.abc import Iterator
from contextlib import contextmanager

from statsig_otel import _telemetry
from statsig_otel._journal import journal


@contextmanager
def fresh_process() -> Iterator[None]:
    """Forget the journal, and the counts of receivers and exporters. At the end the counts are there again."""
    receivers, sent = _telemetry._receivers.copy(), _telemetry.exporter_sent._numbers.copy()
    _telemetry._receivers.clear()
    _telemetry.exporter_sent._numbers.clear()
    with journal._lock:
        for kind in (journal._taken, journal._refused, journal._attempts):
            kind.entries.clear()
            kind.last.clear()
        journal._changes.clear()
        journal._bytes = 0
    try:
        yield
    finally:
        _telemetry._receivers.update(receivers)
        for name, number in sent.items():
            _telemetry.exporter_sent.add(number, *name)
