"""Reads one HTTP/1.x request from bytes, without I/O: its head with httptools, its body by the rules of RFC 9112.

The reader is stricter than one that has to live with any client: a request that two programs read differently can hide
a second one.

- A head ends at the first empty line. httptools has to agree, or the request is refused.
- A body ends where one Content-Length or one `Transfer-Encoding: chunked` says. Nothing is read beyond that.
- An Upgrade header never changes where a body ends. Trailers never become headers.
- Heads, chunk headers and trailers are limited, and so is the framing of a body in small chunks, and the number of
  chunks that one call handles.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, TypeAlias

import httptools

MAX_HEADER_BYTES: Final = 64 * 1024
"""The limit for a request line and headers, and for trailers."""

MAX_TARGET: Final = 8 * 1024
"""The limit for a request's target, its path and query: to decode escapes takes far longer than to read other bytes."""

MAX_CHUNK_HEADER: Final = 1024
"""The limit for the header of one chunk. It is matched again with each part that arrives of it."""

MAX_FRAMING: Final = 16 * 1024
"""The headers of all chunks may have as many bytes more than there is content."""

MAX_FIELDS: Final = 100
"""The most header fields of a request."""

CHUNKS_A_TURN: Final = 128
"""The most chunks that one call of `feed` handles, so that a body in tiny chunks can't hold up other connections."""

Field: TypeAlias = tuple[bytes, bytes]

# request-line = method SP request-target SP HTTP-version (RFC 9112, 3). One empty line before it is ignored (2.2).
_REQUEST_LINE: Final = re.compile(rb"(?:\r\n)?([A-Z_-]+) ([!-~]+) HTTP/([0-9]\.[0-9])\r\n")
# What precedes the path or the query of an absolute URL (RFC 3986, 3.2).
_ORIGIN: Final = re.compile(rb"[^:/?]+://[^/?]*")
# What no head contains: control characters, and half a line end.
_NOT_IN_A_HEAD: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])")
_HOST: Final = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")  # the characters of a host and a port (RFC 3986, 3.2)
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
# chunk = chunk-size [ chunk-ext ] CRLF, chunk-ext = *( BWS ";" ... ) (7.1). Extensions are ignored.
_SIZE: Final = rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n"
_SIZE_BEGUN: Final = rb"[0-9A-Fa-f]{1,15}(?:[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?)?\r?"
_FIRST_CHUNK: Final = re.compile(_SIZE)
_FIRST_CHUNK_BEGUN: Final = re.compile(_SIZE_BEGUN)
# The line end behind a chunk is read with the header of the next one.
_NEXT_CHUNK: Final = re.compile(rb"\r\n" + _SIZE)
_NEXT_CHUNK_BEGUN: Final = re.compile(rb"\r(?:\n(?:" + _SIZE_BEGUN + rb")?)?")
_TRAILER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")

_PROXY_PROTOCOL: Final = (
    "a load balancer sends the PROXY protocol, which this server does not read: turn it off there for this target"
)


class BadRequestError(Exception):
    """The bytes are not a request that this server reads.

    Attributes:
        status: The status of the answer.
        kind: A word for the kind of the error.
        explanation: What the bytes look like and what to do, for the log.
    """

    def __init__(self, status: HTTPStatus, kind: str, explanation: str) -> None:
        super().__init__(explanation)
        self.status: Final = status
        self.kind: Final = kind
        self.explanation: Final = explanation


@dataclass(frozen=True, slots=True)
class Head:
    """The request line and the headers of a request.

    Attributes:
        target: Path and query, as they were sent.
        version: `1.0` or `1.1`.
        fields: The headers in their order, names in lower case.
        length: Bytes of the body; None for a chunked one.
        keep_alive: Whether the client can send another request on the connection.
        expects_continue: Whether the client waits for `100 Continue` before it sends the body.
    """

    method: str
    target: bytes
    version: str
    fields: list[Field]
    length: int | None
    keep_alive: bool
    expects_continue: bool


