"""Loads a server's TLS certificate and key, and detects changes of certificate files."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal


def digest(files: Iterable[Path | None]) -> bytes:
    """A fingerprint of the files' current content. A file that can't be read changes the fingerprint."""
    found = hashlib.sha256()
    for file in files:
        try:
            content = file.read_bytes() if file else None
        except (OSError, ValueError) as error:
            found.update(f"{type(error).__name__}\n".encode())
            continue
        found.update(b"-\n" if content is None else f"{len(content)}\n".encode() + content)
    return found.digest()


class ServerTlsError(ValueError):
    """The files of a server's TLS do not fit. The `message` says which of them, and why."""

    def __init__(self, message: str) -> None:
        super().__init__(f"tls: {message}")
        self.message: Final = message


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """The TLS settings of a server, named as in the Collector's configtls.

    Attributes:
        cert_file: The certificate and its chain, as PEM.
        key_file: The certificate's unencrypted private key, as PEM.
        client_ca_file: Require a client certificate that one of the authorities in this PEM file has signed (mTLS).
        min_version: The lowest accepted TLS version.
    """

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    min_version: Literal["1.2", "1.3"] = "1.2"

    @property
    def files(self) -> tuple[Path | None, ...]:
        """The files whose content is watched for changes."""
        return self.cert_file, self.key_file, self.client_ca_file

    def context(self) -> ssl.SSLContext:
        """Read the files into a server's SSL context.

        Raises:
            OSError: A file cannot be read.
            ServerTlsError: A file does not contain usable PEM, or the key is not the certificate's.
        """
        files = {"cert_file": self.cert_file, "key_file": self.key_file, "client_ca_file": self.client_ca_file}
        for name, path in files.items():
            if path is not None:
                _require_readable(name, path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[self.min_version]
        context.set_alpn_protocols(["http/1.1"])
        try:
            # With an empty password, OpenSSL refuses an encrypted key instead of prompting on the terminal.
            context.load_cert_chain(self.cert_file, self.key_file, password="")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                message = f"the key in {self.key_file} is not that of the certificate in {self.cert_file}"
            else:
                message = (
                    f"{self.cert_file} and {self.key_file} are not a PEM certificate chain"
                    f" and its unencrypted key: {error}"
                )
            raise ServerTlsError(message) from error
        if self.client_ca_file is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self.client_ca_file)
            except ssl.SSLError as error:
                raise ServerTlsError(f"{self.client_ca_file} contains no PEM certificates: {error}") from error
        return context


def _require_readable(name: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise OSError(error.errno, f"tls.{name}: cannot read {path}: {error.strerror}") from error
