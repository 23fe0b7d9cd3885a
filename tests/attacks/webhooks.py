"""The rows of attacks on the receiver itself, which apply to mounted receivers, too."""

from __future__ import annotations

from typing import Final

from tests.attacks.attack import ALL, Attack, sends
from tests.attacks.several import unfinished_bodies_for_each
from tests.attacks.steps import (
    BODY,
    cut_short,
    forged,
    large_unfinished_bodies,
    signed_at,
    too_large,
    unfinished_bodies,
    unsigned_body,
    webhook,
)
from tests.plugin.adapters import SECRET, signed
from tests.plugin.http_client import request

WEBHOOKS: Final = (
    Attack(
        name="other forms of the path: `//`, `%2f`, `..`, NUL, another case",
        expected="404",
        guards=("path",),
        act=sends(
            *(
                (lambda path=path: request(BODY, path=path, headers=signed(BODY)))
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
                (lambda method=method: request(BODY, method=method, headers=signed(BODY)))
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
            *(lambda value=value: webhook(Content_Encoding=value) for value in ("gzip", "br", "identity, gzip")),
            status=415,
        ),
        sites=ALL,
    ),
    Attack(
        name="a body that is declared too large",
        expected="413 before any of it is read",
        guards=("declared size",),
        act=too_large(declared=True),
        sites=ALL,
    ),
    Attack(
        name="a body that becomes too large",
        expected="413",
        guards=("arriving size",),
        act=too_large(declared=False),
        sites=ALL,
    ),
    Attack(
        name="bodies without an end, as many as the memory for bodies takes",
        expected="the oldest gives way with 408, and a signed webhook is answered",
        guards=("bytes in flight", "bodies make room"),
        act=unfinished_bodies,
        sites=("server", "asgi"),
    ),
    Attack(
        name="large bodies without an end, beside a small one that is late",
        expected="the oldest large one gives way, and the small one is taken",
        guards=("large bodies",),
        act=large_unfinished_bodies,
        sites=("server", "asgi"),
    ),
    Attack(
        name="bodies without an end, as many as fit, for each receiver of an endpoint",
        expected="the oldest large one gives way, whoever it is for, and signed webhooks for all receivers are taken",
        guards=("one limit",),
        act=unfinished_bodies_for_each,
    ),
    Attack(
        name="a large body without a signature",
        expected="401 after at most 4 KiB",
        guards=("unsigned body",),
        act=unsigned_body,
        sites=ALL,
    ),
    Attack(
        name="a client that leaves in the middle of a body",
        expected="400, and the body is not taken",
        guards=("whole body",),
        act=cut_short,
        sites=ALL,
    ),
    Attack(
        name="forged signatures: none, another secret, another body, changed letters",
        expected="401",
        guards=("signature",),
        act=sends(
            lambda: request(BODY),
            lambda: request(BODY, headers=signed(BODY, secret=SECRET + "x")),
            lambda: request(BODY, headers=signed(BODY + b" ")),
            forged(X_Statsig_Signature="v0=" + "0" * 64),
            forged(X_Statsig_Signature="v1=" + "0" * 64),
            forged(X_Statsig_Request_Timestamp="0000000000000"),
            status=401,
        ),
        sites=ALL,
    ),
    Attack(
        name="a webhook that was recorded and is sent again later, or is dated ahead",
        expected="401 outside `timestamp_tolerance`; inside it, a duplicate",
        guards=("tolerance",),
        act=sends(signed_at(-301_000), signed_at(302_000), signed_at(-86_400_000), status=401),
        sites=ALL,
    ),
    Attack(
        name="two signatures or two timestamps, one of them right",
        expected="401",
        guards=("one value",),
        act=sends(
            forged(x_statsig_signature="v0=" + "0" * 64),
            forged(x_statsig_request_timestamp="1700000000000"),
            status=401,
        ),
        sites=ALL,
    ),
)
