"""Shows a dead letter and its content as values for JSON."""

import base64
import json
from contextlib import suppress
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel.exporters.json_lines import to_json_line
from statsig_otel.exporters.queue.dead_letters import FROM_RECEIVER, StoredDeadLetter
from statsig_otel.exporters.wording import rfc3339


def without_content(dead_letter: StoredDeadLetter) -> dict[str, Any]:
    """A dead letter without its content, as values for JSON."""
    return {
        "id": dead_letter.id,
        "kept_at": rfc3339(dead_letter.at_ms // 1000),
        "kind": dead_letter.kind,
        "receiver" if dead_letter.kind in FROM_RECEIVER else "exporter": dead_letter.owner,
        "reason": dead_letter.reason,
        "attempts": dead_letter.attempts,
        "uid": dead_letter.uid.hex() if dead_letter.uid else None,
        "records": dead_letter.count,
        "bytes": dead_letter.size,
    }


def decoded(dead_letter: StoredDeadLetter, content: bytes) -> dict[str, Any]:
    """The content of a dead letter, as a value for JSON.

    An item or body is in `text`, and records are an OTLP/JSON request in `request`. What can't be decoded, and what was
    damaged, is in `base64`.
    """
    found: dict[str, Any] = {}
    with suppress(UnicodeDecodeError, DecodeError, RecursionError, ValueError):
        if dead_letter.kind in FROM_RECEIVER:
            found["text"] = content.decode()
        else:
            found["request"] = json.loads(to_json_line(ExportLogsServiceRequest.FromString(content)))
    if not found or dead_letter.kind == "damaged":
        found["base64"] = base64.b64encode(content).decode()
    return found
