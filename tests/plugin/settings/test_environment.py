"""The SDK's variables: without a file they are the configuration, read as the SDK reads them."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from statsig_otel.config import ConfigError
from statsig_otel.config.configuration import Configuration
from statsig_otel.config.document import Document
from statsig_otel.config.grammar import check
from statsig_otel.config.opaque import reveal
from statsig_otel.config.source import parse
from statsig_otel.exporters import OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.plugin.record.record import LogRecordEncoder
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.environment import (
    Environment,
    check_enabled,
    document_from_environment,
    read_document,
)
from statsig_otel.plugin.settings.reading import exporter_settings, receiver_settings
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from statsig_otel.plugin.settings.resource import resource_from_environment

HTTP = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}


def configuration(**environ: str) -> Configuration:
    return check(document_from_environment(environ), COMPONENTS)


def exporter(**environ: str) -> OtlpGrpcSettings | OtlpHttpSettings:
    (found,) = exporter_settings(configuration(**environ)).values()
    assert isinstance(found, OtlpGrpcSettings | OtlpHttpSettings)
    return found


def grpc(**environ: str) -> OtlpGrpcSettings:
    found = exporter(**environ)
    assert isinstance(found, OtlpGrpcSettings)
    return found


def http(**environ: str) -> OtlpHttpSettings:
    found = exporter(**HTTP, **environ)
    assert isinstance(found, OtlpHttpSettings)
    return found


def test_nothing_set_is_the_set_up_mode_with_grpc_to_a_local_collector() -> None:
    found = configuration()
    receiver = found.receivers["statsig"]
    assert isinstance(receiver, StatsigReceiverSettings)
    assert receiver.signing_secrets == []
    assert found.pipelines["logs"].exporters == ("otlp_grpc",)
    assert (grpc().target, grpc().uses_tls, grpc().timeout) == ("dns:///localhost:4317", False, 10.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STATSIG_LISTEN", "0.0.0.0:80"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=abc"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ],
)
def test_quotation_marks_around_a_value_are_one_error_with_what_to_do(name: str, value: str) -> None:
    for mark in ("'", '"'):
        with pytest.raises(ConfigError) as caught:
            configuration(**{name: f"{mark}{value}{mark}"})
        assert str(caught.value).startswith(
            f"{name}: is in quotation marks\n  hint: leave the quotation marks out: docker"
        )
        assert len(caught.value.problems) == 1
    configuration(**{name: value})


def test_the_secret() -> None:
    receiver = configuration(STATSIG_SIGNING_SECRET="webhook-x").receivers["statsig"]
    assert isinstance(receiver, StatsigReceiverSettings)
    assert [reveal(secret) for secret in receiver.signing_secrets] == ["webhook-x"]


def test_http_appends_the_path_to_the_general_endpoint_only() -> None:
    assert http().url.geturl() == "http://localhost:4318/v1/logs"
    assert http(OTEL_EXPORTER_OTLP_ENDPOINT="https://x:1/base").url.geturl() == "https://x:1/base/v1/logs"
    own = {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://x:1", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "https://y:2/own"}
    assert http(**own).url.geturl() == "https://y:2/own"


def test_http_json_is_http_with_another_encoding() -> None:
    found = exporter(OTEL_EXPORTER_OTLP_PROTOCOL="http/json")
    assert isinstance(found, OtlpHttpSettings)
    assert (found.encoding, http().encoding) == ("json", "proto")


@pytest.mark.parametrize(
    ("environ", "tls"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:1"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://x:1"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "x:1"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "x:1", "OTEL_EXPORTER_OTLP_INSECURE": "true"}, False),
    ],
)
def test_grpc_uses_tls_unless_the_scheme_or_the_variable_says_otherwise(environ: dict[str, str], *, tls: bool) -> None:
    assert grpc(**environ).uses_tls is tls


@pytest.mark.parametrize("name", ["ENDPOINT", "TIMEOUT", "COMPRESSION", "HEADERS", "PROTOCOL"])
def test_the_variables_for_logs_come_first(name: str) -> None:
    general, logs = {
        "ENDPOINT": ("http://general:1", "http://logs:1"),
        "TIMEOUT": ("1", "2"),
        "COMPRESSION": ("none", "gzip"),
        "HEADERS": ("a=general", "a=logs"),
        "PROTOCOL": ("http/protobuf", "grpc"),
    }[name]
    both = grpc(**{f"OTEL_EXPORTER_OTLP_{name}": general, f"OTEL_EXPORTER_OTLP_LOGS_{name}": logs})
    assert both == grpc(**{f"OTEL_EXPORTER_OTLP_LOGS_{name}": logs})


def test_an_empty_variable_counts_as_unset() -> None:
    names = ("ENDPOINT", "TIMEOUT", "COMPRESSION", "HEADERS", "PROTOCOL", "CERTIFICATE", "INSECURE")
    assert grpc(**{f"OTEL_EXPORTER_OTLP_{name}": "" for name in names}) == grpc()


def test_headers_are_percent_decoded_and_secret() -> None:
    found = grpc(OTEL_EXPORTER_OTLP_HEADERS="api-key=a%2Cb%3D1 ,  x=%41")
    assert reveal(found.headers["api-key"]) == "a,b=1"
    assert "a,b" not in repr(found)


@pytest.mark.parametrize(
    "environ",
    [
        {"STATSIG_SIGNING_SECRET": ""},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/xml"},
        {"OTEL_EXPORTER_OTLP_LOGS_HEADERS": "no pair"},
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "5s"},
        {"OTEL_EXPORTER_OTLP_INSECURE": "perhaps"},
        {"OTEL_EXPORTER_OTLP_CLIENT_KEY": "key.pem"},
    ],
)
def test_an_error_names_its_variable(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=next(iter(environ))):
        configuration(**{"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:1", **environ})


def test_all_errors_are_said_at_once() -> None:
    names = ("PROTOCOL", "TIMEOUT", "HEADERS", "INSECURE")
    with pytest.raises(ConfigError) as caught:
        configuration(STATSIG_SIGNING_SECRET="", **{f"OTEL_EXPORTER_OTLP_{name}": "x" for name in names})
    assert str(caught.value).splitlines() == [
        "STATSIG_SIGNING_SECRET: is empty",
        "  hint: set it to the signing secret, or unset it to set the webhook up before there is one",
        "OTEL_EXPORTER_OTLP_PROTOCOL: is not a protocol of this service",
        "  hint: use grpc, http/protobuf or http/json",
        "OTEL_EXPORTER_OTLP_TIMEOUT: must be a number of seconds, without a unit, such as 10",
        "OTEL_EXPORTER_OTLP_HEADERS: contains an entry that is not key=value",
        "OTEL_EXPORTER_OTLP_INSECURE: must be true or false",
    ]


def test_the_errors_of_values_are_said_beside_those_of_variables() -> None:
    with pytest.raises(ConfigError) as caught:
        configuration(
            **HTTP,
            OTEL_EXPORTER_OTLP_TIMEOUT="5s",
            OTEL_EXPORTER_OTLP_COMPRESSION="zstd",
            OTEL_EXPORTER_OTLP_ENDPOINT="localhost:4318",
        )
    assert [(problem.path[-1], problem.file) for problem in caught.value.problems] == [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", None),
        ("compression", "OTEL_EXPORTER_OTLP_COMPRESSION"),
        ("endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ]


@pytest.mark.parametrize("prefix", ["OTEL_EXPORTER_OTLP_", "OTEL_EXPORTER_OTLP_LOGS_"])
@pytest.mark.parametrize(
    ("there", "missing", "said"),
    [
        ("CLIENT_CERTIFICATE", "CLIENT_KEY", "a client's certificate needs its key"),
        ("CLIENT_KEY", "CLIENT_CERTIFICATE", "a client's key needs its certificate"),
    ],
)
def test_half_a_client_s_identity_names_the_other_variable(prefix: str, there: str, missing: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configuration(**{f"{prefix}{there}": "a.pem", "OTEL_EXPORTER_OTLP_ENDPOINT": "https://h:1"})
    assert str(caught.value) == f"{prefix}{there}: {said}\n  hint: set {prefix}{missing}"


def test_the_two_halves_may_have_names_of_both_forms() -> None:
    found = grpc(
        OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE="/c.pem",
        OTEL_EXPORTER_OTLP_LOGS_CLIENT_KEY="/k.pem",
        OTEL_EXPORTER_OTLP_ENDPOINT="https://h:1",
    )
    assert (found.tls.cert_file, found.tls.key_file) == ("/c.pem", "/k.pem")


@pytest.mark.parametrize(("value", "warned"), [("10", False), ("999", False), ("1000", True), ("10000", True)])
def test_a_timeout_in_milliseconds_is_warned_about(
    value: str, caplog: pytest.LogCaptureFixture, *, warned: bool
) -> None:
    assert grpc(OTEL_EXPORTER_OTLP_TIMEOUT=value).timeout == float(value)
    assert ("OTEL_EXPORTER_OTLP_TIMEOUT counts seconds" in caplog.text) is warned


def test_resource_attributes_are_percent_decoded_and_the_service_name_goes_over_them() -> None:
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "a=1%202,service.name=lost, b = c ,", "OTEL_SERVICE_NAME": "kept"}
    assert resource_from_environment(environ) == {"a": "1 2", "b": "c", "service.name": "kept"}
    assert resource_from_environment({}) == {}
    assert resource_from_environment({"OTEL_SERVICE_NAME": ""}) == {}


def test_bytes_of_the_resource_that_are_no_utf8_are_replaced() -> None:
    latin1 = os.fsdecode(b"caf\xe9")
    environ = {"OTEL_RESOURCE_ATTRIBUTES": f"a={latin1},b=caf%E9,{latin1}=c", "OTEL_SERVICE_NAME": latin1}
    found = resource_from_environment(environ)
    assert found == {"a": "caf\ufffd", "b": "caf\ufffd", "caf\ufffd": "c", "service.name": "caf\ufffd"}
    LogRecordEncoder(resource=found)


def test_what_a_plain_text_endpoint_does_not_use_is_no_error() -> None:
    """As in the SDK: a certificate beside http:// says nothing."""
    assert not grpc(OTEL_EXPORTER_OTLP_CERTIFICATE="/no/such/file").uses_tls
    assert http(OTEL_EXPORTER_OTLP_CERTIFICATE="/no/such/file").tls.ca_file == ""
    assert grpc(OTEL_EXPORTER_OTLP_ENDPOINT="https://x:1", OTEL_EXPORTER_OTLP_CERTIFICATE="/a").tls.ca_file == "/a"


