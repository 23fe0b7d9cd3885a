"""The settings of the OTLP exporters, with the keys of the Collector's configgrpc, confighttp and configtls.

Every accepted key has an effect. A key that the libraries here can't support is an error that says so.
"""

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, ClassVar, Final, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from statsig_otel.config.errors import SettingError
from statsig_otel.config.model import Settings
from statsig_otel.config.opaque import Opaque
from statsig_otel.config.units import Duration, Timeout
from statsig_otel.config.values import OrList, ReadAs, Secret
from statsig_otel.exporters.exporter_type import IN_A_DESTINATION
from statsig_otel.exporters.hosts import host_and_port, is_host, is_port
from statsig_otel.exporters.network.headers import HeaderSettings, as_mapping, checked_fields, checked_metadata
from statsig_otel.exporters.network.tls import CANNOT_SKIP, NOTHING, ClientTlsSettings, GrpcTlsSettings

# The schemes of gRPC's "Name Resolution" document that grpcio supports. grpcio checks what follows the scheme.
_GRPC_TARGET: Final = re.compile(r"(?:dns://[!-.0-~]*/|unix:/(?:(?!/)|//)|unix-abstract:|ipv4:|ipv6:)[!-~]+")
_DNS: Final = re.compile(r"dns://([^/]*)/")
_URL_TEXT: Final = re.compile(r"[!-~]+")
_SIGNAL_PATH: Final = re.compile(r"(/v1/(?:logs|traces|metrics)|/v1development/profiles)/*$", re.IGNORECASE)
_LONGEST_SOCKET: Final = 107  # unix(7): sun_path, without its NUL
_PLACEHOLDERS: Final = {
    "<...>": re.compile(r"<[^<>]*>"),
    "{...}": re.compile(r"\{[^{}]*\}"),
    "YOUR_...": re.compile(r"\bYOUR[_-][A-Z0-9]"),
}
SCHEMES: Final = ("http://", "https://")
"""The beginnings of an endpoint that decide about TLS."""
_ONE_CONNECTION: Final = "leave it out: there is one connection, which is reopened when needed"
_LOGS_ONLY: Final = "leave it out: changes are log records; their URL is endpoint or logs_endpoint"


def _compression(value: object) -> object:
    if value in (None, "", "none"):
        return "none"
    if value in ("zstd", "snappy", "zlib", "deflate", "lz4", "x-snappy-framed"):
        raise ValueError(f"{value} is not supported here; use gzip or none")
    return value


Compression = Annotated[
    Literal["gzip", "none"],
    BeforeValidator(_compression),
    WithJsonSchema({"anyOf": [{"enum": ["gzip", "none"]}, *NOTHING]}),
]
"""`gzip` or `none`."""

Encoding = Literal["proto", "json"]
"""`proto` or `json`."""


class KeepaliveSettings(Settings):
    """HTTP/2 pings on an open connection, as in the Collector's configgrpc. Many servers refuse a `time` under 5m.

    Attributes:
        time: The time without traffic before a ping.
        timeout: The time to wait for the answer to a ping before the connection counts as dead.
        permit_without_stream: Ping even while no request is in progress.
    """

    needed: ClassVar[Mapping[str, str]] = {"time": "write a duration, such as 5m, or leave keepalive out"}

    # Not a Timeout: pydantic 2.11.0 can give it the default of another field. gRPC counts milliseconds in 32 bits.
    time: Annotated[Duration, Field(gt=0, le=86400)]
    timeout: Annotated[Timeout, Field(le=86400)] = 20.0
    permit_without_stream: bool = False


def _without_query(url: str) -> str:
    """The URL with its query redacted, because a query may contain a key."""
    address, mark, _ = url.partition("?")
    return f"{address}{mark}{Opaque('')!r}" if mark else url


_NO_ENDPOINT: Final = re.compile(r"[=;#\s]")
"""In an endpoint these are a mistake that can bring a secret along, such as `HOST;api-key=SECRET`."""


def _shown(endpoint: str) -> str:
    """An endpoint for messages, without its query and without what precedes an @, which may be a password."""
    scheme, separator, _ = endpoint.partition("://")
    start = scheme + separator if separator and scheme.isalnum() else ""
    before, at, after = endpoint.removeprefix(start).rpartition("@")
    # The end of the password, or the start of the query, is unknown; or it is none of an endpoint's characters.
    if "?" in before or _NO_ENDPOINT.search(after.partition("?")[0]):
        return repr(f"{start}{Opaque('')!r}")
    return repr(_without_query(f"{start}{Opaque('')!r}@{after}" if at else endpoint))


Url = Annotated[str, PlainSerializer(_without_query, when_used="json")]
"""A URL whose query is redacted when it is printed."""