class RequestReader:
    """Reads one request. Another request needs another reader.

    Attributes:
        head: None until all of it was fed.
        body: What was fed of the body; the owner takes it out.
        is_complete: Whether the end of the request was fed.
    """

    def __init__(self) -> None:
        self.head: Head | None = None
        self.body: bytearray = bytearray()
        self.is_complete: bool = False
        self._begun = bytearray()  # the beginning of a head that is fed in pieces
        self._has_line = False  # it has a valid request line
        self._left = 0  # bytes of the body, or of the current chunk, that are still to come
        self._chunks: _Chunks | None = None

    @property
    def has_begun(self) -> bool:
        """Whether a part of the request was fed."""
        return self.head is not None or bool(self._begun)

    def feed(self, data: bytes) -> bytes:
        """Read the next bytes.

        Returns:
            What was not read. If the request is complete, these bytes are behind it. If not, this call has handled
            enough chunks: feed the bytes again after other connections had their turn.

        Raises:
            BadRequestError: The request is refused. If `head` is not None, its body is at fault.
        """
        if self.head is None:
            rest = self._read_head(data)
            if rest is None:
                return b""
            data = rest
        if self._chunks is not None:
            rest, self.is_complete = self._chunks.read(data, self.body)
            return rest
        size = len(data)
        if size < self._left:
            self.body += data
            self._left -= size
            return b""
        self.body += data[: self._left]
        rest, self._left = data[self._left :], 0
        self.is_complete = True
        return rest

    def _read_head(self, data: bytes) -> bytes | None:
        """Read a part of the head. Once the head is complete, give what is behind it.

        Each byte is looked at once, however small the parts are.
        """
        before, begun = len(self._begun), self._begun
        begun += data
        empty_line = begun.find(b"\r\n\r\n", max(before - 3, 0))
        end = len(begun) if empty_line < 0 else empty_line + 4
        if end > MAX_HEADER_BYTES:
            explanation = f"the headers have more than {MAX_HEADER_BYTES} bytes: look at what a proxy adds to them"
            raise BadRequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "header_size", explanation)
        if empty_line < 0:
            if _NOT_IN_A_HEAD.search(begun, max(before - 1, 0)) or not self._may_be_request(before):
                raise _not_http(bytes(begun))
            return None
        whole = bytes(begun)
        begun.clear()
        self.head = head = _parse_head(whole, end)
        if head.length is None:
            self._chunks = _Chunks()
        else:
            self._left = head.length
        return whole[end:]

    def _may_be_request(self, before: int) -> bool:
        """Whether the first line, once it has its end, is a request line. What was fed before was looked at then."""
        if not self._has_line and self._begun.find(b"\r\n", max(before - 1, 2)) > 0:
            self._has_line = _REQUEST_LINE.match(self._begun) is not None
            return self._has_line
        return True


class _Chunks:
    """Decodes a chunked body (RFC 9112, 7.1)."""

    def __init__(self) -> None:
        self._unread = b""  # the beginning of a header or trailer
        self._left = 0  # bytes of the current chunk that are still to come
        self._header, self._header_begun = _FIRST_CHUNK, _FIRST_CHUNK_BEGUN
        self._in_trailers = False
        self._content = 0
        self._framing = 0  # bytes of headers
        self._trailers = 0  # bytes of trailers
        self._trailer_lines = 0

    def read(self, data: bytes, body: bytearray) -> tuple[bytes, bool]:
        """Read the next bytes, and append their content to the body.

        Returns:
            What was not read, and whether the body is complete.
        """
        data, self._unread = self._unread + data, b""
        at = self._read_chunks(data, body)
        if self._in_trailers:
            return self._read_trailers(data, at)
        return data[at:], False

    def _read_chunks(self, data: bytes, body: bytearray) -> int:
        """Read chunks until the data or the turn is at its end; the position of the rest."""
        at, end, chunks = 0, len(data), 0
        while at < end and chunks < CHUNKS_A_TURN and not self._in_trailers:
            if self._left:
                piece = data[at : at + self._left]
                body += piece
                self._left -= len(piece)
                at += len(piece)
                continue
            match = self._header.match(data, at)
            if (match.end() if match else end) - at > MAX_CHUNK_HEADER:
                raise _wrong_chunk(f"the header of a chunk has more than {MAX_CHUNK_HEADER} bytes")
            if match is None:
                if not self._header_begun.fullmatch(data, at):
                    raise _wrong_chunk("a chunk has no valid header")
                self._unread = data[at:]
                return end
            chunks += 1
            self._header, self._header_begun = _NEXT_CHUNK, _NEXT_CHUNK_BEGUN
            self._left = int(match[1], 16)
            self._in_trailers = not self._left
            self._content += self._left
            self._framing += match.end() - at
            at = match.end()
            if self._framing > MAX_FRAMING + self._content:
                raise _wrong_chunk("the headers of the chunks are larger than their content")
        return at

    def _read_trailers(self, data: bytes, at: int) -> tuple[bytes, bool]:
        while (end := data.find(b"\r\n", at)) >= 0:
            line = data[at:end]
            if not line:
                return data[end + 2 :], True
            self._trailers += end + 2 - at
            self._trailer_lines += 1
            if not _TRAILER.fullmatch(line):
                raise _wrong_chunk("a trailer is not a header field")
            if self._trailers > MAX_HEADER_BYTES or self._trailer_lines > MAX_FIELDS:
                break
            at = end + 2
        self._unread = data[at:]
        unread = len(self._unread.removesuffix(b"\r"))  # it may begin the empty line, which does not count
        if self._trailers + unread > MAX_HEADER_BYTES or self._trailer_lines > MAX_FIELDS:
            raise _wrong_chunk(f"the trailers have more than {MAX_HEADER_BYTES} bytes or {MAX_FIELDS} fields")
        return b"", False


class _HeadParser:
    """The callbacks of httptools for a head."""

    def __init__(self) -> None:
        self.fields: list[Field] = []
        self.ended = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.ended = True

    def on_message_begin(self) -> None:
        self._only_before_the_end()

    def on_body(self, body: bytes) -> None:  # noqa: ARG002 - httptools' signature
        self._only_before_the_end()

    def _only_before_the_end(self) -> None:
        if self.ended:
            raise ValueError("httptools found an earlier end of the head")


