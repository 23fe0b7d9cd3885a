"""What users may write about an OTLP exporter, and what they are told where it is wrong."""

import ssl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.config import ConfigError
from statsig_otel.config.opaque import Opaque
from statsig_otel.exporters.kafka.settings import KafkaSettings
from statsig_otel.exporters.network.tls import ClientTlsSettings
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings, OtlpHttpSettings
from tests.looped import looped
from tests.peers.certs import Authority, Certificate

GRPC = {"endpoint": "localhost:4317"}
HTTP = {"endpoint": "http://localhost:4318"}


def refusal(model: type[OtlpGrpcSettings | OtlpHttpSettings], **keys: Any) -> str:
    """The message of the only error."""
    with pytest.raises(ConfigError) as caught:
        model(**keys)
    (problem,) = caught.value.problems
    return str(problem)


def test_defaults_are_the_collectors() -> None:
    grpc, http = OtlpGrpcSettings.model_validate(GRPC), OtlpHttpSettings.model_validate(HTTP)
    assert (grpc.timeout, grpc.compression, grpc.uses_tls) == (5.0, "gzip", True)
    assert (http.timeout, http.compression, http.url.geturl()) == (30.0, "gzip", "http://localhost:4318/v1/logs")


@looped(
    ("endpoint", "insecure", "target", "uses_tls"),
    [
        ("collector:4317", False, "dns:///collector:4317", True),
        ("collector:4317", True, "dns:///collector:4317", False),
        ("10.0.0.1:4317", True, "dns:///10.0.0.1:4317", False),
        ("[::1]:4317", True, "dns:///[::1]:4317", False),
        ("http://collector:4317", False, "dns:///collector:4317", False),
        ("http://collector:4317/", True, "dns:///collector:4317", False),
        ("https://collector:4317", False, "dns:///collector:4317", True),
        ("https://collector:4317", True, "dns:///collector:4317", True),
        ("dns:///collector:4317", False, "dns:///collector:4317", True),
        ("dns:///collector", False, "dns:///collector", True),
        ("dns:///[::1]:4317", False, "dns:///[::1]:4317", True),
        ("dns://10.0.0.53/collector:4317", False, "dns://10.0.0.53/collector:4317", True),
        ("unix:///run/otlp.sock", True, "unix:///run/otlp.sock", False),
        ("unix:/run/otlp.sock", True, "unix:/run/otlp.sock", False),
        ("ipv6:[::1]:4317,[fd00::1]:4317", True, "ipv6:[::1]:4317,[fd00::1]:4317", False),
        ("unix-abstract:otlp", True, "unix-abstract:otlp", False),
        ("ipv4:10.0.0.1:4317,10.0.0.2:4317", True, "ipv4:10.0.0.1:4317,10.0.0.2:4317", False),
    ],
)
def test_grpc_endpoint(endpoint: str, insecure: bool, target: str, uses_tls: bool) -> None:
    settings = OtlpGrpcSettings.model_validate({"endpoint": endpoint, "tls": {"insecure": insecure}})
    assert (settings.target, settings.uses_tls) == (target, uses_tls)


