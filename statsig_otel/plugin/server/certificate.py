"""Reads from a certificate when it expires: Python's ssl can decode only the certificate of a peer.

In DER a certificate is a sequence of elements that each have a tag, a length and a content (RFC 5280, section 4.1;
X.690, section 8.1).
"""

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from statsig_otel.config.files import read_pem

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"
_VERSION: Final = 0xA0  # a tag, as the next one
_UTC_TIME: Final = 0x17
_LONG: Final = 0x80  # a longer element first says how many bytes its length has


def expiry(cert_file: Path) -> float | None:
    """When the first certificate of a PEM file expires, in seconds since the epoch; None if there is none."""
    try:
        pem = read_pem(cert_file).decode("ascii", "replace")
        der = ssl.PEM_cert_to_DER_cert(pem[pem.index(_BEGIN) : pem.index(_END) + len(_END)])
        certificate, _ = _element(der)[1:]
        rest = _element(certificate)[1]  # of the part that is signed
        tag, _, behind = _element(rest)
        rest = behind if tag == _VERSION else rest
        for _ in ("serial number", "signature algorithm", "issuer"):
            rest = _element(rest)[2]
        validity = _element(rest)[1]
        tag, end, _ = _element(_element(validity)[2])
        # UTCTime has two digits of the year, of 1950 to 2049 (section 4.1.2.5.1), as strptime reads 69 to 68.
        form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
        return datetime.strptime(end.decode(), form).replace(tzinfo=UTC).timestamp()
    except (OSError, ValueError, IndexError):
        return None


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """The first element: its tag, its content, and what is behind it."""
    length, begin = der[1], 2
    if length > _LONG:
        begin += length - _LONG
        length = int.from_bytes(der[2:begin], "big")
    return der[0], der[begin : begin + length], der[begin + length :]
