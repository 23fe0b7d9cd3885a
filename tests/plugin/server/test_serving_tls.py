"""The HTTP server with TLS: versions, client certificates, renewed files."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import ssl
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import trustme

from statsig_otel._log_throttle import LogThrottle
from statsig_otel.plugin.server import tls_transport
from statsig_otel.plugin.server.tls import ServerTlsSettings
from tests.plugin.server.echo import (
    LONG,
    POST,
    EchoApp,
    Running,
    echo_server,
    is_closed,
    post,
    read_to_end,
    serving,
    trusting,
)
from tests.waiting import wait_until

T = TypeVar("T")


@pytest.fixture(scope="session")
def mutual_tls(authority: trustme.CA, tls: ServerTlsSettings) -> ServerTlsSettings:
    ca_file = tls.cert_file.with_name("ca.pem")
    authority.cert_pem.write_to_path(str(ca_file))
    return ServerTlsSettings(cert_file=tls.cert_file, key_file=tls.key_file, client_ca_file=ca_file, min_version="1.3")


def test_tls_is_served(authority: trustme.CA, tls: ServerTlsSettings) -> None:
    context = trusting(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        serving(echo_server(tls=tls)) as running,
        context.wrap_socket(running.connect(), server_hostname="127.0.0.1") as connection,
    ):
        assert post(connection, b"", b"secret") == (200, b"secret")
        assert connection.version() == "TLSv1.2"


def test_an_older_version_than_the_least_is_refused(authority: trustme.CA, tls: ServerTlsSettings) -> None:
    context = trusting(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    least = ServerTlsSettings(cert_file=tls.cert_file, key_file=tls.key_file, min_version="1.3")
    with serving(echo_server(tls=least)) as running, running.connect() as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_a_client_with_a_certificate_of_the_authority_is_served(
    authority: trustme.CA, mutual_tls: ServerTlsSettings
) -> None:
    context = trusting(authority)
    authority.issue_cert("client.test").configure_cert(context)
    with (
        serving(echo_server(tls=mutual_tls)) as running,
        context.wrap_socket(running.connect(), server_hostname="127.0.0.1") as connection,
    ):
        assert post(connection, b"", b"mutual") == (200, b"mutual")


def test_a_client_without_a_certificate_or_with_a_foreign_one_is_refused(
    authority: trustme.CA, mutual_tls: ServerTlsSettings
) -> None:
    app = EchoApp()
    foreign = trusting(authority)
    trustme.CA().issue_cert("client.test").configure_cert(foreign)
    with serving(echo_server(app, tls=mutual_tls)) as running:
        for context in (trusting(authority), foreign):
            # In TLS 1.3 the refusal comes after the client's side of the handshake.
            with (
                running.connect() as plain,
                pytest.raises((ssl.SSLError, ConnectionError, EOFError)),
                context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
            ):
                post(connection, b"", b"x")
    assert not app.entered.is_set()


def _renew(tls: ServerTlsSettings, authority: trustme.CA) -> None:
    """Write another certificate and its key under the same names."""
    certificate = authority.issue_cert("127.0.0.1")
    tls.cert_file.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    tls.key_file.write_bytes(certificate.private_key_pem.bytes())


def test_read_tls_again_files_count_for_new_connections_alone(authority: trustme.CA, tmp_path: Path) -> None:
    """As certbot renews them. A connection that is open goes on; a pair that does not fit changes nothing."""
    tls = ServerTlsSettings(cert_file=tmp_path / "cert.pem", key_file=tmp_path / "key.pem")
    _renew(tls, authority)
    server = echo_server(tls=tls)
    with serving(server) as running:

        def connect() -> ssl.SSLSocket:
            return trusting(authority).wrap_socket(running.connect(), server_hostname="127.0.0.1")

        with connect() as first:
            before = first.getpeercert(binary_form=True)
            assert server.read_tls_again() is None, "nothing has changed"
            _renew(tls, authority)
            use_files = server.read_tls_again()
            assert use_files is not None
            with connect() as second:
                assert second.getpeercert(binary_form=True) == before, "it is not used yet"
            use_files()
            assert server.read_tls_again() is None
            with connect() as third:
                after = third.getpeercert(binary_form=True)
                assert after != before
                assert post(third, b"", b"new") == (200, b"new")
            tls.key_file.write_bytes(authority.issue_cert("127.0.0.1").private_key_pem.bytes())
            with pytest.raises(ValueError, match="is not that of the certificate"):
                server.read_tls_again()
            tls.key_file.unlink()
            with pytest.raises(OSError, match="key_file: cannot read"):
                server.read_tls_again()
            os.mkfifo(tls.key_file)
            with pytest.raises(OSError, match=r"key_file: cannot read .*key\.pem: it is not a regular file"):
                server.read_tls_again()
            with connect() as fourth:
                assert fourth.getpeercert(binary_form=True) == after
            assert post(first, b"", b"old") == (200, b"old")


def test_a_server_without_tls_has_none_to_renew() -> None:
    server = echo_server()
    server.bind()
    assert server.read_tls_again() is None
    server.stop()


def test_a_handshake_that_never_ends_holds_neither_others_nor_the_stop_up(
    authority: trustme.CA, tls: ServerTlsSettings
) -> None:
    server = echo_server(tls=tls, read_header_timeout=0.5, max_connections=2, drain_timeout=600.0)
    with serving(server) as running, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(running.connect()) for _ in range(4)]
        plain = running.connect()
        with trusting(authority).wrap_socket(plain, server_hostname="127.0.0.1") as connection:
            assert post(connection, b"", b"through") == (200, b"through")
        server.stop()
        running.join()
        assert all(is_closed(connection) for connection in silent)


def test_tls_files_are_checked_before_anything_is_opened(tls: ServerTlsSettings, tmp_path: Path) -> None:
    other = trustme.CA().issue_cert("other.test")
    other_key = tmp_path / "other.pem"
    other.private_key_pem.write_to_path(str(other_key))
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    absent = tmp_path / "absent.pem"
    cases: list[tuple[ServerTlsSettings, type[Exception], str]] = [
        (
            ServerTlsSettings(cert_file=absent, key_file=tls.key_file),
            OSError,
            r"tls\.cert_file: cannot read .*absent\.pem: No such",
        ),
        (
            ServerTlsSettings(cert_file=tls.cert_file, key_file=other_key),
            ValueError,
            r"other\.pem is not that of the certificate",
        ),
        (
            ServerTlsSettings(cert_file=garbage, key_file=tls.key_file),
            ValueError,
            r"garbage\.pem .*not a PEM certificate",
        ),
        (
            ServerTlsSettings(cert_file=tls.cert_file, key_file=tls.key_file, client_ca_file=garbage),
            ValueError,
            r"garbage\.pem contains no PEM certificates",
        ),
    ]
    for settings, kind, message in cases:
        server = echo_server(tls=settings)
        with pytest.raises(kind, match=message):
            server.bind()
        with pytest.raises(RuntimeError, match="does not listen yet"):
            _ = server.address


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"POST / HTTP/1.1\r\nhost: test\r\n\r\n", "plain HTTP to this port, which serves HTTPS"),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", "the PROXY protocol"),
    ],
)
def test_a_client_that_does_not_speak_tls_is_logged_with_what_to_do(
    sent: bytes, said: str, tls: ServerTlsSettings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_transport, "_throttle", LogThrottle(logging.getLogger("test")))
    with serving(echo_server(tls=tls)) as running, running.connect() as connection:
        connection.sendall(sent)
        assert is_closed(connection) or read_to_end(connection)  # OpenSSL may send an alert
        wait_until(lambda: said in caplog.text)


def test_a_client_that_does_not_trust_the_certificate_is_logged_with_what_to_do(
    tls: ServerTlsSettings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_transport, "_throttle", LogThrottle(logging.getLogger("test")))
    with serving(echo_server(tls=tls)) as running, running.connect() as plain:
        with pytest.raises(ssl.SSLError):
            ssl.create_default_context().wrap_socket(plain, server_hostname="127.0.0.1")
        wait_until(lambda: "does cert_file contain the whole chain" in caplog.text)


def test_a_client_without_the_group_of_the_server_is_logged_with_what_to_do(
    authority: trustme.CA, tls: ServerTlsSettings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_transport, "_throttle", LogThrottle(logging.getLogger("test")))
    context = trusting(authority)
    context.set_ecdh_curve("secp384r1")
    with serving(echo_server(tls=tls)) as running, running.connect() as plain:
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(plain, server_hostname="127.0.0.1")
        wait_until(lambda: "a client does not know P-256" in caplog.text)


class Client:
    """A client that sees what is encrypted."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        self.connection = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")

    def hello(self) -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._outgoing.read()

    def shake_hands(self) -> None:
        self.connection.sendall(self.hello())
        self._until(self.tls.do_handshake)

    def encrypted(self, data: bytes, *, last: bool = False) -> bytes:
        self.tls.write(data)
        if last:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.unwrap()  # says that nothing more is sent
        return self._outgoing.read()

    def receive(self) -> bytes:
        received = b""
        with contextlib.suppress(ssl.SSLZeroReturnError):  # both have said that this is the end
            while piece := self._until(lambda: self.tls.read(65536)):
                received += piece
        return received

    def _until(self, step: Callable[[], T]) -> T:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                if data := self._outgoing.read():  # a second hello, as the server asks for another group
                    self.connection.sendall(data)
                if not (data := self.connection.recv(65536)):
                    raise EOFError from None
                self._incoming.write(data)
            else:
                if data := self._outgoing.read():
                    self.connection.sendall(data)
                return result


