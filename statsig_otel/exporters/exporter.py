"""The seam between delivery and a backend."""

from typing import Protocol

from statsig_otel.exporters.outcome import Outcome


class Exporter(Protocol):
    """Sends encoded log records to one backend.

    The constructor opens nothing. `start` is called once, then `send` from one thread at a time, then `shutdown`
    once, possibly from another thread while a `send` is under way: that `send` then ends soon, with any outcome.
    """

    def start(self) -> None:
        """Open what `send` needs. A backend that does not answer is no error here.

        Raises:
            OSError: A local file that the settings name can't be opened.
            ValueError: A local file that the settings name holds something else than it should.
        """

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        """Send one batch and say what became of it. Never raises.

        Args:
            payload: A serialised `ExportLogsServiceRequest`. Serialised messages concatenate, so a batch is the
                joined bytes of its records.
            count: How many log records the payload holds.
            timeout: Seconds for the whole call, connecting included.
        """

    def shutdown(self) -> None:
        """Close everything. Safe to call twice, and without a `start`."""
