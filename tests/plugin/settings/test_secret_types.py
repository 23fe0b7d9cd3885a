"""Secrets are plain strings for who writes them, in code too, and are kept as what never shows them."""

from collections.abc import Mapping

from statsig_otel.config import Opaque
from statsig_otel.config.opaque import reveal
from statsig_otel.exporters import OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.exporters.network.tls import ClientTlsSettings, GrpcTlsSettings
from statsig_otel.plugin import StatsigReceiverSettings


def test_plain_strings_pass_the_type_checker_and_are_kept_as_opaque() -> None:
    """mypy checks the calls below in strict mode."""
    secrets = ["webhook-s3cr3t"]
    headers: dict[str, str] = {"api-key": "s3cr3t"}
    also: Mapping[str, Opaque] = {"api-key": Opaque("s3cr3t")}
    every = [
        StatsigReceiverSettings(signing_secrets=secrets, user="hash", hash_key="s3cr3t"),
        StatsigReceiverSettings(signing_secrets=(Opaque("webhook-s3cr3t"),)),
        OtlpHttpSettings(endpoint="https://h", headers=headers),
        OtlpHttpSettings(endpoint="https://h", headers=also, tls=ClientTlsSettings(ca_pem="s3cr3t")),
        OtlpGrpcSettings(endpoint="h:1", headers={"api-key": "s3cr3t"}, tls=GrpcTlsSettings(ca_pem="s3cr3t")),
    ]
    for settings in every:
        assert "s3cr3t" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert {reveal(value) for settings in every[2:4] for value in settings.headers.values()} == {"s3cr3t"}  # type: ignore[attr-defined]
    assert every[2] == OtlpHttpSettings(endpoint="https://h", headers=also)
