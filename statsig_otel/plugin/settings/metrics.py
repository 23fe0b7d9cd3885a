"""The `service::telemetry::metrics` settings, with the Collector's names: who reads the service's own metrics."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from statsig_otel.config.errors import SettingError
from statsig_otel.config.model import Settings
from statsig_otel.config.opaque import Opaque
from statsig_otel.config.units import DURATION_SCHEMA, Duration
from statsig_otel.config.values import OrList, ReadAs, Secret
from statsig_otel.exporters.hosts import MAX_PORT
from statsig_otel.exporters.network.headers import HeaderSettings, as_mapping, checked_fields, checked_metadata

_ADDRESS: Final = "write readers: [{pull: {exporter: {prometheus: {host: ..., port: ...}}}}]"
_NO_VIEWS: Final = "leave it out: all metrics are exported, as docs/metrics.md lists them"
_NAMES: Final = "leave it out: names are those of docs/metrics.md"
_ONE_KIND: Final = "write {pull: {exporter: {prometheus: {}}}}, or {periodic: {exporter: {otlp: {...}}}}"
_LEVELS: Final = ("none", "basic", "normal", "detailed")
_URL: Final = re.compile(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?")
_HOST_PORT: Final = re.compile(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
_MILLISECONDS: Final = re.compile(r"[0-9]{1,12}")


PUSH_PEM_KEYS: Final = ("certificate", "client_certificate", "client_key")
"""The keys of an exporter of metrics or spans that name files."""


def any_case(words: Iterable[str]) -> str:
    """A pattern for words in any case; JSON Schema's patterns have no flags."""
    return "|".join("".join(f"[{letter.upper()}{letter}]" for letter in word) for word in words)


def _lower_case(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _milliseconds(value: object) -> object:
    """A number without a unit means milliseconds, as in the Collector. In a string it is one that was referred to."""
    if isinstance(value, float) and value.is_integer():  # 1e3
        value = int(value)
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return f"{value}ms" if is_number or (isinstance(value, str) and _MILLISECONDS.fullmatch(value)) else value


_LEVEL_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [{"enum": [*_LEVELS]}, {"type": "string", "pattern": f"^({any_case(_LEVELS)})$"}]
}
Level = Annotated[
    Literal["none", "basic", "normal", "detailed"], BeforeValidator(_lower_case), WithJsonSchema(_LEVEL_SCHEMA)
]
"""How much is told, in any case."""

_MILLISECONDS_SCHEMA: Final[dict[str, Any]] = {
    "title": "duration",
    "type": ["string", "integer"],
    "pattern": rf"^{_MILLISECONDS.pattern}$|{DURATION_SCHEMA['pattern']}",
    "minimum": 0,
    "maximum": 10**12 - 1,
}
Milliseconds = Annotated[Duration, BeforeValidator(_milliseconds), WithJsonSchema(_MILLISECONDS_SCHEMA)]
"""Seconds, written as a `Duration`, or in milliseconds as a number without a unit."""

WRITE_OTLP: Final = "write otlp: {protocol: grpc, endpoint: http://HOST:4317}"
WRITE_EXPORTER: Final = "write exporter: {otlp: {protocol: ..., endpoint: ...}}"
"""Hints for the keys that metrics and spans need."""


