"""The TLS settings of the OTLP exporters. Reads and checks the certificates that they name."""

import os
import re
import ssl
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from statsig_otel.config.errors import SettingError
from statsig_otel.config.files import read_pem
from statsig_otel.config.model import Settings
from statsig_otel.config.opaque import Opaque, reveal
from statsig_otel.config.units import Duration
from statsig_otel.config.values import PathText, Secret

CANNOT_SKIP: Final = (
    "grpcio can't skip the verification of certificates: name the server's CA in ca_file, or the name in its "
    "certificate in server_name_override"
)
_NAME: Final = re.compile(r"[A-Za-z0-9_.:-]*")  # or an address
_NO_PROMPT: Final = "-"  # without any password, OpenSSL prompts for one on the terminal


def _tls_version(value: object) -> object:
    text = str(value) if isinstance(value, float) else value  # YAML reads 1.3 without quotes as a number
    if text in ("1.0", "1.1"):
        raise ValueError(f"TLS {text} is no longer supported; use 1.2 or 1.3")
    return None if text in (None, "") else text


NOTHING: Final[list[dict[str, Any]]] = [{"type": "null"}, {"type": "string", "maxLength": 0}]

TlsVersion = Annotated[
    Literal["1.2", "1.3"] | None,
    BeforeValidator(_tls_version),
    WithJsonSchema({"anyOf": [{"enum": ["1.2", "1.3", 1.2, 1.3]}, *NOTHING]}),
]
"""`1.2`, `1.3`, or None for the library's default."""


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """The content of PEM files, read and checked.

    Attributes:
        ca: The certificates to trust, or None for the library's defaults.
        certificate: The client's certificate and its chain, or None.
        key: The client's private key, or None.
    """

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """The path of a file with this content, for as long as the block. Only this process and root can read it.

    On Linux it is in memory (memfd_create(2)): a container with a read-only file system has no temporary directory, and
    no disk gets a private key.
    """
    with os.fdopen(os.memfd_create("pem"), "wb") if sys.platform == "linux" else NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}" if sys.platform == "linux" else file.name


class ClientTlsError(ValueError):
    """A file or a value that a key of `tls` names can't be used.

    Args:
        keys: The keys.
        problem: What is wrong with the value of each, for use after their names.

    Attributes:
        message: The two as one sentence, for use after the path of `tls`.
    """

    def __init__(self, keys: Sequence[str], problem: str) -> None:
        super().__init__(f"{' and '.join(f'tls::{key}' for key in keys)} {problem}")
        self.message: Final = f"{' and '.join(keys)} {problem}"


