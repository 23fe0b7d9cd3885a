"""The certificate and key of a server, and whether their files have changed."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


def digest(files: Iterable[Path | None]) -> bytes:
    """A fingerprint of what the files hold now. One that can't be read differs from one that can."""
    found = hashlib.sha256()
    for file in files:
        try:
            content = file.read_bytes() if file else None
        except (OSError, ValueError) as error:
            found.update(f"{type(error).__name__}\n".encode())
            continue
        found.update(b"-\n" if content is None else f"{len(content)}\n".encode() + content)
    return found.digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """What a TLS server needs, named as in the Collector's configtls.

    Attributes:
        cert_file: The certificate and what it is chained to, as PEM.
        key_file: Its private key, as PEM; not encrypted.
        client_ca_file: With it a client must present a certificate that one of its authorities has signed (mTLS).
        min_version: The lowest TLS version that is accepted.

    Example:
        >>> from pathlib import Path
        >>> from statsig_otel.plugin import ServerTls
        >>> ServerTls(cert_file=Path("chain.pem"), key_file=Path("key.pem")).min_version
        '1.2'
    """

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    min_version: Literal["1.2", "1.3"] = "1.2"

    @property
    def files(self) -> tuple[Path | None, ...]:
        """The files, by which a change of their content can be seen."""
        return self.cert_file, self.key_file, self.client_ca_file

    def check(self) -> None:
        """Read the files once, as the server will.

        Raises:
            OSError: A file cannot be read.
            ValueError: A file holds no usable PEM, or the key is not the certificate's.
        """
        self.context()

    def context(self) -> ssl.SSLContext:
        """Read the files into a context for a server.

        Raises:
            OSError: A file cannot be read.
            ValueError: A file holds no usable PEM, or the key is not the certificate's.
        """
        files = {"cert_file": self.cert_file, "key_file": self.key_file, "client_ca_file": self.client_ca_file}
        for name, path in files.items():
            if path is not None:
                _require_readable(name, path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[self.min_version]
        context.set_alpn_protocols(["http/1.1"])
        try:
            # An empty password: an encrypted key is an error here, never a prompt on the terminal.
            context.load_cert_chain(self.cert_file, self.key_file, password="")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                message = f"tls: the key in {self.key_file} is not that of the certificate in {self.cert_file}"
            else:
                message = (
                    f"tls: {self.cert_file} and {self.key_file} are not a PEM certificate chain"
                    f" and its unencrypted key: {error}"
                )
            raise ValueError(message) from error
        if self.client_ca_file is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self.client_ca_file)
            except ssl.SSLError as error:
                raise ValueError(f"tls: {self.client_ca_file} holds no PEM certificates: {error}") from error
        return context


def _require_readable(name: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise OSError(error.errno, f"tls.{name}: cannot read {path}: {error.strerror}") from error
