"""The steps of attacks on TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trustme

from benchmarks import tls_records
from statsig_otel.plugin.server.tls import ServerTlsSettings
from tests.attacks.attack import PATIENCE, Serve, awaited
from tests.attacks.steps import BODY, BusyApp, is_closed_in_time, wait_for_bodies, webhook
from tests.plugin.server.echo import POST, EchoApp, Running, echo_server, read_answer, read_to_end, serving, trusting


def silent_beside_far(serve: Serve) -> None:
    """The client that is far away has waited for longer, in the middle of its webhook or of a handshake with TLS."""
    with serve(max_connections=2) as site, contextlib.ExitStack() as stack:
        far, whole = stack.enter_context(site.connect()), webhook()
        far.sendall(whole[:-1])
        wait_for_bodies(site, len(BODY) - 1)
        silent = stack.enter_context(site.connect())
        time.sleep(0.35)  # both have waited for long enough to make room
        assert site.is_well()
        assert is_closed_in_time(silent)
        far.sendall(whole[-1:])
        assert awaited(far).status == 200
    with tls_server(EchoApp(), max_connections=2) as running, contextlib.ExitStack() as stack:
        far, client = stack.enter_context(running.connect()), tls_records.TlsClient()
        end = client.handshake()
        while not client.is_ready:
            far.sendall(end)
            received = far.recv(1 << 16)
            assert received
            end = client.handshake(received)
        silent = stack.enter_context(running.connect())
        time.sleep(0.35)
        stack.enter_context(running.connect())
        assert is_closed_in_time(silent)
        far.sendall(end + client.record(POST % (b"", 0, b"")))
        assert answered(client, far)


def left_handshakes(_: Serve) -> None:
    app, authority, hello = BusyApp(), trustme.CA(), ssl.MemoryBIO()
    context = trusting(authority)
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="127.0.0.1").do_handshake()
    with tls_settings(authority) as tls, serving(echo_server(app, tls=tls)) as running, contextlib.ExitStack() as stack:
        holding = stack.enter_context(context.wrap_socket(running.connect(), server_hostname="127.0.0.1"))
        holding.sendall(POST % (b"hold", 0, b""))
        assert app.holding.wait(PATIENCE)
        left = stack.enter_context(running.connect())
        left.sendall(hello.read())
        left.shutdown(socket.SHUT_WR)
        app.go_on.set()
        assert read_to_end(left) == b"", "the server has answered somebody who had left"
        assert read_answer(holding)[0] == 200


def unfinished_handshakes(serve: Serve) -> None:
    authority = trustme.CA()
    with tls_settings(authority) as tls, serve(tls=tls, read_header_timeout=0.3) as site, site.connect() as silent:
        assert is_closed_in_time(silent)


def empty_records(_: Serve) -> None:
    """Each of these many small records takes as long as a large one."""
    with tls_server(EchoApp()) as running:
        for number, content, is_update in ((200, b"", True), (200, b"x" * 64, True), (3000, b"x", False)):
            with running.connect() as connection, contextlib.suppress(ConnectionError):
                connection.settimeout(PATIENCE)
                client = tls_records.connected(connection.sendall, partial(connection.recv, 1 << 16))
                connection.sendall(client.record(POST % (b"", number * len(content) + 1, b"")))
                for _step in range(number):
                    update = client.key_update() if is_update else b""
                    connection.sendall(update + (client.record(content) if content else b""))
                connection.sendall(client.record(b"x"))
                assert not answered(client, connection), f"{number} records of {len(content)} bytes"


def long_handshakes(_: Serve) -> None:
    """A record of zeros follows a ClientHello of TLS 1.2. If OpenSSL reads it, it sends an alert."""
    with tls_server(EchoApp()) as running:
        for size, is_read in ((1 << 10, True), (1 << 14, False)):
            with running.connect() as connection:
                context = trusting(trustme.CA())
                context.maximum_version = ssl.TLSVersion.TLSv1_2
                outgoing = ssl.MemoryBIO()
                with contextlib.suppress(ssl.SSLWantReadError):
                    context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1").do_handshake()
                connection.sendall(outgoing.read())
                assert connection.recv(1 << 16), "no ServerHello"
                connection.sendall(b"\x16\x03\x03" + size.to_bytes(2, "big") + bytes(size))
                assert read_to_end(connection).startswith(b"\x15") == is_read


def many_certificates(_: Serve) -> None:
    """Of a client that has a right one. With TLS 1.3 a client hears of the refusal after its own handshake.

    OpenSSL of a client compresses them where the server allows it and both have the library (3.2 and newer, Debian 13).
    """
    authority = trustme.CA()
    own = authority.issue_cert("client.test")
    with mutual_tls_settings(authority) as tls, serving(echo_server(tls=tls)) as running:
        chain = tls.cert_file.with_name("chain.pem")
        for copies, is_refused in ((1, False), (100, True)):
            certificates = [*own.cert_chain_pems, *(authority.cert_pem for _ in range(copies))]
            chain.write_bytes(own.private_key_pem.bytes() + b"".join(one.bytes() for one in certificates))
            context = trusting(authority)
            context.load_cert_chain(chain)
            with running.connect() as plain, refusing(is_refused):
                plain.settimeout(PATIENCE)
                with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
                    connection.sendall(POST % (b"", 0, b""))
                    assert read_answer(connection)[0] == 200


def costly_groups(_: Serve) -> None:
    with tls_server(EchoApp()) as running:
        for group, is_refused in (("prime256v1", False), ("secp384r1", True), ("secp521r1", True), ("ffdhe8192", True)):
            context = trusting(trustme.CA())
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            try:
                context.set_ecdh_curve(group)
            except (ValueError, ssl.SSLError):
                assert group == "ffdhe8192", "an older OpenSSL, or Python, knows no ffdhe, but all know the others"
                continue
            with running.connect() as connection, refusing(is_refused):
                context.wrap_socket(connection).close()


@contextlib.contextmanager
def refusing(is_refused: bool) -> Iterator[None]:
    """Whether what is done in the block fails."""
    try:
        yield
    except TimeoutError as error:
        raise AssertionError("the connection stays open") from error
    except (OSError, EOFError):
        assert is_refused
    else:
        assert not is_refused


def answered(client: tls_records.TlsClient, connection: socket.socket) -> bool:
    """Whether an answer comes before the end of the connection. One of both has to come."""
    try:
        while received := connection.recv(1 << 16):
            if client.received(received).startswith(b"HTTP/1.1 200 "):
                return True
    except TimeoutError as error:
        raise AssertionError("the connection stays open") from error
    return False


@contextlib.contextmanager
def tls_server(app: EchoApp, **options: Any) -> Iterator[Running]:
    with tls_settings(trustme.CA()) as tls, serving(echo_server(app, tls=tls, **options)) as running:
        yield running


@contextlib.contextmanager
def mutual_tls_settings(authority: trustme.CA) -> Iterator[ServerTlsSettings]:
    """Clients have to present a certificate of the authority."""
    with tls_settings(authority) as tls:
        client_ca_file = tls.cert_file.with_name("ca.pem")
        authority.cert_pem.write_to_path(str(client_ca_file))
        yield tls.model_copy(update={"client_ca_file": client_ca_file})


@contextlib.contextmanager
def tls_settings(authority: trustme.CA) -> Any:
    with TemporaryDirectory() as directory:
        certificate = authority.issue_cert("127.0.0.1")
        cert_file, key_file = Path(directory, "cert.pem"), Path(directory, "key.pem")
        cert_file.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        key_file.write_bytes(certificate.private_key_pem.bytes())
        yield ServerTlsSettings(cert_file=cert_file, key_file=key_file)
