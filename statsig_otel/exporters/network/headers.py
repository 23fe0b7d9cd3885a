"""The headers of the OTLP exporters: how they may be written, and which of them the protocols allow."""

import re
from collections.abc import Mapping
from typing import ClassVar, Final

from pydantic import Field

from statsig_otel.config.errors import NOT_A_NAME, SettingError
from statsig_otel.config.model import Settings
from statsig_otel.config.opaque import Opaque
from statsig_otel.config.values import Secret

_METADATA_KEY: Final = re.compile(r"[0-9a-z_.-]+")  # gRPC over HTTP/2, "Header-Name"
_METADATA_VALUE: Final = re.compile(r"[ -~]*")  # the same document, "ASCII-Value"
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.1: a token
_HEADER_VALUE: Final = re.compile(r"[\t -~\x80-\xff]*")  # RFC 9110, section 5.5
_GRPC_RESERVED: Final = frozenset({"content-type", "te", "user-agent", "host", "content-length", "connection"})
_HTTP_RESERVED: Final = frozenset({
    "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect", "host",
    "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "user-agent",
})  # fmt: skip


class HeaderSettings(Settings):
    """One element of `headers` if that is a list."""

    needed: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("name", "value"), "write {name: NAME, value: VALUE}, or NAME: VALUE without a list"
    )

    name: str = Field(description="The name of the header.")
    value: Secret = Field(description="The value of the header.")


def as_mapping(headers: list[HeaderSettings]) -> dict[str, str | Opaque]:
    """The list as a mapping.

    Raises:
        ValueError: A name is given twice.
    """
    found: dict[str, str | Opaque] = {}
    for header in headers:
        if header.name in found:
            # A string that is not a header name may be a misplaced secret.
            shown = repr(header.name) if header.name.replace("-", "").isalnum() else "without a proper name"
            raise ValueError(f"the header {shown} is given twice")
        found[header.name] = header.value
    return found


def checked_metadata(headers: Mapping[str, Opaque]) -> dict[str, Opaque]:
    """The headers of a gRPC call, with their names in lower case.

    Raises:
        ValueError: gRPC does not allow one of them.
    """
    checked = _legal(
        {key.lower(): value for key, value in headers.items()}, _METADATA_KEY, _METADATA_VALUE, _GRPC_RESERVED
    )
    if len(checked) != len(headers):
        raise ValueError("two headers differ only in upper and lower case; gRPC has lower case only")
    for key in checked:
        if key.startswith("grpc-"):
            raise ValueError(f"the header {key!r} is reserved by gRPC")
        if key.endswith("-bin"):
            raise ValueError(f"the header {key!r} is binary by its name (-bin); only text is supported")
    return checked


def checked_fields(headers: Mapping[str, Opaque]) -> dict[str, Opaque]:
    """The headers of an HTTP request.

    Raises:
        ValueError: HTTP does not allow one of them.
    """
    if len({key.lower() for key in headers}) != len(headers):
        raise ValueError("two headers differ only in upper and lower case, which HTTP ignores")
    return _legal(dict(headers), _HEADER_NAME, _HEADER_VALUE, _HTTP_RESERVED)


def _legal(
    headers: dict[str, Opaque], key_grammar: re.Pattern[str], value_grammar: re.Pattern[str], reserved: frozenset[str]
) -> dict[str, Opaque]:
    """Check names and values. No message contains a value."""
    for key, opaque in headers.items():
        value = opaque.reveal()
        if not key_grammar.fullmatch(key):
            # The key stays out of the message: `NAME:VALUE` without a space is one too.
            raise SettingError(
                "contains a key that is not the name of a header: letters, digits, - and _ only",
                NOT_A_NAME.hint,
            )
        if key.lower() in reserved:
            raise SettingError(f"the header {key!r} is set by the exporter itself", "leave it out")
        if not value_grammar.fullmatch(value):
            raise ValueError(f"the value of the header {key!r} contains a line break or another illegal character")
        if not value.strip():
            message = f"the value of the header {key!r} is empty"
            raise SettingError(message, "leave the header out, or fill the file or the variable that its value is in")
        if value != value.strip():
            raise SettingError(
                f"the value of the header {key!r} begins or ends with a space",
                "remove the space; or fill the file or the variable that belongs there, if that is empty",
            )
    return headers
