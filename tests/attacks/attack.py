"""What the rows of the attack table are made of: attacks, and the sites that are attacked."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from statsig_otel.plugin.receiver.asgi import StatsigReceiver, create_app
from statsig_otel.plugin.receiver.bodies import Limits
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.receiver.wsgi import StatsigWsgiReceiver, create_wsgi_app
from statsig_otel.plugin.server.server import HttpServer
from statsig_otel.plugin.webhook.signature import Verifier
from tests.plugin.adapters import CHANGE, SECRET, Sink, body_of, serve_werkzeug, signed
from tests.plugin.http_client import Address, Response, read_response, request
from tests.plugin.server.echo import serving

SiteName: TypeAlias = Literal["server", "asgi", "wsgi"]

PATIENCE: Final = float(os.environ.get("ATTACK_PATIENCE", "15"))
"""Seconds for what has to happen. A guard that is missing shows by something that happens otherwise, or not at all."""


@dataclass(frozen=True)
class Site:
    """A receiver at `/hook` that is attacked.

    Attributes:
        taken: Keeps what the receiver takes.
        intake: The receiver's intake.
        ends: Whether the server ends the connection of a refused sender, as the package's own does.
    """

    address: Address
    taken: Sink
    intake: Intake
    ends: bool = False

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=PATIENCE)

    def answer(self, data: bytes) -> bytes:
        """All that comes back for some bytes, while the sending side stays open."""
        with self.connect() as connection:
            with contextlib.suppress(ConnectionError):  # the answer comes before the end of a long request
                connection.sendall(data)
            if self.ends:
                return until_closed(connection)
            answer = awaited(connection)
            return b"HTTP/1.1 %d \r\n\r\n%s" % (answer.status, answer.body)

    def is_well(self) -> bool:
        """Whether a signed webhook is still answered with 200, and taken."""
        before, body = len(self.taken.batches), body_of(CHANGE)
        with self.connect() as connection:
            connection.sendall(request(body, headers=signed(body)))
            return awaited(connection).status == 200 and len(self.taken.batches) == before + 1


def awaited(connection: socket.socket) -> Response:
    """The next answer on a connection. That one comes is a part of what a row expects."""
    try:
        return read_response(connection)
    except (OSError, IndexError) as error:  # IndexError: the connection has ended
        raise AssertionError(f"no answer came: {error!r}") from error


def until_closed(connection: socket.socket) -> bytes:
    """All that the server sends. It has to close the connection."""
    data = b""
    with contextlib.suppress(ConnectionError):
        try:
            while chunk := connection.recv(65536):
                data += chunk
        except TimeoutError as error:
            raise AssertionError(f"the connection stays open behind {data[:200]!r}") from error
    return data


Serve: TypeAlias = Callable[..., AbstractContextManager[Site]]
"""Serves a site with `limits`. The package's own server takes its own options, too."""


@contextmanager
def serve_server(*, limits: Limits | None = None, **options: Any) -> Iterator[Site]:
    """The receiver on the package's own server."""
    taken, intake = Sink(), Intake(verifier=Verifier([SECRET]), limits=limits)
    receiver = StatsigReceiver(intake, taken)
    server = HttpServer(
        create_app({"/hook": receiver}), host="127.0.0.1", **{"port": 0, "drain_timeout": 0.1, **options}
    )
    with serving(server) as running:
        yield Site(running.server.address, taken, intake, ends=True)


@contextmanager
def serve_asgi(*, limits: Limits | None = None) -> Iterator[Site]:
    """The receiver as an ASGI application of somebody else's server, uvicorn."""
    from tests.plugin.receiver.test_mounting import serve_uvicorn

    taken, intake = Sink(), Intake(verifier=Verifier([SECRET]), limits=limits)
    receiver = StatsigReceiver(intake, taken)
    with serve_uvicorn(create_app({"/hook": receiver})) as address:
        yield Site(address, taken, intake)


@contextmanager
def serve_wsgi(*, limits: Limits | None = None) -> Iterator[Site]:
    """The receiver as a WSGI application of somebody else's server, werkzeug.

    It gives the application a body as it arrives, as gunicorn does. A server that first waits for the whole body, as
    waitress does, stops some of the attacks before the application sees them.
    """
    taken, intake = Sink(), Intake(verifier=Verifier([SECRET]), limits=limits)
    receiver = StatsigWsgiReceiver(intake, taken)
    with serve_werkzeug(create_wsgi_app({"/hook": receiver})) as address:
        yield Site(address, taken, intake)


SITES: Final[dict[SiteName, Serve]] = {"server": serve_server, "asgi": serve_asgi, "wsgi": serve_wsgi}
ALL: Final[tuple[SiteName, ...]] = ("server", "asgi", "wsgi")
SERVER: Final[tuple[SiteName, ...]] = ("server",)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One row.

    Attributes:
        name: What is attacked, for the documentation.
        expected: What has to happen, for the documentation.
        guards: The names of the guards against it.
        act: Attacks, and fails if something else happens.
        sites: Where it applies. Other servers have their own guards against attacks on HTTP itself.
        slow: Whether it takes longer than a quick test may.
    """

    name: str
    expected: str
    guards: tuple[str, ...]
    act: Callable[[Serve], None]
    sites: tuple[SiteName, ...] = SERVER
    slow: bool = False


def sends(*requests: bytes | Callable[[], bytes], status: int) -> Callable[[Serve], None]:
    """Sends each request on a connection of its own. It gets one answer, of this status, and is not taken."""

    def act(serve: Serve) -> None:
        with serve() as site:
            for one in requests:
                data = one if isinstance(one, bytes) else one()
                answer = site.answer(data)
                shown = f"{data[:120]!r} was answered with {answer[:200]!r}"
                assert answer.startswith(b"HTTP/1.1 %d " % status), shown
                assert answer.count(b"HTTP/1.1 ") == 1, shown
                assert not site.taken.batches, f"{data[:120]!r} was taken"
            assert site.is_well()

    return act