_BASIC: Final = (
    'leave it out, and write headers: {authorization: "Basic ${env:AUTH}"} into the exporter, with AUTH from: '
    "printf %s USER:PASSWORD | base64 | tr -d '\\n'"
)
_BEARER: Final = (
    'leave it out, and write headers: {authorization: "Bearer ${env:TOKEN}"} into the exporter, or '
    '"Bearer ${file:PATH}" for a token in a file; if it has a scheme or a header, write that for Bearer or '
    "authorization"
)
_SIGNING: Final = "send to a Collector that has it: it renews tokens that expire, or signs each request"
_DIGEST: Final = "send to a Collector that has it: each request answers a challenge of the server"

AUTHENTICATORS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("basicauth", "basic_auth"), _BASIC),
    **dict.fromkeys(("bearertokenauth", "bearer_token_auth"), _BEARER),
    **dict.fromkeys(("digestauth", "digest_auth"), _DIGEST),
    "headers_setter": "leave it out, and write the headers that it sets into the exporter's headers",
    **dict.fromkeys(
        ("asapclient", "azureauth", "azure_auth", "googleclientauth", "google_client_auth", "oauth2client",
         "oauth2_client", "sigv4auth", "sigv4_auth"), _SIGNING
    ),
}  # fmt: skip
"""The Collector's authenticators, each with what to do instead."""


class _OtlpSettings(Settings):
    """The settings of both protocols.

    Attributes:
        headers: Headers of each request: a mapping, or a list of `{name: ..., value: ...}`. The values are secret.
        compression: The compression of requests.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(hide_input_in_errors=True)

    unsupported: ClassVar[Mapping[str, str]] = {
        "auth": 'put the credentials into headers, such as authorization: "Bearer ${env:TOKEN}"; if the extension '
        "renews or computes them, send to a Collector that has it",
        "compression_params": "leave it out: gzip's level is fixed",
        "middlewares": "leave it out: there are no middleware extensions",
        "read_buffer_size": "leave it out: the library chooses its buffers",
        "write_buffer_size": "leave it out: the library chooses its buffers",
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "auth": ({},),
        "compression_params": ({},),
        "middlewares": ([],),
    }

    meant: ClassVar[Mapping[str, str]] = {
        "ca_file": "tls::ca_file",
        "cert_file": "tls::cert_file",
        "insecure": "tls::insecure",
        "insecure_skip_verify": "tls::insecure_skip_verify",
        "key_file": "tls::key_file",
        "server_name_override": "tls::server_name_override",
        "tls_settings": "tls",
        "url": "endpoint",
        **IN_A_DESTINATION,
    }

    headers: Annotated[Mapping[str, Secret], ReadAs(dict[str, Opaque]), OrList(list[HeaderSettings], as_mapping)] = (
        Field(default_factory=dict)
    )
    compression: Compression = "gzip"

    @classmethod
    def advice(cls, key: str, value: object) -> str | None:
        """The advice for a key that is refused. For `auth` it depends on the type of the authenticator.

        Args:
            key: The key.
            value: What was written there.
        """
        if key == "auth" and isinstance(value, Mapping):
            type_ = str(value.get("authenticator", "")).partition("/")[0]
            return AUTHENTICATORS.get(type_, cls.unsupported[key])
        return super().advice(key, value)


class OtlpGrpcSettings(_OtlpSettings):
    """An OTLP exporter over gRPC, with the keys of the Collector's `otlp` exporter.

    Attributes:
        endpoint: `host:port`; or `http://host:port` or `https://host:port`, whose scheme switches TLS off or on; or a
            gRPC target such as `dns:///host:port` or `unix:///path`.
        timeout: The time for one attempt, including connecting.
        tls: TLS is on unless `insecure` is true or the endpoint begins with `http://`.
        keepalive: HTTP/2 pings; off by default.
        authority: The `:authority` of requests, instead of the endpoint's host.

    Example:
        >>> from statsig_otel.exporters import OtlpGrpcSettings
        >>> OtlpGrpcSettings.model_validate({"endpoint": "collector:4317", "tls": {"insecure": True}}).timeout
        5.0
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "balancer_name": "leave it out: there is one connection, to the first address that answers",
        "encoding": "use the otlp_http exporter: over gRPC a request is always protobuf",
        "user_agent": "leave it out: the service sends its own",
        "wait_for_ready": "leave it out: an attempt that can't connect is repeated, without limit",
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "balancer_name": ("", "pick_first"),
        "encoding": ("proto",),
        "user_agent": ("",),
        "wait_for_ready": (True, False),
    }
    needed: ClassVar[Mapping[str, str]] = {"endpoint": "write host:port, such as localhost:4317"}

    endpoint: str
    timeout: Timeout = 5.0
    tls: Annotated[ClientTlsSettings, ReadAs(GrpcTlsSettings)] = Field(default_factory=GrpcTlsSettings)
    keepalive: KeepaliveSettings | None = None
    authority: str = ""

    @field_validator("authority")
    @classmethod
    def _check_authority(cls, value: str) -> str:
        if value and not _URL_TEXT.fullmatch(value):
            raise SettingError("contains a space, or a character outside ASCII", "write host, or host:port")
        return value

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, value: str) -> str:
        if not value:
            raise ValueError("must not be empty; write host:port, such as localhost:4317")
        _check_placeholder(value)
        if value.startswith(("http://", "https://")):
            parts = _split_url(value)
            if parts.path not in ("", "/") or parts.query:
                raise ValueError("must not have a path in gRPC: write host:port, or use the otlp_http exporter")
            _check_host_port(parts.netloc, usual_port=4317, scheme=f"{parts.scheme}://")
        elif value.startswith(("ipv4:", "ipv6:")):
            _check_addresses(value)
        elif _DNS.match(value):
            _check_name_to_resolve(value)
        elif not _GRPC_TARGET.fullmatch(value):
            if value.startswith("unix:"):
                raise ValueError(f"{_shown(value)} has no whole path; write it as unix:///run/otlp.sock")
            if "://" in value:
                raise ValueError(f"{_shown(value)} has an unknown scheme; write host:port, such as localhost:4317")
            _check_host_port(value, usual_port=4317)
        elif len(value.partition(":")[2].removeprefix("//")) > _LONGEST_SOCKET:
            raise ValueError(f"names a socket with more than {_LONGEST_SOCKET} bytes, which no system allows")
        return value

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: dict[str, Opaque]) -> dict[str, Opaque]:
        return checked_metadata(headers)

    @model_validator(mode="after")
    def _check_scheme(self) -> "OtlpGrpcSettings":
        if self.endpoint.startswith("http://") and self.tls.is_configured:
            raise ValueError("the endpoint begins with http://, which means no TLS, but tls is set: write https://")
        if self.uses_tls and self.tls.insecure_skip_verify:  # the scheme overrides `insecure`
            raise ValueError(f"the endpoint begins with https://, and {CANNOT_SKIP}")
        return self

    @property
    def target(self) -> str:
        """The endpoint as a gRPC target."""
        if _GRPC_TARGET.fullmatch(self.endpoint):
            return self.endpoint
        return "dns:///" + self.endpoint.removeprefix("http://").removeprefix("https://").rstrip("/")

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        if self.endpoint.startswith(SCHEMES):
            return self.endpoint.startswith("https://")
        return not self.tls.insecure


