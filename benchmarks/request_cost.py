"""Which part of a request that nobody has signed costs the most processor time for its bytes?

Each part of a request (the path, the query, each header that somebody reads, the number of headers, chunks, trailers)
is filled with each pattern, and the request is sent to `statsig-otel run` or given to a receiver that is mounted under
ASGI or WSGI. A tiny request and one with as many letters in a header of no meaning are the control.
Target: no request costs more than four tiny ones.

    python benchmarks/request_cost.py [--size BYTES] [--rounds N] [--rows N] [--only WORD ...] [--directory DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import logging
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes as decoded

from benchmarks import measure
from benchmarks.service import service
from statsig_otel.exporters import LoggerProviderConsumer
from statsig_otel.plugin import (
    DEFAULT_PATH,
    Intake,
    StatsigReceiver,
    StatsigWsgiReceiver,
    Verifier,
    create_app,
    create_wsgi_app,
)

PATTERNS = {
    "letters": b"a",
    "escapes": b"%41",
    "escapes of halves": b"%%c3",
    "escaped escapes": b"%25c3",
    "escaped slashes": b"%2f",
    "slashes": b"/",
    "directories": b"a/",
    "dots": b"../",
    "parameters": b"a=%c3&",
    "empty parameters": b"a&",
    "commas": b",",
    "items": b"a,",
    "identity": b"identity,",
    "quality": b"a/b;q=0.1,",
    "cookies": b"a=b;",
    "quotes": b'"',
    "colons": b":",
    "digits": b"1",
    "ranges": b"0-1,",
    "spaces": b" ",
    "tabs": b"\t",
    "letters and tabs": b"a \t",
    "Latin": b"\xe9",
}

HEADERS = (
    "Host",
    "Connection",
    "Expect",
    "Upgrade",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Content-Length",
    "Content-Type",
    "Content-Encoding",
    "Accept",
    "Accept-Encoding",
    "Cookie",
    "Range",
    "If-None-Match",
    "Date",
    "Authorization",
    "Forwarded",
    "X-Forwarded-For",
    "X-Statsig-Signature",
    "X-Statsig-Request-Timestamp",
    "X-Other",
)

PATH = DEFAULT_PATH.encode()
TINY = "a tiny request"
CONTROL = "X-Other: letters"

Request = tuple[bytes, list[tuple[bytes, bytes]], bytes]
"""The target, the headers, and the body with its framing."""


def requests(size: int) -> Iterator[tuple[str, Request]]:
    """Each request by its name."""
    host = (b"Host", b"x")
    yield TINY, (PATH, [host], b"")
    for name, pattern in PATTERNS.items():
        filled = pattern * (size // len(pattern))
        if pattern.isascii() and not pattern.isspace() and b"\t" not in pattern:
            yield f"path: {name}", (b"/" + filled, [host], b"")
            yield f"query: {name}", (PATH + b"?" + filled, [host], b"")
            yield f"URL: {name}", (b"http://x/" + filled, [host], b"")
        for header in HEADERS:
            others = [] if header == "Host" else [host]
            for end in (b"", b"\t") if b"\t" in pattern else (b"",):
                value = b"a" + filled + end if pattern.isspace() else filled + end
                yield f"{header}: {name}{' and a tab' if end else ''}", (PATH, [*others, (header.encode(), value)], b"")
    yield (
        "different parameters",
        (PATH + b"?" + b"&".join(b"%%c3%x=%%c3" % one for one in range(size // 12)), [host], b""),
    )
    for count in (98, max(size // 8, 1)):
        for header in (*HEADERS, "X-Other", "Cookie"):
            value = b"a" * (size // count - len(header) - 4)
            others = [] if header == "Host" else [host]
            yield f"{count} x {header}", (PATH, [*others, *[(header.encode(), value)] * count], b"")
        names = [(b"x%x" % one, b"a" * (size // count - 8)) for one in range(count)]
        yield f"{count} names", (PATH, [host, *names], b"")
    yield "a long name", (PATH, [host, (b"a" * size, b"")], b"")
    chunked = [host, (b"Transfer-Encoding", b"chunked")]
    yield "trailers", (PATH, chunked, b"0\r\n" + (b"a:" + b"b" * (size // 100 - 4) + b"\r\n") * 98 + b"\r\n")
    yield "chunks of a byte", (PATH, chunked, b"1\r\nx\r\n" * 3900 + b"0\r\n\r\n")
    yield "chunks of 10 bytes", (PATH, chunked, b"a\r\n0123456789\r\n" * 4000 + b"0\r\n\r\n")
    yield "chunk extensions", (PATH, chunked, (b"1;" + b"a" * 900 + b"\r\nx\r\n") * 16 + b"0\r\n\r\n")
    yield "nested JSON", (PATH, [host, (b"Content-Length", b"4096")], b"[" * 4096)
    yield "escaped JSON", (PATH, [host, (b"Content-Length", b"4092")], b'"' + b"\\u00e9" * 681 + b'"    ')


def processor_ms(pid: int) -> float:
    """The processor time of all threads of a process in milliseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


