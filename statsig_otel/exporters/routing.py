"""Which exporters the records of each receiver are for: one immutable value, made from a configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

DEFAULT_WINDOW: Final = 24 * 3600.0
"""Seconds in which a change that was seen is a duplicate."""


@dataclass(frozen=True, slots=True)
class Route:
    """Which exporters the records of one receiver are for, by their ids."""

    queued: tuple[str, ...] = ()
    window: float = DEFAULT_WINDOW  # seconds in which a change that comes again is a duplicate; 0 for never
    synchronous: tuple[str, ...] = ()  # those that the webhook waits for
    private: bool = False  # whether invalid items may contain what must not be shown: only their size is logged
    remembered: float = 0.0  # seconds for which the queue remembers what came, to compare it with the audit log


_NOWHERE: Final = Route()


@dataclass(frozen=True, slots=True)
class QueuedExporter:
    """A queued exporter, as the queue needs to know it."""

    queue_size: int | None = None  # the most records that may wait for it, or bytes; None if only the disk limits them
    from_oldest: bool = False  # whether a new exporter begins at the oldest stored record instead of the next one
    counts_bytes: bool = False  # whether `queue_size` is a number of bytes


@dataclass(frozen=True, slots=True)
class Routing:
    """The route of each receiver and the queued exporters, by their ids. A reload makes another one."""

    receivers: Mapping[str, Route] = field(default_factory=dict)
    exporters: Mapping[str, QueuedExporter] = field(default_factory=dict)

    def route(self, receiver: str) -> Route:
        """The route of a receiver; one to nobody if there is no such receiver."""
        return self.receivers.get(receiver, _NOWHERE)

    @property
    def remembered(self) -> dict[str, float]:
        """The seconds for which it is remembered what came, by the receivers for which it is."""
        routes = self.receivers.items()
        return {name: route.remembered for name, route in routes if route.remembered and route.queued}

    @property
    def synchronous(self) -> frozenset[str]:
        """The synchronous exporters of all receivers."""
        return frozenset(name for route in self.receivers.values() for name in route.synchronous)


class CurrentRouting:
    """Has the current routing, which a reload replaces.

    Look the route up once for each batch, and pass it on with the batch. Then the batch reaches the exporters from
    before a reload or those from after it, never some of both.
    """

    def __init__(self, now: Routing) -> None:
        self.now = now
