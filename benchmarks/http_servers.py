"""Which HTTP server is best under the receiver? One run measures all of them and tests how they behave.

The same Falcon application (POST, reads a body of 1 KB, answers 200 with JSON) runs under each server in its own
process. The load comes from another process, over keep-alive loopback connections, in alternating rounds.

    python benchmarks/http_servers.py [--rounds N] [--seconds S] [--clients C] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import importlib.util
import json
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Final

import falcon.asgi

from benchmarks import measure
from benchmarks.load import Load
from benchmarks.measure import HOST
from benchmarks.service import Running

BODY = b"x" * 1024
PROBE_TIMEOUT = 4.0  # an event that has not happened after this many seconds counts as never
SHORT = 1  # seconds of the header and idle timeouts during the probes, if a server has them
FEW = 4  # the most connections during the probes, if a server can limit them


# The application.


class Receiver:
    async def on_post(self, request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        response.media = {"bytes": len(await request.stream.read())}


def application() -> Any:
    """The Falcon application. In addition, `/cut` records what ASGI reports about its body, and `/seen` returns it."""
    served = falcon.asgi.App()
    served.add_route("/", Receiver())
    seen: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope.get("path")
        if path == "/cut":
            message = {"type": "http.request", "more_body": True}
            while message["type"] == "http.request" and message.get("more_body"):
                message = await receive()
            seen.append("as complete" if message["type"] == "http.request" else "yes")
        if path in ("/cut", "/seen"):
            body = json.dumps(seen[-1:]).encode()
            headers = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        else:
            await served(scope, receive, send)

    return app


# The servers. Each binds its own socket, as in normal use.


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    return importlib.import_module(name).new_event_loop  # type: ignore[no-any-return]  # asyncio's and uvloop's


def serve_ours(port: int, *, probed: bool, loop: str) -> None:
    from statsig_otel.plugin.server.server import HttpServer  # one server per process

    limits: dict[str, Any] = {"read_header_timeout": SHORT, "max_connections": FEW} if probed else {}
    server = HttpServer(application(), host=HOST, port=port, **limits)
    server.bind()
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runner.run(server.serve())


def serve_granian(port: int, *, probed: bool) -> None:
    from granian.constants import HTTPModes, Interfaces
    from granian.http import HTTP1Settings
    from granian.server.embed import Server

    async def main() -> None:
        timeout = SHORT * 1000 if probed else 30_000
        await Server(
            application(),
            address=HOST,
            port=port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=timeout),
            backpressure=FEW if probed else None,
        ).serve()

    asyncio.run(main())


def serve_uvicorn(port: int, *, probed: bool, http: str, loop: str) -> None:
    import uvicorn

    limits: dict[str, Any] = {"timeout_keep_alive": SHORT, "limit_concurrency": FEW} if probed else {}
    uvicorn.run(application(), host=HOST, port=port, http=http, loop=loop, lifespan="off", log_level="error", **limits)


def serve_hypercorn(port: int, *, probed: bool) -> None:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"{HOST}:{port}"]
    config.loglevel = "ERROR"
    if probed:
        config.keep_alive_timeout = SHORT
        config.read_timeout = SHORT
    asyncio.run(serve(application(), config))


SERVERS: dict[str, tuple[Callable[..., None], dict[str, str], tuple[str, ...]]] = {
    "HttpServer, uvloop": (serve_ours, {"loop": "uvloop"}, ()),
    "HttpServer, asyncio": (serve_ours, {"loop": "asyncio"}, ()),
    "granian as it comes, asyncio": (serve_granian, {}, ("granian",)),
    "uvicorn httptools, asyncio": (
        serve_uvicorn,
        {"http": "httptools", "loop": "asyncio"},
        ("uvicorn", "httptools"),
    ),
    "uvicorn httptools, uvloop": (
        serve_uvicorn,
        {"http": "httptools", "loop": "uvloop"},
        ("uvicorn", "httptools"),
    ),
    "uvicorn h11, asyncio": (serve_uvicorn, {"http": "h11", "loop": "asyncio"}, ("uvicorn", "h11")),
    "hypercorn, asyncio": (serve_hypercorn, {}, ("hypercorn",)),
}
ANOTHER_LOOP: Final = ("HttpServer, asyncio", "uvicorn httptools, uvloop")  # each behaves as on the other loop


def missing(name: str) -> list[str]:
    return [module for module in SERVERS[name][2] if importlib.util.find_spec(module) is None]


# The load.


def load(port: int, seconds: float, clients: int) -> None:
    request = b"POST / HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
    posting = Load(repeat(request % (len(BODY), BODY)), lambda head, _: head.startswith(b"HTTP/1.1 200"))
    asyncio.run(posting.run(port, clients=clients, seconds=seconds))
    print(json.dumps({"rate": posting.rate, "good": posting.good, "failures": posting.failures}))


# The parent: processes, rounds and probes.


def child(*arguments: str) -> tuple[str, ...]:
    return ("-m", "benchmarks.http_servers", *arguments)


@contextlib.contextmanager
def running(name: str, *, probed: bool = False) -> Iterator[Running]:
    """Run one server in its own process during the block, which begins once it listens."""
    port = measure.free_port()
    arguments = ["--serve", name, "--port", str(port), *(["--probed"] if probed else [])]
    with measure.running(*child(*arguments), port=port, stderr=subprocess.DEVNULL) as process:
        yield Running(process.pid, port)


def connect(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=PROBE_TIMEOUT)


@dataclass
class Measured:
    """The results of the rounds of one server.

    Attributes:
        rates: Requests per second.
        costs: Microseconds of processor time per request, which other load on the machine hardly affects.
    """

    rates: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)


def measure_servers(names: list[str], rounds: int, seconds: float, clients: int) -> dict[str, Measured]:
    found = {name: Measured() for name in names}
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(running(name)) for name in names}
        for name in measure.alternating(names, rounds):
            server = servers[name]
            arguments = ["--load", str(server.port), "--seconds", str(seconds), "--clients", str(clients)]
            began = measure.processor_time(server.pid)
            printed = measure.output(*child(*arguments), timeout=seconds * 2 + measure.START_TIMEOUT)
            used = measure.processor_time(server.pid) - began
            result = json.loads(printed)
            if result["failures"]:
                print(f"{name}: {result['failures']} failures in round {len(found[name].rates) + 1}")
            found[name].rates.append(result["rate"])
            found[name].costs.append(used / result["good"] * 1e6)
    return found


def receive(connection: socket.socket, seconds: float = PROBE_TIMEOUT) -> bytes | None:
    """The first bytes, b"" for the end of the connection, or None if nothing arrives in time."""
    connection.settimeout(seconds)
    try:
        return connection.recv(65536)
    except TimeoutError:
        return None
    except ConnectionError:
        return b""


def post(path: str = "/", length: int = 2, body: bytes = b"{}") -> bytes:
    return b"POST %s HTTP/1.1\r\nhost: probe\r\ncontent-length: %d\r\n\r\n%s" % (path.encode(), length, body)


def probe_header_timeout(port: int) -> str:
    with connect(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nhost: pro")
        began = time.monotonic()
        return "none" if receive(connection) is None else f"yes, {time.monotonic() - began:.1f} s"


def probe_header_bound(port: int) -> str:
    with connect(port) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(
                b"POST / HTTP/1.1\r\nhost: probe\r\nx: " + b"x" * 2**20 + b"\r\ncontent-length: 0\r\n\r\n"
            )
        answer = receive(connection)
    if answer is None:
        return "no answer"
    status = answer[9:12].decode()
    return "none at 1 MiB" if status == "200" else f"yes, {status or 'closed'}"


def probe_connection_bound(port: int) -> str:
    with contextlib.ExitStack() as stack:
        first, *_ = [stack.enter_context(connect(port)) for _ in range(FEW)]
        time.sleep(SHORT * 0.6)
        connection = stack.enter_context(connect(port))
        connection.sendall(post())
        answer = receive(connection, SHORT / 4)
        if answer is not None and answer[9:12] != b"200":
            return f"{answer[9:12].decode()} above it"
        if answer is not None:
            return "none" if receive(first, 0.05) is None else "the idlest makes room"
        answer = receive(connection)
        return "others wait, then served" if answer else "others starve"


def probe_cut_body(port: int) -> str:
    with connect(port) as connection:
        connection.sendall(post("/cut", 100, b"part"))
        time.sleep(0.1)
        connection.shutdown(socket.SHUT_WR)
        reached = ", answer arrives" if receive(connection) else ", answer lost"
    time.sleep(0.1)
    with connect(port) as connection:
        connection.sendall(post("/seen"))
        answer = receive(connection) or b""
        if b"\r\n\r\n" in answer and not answer.partition(b"\r\n\r\n")[2]:
            answer += receive(connection) or b""
    seen = json.loads(answer.partition(b"\r\n\r\n")[2] or b"[]")
    return seen[0] + reached if seen else "no"


def probe_second_bind(name: str, port: int) -> str:
    second = child("--serve", name, "--port", str(port))
    with measure.spawn(*second, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            process.wait(timeout=PROBE_TIMEOUT)
        except subprocess.TimeoutExpired:
            return "no: shares the port"
        finally:
            process.kill()
    return "yes"


def behaviour(name: str) -> list[str]:
    probes = (probe_header_timeout, probe_header_bound, probe_connection_bound, probe_cut_body)
    row = []
    for probe in probes:  # each in a new process, so that no probe affects another
        with running(name, probed=True) as server:
            row.append(probe(server.port))
    with running(name) as server:
        row.append(probe_second_bind(name, server.port))
    return row


def ratio(values: list[float], first: list[float]) -> str:
    return f"{statistics.median(values) / statistics.median(first):.2f}"


def compare(given: argparse.Namespace) -> None:
    for name in SERVERS:
        if absent := missing(name):
            print(f"{name}: left out, not installed: {', '.join(absent)}")
    names = [name for name in SERVERS if not missing(name)]
    measured = measure_servers(names, given.rounds, given.seconds, given.clients)
    first = measured[names[0]]
    rates = [[name, *measure.spread(found.rates), ratio(found.rates, first.rates)] for name, found in measured.items()]
    costs = [[name, *measure.spread(found.costs), ratio(found.costs, first.costs)] for name, found in measured.items()]
    head = [
        "behaviour",
        "header timeout",
        "header limit",
        "connection limit",
        "truncated body noticed",
        "second bind refused",
    ]
    measure.publish(
        "http_servers",
        f"{measure.machine()}. Keep-alive clients, {len(BODY)} bytes per request.",
        measure.arguments(given, ("rounds", "seconds", "clients")),
        measure.table(["requests per second", "min", "median", "max", "ratio"], rates),
        measure.table(["processor time per request, in µs", "min", "median", "max", "ratio"], costs),
        f"With header and idle timeouts of {SHORT} s and {FEW} connections, if a server supports such limits:",
        measure.table(head, [[name, *behaviour(name)] for name in names if name not in ANOTHER_LOOP]),
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=3, quick={"rounds": 2, "seconds": 0.5})
    parser.add_argument("--seconds", type=float, default=2.0, help="the length of one measurement")
    parser.add_argument("--clients", type=int, default=16)
    for hidden in ("--serve", "--port", "--load"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--probed", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve, options, _ = SERVERS[given.serve]
        serve(int(given.port), probed=given.probed, **options)
    elif given.load is not None:
        load(int(given.load), given.seconds, given.clients)
    else:
        compare(given)


if __name__ == "__main__":
    main()
