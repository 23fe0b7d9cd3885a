"""Keeps the bodies of all requests within a limit of memory: when it is reached, the oldest unfinished body gives way.

Receivers that anybody can reach at one address share the limit (`share_memory` in plugin/service/endpoints.py).

A body is read before its signature is known, so anybody can begin one and never end it. Refusing new bodies at the
limit would let them refuse signed webhooks until `read_timeout`. A signed webhook arrives as a whole within a round
trip, and a body that has arrived as a whole stays. Age counts from the first byte: a client that sends another byte
now and then doesn't renew it. So a body only gives way after about as many bytes of newer bodies have arrived.
"""

import threading
from dataclasses import dataclass
from typing import Final

from statsig_otel._arguments import check_type

SMALL_BODY: Final = 256 << 10
"""Bytes. Statsig's batches are far smaller. Larger bodies have a smaller share of the memory, and an adapter should
finish them where no other request has to wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits for clients that are not yet known to be Statsig.

    Attributes:
        max_request_body_size: Bytes of one body.
        max_in_flight_bytes: Bytes of all bodies that are being read or handled. At the limit, the oldest body that has
            not arrived as a whole gives way. The last eighth is reserved for bodies of at most 256 KiB, as all real
            webhooks are: large ones, which are read before their signature is known, can't shut them out.
        read_timeout: Seconds for one whole body.

    Raises:
        TypeError: A value is not a number.
        ValueError: A value is not more than 0.

    Example:
        >>> from statsig_otel.plugin import Limits
        >>> Limits(max_request_body_size=1 << 20).read_timeout
        30.0
    """

    max_request_body_size: int = 20 << 20
    max_in_flight_bytes: int = 128 << 20
    read_timeout: float = 30.0

    def __post_init__(self) -> None:
        check_type("max_request_body_size", self.max_request_body_size, int, "a number of bytes")
        check_type("max_in_flight_bytes", self.max_in_flight_bytes, int, "a number of bytes")
        check_type("read_timeout", self.read_timeout, (int, float), "a number of seconds")
        for name in ("max_request_body_size", "max_in_flight_bytes", "read_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0")

    @property
    def max_large_bytes(self) -> int:
        """Bytes of all bodies over 256 KiB. One body of the largest size always fits."""
        return max(self.max_in_flight_bytes - self.max_in_flight_bytes // 8, self.max_request_body_size)


class Body:
    """The body of one request, as far as it has arrived.

    Args:
        declared: The number of bytes that its header declares.

    Attributes:
        chunks: Its bytes.
        size: The number of them.
        gave_way: Whether its memory was needed for another body.
    """

    __slots__ = ("_declared", "chunks", "gave_way", "size")

    def __init__(self, declared: int) -> None:
        self._declared = declared
        self.chunks: list[bytes] = []
        self.size: int = 0
        self.gave_way: bool = False

    def is_large(self, more: int = 0) -> bool:
        """Whether the body is over 256 KiB, with so many bytes more: the declared size, or the part that was read."""
        return max(self._declared, self.size + more) > SMALL_BODY


class Bodies:
    """The bodies of all requests of a receiver, or of several ones. Safe to use from several threads.

    Args:
        max_bytes: Bytes of all bodies.
        max_large_bytes: Bytes of all bodies over 256 KiB. Large bodies give way to each other first, so that they can't
            shut small ones out.

    Attributes:
        size: Bytes of all bodies.
    """

    def __init__(self, max_bytes: int, max_large_bytes: int) -> None:
        self.size: int = 0
        self._max_bytes = max_bytes
        self._max_large_bytes = max_large_bytes
        self._large_size = 0
        self._unfinished: dict[Body, None] = {}  # the oldest first
        self._lock = threading.Lock()

    def add(self, body: Body, chunk: bytes) -> bool:
        """Add the next bytes to a body.

        Returns:
            Whether there was room for them. If not, the body can't be finished.
        """
        more = len(chunk)
        with self._lock:
            if body.gave_way:
                return False
            large = body.is_large(more)
            while large and self._large_size + self._large_growth(body, more) > self._max_large_bytes:
                if not self._make_room(body, large_only=True):
                    return False
            while self.size + more > self._max_bytes:
                if not self._make_room(body, large_only=False):
                    return False
            if large:
                self._large_size += self._large_growth(body, more)
            self.size += more
            body.size += more
            body.chunks.append(chunk)
            self._unfinished[body] = None  # one that is there already keeps its place
            return True

    def finish(self, body: Body) -> None:
        """The body has arrived as a whole: it no longer gives way."""
        with self._lock:
            self._unfinished.pop(body, None)

    def release(self, body: Body) -> None:
        """Give the memory of a body back. A second time changes nothing."""
        with self._lock:
            self._release(body)

    def _large_growth(self, body: Body, more: int) -> int:
        """By how much all large bodies grow with a large one: by all of it when it has just become large."""
        return more if body.is_large() else body.size + more

    def _make_room(self, newcomer: Body, *, large_only: bool) -> bool:
        for body in self._unfinished:
            if body is newcomer:
                return False  # the others are newer
            if body.is_large() or not large_only:
                self._release(body)
                body.gave_way = True
                return True
        return False

    def _release(self, body: Body) -> None:
        self._unfinished.pop(body, None)
        self.size -= body.size
        if body.is_large():
            self._large_size -= body.size
        body.size = 0
        body.chunks.clear()
