"""Payloads, and what a file holds of them."""

import json
import subprocess
import sys
from pathlib import Path

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs

ROOT = Path(__file__).parents[3]


def payload(title: str) -> bytes:
    """A record with this title as its body, as the queue holds it."""
    record = LogRecord(event_name="statsig.config_change", body=AnyValue(string_value=title))
    return ExportLogsServiceRequest(
        resource_logs=[ResourceLogs(scope_logs=[ScopeLogs(log_records=[record])])]
    ).SerializeToString()


def titles(path: Path) -> list[str]:
    """The bodies in the file. Fails where one line is not a whole one."""
    content = path.read_bytes()
    assert not content or content.endswith(b"\n")
    found = []
    for line in content.splitlines():
        for resource_logs in json.loads(line)["resourceLogs"]:
            for scope_logs in resource_logs["scopeLogs"]:
                found += [record["body"]["stringValue"] for record in scope_logs["logRecords"]]
    return found


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def run_child(code: str, *arguments: str, before: tuple[str, ...] = ()) -> None:
    child = subprocess.run(
        [*before, sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout == "done\n"