def _parse_head(data: bytes, end: int) -> Head:
    """Read the head that ends there, behind its empty line."""
    line = _REQUEST_LINE.match(data)
    if line is None:
        raise _not_http(data)
    method, target, version = line[1].decode(), line[2], line[3].decode()
    if version not in ("1.0", "1.1"):
        raise _not_http(data, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    if method == "CONNECT":
        raise BadRequestError(HTTPStatus.NOT_IMPLEMENTED, "connect", "a client takes this server for a proxy")
    if len(target) > MAX_TARGET:
        explanation = f"the path and query have more than {MAX_TARGET} bytes: who sends them is not Statsig"
        raise BadRequestError(HTTPStatus.REQUEST_URI_TOO_LONG, "target_size", explanation)
    if data.count(b"\r\n", line.end(), end) > MAX_FIELDS + 1:  # and the empty line
        explanation = f"the request has more than {MAX_FIELDS} header fields: look at what a proxy adds to them"
        raise BadRequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "header_fields", explanation)
    found = _HeadParser()
    head = data[:end]
    if b"\t" in head:  # httptools knows none behind a Transfer-Encoding
        head = b"\r\n".join(map(_without_trailing_space, head.split(b"\r\n")))
    try:
        httptools.HttpRequestParser(found).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # the server ignores Upgrade, as RFC 9110, 7.8 allows
    except httptools.HttpParserError as error:
        raise _not_http(data, reason=str(error)) from error
    if not found.ended:
        raise _not_http(data)
    return _head(method, target, version, found.fields)


def _without_trailing_space(line: bytes) -> bytes:
    """Whitespace behind a field's value is not a part of it (5.1). A line of whitespace only is a fold, and stays."""
    return line.rstrip(b" \t") or line


def _head(method: str, target: bytes, version: str, fields: list[Field]) -> Head:
    """Decide what the headers say about the body and the connection (RFC 9112, 3.2, 6.3 and 9.3)."""
    deciding: dict[bytes, list[bytes]] = {name: [] for name in _DECIDING}
    for name, value in fields:
        if name in deciding:
            deciding[name].append(value)
    hosts, lengths, codings, connection, expected = deciding.values()
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        raise _wrong_head("the request has several Host headers" if hosts else "the request has no Host header")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise _wrong_head("the Host header is not a host")
    if codings and (len(codings) > 1 or codings[0].lower() != b"chunked" or lengths or version == "1.0"):
        raise _wrong_head("the only Transfer-Encoding is chunked, in HTTP/1.1 and without a Content-Length")
    if lengths and (len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0])):
        raise _wrong_head("the Content-Length is not one number")
    if not target.startswith(b"/") and (origin := _ORIGIN.match(target)):  # an absolute URL (3.2.2)
        path = target[origin.end() :]
        target = path if path.startswith(b"/") else b"/" + path
    return Head(
        method=method,
        target=target,
        version=version,
        fields=fields,
        length=None if codings else int(lengths[0]) if lengths else 0,
        keep_alive=version == "1.1" and b"close" not in b",".join(connection).lower(),
        expects_continue=version == "1.1" and b"100-continue" in [value.lower() for value in expected],
    )


_DECIDING: Final = (b"host", b"content-length", b"transfer-encoding", b"connection", b"expect")


def _wrong_head(explanation: str) -> BadRequestError:
    return BadRequestError(HTTPStatus.BAD_REQUEST, "framing", explanation)


def _wrong_chunk(explanation: str) -> BadRequestError:
    return BadRequestError(HTTPStatus.BAD_REQUEST, "chunked", explanation)


REFUSALS: Final = (
    (400, "framing"), (400, "not_http"), (400, "proxy_protocol"), (400, "tls"), (414, "target_size"),
    (431, "header_fields"), (431, "header_size"), (501, "connect"), (505, "http2"), (505, "not_http"),
)  # fmt: skip
"""The status and the kind of each refusal of a head."""

_OTHER_PROTOCOLS: Final[Sequence[tuple[bytes, str, str]]] = (
    (b"\x16\x03", "tls", "a client speaks TLS to this port, which serves plain HTTP: set tls, or use http://"),
    (b"PROXY ", "proxy_protocol", _PROXY_PROTOCOL),
    (b"\r\n\r\n\0\r\nQUIT\n", "proxy_protocol", _PROXY_PROTOCOL),
    (b"PRI * HTTP/2", "http2", "a client speaks HTTP/2: let the proxy in front speak HTTP/1.1 to this port"),
)
"""How other protocols begin, a word for each, and what to do."""


def _not_http(data: bytes, status: HTTPStatus = HTTPStatus.BAD_REQUEST, *, reason: str = "") -> BadRequestError:
    for beginning, kind, explanation in _OTHER_PROTOCOLS:
        if data.startswith(beginning):
            return BadRequestError(status, kind, explanation)
    return BadRequestError(status, "not_http", f"the request is not valid HTTP/1.1{reason and f': {reason}'}")
