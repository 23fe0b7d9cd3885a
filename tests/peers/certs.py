"""Certificate authorities and certificates, made for one test run."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificate:
    """A certificate with its chain, and its private key, as PEM."""

    chain: bytes
    key: bytes

    def write(self, folder: Path, name: str = "leaf") -> tuple[str, str]:
        """Write both into a folder.

        Returns:
            The paths of the certificate and of the key.
        """
        chain, key = folder / f"{name}.pem", folder / f"{name}.key"
        chain.write_bytes(self.chain)
        key.write_bytes(self.key)
        return str(chain), str(key)


@dataclass(frozen=True)
class ServerTls:
    """A server's side of TLS.

    Attributes:
        certificate: Its own.
        client_ca: With it, clients need a certificate of this authority.
    """

    certificate: Certificate
    client_ca: bytes | None = None


class Authority:
    """A certificate authority that nobody knows but who is given its `pem`."""

    def __init__(self) -> None:
        self._ca = trustme.CA()
        self.pem: bytes = self._ca.cert_pem.bytes()

    def issue(self, *names: str, expired: bool = False) -> Certificate:
        """A certificate for host names or addresses; a server's or a client's."""
        leaf = self._ca.issue_cert(
            *names,
            not_before=datetime(2001, 1, 1, tzinfo=UTC) if expired else None,
            not_after=datetime(2001, 2, 1, tzinfo=UTC) if expired else None,
        )
        return Certificate(b"".join(pem.bytes() for pem in leaf.cert_chain_pems), leaf.private_key_pem.bytes())

    def write(self, folder: Path, name: str = "ca") -> str:
        """Write the authority's certificate into a folder and return its path."""
        path = folder / f"{name}.pem"
        path.write_bytes(self.pem)
        return str(path)
