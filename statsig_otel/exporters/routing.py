"""Whom each receiver's records are for: one immutable value, made of a configuration, and its one holder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

DEFAULT_WINDOW: Final = 24 * 3600.0
"""Seconds for which a change that was seen is a duplicate."""


@dataclass(frozen=True, slots=True)
class Route:
    """Whom the records of one receiver are for.

    Attributes:
        queued: The ids of the exporters behind the queue.
        window: Seconds for which a change that is in the queue counts as a duplicate when it comes again; 0 for never.
        synchronous: The ids of the exporters that the webhook waits for.
        private: Whether its invalid items may contain what must not be shown: the log tells their size alone.
    """

    queued: tuple[str, ...] = ()
    window: float = DEFAULT_WINDOW
    synchronous: tuple[str, ...] = ()
    private: bool = False


_NOWHERE: Final = Route()


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
    """Whose records are for whom. It never changes: a reload makes another one.

    Attributes:
        receivers: The route of each receiver, by id.
        exporters: The queued exporters, by id.
    """

    receivers: Mapping[str, Route] = field(default_factory=dict)
    exporters: Mapping[str, QueuedExporter] = field(default_factory=dict)

    def route(self, receiver: str) -> Route:
        """Whom a receiver's records are for; nobody where there is no such receiver."""
        return self.receivers.get(receiver, _NOWHERE)

    @property
    def synchronous(self) -> frozenset[str]:
        """The synchronous exporters of all receivers."""
        return frozenset(name for route in self.receivers.values() for name in route.synchronous)


class CurrentRouting:
    """Has the routing of now, which a reload exchanges.

    Whoever is handed a batch looks it up once and hands it on with the batch: so a batch is for all exporters of before
    the reload, or for all of after it.

    Args:
        now: The first one.

    Attributes:
        now: The one that counts.
    """

    def __init__(self, now: Routing) -> None:
        self.now = now