@looped(
    ("endpoint", "hint"),
    [
        ("", "localhost:4317"),
        ("collector", "has no port; write collector:4317"),
        ("http://collector", "'http://collector' has no port; write http://collector:4317"),
        (
            "https://collector/",
            "write https://collector:4317 for a Collector, or https://collector:443 for most vendors",
        ),
        ("http://collector/", "write http://collector:4317 for a Collector"),
        ("ingest.<region>.example.com:443", "contains <...>, which stands for something of your own"),
        ("ingest.{region}.example.com:443", "contains {...}, which stands for something of your own"),
        ("YOUR-COLLECTOR:4317", "contains YOUR_..., which stands for something of your own"),
        ("https://<secret>", "contains <...>"),
        ("unix:otlp.sock", "write it as unix:///run/otlp.sock"),
        ("unix://run/otlp.sock", "write it as unix:///run/otlp.sock"),
        *(
            (f"{host}:4317", "is not host:port")
            for host in (
                "[:]",
                "[1.2.3.4]",
                "[::1%eth0]",
                "[::1",
                "a..b",
                "256.1.1.1",
                "1.2.3.4.5",
                "a" * 64,
                "a." * 127 + "a",
            )
        ),
        (f"unix:///{'a' * 107}", "more than 107 bytes"),
        *(
            (f"dns://{rest}", "names no host with an optional port; write it as dns:///collector:4317")
            for rest in (
                "/",
                "/:4317",
                "/a:b",
                "/a:0",
                "/a:1:2",
                "/-",
                "/a/b",
                "/a,b",
                "/[::1",
                "/a?b",
                "-/a",
                "a:b/a:1",
            )
        ),
        ("ipv4:host:4317", "is not a list of addresses with ports, such as ipv4:192.0.2.1:4317"),
        ("ipv4:10.0.0.1", "is not a list of addresses with ports"),
        ("ipv4:10.0.0.1:4317,10.0.0.2:99999", "is not a list of addresses with ports"),
        ("ipv4:", "is not a list of addresses with ports"),
        ("ipv6:::1", "is not a list of addresses with ports, such as ipv6:[2001:db8::1]:4317"),
        ("collector:", "is not host:port"),
        ("collector:otlp", "is not host:port"),
        ("collector:0", "is not host:port"),
        ("collector:65536", "is not host:port"),
        ("::1:4317", "is not host:port"),
        ("col lector:4317", "is not host:port"),
        ("collector:4317/v1/logs", "is not host:port"),
        ("http://collector:4317/v1/logs", "use the otlp_http exporter"),
        ("https://collector:4317?x=1", "use the otlp_http exporter"),
        ("https://user:secret@collector:4317", "put them into headers"),
        ("tcp://collector:4317", "unknown scheme"),
        ("xds:///collector", "unknown scheme"),
        ("http://[::1", "is not a URL"),
    ],
)
def test_wrong_grpc_endpoints_get_a_hint(endpoint: str, hint: str) -> None:
    message = refusal(OtlpGrpcSettings, endpoint=endpoint, tls={"insecure": True})
    assert message.startswith("endpoint: ")
    assert hint in message
    assert "secret" not in message


@looped(
    ("keys", "url"),
    [
        ({"endpoint": "http://h:4318"}, "http://h:4318/v1/logs"),
        ({"endpoint": "http://h:4318/"}, "http://h:4318/v1/logs"),
        ({"endpoint": "https://h/otlp"}, "https://h/otlp/v1/logs"),
        ({"endpoint": "https://[::1]:4318"}, "https://[::1]:4318/v1/logs"),
        ({"endpoint": "https://[::1]"}, "https://[::1]/v1/logs"),
        ({"logs_endpoint": "https://h/in?key=1"}, "https://h/in?key=1"),
        ({"logs_endpoint": "https://h/in/", "endpoint": "http://other:1"}, "https://h/in/"),
    ],
)
def test_http_url(keys: dict[str, str], url: str) -> None:
    assert OtlpHttpSettings.model_validate(keys).url.geturl() == url


@looped(
    ("keys", "hint"),
    [
        ({}, "needs an endpoint, such as http://localhost:4318"),
        ({"endpoint": "h:4318"}, "write http://HOST:PORT (plain text) or https://HOST:PORT"),
        ({"endpoint": "ftp://h"}, "has an unknown scheme"),
        ({"endpoint": "https://ingest.<region>.example.com"}, "write that in its place"),
        ({"endpoint": "http://h/v1/logs"}, "/v1/logs is appended to this URL; leave /v1/logs out"),
        ({"endpoint": "http://h/otlp/v1/traces/"}, "/v1/logs is appended to this URL; leave /v1/traces out"),
        ({"endpoint": "http://h/v1/metrics"}, "/v1/logs is appended to this URL; leave /v1/metrics out"),
        ({"endpoint": "http://h/v1development/profiles"}, "leave /v1development/profiles out"),
        ({"endpoint": "http://h/V1/Traces"}, "/v1/logs is appended to this URL; leave /V1/Traces out"),
        ({"endpoint": "http://"}, "has no host"),
        ({"endpoint": "http://h..i"}, "has no host"),
        ({"endpoint": "http://10.0.0.256:4318"}, "has no host"),
        ({"endpoint": "http://h:"}, "has no host"),
        ({"endpoint": "http://h:x"}, "has no host"),
        ({"endpoint": "http://h:70000"}, "has no host"),
        ({"endpoint": "http://::1:4318"}, "has no host"),
        ({"endpoint": "http://h/a b"}, "percent-encoded"),
        ({"endpoint": "http://h/ü"}, "percent-encoded"),
        ({"endpoint": "http://h/\r\nX: 1"}, "percent-encoded"),
        ({"endpoint": "http://h/#x"}, "fragment"),
        ({"endpoint": "http://h/?x"}, "put the whole URL into logs_endpoint"),
        ({"logs_endpoint": "https://user:secret@h/"}, "put them into headers"),
        # A password with a / or a ? ends the authority before its @.
        ({"endpoint": "http://user:secret/1@h:4318"}, "'http://[REDACTED]@h:4318' has no host"),
        ({"logs_endpoint": "http://user:secret?1@h:4318"}, "'http://[REDACTED]' has no host"),
        ({"endpoint": "user:secret?1@h:4318"}, "'[REDACTED]' has no scheme"),
        ({"endpoint": "user:secret://1@h:4318"}, "'[REDACTED]@h:4318' has an unknown scheme"),
        ({"logs_endpoint": "h/v1/logs"}, "has no scheme"),
        ({"endpoint": "http://h", "tls": {"ca_file": "ca.pem"}}, "write https://"),
    ],
)
def test_wrong_http_urls_get_a_hint(keys: dict[str, Any], hint: str) -> None:
    message = refusal(OtlpHttpSettings, **keys)
    assert hint in message
    assert "secret" not in message