class OtlpHttpSettings(_OtlpSettings):
    """An OTLP exporter over HTTP, with the keys of the Collector's `otlphttp` exporter.

    Attributes:
        endpoint: A URL, to which `/v1/logs` is appended. Its scheme decides whether TLS is used.
        logs_endpoint: A URL to which nothing is appended. It overrides `endpoint`.
        encoding: `proto`, which every OTLP receiver reads, or `json`, for receivers that read nothing else.
        timeout: The time for one attempt, including connecting.
        tls: The TLS settings for an `https://` URL.

    Example:
        >>> from statsig_otel.exporters import OtlpHttpSettings
        >>> OtlpHttpSettings.model_validate({"endpoint": "https://backend", "headers": {"api-key": "k"}}).headers
        {'api-key': [REDACTED]}
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "cookies": "leave it out: cookies are not stored",
        "disable_keep_alives": _ONE_CONNECTION,
        "force_attempt_http2": "leave it out: the exporter uses HTTP/1.1; otlp_grpc uses HTTP/2",
        "http2_ping_timeout": "leave it out: the exporter uses HTTP/1.1; otlp_grpc has keepalive",
        "http2_read_idle_timeout": "leave it out: the exporter uses HTTP/1.1; otlp_grpc has keepalive",
        "keepalive": _ONE_CONNECTION,
        "idle_conn_timeout": _ONE_CONNECTION,
        "max_conns_per_host": _ONE_CONNECTION,
        "max_idle_conns": _ONE_CONNECTION,
        "max_idle_conns_per_host": _ONE_CONNECTION,
        "metrics_endpoint": _LOGS_ONLY,
        "profiles_endpoint": _LOGS_ONLY,
        "proxy_url": "leave it out: the environment's HTTPS_PROXY, HTTP_PROXY and NO_PROXY count",
        "traces_endpoint": _LOGS_ONLY,
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "cookies": ({"enabled": False},),
        "disable_keep_alives": (False,),
        "force_attempt_http2": (False,),
        **dict.fromkeys(("http2_ping_timeout", "http2_read_idle_timeout"), ("0s",)),
        **dict.fromkeys(("metrics_endpoint", "profiles_endpoint", "proxy_url", "traces_endpoint"), ("",)),
    }

    endpoint: Url = ""
    logs_endpoint: Url = ""
    encoding: Encoding = "proto"
    timeout: Timeout = 30.0
    tls: ClientTlsSettings = Field(default_factory=ClientTlsSettings)

    @field_validator("endpoint", "logs_endpoint")
    @classmethod
    def _check_url(cls, value: str) -> str:
        if not value:
            return value
        if not value.startswith(("http://", "https://")):
            fault = "an unknown scheme" if "://" in value else "no scheme"
            raise ValueError(f"{_shown(value)} has {fault}; write http://HOST:PORT (plain text) or https://HOST:PORT")
        _check_placeholder(value)
        parts = _split_url(value)
        host, port = host_and_port(parts.netloc)
        if not is_host(host) or (port and not is_port(port)):
            raise ValueError(f"{_shown(value)} has no host with an optional port, such as localhost:4318")
        return value

    @field_validator("endpoint")
    @classmethod
    def _check_base(cls, value: str) -> str:
        if "?" in value:
            raise ValueError("/v1/logs can't be appended to a URL with a query; put the whole URL into logs_endpoint")
        path = _SIGNAL_PATH.search(value)
        if path is not None:
            is_for_logs = path[1].lower() == "/v1/logs"
            other = ", or put the whole URL into logs_endpoint" if is_for_logs else ""
            raise ValueError(f"/v1/logs is appended to this URL; leave {path[1]} out{other}")
        return value

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: dict[str, Opaque]) -> dict[str, Opaque]:
        return checked_fields(headers)

    @model_validator(mode="after")
    def _check_urls(self) -> "OtlpHttpSettings":
        if not self.endpoint and not self.logs_endpoint:
            raise ValueError("needs an endpoint, such as http://localhost:4318, or a logs_endpoint")
        if self.url.scheme == "http" and self.tls.is_configured:
            raise ValueError("the URL begins with http://, which means no TLS, but tls is set: write https://")
        return self

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.url.scheme == "https"

    @property
    def url(self) -> SplitResult:
        """The URL to which log records are posted."""
        return urlsplit(self.logs_endpoint or self.endpoint.rstrip("/") + "/v1/logs")


def placeholder(value: str) -> str:
    """The form of what documentation shows in the place of something of the reader's own; empty if there is none."""
    return next((form for form, pattern in _PLACEHOLDERS.items() if pattern.search(value)), "")


