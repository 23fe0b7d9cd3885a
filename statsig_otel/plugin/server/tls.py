"""The TLS settings of a server: what a user may write, the SSL context of the files, and their fingerprint."""

import hashlib
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Final, Literal

from pydantic import Field, ValidationInfo, field_validator

from statsig_otel.config.errors import SettingError
from statsig_otel.config.files import read_pem
from statsig_otel.config.model import Settings
from statsig_otel.config.units import Duration
from statsig_otel.config.values import PlainPath

_CURVE: Final = "prime256v1"
"""P-256, which every client has to know (RFC 8446, section 9.1). By default a client may choose one with which OpenSSL
takes 300 times as long for the key exchange, ffdhe8192."""

_NO_COMPRESSED_CERTIFICATES: Final = 1 << 33 if ssl.OPENSSL_VERSION_INFO >= (3, 2) else 0
"""SSL_OP_NO_RX_CERTIFICATE_COMPRESSION, for which Python has no name. OpenSSL understands compressed certificates since
3.2. A client could send a hundred KiB of these in a record of a few hundred bytes, so that a limit in bytes is none."""

_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2, with a key exchange by the curve. By default it is up to who built Python, and Debian's has RSA's key
exchange, too. TLS 1.3 has its own ones."""

_WATCHED: Final = "leave it out: changed PEM files are used within seconds"


def digest(files: Iterable[Path | None]) -> bytes:
    """A fingerprint of the files' current content. A file that can't be read changes the fingerprint."""
    found = hashlib.sha256()
    for file in files:
        try:
            content = read_pem(file) if file else None
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


class ServerTlsSettings(Settings):
    """`tls` of a server, with the Collector's names (configtls).

    Example:
        >>> from statsig_otel.plugin import ServerTlsSettings
        >>> ServerTlsSettings.model_validate({"cert_file": "chain.pem", "key_file": "key.pem"}).min_version
        '1.2'
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "ca_file": "write client_ca_file for the authorities of clients; a server needs no other",
        "ca_pem": "write the authorities of clients to a file, and name it in client_ca_file",
        "cert_pem": "write it to a file, and name that in cert_file",
        "key_pem": "write it to a file, and name that in key_file",
        "client_ca_file_reload": _WATCHED,
        "reload_interval": _WATCHED,
        "include_system_ca_certs_pool": "name the authorities of clients in client_ca_file",
        "max_version": "leave it out: the newest version that both sides know is used",
        "cipher_suites": "leave it out: with TLS 1.2 those with ECDHE and AES-GCM or ChaCha20 are used",
        "curve_preferences": "leave it out: P-256 is used, which all clients know",
        "include_insecure_cipher_suites": "leave it out: only secure ones are used",
        "tpm": "write the key to a file, and name that in key_file",
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "cipher_suites": ([],),
        "client_ca_file_reload": (True,),
        "curve_preferences": ([],),
        "include_insecure_cipher_suites": (False,),
        "include_system_ca_certs_pool": (False,),
        "max_version": ("", "1.3"),
        "reload_interval": (Duration,),
        "tpm": ({"enabled": False},),
    }

    needed: ClassVar[Mapping[str, str]] = {
        "cert_file": "name the file of the certificate chain, or leave tls out to serve plain HTTP",
        "key_file": "name the file of the certificate's private key",
    }

    cert_file: PlainPath = Field(
        description="The certificate chain, PEM.",
        examples=["/etc/statsig-otel/tls.crt"],
        json_schema_extra={"minLength": 1},
    )
    key_file: PlainPath = Field(
        description="Its private key, PEM, unencrypted.",
        examples=["/etc/statsig-otel/tls.key"],
        json_schema_extra={"minLength": 1},
    )
    client_ca_file: PlainPath | None = Field(
        default=None,
        description="Clients must present a certificate that one of these authorities has signed. Strangers must not "
        "reach this port: the certificates that they send can take very long to read.",
        json_schema_extra={"minLength": 1},
    )
    min_version: Literal["1.2", "1.3"] = Field(default="1.2", description="The oldest TLS version that is accepted.")

    @field_validator("cert_file", "key_file", "client_ca_file", mode="before")
    @classmethod
    def _refuse_empty(cls, value: object, info: ValidationInfo) -> object:
        if value == "":  # as a path it would be the working directory
            hint = cls.needed.get(info.field_name or "", "name the file of the authorities of clients, or leave it out")
            raise SettingError("is empty", hint)
        return value