URL_LIKE = st.from_regex(r"(https?://|dns:///?|unix:|ipv4:)?[\[\]a-z0-9:@/?#%. -]*", fullmatch=True)


@given(endpoint=st.text() | URL_LIKE)
def test_any_endpoint_is_refused_or_usable(endpoint: str) -> None:
    """No other error than the one for users, and no line break gets through."""
    try:
        target = OtlpGrpcSettings(endpoint=endpoint).target
        assert ":" in target
        assert target.isascii()
        assert not set(target) & set(" \r\n")
    except ConfigError:
        pass
    try:
        url = OtlpHttpSettings(endpoint=endpoint).url
        assert url.hostname
        assert url.port is None or 0 < url.port < 65536
        assert url.path.endswith("/v1/logs")
    except ConfigError:
        pass


def test_plain_text_and_tls_settings_contradict_each_other() -> None:
    assert "write https://" in refusal(OtlpGrpcSettings, endpoint="http://h:1", tls={"server_name_override": "x"})


@pytest.mark.parametrize("value", ["none", "", None])
def test_compression_can_be_switched_off(value: str | None) -> None:
    assert OtlpGrpcSettings.model_validate({**GRPC, "compression": value}).compression == "none"


@looped("value", ["zstd", "snappy", "zlib", "deflate", "lz4"])
@looped(("model", "keys"), [(OtlpGrpcSettings, GRPC), (OtlpHttpSettings, HTTP)])
def test_other_compressions_are_refused(
    model: type[OtlpGrpcSettings | OtlpHttpSettings], keys: dict[str, Any], value: str
) -> None:
    expected = f"compression: {value} is not supported here; use gzip or none"
    assert refusal(model, **keys, compression=value) == expected


def test_a_timeout_is_above_zero() -> None:
    assert "must be more than 0s" in refusal(OtlpGrpcSettings, **GRPC, timeout="0s")
    assert OtlpHttpSettings.model_validate({**HTTP, "timeout": "1m"}).timeout == 60.0


def test_unknown_keys_are_refused() -> None:
    assert refusal(OtlpGrpcSettings, **GRPC, balancer_name="x").startswith("balancer_name: ")
    assert refusal(OtlpGrpcSettings, **GRPC, encoding="json").startswith("encoding: can only be proto here")
    assert refusal(OtlpHttpSettings, **HTTP, tls={"reload_interval": "daily"}).startswith("tls::reload_interval: ")


def test_header_values_are_secret_and_grpc_names_in_lower_case() -> None:
    settings = OtlpGrpcSettings.model_validate({**GRPC, "headers": {"API-Key": "hush"}})
    assert settings.headers == {"api-key": Opaque("hush")}
    assert "hush" not in repr(settings) + settings.model_dump_json()


WRONG_HEADERS = [
    ({"a b": "v"}, "is not the name"),
    ({"": "v"}, "is not the name"),
    ({"a:b": "v"}, "is not the name"),
    ({"ä": "v"}, "is not the name"),
    ({"Content-Type": "hush"}, "set by the exporter itself"),
    ({"user-agent": "hush"}, "set by the exporter itself"),
    ({"k": "hush\r\nx: y"}, "line break"),
    ({"k": "hush\x00"}, "line break"),
    ({"k": "hush\u20ac"}, "illegal character"),
    ({"k": "hush "}, "begins or ends with a space"),
    ({"k": "Bearer "}, "fill the file or the variable that belongs there, if that is empty"),
    *(({"k": value}, "the value of the header 'k' is empty") for value in ("", " ", "  ")),
    ({"k": "hush", "K": "hush"}, "upper and lower case"),
]


