"""Is a signed webhook answered in time while the server is attacked, and does its memory stay bounded?

`statsig-otel run` with its defaults is attacked from another process: by idle, slow and silent clients, by floods of
requests that are refused, and by a flood of signed exposures. Meanwhile a third process posts signed config changes at
a steady pace, each over a new connection, as after a pause. Every second one comes from far away: what its client
sends, and what it gets, is a tenth of a second on its way. Memory is that of the service, which is started again for
each attack. All changes that were answered with 200 must reach the sink.
Target: p99 from nearby below 1 s beside every attack, no change refused, and no growth of the memory during a flood.

    python benchmarks/attacks.py [--seconds S] [--pace N] [--only NAME ...] [--directory DIR] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import chain, count, cycle, islice, repeat
from pathlib import Path

import trustme

from benchmarks import measure, webhooks
from benchmarks.load import quantile
from benchmarks.service import Running, service
from benchmarks.sink import sink
from benchmarks.tls_records import TlsClient, extended, handshake_records, sized
from benchmarks.webhooks import CHANGE, EXPOSURES
from statsig_otel.plugin import DEFAULT_PATH
from statsig_otel.plugin.webhook.body import CONFIG_CHANGE

NOTHING = "nothing"
_TIMEOUT = 30.0
"""Seconds after which a change that was not answered counts as lost."""

_TARGET = 1.0
"""Seconds in which 99 of 100 changes from nearby have to be answered."""

_WAY = 0.1
"""Seconds that bytes take from a client far away, or to it. Between continents a round trip takes 0.1 to 0.3 s."""

_MOMENT = 5.0
"""Seconds from the beginning of an attack to the first change, in which its connections are opened."""

_HEAD = f"POST {DEFAULT_PATH} HTTP/1.1\r\nhost: attack\r\n".encode()
_UNSIGNED = _HEAD + b"content-length: 2\r\n\r\n{}"
_FAKE = (
    b"x-statsig-signature: v0=" + b"0" * 64 + b"\r\nx-statsig-request-timestamp: %d\r\n"
)  # signature headers with the right form: the body has to be read


# The attacks. Each is one client's work, and is begun again when its connection ends.

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def kept_alive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(_UNSIGNED)
        if not await reader.read(65536):
            return
        await asyncio.sleep(7.0)


async def slow_header(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for byte in _HEAD * 1000:
        writer.write(bytes([byte]))
        await _drained_or_closed(reader, writer)
        await asyncio.sleep(0.5)


async def slow_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_HEAD + _fake_headers() + b"content-length: 100000\r\n\r\n")
    for _ in range(100_000):
        writer.write(b"x")
        await _drained_or_closed(reader, writer)
        await asyncio.sleep(0.5)


async def trickling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A byte too often for the client to count as silent."""
    writer.write(_HEAD + _fake_headers() + b"content-length: 200000\r\n\r\n")
    for _ in range(200_000):
        writer.write(b"x")
        await _drained_or_closed(reader, writer)
        await asyncio.sleep(0.07)


async def pipelined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n" * 10_000)
    await writer.drain()
    await reader.read()


async def one_byte_chunks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_HEAD + _fake_headers() + b"transfer-encoding: chunked\r\n\r\n")
    while not reader.at_eof():
        writer.write(b"1\r\nx\r\n" * 10_000)
        await _drained_or_closed(reader, writer)


async def five_byte_chunks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As small as chunks may be without end."""
    writer.write(_HEAD + _fake_headers() + b"transfer-encoding: chunked\r\n\r\n")
    while not reader.at_eof():
        writer.write(b"5\r\nxxxxx\r\n" * 10_000)
        await _drained_or_closed(reader, writer)


async def large_bodies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_HEAD + _fake_headers() + b"content-length: %d\r\n\r\n" % (20 << 20))
    for _ in range(20):
        writer.write(bytes(1 << 20))
        await _drained_or_closed(reader, writer)
    await reader.read()


_sizes = chain(repeat(256 << 10, 515), cycle((64 << 10, 16 << 10, 4 << 10, 1 << 10, 256, 64)))


async def unfinished_bodies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Large ones first, then ever smaller ones, until not even a small body would fit."""
    size = next(_sizes)
    writer.write(_HEAD + _fake_headers() + b"content-length: %d\r\n\r\n" % size + bytes(size - 1))
    await writer.drain()
    await reader.read()


