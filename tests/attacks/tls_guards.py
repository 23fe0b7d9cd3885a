"""The guards against attacks on TLS."""

from __future__ import annotations

from typing import Final

from tests.attacks.guard import Edit, Guard

TLS: Final = "statsig_otel.plugin.server.tls"
TRANSPORT: Final = "statsig_otel.plugin.server.tls_transport"
CLIENT_HELLO: Final = "statsig_otel.plugin.server.client_hello"

TLS_GUARDS: Final[dict[str, Guard]] = {
    "short TLS turns": Guard(
        "One turn of a connection decrypts at most 16 records; then the others have theirs.",
        (Edit(TRANSPORT, "for _ in range(RECORDS_A_TURN):", "while True:"),),
    ),
    "content of TLS records": Guard(
        "A TLS record costs 64 bytes, one without content four times its bytes or 1 KiB. All may cost 64 KiB more than "
        "their content. Certificates must not be compressed.",
        (
            Edit(
                TRANSPORT,
                "        if self._credit < 0:\n            _throttle",
                "        if False:\n            _throttle",
            ),
            # This only ends the turn of a connection that is closed behind it.
            Edit(TRANSPORT, "if has_ended or self._credit < 0 or not", "if has_ended or not", alone=False),
            Edit(TRANSPORT, "if self._credit < 0:  # before", "if False:  # before"),
        ),
    ),
    "short ClientHello": Guard(
        "A ClientHello comes in one record, has at most 8 KiB, and lists neither authorities nor OCSP responders.",
        (
            Edit(CLIENT_HELLO, "if len(message) > _LONGEST:", "if False:"),
            Edit(CLIENT_HELLO, "    if len(message) != _MESSAGE_HEADER + ", "    if False and "),
            Edit(CLIENT_HELLO, "if record[1] != _MAJOR_VERSION and not is_first:", "if False:"),
            Edit(CLIENT_HELLO, "kind == _CERTIFICATE_AUTHORITIES or ", ""),
            Edit(CLIENT_HELLO, "(kind == _STATUS_REQUEST and content != _ANY_STATUS)", "False"),
            Edit(TRANSPORT, "self._expects_hello = asks_for_another(answer)", "self._expects_hello = False"),
        ),
    ),
    "no SSL 2.0": Guard(
        "A ClientHello as in SSL 2.0 is not read.",
        (Edit(CLIENT_HELLO, "if record[0] & _SSL_2:", "if False:"),),
    ),
    "one group": Guard(
        "The keys of TLS are exchanged with P-256 only.", (Edit(TLS, "    context.set_ecdh_curve(_CURVE)\n", ""),)
    ),
}
