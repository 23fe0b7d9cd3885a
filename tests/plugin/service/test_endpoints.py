"""Which receiver gets which of the sockets that a supervisor passes, and which ones share memory."""

import resource
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from statsig_otel.config.configuration import Configuration
from statsig_otel.plugin import StatsigReceiverSettings
from statsig_otel.plugin.receiver.asgi import StatsigReceiver
from statsig_otel.plugin.receiver.bodies import Body
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.server.listening import InheritedSocket
from statsig_otel.plugin.service.assembly import Assembly
from statsig_otel.plugin.service.dispatch import ServiceConsumer
from statsig_otel.plugin.service.endpoints import endpoints_of, share_memory, within_open_files
from statsig_otel.plugin.watch.health import Health

NOWHERE = "192.0.2.1:1"
"""An address that no machine has: only a socket makes it work."""

TWO = {"statsig/eu": "127.0.0.1:0", "statsig/us": NOWHERE, "statsig/us2": NOWHERE}

UNKNOWN = "LISTEN_FDNAMES: statsig/us3 is not the id of a receiver; name each socket after a receiver at its endpoint"
TWICE = "LISTEN_FDNAMES: statsig/us2 is the name of two sockets for one endpoint"


def urls(endpoints: Mapping[str, str], *sockets: tuple[str, socket.socket]) -> dict[str, str]:
    """Where the receivers with these endpoints listen, with these sockets."""
    settings = {
        name: StatsigReceiverSettings(signing_secrets=["webhook-..."], endpoint=one, path=f"/{number}")
        for number, (name, one) in enumerate(endpoints.items())
    }
    receivers = {
        name: StatsigReceiver(Intake(verifier=one.verifier()), ServiceConsumer()) for name, one in settings.items()
    }
    health = Health(Assembly(Configuration({}, {}, {}, {}), directory=Path("nothing-is-made-here"), resource={}))
    made = endpoints_of(settings, receivers, [InheritedSocket(name, sock) for name, sock in sockets], health=health)
    try:
        for endpoint in made:
            endpoint.server.bind()
        return {name: url for endpoint in made for name, url in endpoint.urls.items()}
    finally:
        for endpoint in made:
            endpoint.server.stop()


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def test_the_only_socket_is_for_the_only_endpoint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        found = urls({"statsig": NOWHERE, "statsig/two": NOWHERE}, ("statsig-otel.socket", one))
        assert found == {
            name: f"http://127.0.0.1:{port_of(one)}/{n}" for n, name in enumerate(("statsig", "statsig/two"))
        }


def test_a_socket_is_for_all_receivers_at_the_endpoint_of_its_receiver() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        found = urls(TWO, ("statsig/us2", one))
        assert (found["statsig/us"], found["statsig/us2"]) == tuple(
            f"http://127.0.0.1:{port_of(one)}/{n}" for n in (1, 2)
        )
        assert f":{port_of(one)}/" not in found["statsig/eu"], "it listens by itself"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("statsig/us3", "statsig/eu"),
            f"{UNKNOWN} ({', '.join(TWO)}); in a systemd socket unit this is FileDescriptorName",
        ),
        (("statsig/us", "statsig/us2"), f"{TWICE}, {NOWHERE}; pass one"),
    ],
)
def test_sockets_that_do_not_fit_are_refused(names: tuple[str, ...], message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, pytest.raises(ValueError, match="LISTEN_FDNAMES") as raised:
        urls(TWO, *((name, one) for name in names))
    assert str(raised.value) == message


def test_all_servers_together_leave_open_files_to_the_rest() -> None:
    for connections, limit, most in (
        ([1000], 64, [1000]),  # it limits itself
        ([1000, 1000], 4096, [1000, 1000]),
        ([1000, 1000], 2128, [1000, 1000]),
        ([1000, 1000], 2127, [999, 999]),
        ([1000, 1000, 10], 1024, [445, 445, 4]),
        ([1000, 1, 1], 64, [31, 1, 1]),
        ([10**9, 10**9], resource.RLIM_INFINITY, [10**9, 10**9]),
    ):
        assert within_open_files(connections, limit) == most


@pytest.mark.parametrize("listens", [True, False])
def test_which_receivers_share_the_memory_of_bodies(*, listens: bool) -> None:
    """One body of the largest size fits for each of them."""
    size = 1 << 20
    endpoints = {"statsig": "localhost:1", "statsig/same": "localhost:1", "statsig/another": "localhost:2"}
    settings = {
        name: StatsigReceiverSettings(
            signing_secrets=[],
            endpoint=one,
            max_request_body_size=size if name == "statsig/same" else 1,
            max_in_flight_bytes=size,
        )
        for name, one in endpoints.items()
    }
    intakes = {name: one.intake(name) for name, one in settings.items()}
    share_memory(intakes, settings, listens=listens)
    body = Body(size)
    assert intakes["statsig"].bodies.add(body, bytes(size))
    intakes["statsig/same"].bodies.finish(body)
    assert not intakes["statsig/same"].bodies.add(Body(1), b"x")
    assert intakes["statsig/another"].bodies.add(Body(1), b"x") is listens