async def unsigned(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(_UNSIGNED)
        if not await reader.read(65536):
            return


_exposures = webhooks.requests(EXPOSURES)


async def exposures(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(next(_exposures))
        if not await reader.read(65536):
            return


def signed(body: Callable[[], bytes]) -> Client:
    """A signed body, again and again."""

    async def post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made = body()
        while True:
            writer.write(webhooks.request(made))
            await reader.readuntil(b"\r\n\r\n")

    return post


def _change(**metadata: object) -> bytes:
    event = {"eventName": CONFIG_CHANGE, "timestamp": 1, "metadata": {"type": "Gate", "name": "a", **metadata}}
    return json.dumps(event, separators=(",", ":")).encode()


async def escaped_paths(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"POST /" + b"%%c3" * 16_000 + b" HTTP/1.1\r\nhost: attack\r\ncontent-length: 0\r\n\r\n")
    await reader.read()


def records(kind: Callable[[TlsClient], bytes]) -> Client:
    """As many records of a kind as the server takes, within the body of one request."""

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = await _after_handshake(reader, writer)
        writer.write(client.record(_HEAD + _fake_headers() + b"content-length: 20000000\r\n\r\n"))
        while not reader.at_eof():
            writer.write(b"".join(kind(client) for _ in range(1000)))
            await _drained_or_closed(reader, writer)

    return send


async def silent_after_handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _after_handshake(reader, writer)
    await reader.read()


async def kept_alive_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    client = await _after_handshake(reader, writer)
    while True:
        writer.write(client.record(_UNSIGNED))
        if not await reader.read(65536):
            return
        await asyncio.sleep(7.0)


async def _after_handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> TlsClient:
    client = TlsClient()
    writer.write(client.handshake())
    while not client.is_ready:
        writer.write(client.handshake(await reader.readexactly(1) + await reader.read(1 << 16)))
    return client


async def costly_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The beginning of a handshake that offers the most costly key exchange only."""
    context, outgoing = _distrustful(), ssl.MemoryBIO()
    context.set_ecdh_curve("ffdhe8192")
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    writer.write(outgoing.read())
    await reader.read()


async def hello_in_pieces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The beginning of a handshake, in records of one byte."""
    hello = b"\x01\0\xea\x60\x03\x03" + bytes(60_000 - 2)
    writer.write(b"".join(b"\x16\x03\x01\0\x01%c" % byte for byte in hello))
    await reader.read()


async def hello_with_names(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The beginning of a handshake, with 1,900 empty names of authorities."""
    writer.write(handshake_records(extended(TlsClient().handshake()[5:], 47, sized(b"\0\x02\x30\0" * 1900))))
    await reader.read()


def recorded_hellos(connections: int) -> Client:
    """The recorded beginning of a handshake on new connections, as fast as one process can; the oldest are left."""

    async def again_and_again(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address, begun, outgoing = writer.get_extra_info("peername"), deque[socket.socket](), ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            _distrustful().wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
        hello = outgoing.read()
        for number in count():
            one = socket.socket()
            one.setblocking(False)
            with contextlib.suppress(OSError):  # it is on its way
                one.connect(address)
            with contextlib.suppress(OSError):
                one.send(hello)
            begun.append(one)
            if len(begun) > connections:
                begun.popleft().close()
            if number % 100 == 0:
                await asyncio.sleep(0)

    return again_and_again


def _distrustful() -> ssl.SSLContext:
    """Accepts any certificate: an attacker does not care."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _fake_headers() -> bytes:
    return _FAKE % (time.time_ns() // 1_000_000)


async def _drained_or_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if reader.at_eof():
        raise ConnectionError
    await writer.drain()


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        client: What each of its clients does, over and over.
        clients: The number of clients at a time.
        tls: Whether the receiver has a certificate, and the changes are posted with TLS.
    """

    client: Client
    clients: int
    tls: bool = False


ATTACKS: dict[str, Attack] = {
    "silent connections": Attack(silent, 5000),
    "kept-alive connections, an unsigned request every 7 s": Attack(kept_alive, 5000),
    "headers of two bytes per second": Attack(slow_header, 3000),
    "bodies of two bytes per second": Attack(slow_body, 3000),
    "bodies of a byte each 70 ms": Attack(trickling, 1000),
    "pipelined requests": Attack(pipelined, 200),
    "one-byte chunks": Attack(one_byte_chunks, 200),
    "five-byte chunks": Attack(five_byte_chunks, 200),
    "large bodies with a wrong signature": Attack(large_bodies, 50),
    "bodies of all sizes without their last byte": Attack(unfinished_bodies, 800),
    "unsigned requests, as many as possible": Attack(unsigned, 64),
    "paths of 16,000 escapes": Attack(escaped_paths, 200),
    "silent connections to a server with TLS": Attack(silent, 5000, tls=True),
    "silent connections after a TLS handshake": Attack(silent_after_handshake, 5000, tls=True),
    "kept-alive connections with TLS, an unsigned request every 7 s": Attack(kept_alive_tls, 5000, tls=True),
    "TLS records of one byte": Attack(records(lambda client: client.record(b"x")), 50, tls=True),
    "TLS KeyUpdates": Attack(records(lambda client: client.key_update(requested=True)), 100, tls=True),
    "TLS KeyUpdates between content": Attack(
        records(lambda client: client.key_update() + client.record(bytes(1200))), 100, tls=True
    ),
    "TLS ClientHellos that offer ffdhe8192 only": Attack(costly_hello, 50, tls=True),
    "TLS handshakes in records of one byte": Attack(hello_in_pieces, 200, tls=True),
    "TLS ClientHellos with 1,900 authorities": Attack(hello_with_names, 1000, tls=True),
    "recorded TLS ClientHellos, 300 connections at a time": Attack(recorded_hellos(300), 1, tls=True),
    "recorded TLS ClientHellos, 5,000 connections at a time": Attack(recorded_hellos(5000), 1, tls=True),
    "signed exposures, 500 a body, as many as possible": Attack(exposures, 8),
    "signed bodies of 200,000 changes without a name": Attack(
        signed(lambda: json.dumps([{"eventName": CONFIG_CHANGE}] * 200_000).encode()), 1
    ),
    "signed changes with 6 million objects": Attack(signed(lambda: _change(x=[{}] * 6_000_000)), 1),
    "signed changes with 4 million strings": Attack(signed(lambda: _change(x=["ab"] * 4_000_000)), 1),
    "signed changes with 9 million numbers": Attack(signed(lambda: _change(x=[1] * 9_000_000)), 1),
}


async def attack(name: str, port: int) -> None:
    """Attack without end."""
    attacking = ATTACKS[name]

    async def again_and_again() -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection(measure.HOST, port)
                try:
                    await attacking.client(reader, writer)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as clients:
        for _ in range(attacking.clients):
            clients.create_task(again_and_again())


# The changes beside it.


@dataclass(frozen=True)
class Answered:
    """How the changes were answered.

    Attributes:
        took: The seconds from the connection to the answer, for each from nearby.
        far: The same for those from far away.
        refused: The number of all that were not answered with 200.
    """

    took: list[float]
    far: list[float]
    refused: int

    @property
    def count(self) -> int:
        """The number of all changes."""
        return len(self.took) + len(self.far)

    @property
    def in_time(self) -> bool:
        """Whether the target is reached: all were answered with 200, and 99 of 100 within a second.

        From far away, the round trips of TCP and TLS alone take longer than half of that.
        """
        return not self.refused and quantile(self.took, 99) < _TARGET


async def post_changes(port: int, pace: float, seconds: float, tls: ssl.SSLContext | None) -> Answered:
    """Post changes at a steady pace, each over a connection of its own, every second one from far away."""
    near, far = list[float](), list[float]()
    refused = 0

    async def one(request: bytes, port: int, took: list[float]) -> None:
        nonlocal refused
        began = time.monotonic()
        head = b""
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(_TIMEOUT):
                reader, writer = await asyncio.open_connection(measure.HOST, port, ssl=tls)
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                writer.close()
        took.append(time.monotonic() - began)
        refused += not head.startswith(b"HTTP/1.1 200")

    async with relay(port) as relay_port, asyncio.TaskGroup() as posting:
        began = time.monotonic()
        for index, request in zip(count(), islice(webhooks.requests(CHANGE), round(pace * seconds)), strict=False):
            await asyncio.sleep(began + index / pace - time.monotonic())
            posting.create_task(one(request, relay_port, far) if index % 2 else one(request, port, near))
    return Answered(near, far, refused)


@contextlib.asynccontextmanager
async def relay(port: int) -> AsyncIterator[int]:
    """A port from which all that is sent or received is on its way for a while; the connections, too."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: float) -> None:
        loop, way = asyncio.get_running_loop(), first
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                loop.call_later(way, writer.write, data)
                way = _WAY
        loop.call_later(way, writer.close)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):  # all is over
            await asyncio.sleep(_WAY)  # so what was sent at once has been on its way for as long
            service_reader, service_writer = await asyncio.open_connection(measure.HOST, port)
            await asyncio.gather(pass_on(reader, service_writer, 0.0), pass_on(service_reader, writer, _WAY))

    async with await asyncio.start_server(connected, measure.HOST, 0) as server:
        yield server.sockets[0].getsockname()[1]


# The parent.


@contextlib.contextmanager
def attacked(name: str, port: int) -> Iterator[None]:
    """Attack the port from another process during the block."""
    if name == NOTHING:
        yield
        return
    arguments = ("-m", "benchmarks.attacks", "--attack", name, "--port", str(port))
    with measure.spawn(*arguments) as attacker:
        try:
            yield
        finally:
            attacker.kill()


@contextlib.contextmanager
def sampled(running: Running) -> Iterator[list[int]]:
    """The service's resident memory in bytes, every tenth of a second during the block."""
    found: list[int] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.1):
            found.append(measure.memory(running.pid).now)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


@dataclass(frozen=True)
class Result:
    """What happened beside one attack.

    Attributes:
        answered: How the changes were answered.
        memory: The service's resident memory in bytes, every tenth of a second.
    """

    answered: Answered
    memory: list[int]


def beside(name: str, running: Running, *, seconds: float, pace: float, authority: Path | None = None) -> Result:
    """Attack a service, and post so many changes per second beside it; with TLS if an authority is given."""
    with attacked(name, running.port), sampled(running) as memory:
        time.sleep(_MOMENT)
        printed = measure.output(
            "-m", "benchmarks.attacks", "--post", "--port", str(running.port),
            "--seconds", str(seconds), "--pace", str(pace), *(() if authority is None else ("--tls", str(authority))),
            timeout=seconds + _TIMEOUT + measure.START_TIMEOUT,
        )  # fmt: skip
    return Result(Answered(**json.loads(printed)), memory)


def certificate(directory: Path) -> tuple[Path, dict[str, object]]:
    """An authority's file, and the settings of a receiver whose certificate it has issued."""
    authority = trustme.CA()
    issued = authority.issue_cert(measure.HOST)
    ca_file, cert_file, key_file = (directory / f"{name}.pem" for name in ("ca", "cert", "key"))
    authority.cert_pem.write_to_path(ca_file)
    issued.private_key_pem.write_to_path(key_file)
    cert_file.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return ca_file, {"tls": {"cert_file": str(cert_file), "key_file": str(key_file)}}


def trusting(authority: Path | None) -> ssl.SSLContext | None:
    """Trusts the authority of a file."""
    return None if authority is None else ssl.create_default_context(cafile=authority)


def survived(name: str, directory: Path, *, seconds: float, pace: float) -> Result:
    """Start a service, attack it, and post changes beside that. All that were answered with 200 reach the sink.

    Raises:
        RuntimeError: One does not.
    """
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(sink())
        authority, receiver = certificate(directory) if name in ATTACKS and ATTACKS[name].tls else (None, None)
        running = stack.enter_context(
            service(directory / "queue", backend.address, receiver=receiver, tls=trusting(authority))
        )
        at_rest = measure.memory(running.pid).now
        result = beside(name, running, seconds=seconds, pace=pace, authority=authority)
        backend.settle(result.answered.count - result.answered.refused)
        return Result(result.answered, [at_rest, *result.memory])


def compare(given: argparse.Namespace) -> None:
    rows = []
    file_system = ""
    names = [NOTHING, *(name for name in ATTACKS if not given.only or any(word in name for word in given.only))]
    for name in names:
        with measure.working_directory(given.directory) as directory:
            result = survived(name, directory, seconds=given.seconds, pace=given.pace)
            file_system = measure.file_system(directory)
        answered, (at_rest, *memory) = result.answered, result.memory
        half = memory[: len(memory) // 2]
        clients = str(ATTACKS[name].clients) if name in ATTACKS else ""
        rows.append(
            [
                name,
                clients,
                *(
                    f"{quantile(took, hundredths) * 1000:.0f}"
                    for took in (answered.took, answered.far)
                    for hundredths in (50, 99)
                ),
                f"{answered.refused} of {answered.count}",
                *(f"{size / 2**20:.0f}" for size in (at_rest, max(half), max(memory))),
            ]
        )
    measure.publish(
        "attacks",
        "Milliseconds from the connection of a signed webhook to its answer, beside each attack, "
        f"and from {2 * _WAY * 1000:.0f} ms away; webhooks that were not answered with 200; and the service's resident "
        "memory in MiB: at rest, at most in the first half of the time, and at most.",
        f"{measure.machine()}. On {file_system}.",
        measure.arguments(given, ("seconds", "pace")),
        measure.table(
            ["attack", "clients", "p50", "p99", "far p50", "far p99", "refused", "at rest", "half", "all"], rows
        ),
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=1, quick={"seconds": 5.0})
    parser.add_argument("--seconds", type=float, default=30.0, help="the length of one attack")
    parser.add_argument("--pace", type=float, default=10.0, help="changes per second beside it")
    parser.add_argument("--only", nargs="*", help="only the attacks whose names contain one of these words")
    measure.add_directory(parser)
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    parser.add_argument("--post", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tls", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if given.attack is not None:
        asyncio.run(attack(given.attack, given.port))
    elif given.post:
        print(json.dumps(vars(asyncio.run(post_changes(given.port, given.pace, given.seconds, trusting(given.tls))))))
    else:
        compare(given)


if __name__ == "__main__":
    main()