def test_a_path_in_a_grpc_endpoint_is_dropped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A vendor's URL with a path is mostly for HTTP, and the protocol is gRPC unless another one is set."""
    assert grpc(OTEL_EXPORTER_OTLP_ENDPOINT="http://x:1/").target == "dns:///x:1"
    assert not caplog.records
    assert grpc(OTEL_EXPORTER_OTLP_ENDPOINT="https://x:443/api/v2/otlp?key=s3cr3t").target == "dns:///x:443"
    (said,) = caplog.messages
    assert "has a path, which gRPC does not use" in said
    assert said.endswith("set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf")


def test_a_logs_endpoint_with_a_query_is_used_as_it_is() -> None:
    url = "https://h/v1/logs?key=1"
    assert http(OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=url).url.geturl() == url


def test_nothing_is_compressed_unless_it_is_asked_for() -> None:
    assert grpc().compression == "none"
    assert grpc(OTEL_EXPORTER_OTLP_COMPRESSION="gzip").compression == "gzip"


def test_compression_is_understood_in_any_case() -> None:
    assert grpc(OTEL_EXPORTER_OTLP_COMPRESSION="GZIP").compression == "gzip"


@pytest.mark.parametrize("value", ["1", "yes", "on"])
def test_nothing_but_true_sends_in_plain_text(value: str) -> None:
    """The specification: no other value may count as true."""
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_INSECURE: must be true or false"):
        grpc(OTEL_EXPORTER_OTLP_ENDPOINT="x:1", OTEL_EXPORTER_OTLP_INSECURE=value)
    assert not grpc(OTEL_EXPORTER_OTLP_ENDPOINT="x:1", OTEL_EXPORTER_OTLP_INSECURE="TRUE").uses_tls
    assert grpc(OTEL_EXPORTER_OTLP_ENDPOINT="x:1", OTEL_EXPORTER_OTLP_INSECURE="False").uses_tls


