"""What is wrong with a secret wherever it comes from, and what is only said to be probably wrong."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from statsig_otel.config import ConfigError
from statsig_otel.config.document import Document
from statsig_otel.config.grammar import check
from statsig_otel.config.locations import read_all
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.doubts import doubts
from statsig_otel.plugin.settings.environment import document_from_environment

FILE = """\
receivers: {statsig: {signing_secrets: [%s]}}
exporters:
  otlp_http:
    endpoint: https://backend
    headers: {authorization: "%s"}
service: {pipelines: {logs: {receivers: [statsig], exporters: [otlp_http]}}}
"""


def said(document: Document) -> list[str]:
    return list(doubts(check(document, COMPONENTS), document))


def read(*texts: str, environ: Mapping[str, str] | None = None) -> Document:
    variables = {f"C{number}": text for number, text in enumerate(texts)}
    return read_all([f"env:{name}" for name in variables], environ={**variables, **(environ or {})})


def in_the_environment(secret: str) -> Document:
    return document_from_environment({"STATSIG_SIGNING_SECRET": secret})


def in_a_variable(secret: str) -> Document:
    return read(FILE % ("'${env:SECRET}'", "x"), environ={"SECRET": secret})


def in_a_file(secret: str) -> Document:
    Path("secret").write_text(secret + "\n")
    return read(FILE % ("'${file:secret}'", "x"))


def in_yaml(secret: str) -> Document:
    quoted = secret.replace("\\", "\\\\").replace('"', '\\"')
    return read(FILE % (f'"{quoted}"', "x"))


SOURCES = [in_the_environment, in_a_variable, in_a_file, in_yaml]


@pytest.mark.parametrize("source", SOURCES)
def test_a_secret_in_quotes_is_an_error(
    source: Callable[[str], Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for secret in (
        '"webhook-s3cr3t"',
        "'webhook-s3cr3t'",
        '"webhook-s3cr3t',
        "webhook-s3cr3t'",
        "\u201cwebhook-x\u201d",
    ):
        with pytest.raises(ConfigError) as caught:
            check(source(secret), COMPONENTS)
        (problem,) = caught.value.problems
        assert problem.path == ("receivers", "statsig", "signing_secrets", 0)
        assert problem.message == "begins or ends with a quotation mark"
        assert "leave the quotation marks out" in str(problem.hint)
        assert "s3cr3t" not in str(caught.value)
    assert said(source("webhook-s3cr3t")) == []
    assert said(source("webhook-a'b\"c-d")) == []


@pytest.mark.parametrize("source", SOURCES)
def test_a_secret_without_its_beginning_is_only_told(
    source: Callable[[str], Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (sentence,) = said(source("s3cr3t"))
    assert sentence.startswith("receivers::statsig::signing_secrets[0]: does not begin with webhook-, as Statsig's ")
    assert "s3cr3t" not in sentence


def test_a_secret_that_is_too_short_to_be_one_is_told() -> None:
    (sentence,) = said(read(FILE % ("webhook-01234", "x"), environ={}))
    assert sentence.startswith("receivers::statsig::signing_secrets[0]: has only 13 characters, and Statsig's secrets ")
    assert said(read(FILE % ("webhook-012345", "x"), environ={})) == []


def test_the_placeholder_of_the_documentation_is_told() -> None:
    (sentence,) = said(read(FILE % ("webhook-...", "x"), environ={}))
    assert sentence.startswith("receivers::statsig::signing_secrets[0]: is the placeholder that the documentation ")


def test_only_the_beginning_of_a_secret_is_an_error() -> None:
    """An empty variable behind the beginning leaves a secret that everybody knows."""
    with pytest.raises(ConfigError) as caught:
        check(read(FILE % ('"webhook-${env:A}"', "x"), environ={"A": ""}), COMPONENTS)
    (problem,) = caught.value.problems
    assert problem.message == "is only the beginning that all secrets have"


def test_a_reference_without_braces_is_told() -> None:
    """The Collector replaced it in older versions. Its name is not shown: it may be a part of a password."""
    where = "exporters::otlp_http::headers::authorization: "
    for value in ("Basic $AUTH_HEADER", "$TOKEN", "$$x $TOKEN", "${env:A} $B_2"):
        (sentence,) = said(read(FILE % ("webhook-s3cr3t", value), environ={"A": "a", "AUTH_HEADER": "b"}))
        assert sentence == (
            f"{where}contains a $ before a name, which is not replaced: write ${{env:NAME}}, or $$ where a $ is meant "
            "(env:C0:5)"
        )


def test_a_home_directory_that_only_a_shell_would_replace_is_told() -> None:
    (sentence,) = said(read(FILE % ("webhook-s3cr3t", "~/token")))
    assert "begins with ~, which is not replaced by a home directory: write ${env:HOME}, or the whole path" in sentence
    assert said(read(FILE % ("webhook-s3cr3t", "a~/b"))) == said(read(FILE % ("webhook-s3cr3t", "~"))) == []


def test_other_dollars_are_not() -> None:
    for value in ("Basic $$AUTH_HEADER", "pa$$word $5 $a $ $-X", "${env:A}", "${A:-$TOKEN}", "$$$$TOKEN"):
        assert said(read(FILE % ("webhook-s3cr3t", value), environ={"A": "$TOKEN"})) == []


def test_a_header_in_quotation_marks_is_told() -> None:
    (sentence,) = said(read(FILE % ("webhook-s3cr3t", "${env:KEY}"), environ={"KEY": '"s3cr3t"'}))
    assert sentence.startswith("exporters::otlp_http::headers::authorization: is in quotation marks, which are sent ")
    assert "s3cr3t" not in sentence
    assert said(read(FILE % ("webhook-s3cr3t", "${env:KEY}"), environ={"KEY": 'a "b" c'})) == []


def test_a_value_that_was_replaced_is_not_told() -> None:
    file = FILE % ("webhook-s3cr3t", "Basic $AUTH_HEADER")
    assert said(read(file, 'exporters: {otlp_http: {headers: {authorization: "x"}}}')) == []
    assert len(said(read(file, "exporters: {otlp_http: {headers: {other: x}}}"))) == 1
    assert len(said(read(file, "exporters: {otlp_http: {headers: {other: $OTHER}}}"))) == 2


def test_records_that_kafka_refuses_as_too_large_are_told() -> None:
    """Only for the receiver whose records the exporter gets."""
    text = """\
receivers:
  statsig: {signing_secrets: [webhook-012345], max_record_bytes: %d}
  statsig/other: {signing_secrets: [webhook-543210], path: /other, max_record_bytes: 950000}
exporters:
  kafka: {brokers: ["broker:9092"], tls: {}, producer: {max_message_bytes: 900000}, sending_queue: {enabled: %s}}
  otlp_http: {endpoint: https://backend}
service:
  pipelines:
    logs: {receivers: [statsig], exporters: [kafka]}
    logs/other: {receivers: [statsig/other], exporters: [otlp_http]}
"""
    for queue in ("true", "false"):
        assert said(read(text % (899_900, queue))) == []
        (sentence,) = said(read(text % (899_901, queue)))
        assert sentence.startswith("receivers::statsig::max_record_bytes: a record may have 899901 bytes, which ")
        assert "exporters::kafka::producer::max_message_bytes (900000) refuses: make that at least 900001" in sentence