def _check_placeholder(value: str) -> None:
    if form := placeholder(value):
        raise SettingError(f"contains {form}, which stands for something of your own", "write that in its place")


def _split_url(value: str) -> SplitResult:
    # Most messages do not contain the value, because it may contain a password or a key.
    if not _URL_TEXT.fullmatch(value):
        raise ValueError("must not contain spaces, and characters outside ASCII must be percent-encoded")
    if "#" in value:
        raise ValueError("must not have a fragment (#)")
    try:
        parts = urlsplit(value)
    except ValueError as error:
        raise ValueError("is not a URL") from error
    if "@" in parts.netloc:
        raise ValueError("credentials don't belong in the URL; put them into headers")
    return parts


def _check_host_port(value: str, *, usual_port: int, scheme: str = "") -> None:
    host, port = host_and_port(value)
    if not port and not value.isdigit() and is_host(host):
        address = f"{scheme}{host}:{usual_port} for a Collector"
        if scheme != "http://":
            address += f", or {scheme}{host}:443 for most vendors"
        raise ValueError(f"{_shown(scheme + value)} has no port; write {address}")
    if not is_host(host) or not is_port(port):
        raise ValueError(f"{_shown(value)} is not host:port, such as localhost:{usual_port} or [::1]:{usual_port}")


def _check_name_to_resolve(target: str) -> None:
    """Check `dns://SERVER/HOST:PORT`. The server and both ports may be missing; grpcio's port is 443 then."""
    server, rest = _DNS.split(target)[1:]
    for address in ([server] if server else []) + [rest]:
        host, port = host_and_port(address)
        if not is_host(host) or (port and not is_port(port)):
            raise ValueError(f"{_shown(target)} names no host with an optional port; write it as dns:///collector:4317")


def _check_addresses(target: str) -> None:
    """Check `ipv4:1.2.3.4:4317,...` or `ipv6:[::1]:4317,...`, which grpcio would refuse only at the first call."""
    scheme, _, rest = target.partition(":")
    kind = IPv4Address if scheme == "ipv4" else IPv6Address
    for one in rest.split(","):
        host, _, port = one.rpartition(":")
        try:
            kind(host.removeprefix("[").removesuffix("]") if scheme == "ipv6" else host)
        except ValueError:
            host = ""
        if not host or not is_port(port):
            example = "ipv4:192.0.2.1:4317" if scheme == "ipv4" else "ipv6:[2001:db8::1]:4317"
            raise ValueError(f"{_shown(target)} is not a list of addresses with ports, such as {example}")