def pem_files(tls: ServerTlsSettings) -> tuple[Path | None, ...]:
    """The files whose content is watched for changes."""
    return tls.cert_file, tls.key_file, tls.client_ca_file


def server_context(tls: ServerTlsSettings) -> ssl.SSLContext:
    """Read the files into a server's SSL context.

    Raises:
        OSError: A file cannot be read.
        ServerTlsError: A file does not contain usable PEM, or the key is not the certificate's.
    """
    files = {"cert_file": tls.cert_file, "key_file": tls.key_file, "client_ca_file": tls.client_ca_file}
    for name, path in files.items():
        if path is not None:
            _require_readable(name, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[tls.min_version]
    context.set_alpn_protocols(["http/1.1"])
    context.set_ecdh_curve(_CURVE)
    context.options |= ssl.OP_NO_RENEGOTIATION  # a client could ask for one handshake after the other
    context.options |= _NO_COMPRESSED_CERTIFICATES
    context.set_ciphers(_CIPHERS)
    try:
        # With an empty password, OpenSSL refuses an encrypted key instead of prompting on the terminal.
        context.load_cert_chain(tls.cert_file, tls.key_file, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            message = f"the key in {tls.key_file} is not that of the certificate in {tls.cert_file}"
        else:
            message = (
                f"{tls.cert_file} and {tls.key_file} are not a PEM certificate chain and its unencrypted key: {error}"
            )
        raise ServerTlsError(message) from error
    if tls.client_ca_file is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(tls.client_ca_file)
        except ssl.SSLError as error:
            raise ServerTlsError(f"{tls.client_ca_file} contains no PEM certificates: {error}") from error
    return context


_HANDSHAKE_FAILURES: Final = {
    "HTTP_REQUEST": "a client speaks plain HTTP to this port, which serves HTTPS: use https://, or leave tls out",
    "WRONG_VERSION_NUMBER": "a client does not speak TLS to this port: does a load balancer send the PROXY protocol?",
    "TLSV1_ALERT_UNKNOWN_CA": "a client does not trust the certificate: does cert_file contain the whole chain?",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "a client refuses the certificate: is the name that it uses in it?",
    "SSLV3_ALERT_BAD_CERTIFICATE": "a client refuses the certificate: is the name that it uses in it?",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "a client has no certificate, and client_ca_file asks for one",
    "CERTIFICATE_VERIFY_FAILED": "a client's certificate is not signed by an authority in client_ca_file",
    "NO_SUITABLE_KEY_SHARE": "a client does not know P-256, with which keys are exchanged: look at its curves",
    "NO_SHARED_CIPHER": "a client with TLS 1.2 knows neither AES-GCM nor ChaCha20 with ECDHE: look at its ciphers",
    "WRONG_CURVE": "the key of a client's certificate is of another curve than P-256, which needs TLS 1.3",
    "UNSUPPORTED_PROTOCOL": "a client speaks an older version of TLS than min_version",
}
"""OpenSSL's reasons for a failed handshake: what each means, and what to do."""


def why_handshake_failed(error: ssl.SSLError) -> str:
    """Why a TLS handshake failed, for the log."""
    return _HANDSHAKE_FAILURES.get(error.reason, str(error.reason or error))


def _require_readable(name: str, path: Path) -> None:
    try:
        read_pem(path)
    except OSError as error:
        raise OSError(error.errno, f"tls.{name}: cannot read {path}: {error.strerror}") from error