@contextlib.contextmanager
def connected(running: Running, authority: trustme.CA) -> Iterator[Client]:
    """A client that is done with the handshake."""
    with running.connect() as connection:
        client = Client(connection, trusting(authority))
        client.shake_hands()
        yield client


def test_what_is_encrypted_may_arrive_byte_by_byte(authority: trustme.CA, tls: ServerTlsSettings) -> None:
    with serving(echo_server(tls=tls)) as running, running.connect() as connection:
        client = Client(connection, trusting(authority))
        for number in client.hello():
            connection.sendall(bytes([number]))
        client.shake_hands()
        for number in client.encrypted(POST % (b"", 5, b"bytes") + POST % (b"", 0, b""), last=True):
            connection.sendall(bytes([number]))
        assert client.receive().endswith(b"\r\n\r\nbytes")


@pytest.mark.parametrize("path", [b"", b"unread"])
def test_large_bodies_are_read_as_the_application_takes_them(
    path: bytes, authority: trustme.CA, tls: ServerTlsSettings
) -> None:
    app = EchoApp()
    body = random.Random(1).randbytes(3 << 20)
    with (
        serving(echo_server(app, tls=tls)) as running,
        trusting(authority).wrap_socket(running.connect(), server_hostname="127.0.0.1") as connection,
    ):
        release = threading.Timer(0.2, app.release.set)
        release.start()
        assert post(connection, path, body) == (200, body)
        assert post(connection, b"", b"small") == (200, b"small")
        release.join()


