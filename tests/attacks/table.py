"""The attack table: what is sent, what has to happen, and the guards that make it happen.

docs/security.md prints it. `test_attacks.py` runs it, and runs it again without each guard.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any, Final

import trustme

from statsig_otel.plugin.receiver.intake import Limits
from statsig_otel.plugin.server.reader import CHUNKS_A_TURN, MAX_FIELDS, MAX_HEADER_BYTES
from tests.attacks.attack import ALL, PATIENCE, Attack, Serve, sends
from tests.plugin.adapters import CHANGE, SECRET, VERIFICATION, body_of, signed
from tests.plugin.http_client import read_response, request
from tests.plugin.server.echo import POST, EchoApp, echo_server, is_closed, read_answer, read_to_end, serving

_BODY: Final = body_of(CHANGE)
_LONG: Final = b"a" * MAX_HEADER_BYTES


def _signed(**headers: str) -> bytes:
    """A signed webhook, with more headers."""
    return request(
        _BODY, headers={**signed(_BODY), **{name.replace("_", "-"): value for name, value in headers.items()}}
    )


def _hidden() -> bytes:
    """A signed webhook behind the end of a request: what an attacker may want to smuggle past a proxy."""
    return _signed()


def _head(*lines: bytes) -> bytes:
    return b"\r\n".join((b"POST /hook HTTP/1.1", b"host: test", *lines, b"", b""))


def _chunked(*parts: bytes) -> bytes:
    """A request whose headers are signed as for an empty body."""
    fields = [f"{name}: {value}".encode() for name, value in signed(b"").items()]
    return _head(b"transfer-encoding: chunked", *fields) + b"".join(parts)


def _signed_chunked(body: bytes, framed: bytes) -> bytes:
    """A request whose headers are signed for a body that its chunks may or may not contain."""
    fields = [f"{name}: {value}".encode() for name, value in signed(body).items()]
    return _head(b"transfer-encoding: chunked", *fields) + framed


# Attacks that take more than one request, or more than bytes.


def _slow_header(serve: Serve) -> None:
    with serve(read_header_timeout=0.3) as site, site.connect() as silent, site.connect() as slow:
        silent.settimeout(PATIENCE)
        slow.sendall(b"POST /hook HTTP/1.1\r\nho")
        with contextlib.suppress(ConnectionError):
            for _ in range(30):  # a byte now and then does not move the deadline
                slow.sendall(b"o")
                time.sleep(0.05)
        slow.settimeout(0.1)
        assert is_closed(slow)
        assert is_closed(silent)
        assert site.is_well()


def _slow_body(serve: Serve) -> None:
    with serve(limits=Limits(read_timeout=0.3)) as site, site.connect() as slow:
        slow.sendall(_signed()[:-1])
        assert read_response(slow).status == 408
        assert not site.taken.batches
        assert site.is_well()


def _idle_connections(serve: Serve) -> None:
    with serve(read_header_timeout=600.0, max_connections=8) as site, contextlib.ExitStack() as stack:
        for number in range(24):
            connection = stack.enter_context(site.connect())
            connection.sendall(
                (b"", b"POST /hook HT", request(VERIFICATION), request(_BODY, headers={"Content-Length": "99"}))[
                    number % 4
                ]
            )
        assert site.is_well()


def _unread_answers(_: Serve) -> None:
    """The receiver's answers are small, so this one attacks an application with large ones."""
    size = 20 << 20
    with serving(echo_server(read_header_timeout=0.3)) as running, running.connect() as connection:
        connection.sendall(POST % (b"", size, bytes(size)))
        time.sleep(1.0)
        connection.settimeout(PATIENCE / 3)
        received = 0
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(1 << 20):
                received += len(chunk)
        assert received < size, "the whole answer was kept for a client that did not read"


def _piled_up_answers(_: Serve) -> None:
    """One request after the other, and no answer is read."""
    app, size, rounds = EchoApp(), 4 << 20, 30
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            for number in range(rounds):
                connection.sendall(POST % (b"", size, bytes(size)))
                deadline = time.monotonic() + 1.0
                while len(app.bodies) <= number and time.monotonic() < deadline:
                    time.sleep(0.01)
        assert len(app.bodies) < rounds, "the answers are kept for a client that does not read"


def _unfinished_handshakes(serve: Serve) -> None:
    authority = trustme.CA()
    with _tls(authority) as tls, serve(tls=tls, read_header_timeout=0.3) as site, site.connect() as silent:
        assert is_closed(silent)


