"""The guards against attacks: what each does, and how it is removed to see that an attack then succeeds."""

from __future__ import annotations

from typing import Final

from tests.attacks.guard import Edit, Guard
from tests.attacks.tls_guards import TLS_GUARDS

READER: Final = "statsig_otel.plugin.server.reader"
CONNECTION: Final = "statsig_otel.plugin.server.connection"
EXCHANGE: Final = "statsig_otel.plugin.server.exchange"
CONNECTIONS: Final = "statsig_otel.plugin.server.connections"
TURNS: Final = "statsig_otel.plugin.server.turns"
INTAKE: Final = "statsig_otel.plugin.receiver.intake"
BODIES: Final = "statsig_otel.plugin.receiver.bodies"
ANSWERS: Final = "statsig_otel.plugin.receiver.responses"
ASGI: Final = "statsig_otel.plugin.receiver.asgi"
WSGI: Final = "statsig_otel.plugin.receiver.wsgi"
INBOUND: Final = "statsig_otel.plugin.service.inbound"
SIGNATURE: Final = "statsig_otel.plugin.webhook.signature"
LOG: Final = "statsig_otel._log_throttle"
STORE: Final = "statsig_otel.exporters.queue.store"

_HTTPTOOLS: Final = "httptools.HttpRequestParser(found).feed_data(head)"
_NAIVE: Final = (
    "[found.on_header(*line.split(b':', 1)) for line in data[:end].split(b'\\r\\n')[1:-2] if b':' in line]\n"
    "        found.ended = True"
)

