"""The rows of requests that would cost the server far more processor time than their sender."""

from __future__ import annotations

from typing import Final

from statsig_otel.plugin.server.reader import MAX_TARGET
from statsig_otel.plugin.server.tls_transport import RECORDS_A_TURN
from tests.attacks.attack import ALL, Attack, sends
from tests.attacks.counting import in_few_steps, without_parsed_query
from tests.attacks.steps import LONG, head
from tests.attacks.tls_hellos import hello_of_ssl_2, long_hellos
from tests.attacks.tls_steps import costly_groups, empty_records, long_handshakes, many_certificates
from tests.attacks.turns import tiny_records

COSTLY: Final = (
    Attack(
        name="a path, query or URL of more than 8 KiB",
        expected="414",
        guards=("target size",),
        act=sends(
            head(target=b"/" + LONG[:MAX_TARGET]),
            head(target=b"/hook?" + LONG[:MAX_TARGET]),
            head(target=b"http://test/" + LONG[:MAX_TARGET]),
            status=414,
        ),
    ),
    Attack(
        name="a path of thousands of escapes",
        expected="404, and it is not decoded to be logged",
        guards=("long paths",),
        act=in_few_steps((head(target=b"/" + b"%25%25c3" * 1000), 404), tiny=head(target=b"/")),
        sites=ALL,
    ),
    Attack(
        name="a query of thousands of parameters",
        expected="401, and it is not parsed",
        guards=("unread query",),
        act=without_parsed_query(head(target=b"/hook?" + b"&".join(b"a%d=%%c3" % one for one in range(800)))),
        sites=ALL,
    ),
    Attack(
        name="a header of tens of thousands of items: Connection, Content-Encoding, the signature",
        expected="401 or 415, and it is not split",
        guards=("unsplit lists",),
        act=in_few_steps(
            *(
                (head(name + b": " + b"," * 30_000), 415 if name == b"content-encoding" else 401)
                for name in (b"connection", b"content-encoding", b"x-statsig-signature", b"x-statsig-request-timestamp")
            ),
            tiny=head(),
        ),
        sites=ALL,
    ),
    Attack(
        name="TLS records of one byte",
        expected=f"at most {RECORDS_A_TURN} of them in a row",
        guards=("short TLS turns",),
        act=tiny_records,
    ),
    Attack(
        name="TLS records without content, or with hardly any, such as KeyUpdates",
        expected="closed without an answer",
        guards=("content of TLS records",),
        act=empty_records,
    ),
    Attack(
        name="a TLS handshake of more than 16 KiB",
        expected="closed before it is read",
        guards=("content of TLS records",),
        act=long_handshakes,
    ),
    Attack(
        name="a ClientHello that is long, in pieces of one byte, or with thousands of authorities or OCSP responders",
        expected="closed before it is read",
        guards=("short ClientHello",),
        act=long_hellos,
    ),
    Attack(
        name="a ClientHello as in SSL 2.0, whose records need not be as long as their headers say",
        expected="closed before it is read",
        guards=("no SSL 2.0",),
        act=hello_of_ssl_2,
    ),
    Attack(
        name="a TLS handshake with a valid client certificate, and a hundred others behind it",
        expected="closed before they are read",
        guards=("content of TLS records",),
        act=many_certificates,
    ),
    Attack(
        name="a TLS handshake with a costly key exchange, such as ffdhe8192, P-384 or P-521",
        expected="refused",
        guards=("one group",),
        act=costly_groups,
    ),
)