@looped(("headers", "hint"), WRONG_HEADERS)
@looped(("model", "keys"), [(OtlpGrpcSettings, GRPC), (OtlpHttpSettings, HTTP)])
def test_wrong_headers_get_a_hint(
    model: type[OtlpGrpcSettings | OtlpHttpSettings], keys: dict[str, Any], headers: dict[str, str], hint: str
) -> None:
    """And no message shows a value."""
    with pytest.raises(ConfigError) as caught:
        model.model_validate({**keys, "headers": headers})
    assert hint in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "hint"),
    [
        ({"grpc-timeout": "1S"}, "reserved by gRPC"),
        ({"x-bin": "v"}, "only text"),
        ({"x": "caf\xe9"}, "illegal character"),
    ],
)
def test_grpc_metadata_is_narrower(headers: dict[str, str], hint: str) -> None:
    assert hint in refusal(OtlpGrpcSettings, **GRPC, headers=headers)
    OtlpHttpSettings.model_validate({**HTTP, "headers": headers})


@looped(
    ("tls", "hint"),
    [
        ({"cert_file": "c"}, "needs its private key"),
        ({"cert_pem": "c"}, "needs its private key"),
        ({"key_file": "k"}, "needs its client certificate"),
        ({"key_pem": "k"}, "needs its client certificate"),
        ({"ca_file": "a", "ca_pem": "a"}, "ca_file and ca_pem exclude each other"),
        ({"cert_file": "c", "cert_pem": "c", "key_file": "k"}, "cert_file and cert_pem exclude each other"),
        ({"min_version": "1.1"}, "use 1.2 or 1.3"),
        *(({"server_name_override": name}, "is not a host name") for name in (" ", "a b", "a\n", "h\xfclse")),
        *(({key: value}, "write the path alone") for key in ("ca_file", "cert_file") for value in (" ", "a\n", "\0")),
        ({"min_version": 1.0}, "use 1.2 or 1.3"),
        ({"min_version": "2"}, "must be '1.2' or '1.3'"),
    ],
)
def test_wrong_tls_settings_get_a_hint(tls: dict[str, Any], hint: str) -> None:
    message = refusal(OtlpHttpSettings, endpoint="https://h", tls=tls)
    assert message.startswith("tls")
    assert hint in message


@pytest.mark.parametrize(
    ("tls", "hint"),
    [
        ({"insecure_skip_verify": True}, "tls::insecure_skip_verify: grpcio can't skip"),
        ({"min_version": "1.3"}, "tls::min_version: grpcio can't set"),
        (
            {"ca_file": "a", "include_system_ca_certs_pool": True},
            "tls: grpcio can't trust ca_file in addition",
        ),
    ],
)
def test_what_grpcio_cannot_do_is_an_error(tls: dict[str, Any], hint: str) -> None:
    assert refusal(OtlpGrpcSettings, **GRPC, tls=tls).startswith(hint)
    assert refusal(OtlpGrpcSettings, **GRPC, tls=ClientTlsSettings(**tls)).startswith(
        f"tls: {hint.rpartition(': ')[2]}"
    )
    OtlpHttpSettings.model_validate({"endpoint": "https://h", "tls": tls})


def test_tls_of_any_class_is_kept_whole() -> None:
    """A `${` that was escaped once, and a secret, too."""
    given = ClientTlsSettings(ca_pem="pem", cert_file="$${x}", key_pem="key")
    for model in (OtlpGrpcSettings, OtlpHttpSettings, KafkaSettings):
        endpoint = {"endpoint": "https://h:1"} if model is not KafkaSettings else {}
        kept = model.model_validate({**endpoint, "tls": given}).tls
        assert isinstance(kept, ClientTlsSettings)
        assert dict(kept) == dict(given)
        assert kept.model_fields_set == given.model_fields_set


