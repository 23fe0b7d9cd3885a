"""Checks and makes the signatures of webhooks: is a request from Statsig?

According to Statsig's page "Webhook Signature Verification", the signature is the HMAC-SHA256 of
`v0:{timestamp}:{raw body}`. The key is the whole secret, including its prefix `webhook-`.
"""

import hmac
import math
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Final

from statsig_otel._arguments import check_type, mistyped
from statsig_otel.config.opaque import Opaque, reveal
from statsig_otel.exporters.wording import about
from statsig_otel.plugin.webhook.errors import UnauthorizedError, check_body
from statsig_otel.plugin.webhook.secret import SECRETS_SETTING, fault_of_reference

SIGNATURE_HEADER: Final = "X-Statsig-Signature"
"""The request header with the signature: `v0=` and 64 hexadecimal digits in lower case."""

TIMESTAMP_HEADER: Final = "X-Statsig-Request-Timestamp"
"""The request header with the time of the signature: 13 digits, milliseconds since the epoch."""

_WHO: Final = "look at who else sends to this URL"
# The grammar first, int() later: int() accepts spaces, signs, underscores and the digits of other scripts.
_SIGNATURE: Final = re.compile(rb"v0=([0-9a-f]{64})")
_TIMESTAMP: Final = re.compile(rb"[0-9]{13}")
_SECONDS: Final = re.compile(rb"[0-9]{10}")


class Verifier:
    """Checks requests against one or more signing secrets.

    With several secrets at a time nothing is lost while a secret is rotated. Without any, every request is refused with
    the reason `no_secret`: Statsig's console shows the secret only after the webhook was saved.

    Args:
        secrets: The whole signing secrets, in any order, as strings or as `Opaque`. An empty one stands for one that is
            not known yet.
        tolerance: Seconds by which a request's timestamp may differ from the time now, in both directions. Statsig
            documents none; five minutes is the usual one for signed webhooks.

    Attributes:
        secret_count: How many secrets there are, including empty ones.

    Raises:
        ValueError: All secrets are empty, one is a reference such as `${env:NAME}`, or the tolerance is negative,
            infinite or NaN.
        TypeError: The secrets are a single string, whose characters would each be a secret; or one of them is neither
            a string nor an `Opaque`; or the tolerance is not a number.

    Example:
        >>> from statsig_otel.plugin import Verifier, sign
        >>> verifier = Verifier(["webhook-old", "webhook-new"])
        >>> headers = sign(b"{}", secret="webhook-new", timestamp_ms=1739400185198)
        >>> signatures = [headers["X-Statsig-Signature"].encode()]
        >>> timestamps = [headers["X-Statsig-Request-Timestamp"].encode()]
        >>> verification = verifier.begin(signatures, timestamps, now_ms=1739400185198)
        >>> verification.update(b"{}")
        >>> verification.finish()  # the position of the secret; raises UnauthorizedError if none fits
        2
    """

    def __init__(self, secrets: Sequence[str | Opaque], *, tolerance: float = 300.0) -> None:
        if isinstance(secrets, str | bytes) or not isinstance(secrets, Sequence):
            raise TypeError(mistyped("secrets", secrets, "a list of strings"))
        revealed = [_checked("a signing secret", secret) for secret in secrets]
        check_type("tolerance", tolerance, (int, float), "a number of seconds")
        if revealed and not any(revealed):
            raise ValueError("the signing secret is empty")
        if not 0 <= tolerance < math.inf:
            raise ValueError("the tolerance must be a number of seconds, 0 or more")
        self.secret_count: Final = len(revealed)
        self._keyed = {
            position: hmac.new(secret.encode(), digestmod=sha256)
            for position, secret in enumerate(revealed, 1)
            if secret
        }
        # 1.001 * 1000 is a little less than 1001, which would exclude the limit itself.
        self._tolerance_ms = round(tolerance * 1000, 6)

    @property
    def has_secret(self) -> bool:
        """Whether there is any secret: without one no request passes."""
        return bool(self._keyed)

    def begin(self, signatures: Sequence[bytes], timestamps: Sequence[bytes], now_ms: int) -> "Verification":
        """Check the headers, before the body has arrived.

        Args:
            signatures: Every value of the `X-Statsig-Signature` header, as sent.
            timestamps: Every value of the `X-Statsig-Request-Timestamp` header, as sent.
            now_ms: The time now, in milliseconds since the epoch.

        Raises:
            UnauthorizedError: There is no secret, or a header is missing, repeated, malformed or outside the
                tolerance.
        """
        if not self._keyed:
            raise UnauthorizedError("no_secret", f"the receiver has no signing secret: add it to {SECRETS_SETTING}")
        signature = _only(signatures, "signature", SIGNATURE_HEADER)
        timestamp = _only(timestamps, "timestamp", TIMESTAMP_HEADER)
        signed = _SIGNATURE.fullmatch(signature)
        if signed is None:
            message = f"{SIGNATURE_HEADER} is not v0= and 64 lower-case hex digits: {_WHO}"
            raise UnauthorizedError("signature_malformed", message)
        if _TIMESTAMP.fullmatch(timestamp) is None:
            seconds = " (these are seconds)" if _SECONDS.fullmatch(timestamp) else ""
            message = f"{TIMESTAMP_HEADER} is not 13 digits of milliseconds{seconds}: {_WHO}"
            raise UnauthorizedError("timestamp_malformed", message)
        ahead_ms = int(timestamp) - now_ms
        if abs(ahead_ms) > self._tolerance_ms:
            raise UnauthorizedError("timestamp_outside_tolerance", self._too_far(ahead_ms))
        digests = {position: keyed.copy() for position, keyed in self._keyed.items()}
        for digest in digests.values():
            digest.update(b"v0:" + timestamp + b":")
        return Verification(digests, signed[1], ahead_ms)

    def _too_far(self, ahead_ms: int) -> str:
        where, why = (
            ("in the future", "this machine's clock is slow, or the sender's is fast")
            if ahead_ms > 0
            else ("old", "something holds webhooks back, this machine's clock is fast, or the sender's is slow")
        )
        return (
            f"the webhook is {about(abs(ahead_ms) / 1000)} {where}, and timestamp_tolerance is "
            f"{about(self._tolerance_ms / 1000)}: {why}"
        )


