"""The attack table: what is sent, what has to happen, and the guards that make it happen.

docs/security.md prints it. `test_attacks.py` runs it, and runs it again without each guard.
"""

from __future__ import annotations

from typing import Final

from statsig_otel.plugin.server.reader import CHUNKS_A_TURN, MAX_FIELDS
from tests.attacks.attack import Attack, sends
from tests.attacks.beside import bodies_for_others
from tests.attacks.costly import COSTLY
from tests.attacks.steps import (
    BODY,
    LONG,
    answer_under_fire,
    chunked,
    connections_to_a_busy_server,
    connections_to_a_slow_server,
    endless_body,
    endless_chunks,
    head,
    hidden_request,
    idle_connections,
    offered_another_protocol,
    piled_up_answers,
    pipelined,
    refused_and_kept,
    signed_chunked,
    slow_body,
    slow_header,
    smuggled,
    trickling_connections,
    unread_answers,
    without_sniffing,
)
from tests.attacks.tls_steps import left_handshakes, silent_beside_far, unfinished_handshakes
from tests.attacks.turns import many_chunked_bodies, sent_after_a_refusal, sent_without_end, tiny_chunks
from tests.attacks.webhooks import WEBHOOKS
from tests.plugin.adapters import signed

ATTACKS: Final = (
    Attack(
        name="another protocol: TLS, the PROXY protocol, SSH",
        expected="400 at once",
        guards=("early check", "request line"),
        act=sends(
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(32),
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + head(),
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
                head(line)
                for line in (b"x: a\0b", b"x: a\r\n folded", b"x : a", b"x y: a", b": a", b"\xe9: a", b"x\x7f: a")
            ),
            status=400,
        ),
    ),
    Attack(
        name="line ends without CR or without LF",
        expected="400",
        guards=("early check", "header grammar"),
        act=sends(
            b"POST /hook HTTP/1.1\nhost: test\ncontent-length: 0\n\n",
            b"POST /hook HTTP/1.1\r\nhost: test\n\r\n\r\n",
            b"POST /hook HTTP/1.1\r\nhost: test\r\n\nx: a\r\n\r\n",
            b"POST /hook HTTP/1.1\r\nhost: test\rx: a\r\n\r\n",
            status=400,
        ),
    ),
    Attack(
        name="no Host, two, or one that is not a host",
        expected="400",
        guards=("Host",),
        act=sends(
            b"POST /hook HTTP/1.1\r\n\r\n",
            head(b"host: other"),
            head(b"Host: test"),
            *(
                b"POST /hook HTTP/1.1\r\nhost: %s\r\n\r\n" % host
                for host in (b"a b", b"a/b", b"a@b", b"\xc3\xa9", b"a?b")
            ),
            status=400,
        ),
    ),
    Attack(
        name="two Content-Lengths, or one that is not 1 to 18 digits",
        expected="400",
        guards=("Content-Length",),
        act=sends(
            head(b"content-length: 0", b"content-length: 5") + b"hello",
            *(
                head(b"content-length: " + value) + b"hello"
                for value in (b"+5", b"5, 5", b"0x5", b"5_0", b"-1", b"", b"1" + 18 * b"0", 5000 * b"1")
            ),
            status=400,
        ),
    ),
    Attack(
        name="a Content-Length beside a Transfer-Encoding",
        expected="400",
        guards=("Transfer-Encoding",),
        act=sends(
            lambda: head(b"content-length: 5", b"transfer-encoding: chunked") + b"0\r\n\r\n" + hidden_request(),
            lambda: head(b"transfer-encoding: chunked", b"content-length: 5") + b"0\r\n\r\n" + hidden_request(),
            status=400,
        ),
    ),
    Attack(
        name="Transfer-Encodings that programs read differently",
        expected="400",
        guards=("Transfer-Encoding",),
        act=sends(
            *(
                head(b"transfer-encoding: " + value) + b"0\r\n\r\n"
                for value in (
                    b"gzip, chunked",
                    b"chunked, identity",
                    b"xchunked",
                    b"identity",
                    b"\x0bchunked",
                    b"chunked;q=1",
                )
            ),
            head(b"transfer-encoding: chunked", b"transfer-encoding: chunked") + b"0\r\n\r\n",
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
                (lambda framed=framed: signed_chunked(b"hello", framed))
                for framed in (
                    b"+5\r\nhello\r\n0\r\n\r\n",
                    b"0x5\r\nhello\r\n0\r\n\r\n",
                    b" 5\r\nhello\r\n0\r\n\r\n",
                    b"5\nhello\n0\n\n",
                    b"5\r\nhello0\r\n\r\n",
                    b"5 \r\nhello\r\n0\r\n\r\n",
                    b"5\r\nhelloxx0\r\n\r\n",
                    b"5\r\nhelloX\r\n0\r\n\r\n",
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
        act=sends(head(b"x: " + LONG), b"POST /hook HTTP/1.1\r\nhost: test\r\nx: " + 4 * LONG, status=431),
    ),
    Attack(
        name="more than 100 header fields",
        expected="431",
        guards=("header count",),
        act=sends(head(*(b"x: 1",) * MAX_FIELDS), status=431),
    ),
    Attack(
        name="one-byte chunks",
        expected="400",
        guards=("chunk framing",),
        act=sends(lambda: chunked(b"1\r\nx\r\n" * 40_000), status=400),
    ),
    Attack(
        name="many small chunks beside other clients",
        expected=f"at most {CHUNKS_A_TURN} chunks in a row",
        guards=("short turns",),
        act=tiny_chunks,
    ),
    Attack(
        name="many bodies in small chunks at once",
        expected="one of them at a time is read from",
        guards=("one turn a millisecond",),
        act=many_chunked_bodies,
    ),
    Attack(
        name="chunk extensions of more than 1 KiB, also without an end",
        expected="400",
        guards=("chunk header size",),
        act=sends(
            lambda: chunked(b"1;" + LONG + b"\r\nx\r\n0\r\n\r\n"),
            lambda: chunked(b"1;" + LONG[:1024] + b"\r\nx\r\n0\r\n\r\n"),
            lambda: chunked(b"1;" + 4 * LONG),
            status=400,
        ),
    ),
    *COSTLY,
    Attack(
        name="lines behind the last chunk that are not header fields",
        expected="400, and the body is not taken",
        guards=("trailer grammar",),
        act=sends(
            *(
                (lambda line=line: signed_chunked(b"hello", b"5\r\nhello\r\n0\r\n" + line + b"\r\n\r\n"))
                for line in (
                    b"POST /hook HTTP/1.1",
                    b"x : 1",
                    b": 1",
                    b"x: 1\n\nPOST /hook HTTP/1.1",
                    b"x: a\0b",
                    b"x: a\r\n folded: b",
                )
            ),
            status=400,
        ),
    ),
    Attack(
        name="trailers of more than 64 KiB or 100 fields, also in one piece",
        expected="400",
        guards=("trailers",),
        act=sends(
            lambda: signed_chunked(BODY, b"%x\r\n%s\r\n0\r\nx: %s\r\n\r\n" % (len(BODY), BODY, LONG)),
            lambda: signed_chunked(BODY, b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(BODY), BODY, b"x: 1\r\n" * 200)),
            status=400,
        ),
    ),
    Attack(
        name="a signature in trailers",
        expected="401",
        guards=("no late headers",),
        act=sends(
            lambda: (
                head(b"transfer-encoding: chunked")
                + b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
                + "".join(f"{name}: {value}\r\n" for name, value in signed(BODY).items()).encode()
                + b"\r\n"
            ),
            status=401,
        ),
    ),
    Attack(
        name="thousands of pipelined requests",
        expected="the first is answered, and no other",
        guards=("one request",),
        act=pipelined,
    ),
    Attack(
        name="a signed request that is hidden behind another one, or in its body",
        expected="it is not taken",
        guards=("one request",),
        act=smuggled,
    ),
    Attack(
        name="an offer to switch the protocol: Upgrade: h2c",
        expected="the request is read as HTTP/1.1",
        guards=("body end",),
        act=offered_another_protocol,
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
        act=slow_header,
        slow=True,
    ),
    Attack(
        name="a TLS handshake that never ends",
        expected="closed after `read_header_timeout`",
        guards=("header deadline",),
        act=unfinished_handshakes,
    ),
    Attack(
        name="TLS handshakes that are begun and left, faster than the server can answer them",
        expected="no answer",
        guards=("clients that have left",),
        act=left_handshakes,
    ),
    Attack(
        name="a body that does not end",
        expected="408 after `read_timeout`",
        guards=("body deadline",),
        act=slow_body,
        sites=("server", "asgi"),
    ),
    Attack(
        name="a body that does not arrive, for `health_path`, a health check or a scrape",
        expected="answered without it",
        guards=("no body",),
        act=bodies_for_others,
    ),
    Attack(
        name="more connections than allowed: silent, half a header, kept alive, half a body",
        expected="a signed webhook is answered",
        guards=("making room",),
        act=idle_connections,
    ),
    Attack(
        name="more silent connections than allowed, beside a webhook from far away",
        expected="the silent ones are closed first, and the webhook is answered",
        guards=("idle ones first",),
        act=silent_beside_far,
    ),
    Attack(
        name="as many connections as allowed, one of which sends a byte now and then",
        expected="that one makes room first",
        guards=("progress",),
        act=trickling_connections,
    ),
    Attack(
        name="more connections than allowed while the server is busy",
        expected="a webhook that has arrived is answered",
        guards=("unread bytes",),
        act=connections_to_a_busy_server,
    ),
    Attack(
        name="more connections than allowed while the server is busy with other requests all the time",
        expected="a webhook that has arrived is answered",
        guards=("rounds to read",),
        act=connections_to_a_slow_server,
    ),
    Attack(
        name="a client that does not read its answer",
        expected="cut off after `read_header_timeout`",
        guards=("reading deadline",),
        act=unread_answers,
        slow=True,
    ),
    Attack(
        name="endless requests from a client that reads no answer",
        expected="they wait at the client",
        guards=("one answer",),
        act=piled_up_answers,
        slow=True,
    ),
    Attack(
        name="a body that the application does not read",
        expected="it waits at the client",
        guards=("flow control",),
        act=endless_body,
    ),
    Attack(
        name="a body in small chunks that the application does not read",
        expected="it waits at the client",
        guards=("turns of taken bodies",),
        act=endless_chunks,
    ),
    Attack(
        name="many refused requests on one connection",
        expected="closed after the first answer",
        guards=("no keep-alive",),
        act=refused_and_kept,
    ),
    Attack(
        name="a client that goes on sending after it was refused",
        expected="its answer arrives, and the rest is discarded",
        guards=("lingering close",),
        act=answer_under_fire,
    ),
    Attack(
        name="a client that never stops sending after it was refused",
        expected="closed after 5 s",
        guards=("end of discarding",),
        act=sent_without_end,
    ),
    Attack(
        name="clients that go on sending, as fast as they can, after they were refused",
        expected="one of them at a time is read from",
        guards=("turns of refused clients", "one turn a millisecond"),
        act=sent_after_a_refusal,
    ),
    Attack(
        name="an answer that a browser takes for something else",
        expected="`X-Content-Type-Options: nosniff`",
        guards=("nosniff",),
        act=without_sniffing,
    ),
    *WEBHOOKS,
)