@pytest.mark.parametrize("says_so", [True, False], ids=["by TLS", "by TCP alone"])
def test_a_client_that_has_ended_its_side_gets_its_answer(
    authority: trustme.CA, tls: ServerTlsSettings, *, says_so: bool
) -> None:
    app = EchoApp()
    with serving(echo_server(app, tls=tls)) as running, connected(running, authority) as client:
        client.connection.sendall(client.encrypted(POST % (b"slow", 4, b"half"), last=says_so))
        client.connection.shutdown(socket.SHUT_WR)
        assert app.entered.wait(LONG)
        app.release.set()
        assert client.receive().endswith(b"\r\n\r\nhalf")


def test_a_broken_record_ends_the_connection(authority: trustme.CA, tls: ServerTlsSettings) -> None:
    app = EchoApp()
    with serving(echo_server(app, tls=tls)) as running, connected(running, authority) as client:
        record = bytearray(client.encrypted(POST % (b"", 1, b"x")))
        record[-1] ^= 1
        client.connection.sendall(record)
        with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
            client.receive()
    assert not app.bodies


def test_a_connection_takes_little_memory(authority: trustme.CA, tls: ServerTlsSettings) -> None:
    """asyncio's own TLS takes 256 KiB for each, whatever the client does."""
    number = 5
    with contextlib.ExitStack() as stack, serving(echo_server(tls=tls)) as running:
        stack.enter_context(connected(running, authority))  # what is made once is made
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        silent = [stack.enter_context(running.connect()) for _ in range(number)]
        clients = [stack.enter_context(connected(running, authority)) for _ in range(number)]
        assert len(silent) + len(clients) == 2 * number
        assert tracemalloc.get_traced_memory()[0] < 2 * number * (64 << 10)