GUARDS: Final[dict[str, Guard]] = {
    "request line": Guard(
        "A request line has a method, a target and HTTP/1.0 or 1.1, separated by single spaces.",
        (
            Edit(
                READER,
                'rb"(?:\\r\\n)?([A-Z_-]+) ([!-~]+) HTTP/([0-9]\\.[0-9])\\r\\n"',
                'rb"([A-Z_-]+) +([!-~]+) ?(?:.*/)?([0-9.]*).*\\r\\n"',
            ),
            Edit(READER, 'if version not in ("1.0", "1.1"):', "version = '1.1'\n    if False:"),
            # What is above stops the same.
            Edit(READER, _HTTPTOOLS, _NAIVE, alone=False),
        ),
    ),
    "early check": Guard(
        "Bytes that can't begin a request are refused before a whole header has arrived.",
        (Edit(READER, "if _NOT_IN_A_HEAD.search(begun, max(before - 1, 0)) or ", "if False and "),),
    ),
    "header grammar": Guard(
        "httptools checks names, values and line ends of all header fields.", (Edit(READER, _HTTPTOOLS, _NAIVE),)
    ),
    "header size": Guard(
        "A request line and headers have at most 64 KiB.",
        (Edit(READER, "if end > MAX_HEADER_BYTES:", "if False:"),),
    ),
    "header count": Guard(
        "A request has at most 100 header fields.",
        (Edit(READER, 'if data.count(b"\\r\\n", line.end(), end) > MAX_FIELDS + 1:', "if False:"),),
    ),
    "target size": Guard(
        "The path and query of a request have at most 8 KiB.",
        (Edit(READER, "if len(target) > MAX_TARGET:", "if False:"),),
    ),
    "long paths": Guard(
        "A path that is much longer than a receiver's leads nowhere, whatever its escapes mean.",
        (Edit(ANSWERS, " if len(path) <= self._longest else None", ""),),
    ),
    "unread query": Guard(
        "The query is not given to Falcon, which would parse it.",
        (
            Edit(ASGI, ', "query_string": b""', ""),
            Edit(WSGI, '            "QUERY_STRING": "",  # nobody asks for it, and Falcon would parse it\n', ""),
        ),
    ),
    "unsplit lists": Guard(
        "Of a header that has to have one value no more than two are read.",
        (
            Edit(
                READER,
                'b"close" not in b",".join(connection).lower()',
                'b"close" not in [option.strip() for option in b",".join(connection).lower().split(b",")]',
            ),
            Edit(
                ASGI,
                'map(tuple, scope["headers"])',
                '[(name, item) for name, value in scope["headers"] for item in value.split(b",")]',
            ),
            Edit(WSGI, 'environ[variable].split(",", 1)', 'environ[variable].split(",")'),
        ),
    ),
    "Host": Guard(
        "A request has one Host, of a host's characters; one of HTTP/1.0 may have none.",
        (
            Edit(READER, 'if len(hosts) > 1 or (version == "1.1" and not hosts):', "if False:"),
            Edit(READER, "if hosts and not _HOST.fullmatch(hosts[0]):", "if False:"),
        ),
    ),
    "Content-Length": Guard(
        "There is at most one Content-Length, of at most 18 digits and nothing else.",
        (
            Edit(READER, "if lengths and (len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0])):", "if False:"),
            # The reader's own look at these headers stops the same.
            Edit(READER, _HTTPTOOLS, _NAIVE, alone=False),
            Edit(READER, 're.compile(rb"[0-9]{1,18}")', 're.compile(rb"[0-9]{1,19}")'),
            # The receiver looks again, for mounts. A guard of its own, below, is about that.
            Edit(INTAKE, "if len(set(values)) > 1 or not _DIGITS.fullmatch(values[0]):", "if False:", alone=False),
        ),
    ),
    "Content-Length of mounts": Guard(
        "Where another server reads HTTP, the receiver reads a Content-Length of digits only.",
        (
            Edit(
                INTAKE,
                "if len(set(values)) > 1 or not _DIGITS.fullmatch(values[0]):",
                "if not values[0].isdigit():\n        return None\n    if False:",
            ),
        ),
    ),
    "Transfer-Encoding": Guard(
        "The only Transfer-Encoding is chunked, once, in HTTP/1.1 and without a Content-Length.",
        (
            Edit(
                READER,
                'if codings and (len(codings) > 1 or codings[0].lower() != b"chunked" or lengths or version == "1.0"):',
                "if False:",
            ),
            # The reader's own look at these headers stops the same.
            Edit(READER, _HTTPTOOLS, _NAIVE, alone=False),
        ),
    ),
    "CONNECT": Guard("A request to be a proxy is refused.", (Edit(READER, 'if method == "CONNECT":', "if False:"),)),
    "chunk grammar": Guard(
        "The header of a chunk is a hexadecimal size with optional extensions, between exact line ends.",
        (
            Edit(
                READER,
                '_SIZE: Final = rb"([0-9A-Fa-f]{1,15})(?:[ \\t]*;[\\t\\x20-\\x7e\\x80-\\xff]*)?\\r\\n"',
                '_SIZE: Final = rb"[ +x-]*([0-9A-Fa-f]{1,15})[^\\n]*\\n"',
            ),
            Edit(READER, "if not self._header_begun.fullmatch(data, at):", "if False:"),
            Edit(READER, 're.compile(rb"\\r\\n" + _SIZE)', 're.compile(rb"[^\\n]*\\n" + _SIZE)'),
        ),
    ),
    "chunk framing": Guard(
        "The headers of all chunks have at most as many bytes as what is in them, and 16 KiB more.",
        (Edit(READER, "if self._framing > MAX_FRAMING + self._content:", "if False:"),),
    ),
    "chunk header size": Guard(
        "The header of one chunk has at most 1 KiB.",
        (Edit(READER, "if (match.end() if match else end) - at > MAX_CHUNK_HEADER:", "if False:"),),
    ),
    "trailer grammar": Guard(
        "Each line behind the last chunk is a header field.",
        (Edit(READER, "if not _TRAILER.fullmatch(line):", "if False:"),),
    ),
    "trailers": Guard(
        "Trailers have at most 64 KiB and 100 fields.",
        (
            Edit(
                READER,
                "            if self._trailers > MAX_HEADER_BYTES or self._trailer_lines > MAX_FIELDS:\n",
                "            if False:\n",
            ),
            Edit(
                READER,
                "if self._trailers + unread > MAX_HEADER_BYTES or self._trailer_lines > MAX_FIELDS:",
                "if False:",
            ),
        ),
    ),
    "no late headers": Guard(
        "Trailers never become headers.",
        (
            # Nothing has to be removed. It takes both to add the fault.
            Edit(
                READER,
                "            self._chunks = _Chunks()\n",
                "            self._chunks = _Chunks()\n            self._chunks.fields = head.fields\n",
                alone=False,
            ),
            Edit(
                READER,
                "            self._trailer_lines += 1\n",
                "            self._trailer_lines += 1\n            self.fields.append(tuple(line.split(b': ', 1)))\n",
                alone=False,
            ),
        ),
    ),
    "short turns": Guard(
        "One turn of a connection handles at most 128 chunks; then the others have theirs.",
        (Edit(READER, "chunks < CHUNKS_A_TURN and ", ""),),
    ),
    **TLS_GUARDS,
    "one request": Guard(
        "Nothing behind a request is read, and such a connection ends with the answer.",
        (
            Edit(
                CONNECTION,
                "            if rest:\n                self._discard()\n",
                "            self.behind = getattr(self, 'behind', b'') + rest\n",
            ),
            Edit(
                CONNECTION,
                "        if self._exchange is not None and self._reader.is_complete:\n            self._discard()\n",
                "        if self._exchange is not None and self._reader.is_complete:\n"
                "            self.behind = getattr(self, 'behind', b'') + data\n            return\n",
            ),
            # This removes nothing: it handles what the others have kept.
            Edit(
                CONNECTION,
                "            self._pause_reading()\n\n    def abort(self)",
                "            self._pause_reading()\n        data, self.behind = getattr(self, 'behind', b''), b''\n"
                "        if data:\n            self._read(data)\n\n    def abort(self)",
                alone=False,
            ),
        ),
    ),
    "body end": Guard(
        "A body ends where its length says; the header Upgrade changes nothing about it.",
        (
            Edit(
                READER,
                "    except httptools.HttpParserUpgrade:\n        pass",
                "    except httptools.HttpParserUpgrade:\n        found.fields = [(b'host', b'test')]",
            ),
        ),
    ),
    "no keep-alive": Guard(
        "An answer of 400 or more ends the connection.",
        (Edit(EXCHANGE, "status >= HTTPStatus.BAD_REQUEST or ", ""),),
    ),
    "header deadline": Guard(
        "A TLS handshake and a header have to arrive within `read_header_timeout`, which also ends idle connections.",
        (
            Edit(
                CONNECTION,
                "        self._expire_after(self._head_timeout)\n\n    def connection_lost",
                "\n    def connection_lost",
            ),
        ),
    ),
    "reading deadline": Guard(
        "A client has to read a part of its answer within `read_header_timeout`.",
        (
            Edit(
                CONNECTION,
                "            self._unsent = self._transport.get_write_buffer_size()\n            self._expire_after(",
                "            self._unsent = 1\n            id(",
            ),
        ),
    ),
    "one answer": Guard(
        "The next request is read after the client has read the answer to this one.",
        (
            Edit(
                CONNECTION,
                "            self._pause_reading()\n\n    def abort(self)",
                "            pass\n\n    def abort(self)",
            ),
        ),
    ),
    "making room": Guard(
        "At `max_connections`, the connection that has waited for its client for longest makes room.",
        (Edit(CONNECTIONS, "if since + least > now:", "if True:"),),
    ),
    "idle ones first": Guard(
        "A connection in the middle of a request or a TLS handshake makes room after all that have not begun one.",
        (Edit(CONNECTIONS, "(self._begun if has_begun else self._idle)", "self._idle"),),
    ),
    "clients that have left": Guard(
        "With TLS, a connection whose client has left before it is accepted is dropped without a handshake.",
        (Edit(CONNECTIONS, "if self._context() is not None and _has_left(accepted):", "if False:"),),
    ),
    "progress": Guard(
        "Such a wait does not begin again with each byte, but with 16 KiB of a request.",
        (Edit(CONNECTION, "self._until_heard = _PROGRESS", "self._until_heard = 0"),),
    ),
    "unread bytes": Guard(
        "The wait of a connection begins again, once, if its client has sent what is not yet read.",
        (Edit(CONNECTIONS, "if not prolonged_until and _has_unread(self._open[connection]):", "if False:"),),
    ),
    "rounds to read": Guard(
        "This wait lasts until the server has read that, however long it takes.",
        (Edit(CONNECTIONS, "elif prolonged_until <= self._round:", "else:"),),
    ),
    "turns of taken bodies": Guard(
        "A connection has its turn after the application has taken what was read.",
        (Edit(CONNECTION, " or len(self._reader.body) > _MOST_UNTAKEN:\n            return", ":\n            return"),),
    ),
    "flow control": Guard(
        "A body that the application does not take is not read.",
        (Edit(CONNECTION, "if rest or len(reader.body) > _MOST_UNTAKEN:", "if rest:"),),
    ),
    "lingering close": Guard(
        "What a refused client still sends is discarded for some seconds, so that the answer arrives.",
        (
            Edit(
                CONNECTION,
                "        if self._client_ended or (self._reader.is_complete and not self._is_discarding):\n",
                "        if True:\n",
            ),
        ),
    ),
    "end of discarding": Guard(
        "This ends after 5 s, also if the client goes on.",
        (Edit(CONNECTION, "_LINGER: Final = 5.0", "_LINGER: Final = 3600.0"),),
    ),
    "turns of refused clients": Guard(
        "Of the clients that still send after they were refused, one at a time is read from.",
        (
            Edit(
                CONNECTION,
                "if self._discarded > _MOST_AT_ONCE:",
                "if False:",
            ),
        ),
    ),
    "one turn a millisecond": Guard(
        "In each millisecond one connection has its turn.",
        (
            Edit(
                TURNS,
                "        if waiting := self._reading or self._discarding:\n"
                "            next_turn, _ = waiting.popitem(last=False)\n"
                "            self._call()\n"
                "            next_turn()",
                "        waiting = [*self._reading, *self._discarding]\n"
                "        self._reading.clear()\n"
                "        self._discarding.clear()\n"
                "        for next_turn in waiting:\n"
                "            next_turn()",
            ),
        ),
    ),
    "nosniff": Guard(
        "All answers have X-Content-Type-Options: nosniff.",
        (Edit(EXCHANGE, "\\r\\nx-content-type-options: nosniff", ""),),
    ),
    "path": Guard(
        "The path is compared letter by letter; one slash at its end is accepted.",
        (
            Edit(
                ANSWERS,
                "        if found is not None and not _OTHER_FORM.match(encoded):",
                "        found = self._paths.get(re.sub('/+', '/', path))\n        if found is not None:",
            ),
        ),
    ),
    "method": Guard(
        "A webhook is sent with POST.",
        (
            Edit(ASGI, '"POST" if scope["method"] == "POST" else "OPTIONS"', '"POST"'),
            Edit(WSGI, 'method if method in ("POST", "HEAD") else "OPTIONS"', '"POST"'),
        ),
    ),
    "encoding": Guard(
        "Content-Encoding is identity: nothing is unpacked.",
        (
            Edit(
                INTAKE,
                "if any(value.strip().lower() not in _NO_CODING for value in encodings):",
                "if False:",
            ),
        ),
    ),
    "declared size": Guard(
        "A body that is declared larger than `max_request_body_size` is refused by its headers.",
        (Edit(INTAKE, "if length is not None and length > self.limits.max_request_body_size:", "if False:"),),
    ),
    "arriving size": Guard(
        "A body that becomes larger than `max_request_body_size` is refused while it arrives.",
        (Edit(INTAKE, "if size > self._intake.limits.max_request_body_size:", "if False:"),),
    ),
    "bytes in flight": Guard(
        "All bodies together have at most `max_in_flight_bytes`.",
        (Edit(BODIES, "while self.size + more > self._max_bytes:", "while False:"),),
    ),
    "bodies make room": Guard(
        "At `max_in_flight_bytes`, the oldest body that has not arrived as a whole gives way.",
        (Edit(BODIES, "for body in self._unfinished:", "for body in ():"),),
    ),
    "large bodies": Guard(
        "Bodies over 256 KiB have at most 7/8 of `max_in_flight_bytes`, and give way to each other first.",
        (Edit(BODIES, "while large and self._large_size", "while False and self._large_size"),),
    ),
    "one limit": Guard(
        "The receivers of an endpoint share `max_in_flight_bytes`.",
        (Edit(INBOUND, "share_memory(self.intakes, settings, listens=listen)", "pass"),),
    ),
    "unsigned body": Guard(
        "Of a request without valid signature headers at most 4 KiB are read, as it may be a URL verification.",
        (
            Edit(INTAKE, "if length is not None and length > MAX_URL_VERIFICATION_SIZE:", "if False:"),
            Edit(
                INTAKE,
                "if isinstance(self._signature, UnauthorizedError) and size > MAX_URL_VERIFICATION_SIZE:",
                "if False:",
            ),
        ),
    ),
    "body deadline": Guard(
        "A whole body has to arrive within `read_timeout`.",
        (Edit(ASGI, "asyncio.timeout(self._intake.limits.read_timeout)", "asyncio.timeout(None)"),),
    ),
    "no body": Guard(
        "Health checks and scrapes are answered without the bodies of their requests.",
        (Edit(EXCHANGE, "await app(scope, _no_body, send)", "await app(scope, _, send)"),),
    ),
    "whole body": Guard(
        "A body that ends early is never taken for a whole one.",
        (Edit(INTAKE, "        if not complete:\n", "        if False:\n"),),
    ),
    "signature": Guard(
        "The signature has to be that of the body and the timestamp, by a secret of the receiver.",
        (Edit(SIGNATURE, "        if not matching:\n", "        if not matching and matching.append(0):\n"),),
    ),
    "tolerance": Guard(
        "The timestamp has to be within `timestamp_tolerance`.",
        (Edit(SIGNATURE, "if abs(ahead_ms) > self._tolerance_ms:", "if False:"),),
    ),
    "one value": Guard(
        "The signature and the timestamp are sent once.",
        (Edit(SIGNATURE, "    if len(values) > 1:\n", "    if False:\n"),),
    ),
    "signature grammar": Guard(
        "A signature is `v0=` and 64 hexadecimal digits in lower case.",
        (Edit(SIGNATURE, 're.compile(rb"v0=([0-9a-f]{64})")', 're.compile(rb"(?:v[0-9]=)?([0-9a-f]{64}).*")'),),
    ),
    "timestamp grammar": Guard(
        "A timestamp is 13 digits, which is also what is signed.",
        (Edit(SIGNATURE, 're.compile(rb"[0-9]{13}")', 're.compile(rb"[+]?[0-9_]{13,}")'),),
    ),
    "seen before": Guard(
        "A change is remembered for 24 hours, and one that comes again is counted and not stored.",
        (Edit(STORE, ".rowcount > 0 for sight in sights", ".rowcount >= 0 for sight in sights"),),
    ),
    "log throttle": Guard(
        "Of each kind of refusal at most one line in ten seconds is logged. The kinds are our own words.",
        (Edit(LOG, "if now < state.next_line:", "if False:"),),
    ),
    "logged path": Guard(
        "Of a wrong path the first 100 characters are logged, control characters as escapes.",
        (
            Edit(ANSWERS, "shown = printable(", "shown = str("),
            Edit(ANSWERS, "[:_SHOWN])", ")"),
        ),
    ),
}