def _endless_body(_: Serve) -> None:
    """An application that does not read: what has arrived of the body must not grow."""
    app = EchoApp()
    with serving(echo_server(app)) as running, running.connect() as connection:
        connection.settimeout(0.5)
        connection.sendall(b"POST /unread HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n" % (1 << 30))
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                sent += connection.send(bytes(1 << 20))
        app.release.set()
        assert sent < 64 << 20, "64 MiB were read, and nobody had asked for them"


def _tiny_chunks(_: Serve) -> None:
    """What one turn has read is what the application gets at once."""
    app = EchoApp()
    with serving(echo_server(app)) as running, running.connect() as connection:
        chunks = b"8\r\n01234567\r\n" * 20 * CHUNKS_A_TURN
        connection.sendall(
            b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        )
        assert read_answer(connection)[0] == 200
    assert max(app.sizes) <= 4 * 8 * CHUNKS_A_TURN, "it may be asked for only after some turns"


def _pipelined(serve: Serve) -> None:
    with serve() as site:
        answer = site.answer(request(VERIFICATION) + _hidden() * 3000)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert not site.taken.batches
        assert site.is_well()


def _smuggled(serve: Serve) -> None:
    """Each first request is answered, and the second one, which is hidden, is not taken."""
    with serve() as site:
        hidden = _hidden()
        for first in (
            request(VERIFICATION) + hidden,
            _head(b"connection: upgrade", b"upgrade: h2c", b"content-length: %d" % len(hidden)) + hidden,
            _head(b"transfer-encoding: chunked") + b"0\r\n\r\n" + hidden,
            _head(b"connection: close") + hidden,
            _head(b"expect: 100-continue", b"content-length: 100000") + hidden,
        ):
            answer = site.answer(first)
            assert len(answer.split(b"HTTP/1.1 ")) == 2, answer
            assert not site.taken.batches
        assert site.is_well()


def _offered_another_protocol(serve: Serve) -> None:
    """As Java's client does by default: the server goes on with HTTP/1.1, and reads the whole body."""
    with serve() as site, site.connect() as connection:
        connection.sendall(_signed(Connection="Upgrade, HTTP2-Settings", Upgrade="h2c", HTTP2_Settings="AAMAAABkAAQ"))
        assert read_response(connection).status == 200
        assert len(site.taken.batches) == 1


def _refused_and_kept(serve: Serve) -> None:
    with serve() as site:
        for refused in (request(), request(_BODY), request(method="GET"), request(path="/other")):
            with site.connect() as connection:
                connection.sendall(refused)
                assert read_response(connection).status >= 400
                assert is_closed(connection)


def _answer_under_fire(serve: Serve) -> None:
    """The answer arrives, although the client still sends and reads only later."""
    with serve() as site, site.connect() as connection:
        size = 8 << 20
        connection.sendall(request(headers={"Content-Length": str(size)}))
        connection.sendall(bytes(size))
        assert read_response(connection).status == 401


def _too_many_bytes(serve: Serve) -> None:
    limits = Limits(max_request_body_size=1000, max_in_flight_bytes=1000)
    with serve(limits=limits) as site, site.connect() as first, site.connect() as second:
        body = bytes(900)
        for connection in (first, second):
            connection.sendall(request(body, headers=signed(body))[:-1])
            time.sleep(0.2)
        assert read_response(second).status == 503


def _cut_short(serve: Serve) -> None:
    with serve() as site:
        for whole in (
            _signed(),
            request(_BODY, headers=signed(_BODY[:-1])),
            _signed_chunked(_BODY, b"%x\r\n%s" % (len(_BODY), _BODY)),
        ):
            with site.connect() as connection:
                connection.sendall(whole[:-1])
                connection.shutdown(socket.SHUT_WR)
                assert read_to_end(connection)[:12] in (b"", b"HTTP/1.1 400"), whole
        assert not site.taken.batches
        assert site.is_well()


def _too_large(*, declared: bool) -> Any:
    def act(serve: Serve) -> None:
        body = bytes(3000)
        with serve(limits=Limits(max_request_body_size=2000)) as site:
            data = (
                request(headers={"Content-Length": "2001", **signed(b"")})
                if declared
                else request(body, headers=signed(body), chunk=500)
            )
            answer = site.answer(data)
            assert answer.startswith(b"HTTP/1.1 413"), answer
            assert site.is_well()

    return act


def _unsigned_body(serve: Serve) -> None:
    with serve() as site, site.connect() as declared, site.connect() as chunked:
        declared.sendall(request(headers={"Content-Length": "5000"}))
        assert read_response(declared).status == 401
        chunked.sendall(_head(b"transfer-encoding: chunked") + b"1389\r\n" + bytes(5001))
        assert read_response(chunked).status == 401