Send = Callable[[Request], None]


@contextlib.contextmanager
def to_server(directory: Path) -> Iterator[tuple[Send, Callable[[], float]]]:
    """Send requests to a service; and its processor time."""
    with service(directory, f"{measure.HOST}:9") as running:

        def send(request: Request) -> None:
            target, headers, body = request
            head = b"".join(b"%s: %s\r\n" % header for header in headers)
            with socket.create_connection((measure.HOST, running.port)) as connection, contextlib.suppress(OSError):
                connection.sendall(b"POST %s HTTP/1.1\r\n%s\r\n%s" % (target, head, body))
                while connection.recv(1 << 16):
                    break

        def spent() -> float:
            time.sleep(0.01)
            return processor_ms(running.pid)

        yield send, spent


@contextlib.contextmanager
def to_asgi() -> Iterator[tuple[Send, Callable[[], float]]]:
    """Give requests to an ASGI application."""
    app = create_app(
        {DEFAULT_PATH: StatsigReceiver(Intake(verifier=Verifier(["webhook-x"])), LoggerProviderConsumer())}
    )

    async def call(request: Request) -> None:
        target, headers, _ = request
        path, _, query = target.partition(b"?")
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "path": decoded(path).decode(errors="replace"), "raw_path": path, "query_string": query, "root_path": "",
            "headers": [(name.lower(), value) for name, value in headers],
        }  # fmt: skip
        prepared.append(time.process_time())

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(_: Any) -> None: ...

        await app(scope, receive, send)

    prepared: list[float] = []
    total = [0.0]
    loop = asyncio.new_event_loop()

    def send(request: Request) -> None:
        loop.run_until_complete(call(request))
        total[0] += time.process_time() - prepared.pop()

    yield send, lambda: total[0] * 1000
    loop.close()


@contextlib.contextmanager
def to_wsgi() -> Iterator[tuple[Send, Callable[[], float]]]:
    """Give requests to a WSGI application."""
    intake = Intake(verifier=Verifier(["webhook-x"]))
    app = create_wsgi_app({DEFAULT_PATH: StatsigWsgiReceiver(intake, LoggerProviderConsumer())})
    total = [0.0]

    def send(request: Request) -> None:
        target, headers, _ = request
        path, _, query = target.partition(b"?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": "POST", "PATH_INFO": decoded(path).decode("latin-1"), "RAW_URI": target.decode("latin-1"),
            "SERVER_NAME": "x", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
            "QUERY_STRING": query.decode("latin-1"),
            "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(),
        }  # fmt: skip
        for name, value in headers:
            variable = name.decode().upper().replace("-", "_")
            variable = variable if variable in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{variable}"
            text = value.decode("latin-1")
            environ[variable] = f"{environ[variable]},{text}" if variable in environ else text
        began = time.process_time()
        b"".join(app(environ, lambda *_: lambda _: None))
        total[0] += time.process_time() - began

    yield send, lambda: total[0] * 1000


def compare(given: argparse.Namespace) -> None:
    logging.disable()
    parts = []
    with measure.working_directory(given.directory) as directory:
        for site, made in {"server": to_server(directory), "ASGI": to_asgi(), "WSGI": to_wsgi()}.items():
            costs: dict[str, float] = {}
            with made as (send, spent):
                for _ in range(20):
                    send((PATH, [(b"Host", b"x")], b""))
                for name, request in requests(given.size):
                    if given.only and name not in (TINY, CONTROL) and not any(word in name for word in given.only):
                        continue
                    found = []
                    for _ in range(given.rounds):
                        before = spent()
                        for _ in range(3):
                            send(request)
                        found.append((spent() - before) / 3)
                    costs[name] = statistics.median(found)
            tiny = costs[TINY]
            worst = sorted(costs, key=costs.__getitem__, reverse=True)[: given.rows]
            rows = [[name, f"{costs[name]:.2f}", f"{costs[name] / tiny:.1f}"] for name in (TINY, CONTROL, *worst)]
            parts.append(measure.table([site, "ms", "times the tiny one"], rows))
    measure.publish(
        "request_cost",
        f"Milliseconds of processor time for one request with {given.size} bytes in one part, where it costs most.",
        measure.machine(),
        measure.arguments(given, ("size", "rounds")),
        *parts,
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=3, quick={"rounds": 1})
    parser.add_argument("--size", type=int, default=64_000, help="the bytes of the part")
    parser.add_argument("--rows", type=int, default=10, help="the most costly parts that are shown")
    parser.add_argument("--only", nargs="*", help="only the parts whose names contain one of these words")
    measure.add_directory(parser)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
