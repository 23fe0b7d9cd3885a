"""Hints for a connection that fails: the probable mistake in the endpoint, and what to write instead."""

from typing import Final

from statsig_otel.exporters.otlp.settings import SCHEMES, OtlpGrpcSettings, OtlpHttpSettings

_LOKI_PUSH: Final = "/loki/api/v1/push"
_OTHER_SIGNALS: Final = ("/v1/traces", "/v1/metrics", "/v1development/profiles")
_GRPC_PORT: Final = 4317
_HTTP_PORT: Final = 4318
_TLS_PORT: Final = 443
INSECURE: Final = "tls: {insecure: true} (without a file: OTEL_EXPORTER_OTLP_INSECURE=true)"
_NOT_INSECURE: Final = "leave tls::insecure out (without a file: OTEL_EXPORTER_OTLP_INSECURE)"
_USE_HTTP: Final = "otlp_http (without a file: OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf)"
_USE_GRPC: Final = "otlp_grpc (without a file: OTEL_EXPORTER_OTLP_PROTOCOL=grpc)"


def doubt(settings: OtlpGrpcSettings | OtlpHttpSettings) -> str:
    """Why an endpoint is probably wrong; empty if it looks right."""
    address = settings.endpoint if isinstance(settings, OtlpGrpcSettings) else settings.url.netloc
    if not settings.uses_tls and address.rstrip("/").endswith(f":{_TLS_PORT}"):
        return f"443 is the port for TLS, which is off here: {encrypted_hint(settings)}"
    if isinstance(settings, OtlpGrpcSettings):
        if settings.endpoint.rstrip("/").endswith(f":{_HTTP_PORT}"):
            return f"4318 is OTLP's port for HTTP, and this exporter speaks gRPC: use {_USE_HTTP}, or port 4317"
    elif settings.url.port == _GRPC_PORT:
        return f"4317 is OTLP's port for gRPC, and this exporter speaks HTTP: use {_USE_GRPC}, or port 4318"
    elif _LOKI_PUSH in settings.url.path.lower():
        return f"{_LOKI_PUSH} does not take OTLP: use endpoint: {settings.url.scheme}://{settings.url.netloc}/otlp"
    elif settings.url.path.rstrip("/").lower().endswith(_OTHER_SIGNALS):
        return "this URL does not take log records: a backend that takes them has /v1/logs"
    return ""


def encrypted_hint(settings: OtlpGrpcSettings | OtlpHttpSettings) -> str:
    """The hint for a connection with TLS."""
    return "write https:// instead of http://" if _has_scheme(settings) else _NOT_INSECURE


def plain_hint(settings: OtlpGrpcSettings | OtlpHttpSettings) -> str:
    """The hint for a connection without TLS: `tls::insecure` has no effect if a scheme decides."""
    return "http:// instead of https://" if _has_scheme(settings) else INSECURE


def _has_scheme(settings: OtlpGrpcSettings | OtlpHttpSettings) -> bool:
    return isinstance(settings, OtlpHttpSettings) or settings.endpoint.startswith(SCHEMES)