def _without_sniffing(serve: Serve) -> None:
    with serve() as site:
        for data in (b"hello\r\n\r\n", request(method="GET"), request(), _signed()):
            assert (
                b"\r\nx-content-type-options: nosniff\r\n"
                in site.answer(data.replace(b"Host: test", b"Host: test\r\nConnection: close")).lower()
            )


@contextlib.contextmanager
def _tls(authority: trustme.CA) -> Any:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from statsig_otel.plugin.server.tls import ServerTlsSettings

    with TemporaryDirectory() as directory:
        certificate = authority.issue_cert("127.0.0.1")
        cert_file, key_file = Path(directory, "cert.pem"), Path(directory, "key.pem")
        cert_file.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        key_file.write_bytes(certificate.private_key_pem.bytes())
        yield ServerTlsSettings(cert_file=cert_file, key_file=key_file)


def _at(offset_ms: int) -> Any:
    return lambda: request(_BODY, headers=signed(_BODY, at_ms=time.time_ns() // 1_000_000 + offset_ms))


def _forged(**changes: str) -> Any:
    return lambda: request(
        _BODY, headers={**signed(_BODY), **{name.replace("_", "-"): value for name, value in changes.items()}}
    )


ATTACKS: Final = (
    Attack(
        name="another protocol: TLS, the PROXY protocol, SSH",
        expected="400 at once",
        guards=("early check", "request line"),
        act=sends(
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(32),
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + _head(),
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
            b"SSH-2.0-OpenSSH_9.6\r\n",
            status=400,
        ),
    ),
    Attack(
        name="another version or dialect of HTTP: RTSP, HTTP/0.9, spaces",
        expected="400",
        guards=("request line",),
        act=sends(
            b"OPTIONS /hook RTSP/1.0\r\nhost: test\r\n\r\n",
            b"GET /hook\r\n\r\n",
            b"POST  /hook HTTP/1.1\r\nhost: test\r\n\r\n",
            b"post /hook HTTP/1.1\r\nhost: test\r\n\r\n",
            status=400,
        ),
    ),
    Attack(
        name="HTTP/2 without asking, HTTP/1.2",
        expected="505",
        guards=("request line",),
        act=sends(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"POST /hook HTTP/1.2\r\nhost: test\r\n\r\n", status=505),
    ),
    Attack(
        name="headers with control characters, folded lines, spaces before the colon",
        expected="400",
        guards=("header grammar",),
        act=sends(
            *(
                _head(line)
                for line in (b"x: a\0b", b"x: a\r\n folded", b"x : a", b"x y: a", b": a", b"\xe9: a", b"x\x7f: a")
            ),
            status=400,
        ),
    ),
    Attack(
        name="line ends without CR or without LF",
        expected="400",
        guards=("one head end",),
        act=sends(
            b"POST /hook HTTP/1.1\nhost: test\ncontent-length: 0\n\n",
            b"POST /hook HTTP/1.1\r\nhost: test\n\r\n\r\n",
            b"POST /hook HTTP/1.1\r\nhost: test\r\n\nx: a\r\n\r\n",
            b"POST /hook HTTP/1.1\r\nhost: test\rx: a\r\n\r\n",
            status=400,
        ),
    ),
    Attack(
        name="no Host, or two",
        expected="400",
        guards=("Host",),
        act=sends(b"POST /hook HTTP/1.1\r\n\r\n", _head(b"host: other"), _head(b"Host: test"), status=400),
    ),
    Attack(
        name="two Content-Lengths, or one that is not digits",
        expected="400",
        guards=("Content-Length",),
        act=sends(
            _head(b"content-length: 0", b"content-length: 5") + b"hello",
            *(_head(b"content-length: " + value) + b"hello" for value in (b"+5", b"5, 5", b"0x5", b"5_0", b"-1", b"")),
            status=400,
        ),
    ),
    Attack(
        name="a Content-Length beside a Transfer-Encoding",
        expected="400",
        guards=("Transfer-Encoding",),
        act=sends(
            lambda: _head(b"content-length: 5", b"transfer-encoding: chunked") + b"0\r\n\r\n" + _hidden(),
            lambda: _head(b"transfer-encoding: chunked", b"content-length: 5") + b"0\r\n\r\n" + _hidden(),
            status=400,
        ),
    ),
    Attack(
        name="Transfer-Encodings that programs read differently",
        expected="400",
        guards=("Transfer-Encoding",),
        act=sends(
            *(
                _head(b"transfer-encoding: " + value) + b"0\r\n\r\n"
                for value in (
                    b"gzip, chunked",
                    b"chunked, identity",
                    b"xchunked",
                    b"identity",
                    b"\x0bchunked",
                    b"chunked;q=1",
                )
            ),
            _head(b"transfer-encoding: chunked", b"transfer-encoding: chunked") + b"0\r\n\r\n",
            b"POST /hook HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            status=400,
        ),
    ),
    Attack(
        name="chunk sizes and line ends that programs read differently",
        expected="400, and the body is not taken",
        guards=("chunk grammar",),
        act=sends(
            *(
                (lambda framed=framed: _signed_chunked(b"hello", framed))
                for framed in (
                    b"+5\r\nhello\r\n0\r\n\r\n",
                    b"0x5\r\nhello\r\n0\r\n\r\n",
                    b" 5\r\nhello\r\n0\r\n\r\n",
                    b"5\nhello\n0\n\n",
                    b"5\r\nhello0\r\n\r\n",
                    b"5 \r\nhello\r\n0\r\n\r\n",
                    b"5\r\nhelloxx0\r\n\r\n",
                    b"10000000000000005\r\nhello\r\n0\r\n\r\n",
                )
            ),
            status=400,
        ),
    ),
    Attack(
        name="headers of more than 64 KiB, in one piece and without an end",
        expected="431",
        guards=("header size",),
        act=sends(_head(b"x: " + _LONG), b"POST /hook HTTP/1.1\r\nhost: test\r\nx: " + 4 * _LONG, status=431),
    ),
    Attack(
        name="more than 100 header fields",
        expected="431",
        guards=("header count",),
        act=sends(_head(*(b"x: 1",) * MAX_FIELDS), status=431),
    ),
    Attack(
        name="one-byte chunks",
        expected="400",
        guards=("chunk framing",),
        act=sends(lambda: _chunked(b"1\r\nx\r\n" * 40_000), status=400),
    ),
    Attack(
        name="many small chunks beside other clients",
        expected=f"at most {CHUNKS_A_TURN} chunks in a row",
        guards=("short turns",),
        act=_tiny_chunks,
    ),
    Attack(
        name="chunk extensions of more than 16 KiB, also without an end",
        expected="400",
        guards=("chunk framing", "chunk header size"),
        act=sends(
            lambda: _chunked(b"1;" + _LONG + b"\r\nx\r\n0\r\n\r\n"), lambda: _chunked(b"1;" + 4 * _LONG), status=400
        ),
    ),
    Attack(
        name="trailers of more than 64 KiB, also in one piece",
        expected="400",
        guards=("trailers",),
        act=sends(
            lambda: _signed_chunked(_BODY, b"%x\r\n%s\r\n0\r\nx: %s\r\n\r\n" % (len(_BODY), _BODY, _LONG)),
            lambda: _signed_chunked(_BODY, b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(_BODY), _BODY, b"x: 1\r\n" * 200)),
            status=400,
        ),
    ),
    Attack(
        name="a signature in trailers",
        expected="401",
        guards=("trailers",),
        act=sends(
            lambda: (
                _head(b"transfer-encoding: chunked")
                + b"%x\r\n%s\r\n0\r\n" % (len(_BODY), _BODY)
                + "".join(f"{name}: {value}\r\n" for name, value in signed(_BODY).items()).encode()
                + b"\r\n"
            ),
            status=401,
        ),
    ),
    Attack(
        name="thousands of pipelined requests",
        expected="the first is answered, the others are not read",
        guards=("one request",),
        act=_pipelined,
    ),
    Attack(
        name="a signed request that is hidden behind another one, or in its body",
        expected="it is not taken",
        guards=("one request",),
        act=_smuggled,
    ),
    Attack(
        name="an offer to switch the protocol: Upgrade: h2c",
        expected="the request is read as HTTP/1.1",
        guards=("body end",),
        act=_offered_another_protocol,
    ),
    Attack(
        name="a proxy's request: CONNECT",
        expected="501",
        guards=("CONNECT",),
        act=sends(b"CONNECT test:443 HTTP/1.1\r\nhost: test\r\n\r\n", status=501),
    ),
    Attack(
        name="a silent client, and one that sends its header byte by byte",
        expected="closed after `read_header_timeout`",
        guards=("header deadline",),
        act=_slow_header,
        slow=True,
    ),
    Attack(
        name="a TLS handshake that never ends",
        expected="closed after `read_header_timeout`",
        guards=("header deadline",),
        act=_unfinished_handshakes,
    ),
    Attack(
        name="a body that does not end",
        expected="408 after `read_timeout`",
        guards=("body deadline",),
        act=_slow_body,
        sites=("server", "asgi"),
    ),
    Attack(
        name="more connections than allowed: silent, half a header, kept alive, half a body",
        expected="a signed webhook is answered",
        guards=("making room",),
        act=_idle_connections,
    ),
    Attack(
        name="a client that does not read its answer",
        expected="cut off after `read_header_timeout`",
        guards=("reading deadline",),
        act=_unread_answers,
        slow=True,
    ),
    Attack(
        name="endless requests from a client that reads no answer",
        expected="they wait at the client",
        guards=("one answer",),
        act=_piled_up_answers,
        slow=True,
    ),
    Attack(
        name="a body that the application does not read",
        expected="it waits at the client",
        guards=("flow control",),
        act=_endless_body,
    ),
    Attack(
        name="many refused requests on one connection",
        expected="closed after the first answer",
        guards=("no keep-alive",),
        act=_refused_and_kept,
    ),
    Attack(
        name="a client that goes on sending after it was refused",
        expected="its answer arrives, and the rest is discarded",
        guards=("lingering close",),
        act=_answer_under_fire,
    ),
    Attack(
        name="an answer that a browser takes for something else",
        expected="`X-Content-Type-Options: nosniff`",
        guards=("nosniff",),
        act=_without_sniffing,
    ),
    Attack(
        name="other forms of the path: `//`, `%2f`, `..`, NUL, another case",
        expected="404",
        guards=("path",),
        act=sends(
            *(
                (lambda path=path: request(_BODY, path=path, headers=signed(_BODY)))
                for path in ("/hook//", "/HOOK", "/x/../hook", "/hook%00", "/hook/x", "/hook%2F")
            ),
            status=404,
        ),
        sites=ALL,
    ),
    Attack(
        name="other methods",
        expected="405",
        guards=("method",),
        act=sends(
            *(
                (lambda method=method: request(_BODY, method=method, headers=signed(_BODY)))
                for method in ("GET", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH")
            ),
            status=405,
        ),
        sites=ALL,
    ),
    Attack(
        name="compressed bodies, such as a bomb",
        expected="415",
        guards=("encoding",),
        act=sends(
            *(lambda value=value: _signed(Content_Encoding=value) for value in ("gzip", "br", "identity, gzip", "")),
            status=415,
        ),
        sites=ALL,
    ),
    Attack(
        name="a body that is declared too large",
        expected="413 before any of it is read",
        guards=("declared size",),
        act=_too_large(declared=True),
        sites=("server", "asgi"),
    ),
    Attack(
        name="a body that becomes too large",
        expected="413",
        guards=("arriving size",),
        act=_too_large(declared=False),
        sites=ALL,
    ),
    Attack(
        name="many bodies at once",
        expected="503 above `max_in_flight_bytes`",
        guards=("bytes in flight",),
        act=_too_many_bytes,
        sites=("server", "asgi"),
    ),
    Attack(
        name="a large body without a signature",
        expected="401 after at most 4 KiB",
        guards=("unsigned body",),
        act=_unsigned_body,
        sites=("server", "asgi"),
    ),
    Attack(
        name="a client that leaves in the middle of a body",
        expected="400, and the body is not taken",
        guards=("whole body",),
        act=_cut_short,
        sites=ALL,
    ),
    Attack(
        name="forged signatures: none, another secret, another body, changed letters",
        expected="401",
        guards=("signature",),
        act=sends(
            lambda: request(_BODY),
            lambda: request(_BODY, headers=signed(_BODY, secret=SECRET + "x")),
            lambda: request(_BODY, headers=signed(_BODY + b" ")),
            _forged(X_Statsig_Signature="v0=" + "0" * 64),
            _forged(X_Statsig_Signature="v1=" + "0" * 64),
            _forged(X_Statsig_Request_Timestamp="0000000000000"),
            status=401,
        ),
        sites=ALL,
    ),
    Attack(
        name="a webhook that was recorded and is sent again later, or is dated ahead",
        expected="401 outside `timestamp_tolerance`; inside it, a duplicate",
        guards=("tolerance",),
        act=sends(_at(-301_000), _at(302_000), _at(-86_400_000), status=401),
        sites=ALL,
    ),
    Attack(
        name="two signatures or two timestamps, one of them right",
        expected="401",
        guards=("one value",),
        act=sends(
            _forged(x_statsig_signature="v0=" + "0" * 64),
            _forged(x_statsig_request_timestamp="1700000000000"),
            status=401,
        ),
        sites=ALL,
    ),
)