def _only(values: Sequence[bytes], name: str, header: str) -> bytes:
    if not values:
        message = f"{header} is missing: the client is not Statsig, or a proxy removes the header"
        raise UnauthorizedError(f"{name}_missing", message)
    if len(values) > 1:
        raise UnauthorizedError(f"{name}_repeated", f"{header} was sent more than once: look at what a proxy adds")
    check_type(f"each of the {name}s", values[0], bytes, "bytes")
    return values[0]


def _checked(argument: str, secret: object) -> str:
    """The string of a secret, which is not a reference."""
    if not isinstance(secret, str | Opaque):
        raise TypeError(mistyped(argument, secret, "a str or an Opaque"))
    text = reveal(secret)
    if fault := fault_of_reference(text):
        raise ValueError(f"{argument} {fault.message}: {fault.hint}")
    return text


class Verification:
    """Computes the signature of one request while its body arrives. Made by `Verifier.begin`.

    Attributes:
        ahead_ms: The request's timestamp, less the time now, in milliseconds.
    """

    def __init__(self, digests: Mapping[int, "hmac.HMAC"], expected: bytes, ahead_ms: int) -> None:
        self.ahead_ms: Final = ahead_ms
        self._digests = digests
        self._expected = expected

    def update(self, chunk: bytes) -> None:
        """Take the next bytes of the raw body.

        Raises:
            TypeError: They are a string, not bytes.
        """
        check_body(chunk)
        for digest in self._digests.values():
            digest.update(chunk)

    def finish(self) -> int:
        """Compare the signature with that of every secret, in constant time, after the last byte of the body.

        Returns:
            The position, from 1, of the secret that gives this signature.

        Raises:
            UnauthorizedError: No secret gives this signature.
        """
        matching = [
            position
            for position, digest in self._digests.items()
            if hmac.compare_digest(digest.hexdigest().encode(), self._expected)
        ]
        if not matching:
            message = "the client has a secret that is not in signing_secrets, or something changed the body on the way"
            raise UnauthorizedError("signature_wrong", message)
        return matching[0]


def verify(
    body: bytes,
    *,
    signature: str,
    timestamp: str,
    secrets: Sequence[str | Opaque],
    now_ms: int,
    tolerance: float = 300.0,
) -> None:
    """Verify one whole request.

    Args:
        body: The raw body, as sent.
        signature: The value of the `X-Statsig-Signature` header.
        timestamp: The value of the `X-Statsig-Request-Timestamp` header.
        secrets: The whole signing secrets, in any order, as strings or as `Opaque`.
        now_ms: The time now, in milliseconds since the epoch.
        tolerance: Seconds by which the timestamp may differ from it.

    Raises:
        UnauthorizedError: The request can't be proven to come from Statsig.
        ValueError: All secrets are empty, or one is a reference such as `${env:NAME}`.
        TypeError: An argument has another type, such as a body that is a string.

    Example:
        >>> from statsig_otel.plugin import sign, verify
        >>> headers = sign(b"{}", secret="webhook-...", timestamp_ms=1739400185198)
        >>> verify(
        ...     b"{}",
        ...     signature=headers["X-Statsig-Signature"],
        ...     timestamp=headers["X-Statsig-Request-Timestamp"],
        ...     secrets=["webhook-..."],
        ...     now_ms=1739400185198,
        ... )
    """
    check_body(body)
    for argument, value in {"signature": signature, "timestamp": timestamp}.items():
        check_type(argument, value, str, hint="pass the value of the header")
    check_type("now_ms", now_ms, (int, float), "a number of milliseconds")
    headers = [signature.encode(errors="replace")], [timestamp.encode(errors="replace")]
    verification = Verifier(secrets, tolerance=tolerance).begin(*headers, now_ms)
    verification.update(body)
    verification.finish()


def sign(body: bytes, *, secret: str | Opaque, timestamp_ms: int) -> dict[str, str]:
    """The two headers that Statsig would send with this body.

    Args:
        body: The raw body.
        secret: The whole signing secret, as a string or as an `Opaque`.
        timestamp_ms: The time of the request, in milliseconds since the epoch.

    Raises:
        ValueError: The secret is a reference such as `${env:NAME}`.
        TypeError: An argument has another type, such as a body that is a string.

    Example:
        >>> from statsig_otel.plugin import sign
        >>> sign(b"{}", secret="webhook-...", timestamp_ms=1739400185198)["X-Statsig-Request-Timestamp"]
        '1739400185198'
    """
    check_body(body)
    key = _checked("secret", secret).encode()
    check_type("timestamp_ms", timestamp_ms, int)
    timestamp = f"{timestamp_ms:013d}"
    digest = hmac.new(key, b"v0:" + timestamp.encode() + b":" + body, sha256).hexdigest()
    return {TIMESTAMP_HEADER: timestamp, SIGNATURE_HEADER: f"v0={digest}"}
