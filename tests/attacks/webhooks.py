"""The rows of attacks on the receiver itself, which apply to mounted receivers, too."""

from __future__ import annotations

from typing import Final

from tests.attacks.attack import ALL, Attack, sends
from tests.attacks.logged import hostile_paths, many_refusals
from tests.attacks.several import sent_again, unfinished_bodies_for_each
from tests.attacks.steps import (
    BODY,
    changed_digit,
    cut_short,
    forged,
    in_another_form,
    large_unfinished_bodies,
    signed_at,
    signed_with_time,
    too_large,
    unfinished_bodies,
    unsigned_body,
    webhook,
    with_part_of_body,
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
        name="a path of hundreds of characters, or of control characters for a terminal",
        expected="404, and the log has its first 100 characters, escaped; or 400",
        guards=("logged path",),
        act=hostile_paths,
        sites=ALL,
    ),
    Attack(
        name="many refused requests, each with another path or without a signature",
        expected="one line of each kind in the log",
        guards=("log throttle",),
        act=many_refusals,
        sites=ALL,
    ),
    Attack(
        name="a Content-Length with a sign, an underscore, a comma or a letter, for a mounted receiver",
        expected="400, and the body is not taken",
        guards=("Content-Length of mounts",),
        act=sends(
            *(
                (lambda form=form: request(BODY, headers={**signed(BODY), "Content-Length": form % len(BODY)}))
                for form in ("+%d", "-%d", "%d_", "0x%d", "%d,5", "%d 5")
            ),
            status=400,
        ),
        sites=("wsgi",),
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
        expected="the body is not taken, and the answer, if the server still gives one, is 400",
        guards=("whole body",),
        act=cut_short,
        sites=ALL,
    ),
    Attack(
        name="forged signatures: none, another secret, another body, a changed digit",
        expected="401",
        guards=("signature",),
        act=sends(
            lambda: request(BODY),
            lambda: request(BODY, headers=signed(BODY, secret=SECRET + "x")),
            lambda: request(BODY, headers=signed(BODY + b" ")),
            forged(X_Statsig_Signature="v0=" + "0" * 64),
            lambda: request(BODY, headers=changed_digit(signed(BODY))),
            forged(X_Statsig_Request_Timestamp="0000000000000"),
            status=401,
        ),
        sites=ALL,
    ),
    Attack(
        name="a webhook that was recorded and is sent again later, or is dated ahead",
        expected="401 outside `timestamp_tolerance`",
        guards=("tolerance",),
        act=sends(signed_at(-301_000), signed_at(302_000), signed_at(-86_400_000), status=401),
        sites=ALL,
    ),
    Attack(
        name="a webhook that was recorded and is sent again within `timestamp_tolerance`",
        expected="200, as a duplicate: its change is stored once",
        guards=("seen before",),
        act=sent_again,
    ),
    Attack(
        name="right signatures in another form: another version, none, something behind it, upper case",
        expected="401",
        guards=("signature grammar",),
        act=sends(
            *(
                (lambda change=change: request(BODY, headers=in_another_form(signed(BODY), change)))
                for change in (
                    lambda right: right.replace("v0=", "v1="),
                    lambda right: right.removeprefix("v0="),
                    lambda right: right + "0",
                    lambda right: right + " x",
                    lambda right: right.upper(),
                    lambda right: right.replace("v0=", "v0= "),
                )
            ),
            status=401,
        ),
        sites=ALL,
    ),
    Attack(
        name="right signatures of timestamps in another form: a sign, an underscore, more digits, a part of the body",
        expected="401",
        guards=("timestamp grammar",),
        act=sends(
            *(
                (lambda form=form: request(BODY, headers=signed_with_time(BODY, form)))
                for form in ("+%d", "0%d", "%d_0", "%d.0", "%d:", "0x%x")
            ),
            # the bytes that were signed are the same, but the body begins later
            lambda: request(BODY[1:], headers=with_part_of_body(signed(BODY))),
            status=401,
        ),
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
