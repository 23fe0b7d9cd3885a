"""The steps of attacks on a whole service: on what it remembers, and on receivers that share an endpoint."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from pathlib import Path

from statsig_otel.plugin import Service, StatsigReceiverSettings
from statsig_otel.plugin.receiver.bodies import SMALL_BODY
from tests.attacks.attack import PATIENCE, Serve, awaited
from tests.plugin.http_client import exchange
from tests.plugin.services import SECRET, Keeper, address_of, service, signed_request, webhook
from tests.waiting import wait_until

PATHS = {"statsig": "/one", "statsig/other": "/other"}
SIZE = 3 * SMALL_BODY


def unfinished_bodies_for_each(_: Serve) -> None:
    """Beside a signed webhook whose last byte is late. Each receiver by itself would have room for all it gets."""
    receivers = {
        name: StatsigReceiverSettings(
            signing_secrets=[SECRET],
            endpoint="127.0.0.1:0",
            path=path,
            max_request_body_size=SIZE,
            max_in_flight_bytes=8 * SMALL_BODY,
        )
        for name, path in PATHS.items()
    }
    with (
        tempfile.TemporaryDirectory() as directory,
        Service(receivers=receivers, exporters={"mine": Keeper()}, directory=directory, min_free_bytes=0) as service,
        contextlib.ExitStack() as stack,
    ):
        kept = {intake.bodies for intake in service._assembly.inbound.intakes.values()}

        def begin(data: bytes, together: int) -> socket.socket:
            connection = stack.enter_context(socket.create_connection(address_of(service), timeout=PATIENCE))
            connection.sendall(data)
            wait_until(lambda: sum(bodies.size for bodies in kept) == together, "the bodies", within=PATIENCE)
            return connection

        late = webhook("late", "/one")
        size = len(late.partition(b"\r\n\r\n")[2]) - 1
        waiting = begin(late[:-1], size)
        large = {path: signed_request(bytes(SIZE), path, secret="webhook-forged") for path in PATHS.values()}
        first = begin(large["/one"][:-1], size + SIZE - 1)
        second = begin(large["/one"][:-1], size + 2 * (SIZE - 1))
        begin(large["/other"][:-2], size + 2 * (SIZE - 1) - 1)  # one less: so it has arrived, and the first gave way
        for path in PATHS.values():
            assert exchange(address_of(service), webhook(path, path)).status == 200
        for connection, last, status in ((waiting, late[-1:], 200), (first, b"\0", 408), (second, b"\0", 401)):
            connection.sendall(last)
            assert awaited(connection).status == status


def sent_again(_: Serve) -> None:
    """The same bytes, on connections of their own. What is sent last is delivered last."""
    keeper, recorded = Keeper(), webhook("once")
    with tempfile.TemporaryDirectory() as directory, service(Path(directory), {"mine": keeper}) as running:
        answers = [exchange(address_of(running), data) for data in (recorded, recorded, recorded, webhook("other"))]
        wait_until(lambda: "other" in keeper.names, "the records", within=PATIENCE)
    assert [(answer.status, answer.json["accepted"]) for answer in answers] == [(200, 1), (200, 0), (200, 0), (200, 1)]
    assert [answer.json["duplicates"] for answer in answers] == [0, 1, 1, 0]
    assert keeper.names == ["once", "other"]
