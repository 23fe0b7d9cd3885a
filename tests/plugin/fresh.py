"""Lets a test begin with what a process that has just started knows: nothing was counted, and the journal is empty."""

from collections.abc import Iterator
from contextlib import contextmanager

from statsig_otel import _telemetry
from statsig_otel._journal import journal
from statsig_otel.plugin.server import connection, tls_transport


@contextmanager
def fresh_process() -> Iterator[None]:
    """Forget the journal, what was logged just now, and the counts, which are there again at the end."""
    receivers, sent = _telemetry._receivers.copy(), _telemetry.exporter_sent._numbers.copy()
    _telemetry._receivers.clear()
    _telemetry.exporter_sent._numbers.clear()
    for module in (connection, tls_transport):
        module._throttle._states.clear()
    with journal._lock:
        for kind in (journal._taken, journal._refused, journal._attempts):
            kind.entries.clear()
            kind.last.clear()
        journal._changes.clear()
        journal._added_bytes = 0
        journal._delivered.clear()
    try:
        yield
    finally:
        _telemetry._receivers.update(receivers)
        for name, number in sent.items():
            _telemetry.exporter_sent.add(number, *name)