class PrometheusReaderSettings(Settings):
    """`readers::pull::exporter::prometheus`: where Prometheus reads."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "translation_strategy": _NAMES,
        "with_resource_constant_labels": "leave it out: target_info has the resource",
        "without_scope_info": "leave it out: there is one scope, and no label for it",
        "without_type_suffix": _NAMES,
        "without_units": _NAMES,
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "translation_strategy": ("UnderscoreEscapingWithSuffixes",),
        "with_resource_constant_labels": ({},),
        "without_scope_info": (True,),
        "without_type_suffix": (False,),
        "without_units": (False,),
    }

    host: str = Field(default="localhost", description="The host name or address to listen on.")
    port: int = Field(default=8888, ge=0, le=MAX_PORT, description="The port to listen on.")

    @field_validator("host")
    @classmethod
    def _check_host(cls, host: str) -> str:
        if not host or any(character.isspace() or character in "/@" for character in host) or "://" in host:
            raise SettingError("must be a host name or an address, such as localhost or 0.0.0.0", "no scheme, no port")
        return host.removeprefix("[").removesuffix("]")


class PullExporterSettings(Settings):
    """`readers::pull::exporter`."""

    needed: ClassVar[Mapping[str, str]] = {"prometheus": "write prometheus: {host: localhost, port: 8888}"}

    prometheus: PrometheusReaderSettings = Field(description="For Prometheus to read, at /metrics.")


class PullReaderSettings(Settings):
    """`readers::pull`."""

    unsupported: ClassVar[Mapping[str, str]] = {"producers": "leave it out: there are no other producers"}
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {"producers": ([],)}
    needed: ClassVar[Mapping[str, str]] = {"exporter": "write exporter: {prometheus: {}}"}

    exporter: PullExporterSettings = Field(description="How the metrics are shown.")


class OtlpPushSettings(Settings):
    """Where metrics or spans are sent."""

    model_config: ClassVar[ConfigDict] = ConfigDict(hide_input_in_errors=True)
    signal_path: ClassVar[str] = ""
    """The path of requests over HTTP, unless the endpoint has one."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "headers_list": "write the headers into headers",
        "tls": "write certificate, client_certificate and client_key",
    }
    needed: ClassVar[Mapping[str, str]] = {
        "protocol": "write grpc, or http/protobuf",
        "endpoint": "write http://HOST:4317 for grpc, or http://HOST:4318 for http/protobuf",
    }

    protocol: Literal["grpc", "http/protobuf"] = Field(description="The protocol.")
    endpoint: str = Field(
        description="A URL, whose scheme switches TLS off or on; or `host:port` for grpc. Over HTTP a URL without a "
        "path gets that of its signal, such as `/v1/metrics`."
    )
    headers: Annotated[Mapping[str, Secret], ReadAs(dict[str, Opaque]), OrList(list[HeaderSettings], as_mapping)] = (
        Field(
            default_factory=dict,
            description="Headers of each request: a mapping, or a list of `{name: ..., value: ...}`. The values are "
            "secret.",
        )
    )
    compression: Literal["gzip", "none"] = Field(default="none", description="The compression of requests.")
    timeout: Milliseconds = Field(default=10.0, gt=0, description="The time for one request.")
    insecure: bool = Field(default=False, description="No TLS for an endpoint without a scheme.")
    certificate: Path | None = Field(
        default=None, description="The path of the certificates to trust instead of the library's defaults."
    )
    client_certificate: Path | None = Field(default=None, description="The path of the client's certificate.")
    client_key: Path | None = Field(default=None, description="The path of its private key.")

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, endpoint: str, info: ValidationInfo) -> str:
        over_http = info.data.get("protocol") != "grpc"
        if not _URL.fullmatch(endpoint) and (over_http or not _HOST_PORT.fullmatch(endpoint)):
            form = "a URL such as http://localhost:4318" if over_http else "http://localhost:4317, or host:port"
            raise SettingError(f"must be {form}", "credentials belong in headers")
        return endpoint

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: dict[str, Opaque], info: ValidationInfo) -> dict[str, Opaque]:
        return checked_metadata(headers) if info.data.get("protocol") == "grpc" else checked_fields(headers)

    @model_validator(mode="after")
    def _check(self) -> "OtlpPushSettings":
        if (self.client_certificate is None) is not (self.client_key is None):
            raise SettingError("client_certificate and client_key belong together", "write both, or neither")
        files = (self.certificate, self.client_certificate)
        if not self.uses_tls and any(files):
            raise SettingError("the endpoint is without TLS, but a certificate is set", "write https://")
        return self

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.endpoint.startswith("https://") or ("://" not in self.endpoint and not self.insecure)

    @property
    def url(self) -> str:
        """The URL of requests over HTTP."""
        path = urlsplit(self.endpoint).path
        return self.endpoint if path not in ("", "/") else f"{self.endpoint.rstrip('/')}{self.signal_path}"


class MetricsPushSettings(OtlpPushSettings):
    """`readers::periodic::exporter::otlp`: where the metrics are sent."""

    signal_path: ClassVar[str] = "/v1/metrics"
    unsupported: ClassVar[Mapping[str, str]] = {
        "default_histogram_aggregation": "leave it out: histograms have explicit buckets",
        "temporality_preference": "leave it out: values are cumulative, and a Collector can change that",
        **OtlpPushSettings.unsupported,
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "default_histogram_aggregation": ("explicit_bucket_histogram",),
        "temporality_preference": ("cumulative",),
    }


class PeriodicExporterSettings(Settings):
    """`readers::periodic::exporter`."""

    unsupported: ClassVar[Mapping[str, str]] = {"console": "use a pull reader: curl shows what it says"}
    needed: ClassVar[Mapping[str, str]] = {"otlp": WRITE_OTLP}

    otlp: MetricsPushSettings = Field(description="Send OTLP.")


class PeriodicReaderSettings(Settings):
    """`readers::periodic`."""

    unsupported: ClassVar[Mapping[str, str]] = {"producers": "leave it out: there are no other producers"}
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {"producers": ([],)}
    needed: ClassVar[Mapping[str, str]] = {"exporter": WRITE_EXPORTER}

    interval: Milliseconds = Field(default=60.0, ge=1, description="The time between two reports.")
    timeout: Milliseconds = Field(default=30.0, gt=0, description="The time for one report, retries included.")
    exporter: PeriodicExporterSettings = Field(description="Where the metrics go.")


class ReaderSettings(Settings):
    """One of `readers`: `pull` or `periodic`."""

    pull: PullReaderSettings | None = Field(default=None, description="Somebody else reads, such as Prometheus.")
    periodic: PeriodicReaderSettings | None = Field(default=None, description="The service reports by itself.")

    @model_validator(mode="after")
    def _check(self) -> "ReaderSettings":
        if (self.pull is None) is (self.periodic is None):
            raise SettingError("needs pull or periodic, and not both", _ONE_KIND)
        return self


class MetricsSettings(Settings):
    """`service::telemetry::metrics`."""

    unsupported: ClassVar[Mapping[str, str]] = {"address": _ADDRESS, "views": _NO_VIEWS}
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {"views": ([],)}

    level: Level = Field(
        default="normal", description="`none` switches the readers off. All other levels mean the same."
    )
    readers: list[ReaderSettings] = Field(
        default_factory=list, description="Who gets the metrics. Without one, nobody does, and nothing is opened."
    )

    @property
    def active(self) -> dict[int, ReaderSettings]:
        """The readers that are switched on, by their position."""
        return dict(enumerate(self.readers)) if self.level != "none" else {}
