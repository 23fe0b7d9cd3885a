"""Which receivers and exporters a queue serves, as the configuration says."""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from statsig_otel.exporters.queue import store

DEFAULT_WINDOW: Final = 24 * 3600.0
"""Seconds for which a change that was seen is a duplicate."""


@dataclass(frozen=True, slots=True)
class QueuedReceiver:
    """What the queue has to know of a receiver.

    Attributes:
        exporters: The ids of the exporters that its records are for.
        window: Seconds for which a change that was seen is a duplicate; 0 for never.
    """

    exporters: tuple[str, ...]
    window: float = DEFAULT_WINDOW


@dataclass(frozen=True, slots=True)
class QueuedExporter:
    """What the queue has to know of an exporter.

    Attributes:
        queue_size: How many records may wait for it; None for what the disk holds.
        from_oldest: A new exporter begins at the oldest record that is there, not at the next.
    """

    queue_size: int | None = None
    from_oldest: bool = False


@dataclass(frozen=True, slots=True)
class Routing:
    """Whose records are for whom, as configured now.

    Attributes:
        receivers: The receivers with a queued exporter, by id.
        exporters: The queued exporters, by id.
    """

    receivers: Mapping[str, QueuedReceiver]
    exporters: Mapping[str, QueuedExporter]

    def exporters_of(self, receiver: str) -> tuple[str, ...]:
        """The exporters that a receiver's records are for."""
        found = self.receivers.get(receiver)
        return found.exporters if found else ()

    def find_places(self, connection: sqlite3.Connection) -> dict[str, int]:
        """Give every exporter a place, where it has none. For the writer, inside a transaction.

        Returns:
            The number of each exporter.
        """
        numbers: dict[str, int] = {}
        for name, exporter in self.exporters.items():
            receivers = [one for one in self.receivers if name in self.exporters_of(one)]
            numbers[name] = store.ensure_exporter(
                connection, name, from_oldest=exporter.from_oldest, receivers=receivers
            )
            store.ensure_route(connection, [numbers[name]])  # for what is replayed for it alone
        return numbers