@pytest.mark.parametrize("endpoint", ["h:1", "http://h:1"])
def test_without_tls_there_is_nothing_that_grpcio_would_have_to_skip(endpoint: str) -> None:
    tls = {"insecure": True, "insecure_skip_verify": True}
    assert not OtlpGrpcSettings.model_validate({"endpoint": endpoint, "tls": tls}).uses_tls
    assert "grpcio can't skip" in refusal(OtlpGrpcSettings, endpoint="https://h:1", tls=tls)


@pytest.mark.parametrize("value", [" ", "a b", "a\n", "h\xfclse"])
def test_an_authority_is_ascii_without_spaces(value: str) -> None:
    message = refusal(OtlpGrpcSettings, **GRPC, authority=value)
    assert message.startswith("authority: contains a space, or a character outside ASCII")


def test_min_version_may_be_a_yaml_number() -> None:
    settings = ClientTlsSettings.model_validate({"min_version": 1.3})
    assert settings.context(settings.read()).minimum_version is ssl.TLSVersion.TLSv1_3


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def client(authority: Authority) -> Certificate:
    return authority.issue("client.test")


def test_files_and_texts_are_read_alike(authority: Authority, client: Certificate, tmp_path: Path) -> None:
    cert_file, key_file = client.write(tmp_path)
    files = ClientTlsSettings(ca_file=authority.write(tmp_path), cert_file=cert_file, key_file=key_file)
    texts = ClientTlsSettings(
        ca_pem=Opaque(authority.pem.decode()),
        cert_pem=Opaque(client.chain.decode()),
        key_pem=Opaque(client.key.decode()),
    )
    assert files.read() == texts.read()
    assert client.key.decode() not in repr(texts)


def test_a_missing_file_is_named_with_its_key(tmp_path: Path) -> None:
    path = str(tmp_path / "absent.pem")
    with pytest.raises(FileNotFoundError, match=r"tls::ca_file can't be read.*absent\.pem"):
        ClientTlsSettings(ca_file=path).read()
    with pytest.raises(OSError, match="tls::cert_file can't be read"):
        ClientTlsSettings(cert_file=str(tmp_path), key_file=path).read()


@pytest.mark.parametrize("text", [b"", b"garbage", b"caf\xc3\xa9", b"\xff\x00"])
def test_a_file_without_a_certificate_is_named_with_its_key(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(text)
    with pytest.raises(ValueError, match="tls::ca_file contains no PEM certificate"):
        ClientTlsSettings(ca_file=str(path)).read()


def test_a_certificate_and_a_key_must_belong_together(authority: Authority, client: Certificate) -> None:
    other = authority.issue("other.test")
    for chain, key in ((client.chain, other.key), (client.key, client.key), (client.chain, b"garbage")):
        settings = ClientTlsSettings(cert_pem=Opaque(chain.decode()), key_pem=Opaque(key.decode()))
        with pytest.raises(ValueError, match="tls::cert_pem and tls::key_pem must contain") as caught:
            settings.read()
        assert "PRIVATE" not in str(caught.value)


def test_an_encrypted_key_is_an_error_and_no_question(client: Certificate) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(client.key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"hush"),
    )
    settings = ClientTlsSettings(cert_pem=Opaque(client.chain.decode()), key_pem=Opaque(key.decode()))
    with pytest.raises(ValueError, match="without a password"):
        settings.read()


def test_system_certificates_can_be_trusted_beside_others(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", Authority().write(tmp_path, "system"))
    pem = Opaque(authority.pem.decode())
    alone = ClientTlsSettings(ca_pem=pem)
    both = ClientTlsSettings(ca_pem=pem, include_system_ca_certs_pool=True)
    assert len(alone.context(alone.read()).get_ca_certs()) == 1
    assert len(both.context(both.read()).get_ca_certs()) == 2


def test_the_models_can_be_extended() -> None:
    """Other layers add keys such as retry_on_failure by a subclass."""

    class Extended(OtlpGrpcSettings):
        more: int = 0

    settings = Extended.model_validate({"endpoint": "http://h:1", "more": 2})
    assert (settings.more, settings.target) == (2, "dns:///h:1")


@pytest.mark.parametrize(("name", "shown"), [("api-key", "'api-key'"), ("Bearer SECRET", "without a proper name")])
def test_a_header_that_is_there_twice_is_named_where_it_is_a_name(name: str, shown: str) -> None:
    said = refusal(OtlpHttpSettings, **HTTP, headers=[{"name": name, "value": "x"}] * 2)
    assert said.endswith(f"the header {shown} is given twice")
