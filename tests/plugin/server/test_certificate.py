"""When a certificate expires, as the cryptography package reads it too."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.plugin.server.certificate import expiry


@pytest.mark.parametrize("year", [1971, 1999, 2001, 2049, 2050, 2468, 9999])
def test_the_first_certificate_of_a_chain_counts(tmp_path: Path, year: int) -> None:
    """From 2050 on the time is written in another form."""
    ends = datetime(year, 2, 28, 23, 59, 58, tzinfo=UTC)
    issued = trustme.CA().issue_cert("a.test", not_before=datetime(1970, 1, 1, tzinfo=UTC), not_after=ends)
    chain = [blob.bytes() for blob in issued.cert_chain_pems]
    path = tmp_path / "chain.pem"
    path.write_bytes(
        b"a comment, in no particular encoding: \xff\n" + b"".join([*chain, trustme.CA().cert_pem.bytes()])
    )
    assert expiry(path) == x509.load_pem_x509_certificate(chain[0]).not_valid_after_utc.timestamp() == ends.timestamp()


def test_what_is_not_a_certificate_has_no_end(tmp_path: Path) -> None:
    path = tmp_path / "other.pem"
    assert expiry(path) is None
    for content in ("", "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\n"):
        path.write_text(content)
        assert expiry(path) is None


@given(st.binary(max_size=40), st.integers(0, 700), st.integers(0, 255))
def test_damage_is_never_an_error(tail: bytes, at: int, byte: int) -> None:
    """Somebody may just be writing the file."""
    from ssl import DER_cert_to_PEM_cert, PEM_cert_to_DER_cert
    from tempfile import NamedTemporaryFile

    der = bytearray(PEM_cert_to_DER_cert(_PEM))
    der[at % len(der)] = byte
    with NamedTemporaryFile("w") as file:
        file.write(DER_cert_to_PEM_cert(bytes(der) if byte else tail))
        file.flush()
        found = expiry(Path(file.name))
    assert found is None or isinstance(found, float)


_PEM = trustme.CA().cert_pem.bytes().decode()
