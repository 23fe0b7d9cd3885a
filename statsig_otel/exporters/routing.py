"""Which exporters the records of each receiver are for: one immutable value, made from a configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

DEFAULT_WINDOW: Final = 24 * 3600.0
"""Seconds in which a change that was seen is a duplicate."""


@dataclass(frozen=True, slots=True)
class Route:
    """Which exporters the records of one receiver are for.

    Attributes:
        queued: The ids of the exporters behind the queue.
        window: Seconds in which a change that comes again is a duplicate, for the queue; 0 for never.
        synchronous: The ids of the exporters that the webhook waits for.
        private: Whether its invalid items may contain what must not be shown: only their size is logged.
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
        queue_size: The most records that may wait for it; None if only the disk limits them.
        from_oldest: Whether a new exporter begins at the oldest stored record instead of the next one.
    """

    queue_size: int | None = None
    from_oldest: bool = False


@dataclass(frozen=True, slots=True)
class Routing:
    """The route of each receiver and the queued exporters, by their ids. A reload makes another one."""

    receivers: Mapping[str, Route] = field(default_factory=dict)
    exporters: Mapping[str, QueuedExporter] = field(default_factory=dict)

    def route(self, receiver: str) -> Route:
        """The route of a receiver; one to nobody if there is no such receiver."""
        return self.receivers.get(receiver, _NOWHERE)

    @property
    def synchronous(self) -> frozenset[str]:
        """The synchronous exporters of all receivers."""
        return frozenset(name for route in self.receivers.values() for name in route.synchronous)


class CurrentRouting:
    """Has the current routing, which a reload replaces.

    Whoever receives a batch looks its route up once and passes it on with the batch: so a batch is for the exporters
    from before the reload or for those from after it, never for some of both.
    """

    def __init__(self, now: Routing) -> None:
        self.now = now
