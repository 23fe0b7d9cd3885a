"""The load generator: keep-alive clients that post again as soon as they have an answer.

It uses raw sockets, to need little processor time. As a program it posts webhooks and prints the results:

    python -m benchmarks.load PORT [--shape EXPOSURES:CHANGES ...] [--clients N] [--seconds S | --requests N]
        [--pause S]
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice

from benchmarks import measure, webhooks
from benchmarks.measure import HOST

_PREPARED = 10_000
"""The requests per second of load that are created before the clock starts: more than any server here answers."""

_PREPARED_BYTES = 256 << 20
"""The most bytes of prepared requests. Further requests are created while others are sent."""

_PREPARED_REQUESTS = 30_000
"""The most prepared requests, because a receiver accepts a signature for five minutes only."""


@dataclass
class Load:
    """The state that all clients of a load share.

    Attributes:
        requests: The requests, head and body. A client stops when there are no more.
        is_good: Whether an answer is good, given its head and body.
        good: The number of good answers.
        failures: The number of other answers and lost connections.
        rate: Good answers per second, in the measured time.
        busy: The share of the measured time in which this process used a CPU. Near 1 it measures itself.
        took: The seconds of each answer in the measured time, good or not.
        pause: The seconds that a client waits after an answer.
    """

    requests: Iterator[bytes]
    is_good: Callable[[bytes, bytes], bool]
    good: int = 0
    failures: int = 0
    rate: float = 0.0
    busy: float = 0.0
    took: list[float] = field(default_factory=list)
    pause: float = 0.0
    stopping: bool = False

    async def run(self, port: int, *, clients: int, seconds: float | None) -> None:
        """Post until the time is over and all requests in flight are answered.

        Args:
            port: The port to post to.
            clients: The number of connections.
            seconds: The measured time, preceded by a fifth of it as a warm-up. With None, post until there are no more
                requests, without a warm-up.
        """
        loop = asyncio.get_running_loop()
        made = [await loop.create_connection(lambda: _Client(self), HOST, port) for _ in range(clients)]
        if seconds is not None:
            await asyncio.sleep(seconds / 5)
            self.took.clear()
        good, began, used = self.good, time.perf_counter(), time.process_time()
        if seconds is not None:
            await asyncio.sleep(seconds)
        else:
            await asyncio.gather(*(client.ended for _, client in made))
        took = time.perf_counter() - began
        self.rate = (self.good - good) / took
        self.busy = (time.process_time() - used) / took
        answered = len(self.took)
        self.stopping = True
        await asyncio.gather(*(client.ended for _, client in made))
        if seconds is not None:
            del self.took[answered:]


class _Client(asyncio.Protocol):
    def __init__(self, load: Load) -> None:
        self.ended = asyncio.get_running_loop().create_future()
        self._load = load
        self._received = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        self._received = b""
        self._load.took.append(time.perf_counter() - self._sent)
        if self._load.is_good(head, body):
            self._load.good += 1
        else:
            self._load.failures += 1
        if self._load.stopping:
            self._end()
        elif self._load.pause:
            asyncio.get_running_loop().call_later(self._load.pause, self._next)
        else:
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if not self.ended.done():
            self._load.failures += 1
            self._end()

    def _next(self) -> None:
        if self.ended.done():  # the connection was lost meanwhile
            return
        request = None if self._load.stopping else next(self._load.requests, None)
        if request is None:
            self._end()
        else:
            self._sent = time.perf_counter()
            self._transport.write(request)

    def _end(self) -> None:
        self.ended.set_result(None)
        self._transport.close()


def quantile(values: list[float], hundredths: int) -> float:
    """The smallest value that is not exceeded by the given percentage of all values."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * hundredths // 100) - 1)]


@dataclass(frozen=True)
class Posted:
    """The results of a load generator in its own process.

    Attributes:
        good: The number of requests answered with 200, including those before and after the measured time.
        failures: The number of other requests.
        rate: Good answers per second.
        busy: The share of the time in which the load generator used a CPU.
        p50, p99: The quantiles of the latency of answers, in seconds.
    """

    good: int
    failures: int
    rate: float
    busy: float
    p50: float
    p99: float


def post(
    port: int,
    *shapes: webhooks.Shape,
    clients: int,
    seconds: float | None = None,
    number: int | None = None,
    wire: webhooks.Wire = "webhook",
    secret: str = "",
    pause: float = 0.0,
) -> Posted:
    """Post webhooks from another process, for some seconds or a number of them.

    Each client posts the next one a pause (in seconds) after the answer.

    Raises:
        RuntimeError: A webhook was not answered with 200.
    """
    command = ["-m", "benchmarks.load", str(port), "--clients", str(clients), "--wire", wire]
    for shape in shapes:
        command += ["--shape", str(shape)]
    command += ["--seconds", str(seconds)] if seconds is not None else ["--requests", str(number)]
    command += ["--secret", secret] if secret else []
    command += ["--pause", str(pause)] if pause else []
    timeout = measure.START_TIMEOUT + (seconds * 3 + 30 if seconds is not None else 60 + (number or 0) / 20)
    posted = Posted(**json.loads(measure.output(*command, timeout=timeout)))
    if posted.failures:
        raise RuntimeError(f"{posted.failures} requests were not answered with 200")
    return posted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--shape", type=webhooks.Shape.read, action="append")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=None)
    parser.add_argument("--requests", type=int, default=None)
    parser.add_argument("--wire", choices=("webhook", "otlp"), default="webhook")
    parser.add_argument("--secret", default="")
    parser.add_argument("--pause", type=float, default=0.0)
    given = parser.parse_args()
    shapes = given.shape or [webhooks.CHANGE]
    secret = {"secret": given.secret} if given.secret else {}
    one = len(shapes) == 1
    made = webhooks.requests(shapes[0], wire=given.wire, **secret) if one else webhooks.mixed(shapes, wire=given.wire)
    if given.requests is not None:
        made = islice(made, given.requests)
    first = next(made)
    ahead = given.requests or round((given.seconds or 0) * _PREPARED)
    prepared = list(islice(made, min(ahead, _PREPARED_REQUESTS, _PREPARED_BYTES // len(first))))
    load = Load(chain([first], prepared, made), lambda head, _: head.startswith(b"HTTP/1.1 200"), pause=given.pause)
    asyncio.run(load.run(given.port, clients=given.clients, seconds=given.seconds))
    took = load.took or [0.0]
    posted = Posted(load.good, load.failures, load.rate, load.busy, p50=statistics.median(took), p99=quantile(took, 99))
    print(json.dumps(vars(posted)))


if __name__ == "__main__":
    main()
