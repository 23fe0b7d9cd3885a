"""Whether files still hold what they held."""

import ssl
from pathlib import Path

from statsig_otel.plugin.server.tls import ServerTlsSettings, digest, server_context


def test_any_change_of_any_file_is_seen(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1")
    second.write_bytes(b"23")
    seen = {digest([first, second])}
    assert digest([first, second]) in seen
    for text, other in ((b"12", b"3"), (b"1", b"24"), (b"", b"123"), (b"1\n2", b"3")):
        first.write_bytes(text)
        second.write_bytes(other)
        assert digest([first, second]) not in seen
        seen.add(digest([first, second]))
    assert digest([second, first]) not in seen
    assert digest([first, None, second]) != digest([first, second]) != digest([first])
    first.unlink()
    assert digest([first, second]) not in seen


def test_only_ciphers_with_forward_secrecy_are_used(tls: ServerTlsSettings) -> None:
    """Whatever the defaults of this Python are."""
    names = {cipher["name"] for cipher in server_context(tls).get_ciphers() if cipher["protocol"] != "TLSv1.3"}
    assert names
    assert all(name.startswith("ECDHE-") and ("GCM" in name or "CHACHA20" in name) for name in names)


def test_a_client_cannot_ask_for_another_handshake(tls: ServerTlsSettings) -> None:
    """Newer versions of OpenSSL refuse it by themselves."""
    assert server_context(tls).options & ssl.OP_NO_RENEGOTIATION