@pytest.mark.parametrize("value", ["false", "", " FALSE "])
def test_an_sdk_that_is_not_disabled_says_nothing(value: str, caplog: pytest.LogCaptureFixture) -> None:
    check_enabled({"OTEL_SDK_DISABLED": value})
    check_enabled({})
    assert caplog.text == ""


def test_only_true_disables_the_sdk(caplog: pytest.LogCaptureFixture) -> None:
    check_enabled({"OTEL_SDK_DISABLED": "1"})
    assert "OTEL_SDK_DISABLED is neither true nor false, and counts as false" in caplog.text
    with pytest.raises(ConfigError, match="OTEL_SDK_DISABLED: is true"):
        check_enabled({"OTEL_SDK_DISABLED": "TRUE"})


FILE = """\
receivers: {statsig: {signing_secrets: ["${env:STATSIG_SIGNING_SECRET}"]}}
exporters:
  otlp_grpc: {endpoint: "first:4317"}
  otlp_http: {endpoint: "${OTEL_EXPORTER_OTLP_ENDPOINT:-http://second:4318}"}
service: {pipelines: {logs: {receivers: [statsig], exporters: [otlp_grpc, otlp_http]}}}
"""
VARIABLES = {
    "STATSIG_SIGNING_SECRET": "webhook-x",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://third:4318",
    "OTEL_EXPORTER_OTLP_HEADERS": "api-key=s3cr3t",
    "OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE": "/ca.pem",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces:4318",
    "OTEL_EXPORTER_OTLP_COMPRESSION": "",
}


