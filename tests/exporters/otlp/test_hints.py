"""What is said of endpoints that are valid and probably wrong."""

from statsig_otel.exporters.network.tls import GrpcTlsSettings
from statsig_otel.exporters.otlp.hints import doubt
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings, OtlpHttpSettings
from tests.looped import looped


@looped(
    ("settings", "expected"),
    [
        (OtlpGrpcSettings(endpoint="collector:4317"), ""),
        (OtlpGrpcSettings(endpoint="https://backend:443"), ""),
        (OtlpGrpcSettings(endpoint="backend:443"), ""),
        (OtlpGrpcSettings(endpoint="backend:443", tls=GrpcTlsSettings(insecure=True)), "leave tls::insecure out"),
        (OtlpGrpcSettings(endpoint="http://backend:443"), "443 is the port for TLS, which is off here: write https://"),
        (OtlpHttpSettings(endpoint="http://backend:443/otlp"), "write https:// instead of http://"),
        (OtlpGrpcSettings(endpoint="collector:4318"), "4318 is OTLP's port for HTTP"),
        (OtlpGrpcSettings(endpoint="http://collector:4318/"), "4318 is OTLP's port for HTTP"),
        (OtlpHttpSettings(endpoint="http://collector:4318"), ""),
        (OtlpHttpSettings(endpoint="https://backend"), ""),
        (OtlpHttpSettings(endpoint="http://collector:4317"), "4317 is OTLP's port for gRPC"),
        (OtlpHttpSettings(logs_endpoint="http://l:3100/loki/api/v1/push"), "use endpoint: http://l:3100/otlp"),
        (OtlpHttpSettings(logs_endpoint="http://collector:4318/v1/logs/"), ""),
        (OtlpHttpSettings(logs_endpoint="http://collector:4318/v1/traces"), "does not take log records"),
        (OtlpHttpSettings(logs_endpoint="https://backend/otlp/v1/metrics/"), "does not take log records"),
    ],
)
def test_an_endpoint_that_is_probably_wrong_is_doubted(
    settings: OtlpGrpcSettings | OtlpHttpSettings, expected: str
) -> None:
    assert expected in doubt(settings)
    assert bool(expected) == bool(doubt(settings))
