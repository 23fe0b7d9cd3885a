"""A configuration file: a configuration that can be printed and read again, or problems with their places.

No message shows what a file takes from the environment as a secret.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from statsig_otel.config.configuration import Configuration
from statsig_otel.config.errors import ConfigError
from statsig_otel.config.grammar import check as check_document
from statsig_otel.config.resolved import resolved, to_yaml
from statsig_otel.config.source import parse
from statsig_otel.plugin.settings.catalog import COMPONENTS
from tests.fuzz.targets import Check

ROOT: Final = Path(__file__).parents[2]
FILE: Final = "config.yaml"
SECRET: Final = "s3cr3t-0f-the-environment"
ENVIRON: Final[Mapping[str, str]] = {"SECRET": SECRET, "NAME": "statsig", "PORT": "4317", "EMPTY": ""}

LONGEST: Final = 2048
TOKENS: Final = (
    b"receivers:\n", b"exporters:\n", b"service:\n", b"extensions:\n", b"pipelines:", b"logs:", b"telemetry:",
    b"statsig", b"otlp_grpc", b"otlp_http", b"file_storage", b"debug", b"signing_secrets:", b"endpoint:", b"headers:",
    b"tls:", b"insecure:", b"mapping:", b"attributes:", b"filter:", b"include:", b"impacted_services:", b"rules:",
    b"sending_queue:", b"retry_on_failure:", b"timeout:", b"5s", b"1MiB", b"true", b"null", b"${env:SECRET}",
    b"${SECRET}", b"${file:x}", b"${env:NAME:-x}", b"$$", b"&a ", b"*a", b"!!str ", b"? ", b"- ", b"|\n", b">-\n",
    b"%YAML 1.2\n", b"---\n", b"...\n", b"<<: ", b"\\U00110000", b"\xef\xbb\xbf", b"\n  ", b"\n    ", b"{a: b}",
)  # fmt: skip


def seeds() -> Iterator[bytes]:
    """A whole configuration, those of the examples, and the broken ones of the other tests."""
    yield (
        b"receivers:\n  statsig: {signing_secrets: ['${env:SECRET}'], endpoint: 'localhost:8080'}\nexporters:\n"
        b"  otlp_grpc: {endpoint: 'a:1', headers: {x: '${SECRET}'}, tls: {insecure: true}}\n  debug:\nservice:\n"
        b"  pipelines:\n    logs: {receivers: [statsig], exporters: [otlp_grpc, debug]}\n"
    )
    for folder in ("tests/config/cases", "examples"):
        files = (file for file in sorted((ROOT / folder).rglob("*.yaml")) if file.stat().st_size <= LONGEST)
        yield from (file.read_bytes() for file in files)


@contextmanager
def checking() -> Iterator[Check]:
    def check(data: bytes) -> None:
        configuration = outcome(data)
        if configuration is not None:
            check_printed(configuration)

    yield check


def outcome(data: bytes) -> Configuration | None:
    """The configuration; None if there are problems."""
    try:
        document = parse(data, file=FILE, directory=Path("/nonexistent"), environ=ENVIRON)
        return check_document(document, COMPONENTS)
    except ConfigError as error:
        found = error
    assert found.problems
    for problem in found.problems:
        assert problem.file == FILE
        assert problem.line is not None
        assert problem.line <= data.count(b"\n") + data.count(b"\r") + data.count(b"\x85") + 2 * data.count(b"\xe2") + 1
        assert problem.message
        assert all(line.isprintable() for line in str(problem).split("\n"))
        str(problem).encode()
        assert SECRET not in str(problem) or not is_for_secrets(problem.path)
    return None


def is_for_secrets(path: tuple[str | int, ...]) -> bool:
    """Whether a value is a secret. What a file writes into other values may be shown."""
    return not {"signing_secrets", "hash_key", "headers", "ca_pem", "cert_pem", "key_pem"}.isdisjoint(path)


def check_printed(configuration: Configuration) -> None:
    """What is printed reads as the same configuration, unless it has secrets, which are not printed."""
    values = resolved(configuration)
    text = to_yaml(values)
    for one in (*configuration.receivers.values(), *configuration.exporters.values()):
        assert SECRET not in repr(one) or SECRET in text
    if "[REDACTED]" not in text:
        again = parse(text.encode(), file=FILE, directory=Path("/nonexistent"), environ={})
        assert resolved(check_document(again, COMPONENTS)) == values