def test_beside_a_file_variables_count_only_where_it_names_them() -> None:
    """The key of one backend must not go to another."""
    environ = Environment(VARIABLES)
    found = exporter_settings(check(parse(FILE.encode(), file="f", directory=Path(), environ=environ), COMPONENTS))
    first, second = found["otlp_grpc"], found["otlp_http"]
    assert isinstance(first, OtlpGrpcSettings)
    assert isinstance(second, OtlpHttpSettings)
    assert first.headers == second.headers == {}
    assert (first.endpoint, first.timeout, first.tls.ca_file) == ("first:4317", 5.0, "")
    assert second.endpoint == "http://third:4318"
    assert environ.unused() == ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_LOGS_CERTIFICATE"]


def test_where_to_listen() -> None:
    assert endpoints(document_from_environment({})) == {"statsig": "localhost:8080"}
    assert endpoints(document_from_environment({"STATSIG_LISTEN": "0.0.0.0:80"})) == {"statsig": "0.0.0.0:80"}
    assert endpoints(document_from_environment({"STATSIG_LISTEN": ""})) == {"statsig": "localhost:8080"}
    with pytest.raises(ConfigError) as caught:
        configuration(STATSIG_LISTEN="80")
    assert str(caught.value).startswith("receivers::statsig::endpoint: must be host:port, such as localhost:8080 or ")
    assert "(STATSIG_LISTEN)" in str(caught.value)
    assert Environment({"STATSIG_LISTEN": ":80"}).unused() == ["STATSIG_LISTEN"]


def endpoints(document: Document) -> dict[str, str]:
    return {name: one.endpoint for name, one in receiver_settings(check(document, COMPONENTS)).items()}


TWO = """\
receivers:
  statsig: {signing_secrets: [], endpoint: "h:1"}
  statsig/b: {signing_secrets: [], path: /b%s}
exporters: {debug: {}}
service: {pipelines: {logs: {receivers: [statsig, statsig/b], exporters: [debug]}}}
"""


