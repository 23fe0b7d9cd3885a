"""The receiver's settings: every bound, with an error that says what to do."""

import pytest

from statsig_otel.config import ConfigError
from statsig_otel.config.opaque import reveal
from statsig_otel.exporters.consumer import Batch
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from statsig_otel.plugin.webhook.body import parse
from statsig_otel.plugin.webhook.signature import sign
from tests.looped import looped


def settings(**values: object) -> StatsigReceiverSettings:
    return StatsigReceiverSettings.model_validate({"signing_secrets": ["webhook-x"], **values})


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("localhost:8080", ("localhost", 8080)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:65535", ("::1", 65535)),
        (":8080", ("", 8080)),
    ],
)
def test_an_endpoint_is_host_and_port(endpoint: str, address: tuple[str, int]) -> None:
    assert settings(endpoint=endpoint).address == address


@looped(
    "endpoint",
    ["", "localhost", "localhost:", "http://localhost:8080", "localhost:8080/x", "::1:80", "a:65536", "a:1 "],
)
def test_anything_else_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(ConfigError):
        settings(endpoint=endpoint)


@looped("path", ["", "hook", "/a b", "/{x}", "/a?b", "/a#b", "/ä", "//x", "/a//b", "/a%20b"])
def test_a_path_is_plain(path: str) -> None:
    with pytest.raises(ConfigError, match="must begin with /"):
        settings(path=path)


@pytest.mark.parametrize(
    ("secrets", "message"),
    [
        ([""], "is empty"),
        (["", ""], r"(?s)\[0\]: is empty.*\[1\]: is empty"),
        (["webhook-x\n"], "white space"),
        ("webhook-x", "list"),
        (None, "has no value"),
    ],
)
def test_secrets_are_a_list_of_texts_that_are_not_empty(secrets: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(signing_secrets=secrets)


def test_a_place_for_the_next_secret_may_be_empty() -> None:
    for secrets in (["webhook-x", ""], ["", "webhook-x"], ["", "webhook-x", ""]):
        found = settings(signing_secrets=secrets)
        assert [reveal(secret) for secret in found.signing_secrets] == secrets
        assert found.verifier().secret_count == len(secrets)


def test_no_secret_must_be_written_out() -> None:
    assert settings(signing_secrets=[]).signing_secrets == []
    with pytest.raises(ConfigError, match="signing_secrets"):
        StatsigReceiverSettings.model_validate({})


def test_secrets_are_not_shown() -> None:
    shown = settings(user="hash", hash_key="hidden")
    assert "webhook-x" not in repr(shown)
    assert "hidden" not in repr(shown) + shown.model_dump_json()


@looped(
    ("values", "message"),
    [
        ({"user": "hash"}, "needs a hash_key"),
        ({"user": "hash", "hash_key": ""}, "needs a hash_key"),
        ({"hash_key": "k"}, "user: hash only"),
        *(({"user": "hash", "hash_key": key}, "write the key alone") for key in (" ", "k\n", "\tk", "k\x01k")),
        *(({"user": "hash", "hash_key": key}, "begins or ends with a quotation mark") for key in ('"k"', "k'")),
        ({"user": "drop", "include_original": True}, "would show the users"),
        ({"user": "hash", "hash_key": "k", "include_original": True}, "would show the users"),
        ({"user": "drop", "include_original": True}, "write include_original: redacted"),
        ({"include_original": "redacted"}, "set user: hash, or user: drop"),
        ({"user": "drop", "include_original": "hidden"}, "must be True, False or redacted"),
        ({"include_original": 1}, "must be True, False or redacted"),
        ({"user": "none"}, "full"),
        ({"timestamp_tolerance": "-1s"}, "duration"),
        ({"read_timeout": "0"}, "must be more than 0s"),
        ({"read_header_timeout": "61m"}, "at most 1h0m0s"),
        ({"max_connections": 0}, "must be more than 0"),
        ({"max_request_body_size": "0MiB"}, "must be more than 0"),
        ({"max_request_body_size": "2MiB", "max_in_flight_bytes": "1MiB"}, "at least max_request_body_size"),
        ({"resource": {"a": None}}, "resource"),
        ({"resource": {"a": 2**63}}, "resource"),
        ({"resource": {"a": [-(2**63) - 1]}}, "resource"),
        ({"resource": {"a": {"b": 1}}}, "resource"),
        ({"resource": {"": "x"}}, "resource"),
        ({"resource": {"a": float("nan")}}, "resource"),
        ({"resource": {"a": [1.0, float("inf")]}}, "resource"),
        ({"tls": {"cert_file": "x"}}, "key_file"),
    ],
)
def test_values_that_can_not_work_together_are_errors(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**values)


def test_settings_make_the_intake_and_the_mapper_of_a_running_receiver() -> None:
    """Secrets, limits, filter and mapping count, and both make the same records."""
    made = settings(
        max_request_body_size=300,
        mapping={"body": "{name}!"},
        filter={"exclude": {"names": ["b"]}},
        resource={"service.name": "flags"},
    )
    changes = ",".join(
        f'{{"eventName":"statsig::config_change","timestamp":1,"metadata":{{"type":"Gate","name":"{name}"}}}}'
        for name in "ab"
    )
    body = f"[{changes}]".encode()
    resource = {"service.name": "of the environment", "host.name": "h1"}
    mapped = made.mapper(resource).map(parse(body), observed_ns=1_000_000)
    intake = made.intake("statsig/eu", resource)
    signed = sign(body, secret="webhook-x", timestamp_ms=1)
    request = intake.begin([(name.encode(), value.encode()) for name, value in signed.items()], now_ns=1_000_000)
    request.feed(body)
    assert request.finish(complete=True) == Batch("statsig/eu", mapped.changes)
    (record,) = mapped.changes[0].records
    assert mapped.ignored == 1
    assert all(text in record for text in (b"a!", b"flags", b"h1"))
    assert intake.limits.max_request_body_size == 300


def test_by_default_the_mapper_makes_default_records() -> None:
    body = b'{"eventName":"statsig::config_change","timestamp":1,"metadata":{"type":"Gate","name":"a"}}'
    (change,) = settings().mapper().map(parse(body), observed_ns=1).changes
    assert b"statsig" in change.records[0]