class ClientTlsSettings(Settings):
    """The client's side of TLS, with the keys of the Collector's configtls.

    Attributes:
        insecure: True for no TLS. If the endpoint is a URL, its scheme decides instead.
        ca_file: The path of the certificates to trust instead of the library's defaults.
        ca_pem: The content of `ca_file`, as a string.
        include_system_ca_certs_pool: Trust the system's certificates in addition to those of `ca_file`.
        cert_file: The path of the client's certificate; needs a key.
        cert_pem: The content of `cert_file`, as a string.
        key_file: The path of the client's private key.
        key_pem: The content of `key_file`, as a string.
        server_name_override: The host name that the server's certificate must contain, instead of the endpoint's host.
        insecure_skip_verify: True for TLS without verifying the server's certificate.
        min_version: The lowest TLS version to accept.

    Example:
        >>> from statsig_otel.exporters import ClientTlsSettings, OtlpHttpSettings
        >>> OtlpHttpSettings(endpoint="https://backend", tls=ClientTlsSettings(min_version="1.3")).tls.insecure
        False
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(hide_input_in_errors=True)

    unsupported: ClassVar[Mapping[str, str]] = {
        "cipher_suites": "leave it out: the library's defaults are used",
        "curve_preferences": "leave it out: the library's defaults are used",
        "include_insecure_cipher_suites": "leave it out: the library's defaults are used",
        "max_version": "leave it out: the newest version that both sides know is used",
        "reload_interval": "leave it out: changed PEM files are used within seconds",
        "tpm": "write the key to a file, and name that in key_file",
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "cipher_suites": ([],),
        "curve_preferences": ([],),
        "include_insecure_cipher_suites": (False,),
        "max_version": ("", "1.3"),
        "reload_interval": (Duration,),
        "tpm": ({"enabled": False},),
    }

    insecure: bool = False
    ca_file: PathText = ""
    ca_pem: Secret | None = None
    include_system_ca_certs_pool: bool = False
    cert_file: PathText = ""
    cert_pem: Secret | None = None
    key_file: PathText = ""
    key_pem: Secret | None = None
    server_name_override: str = ""
    insecure_skip_verify: bool = False
    min_version: TlsVersion = None

    @model_validator(mode="before")
    @classmethod
    def _restrict(cls, values: object) -> object:
        """A subclass, which restricts some values, is read from an instance of this class or of another one."""
        if isinstance(values, ClientTlsSettings):
            return {name: getattr(values, name) for name in values.model_fields_set}
        return values

    @field_validator("server_name_override")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise SettingError("is not a host name in ASCII", "write it as in the certificate: backend.example.com")
        return value

    @model_validator(mode="after")
    def _check_pairs(self) -> "ClientTlsSettings":
        for name in ("ca", "cert", "key"):
            if getattr(self, f"{name}_file") and getattr(self, f"{name}_pem") is not None:
                raise ValueError(f"{name}_file and {name}_pem exclude each other; keep one of them")
        has_certificate = bool(self.cert_file) or self.cert_pem is not None
        has_key = bool(self.key_file) or self.key_pem is not None
        if has_certificate and not has_key:
            raise ValueError("a client certificate needs its private key: set key_file or key_pem")
        if has_key and not has_certificate:
            raise ValueError("a private key needs its client certificate: set cert_file or cert_pem")
        return self

    @property
    def is_configured(self) -> bool:
        """Whether a key is set that has no effect without TLS."""
        # Configurations for the Collector often have both keys. Without TLS there is nothing to verify.
        plain = {"insecure", "insecure_skip_verify"} if self.insecure else {"insecure"}
        return any(getattr(self, key) != field.default for key, field in ClientTlsSettings.model_fields.items()
                   if key not in plain)  # fmt: skip

    def read(self) -> TlsMaterial:
        """Read the files.

        Raises:
            OSError: A file can't be read; the message names its key.
            ClientTlsError: A file does not contain a certificate or a key, or the two do not belong together.
        """
        material = TlsMaterial(ca=self._read("ca"), certificate=self._read("cert"), key=self._read("key"))
        self._context(material)
        return material

    def context(self, material: TlsMaterial) -> ssl.SSLContext:
        """These settings for Python's own TLS.

        Raises:
            ClientTlsError: As for `read`.
        """
        context = self._context(material)
        if material.ca is None or self.include_system_ca_certs_pool:
            context.load_default_certs()
        return context

    def _context(self, material: TlsMaterial) -> ssl.SSLContext:
        """The context without the system's certificates, which take longer to load than all the rest."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3 if self.min_version == "1.3" else ssl.TLSVersion.TLSv1_2
        if self.insecure_skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if material.ca is not None:
            try:
                context.load_verify_locations(cadata=material.ca.decode("ascii"))
            except (ssl.SSLError, ValueError) as error:
                raise ClientTlsError([self._key("ca")], f"contains no PEM certificate: {error}") from error
        if material.certificate is not None and material.key is not None:
            self._load_identity(context, material.certificate, material.key)
        return context

    def _load_identity(self, context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
        """Load the client's certificate, which Python loads only from files."""
        with _as_file(certificate) as cert_file, _as_file(key) as key_file:
            try:
                context.load_cert_chain(cert_file, key_file, password=_NO_PROMPT)
            except (ssl.SSLError, ValueError) as error:
                raise ClientTlsError(
                    [self._key("cert"), self._key("key")],
                    f"must contain a PEM certificate and its private key, without a password: {error}",
                ) from error

    def _key(self, name: str) -> str:
        return f"{name}_file" if getattr(self, f"{name}_file") else f"{name}_pem"

    def _read(self, name: str) -> bytes | None:
        path: str = getattr(self, f"{name}_file")
        text: str | Opaque | None = getattr(self, f"{name}_pem")
        if text is not None:
            return reveal(text).encode()
        if not path:
            return None
        try:
            return read_pem(Path(path))
        except OSError as error:
            raise OSError(error.errno, f"tls::{name}_file can't be read: {error.strerror}", path) from error


class GrpcTlsSettings(ClientTlsSettings):
    """The client's side of TLS, restricted to what grpcio supports."""

    @field_validator("insecure_skip_verify")
    @classmethod
    def _cannot_skip(cls, value: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - a validator's signature
        if value and not info.data.get("insecure"):
            raise ValueError(CANNOT_SKIP)
        return value

    @field_validator("min_version")
    @classmethod
    def _cannot_raise(cls, value: str | None) -> str | None:
        if value not in (None, "1.2"):
            raise ValueError("grpcio can't set the lowest TLS version (it is 1.2); leave min_version out")
        return value

    @model_validator(mode="after")
    def _cannot_add(self) -> "GrpcTlsSettings":
        if self.include_system_ca_certs_pool and (self.ca_file or self.ca_pem is not None):
            raise ValueError(
                "grpcio can't trust ca_file in addition to its defaults; put all certificates into ca_file "
                "and leave include_system_ca_certs_pool out"
            )
        return self
