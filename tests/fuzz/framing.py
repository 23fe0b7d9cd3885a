"""The framing of HTTP/1.1: a request is the same whole and in pieces, and h11 sees no other request in the same bytes.

What h11 reads is not refused either, if it is plain.

The first two bytes of an input say where the rest is cut: at two places, or behind each byte, which takes much longer.
If the first one is odd, the limits are so small that a short input reaches them.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Final

import h11

from statsig_otel.plugin.server import reader as limits
from statsig_otel.plugin.server.reader import BadRequestError, Head
from tests.fuzz.targets import Check, Mutate, limited
from tests.plugin.server.reading import read as feed

LONGEST: Final = 1024
ENOUGH: Final = 10_000_000
TOKENS: Final = (
    b"GET / HTTP/1.1\r\n", b"POST /a?b HTTP/1.1\r\n", b"HTTP/1.0\r\n", b"HTTP/2.0\r\n", b"Host: a\r\n", b"\r\n\r\n",
    b"\r\n", b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n", b"Connection: upgrade\r\n", b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n", b"identity",
    b"gzip, chunked", b"3\r\nabc\r\n", b"0\r\n\r\n", b"1;a=b\r\nx\r\n", b"x: y\r\n", b"\t", b" ", b"\n", b"\r", b"\0",
    b"\x0b", b"\xa0", b"CONNECT a:1 HTTP/1.1\r\n", b"http://a/b", b"%2f", b"//", b":", b",", b"+3", b"0x3", b"00000003",
    b"fffffffffffffff", b"000000000000003\r\nabc\r\n", b"0A\r\n0123456789\r\n", b"3 \t; a\r\nabc\r\n",
    b"10003\r\nabc\r\n", b"100000003\r\nabc\r\n", b"Content-Length: 4294967299\r\n",
)  # fmt: skip

SMALL: Final = {"MAX_HEADER_BYTES": 90, "MAX_CHUNK_HEADER": 10, "MAX_FRAMING": 24, "MAX_FIELDS": 4}

_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]+)([ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_HOST: Final = re.compile(rb"[!$%&'()*+,.:;=\[\]_~0-9A-Za-z-]*")
_ORIGIN: Final = re.compile(rb"[^:/?]+://[^/?]*")
_PLAIN: Final = re.compile(
    rb"(\r\n)?(GET|HEAD|POST|PUT|DELETE|PATCH|OPTIONS) /[!-~]* HTTP/1\.[01]\r\n([\t\x20-\x7e\x80-\xff]|\r\n(?![ \t]))*"
)
"""A known method, a path, and no half line ends, control characters or folded lines."""
_NOT_PLAIN: Final = re.compile(
    rb"[0-9A-F]{16}|[0-9A-F][ \t]+\r\n|content-length:[^\r]*,"
    rb"|(content-length|transfer-encoding):(?s:.)*\n(content-length|transfer-encoding):",
    re.IGNORECASE,
)
"""A size of many digits, or with a blank and no extension behind it; several lengths or codings."""
_TRAILERS: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n")


@dataclass(frozen=True)
class Found:
    """What was read of some bytes: a head, the body, and what stands behind the request."""

    head: Head | None
    body: bytes
    rest: bytes
    is_complete: bool


def seeds() -> Iterator[bytes]:
    start = b"POST /hook HTTP/1.1\r\nHost: test\r\n"
    for request in (
        b"GET / HTTP/1.1\r\nHost: test\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        start + b"Content-Length: 5\r\n\r\nhello",
        start + b"Content-Length: 2\r\n\r\nhiGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        start + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;a=b\r\n!\r\n0\r\nx: y\r\n\r\n",
        start + b"Transfer-Encoding: chunked\r\n\r\n0000000003;a\r\nabc\r\n0B ; b\r\n12345678901\r\n000\r\n\r\nGET",
        start + b"Transfer-Encoding: chunked\r\n\r\n10003\r\nabc\r\n0\r\n\r\n",
        start + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n1\r\nx\r\n0\r\na: b\r\na: b\r\na: b\r\na: b\r\n\r\n",
        start + b"Transfer-Encoding: chunked\r\n\r\n0\r\na: " + b"x" * 85 + b"\r\n\r\n",
        start + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        start + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        start + b" folded: yes\r\nContent-Length: 0\r\n\r\n",
        start + b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nhi",
        b"\r\n" + start + b"Expect: 100-continue\r\nContent-Length: 1 \r\n\r\nx",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"GET http://test?b HTTP/1.1\r\nHost: test:80\r\nConnection: a, Close\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        start + b"Transfer-Encoding: chunked\r\n\r\na;b\r\n0123456789\r\n0\r\n\r\n",
        start + b"Host: test\r\n\r\n",
        start + b"Transfer-Encoding: chunked\r\n\r\n0\r\nx\r\n\r\n",
    ):
        yield from (cuts + request for cuts in (b"\x05\x40", b"\x05\xff", b"\0\0"))


def mutated(data: bytes, random: Random, mutate: Mutate) -> bytes:
    """A line more, another one, or one in another place; or any bytes."""
    if random.randrange(16) < 9:
        return mutate(data)
    lines = data[2:].split(b"\r\n")
    at, other = random.randrange(len(lines)), random.randrange(len(lines))
    match random.randrange(4):
        case 0:
            lines.insert(at, random.choice(TOKENS).removesuffix(b"\r\n"))
        case 1:
            lines[at] = random.choice(TOKENS).removesuffix(b"\r\n")
        case 2:
            lines.insert(at, lines[other])
        case _:
            lines[at], lines[other] = lines[other], lines[at]
    return data[:2] + b"\r\n".join(lines)


@contextmanager
def checking() -> Iterator[Check]:
    def check(data: bytes) -> None:
        cuts, request = data[:2], data[2:]
        smaller = SMALL if cuts and cuts[0] % 2 else {}
        with limited(limits, smaller):
            whole = read([request])
            check_same(whole, read(pieces(request, cuts)))
            if whole is None and not smaller:
                check_refused(request)
            elif whole is not None:
                check_found(request, whole)

    yield check


def check_found(data: bytes, found: Found) -> None:
    check_head(found)
    check_request_line(data, found)
    check_limits(data, found)
    check_chunks(data, found)
    check_against_h11(data, found)


def pieces(data: bytes, cuts: bytes) -> Sequence[bytes]:
    """The data, cut at two places; for a quarter of all cuts behind each byte."""
    if cuts and not cuts[0] % 4:
        return [data[at : at + 1] for at in range(len(data))]
    first, second = sorted((cut * len(data)) // 256 for cut in cuts.ljust(2, b"\x80"))
    return data[:first], data[first:second], data[second:]


def read(parts: Sequence[bytes]) -> Found | None:
    """Feed the parts as a connection does; None if the request is refused."""
    try:
        reader, body, left = feed(parts)
    except BadRequestError as error:
        assert 400 <= error.status < 600
        assert error.kind
        assert error.explanation
        return None
    return Found(reader.head, body, left, reader.is_complete)


def check_same(whole: Found | None, cut: Found | None) -> None:
    """Where the bytes are cut makes no difference."""
    assert cut == whole


def check_head(found: Found) -> None:
    """A head has no half line end in it, and says how long the body is."""
    if found.head is None:
        assert not found.body
        assert not found.is_complete
        return
    assert len(found.head.fields) <= limits.MAX_FIELDS
    for name, value in found.head.fields:
        assert _NAME.fullmatch(name)
        assert _VALUE.fullmatch(value)
        assert value == value.strip(b" \t")
    assert found.head.version in ("1.0", "1.1")
    hosts = values(found.head, b"host")
    assert len(hosts) == 1 or (found.head.version == "1.0" and not hosts), "one host (3.2)"
    assert all(map(_HOST.fullmatch, hosts))
    lengths, codings = values(found.head, b"content-length"), values(found.head, b"transfer-encoding")
    assert len(lengths) + len(codings) <= 1
    assert not codings or found.head.version == "1.1", "a coding needs HTTP/1.1 (RFC 9112, 6.1)"
    assert all(re.fullmatch(rb"[0-9]+", length) for length in lengths)
    assert all(coding.lower() == b"chunked" for coding in codings)
    assert found.head.length == (None if codings else int((*lengths, b"0")[0]))
    if found.head.length is not None:
        assert len(found.body) <= found.head.length
        assert (len(found.body) == found.head.length) == found.is_complete


def check_request_line(data: bytes, found: Found) -> None:
    """The first line is what the head says, without the origin of an absolute URL (RFC 9112, 3.2.2)."""
    if found.head is None:
        return
    method, target, version = data.removeprefix(b"\r\n").partition(b"\r\n")[0].split(b" ")
    assert (method, version) == (found.head.method.encode(), b"HTTP/" + found.head.version.encode())
    if not target.startswith(b"/") and (origin := _ORIGIN.match(target)):
        target = b"/" + target[origin.end() :].removeprefix(b"/")
    assert found.head.target == target


def check_limits(data: bytes, found: Found) -> None:
    """A head that was read, or is still to come, is not too large."""
    end = data.find(b"\r\n\r\n")
    assert (len(data) if end < 0 else end + 4) <= limits.MAX_HEADER_BYTES
    assert (found.head is None) == (end < 0)


def values(head: Head, name: bytes) -> list[bytes]:
    return [value for key, value in head.fields if key == name]


def check_chunks(data: bytes, found: Found) -> None:
    """A chunked body is one by the grammar (RFC 9112, 7.1), has this content, and keeps to the limits.

    Of one that is not complete the same is true as far as it goes: what the reader keeps of it is limited.
    """
    if found.head is None or found.head.length is not None:
        return
    encoded, body = data[data.index(b"\r\n\r\n") + 4 : len(data) - len(found.rest)], b""
    framing = -2  # no line end of a chunk is before the first one
    while chunk := _CHUNK.match(encoded):
        assert chunk.end() <= limits.MAX_CHUNK_HEADER
        framing += 2 + chunk.end()
        assert framing <= limits.MAX_FRAMING + len(body) + int(chunk[1], 16)
        size, encoded = int(chunk[1], 16), encoded[chunk.end() :]
        if not size:
            assert len(encoded) - 2 <= limits.MAX_HEADER_BYTES
            assert encoded.count(b"\r\n") - found.is_complete <= limits.MAX_FIELDS
            break
        body += encoded[:size]
        assert b"\r\n".startswith(encoded[size : size + 2])
        encoded = encoded[size + 2 :]
    else:
        assert len(encoded) <= limits.MAX_CHUNK_HEADER
        assert not found.is_complete
    assert body == found.body
    assert not found.is_complete or _TRAILERS.fullmatch(encoded)


def check_against_h11(data: bytes, found: Found) -> None:
    """If h11 reads a request in the same bytes, it is the same one, and it ends at the same place."""
    if not found.is_complete or found.head is None:
        return
    seen = read_by_h11(data)
    if seen is None:
        return  # it is stricter in other places
    assert seen.is_complete
    assert seen.body == found.body
    assert seen.rest == found.rest
    # h11 writes the coding in lower case.
    fields = [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in found.head.fields]
    assert [(bytes(name), bytes(value)) for name, value in seen.request.headers] == fields
    closes = b"close" in b",".join(values(found.head, b"connection")).lower()
    assert found.head.keep_alive == (seen.keeps_alive and not closes), (
        "also a word with close in it ends the connection"
    )
    several = any(b"," in value for value in values(found.head, b"expect"))
    assert found.head.expects_continue == seen.expects_continue or (several and seen.expects_continue)


def check_refused(data: bytes) -> None:
    """A plain request that h11 reads is not refused, so the reader is not stricter than it says.

    An input is shorter than all limits but that of the fields.
    """
    seen = read_by_h11(data) if _PLAIN.fullmatch(data) else None
    if seen is None or not seen.is_complete or _NOT_PLAIN.search(data) or data.count(b"\r\n") > limits.MAX_FIELDS:
        return
    hosts = [bytes(value) for name, value in seen.request.headers if name == b"host"]
    is_old = seen.request.http_version == b"1.0" and any(
        name == b"transfer-encoding" for name, _ in seen.request.headers
    )
    assert is_old or not all(map(_HOST.fullmatch, hosts)), "a plain request is refused"


@dataclass(frozen=True)
class SeenByH11:
    """What h11 reads in some bytes."""

    request: h11.Request
    body: bytes
    rest: bytes
    is_complete: bool
    keeps_alive: bool
    expects_continue: bool


def read_by_h11(data: bytes) -> SeenByH11 | None:
    """None if it finds no request, or refuses it."""
    connection, body = h11.Connection(h11.SERVER), b""
    try:
        connection.receive_data(data)
        request = connection.next_event()
        if not isinstance(request, h11.Request):
            return None
        expects_continue = connection.they_are_waiting_for_100_continue
        while isinstance(event := connection.next_event(), h11.Data):
            body += bytes(event.data)
    except h11.RemoteProtocolError:
        return None
    return SeenByH11(
        request, body, connection.trailing_data[0],
        is_complete=isinstance(event, h11.EndOfMessage),
        keeps_alive=request.http_version == b"1.1" and connection.their_state is not h11.MUST_CLOSE,
        expects_continue=expects_continue,
    )  # fmt: skip
