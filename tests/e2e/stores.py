"""Real stores for the queries of examples/monitoring: Prometheus, VictoriaLogs, and ClickHouse's engine.

Prometheus is of Debian's package. VictoriaLogs is built with Go, in about a minute, and kept in the user's cache
directory beside the Collector (`otelcol.py`). ClickHouse's engine is the Python package chdb-core, which `make stores`
installs in an environment of its own: it has half a gigabyte.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from tests.e2e.otelcol import UnavailableError, locked, run_until
from tests.e2e.processes import Process, clean_environment
from tests.peers.ports import free_port
from tests.waiting import wait_until

_VICTORIALOGS: Final = "github.com/VictoriaMetrics/VictoriaLogs/app/victoria-logs"
_VICTORIALOGS_VERSION: Final = "v1.52.1"
_BUILD_TIMEOUT: Final = 15 * 60.0
_PATIENCE: Final = 60.0

CHDB: Final = Path(__file__).parents[2] / "build" / "stores" / "bin" / "python"
"""The Python that has chdb-core."""

_RUN_SQL: Final = """
import json, sys
from chdb.session import Session
session = Session()
for one in json.load(sys.stdin):
    answer = session.query(one, "JSONEachRow")
print(str(answer))
"""


def victorialogs_binary() -> Path:
    """VictoriaLogs, built where that has not been done yet.

    Raises:
        UnavailableError: There is no Go, or the modules can't be had.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "statsig-otel-tests" / f"victoria-logs-{_VICTORIALOGS_VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    binary = folder / "victoria-logs"
    with locked(folder / "lock"):
        if not binary.exists():
            go = shutil.which("go")
            if go is None:
                raise UnavailableError("go is not on the PATH")
            install = [go, "install", f"{_VICTORIALOGS}@{_VICTORIALOGS_VERSION}"]
            built, output = run_until(install, folder, time.monotonic() + _BUILD_TIMEOUT, GOBIN=str(folder))
            if not built:
                raise UnavailableError(f"VictoriaLogs can't be built:\n{output}")
    return binary


@contextmanager
def victorialogs(binary: Path, folder: Path) -> Iterator[str]:
    """Run VictoriaLogs. Gives its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = [
        str(binary),
        f"-storageDataPath={folder}",
        f"-httpListenAddr=127.0.0.1:{port}",
        "-retentionPeriod=100y",
    ]
    with Process(arguments, clean_environment()):
        wait_until(lambda: answers(f"{url}/health"), "VictoriaLogs", within=_PATIENCE)
        yield url


def prometheus_binary() -> str:
    """Prometheus.

    Raises:
        UnavailableError: It is not installed.
    """
    found = shutil.which("prometheus")
    if found is None:
        raise UnavailableError("prometheus is not on the PATH: install Debian's package prometheus")
    return found


@contextmanager
def prometheus(binary: str, folder: Path, target: str, rules: Path) -> Iterator[str]:
    """Run Prometheus, which reads a target each second and evaluates a file of rules. Gives its URL."""
    port = free_port()
    scraped = {"job_name": "statsig-otel", "static_configs": [{"targets": [target]}]}
    config = folder / "prometheus.yml"
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(rules)],
                "scrape_configs": [scraped],
            }
        )
    )
    url = f"http://127.0.0.1:{port}"
    arguments = [binary, f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with Process([*arguments, f"--web.listen-address=127.0.0.1:{port}"], clean_environment()):
        wait_until(lambda: answers(f"{url}/-/ready"), "Prometheus", within=_PATIENCE)
        yield url


def answers(url: str) -> bool:
    """Whether a server answers with 200."""
    try:
        with urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def asked(url: str, **parameters: str) -> str:
    """What a server answers to a GET request with these parameters. What it refuses fails the test."""
    try:
        with urlopen(f"{url}?{urlencode(parameters)}", timeout=30) as answer:
            body: bytes = answer.read()
            return body.decode()
    except HTTPError as error:
        raise AssertionError(f"{parameters}: {error.code} {error.read().decode()}") from error


def sql(*statements: str) -> list[dict[str, Any]]:
    """The rows that the last of these statements of ClickHouse finds.

    Raises:
        UnavailableError: chdb-core is not installed.
    """
    if not CHDB.exists():
        raise UnavailableError("chdb-core is not installed: run make stores")
    done = subprocess.run(
        [str(CHDB), "-c", _RUN_SQL],
        input=json.dumps(statements),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line]


_TABLE: Final = """CREATE TABLE otel_logs (
    Timestamp DateTime64(9), TimestampTime DateTime DEFAULT toDateTime(Timestamp), SeverityText LowCardinality(String),
    SeverityNumber UInt8, ServiceName LowCardinality(String), Body String, ResourceSchemaUrl LowCardinality(String),
    ResourceAttributes Map(LowCardinality(String), String), ScopeSchemaUrl LowCardinality(String), ScopeName String,
    ScopeVersion LowCardinality(String), LogAttributes Map(LowCardinality(String), String), EventName String
) ENGINE = MergeTree PARTITION BY toDate(TimestampTime) ORDER BY (ServiceName, TimestampTime, Timestamp)"""
"""The columns that the Collector's clickhouse exporter creates, with their types, but for those of spans."""


def otel_logs(requests: Iterable[ExportLogsServiceRequest]) -> tuple[str, str]:
    """Statements that make ClickHouse's table of what the Collector's exporter was sent, as it does."""
    return _TABLE, "INSERT INTO otel_logs FORMAT JSONEachRow\n" + "\n".join(map(json.dumps, _rows(requests)))


def _rows(requests: Iterable[ExportLogsServiceRequest]) -> Iterator[dict[str, object]]:
    """A row for each record. All attributes are strings."""
    for of_resource in (one for request in requests for one in request.resource_logs):
        resource = texts(of_resource.resource.attributes)
        for of_scope in of_resource.scope_logs:
            for record in of_scope.log_records:
                yield {
                    "Timestamp": f"{record.time_unix_nano // 10**9}.{record.time_unix_nano % 10**9:09d}",
                    "SeverityText": record.severity_text,
                    "SeverityNumber": record.severity_number,
                    "ServiceName": resource.get("service.name", ""),
                    "Body": _as_string(record.body),
                    "ResourceSchemaUrl": of_resource.schema_url,
                    "ResourceAttributes": resource,
                    "ScopeSchemaUrl": of_scope.schema_url,
                    "ScopeName": of_scope.scope.name,
                    "ScopeVersion": of_scope.scope.version,
                    "LogAttributes": texts(record.attributes),
                    "EventName": record.event_name,
                }


def texts(attributes: Iterable[KeyValue]) -> dict[str, str]:
    """Attributes as the text that a Collector, or Loki, makes of their values."""
    return {one.key: _as_string(one.value) for one in attributes}


def _as_string(value: AnyValue) -> str:
    """The text that a Collector makes of a value: JSON for an array, the plain text for everything else."""
    if value.WhichOneof("value") == "array_value":
        texts = [_as_string(one) for one in value.array_value.values]
        return json.dumps(texts, separators=(",", ":"), ensure_ascii=False)
    return str(getattr(value, value.WhichOneof("value") or "string_value"))


def as_text(value: dict[str, Any]) -> str:
    """The same text, of a value in OTLP/JSON. VictoriaLogs keeps this, too."""
    if "stringValue" in value:
        return str(value["stringValue"])
    texts = [as_text(one) for one in value["arrayValue"]["values"]]
    return json.dumps(texts, separators=(",", ":"), ensure_ascii=False)
