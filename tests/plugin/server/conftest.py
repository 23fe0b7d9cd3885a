"""A certificate authority, and TLS settings with a certificate of it."""

from __future__ import annotations

import pytest
import trustme

from statsig_otel.plugin.server.tls import ServerTlsSettings


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def tls(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> ServerTlsSettings:
    directory = tmp_path_factory.mktemp("tls")
    certificate = authority.issue_cert("127.0.0.1")
    cert_file, key_file = directory / "cert.pem", directory / "key.pem"
    cert_file.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key_file.write_bytes(certificate.private_key_pem.bytes())
    return ServerTlsSettings(cert_file=cert_file, key_file=key_file)