def test_an_option_says_where_to_listen(tmp_path: Path) -> None:
    """Over a variable and over a file, for all receivers of one endpoint."""
    environ = {"STATSIG_LISTEN": "h:1"}
    assert endpoints(read_document([], environ, listen=":2")) == {"statsig": ":2"}
    path = tmp_path / "config.yaml"
    path.write_text(TWO % ', endpoint: "h:1"')
    assert endpoints(read_document([path], {}, listen=":2")) == {"statsig": ":2", "statsig/b": ":2"}
    with pytest.raises(ConfigError, match=r"must be host:port.* \(--listen\)"):
        check(read_document([path], {}, listen="80"), COMPONENTS)
    path.write_text(TWO % ', endpoint: "h:3"')
    with pytest.raises(ConfigError, match="--listen replaces one endpoint, and the receivers have 2"):
        read_document([path], {}, listen=":2")
    path.write_text("receivers: [a]")
    assert read_document([path], {}, listen=":2").values == {"receivers": ["a"]}


def test_a_text_without_pipelines_is_merged_over_the_environment() -> None:
    environ = {"STATSIG_SIGNING_SECRET": "webhook-x", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://backend:1"}
    texts = ["yaml:receivers::statsig::user: drop", "yaml:exporters::otlp_grpc::timeout: 3s"]
    found = check(read_document(texts, environ), COMPONENTS)
    receiver, exporter = receiver_settings(found)["statsig"], exporter_settings(found)["otlp_grpc"]
    assert isinstance(exporter, OtlpGrpcSettings)
    assert (receiver.user, len(receiver.signing_secrets)) == ("drop", 1)
    assert (exporter.endpoint, exporter.timeout) == ("http://backend:1", 3.0)
    with pytest.raises(ConfigError, match=r"receivers::statsig::user: .* \(yaml:receivers::statsig::user:1\)"):
        check(read_document(["yaml:receivers::statsig::user: x"], environ), COMPONENTS)


def test_a_text_may_add_components_to_the_environment() -> None:
    environ = {"STATSIG_SIGNING_SECRET": "webhook-x", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://backend:1"}
    exporter = ["yaml:exporters::debug: {}", "yaml:service::pipelines::logs::exporters: [otlp_grpc, debug]"]
    receiver = [
        "yaml:receivers::statsig/b: {signing_secrets: [], path: /b}",
        "yaml:service::pipelines::logs::receivers: [statsig, statsig/b]",
    ]
    for texts, receivers, exporters in (
        (exporter, ["statsig"], ["otlp_grpc", "debug"]),
        (receiver, ["statsig", "statsig/b"], ["otlp_grpc"]),
        ([*receiver, *exporter], ["statsig", "statsig/b"], ["otlp_grpc", "debug"]),
    ):
        found = check(read_document(texts, environ), COMPONENTS)
        assert (list(found.receivers), list(found.exporters)) == (receivers, exporters)
        assert len(receiver_settings(found)["statsig"].signing_secrets) == 1
    with pytest.raises(ConfigError, match="there is no exporter 'file'"):
        check(read_document(["yaml:service::pipelines::logs::exporters: [file]"], environ), COMPONENTS)
    for odd in ("[logs]", "{}", "", "{logs: }", "{logs: {receivers: statsig, exporters: 5}}"):
        with suppress(ConfigError):
            check(read_document([f"yaml:service: {{pipelines: {odd}}}"], environ), COMPONENTS)


def test_a_whole_configuration_and_files_stand_alone(tmp_path: Path) -> None:
    environ = {"STATSIG_SIGNING_SECRET": "webhook-x"}
    whole = "yaml:" + TWO % ""
    assert list(check(read_document([whole], environ), COMPONENTS).exporters) == ["debug"]
    path = tmp_path / "preset.yaml"
    path.write_text("receivers: {statsig: {user: drop}}")
    for more in ([], ["yaml:receivers::statsig::path: /x"]):
        with pytest.raises(ConfigError, match="exporters: is required"):
            check(read_document([path, *more], environ), COMPONENTS)
