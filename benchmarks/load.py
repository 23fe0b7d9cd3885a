"""An HTTP load: keep-alive clients that post as soon as they have an answer; raw sockets, to cost little."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.measure import HOST


@dataclass
class Load:
    """What all clients of a load share, and count.

    Attributes:
        requests: Where a client gets its next request from, head and body.
        is_good: Whether an answer is as it should be, by its head and its body.
        good: How many good answers there were, in all.
        failures: Other answers, and connections that were lost.
        rate: Good answers a second.
        busy: The share of that time in which this process used a CPU. Near 1 it measures itself.
    """

    requests: Iterator[bytes]
    is_good: Callable[[bytes, bytes], bool]
    good: int = 0
    failures: int = 0
    rate: float = 0.0
    busy: float = 0.0
    stopping: bool = False

    async def run(self, port: int, *, clients: int, seconds: float) -> None:
        """Post for a while, a fifth of it to warm up; returns when every request that was begun is answered."""
        loop = asyncio.get_running_loop()
        made = [await loop.create_connection(lambda: _Client(self), HOST, port) for _ in range(clients)]
        await asyncio.sleep(seconds / 5)
        good, began, used = self.good, time.perf_counter(), time.process_time()
        await asyncio.sleep(seconds)
        took = time.perf_counter() - began
        self.rate = (self.good - good) / took
        self.busy = (time.process_time() - used) / took
        self.stopping = True
        await asyncio.gather(*(client.ended for _, client in made))


class _Client(asyncio.Protocol):
    def __init__(self, load: Load) -> None:
        self.ended = asyncio.get_running_loop().create_future()
        self._load = load
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(next(self._load.requests))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        self._received = b""
        if self._load.is_good(head, body):
            self._load.good += 1
        else:
            self._load.failures += 1
        if self._load.stopping:
            self._end()
        else:
            self._transport.write(next(self._load.requests))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if not self.ended.done():
            self._load.failures += 1
            self._end()

    def _end(self) -> None:
        self.ended.set_result(None)
        self._transport.close()
